"""``/v1/responses/compact``: a conversation summed up by the model, for clients that go on with that in its place.

As OpenAI's, the summary is an item that clients send back unread; it is no secret.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from qwench.errors import RequestError
from qwench.server.answer import Answer, Head
from qwench.server.prepare import Prepared
from qwench.server.responses.form import ResponseFormat
from qwench.server.responses.items import seal
from qwench.server.responses.understood import Understood
from qwench.text.tokenizer import Tokenizer

MOST_TOKENS = 4096  # of a summary
WHOLE = ("stream", "background")


def to_sum_up(body: Mapping[str, object]) -> dict[str, object]:
    """``body`` with what a summary is asked with: no thoughts, no calls, no form. Raises RequestError."""
    for field in WHOLE:
        if body.get(field):
            raise RequestError(f"{field} is not possible here, a summary comes whole; leave it out.", param=field)
    given = {field: value for field, value in body.items() if field not in ("tool_choice", "text")}
    given |= {"tool_choice": "none"} if body.get("tools") else {}
    return {"max_output_tokens": MOST_TOKENS, **given, "store": False, "reasoning": {"effort": "none"}}


def within(prepared: Prepared, window: int) -> Prepared:
    """``prepared`` with no more to be written than there is room for: who asks is near the end of the window."""
    room = window - len(prepared.prompts[0].token_ids)
    most = min(prepared.sampling.max_tokens or room, max(room, 1))
    return replace(prepared, sampling=replace(prepared.sampling, max_tokens=most))


class CompactionFormat(ResponseFormat):
    """Writes one compaction: the user's messages as they were, and the summary."""

    def __init__(self, head: Head, answer: Answer, tokenizer: Tokenizer, found: Understood) -> None:
        super().__init__(head, answer, tokenizer, found.request, found.asked.offer, lambda _: None)
        before = found.earlier.conversation() if found.earlier else ()
        self._said = [item for item in (*before, *found.given) if item.get("role") == "user"]

    def body(self) -> dict[str, object]:
        told = "".join(stretch.text for stretch in self._stretches if stretch.kind == "content")
        number = self._asked["id"].removeprefix("resp_")
        summary = {"id": f"cmp_{number}", "type": "compaction", "encrypted_content": seal(told)}
        return {
            "id": self._asked["id"],
            "object": "response.compaction",
            "created_at": self._asked["created_at"],
            "output": [*self._said, summary],
            "usage": self._usage(),
        }
