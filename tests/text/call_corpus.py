"""What models write where a call belongs: each text with what is to be understood of it.

The tools of ``TOOLS``; a case is a text, the content, and the calls as name and arguments. ``MENDED`` cases come with
a warning, as do those of ``NANO``; what is ``TOLERATED`` does not.
"""

# ruff: noqa: E501 - a case is a line
from __future__ import annotations

from dataclasses import dataclass
from typing import Any


def _parameters(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


TOOLS: dict[str, dict[str, Any]] = {
    "get_weather": _parameters(city={"type": "string"}, unit={"type": "string", "enum": ["celsius", "fahrenheit"]}),
    "add": _parameters(a={"type": "integer"}, b={"type": "number"}),
    "write_file": _parameters(path={"type": "string"}, text={"type": "string"}, mode={"type": "integer"}),
    "set": _parameters(
        on={"type": "boolean"},
        note={"type": ["string", "null"]},
        size={"anyOf": [{"type": "integer"}, {"type": "null"}]},
        tags={"type": "array", "items": {"type": "string"}},
        where={"$ref": "#/$defs/place"},
        either={"anyOf": [{"type": "integer"}, {"type": "string"}]},
        level={"enum": [1, 2, 3]},
    )
    | {"$defs": {"place": {"type": "object", "properties": {"x": {"type": "number"}}}}},
    "free": {},
    "now": _parameters(),
}


def xml(name: str, *values: tuple[str, str]) -> str:
    """A call as Qwen3.5's template writes it."""
    inner = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in values)
    return f"<tool_call>\n<function={name}>\n{inner}</function>\n</tool_call>"


@dataclass(frozen=True)
class Case:
    text: str
    content: str = ""
    calls: tuple[tuple[str, dict[str, Any]], ...] = ()


def one(text: str, name: str, content: str = "", /, **arguments: Any) -> Case:
    return Case(text, content, ((name, arguments),))


OSLO = ("get_weather", {"city": "Oslo"})
PYTHON = 'def f(a: list[int]) -> bool:\n    """<b>"""\n    return a[0] < 3 and a[1] > 4\n\nprint(f"{f([1, 2])}\\n")'
PAGE = "<html>\n<!-- </tool_call> -->\n<p class='x'>a &lt; b</p>\n</html>"
ABOUT = "A value is written as\n<parameter=x>\n1\n</parameter>\nand so on: <tool_call> and </function>, that is all."

WELL = (
    Case("No call at all."),
    Case("a < b, a<c and <b>bold</b>"),
    Case("<function=unknown>\nis only text"),
    Case("<function=get_weather is only text"),
    Case("<tool"),
    Case("Let me think about <tool_calls> and <functions>. \n\n"),
    one(xml("get_weather", ("city", "Oslo")), "get_weather", city="Oslo"),
    one("Let me look.\n\n" + xml("get_weather", ("city", "Oslo")), "get_weather", "Let me look.", city="Oslo"),
    one(xml("get_weather", ("city", "Oslo")) + "\nDone.", "get_weather", "Done.", city="Oslo"),
    one(xml("get_weather", ("city", "Oslo"), ("unit", "celsius")), "get_weather", city="Oslo", unit="celsius"),
    one(xml("get_weather", ("city", "Sankt Gallen, 日本 👍🏽")), "get_weather", city="Sankt Gallen, 日本 👍🏽"),
    one(xml("get_weather", ("city", 'a "quoted" \\ word\t')), "get_weather", city='a "quoted" \\ word\t'),
    one(xml("get_weather", ("city", "")), "get_weather", city=""),
    one(xml("get_weather", ("city", "\n\n")), "get_weather", city="\n\n"),
    one(xml("get_weather", ("city", "123")), "get_weather", city="123"),
    one(xml("get_weather", ("city", "null")), "get_weather", city="null"),
    one(xml("get_weather", ("city", '{"a": 1}')), "get_weather", city='{"a": 1}'),
    one(xml("get_weather", ("city", "Oslo"), ("extra", "5")), "get_weather", city="Oslo", extra="5"),
    one(xml("now"), "now"),
    one("<tool_call>\n<function=now></function>\n</tool_call>", "now"),
    one(xml("add", ("a", "5"), ("b", "2.5")), "add", a=5, b=2.5),
    one(xml("add", ("a", " 5.0 "), ("b", "-1e3")), "add", a=5, b=-1000.0),
    one(xml("add", ("b", "7"), ("a", "-12345678901234567890")), "add", b=7, a=-12345678901234567890),
    one(xml("write_file", ("path", "a.py"), ("text", PYTHON)), "write_file", path="a.py", text=PYTHON),
    one(xml("write_file", ("text", PAGE), ("mode", "420")), "write_file", text=PAGE, mode=420),
    one(xml("write_file", ("text", "    indented\n\n  and blank  ")), "write_file", text="    indented\n\n  and blank  "),
    one(xml("write_file", ("text", "a </parameter> b"), ("path", "x")), "write_file", text="a </parameter> b", path="x"),
    one(xml("write_file", ("text", ABOUT), ("path", "x")), "write_file", text=ABOUT, path="x"),
    one(xml("write_file", ("text", "</function>\n<b>"), ("path", "x")), "write_file", text="</function>\n<b>", path="x"),
    one(xml("set", ("on", "True"), ("note", "None")), "set", on=True, note=None),
    one(xml("set", ("on", "false"), ("note", "nullable")), "set", on=False, note="nullable"),
    one(xml("set", ("size", "null"), ("tags", '["a", "b"]')), "set", size=None, tags=["a", "b"]),
    one(xml("set", ("size", ""), ("tags", "['it', \"isn't\", True]")), "set", size=None, tags=["it", "isn't", True]),
    one(xml("set", ("where", '{"x": 1.5, "y": [{}]}')), "set", where={"x": 1.5, "y": [{}]}),
    one(xml("set", ("where", "{'x': None}")), "set", where={"x": None}),
    one(xml("set", ("where", '{\n  "x": "a\nb"\n}')), "set", where={"x": "a\nb"}),
    one(xml("set", ("either", "5"), ("level", "2")), "set", either=5, level=2),
    one(xml("set", ("either", "five")), "set", either="five"),
    one(xml("free", ("a", "5"), ("b", "[1, 2]"), ("c", "x < y")), "free", a="5", b=[1, 2], c="x < y"),
    one(xml("get_weather", ("unit", " 'celsius' ")), "get_weather", unit="celsius"),
    Case("\n\n".join(xml("get_weather", ("city", c)) for c in "AB"), "", tuple((OSLO[0], {"city": c}) for c in "AB")),
    Case(
        f"Both.\n\n{xml('get_weather', ('city', 'Oslo'))}\n{xml('add', ('a', '1'), ('b', '2'))}\n\nThat was it.\n",
        "Both.That was it.\n",
        (OSLO, ("add", {"a": 1, "b": 2})),
    ),
    # Without line breaks, with blanks, with the opening tag forgotten.
    one("<tool_call><function=add><parameter=a>1</parameter><parameter=b>2</parameter></function></tool_call>", "add", a=1, b=2),
    one("<tool_call>  \n <function= add >\n\n<parameter= a >\n1\n</parameter>\n </function>\n</tool_call>", "add", a=1),
    one("Well.\n" + xml("get_weather", ("city", "Oslo")).removeprefix("<tool_call>\n"), "get_weather", "Well.", city="Oslo"),
    # Two functions in one pair of tags.
    Case(
        "<tool_call>\n<function=now>\n</function>\n<function=get_weather>\n<parameter=city>\nOslo\n</parameter>\n</function>\n</tool_call>",
        "",
        (("now", {}), OSLO),
    ),
    # Qwen3's form.
    one('<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>', "get_weather", city="Oslo"),
    one('x\n<tool_call>{"arguments": {"a": 1, "b": 2}, "name": "add"}</tool_call>', "add", "x", a=1, b=2),
    one('<tool_call>\n{"name": "add", "arguments": {"a": "1", "b": "2.5"}}\n</tool_call>', "add", a=1, b=2.5),
    one('<tool_call>\n{"name": "get_weather", "arguments": {"city": 5}}\n</tool_call>', "get_weather", city="5"),
    one('<tool_call>\n{"name": "add", "arguments": "{\\"a\\": 3}"}\n</tool_call>', "add", a=3),
    one('<tool_call>\n{"name": "now"}\n</tool_call>', "now"),
    one('<tool_call>\n{"name": "write_file", "arguments": {"text": "}</tool_call>{"}}\n</tool_call>', "write_file", text="}</tool_call>{"),
    one("<tool_call>\n{'name': 'set', 'arguments': {'on': True, 'note': None}}\n</tool_call>", "set", on=True, note=None),
    one('<tool_call>\n{"name": "write_file", "arguments": {"text": "a\nb"}}\n</tool_call>', "write_file", text="a\nb"),
    Case(
        '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>',
        "",
        (("now", {}), OSLO),
    ),
)  # fmt: skip

MENDED = (
    one(xml("other", ("a", "1")), "other", a="1"),
    one('<tool_call>\n{"name": "other", "arguments": {"a": 1}}\n</tool_call>', "other", a=1),
    one(xml("add", ("a", "many")), "add", a="many"),
    one(xml("set", ("where", "here"), ("on", "perhaps")), "set", where="here", on="perhaps"),
    one(xml("add", ("a", "1"), ("a", "2")), "add", a=1),
    one(xml("get_weather", ("city", "Oslo"), ("city", "Rome")), "get_weather", city="Oslo"),
    # Tags that are missing.
    one("<tool_call>\n<function=get_weather>\n<parameter=city>\nOslo\n</parameter>\n", "get_weather", city="Oslo"),
    one("<tool_call>\n<function=get_weather>\n<parameter=city>\nOslo", "get_weather", city="Oslo"),
    one("<tool_call>\n<function=get_weather>\n<parameter=city>\nOslo\n</par", "get_weather", city="Oslo"),
    one("<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n<parameter=b>\n2", "add", a=1, b=2),
    one("<tool_call>\n<function=set>\n<parameter=on>\ntru", "set"),
    one("<tool_call>\n<function=set>\n<parameter=tags>\n[\"a\", \"b", "set", tags=["a", "b"]),
    one("<tool_call>\n<function=now>\n", "now"),
    one("<tool_call>\n<function=free>\nthis and that\n</function>\n</tool_call>", "free"),
    one("<tool_call>\n<function=now>\n<parameter=>\n</function>\n</tool_call>", "now"),
    Case(
        f"<tool_call>\n<function=now>\n{xml('get_weather', ('city', 'Oslo'))}",
        "",
        (("now", {}), OSLO),
    ),
    # What cannot be a call stays as it was written.
    Case("<tool_call>\nget_weather(city='Oslo')\n</tool_call>", "<tool_call>\nget_weather(city='Oslo')\n</tool_call>"),
    Case("<tool_call>\n<function=\n</tool_call>", "<tool_call>\n<function=\n</tool_call>"),
    Case('<tool_call>\n{"city": "Oslo"}\n</tool_call>', '<tool_call>\n{"city": "Oslo"}\n</tool_call>'),
    Case('<tool_call>\n{"name": 5}\n</tool_call> and', '<tool_call>\n{"name": 5}\n</tool_call> and'),
    Case("<tool_call>\n{name: x, }}\n</tool_call>", "<tool_call>\n{name: x, }}\n</tool_call>"),
    Case("<tool_call>", "<tool_call>"),
)  # fmt: skip

# Written by the embedded model at temperature 1, where it errs.
NANO = (
    Case(
        "<tool_call>\n<function= Hugoget<parameter_to>\nDavid\n</parameter>\n<parameter=source>\nOscar\n</parameter>\n</function>\n</tool_call>",
        "<tool_call>\n<function= Hugoget<parameter_to>\nDavid\n</parameter>\n<parameter=source>\nOscar\n</parameter>\n</function>\n</tool_call>",
    ),
    Case(
        "<tool_call>\n<function=how_far>\n<parameter=a>\nRuby\n</parameter>\n<parameter=size>\nHeya\n</parameter>\n</function>\n</tool_call>\n"
        "<tool_call>\n<function=how_far>\n<parameter=a>\nAtlanta\n</parameter>\n<parameter minute>\nHeya\n</parameter>\n</function>\n</tool_call>",
        "",
        (("how_far", {"a": "Ruby", "size": "Heya"}), ("how_far", {"a": "Atlanta"})),
    ),
    one("<tool_call>\n<function=exportN butter>\n<parameter=x>\n1\n</parameter>\n</function>\n</tool_call>", "exportN butter", x="1"),
)  # fmt: skip

# Values whose own closing tag is missing, and arguments as one object: read without a word.
TOLERATED = (
    one("<tool_call>\n<function=get_weather>\n<parameter=city>\nOslo\n</function>\n</tool_call>", "get_weather", city="Oslo"),
    one("<tool_call>\n<function=write_file>\n<parameter=path>\na\n<parameter=text>\nb\n</parameter>\n</function>\n</tool_call>", "write_file", path="a", text="b"),
    one('<tool_call>\n<function=add>\n{"a": 1, "b": "2"}\n</function>\n</tool_call>', "add", a=1, b=2),
    one('<tool_call>\n{"name": "add", "arguments": {"a": 1}\n</tool_call>', "add", a=1),
    one('<tool_call>\n{"name": "add", "arguments": {"a": 1,', "add", a=1),
)  # fmt: skip
