"""One server of nano for all clients."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.server.test_serve import address_of, serve


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    with serve("--port", "0") as process:
        yield address_of(process)
