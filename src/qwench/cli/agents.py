"""The agents that ``qwench launch`` knows: what each has to be told of a server, and what it will ask of it.

Knows no HTTP and prints nothing. Where an agent reads a file, the file is shown and never written: it is the user's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from qwench.cli.rehearsal import CHAT, MESSAGES, RESPONSES, Check, counts_tokens, fills_in, lists_models

PATIENCE = 3_000_000  # milliseconds: a long prompt on a small machine takes its time
KEY_VARIABLE = "QWENCH_API_KEY"
NO_KEY = "none"  # agents want one even where the server does not


@dataclass(frozen=True)
class Served:
    """What is served where; ``key`` is what to send, NO_KEY if nothing is asked for."""

    url: str
    model: str
    window: int
    key: str


@dataclass(frozen=True)
class Setup:
    """What makes an agent use the server: variables (and some that would be in the way), a command, a file's text."""

    environment: Mapping[str, str] = field(default_factory=dict)
    unset: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    path: str = ""
    file: str = ""

    def saying(self, words: Sequence[str]) -> Setup:
        """With ``words`` of the user's at the end of the command, if there is one."""
        return replace(self, command=(*self.command, *words)) if self.command else self


@dataclass(frozen=True)
class Agent:
    """``checks`` are what it cannot do without; its first prompt takes about ``first`` tokens."""

    title: str
    setup: Callable[[Served], Setup]
    checks: Mapping[str, Check]
    first: int
    install: str


def claude(served: Served) -> Setup:
    sizes = ("", "DEFAULT_OPUS_", "DEFAULT_SONNET_", "DEFAULT_HAIKU_")
    environment = {
        "ANTHROPIC_BASE_URL": served.url,
        "ANTHROPIC_AUTH_TOKEN": served.key,
        **{f"ANTHROPIC_{size}MODEL": served.model for size in sizes},
        "CLAUDE_CODE_SUBAGENT_MODEL": served.model,
        "CLAUDE_CODE_AUTO_COMPACT_WINDOW": str(served.window),  # it takes 200,000 for granted
        "CLAUDE_CODE_ATTRIBUTION_HEADER": "0",  # a line that changes with every request, at the very beginning
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "API_TIMEOUT_MS": str(PATIENCE),
    }
    return Setup(environment, unset=("ANTHROPIC_API_KEY",), command=("claude",))


def codex(served: Served) -> Setup:
    settings = {
        "model": served.model,
        "model_provider": "qwench",
        "model_context_window": served.window,
        "model_providers.qwench.name": "Qwench",
        "model_providers.qwench.base_url": f"{served.url}/v1",
        "model_providers.qwench.wire_api": "responses",
        "model_providers.qwench.env_key": KEY_VARIABLE,
        "model_providers.qwench.stream_idle_timeout_ms": PATIENCE,
    }
    given = [word for name, value in settings.items() for word in ("-c", f"{name}={json.dumps(value)}")]
    return Setup({KEY_VARIABLE: served.key}, command=("codex", *given))


def qwen_code(served: Served) -> Setup:
    environment = {
        "OPENAI_BASE_URL": f"{served.url}/v1",
        "OPENAI_API_KEY": served.key,
        "OPENAI_MODEL": served.model,
    }
    return Setup(environment, command=("qwen", "--auth-type", "openai"))


def open_webui(served: Served) -> Setup:
    environment = {
        "OPENAI_API_BASE_URL": f"{served.url}/v1",
        "OPENAI_API_KEY": served.key,
        "ENABLE_OLLAMA_API": "false",
        "SCARF_NO_ANALYTICS": "true",
        "DO_NOT_TRACK": "true",
        "ANONYMIZED_TELEMETRY": "false",
    }
    return Setup(environment, command=("open-webui", "serve", "--port", "8080"))


def continue_dev(served: Served) -> Setup:
    key = served.key if served.key == NO_KEY else f"${{{{ secrets.{KEY_VARIABLE} }}}}"  # from ~/.continue/.env
    model, base = json.dumps(served.model), json.dumps(f"{served.url}/v1")
    lines = [
        "name: Qwench",
        "version: 1.0.0",
        "schema: v1",
        "models:",
        f"  - name: {model}",
        "    provider: openai",
        f"    model: {model}",
        f"    apiBase: {base}",
        f"    apiKey: {key}",
        "    roles: [chat, edit, apply]",
        "    capabilities: [tool_use, image_input]",
        "    defaultCompletionOptions:",
        f"      contextLength: {served.window}",
        f"  - name: {json.dumps(f'{served.model}, autocomplete')}",
        "    provider: openai",
        f"    model: {model}",
        f"    apiBase: {base}",
        f"    apiKey: {key}",
        "    roles: [autocomplete]",
        "    useLegacyCompletionsEndpoint: true",
    ]
    return Setup(path="~/.continue/config.yaml", file="\n".join(lines))


AGENTS: Mapping[str, Agent] = {
    "claude": Agent(
        "Claude Code",
        claude,
        {"streaming": MESSAGES.streams, "tools": MESSAGES.calls, "count_tokens": counts_tokens},
        40_000,
        "npm install -g @anthropic-ai/claude-code",
    ),
    "codex": Agent(
        "Codex",
        codex,
        {"streaming": RESPONSES.streams, "tools": RESPONSES.calls},
        16_000,
        "npm install -g @openai/codex",
    ),
    "qwen-code": Agent(
        "Qwen Code",
        qwen_code,
        {"streaming": CHAT.streams, "tools": CHAT.calls},
        16_000,
        "npm install -g @qwen-code/qwen-code",
    ),
    "open-webui": Agent(
        "Open WebUI",
        open_webui,
        {"models": lists_models, "streaming": CHAT.streams, "tools": CHAT.calls},
        1_000,
        "pip install open-webui",
    ),
    "continue": Agent(
        "Continue",
        continue_dev,
        {"streaming": CHAT.streams, "tools": CHAT.calls, "fill in the middle": fills_in},
        4_000,
        "an editor's extension",
    ),
}
