"""Tool calls: everyday tools, tools with random names and parameters, several calls, results put into words.

Held out are tool names (`unseen=True`) and request sentences; the schema always has to be read for names.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from random import Random
from typing import Any

from qwench.train.data import facts, words
from qwench.train.data.sample import Message, Sample, Tool, assistant, held_out, system, user
from qwench.train.data.tool_specs import (
    COMMANDS,
    CURRENCIES,
    DAYS,
    EVERYDAY,
    LANGUAGES,
    ROOMS,
    SKIES,
    SYMBOLS,
    Everyday,
)  # fmt: skip

Weights = tuple[float, float, float]
USUALLY_FEW: Weights = (6, 3, 1)
ALWAYS_SOME: Weights = (0, 3, 2)
TYPES = {"integer": "integer", "number": "number", "boolean": "boolean"}
CALL = (
    "Call {n} with {a}.", "Use {n} with {a}.", "Please call {n} with {a}.", "Run {n}: {a}", "{n} with {a}", "Use the tool {n}: {a}",
    "Please use {n} with {a}.", "Can you call {n} with {a}?", "Call {n}: {a}.",
)  # fmt: skip
NATURAL = (
    "Please {v} the {o} with {a}.", "{V} the {o} with {a}.", "{V} a {o}: {a}", "Can you {v} the {o}? {a}", "I want to {v} a {o} with {a}.",
    "{V} {o}, {a}.", "I need to {v} the {o}, {a}.",
)  # fmt: skip


@dataclass(frozen=True)
class Request:
    """A wish in words, the tool it needs and the call that grants it."""

    sentence: str
    tool: Tool
    name: str
    arguments: dict[str, Any]
    result: str = "ok"


def value(rng: Random, kind: str) -> Any:
    """A value of one kind, as the call carries it."""
    if kind == "integer":
        return rng.randrange(10 ** rng.randint(1, 4))
    if kind == "number":
        return round(rng.random() * 10 ** rng.randint(1, 3), rng.randint(1, 2))
    if kind == "boolean":
        return rng.random() < 0.5
    if kind == "clock":
        return rng.choice(
            (
                f"{rng.randint(0, 23)}:{rng.choice((0, 15, 30, 45)):02d}",
                f"{rng.randint(1, 12)} {rng.choice(('am', 'pm'))}",
            )
        )
    if kind == "phrase":
        return " ".join(words.any_word(rng) for _ in range(rng.randint(1, 5)))
    if kind == "path":
        folder = rng.choice(("", "", "/tmp/", "src/", f"{words.made_up(rng)}/"))
        return folder + words.any_word(rng) + rng.choice((".txt", ".py", ".md", ".csv", ".json", ".log"))
    if kind == "command":
        return rng.choice(COMMANDS).format(w=words.any_word(rng), v=words.any_word(rng))
    if kind == "city":
        return rng.choice(words.CITIES) if rng.random() < 0.7 else words.made_up(rng).capitalize()
    if kind == "name":
        return rng.choice(words.NAMES) if rng.random() < 0.7 else words.made_up(rng).capitalize()
    lists = {
        "language": LANGUAGES,
        "currency": CURRENCIES,
        "symbol": SYMBOLS,
        "room": ROOMS,
        "day": DAYS,
        "food": words.FOODS,
    }
    return rng.choice(lists[kind]) if kind in lists else words.any_word(rng)


def function(name: str, description: str, properties: dict[str, Any], required: list[str]) -> Tool:
    body: dict[str, Any] = {"name": name}
    if description:
        body["description"] = description
    body["parameters"] = {"type": "object", "properties": properties, "required": required}
    return {"type": "function", "function": body}


def everyday(rng: Random, spec: Everyday | None = None) -> Request:
    spec = spec or rng.choices(EVERYDAY, [4] + [1] * (len(EVERYDAY) - 1))[0]
    name = rng.choice(spec.names)
    spoken = {word: value(rng, kind) for word, (_names, kind) in spec.params.items()}
    called: dict[str, str] = {}
    for word, (names, _kind) in spec.params.items():
        called[word] = rng.choice([option for option in names if option not in called.values()])
    described = rng.random()
    properties: dict[str, Any] = {}
    for word, (_names, kind) in spec.params.items():
        properties[called[word]] = {"type": TYPES.get(kind, "string")}
        if described < 0.25:
            properties[called[word]]["description"] = rng.choice(
                (f"The {word}.", word, f"the {word} to use", word.capitalize())
            )
    tool = function(name, rng.choice(spec.describe) if rng.random() < 0.85 else "", properties, list(properties))
    arguments = {called[word]: item for word, item in spoken.items()}
    return Request(rng.choice(spec.asks).format(**spoken), tool, name, arguments, spec.result)


def _parameter(rng: Random) -> tuple[dict[str, Any], Any]:
    """A random parameter's schema and a value that fits."""
    kind = rng.choices(("string", "integer", "number", "boolean", "enum"), (5, 3, 1, 1, 1))[0]
    if kind == "enum":
        options = [words.any_word(rng) for _ in range(rng.randint(2, 3))]
        return {"type": "string", "enum": options}, rng.choice(options)
    if kind == "string":
        return {"type": "string"}, value(rng, rng.choice(("word", "word", "word", "name", "city", "phrase", "path")))
    return {"type": kind}, value(rng, kind)


def random_name(rng: Random) -> tuple[str, str, str]:
    """A tool's name with the verb and the noun it is made of."""
    verb, noun = rng.choice(words.VERBS), rng.choice(words.NOUNS)
    if rng.random() < 0.2:
        verb = words.made_up(rng)
    if rng.random() < 0.2:
        noun = words.made_up(rng)
    if rng.random() < 0.15:
        return f"{verb}_{noun}_{rng.choice(words.NOUNS)}", verb, noun
    return f"{verb}_{noun}" if rng.random() < 0.85 else f"{verb}{noun.capitalize()}", verb, noun


def invented(rng: Random, most: int = 4) -> Request:
    """A tool that exists nowhere else: only its schema says what it and its parameters are called."""
    name, verb, noun = random_name(rng)
    properties: dict[str, Any] = {}
    arguments: dict[str, Any] = {}
    for _ in range(rng.choice((1, 1, 2, 2, 3, 4)[: most + 2])):
        key = (
            rng.choice(words.FIELDS)
            if rng.random() < 0.7
            else words.made_up(rng)
            if rng.random() < 0.5
            else rng.choice(words.NOUNS)
        )
        properties[key], arguments[key] = _parameter(rng)
    shape = rng.choice(("{k} {v}", "{k}={v}", "{k} {v}", "{k}: {v}"))
    parts = [
        shape.format(k=key, v=str(item).lower() if isinstance(item, bool) else item) for key, item in arguments.items()
    ]
    text = ", ".join(parts) if rng.random() < 0.4 or len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
    form = rng.choice(CALL if rng.random() < 0.5 else NATURAL)
    sentence = form.format(n=name, a=text, v=verb, V=verb.capitalize(), o=noun)
    describe = (
        rng.choice((f"{verb.capitalize()} a {noun}.", f"{verb.capitalize()} the {noun}.", ""))
        if rng.random() < 0.7
        else ""
    )
    return Request(sentence, function(name, describe, properties, list(properties)), name, arguments)


def request(rng: Random, held: bool, unseen: bool = False) -> Request:
    """Training never sees a held-out name or a held-out sentence; `unseen` asks for held-out names."""
    while True:
        wish = invented(rng) if unseen or rng.random() < 0.5 else everyday(rng)
        name_held, everyday_name = held_out("tool", wish.name), any(wish.name in spec.names for spec in EVERYDAY)
        if unseen:
            if name_held and not everyday_name:
                return wish
        elif (not name_held or everyday_name) and held_out("ask", wish.sentence) == held:
            return wish


def with_others(rng: Random, tools: list[Tool], weights: Weights = USUALLY_FEW) -> tuple[Tool, ...]:
    """None, one or two tools nobody asked for, by these weights."""
    taken = [tool["function"]["name"] for tool in tools]
    for _ in range(rng.choices((0, 1, 2), weights)[0]):
        other = request(rng, False)
        if other.name not in taken:
            tools.append(other.tool)
            taken.append(other.name)
    rng.shuffle(tools)
    return tuple(tools)


def called(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def _call_turn(rng: Random, wishes: list[Request], thinking: bool) -> Message:
    turn = assistant("", f"I call {' and '.join(wish.name for wish in wishes)}." if thinking else "")
    turn["tool_calls"] = [called(wish.name, wish.arguments) for wish in wishes]
    return turn


def _head(rng: Random) -> tuple[Message, ...]:
    return (system(rng.choice(facts.SYSTEMS)),) if rng.random() < 0.08 else ()


def tool_call(rng: Random, held: bool, unseen: bool = False, others: Weights = USUALLY_FEW) -> Sample:
    """One wish, one call (one time in ten two wishes, two calls)."""
    wishes = [request(rng, held, unseen)]
    if rng.random() < 0.1 and not held:
        second = request(rng, held, unseen)
        wishes += [second] if second.name != wishes[0].name else []
    thinking = rng.random() < 0.15
    sentence = " ".join(wish.sentence for wish in wishes)
    messages = (*_head(rng), user(sentence), _call_turn(rng, wishes, thinking))
    return Sample("tool call", messages, with_others(rng, [wish.tool for wish in wishes], others), thinking)


def invented_call(rng: Random, held: bool) -> Sample:
    """A call of a tool seen once: most of the practice in reading a schema."""
    while True:
        wish = invented(rng)
        if not held_out("tool", wish.name) and held_out("ask", wish.sentence) == held:
            break
    thinking = rng.random() < 0.1
    return Sample("tool call", (user(wish.sentence), _call_turn(rng, [wish], thinking)), (wish.tool,), thinking)


def _weather(rng: Random, place: str) -> tuple[str, str]:
    degrees, sky = rng.randint(-15, 40), rng.choice(SKIES)
    unit = rng.choice(("temperature", "temp", "temp_c", "degrees"))
    fields = [(unit, degrees), (rng.choice(("condition", "sky", "weather")), sky)]
    if rng.random() < 0.5:
        fields.reverse()
    if rng.random() < 0.3:
        fields.insert(0, ("city", place))
    content = (
        json.dumps(dict(fields))
        if rng.random() < 0.6
        else rng.choice(
            (f"{sky}, {degrees} degrees", f"{degrees} C, {sky}", f"{sky} {degrees}", f"{degrees} degrees and {sky}")
        )
    )
    return content, f"It is {sky} and {degrees} degrees in {place}."


def outcome(rng: Random, wish: Request) -> tuple[str, str]:
    """What the tool returns and what we say then."""
    place = str(next(iter(wish.arguments.values())))
    if rng.random() < 0.08:
        problem = rng.choice(
            ("not found", "no access", "time out", "network is down", f"{words.made_up(rng)} is missing")
        )
        return json.dumps(
            {"error": problem}
        ) if rng.random() < 0.6 else f"Error: {problem}", f"That did not work: {problem}."
    if wish.result == "weather":
        return _weather(rng, place)
    if wish.result == "time":
        clock = f"{rng.randint(0, 23)}:{rng.randrange(60):02d}"
        return rng.choice((clock, json.dumps({"time": clock}))), f"It is {clock} in {place}."
    if wish.result == "ok" and rng.random() < 0.6:
        return rng.choice(
            ("ok", "done", "OK", '{"status": "ok"}', '{"success": true}', '{"ok": true}', "success")
        ), "Done."
    key = rng.choice([*words.FIELDS, "result", "result", "value", "answer", "price", "output"])
    item = value(rng, rng.choice(("integer", "integer", "word", "name", "number")))
    if rng.random() < 0.25:
        return str(item), f"The answer is {item}."
    return json.dumps({key: item}), f"The {key} is {item}."


def tool_answer(rng: Random, held: bool) -> Sample:
    """Call, result, answer in words: both assistant turns count."""
    wish = request(rng, held)
    if rng.random() < 0.35:
        weather = everyday(rng, EVERYDAY[0])
        wish = weather if held_out("ask", weather.sentence) == held else wish
    thinking = rng.random() < 0.15
    content, answer = outcome(rng, wish)
    reply = assistant(answer, "The tool has answered." if thinking else "")
    messages = (
        *_head(rng),
        user(wish.sentence),
        _call_turn(rng, [wish], thinking),
        {"role": "tool", "content": content},
        reply,
    )
    return Sample("tool answer", messages, with_others(rng, [wish.tool]), thinking)


def no_tool(rng: Random, held: bool) -> Sample:
    """Tools are there, but the question needs none."""
    plain = rng.choice((facts.greeting, facts.greeting, facts.fact))(rng, held)
    wish = request(rng, False)
    return Sample("no tool", plain.messages, with_others(rng, [wish.tool]), plain.thinking)
