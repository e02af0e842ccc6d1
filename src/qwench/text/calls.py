"""CallReader: an answer's text -> content and tool calls, in any portions.

Both forms of the Qwen line are read, whichever a template taught: Qwen3.5's tags with bare values, and Qwen3's JSON.
Only what is undecided is held back, at most a tag and the white space before it; a value that is text is told while it
is written. The parts of a call's arguments always join to one JSON object, also where the answer was cut.

Models forget tags. A call may lack its opening tag (then its name must be one of the tools'), its closing ones, or be
ended by the next; a value ends at ``</parameter>`` only where the call goes on behind it, so code may contain the tag.
What cannot be a call is content as it was written, with a warning; or, where it may be written ``again``, is kept back
until whoever reads has decided. Knows no token ids.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any
from uuid import uuid4

from qwench.text.arguments import Schema, from_text, from_value, is_free_text, read_object
from qwench.text.stream import TOOL_CALL, TOOL_CLOSE, Call, Piece, join, overlap

FUNCTION, FUNCTION_CLOSE = "<function=", "</function>"
PARAMETER, PARAMETER_CLOSE = "<parameter=", "</parameter>"
LONGEST_NAME = 256
NAME = re.compile(rf"([^<>\n]{{1,{LONGEST_NAME}}})>")
OPENING = re.compile(rf"{TOOL_CALL}|{FUNCTION}")  # not with the white space before it: models write it without end
GOES_ON = ("<parameter", FUNCTION_CLOSE, TOOL_CLOSE)  # what may follow a value, however it goes on
ENDS = (PARAMETER_CLOSE, FUNCTION_CLOSE, PARAMETER)  # what may end one
NO_END = -1


def new_id() -> str:
    return f"call_{uuid4().hex[:24]}"


class CallReader:
    """``tools`` are the parameters' schemas by the functions' names; after ``most`` calls the answer is ``over``.

    ``warnings`` tell what was repaired or given up. ``lost`` is a call that cannot be read, while ``again`` is allowed.
    """

    def __init__(
        self, tools: Mapping[str, Schema], most: int | None = None, make_id: Callable[[], str] = new_id
    ) -> None:
        self.warnings: list[str] = []
        self.over = False
        self.again = False
        self.lost: str | None = None
        self._tools = tools
        self._most = most
        self._make_id = make_id
        self._buffer = ""
        self._out: list[Piece] = []
        self._state: Callable[[bool], bool] = self._text
        self._calls = 0
        self._call = Call(0, "", "")
        self._schema: Schema = {}
        self._keys: set[str] = set()
        self._junk = self._why = ""
        self._key = ""
        self._value = ""  # what is known of a value that is told as a whole
        self._streams = False
        self._scanned = 0  # how far a JSON body was looked at
        self._depth = 0
        self._quoted = self._escaped = False

    @property
    def in_call(self) -> bool:
        """Whether the last letters belong to a call, as far as is known."""
        return self._state != self._text

    @property
    def holds(self) -> bool:
        """Whether anything was kept back."""
        return bool(self._buffer) or self.in_call

    def push(self, text: str) -> list[Piece]:
        self._buffer += text
        return self._run(final=False)

    def begin_again(self) -> None:
        """Forget the lost call: it is being written anew."""
        self.lost, self.again, self._buffer, self._state = None, False, "", self._text
        self.warnings.append("a tool call could not be read; it was written again under the grammar")

    def give_up(self, *, final: bool) -> list[Piece]:
        """The lost call is content, and so is no other."""
        lost, self.lost, self.again, self._state = self.lost or "", None, False, self._text
        self._lose(lost, self._why)
        return self._run(final=final)

    def finish(self) -> list[Piece]:
        """What was still undecided; a call that was cut is closed."""
        return self._run(final=True)

    def _run(self, *, final: bool) -> list[Piece]:
        while self._state(final):
            pass
        told, self._out = self._out, []
        return told

    # Each state looks at the buffer's beginning; it is True where it came further, False where it needs more.

    def _text(self, final: bool) -> bool:
        found = OPENING.search(self._buffer)
        if found is None:
            keep = 0 if final else self._held()
            self._say(self._take(len(self._buffer) - keep))
            return False
        begin, tagged = len(self._buffer[: found.start()].rstrip()), found.end()
        if self._buffer[tagged - 1] == "=":
            opened = self._name(tagged, final)
            if opened is None:
                return False
            name, end = opened
            if name in self._tools:
                self._say(self._take(begin))
                self._take(end - begin)
                self._open(name)
            else:
                self._say(self._take(tagged))
            return True
        return self._tagged(begin, tagged, final)

    def _tagged(self, begin: int, tagged: int, final: bool) -> bool:
        """Behind the ``<tool_call>`` from ``begin`` to ``tagged``: a function, or JSON."""
        behind = self._buffer[tagged:]
        body = behind.lstrip()
        start = tagged + len(behind) - len(body)
        if body.startswith("{"):
            self._say(self._take(begin))
            self._junk = self._take(start - begin)
            self._state, self._scanned, self._depth, self._quoted, self._escaped = self._json, 0, 0, False, False
            return True
        if body.startswith(FUNCTION):
            opened = self._name(start + len(FUNCTION), final)
            if opened is None:
                return False
            if opened[0]:
                self._say(self._take(begin))
                self._take(opened[1] - begin)
                if opened[0] not in self._tools:
                    self.warnings.append(f"{opened[0]!r:.80} was called, which is none of the tools")
                self._open(opened[0])
                return True
        elif not final and FUNCTION.startswith(body):
            return False
        self._say(self._take(begin))
        self._lose(self._take(tagged - begin), "names no function")
        return True

    def _name(self, start: int, final: bool) -> tuple[str, int] | None:
        """The name from ``start`` up to ``>`` and where that ends: "" if it is none, None if that is not known yet."""
        found = NAME.match(self._buffer, start)
        if found:
            return found[1].strip().strip("\"'"), found.end()
        rest = self._buffer[start : start + LONGEST_NAME + 1]
        undecided = not final and len(rest) <= LONGEST_NAME and not set(rest) & set("<>\n")
        return None if undecided else ("", start)

    def _function(self, final: bool) -> bool:
        """Between the values of a call."""
        at = self._buffer.find("<")
        self._junk += self._take(at if at >= 0 else len(self._buffer))
        if self._buffer.startswith(PARAMETER):
            opened = self._name(len(PARAMETER), final)
            if opened is None:
                return False
            key, end = opened
            taken = self._take(end)
            if key:
                self._key, self._value, self._state = key, "", self._before_value
            else:
                self._junk += taken
            return True
        if self._buffer.startswith((FUNCTION_CLOSE, TOOL_CLOSE)):
            self._take(self._buffer.index(">") + 1)
            self._close()
            return True
        if self._buffer.startswith((TOOL_CALL, FUNCTION)) or (final and not self._buffer):
            self._close("was not closed")
            return True
        if not final and any(tag.startswith(self._buffer) for tag in (PARAMETER, *GOES_ON, TOOL_CALL, FUNCTION)):
            return False
        self._junk += self._take(1)
        return True

    def _before_value(self, final: bool) -> bool:
        """The line break behind the parameter's tag is the tag's."""
        if not self._buffer and not final:
            return False
        self._buffer = self._buffer.removeprefix("\n")
        properties = self._schema.get("properties")
        schema = properties.get(self._key) if isinstance(properties, Mapping) else None
        self._streams = is_free_text(schema, self._schema) and self._key not in self._keys
        if self._streams:
            self._tell(self._named(self._key) + '"')
        self._state = self._in_value
        return True

    def _in_value(self, final: bool) -> bool:
        at = self._buffer.find("<")
        while at >= 0:
            end = self._end_of_value(at, final)
            if end != NO_END:
                start = self._line_start(at)
                self._add(self._take(start))
                if end is None:
                    return False
                self._take(end - start)
                self._end_value()
                return True
            at = self._buffer.find("<", at + 1)
        if final:
            tag = overlap(self._buffer, PARAMETER_CLOSE)
            self._add(self._take(len(self._buffer) if tag < 2 else self._line_start(len(self._buffer) - tag)))
            self._buffer = ""
            self._end_value(cut=True)
            self._close("was cut")
            return True
        self._add(self._take(self._line_start(len(self._buffer))))
        return False

    def _end_of_value(self, at: int, final: bool) -> int | None:
        """Where the call goes on if the value ends at the tag at ``at``: NO_END if not, None if that is unknown."""
        if not self._buffer.startswith(ENDS, at):
            rest = self._buffer[at : at + len(PARAMETER_CLOSE)]
            return None if not final and any(tag.startswith(rest) for tag in ENDS) else NO_END
        rest = self._buffer[at:]
        if rest.startswith(PARAMETER_CLOSE):
            behind = rest[len(PARAMETER_CLOSE) :].lstrip()
            if behind.startswith(GOES_ON) or (final and not behind):
                return at + len(PARAMETER_CLOSE)
            return None if not final and any(tag.startswith(behind) for tag in GOES_ON) else NO_END
        if rest.startswith(FUNCTION_CLOSE):  # the value's own tag is missing
            behind = rest[len(FUNCTION_CLOSE) :].lstrip()
            if behind.startswith(TOOL_CLOSE) or (final and not behind):
                return at
            return None if not final and TOOL_CLOSE.startswith(behind) else NO_END
        return self._next_parameter(at, final)

    def _next_parameter(self, at: int, final: bool) -> int | None:
        """The same where another parameter of the tool begins on a line of its own though this one was not closed."""
        opened = self._name(at + len(PARAMETER), final)
        if opened is None:
            return None
        known = self._schema.get("properties")
        fresh = (
            opened[0] in known and opened[0] not in self._keys | {self._key} if isinstance(known, Mapping) else False
        )
        return at if fresh and self._buffer[at - 1 : at] == "\n" else NO_END

    def _line_start(self, at: int) -> int:
        """The line break before a closing tag is the tag's."""
        return at - 1 if self._buffer[at - 1 : at] == "\n" else at

    def _add(self, text: str) -> None:
        if self._streams:
            self._tell(json.dumps(text, ensure_ascii=False)[1:-1])
        else:
            self._value += text

    def _end_value(self, *, cut: bool = False) -> None:
        self._state = self._function
        if self._streams:
            self._tell('"')
        elif self._key in self._keys:
            self._complain(f"gives {self._key!r:.80} twice; the first counts")
        else:
            properties = self._schema.get("properties")
            schema = properties.get(self._key) if isinstance(properties, Mapping) else None
            value, fits = from_text(self._value, schema, self._schema)
            if fits or not cut:
                self._tell(self._named(self._key) + _dump(value))
            if not fits:
                self._complain(f"has a value for {self._key!r:.80} that is not of its type; it is given as text")
        self._keys.add(self._key)

    def _json(self, final: bool) -> bool:
        """A body in JSON, up to the bracket that closes it."""
        for at in range(self._scanned, len(self._buffer)):
            character = self._buffer[at]
            if self._quoted:
                self._quoted = self._escaped or character != '"'
                self._escaped = not self._escaped and character == "\\"
                continue
            if character == '"':
                self._quoted = True
            elif character in "{}[]":
                self._depth += 1 if character in "{[" else -1
            if self._depth == 0 or self._buffer.startswith(TOOL_CLOSE, at):
                self._whole(self._take(at + (self._depth == 0)))
                return True
            if character == "<" and not final and TOOL_CLOSE.startswith(self._buffer[at:]):
                self._scanned = at
                return False
        self._scanned = len(self._buffer)
        if final:
            self._whole(self._take(len(self._buffer)), cut=True)
        return final

    def _whole(self, body: str, *, cut: bool = False) -> None:
        """A call that is known at once; of one that was cut the name must be a tool's."""
        self._state = self._between
        call = read_object(body) or {}
        arguments: Any = next((call[name] for name in ("arguments", "parameters", "args") if name in call), {})
        if isinstance(arguments, str):
            arguments = read_object(arguments)
        name = call.get("name")
        known = isinstance(name, str) and (name in self._tools if cut else bool(name))
        if not known or not isinstance(name, str) or not isinstance(arguments, Mapping):
            self._state = self._text
            self._lose(self._junk + body, "is no JSON object with a name")
            return
        if name not in self._tools:
            self.warnings.append(f"{name!r:.80} was called, which is none of the tools")
        self._open(name)
        self._give(arguments)
        self._close()

    def _give(self, arguments: Mapping[str, Any]) -> None:
        properties = self._schema.get("properties")
        for key, value in arguments.items():
            schema = properties.get(key) if isinstance(properties, Mapping) else None
            fitted, fits = from_value(value, schema, self._schema)
            if not fits:
                self._complain(f"has a value for {key!r:.80} that is not of its type")
            self._tell(self._named(key) + _dump(fitted))
            self._keys.add(key)

    def _lose(self, text: str, why: str) -> None:
        """What begins like a call is none."""
        if self.again:
            self.lost, self._why, self._state = text, why, self._waiting
        else:
            self.warnings.append(f"a tool call {why}; it is left in the content")
            self._say(text)

    def _waiting(self, _final: bool) -> bool:
        """For a word on what was lost."""
        return False

    def _between(self, final: bool) -> bool:
        """Behind a call: white space and its closing tag say nothing."""
        self._buffer = self._buffer.lstrip()
        if self._buffer.startswith(TOOL_CLOSE):
            self._take(len(TOOL_CLOSE))
            return True
        if not self._buffer or (not final and TOOL_CLOSE.startswith(self._buffer)):
            return False
        self._state = self._text
        return True

    def _nothing(self, _final: bool) -> bool:
        self._buffer = ""
        return False

    def _open(self, name: str) -> None:
        self._call = Call(self._calls, self._make_id(), name)
        self._calls += 1
        self._schema, self._keys, self._junk = self._tools.get(name, {}), set(), ""
        self._tell("{")
        self._state = self._function

    def _close(self, why: str = "") -> None:
        if self._junk and not self._keys and (arguments := read_object(self._junk)) is not None:
            self._give(arguments)
        elif self._junk.strip():
            self._complain("holds text outside of its parameters, which is left out")
        if why:
            self._complain(why)
        self._tell("}")
        self._state = self._between
        if self._calls == self._most:
            self.over, self._buffer, self._state = True, "", self._nothing

    def _complain(self, what: str) -> None:
        self.warnings.append(f"the call of {self._call.name:.80} {what}")

    def _named(self, key: str) -> str:
        return f"{', ' if self._keys else ''}{_dump(key)}: "

    def _tell(self, arguments: str) -> None:
        join(self._out, Piece("tool_call", arguments, call=self._call))

    def _say(self, text: str) -> None:
        join(self._out, Piece("content", text))

    def _take(self, count: int) -> str:
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        return taken

    def _held(self) -> int:
        """Length of the end that may begin a call, white space before it included."""
        tag = max(overlap(self._buffer, TOOL_CALL), overlap(self._buffer, FUNCTION))
        return len(self._buffer) - len(self._buffer[: len(self._buffer) - tag].rstrip())


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
