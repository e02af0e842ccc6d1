"""``qwench launch AGENT``: the settings with which an agent uses a running server, tried; or the agent itself.

The settings go to standard output as lines for a shell, so ``eval "$(qwench launch claude)"`` takes them over; what was
tried goes to standard error. Words behind ``--`` are the agent's own: ``qwench launch codex --run -- exec "Say hi"``.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from qwench.cli.agents import AGENTS, KEY_VARIABLE, NO_KEY, Agent, Served, Setup
from qwench.cli.rehearsal import Lacking, Wire
from qwench.errors import EngineUnavailable, UsageError


@dataclass(frozen=True)
class Finding:
    """What a check saw, or what the server lacks."""

    name: str
    ok: bool
    told: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s [flags] AGENT [-- WORDS FOR THE AGENT]"
    parser.set_defaults(behind=())
    parser.add_argument("agent", metavar="AGENT", help=", ".join(AGENTS))
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the server (http://127.0.0.1:8000)")
    parser.add_argument("--model", metavar="NAME", help="one of its models (the first)")
    parser.add_argument("--api-key", metavar="KEY", help=f"its key, if it asks for one (or set {KEY_VARIABLE})")
    parser.add_argument("--run", action="store_true", help="start the agent with these settings")
    parser.add_argument("--no-check", action="store_true", help="do not try what the agent will ask for")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of lines for a shell")


def run(args: argparse.Namespace) -> int:
    """0 if the server does what the agent needs, 1 if it lacks something; with ``--run`` the agent's own."""
    if args.agent not in AGENTS:
        raise UsageError(f"there is no agent {args.agent!r}; known are {', '.join(AGENTS)}.")
    agent = AGENTS[args.agent]
    key = args.api_key or os.environ.get(KEY_VARIABLE) or NO_KEY
    wire = Wire(args.url, key)
    served = look(wire, args.model, key)
    setup = agent.setup(served).saying(args.behind)
    findings: list[Finding] = []
    for finding in () if args.no_check else rehearse(agent, wire, served):
        findings.append(finding)
        _say(f"{'ok  ' if finding.ok else 'no  '}{finding.name}: {finding.told}")
    ready = all(finding.ok for finding in findings)
    if not args.run:
        _show(agent, setup, key, findings, as_json=args.json)
        return int(not ready)
    if not ready:
        _say(f"{agent.title} was not started; --no-check starts it all the same.")
        return 1
    return start(agent, setup)


def look(wire: Wire, wanted: str | None, key: str) -> Served:
    """What is served. Raises EngineUnavailable while it loads, UsageError where the key or the model is another."""
    try:
        wire.ask("/health")
        cards = {str(card["id"]): card for card in wire.ask("/v1/models").get("data", [])}
    except Lacking as lack:
        if " 401:" in str(lack):
            raise UsageError(f"{wire.url} asks for a key; give it with --api-key or {KEY_VARIABLE}.") from None
        raise EngineUnavailable(f"{wire.url} is not ready: {lack}.") from None
    name = wanted or next(iter(cards), "")
    if name not in cards:
        raise UsageError(f"{wire.url} does not serve {name!r}; it serves {', '.join(cards) or 'nothing'}.")
    card = cards[name]
    window = card.get("max_input_tokens") or card.get("context_length") or 0  # Anthropic's card, or OpenAI's
    return Served(wire.url, name, int(window), key)


def rehearse(agent: Agent, wire: Wire, served: Served) -> Iterator[Finding]:
    """Everything the agent needs, tried in turn."""
    window = f"{served.window:,} tokens"
    if served.window < agent.first:
        window += f", but the first prompt of {agent.title} alone takes about {agent.first:,}"
    yield Finding("window", served.window >= agent.first, window)
    for name, check in agent.checks.items():
        try:
            yield Finding(name, True, check(wire, served.model))
        except Lacking as lack:
            yield Finding(name, False, str(lack))


def start(agent: Agent, setup: Setup) -> int:
    """Become the agent. Raises UsageError where it is not installed or nothing that can be started."""
    if not setup.command:
        raise UsageError(f"{agent.title} is {agent.install}; put the text of `qwench launch` into {setup.path}.")
    program = shutil.which(setup.command[0])
    if program is None:
        raise UsageError(f"{setup.command[0]} is not installed; `{agent.install}` does that.")
    environment = {name: value for name, value in os.environ.items() if name not in setup.unset}
    sys.stdout.flush()
    os.execve(program, setup.command, {**environment, **setup.environment})  # noqa: S606  # the agent the user named


def _show(agent: Agent, setup: Setup, key: str, findings: list[Finding], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"agent": agent.title, **asdict(setup), "checks": [asdict(finding) for finding in findings]}))
        return
    if setup.file:
        print(f"# {setup.path}\n{setup.file}")
        return
    for name in setup.unset:
        print(f"unset {name}")
    for name, value in setup.environment.items():
        print(f"export {name}={_quoted(value, key)}")
    print(f"# then: {shlex.join(setup.command)}")


def _quoted(value: str, key: str) -> str:
    """A value for a shell; a real key stays in its variable, as terminals are looked at and logged."""
    return f'"${KEY_VARIABLE}"' if value == key != NO_KEY else shlex.quote(value)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
