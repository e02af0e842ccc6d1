"""Anthropic's messages -> a chat request. docs/dialects.md has the rules.

A block is never dropped in silence: what only Anthropic's servers can run is left out with a warning, what nobody knows
is refused by its place. Knows no HTTP and no engine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qwench.errors import RequestError
from qwench.server.messages.fields import CountRequest
from qwench.server.schemas import ChatRequest, show
from qwench.server.translation import Translation, Turns

REMINDER = ("<system-reminder>", "</system-reminder>")
CHOICES = {"auto": "auto", "any": "required", "none": "none"}
# What Anthropic's servers did in an earlier answer: their results are in the text that follows.
SERVERS_OWN = ("server_tool_use", "mcp_tool_use", "fallback", "compaction", "container_upload")


def read_messages(request: CountRequest) -> Translation:
    """What ``request`` comes to. Raises RequestError naming the block."""
    turns, warnings = Turns(), list[str]()
    for block, place in _blocks(request.system or [], "system"):  # a message each: their ends may be marked
        turns.add("system", place, [(_text(block, place), place)])
    for index, message in enumerate(request.messages):
        _message(turns, message, f"messages[{index}]", warnings)
    if request.cache_control and turns.messages:
        turns.messages[-1]["cache_control"] = request.cache_control
    tools = _tools(request, turns, warnings)
    choice, parallel = _choice(request, tools, warnings)
    output = {name: value for name, value in (request.output_config or {}).items() if name != "format"}
    turns.places["response_format"] = "output_config.format" if request.output_format is None else "output_format"
    turns.places["stop"] = "stop_sequences"
    return Translation(
        ChatRequest(
            messages=turns.messages,
            model=request.model,
            max_tokens=request.max_tokens,
            stream=request.stream,
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            stop=request.stop_sequences,
            tools=tools or None,
            tool_choice=choice,
            parallel_tool_calls=parallel,
            thinking=request.thinking or (None if output.get("effort") else {"type": "disabled"}),
            output_config=output or None,
            response_format=_format(request),
        ),
        turns.places,
        tuple(warnings),
    )


def _message(turns: Turns, message: Mapping[str, Any], where: str, warnings: list[str]) -> None:
    role, content = message.get("role"), message.get("content")
    blocks = list(_blocks([] if content is None and role == "assistant" else content, f"{where}.content"))
    if role == "assistant":
        _assistant(turns, blocks, where, warnings)
    elif role == "system":
        turns.add("system", where, [(_text(block, place), place) for block, place in blocks])
    elif role == "user":
        _user(turns, blocks, where)
    else:
        raise RequestError(
            f"{where}.role is {show(role)}; known are user, assistant and system.", param=f"{where}.role"
        )


def _user(turns: Turns, blocks: Sequence[tuple[Mapping[str, Any], str]], where: str) -> None:
    """What a user says is a message, and each result of a tool is one, in the order they come.

    A reminder behind a result belongs to it: as a question of the user's it would have templates drop the thoughts that
    led there, and the prompt would be read again from where they stood.
    """
    said: list[tuple[Any, str]] = []
    result: dict[str, Any] | None = None
    for block, place in blocks:
        if block.get("type") != "tool_result":
            if result is not None and not said and _is_reminder(block):
                turns.extend(result, _text(block, place), place)
            else:
                said += _shown(block, place)
            continue
        if said:
            turns.add("user", where, said)
            said = []
        inner = block.get("content")
        parts = [
            part
            for each, spot in _blocks([] if inner is None else inner, f"{place}.content")
            for part in _shown(each, spot)
        ]
        if block.get("is_error"):
            parts.insert(0, _line("Error:", place))
        result = turns.add("tool", place, parts, tool_call_id=block.get("tool_use_id"), **_mark(block))
    if said or not blocks:
        turns.add("user", where, said)


def _assistant(turns: Turns, blocks: Sequence[tuple[Mapping[str, Any], str]], where: str, warnings: list[str]) -> None:
    message = turns.add("assistant", where)
    thoughts = []
    for block, place in blocks:
        kind = block.get("type")
        if kind == "thinking":
            thoughts.append(str(block.get("thinking") or ""))
        elif kind == "tool_use":
            name, given = block.get("name"), block.get("input")
            if not isinstance(name, str) or not isinstance(given, Mapping):
                raise RequestError(f"{place} is no call; give name and, as an object, input.", param=place)
            call = {"id": block.get("id"), "type": "function", "function": {"name": name, "arguments": dict(given)}}
            turns.call(message, call, place)
        elif kind in SERVERS_OWN or (isinstance(kind, str) and kind.endswith("_tool_result")):
            warnings.append(f"{place}: left out, {kind:.40} is read by Anthropic's servers only")
        elif kind != "redacted_thinking":  # that one nobody but its writer can read
            turns.extend(message, _text(block, place), place)
    if any(thoughts):
        message["reasoning_content"] = "\n\n".join(thoughts)


def _shown(block: Mapping[str, Any], place: str) -> list[tuple[Any, str]]:
    """A block of a user or a tool as parts of a chat message."""
    kind = block.get("type")
    if kind == "tool_reference":
        return [_line(f"The tool {block.get('tool_name')} is ready.", place)]
    if kind == "search_result":
        found = [_line("\n".join(str(block[name]) for name in ("title", "source") if block.get(name)), place)]
        found += [(_text(each, spot), spot) for each, spot in _blocks(block.get("content"), f"{place}.content")]
        return [*found[:-1], ({**found[-1][0], **_mark(block)}, found[-1][1])]
    if kind not in ("image", "document"):
        return [(_text(block, place), place)]
    source = block.get("source")
    if not isinstance(source, Mapping):
        raise RequestError(f"{place}.source is missing; give base64 data or a url.", param=f"{place}.source")
    if source.get("type") == "file":
        raise RequestError(f"{place} names a file, but none are kept here; send its data.", param=place)
    title = "\n".join(str(block[name]) for name in ("title", "context") if block.get(name))
    head = [_line(title, place)] if title else []
    if kind == "document" and source.get("type") == "text":
        return [*head, ({**_line(str(source.get("data") or ""), place)[0], **_mark(block)}, place)]
    if kind == "document" and source.get("type") == "content":
        inner = _blocks(source.get("content"), f"{place}.source.content")
        return [*head, *(part for each, spot in inner for part in _shown(each, spot))]
    return [*head, ({"type": kind, "source": dict(source), **_mark(block)}, place)]


def _is_reminder(block: Mapping[str, Any]) -> bool:
    """Whether this is one of the lines that Claude Code puts into a conversation by itself."""
    text = block.get("text")
    return isinstance(text, str) and text.strip().startswith(REMINDER[0]) and text.strip().endswith(REMINDER[1])


def _line(text: str, place: str) -> tuple[Any, str]:
    return {"type": "text", "text": text}, place


def _mark(block: Mapping[str, Any]) -> dict[str, Any]:
    return {"cache_control": block["cache_control"]} if block.get("cache_control") else {}


def _text(block: Mapping[str, Any], place: str) -> dict[str, Any]:
    if block.get("type") != "text":
        raise RequestError(f"{place} is of type {show(block.get('type'))}, which cannot stand there.", param=place)
    if not isinstance(block.get("text"), str):
        raise RequestError(f"{place}.text is {show(block.get('text'))}; give a text.", param=f"{place}.text")
    return {name: block[name] for name in ("type", "text", "cache_control") if name in block}


def _blocks(content: object, where: str) -> Iterator[tuple[Mapping[str, Any], str]]:
    """The blocks of a content with their places; a text is one."""
    if isinstance(content, str):
        yield {"type": "text", "text": content}, where
        return
    if not isinstance(content, list):
        raise RequestError(f"{where} is {show(content)}; give a text or a list of blocks.", param=where)
    for at, block in enumerate(content):
        if not isinstance(block, Mapping):
            raise RequestError(f"{where}[{at}] is {show(block)}; give a block.", param=f"{where}[{at}]")
        yield block, f"{where}[{at}]"


def _tools(request: CountRequest, turns: Turns, warnings: list[str]) -> list[dict[str, Any]]:
    """The client's own tools as functions."""
    functions: list[dict[str, Any]] = []
    for at, tool in enumerate(request.tools or ()):
        place = f"tools[{at}]"
        if tool.get("type") not in (None, "custom"):
            warnings.append(f"{place}: left out, {show(tool['type'])} is not run here, send a tool of your own")
            continue
        turns.places[f"tools[{len(functions)}]"] = turns.places[f"tools[{len(functions)}].function"] = place
        turns.places[f"tools[{len(functions)}].function.parameters"] = f"{place}.input_schema"
        function = {"name": tool.get("name"), "description": tool.get("description")}
        function |= {"parameters": tool.get("input_schema"), "strict": tool.get("strict") or None}
        known = {name: value for name, value in function.items() if value is not None}
        functions.append({"type": "function", "function": known})
    return functions


def _choice(
    request: CountRequest, tools: Sequence[Mapping[str, Any]], warnings: list[str]
) -> tuple[str | dict[str, Any] | None, bool | None]:
    """``tool_choice`` in the words of chat, and whether calls may come together."""
    choice = request.tool_choice
    if choice is None:
        return None, None
    kind, parallel = choice.get("type"), False if choice.get("disable_parallel_tool_use") else None
    left_out = len(request.tools or ()) > len(tools)
    names = [tool["function"].get("name") for tool in tools]
    if left_out and ((kind == "any" and not tools) or (kind == "tool" and choice.get("name") not in names)):
        warnings.append("tool_choice: no effect, what it asks for is left out of tools")
        return None, parallel
    if kind == "tool":
        return {"type": "function", "function": {"name": choice.get("name")}}, parallel
    if not isinstance(kind, str) or kind not in CHOICES:
        raise RequestError(
            f"tool_choice.type is {show(kind)}; known are auto, any, tool and none.", param="tool_choice.type"
        )
    return CHOICES[kind], parallel


def _format(request: CountRequest) -> dict[str, Any] | None:
    """The schema of the answer as chat's response_format."""
    wanted = request.output_format or (request.output_config or {}).get("format")
    if wanted is None:
        return None
    if not isinstance(wanted, Mapping) or wanted.get("type") != "json_schema" or "schema" not in wanted:
        place = "output_format" if request.output_format else "output_config.format"
        raise RequestError(f"{place} is {show(wanted)}; give type json_schema, and a schema.", param=place)
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": wanted["schema"]}}
