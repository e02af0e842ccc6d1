"""``qwench gateway``: several tiers behind one address, routed by what a completed task is worth and costs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from qwench import log
from qwench.cli.serve import bind, check_exposure, url


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_settings_flag(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=int, default=8080, help="port to listen on, 0 for any free one (8080)")
    parser.add_argument("--offline", action="store_true", help="reach nothing beyond this machine, whatever is asked")
    parser.add_argument("--allow-no-key", action="store_true", help="let other machines in without a key")
    named = "a name clients reach this machine by, where there are no keys; addresses and localhost always do"
    parser.add_argument("--allow-host", metavar="NAME", action="append", default=[], help=named)
    pages = "let pages of this origin use the gateway from a browser, such as https://chat.example"
    parser.add_argument("--allow-origin", metavar="ORIGIN", action="append", default=[], help=pages)
    parser.add_argument("--log-format", choices=log.FORMATS, default="text", help="of messages on standard error")


def add_settings_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", dest="settings", metavar="FILE", type=Path, required=True, help="tiers, models, classes, budgets"
    )


def run(args: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM, which is a success."""
    from qwench.gateway.engines import running
    from qwench.gateway.house import furnish
    from qwench.gateway.ledger import Ledger
    from qwench.gateway.prices import load_prices
    from qwench.gateway.run import serve
    from qwench.gateway.store import default_path
    from qwench.gateway.tiers import read_settings
    from qwench.server.service import ServerSettings

    log.configure(form=args.log_format)
    settings = read_settings(args.settings)
    keys = tuple(owner.key for owner in settings.owners.values())
    check_exposure(args.host, keys, allowed=args.allow_no_key)
    prices = load_prices(settings.prices)
    server = ServerSettings(
        names=("auto",),
        keys=keys,
        hosts=frozenset(name.lower() for name in (args.host, *args.allow_host)),
        origins=frozenset(origin.rstrip("/") for origin in args.allow_origin),
    )
    kept = settings.ledger or str(default_path())
    with bind(args.host, args.port) as listener, Ledger.open(kept) as ledger:
        house = furnish(settings, ledger, prices, server, offline=args.offline)
        with running(settings.tiers.values(), offline=args.offline):
            where = url(args.host, listener.getsockname()[1])
            for name, tier in settings.tiers.items():
                allowed = ", ".join(map(str, sorted(tier.data)))
                shut = "; closed, as it is not on this machine" if args.offline and not tier.local else ""
                _say(f"  {name:12} {tier.url} may see {allowed} data{shut}")
            _say(f"The gateway listens on {where}; the ledger is {_short(ledger.store.name)}; stop with Ctrl-C.")
            serve(house, listener)
    return 0


def _short(path: str) -> str:
    """A path as a shell would have it."""
    home = f"{Path.home()}/"
    return f"~/{path.removeprefix(home)}" if path.startswith(home) else path


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
