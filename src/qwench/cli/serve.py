"""``qwench serve``: bind the port, then load the model behind the running server. Knows no route."""

from __future__ import annotations

import argparse
import errno
import gc
import ipaddress
import json
import os
import re
import socket
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from qwench import log
from qwench.cli.config_file import add_config_flag
from qwench.cli.engine import add_engine_flags, add_model_argument, engine_config
from qwench.cli.media import add_media_flags, media_caps, media_sources
from qwench.errors import QwenchError, UsageError
from qwench.family import PUBLISHED
from qwench.fault import fault

if TYPE_CHECKING:
    from qwench.engine.client import EngineClient
    from qwench.reason.checks import Command
    from qwench.server.keys import Key

KEY_VARIABLE = "QWENCH_API_KEY"
BACKLOG = 128
ANSWERS_TO = ("served", "hosted", "any")
EVERY_IPV4 = "0.0.0.0"  # noqa: S104  (named to be recognised, not to be bound)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser)
    add_config_flag(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on, 0 for any free one (8000)")
    key = f"ask clients for this key (or set {KEY_VARIABLE}); given several times, keys share the engine equally"
    parser.add_argument("--api-key", metavar="KEY", action="append", help=key)
    parser.add_argument("--api-keys", metavar="FILE", type=Path, help="keys by name, a line NAME sha256:DIGEST each")
    parser.add_argument("--key-rate", metavar="N", type=int, help="requests a minute for each key")
    parser.add_argument("--key-running", metavar="N", type=int, help="requests at a time for each key")
    parser.add_argument("--allow-no-key", action="store_true", help="let other machines in without a key")
    named = "a name clients reach this machine by, where there are no keys; addresses and localhost always do"
    parser.add_argument("--allow-host", metavar="NAME", action="append", default=[], help=named)
    pages = "let pages of this origin use the server from a browser, such as https://chat.example"
    parser.add_argument("--allow-origin", metavar="ORIGIN", action="append", default=[], help=pages)
    parser.add_argument("--log-format", choices=log.FORMATS, default="text", help="of messages on standard error")
    parser.add_argument("--keep-noise", action="store_true", help="leave clients' billing lines in system prompts")
    parser.add_argument("--served-name", metavar="NAME", help="the name clients send as `model`")
    others = "which `model` is answered: the served; GPT, Claude and Gemini models' names too; any and none (hosted)"
    parser.add_argument("--answers-to", choices=ANSWERS_TO, default="hosted", help=others)
    parser.add_argument(
        "--max-queue", type=int, default=1024, metavar="N", help="requests at a time; more get 429 (1024)"
    )
    kept = "memory for responses that clients of /v1/responses ask to be stored, 0 stores none (256)"
    parser.add_argument("--response-memory", type=int, default=256, metavar="MIB", help=kept)
    parser.add_argument("--max-body", default="32MiB", metavar="SIZE", help="of one request's body at most (32MiB)")
    left = "a prompt whose client left: stop reading, or finish in the background for the next try (stop)"
    parser.add_argument("--on-disconnect", default="stop", metavar="stop|finish", help=left)
    named = "a command that clients may have answers checked with, by this name; runs without a network"
    parser.add_argument("--checker", action="append", default=[], metavar="NAME=COMMAND", help=named)
    kept = "where files and batches are kept; without it they go with the server"
    parser.add_argument("--store", metavar="FILE", type=Path, help=kept)
    told = "send a trace of every answer there, over OTLP: http://localhost:4318 (needs the extra otel)"
    parser.add_argument("--otlp-endpoint", metavar="URL", help=told)
    add_media_flags(parser)
    add_engine_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM, which is a success. Raises what keeps the model from loading."""
    from qwench.engine.client import EngineClient

    log.configure(form=args.log_format)
    keys = read_all_keys(args.api_key, args.api_keys)
    check_exposure(args.host, keys, allowed=args.allow_no_key)
    _check_limits(args)
    config = replace(engine_config(args), max_queue=args.max_queue, on_disconnect=args.on_disconnect)
    checkers, max_body = named_checkers(args.checker), read_max_body(args.max_body)
    media, sources = media_caps(args), media_sources(args, files=False)
    with bind(args.host, args.port) as listener, ExitStack() as stack:
        client = EngineClient(config)
        client.prepare()  # the imports below take as long as reading a small model

        from qwench.server.app import build_app
        from qwench.server.run import serve
        from qwench.server.service import ServerSettings
        from qwench.server.store import Store
        from qwench.server.traces import read_traces
        from qwench.text.model import ModelText

        text = ModelText(client.files, client.model, keeps_noise=args.keep_noise)
        names = served_names(args.model, args.served_name)
        traces = read_traces(args.otlp_endpoint, os.environ, names[0])
        if traces is not None:
            stack.callback(traces.close)
        settings = ServerSettings(
            names=names,
            answers_to=args.answers_to,
            keys=keys,
            key_rate=args.key_rate,
            key_running=args.key_running,
            max_requests=args.max_queue,
            hosts=frozenset(name.lower() for name in (args.host, *args.allow_host)),
            origins=frozenset(origin.rstrip("/") for origin in args.allow_origin),
            response_bytes=args.response_memory << 20,
            max_body_bytes=max_body,
            checkers=checkers,
            media=media,
            sources=sources,
            watches=() if traces is None else (traces.note,),
            store=Store(args.store),
        )
        app = build_app(client, text, settings)
        where = url(args.host, listener.getsockname()[1])
        _say(f"Loading {names[0]}; {where}/health shows the progress")
        client.start(text.vocabulary)
        watch = threading.Thread(target=_greet, args=(client, where, names[0], bool(keys)), daemon=True)
        watch.start()
        serve(app, client, listener)
    return 0


def read_max_body(text: str) -> int:
    """Bytes of --max-body. Raises UsageError."""
    from qwench.llm import read_size

    found = read_size(text, "--max-body")
    if found < 1024:
        raise UsageError(f"--max-body is {text}; give at least 1KiB, so that a question fits.")
    return found


def _check_limits(args: argparse.Namespace) -> None:
    for flag, limit in (("--key-rate", args.key_rate), ("--key-running", args.key_running)):
        if limit is not None and limit < 1:
            raise UsageError(f"{flag} is {limit}; give 1 or more, or leave it out for no limit.")
    if args.response_memory < 0:
        raise UsageError(f"--response-memory is {args.response_memory}; give MiB, or 0 to store no responses.")


def named_checkers(given: Sequence[str]) -> dict[str, Command]:
    """The operator's commands by name, each tried before anything is loaded. Raises UsageError."""
    from qwench.cli.reasoning import read_flag

    checkers: dict[str, Command] = {}
    for text in given:
        name, equals, command = text.partition("=")
        if not re.fullmatch(r"[\w.-]{1,64}", name) or not equals or name in checkers:
            raise UsageError(f"--checker is {text!r}; give NAME=COMMAND, each name once, such as tests=./check.sh.")
        checkers[name] = cast("Command", read_flag(f"command:{command}", "", "--checker"))
    return checkers


def read_all_keys(given: Sequence[str] | None, file: Path | None) -> tuple[Key, ...]:
    """The keys of the flags or else the environment, and of the file. Raises UsageError."""
    from qwench.server.keys import Key, read_keys

    variable = os.environ.get(KEY_VARIABLE)
    secrets = given or ([] if variable is None else [variable])
    if not all(secret.strip() for secret in secrets):
        raise UsageError(f"the API key is empty; give one with --api-key or {KEY_VARIABLE}, or neither.")
    return (*map(Key.of, secrets), *(read_keys(file) if file else ()))


def check_exposure(host: str, keys: Sequence[Key], *, allowed: bool) -> None:
    """Other machines need a key, unless the operator says otherwise. Raises UsageError."""
    if not keys and not allowed and not _is_loopback(host):
        raise UsageError(
            f"--host {host} lets other machines in without a key; give --api-key KEY, or --allow-no-key to mean that."
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def bind(host: str, port: int) -> socket.socket:
    """A listening socket, before any time is spent on the model. Raises UsageError saying why there is none."""
    if not 0 <= port <= 65535:
        raise UsageError(f"--port is {port}; give a number from 0 to 65535.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError):
        raise UsageError(f"--host {host} is no address of this machine; try 127.0.0.1 or 0.0.0.0.") from None
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        fault("listen")
        listener.bind(address)
        listener.listen(BACKLOG)  # only listening makes sure that nobody else has the port
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            reason = f"port {port} on {host} is in use; stop what listens there or choose another --port."
        elif error.errno == errno.EACCES:
            reason = f"port {port} needs more rights; choose a --port above 1023."
        else:
            reason = f"cannot listen on {host} port {port}: {error.strerror}; try --host 127.0.0.1."
        raise UsageError(reason) from None
    return listener


def served_names(model: str, served: str | None) -> tuple[str, ...]:
    """What clients may send as ``model``: the served name (of a folder its last part), and a published short name."""
    short = {hub_id.lower(): name for name, hub_id in PUBLISHED.items()}
    known = model.lower() if model.lower() in PUBLISHED else short.get(model.lower())
    own = served or (Path(model).resolve().name if Path(model).is_dir() else model)
    return tuple(dict.fromkeys(name for name in (own, known) if name))


def url(host: str, port: int) -> str:
    """Where a client on this machine reaches the server."""
    name = {EVERY_IPV4: "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def _greet(client: EngineClient, where: str, name: str, locked: bool) -> None:
    """Once the model is loaded: how it runs, where, and one command to try. A failure is told by ``serve``."""
    from qwench.llm import wait_loaded

    try:
        wait_loaded(client)
    except QwenchError:
        return
    gc.collect()
    gc.freeze()  # what is loaded stays; to look through it for garbage holds everybody up, 50 to 70 ms each time
    for line in client.banner():
        _say(line)
    key = ' -H "Authorization: Bearer $QWENCH_API_KEY"' if locked else ""
    _say(f"{name} listens on {where} (a chat page for your browser; API: {where}/docs); stop with Ctrl-C. Try:")
    _say(f"  curl {where}/v1/chat/completions{key} -H 'Content-Type: application/json' \\")
    _say(f'    -d \'{{"model": {json.dumps(name)}, "messages": [{{"role": "user", "content": "Hello!"}}]}}\'')


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
