"""The stop button: it ends everything that runs and lets nothing new begin, until it is released. Knows no HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from qwench.errors import QwenchError


class Halted(QwenchError):
    """An operator stopped the gateway."""

    status, type, code = 503, "server_error", "halted"

    def __init__(self) -> None:
        super().__init__("An operator has halted this gateway; nothing is answered until it is resumed.")


class Halt:
    """Belongs to one event loop."""

    def __init__(self) -> None:
        self.closed = False
        self._running: set[asyncio.Task[object]] = set()

    @property
    def running(self) -> int:
        return len(self._running)

    def close(self) -> int:
        """Stop. Returns how many requests were running."""
        self.closed = True
        for task in self._running:
            task.cancel("halted")
        return len(self._running)

    def release(self) -> None:
        self.closed = False

    def check(self) -> None:
        """Raises Halted."""
        if self.closed:
            raise Halted

    @contextmanager
    def request(self) -> Iterator[None]:
        """Around a request, in its own task. Raises Halted at once or in its middle."""
        self.check()
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        try:
            yield
        except asyncio.CancelledError:
            if not self.closed:
                raise
            task.uncancel()
            raise Halted from None
        finally:
            self._running.discard(task)
