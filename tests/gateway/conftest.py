"""Gateways for the tests: the real application on a real socket, its own ledger, stand-ins behind it."""

from __future__ import annotations

import functools
import random
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from qwench.cli.serve import bind
from qwench.gateway.app import build_app
from qwench.gateway.house import House, furnish
from qwench.gateway.ledger import Ledger
from qwench.gateway.prices import load_prices
from qwench.gateway.records import Event
from qwench.gateway.run import Server
from qwench.gateway.tiers import read_settings
from qwench.server.run import configure
from qwench.server.service import ServerSettings

PRICES = """
[sources]
test = "made for this test"
[[price]]
provider = "own"
model = "small"
input = 0.1
output = 0.2
currency = "USD"
source = "test"
date = "2026-01-01"
[[price]]
provider = "premium"
model = "large"
input = 10.0
cached = 1.0
output = 30.0
currency = "USD"
source = "test"
date = "2026-01-01"
"""


@dataclass
class Running:
    """A gateway that runs: its address, its parts, its ledger's place."""

    url: str
    house: House
    ledger: Ledger
    where: Path

    def rows(self) -> list[dict[str, Any]]:
        """The ledger's attempts, the oldest first, once everything that is over by now is written."""
        self.ledger.event(Event("configured")).result(30)
        with self.ledger.store.reading() as connection:
            return [dict(row) for row in connection.execute(sa.text("SELECT * FROM attempt ORDER BY seq")).mappings()]


Start = Callable[..., Running]


@contextmanager
def gateway(
    folder: Path, text: str, *, offline: bool = False, env: Mapping[str, str] | None = None
) -> Iterator[Running]:
    """A gateway of the settings ``text``, with ``PRICES``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prices.toml").write_text(PRICES, encoding="utf-8")
    (folder / "tiers.toml").write_text(text, encoding="utf-8")
    settings = read_settings(folder / "tiers.toml", env or {})
    keys = tuple(owner.key for owner in settings.owners.values())
    with Ledger.open(settings.ledger) as ledger, bind("127.0.0.1", 0) as listener:
        house = furnish(
            settings,
            ledger,
            load_prices(settings.prices),
            ServerSettings(names=("auto",), keys=keys),
            offline=offline,
            rng=random.Random(1),
        )
        server = Server(configure(build_app(house)), house, drain=0.1)
        run = functools.partial(copy_context().run, server.run, [listener])  # plans of faults reach the server
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        yield Running(f"http://127.0.0.1:{listener.getsockname()[1]}", house, ledger, Path(settings.ledger))
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start gateways; they end with the test."""
    with ExitStack() as stack:
        count = iter(range(100))

        def begin(text: str, **more: object) -> Running:
            return stack.enter_context(gateway(tmp_path / str(next(count)), text, **more))  # type: ignore[arg-type]

        yield begin


def tiers(own: str, premium: str = "", *, gateway: str = "", more: str = "", kind: str = "openai") -> str:
    """Settings with the tier own for everything and, where there is an address, premium for public data."""
    head = f'[gateway]\nledger = "ledger.sqlite"\nprices = "prices.toml"\ndata = "public"\n{gateway}\n'
    text = f'{head}[tiers.own]\nkind = "openai"\nurl = "{own}"\nsteering = "qwen"\nretries = 0\n'
    text += '[[models]]\ntier = "own"\nmodel = "small"\noutput = 50\n'
    if premium:
        text += f'[tiers.premium]\nkind = "{kind}"\nurl = "{premium}"\nretries = 0\ndata = ["public"]\n'
        text += '[[models]]\ntier = "premium"\nmodel = "large"\noutput = 50\n'
    return text + more
