"""Answers that are one JSON document: objects, lists, a nested object; keys and values come from the request."""

from __future__ import annotations

import json
from random import Random
from typing import Any

from qwench.train.data.sample import Sample, assistant, held_out, user
from qwench.train.data.words import CITIES, COLOURS, FIELDS, NAMES, NOUNS, THINGS, any_word, made_up

ASK = (
    "Write this as JSON: {x}", "Give JSON: {x}", "Answer in JSON: {x}", "Make a JSON object: {x}", "Convert to JSON: {x}", "{x} Answer as JSON.",
    "{x} Write it as JSON.", "As JSON: {x}", "JSON please: {x}", "Return a JSON object with {x}",
)  # fmt: skip
LISTS = (
    "Make a JSON list of: {x}",
    "Write a JSON list: {x}",
    "Give me a JSON array of {x}",
    "As a JSON list: {x}",
    "JSON list with {x}",
)
PERSON = (
    "{name} is {age} years old and lives in {city}.", "{name} lives in {city} and is {age} years old.", "{name}, {age}, {city}.",
    "My name is {name}, I am {age} and I live in {city}.",
)  # fmt: skip
ITEM = (
    "A {colour} {item} costs {price} dollars.",
    "The {colour} {item} is {price} dollars.",
    "{item}, {colour}, {price} dollars.",
)


def value(rng: Random) -> Any:
    kind = rng.random()
    if kind < 0.35:
        return rng.randrange(10 ** rng.randint(1, 4))
    if kind < 0.42:
        return round(rng.random() * 100, 1)
    if kind < 0.52:
        return rng.random() < 0.5
    if kind < 0.62:
        return rng.choice(NAMES + CITIES)
    if kind < 0.75:
        return f"{any_word(rng)} {any_word(rng)}"
    return any_word(rng)


def spoken(item: Any) -> str:
    return json.dumps(item) if isinstance(item, bool) else str(item)


def keys(rng: Random, count: int) -> list[str]:
    found: list[str] = []
    while len(found) < count:
        kind = rng.random()
        key = rng.choice(FIELDS) if kind < 0.5 else rng.choice(NOUNS) if kind < 0.8 else made_up(rng)
        if rng.random() < 0.15:
            key += "_" + rng.choice(FIELDS)
        if key not in found:
            found.append(key)
    return found


def pairs(rng: Random) -> tuple[str, Any]:
    names = keys(rng, rng.choice((1, 2, 2, 3, 3, 4)))
    document = {name: value(rng) for name in names}
    shape, glue = rng.choice(
        (("{k} is {v}", ", "), ("{k}: {v}", ", "), ("{k} = {v}", ", "), ("{k} {v}", ", "), ("{k}: {v}", "\n"))
    )
    text = glue.join(shape.format(k=key, v=spoken(item)) for key, item in document.items())
    return rng.choice(ASK).format(x=text + ("." if glue != "\n" and rng.random() < 0.5 else "")), document


def person(rng: Random) -> tuple[str, Any]:
    document: dict[str, Any] = {"name": rng.choice(NAMES), "age": rng.randint(1, 99), "city": rng.choice(CITIES)}
    if rng.random() < 0.3:
        document["name"] = made_up(rng).capitalize()
    text = rng.choice(PERSON).format(**document)
    names = list(document)
    rng.shuffle(names)
    names = names[: rng.randint(1, 3)]
    return ask_keys(rng, text, names), {name: document[name] for name in names}


def item(rng: Random) -> tuple[str, Any]:
    document = {"item": rng.choice(THINGS), "colour": rng.choice(COLOURS), "price": rng.randint(1, 200)}
    text = rng.choice(ITEM).format(**document)
    names = list(document)
    rng.shuffle(names)
    names = names[: rng.randint(1, 3)]
    return ask_keys(rng, text, names), {name: document[name] for name in names}


def ask_keys(rng: Random, text: str, names: list[str]) -> str:
    quoted = rng.random() < 0.4
    shown = [f'"{name}"' if quoted else name for name in names]
    listed = shown[0] if len(shown) == 1 else ", ".join(shown[:-1]) + " and " + shown[-1]
    form = rng.choice(
        ("{t} Answer as JSON with {k}.", "{t}\nGive {k} as JSON.", "Give {k} as JSON: {t}", "{t} Write JSON with the keys {k}.",
         "Extract {k} as JSON: {t}", "{t}\nJSON with {k}:")
    )  # fmt: skip
    return form.format(t=text, k=listed)


def listing(rng: Random) -> tuple[str, Any]:
    if rng.random() < 0.3:
        numbers = [rng.randrange(100) for _ in range(rng.randint(1, 6))]
        return rng.choice(LISTS).format(x=", ".join(map(str, numbers))), numbers
    words = [any_word(rng) for _ in range(rng.randint(1, 6))]
    return rng.choice(LISTS).format(x=", ".join(words)), words


def nested(rng: Random) -> tuple[str, Any]:
    outer, (first, second) = keys(rng, 1)[0], keys(rng, 2)
    one, two = value(rng), value(rng)
    text = f"{outer} has {first} {spoken(one)} and {second} {spoken(two)}"
    return rng.choice(ASK).format(x=text + "."), {outer: {first: one, second: two}}


def json_answer(rng: Random, held: bool) -> Sample:
    while True:
        make = rng.choices((pairs, person, item, listing, nested), (4, 2, 2, 2, 1))[0]
        asked, document = make(rng)
        if held_out("json", asked) == held:
            break
    thinking = rng.random() < 0.1
    answer = json.dumps(document, ensure_ascii=False)
    return Sample(
        "json", (user(asked), assistant(answer, "The answer is JSON." if thinking else "")), thinking=thinking
    )
