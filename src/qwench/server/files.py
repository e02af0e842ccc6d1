"""``/v1/files``: what clients upload for batches, and what comes of those. Knows no batch."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, BinaryIO

from fastapi import APIRouter, Request
from starlette.datastructures import UploadFile
from starlette.responses import Response, StreamingResponse
from starlette.types import Message, Receive

from qwench.errors import RequestError
from qwench.fault import fault
from qwench.server.body import check_announced, timely, too_large
from qwench.server.errors import json_response
from qwench.server.gate import OWNER
from qwench.server.reply import warning_header
from qwench.server.schemas import FileUpload, listing, shape, show
from qwench.server.service import Service
from qwench.server.store import PIECE, Document

MOST_UPLOADED = 200 << 20  # bytes of a file, as OpenAI takes for a batch
FORM = 64 << 10  # of everything else in a form
EXPIRY = re.compile(r"expires_after\[(\w+)\]")
MOST_LISTED = 10_000
TEMPORARY = "files and batches go with this server; with --store its operator keeps them"


def file_routes(service: Service) -> APIRouter:
    """Upload, list, retrieve, content, delete."""
    router = APIRouter()

    @router.post("/v1/files", openapi_extra=form_of("FileUpload"))
    async def upload(request: Request) -> Response:
        """Keep a file: a form with the file and its purpose, which is batch."""
        check_announced(request, MOST_UPLOADED + FORM)
        bounded = Request(request.scope, _bounded(timely(request.receive), MOST_UPLOADED + FORM))
        async with bounded.form(max_files=1, max_fields=8, max_part_size=FORM) as form:
            fields = {name: value for name, value in form.items() if not isinstance(value, UploadFile)}
            found = form.get("file")
            if not isinstance(found, UploadFile):
                raise RequestError("file is missing; send a form with the file, as multipart/form-data.", param="file")
            asked = shape(FileUpload, _nested(fields))
            expires = int(time.time()) + asked.expires_after.seconds if asked.expires_after else None
            given: Document = {"filename": (found.filename or "upload")[:255], "purpose": asked.purpose}
            given |= {"status": "processed", "expires_at": expires}
            size = found.size or 0
            if not size:
                raise RequestError("file is empty; send one request a line.", param="file")
            add = partial(service.store.add_file, request.scope[OWNER], given, size, _pieces(found.file))
            return json_response(await asyncio.to_thread(add), headers=keeping(service))

    @router.get("/v1/files", openapi_extra=listing("purpose"))
    async def list_files(request: Request) -> Response:
        """The key's own files, the newest first."""
        found = await asyncio.to_thread(service.store.files, request.scope[OWNER])
        purpose = request.query_params.get("purpose")
        wanted = [each for each in found if purpose in (None, each["purpose"])]
        return json_response(page(wanted, request, MOST_LISTED, MOST_LISTED))

    @router.get("/v1/files/{file_id}")
    async def retrieve_file(request: Request, file_id: str) -> Response:
        """One of them."""
        return json_response(await asyncio.to_thread(service.store.file, request.scope[OWNER], file_id))

    @router.get("/v1/files/{file_id}/content")
    async def file_content(request: Request, file_id: str) -> Response:
        """Its bytes."""
        owner = request.scope[OWNER]
        size = (await asyncio.to_thread(service.store.file, owner, file_id))["bytes"]
        headers = {
            "content-length": str(size),
            "content-disposition": "attachment",
        }
        return StreamingResponse(service.store.content(owner, file_id), 200, headers, "application/octet-stream")

    @router.delete("/v1/files/{file_id}")
    async def delete_file(request: Request, file_id: str) -> Response:
        """Forget it. A batch that was made of it goes on."""
        await asyncio.to_thread(service.store.delete_file, request.scope[OWNER], file_id)
        return json_response({"id": file_id, "object": "file", "deleted": True})

    return router


def keeping(service: Service) -> dict[str, str]:
    """The header of what is kept only as long as the server runs."""
    return {} if service.store.lasts else warning_header([TEMPORARY])


def form_of(name: str) -> dict[str, object]:
    """The OpenAPI entry of a route whose form is the component ``name``."""
    schema = {"$ref": f"#/components/schemas/{name}"}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


def page(found: Sequence[Document], request: Request, usual: int, most: int) -> dict[str, object]:
    """A page of documents that are given from the oldest to the newest; ``limit``, ``after`` and ``order`` choose."""
    query = request.query_params
    limit, after, order = query.get("limit", str(usual)), query.get("after"), query.get("order", "desc")
    if not (limit.isascii() and limit.isdecimal() and 1 <= int(limit[:6]) <= most):
        raise RequestError(f"limit is {show(limit)}; give a whole number from 1 to {most}.", param="limit")
    if order not in ("asc", "desc"):
        raise RequestError(f"order is {show(order)}; give asc or desc.", param="order")
    listed = list(found) if order == "asc" else list(reversed(found))
    at = next((index for index, each in enumerate(listed, 1) if each["id"] == after), None)
    if after is not None and at is None:
        raise RequestError(f"after is {show(after)}, which is not in the list; give an id of it.", param="after")
    rest = listed[at or 0 :]
    told = rest[: int(limit[:6])]
    ends = {"first_id": told[0]["id"], "last_id": told[-1]["id"]} if told else {"first_id": None, "last_id": None}
    return {"object": "list", "data": told, **ends, "has_more": len(rest) > len(told)}


def _nested(fields: Mapping[str, str]) -> dict[str, Any]:
    """A form's fields as an object: ``expires_after[seconds]`` is one of ``expires_after``."""
    plain = {name: value for name, value in fields.items() if not EXPIRY.fullmatch(name)}
    inner = {found[1]: value for name, value in fields.items() if (found := EXPIRY.fullmatch(name))}
    seconds = inner.get("seconds", "")
    whole = {"seconds": int(seconds[:12])} if seconds.isdecimal() else {}
    return {**plain, "expires_after": {**inner, **whole}} if inner else plain


def _bounded(receive: Receive, most: int) -> Receive:
    """``receive``, for a body of at most so many bytes."""
    total = 0

    async def bounded() -> Message:
        nonlocal total
        fault("receive")
        message = await receive()
        total += len(message.get("body", b""))
        if total > most:
            raise too_large(MOST_UPLOADED)
        return message

    return bounded


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    file.seek(0)
    while piece := file.read(PIECE):
        yield piece
