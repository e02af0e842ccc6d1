"""``qwench route``: what the router would do and why, for one text or for recorded requests. Asks no model."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwench.cli.gateway import add_settings_flag
from qwench.errors import UsageError

if TYPE_CHECKING:
    from qwench.gateway.router import Ask, Router
    from qwench.gateway.tiers import Settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=("explain", "replay"), help="one text, or a file of recorded requests")
    told = 'the text; for replay a file of chat completion requests, one JSON object a line (also as OpenAI\'s "body")'
    parser.add_argument("text", metavar="TEXT|FILE", help=told)
    add_settings_flag(parser)
    parser.add_argument("--data", metavar="CLASS", help="as if the request said public, internal, personal or secret")
    parser.add_argument("--class", dest="task", metavar="NAME", help="as if the request named its task class")
    parser.add_argument("--deadline", type=float, metavar="SECONDS", help="as if the request had this long")
    parser.add_argument("--budget", type=float, metavar="AMOUNT", help="as if the request might cost this much")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="as if the answer might be this long")
    parser.add_argument("--offline", action="store_true", help="as if the gateway ran offline")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")


def run(args: argparse.Namespace) -> int:
    import random

    from qwench.gateway.ledger import Ledger
    from qwench.gateway.posterior import Outcomes
    from qwench.gateway.prices import load_prices
    from qwench.gateway.router import Router
    from qwench.gateway.store import default_path
    from qwench.gateway.tiers import read_settings

    settings = read_settings(args.settings)
    with Ledger.open(settings.ledger or str(default_path())) as ledger:
        outcomes = Outcomes(ledger.tallies())
    router = Router(settings, load_prices(settings.prices), outcomes, random.Random(0), offline=args.offline)
    if args.what == "explain":
        return _explain(args, settings, router)
    return _replay(args, settings, router)


def _explain(args: argparse.Namespace, settings: Settings, router: Router) -> int:
    from qwench.gateway.explain import document, lines

    body: dict[str, Any] = {"messages": [{"role": "user", "content": args.text}]}
    if args.max_tokens is not None:
        body["max_tokens"] = args.max_tokens
    ask = _ask(args, settings, body)
    decision = router.decide(ask)
    if args.json:
        print(json.dumps(document(ask, decision), ensure_ascii=False))
    else:
        print("\n".join(lines(ask, decision, settings.routing.currency)))
    return 0


def _replay(args: argparse.Namespace, settings: Settings, router: Router) -> int:
    from qwench.gateway.replay import replay, report

    bodies = _recorded(Path(args.text))
    found = replay(router, settings, (_ask(args, settings, body) for body in bodies))
    if args.json:
        print(json.dumps(found.document(settings.routing.currency), ensure_ascii=False))
    else:
        print("\n".join(report(found, settings.routing.currency)))
    return 0


def _ask(args: argparse.Namespace, settings: Settings, body: Mapping[str, Any]) -> Ask:
    from qwench.gateway.gates import Limits, data_class
    from qwench.gateway.router import Ask
    from qwench.gateway.signals import read_signals
    from qwench.gateway.tiers import AUTO

    signals = read_signals(body)
    data = data_class(settings, "", args.data, signals.text)
    limits = Limits(args.deadline, args.budget, "the request")
    return Ask(signals, data, limits, model=AUTO, told=args.task, at=time.time())


def _recorded(path: Path) -> Iterator[Mapping[str, Any]]:
    """Raises UsageError naming file and line."""
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    told = json.loads(line)
                except ValueError as error:
                    raise UsageError(f"{path}, line {number}: no JSON ({error}).") from None
                body = told.get("body", told) if isinstance(told, dict) else None
                if not isinstance(body, dict):
                    raise UsageError(f"{path}, line {number}: no request; it should be a JSON object with messages.")
                yield body
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from None
