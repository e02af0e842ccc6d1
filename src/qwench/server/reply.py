"""One request from its body to its response, whichever API it came through.

Everything that can be refused is refused before the first byte. Knows no field of any API.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

from fastapi import Request
from starlette.responses import Response

from qwench.server.answer import Answer, Format, Head, Trail, whole
from qwench.server.body import parse, read_body
from qwench.server.errors import header_value, json_response
from qwench.server.gate import ARRIVED, CLIENT_CLOSED, OWNER
from qwench.server.naming import Names
from qwench.server.ndjson import LineStream
from qwench.server.prepare import Prepared
from qwench.server.service import Service
from qwench.server.sse import ClientGone, EventStream, unless_gone
from qwench.text.model import ModelText
from qwench.text.tokenizer import Tokenizer
from qwench.text.vision import Eyes, shows

Prepare = Callable[[Mapping[str, object], ModelText, Names, Eyes | None], Prepared]
MakeFormat = Callable[[Head, Answer, Tokenizer], Format]
WARNINGS_HEADER = "x-qwench-warnings"
REUSE_HEADER = "x-qwench-cache"  # of a whole answer; a stream tells the same in a comment
MOST_TOLD = 2000  # characters; proxies refuse long headers


async def read_json(service: Service, request: Request) -> dict[str, object]:
    """The body of a request as an object. Raises RequestError."""
    raw = await read_body(request, service.settings.max_body_bytes)
    return await asyncio.to_thread(parse, raw)  # a long one takes a while; other streams go on meanwhile


async def generate(
    service: Service, request: Request, prepare: Prepare, make_format: MakeFormat, prefix: str
) -> Response:
    """The reply to a body that ``prepare`` understands as it is; its id begins with ``prefix``."""
    body = await read_json(service, request)
    names, eyes = service.names, service.eyes
    prepared = await service.apart(
        lambda: prepare(body, service.text, names, eyes), looks=eyes is not None and shows(body)
    )
    return await reply(service, request, prepared, make_format, service.head(prefix))


async def reply(
    service: Service, request: Request, prepared: Prepared, make_format: MakeFormat, head: Head
) -> Response:
    """The answer to what was understood, as a stream or whole."""
    trail = Trail(request.scope[ARRIVED], request.headers.get("traceparent", ""), head.id)
    answer = service.answer(prepared, request.scope[OWNER], trail)
    service.answers[head.id] = answer
    form = make_format(head, answer, service.text.tokenizer)
    headers = warning_header(prepared.warnings)
    if prepared.stream:
        stream = EventStream if form.framed else LineStream
        return stream(answer, form, service.settings.keepalive, headers)
    try:
        told = await unless_gone(request.receive, whole(answer, form))
        return json_response(told, headers={**headers, REUSE_HEADER: header_value("; ".join(answer.reuse), MOST_TOLD)})
    except ClientGone:
        return Response(status_code=CLIENT_CLOSED)
    finally:
        answer.abort()


def warning_header(warnings: Sequence[str]) -> dict[str, str]:
    """What was ignored or changed, for the client to see."""
    told = header_value("; ".join(warnings), MOST_TOLD)
    return {WARNINGS_HEADER: told} if told else {}
