"""One upstream over HTTP: a call out, a whole body or a stream of events back, every fault as one kind of failure.

Nothing is collected that can be handed on; leaving the stream closes the connection, which is how an upstream learns
that nobody listens. What an upstream says about a failure may repeat our key, so it is cleaned before anybody sees it.
Knows nothing of models, prices or the ledger.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from qwench.errors import QwenchError
from qwench.fault import fault
from qwench.gateway.tiers import Tier
from qwench.gateway.wire import Broken, Head, Silent, Unreached, Wire, Wires

BLANK = re.compile(rb"\r\n\r\n|\n\n|\r\r")
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
LARGEST_EVENT = 8 * 2**20
LARGEST_BODY = 64 * 2**20
LONGEST_REFUSAL = 65_536
LONGEST_REASON = 300  # characters of an upstream's own sentence
MOST_WAIT = 5.0  # seconds; who asks for more is not waited for
AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
THEIR_FAULT = frozenset({401, 402, 403, 404})  # our key, our bill or our model name: nothing the client can mend
# A Qwench lets its own model answer for names of models hosted elsewhere, and says so: no answer of what is paid for.
INSTEAD = re.compile(r"model: .{1,200}? is not served here, (.{1,200}?) answers")
LAST = frozenset({"done", "message_stop"})  # after these nothing comes
DONE = b"data: [DONE]\n\n"


class UpstreamFailure(QwenchError):
    """An attempt that brought no whole answer. ``kind`` is the ledger's short code.

    ``again``: the same call may work in a moment; ``reached``: a model may have worked for it; ``wait``: seconds that
    the upstream asked for.
    """

    status, type, code = 502, "server_error", "upstream_failed"

    def __init__(
        self,
        message: str,
        kind: str,
        *,
        status: int = 502,
        again: bool = False,
        reached: bool = True,
        wait: float | None = None,
    ) -> None:
        super().__init__(message)
        self.kind, self.status, self.again, self.reached, self.wait = kind, status, again, reached, wait
        if status == 400:
            self.type, self.code = "invalid_request_error", "upstream_refused"


@dataclass(frozen=True)
class Call:
    """What is sent: a path behind the tier's address, and JSON. ``ends``: when it must be over, by the loop's clock."""

    path: str
    body: Mapping[str, Any]
    ends: float
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Event:
    """One server-sent event: its name, its data as JSON (None of a comment), and the bytes it came in."""

    name: str
    data: Any
    raw: bytes


class Breaker:
    """Leaves an upstream alone for a while after so many failures in a row, then lets one call try."""

    def __init__(self, failures: int, pause: float, clock: Callable[[], float]) -> None:
        self._most, self._pause, self._clock = failures, pause, clock
        self._failures, self._until = 0, 0.0

    @property
    def resting(self) -> bool:
        return self._failures >= self._most and self._clock() < self._until

    def note(self, *, ok: bool) -> None:
        self._failures = 0 if ok else self._failures + 1
        if self._failures >= self._most:
            self._until = self._clock() + self._pause


@dataclass
class _Answer:
    """One that has begun. ``over``: its last word was read."""

    wire: Wire
    head: Head
    over: bool = False


class Upstream:
    """The connections to one tier."""

    def __init__(self, tier: Tier, *, offline: bool, clock: Callable[[], float]) -> None:
        self.tier = tier
        self.breaker = Breaker(tier.patience.failures, tier.patience.pause, clock)
        self._wires = Wires(tier.url, offline=offline)

    def close(self) -> None:
        self._wires.close()

    async def whole(self, call: Call) -> Mapping[str, Any]:
        """The JSON object that answers. Raises UpstreamFailure."""
        body = bytearray()
        async with self._answer(call) as answer:
            while piece := await self._piece(answer.wire, self.tier.patience.idle, call.ends):
                body += piece
                if len(body) > LARGEST_BODY:
                    raise self.failure("sent more than is read", "malformed")
        try:
            told = json.loads(bytes(body))
        except ValueError:
            raise self.failure("sent what is no JSON", "malformed", again=True) from None
        if not isinstance(told, dict):
            raise self.failure("sent JSON that is no object", "malformed", again=True)
        return told

    async def events(self, call: Call) -> AsyncGenerator[Event]:
        """The events of a stream as they come. Raises UpstreamFailure; ends where the upstream ends."""
        buffer = b""
        async with self._answer(call) as answer:
            if "text/event-stream" not in answer.head.headers.get("content-type", ""):
                raise self.failure("was asked for a stream and sent something else", "malformed")
            while piece := await self._piece(answer.wire, self.tier.patience.idle, call.ends):
                buffer, begins = buffer + piece, 0
                while (blank := BLANK.search(buffer, begins)) is not None:
                    event = self._event(buffer[begins : blank.start()])
                    begins = blank.end()
                    if event.name in LAST:
                        answer.over = True
                    yield event
                    if answer.over:
                        return
                buffer = buffer[begins:]
                if len(buffer) > LARGEST_EVENT:
                    raise self.failure("sent an event larger than is read", "malformed")

    @asynccontextmanager
    async def _answer(self, call: Call) -> AsyncIterator[_Answer]:
        """The answer with status 200; its body is still to come."""
        patience, clock = self.tier.patience, asyncio.get_running_loop().time
        until = clock() + self._left(patience.first, call.ends)
        headers = {"content-type": "application/json", "accept-encoding": "identity", **call.headers}
        content = json.dumps(call.body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
        try:
            fault("connect.upstream")
            wire = await self._wires.ask(call.path, headers, content, min(patience.connect, until - clock()))
        except Unreached:
            raise self.failure("cannot be reached", "connect", again=True, reached=False) from None
        except OSError:
            raise self.failure("broke the connection", "broken", again=True) from None
        answer = None
        try:
            answer = _Answer(wire, await wire.head(until))
            if answer.head.status != 200:
                raise await self._refusal(answer)
            if instead := INSTEAD.search(answer.head.headers.get("x-qwench-warnings", "")):
                told = f"leads to a Qwench, where {self.clean(instead[1])} would answer in the model's place"
                raise self.failure(told, "another_model")
            yield answer
        except Silent:
            raise self.failure("did not answer in time", "timeout", status=504) from None
        except Broken:
            raise self.failure("broke the connection", "broken", again=True) from None
        finally:
            if answer is not None and answer.over:
                self._wires.linger(wire)
            else:
                self._wires.give(wire)  # in the middle of a stream, this is what tells the upstream

    async def _piece(self, wire: Wire, patience: float, ends: float) -> bytes:
        """What came next of a body; nothing at its end."""
        clock = asyncio.get_running_loop().time()
        try:
            return await wire.read(min(clock + patience, ends))
        except Silent:
            raise self.failure("fell silent", "timeout", status=504) from None
        except Broken:
            raise self.failure("broke off in the middle", "half_an_answer", again=True) from None

    @staticmethod
    def _left(patience: float, ends: float) -> float:
        return max(min(patience, ends - asyncio.get_running_loop().time()), 0.0)

    def _event(self, block: bytes) -> Event:
        name, told = _fields(block)
        if told is None or told.strip() == b"[DONE]":
            return Event("comment" if told is None else "done", None, block + b"\n\n")
        try:
            return Event(name, json.loads(told), block + b"\n\n")
        except ValueError:
            raise self.failure("sent an event that is no JSON", "malformed", again=True) from None

    async def _refusal(self, answer: _Answer) -> UpstreamFailure:
        """What a status that is not 200 means, with the upstream's own words where they help."""
        body, patience = bytearray(), self.tier.patience.connect
        ends = asyncio.get_running_loop().time() + patience
        while len(body) <= LONGEST_REFUSAL and (piece := await self._piece(answer.wire, patience, ends)):
            body += piece
        status = answer.head.status
        wait = answer.head.headers.get("retry-after", "")
        seconds = float(wait) if re.fullmatch(r"\d{1,6}(\.\d{1,6})?", wait) else None
        reason = self.clean(_reason(bytes(body)))
        if status in THEIR_FAULT:
            told = "does not know the model" if status == 404 else "does not accept our key or account"
            return self.failure(f"{told} ({status})", f"http_{status}")
        if status in AGAIN:
            shown = status if status == 429 else 504 if status in (408, 504) else 502
            told, code = f"answered {status}{reason}", f"http_{status}"
            # Nothing was computed for what was turned away at the door.
            return self.failure(told, code, status=shown, again=True, reached=False, wait=seconds)
        if 400 <= status < 500:
            return self.failure(f"refused the request{reason}", f"http_{status}", status=400, reached=False)
        return self.failure(f"answered {status}", f"http_{status}")

    def failure(
        self,
        told: str,
        kind: str,
        *,
        status: int = 502,
        again: bool = False,
        reached: bool = True,
        wait: float | None = None,
    ) -> UpstreamFailure:
        sentence = f"The tier {self.tier.name} {told}."
        return UpstreamFailure(sentence, kind, status=status, again=again, reached=reached, wait=wait)

    def clean(self, text: str) -> str:
        """An upstream's words, without our key, without control characters, and short."""
        return UNPRINTABLE.sub(" ", self.tier.secret.hide(text))[:LONGEST_REASON]


def _fields(block: bytes) -> tuple[str, bytes | None]:
    """The name and the data of an event; None where it has no data."""
    if block.startswith(b"data: ") and b"\n" not in block and b"\r" not in block:
        return "", block[6:]  # as nearly all of them are
    name, data = "", list[bytes]()
    for line in block.splitlines():
        field_name, _, value = line.partition(b":")
        if field_name == b"data":
            data.append(value.removeprefix(b" "))
        elif field_name == b"event":
            name = value.strip().decode("ascii", "replace")
    return name, b"\n".join(data) if data else None


def _reason(body: bytes) -> str:
    """The sentence inside an error object, behind a colon; empty where there is none."""
    try:
        error = json.loads(body).get("error")
    except (ValueError, AttributeError):
        return ""
    message = error.get("message") if isinstance(error, dict) else error
    return f": {message.rstrip('.')}" if isinstance(message, str) and message else ""
