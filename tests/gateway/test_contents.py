"""What was said is kept where the settings say so, for as long as they say, and nowhere in the accounts."""

from __future__ import annotations

import json
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from qwench.gateway.tiers import DAY
from tests.gateway.books import checked
from tests.gateway.conftest import Start, tiers
from tests.gateway.standin import WORDS, standing_in, well

ASKED = {"messages": [{"role": "user", "content": "My cat is called Sesostris."}]}


def texts(where: Path) -> dict[str, str]:
    with closing(sqlite3.connect(where)) as connection:
        return dict(connection.execute("SELECT part, text FROM content"))


@pytest.mark.parametrize("stream", [False, True])
def test_requests_and_answers_are_kept_where_the_settings_say_so(start: Start, *, stream: bool) -> None:
    with standing_in(well) as own:
        running = start(tiers(own.url, gateway="contents = 7"))
        httpx.post(f"{running.url}/v1/chat/completions", json={**ASKED, "stream": stream})
        rows = running.rows()
    kept = texts(running.where)
    assert json.loads(kept["request"])["messages"] == ASKED["messages"]
    assert kept["content"] == "".join(WORDS)
    assert "Sesostris" not in json.dumps(rows)
    assert checked(running.where).whole


def test_nothing_is_kept_where_they_do_not(start: Start) -> None:
    with standing_in(well) as own:
        running = start(tiers(own.url))
        httpx.post(f"{running.url}/v1/chat/completions", json=ASKED)
        assert len(running.rows()) == 1
    assert texts(running.where) == {}


def test_what_is_too_old_is_erased_and_the_accounts_stay(start: Start) -> None:
    with standing_in(well) as own:
        running = start(tiers(own.url, gateway=f"contents = {0.5 / DAY}"))
        httpx.post(f"{running.url}/v1/chat/completions", json=ASKED)
        assert texts(running.where)
        time.sleep(0.6)
        again = start(
            tiers(own.url, gateway=f'contents = {0.5 / DAY}\nledger = "{running.where}"').replace(
                'ledger = "ledger.sqlite"\n', ""
            )
        )
        until = time.monotonic() + 10
        while texts(running.where) and time.monotonic() < until:
            time.sleep(0.02)
        rows = again.rows()
    assert texts(running.where) == {}
    assert len(rows) == 1
    assert checked(running.where).whole
