"""Copying, lists, looking up a value, and remembering what was said; answers are always in the prompt."""

from __future__ import annotations

from random import Random

from qwench.train.data.sample import Message, Sample, assistant, held_out, user
from qwench.train.data.words import ADJECTIVES, CITIES, COLOURS, EVERY, FIELDS, FOODS, NAMES, THINGS, any_word, made_up

REPEAT = (
    "Repeat: {x}", "Repeat these words: {x}", "Say: {x}", "Say exactly: {x}", "Please repeat: {x}", "Repeat after me: {x}",
    "Copy this: {x}", "Copy: {x}", "Write this again: {x}", "Echo: {x}", "Repeat the words: {x}", 'Repeat "{x}"', 'Say "{x}"',
)  # fmt: skip
REVERSE = ("Reverse the words: {x}", "Say these words backwards: {x}", "Reverse the order: {x}")
NOISE = (
    "The {a} {t} is in the room.", "{n} likes {f}.", "It was a {a} day.", "{n} went to {c}.", "There is a {a} {t} here.",
    "The {t} was {a}.", "{n} bought a {t} in {c}.", "{n} had {f} for lunch.",
)  # fmt: skip


def distinct(rng: Random, count: int, held: bool) -> list[str]:
    while True:
        words = [any_word(rng) for _ in range(count)]
        if held_out("words", tuple(words)) == held:
            return words


def copy(rng: Random, held: bool, count: int = 0) -> Sample:
    words = distinct(rng, count or rng.choice((1, 2, 3, 3, 4, 4, 5, 6, 7, 8, 8, 9, 10, 12)), held)
    joined = (" " if rng.random() < 0.75 else ", ").join(words)
    return Sample("copy", (user(rng.choice(REPEAT).format(x=joined)), assistant(joined)))


def identifiers(rng: Random, held: bool) -> Sample:
    """Names as programs write them, numbers and codes: what tool calls and JSON copy."""
    parts = []
    for _ in range(rng.randint(1, 4)):
        kind = rng.random()
        if kind < 0.35:
            parts.append("_".join(any_word(rng) for _ in range(rng.randint(2, 3))))
        elif kind < 0.5:
            parts.append(any_word(rng) + any_word(rng).capitalize())
        elif kind < 0.7:
            parts.append(str(rng.randrange(10 ** rng.randint(1, 5))))
        elif kind < 0.85:
            parts.append(made_up(rng).capitalize())
        else:
            parts.append(f"{made_up(rng)}.{rng.choice(('txt', 'py', 'csv', 'pdf', 'json'))}")
    joined = " ".join(parts)
    if held_out("words", joined) != held:
        return identifiers(rng, held)
    return Sample("copy", (user(rng.choice(REPEAT).format(x=joined)), assistant(joined)))


# The same word is another token at the start, after a space, in quotes, after "=" or "_": each form is learnt word by
# word, and everything that copies (tool calls, JSON, values) needs all of them.
FORMS: dict[str, tuple[tuple[str, ...], str, str]] = {
    "lines": (
        ("One word per line: {x}", "Write each word on its own line: {x}", "List these, one per line: {x}"),
        "{w}",
        "\n",
    ),
    "quotes": (("Put each word in quotes: {x}", "Quote every word: {x}"), '"{w}"', ", "),
    "underscores": (("Join with underscores: {x}", "Write as one name: {x}"), "{w}", "_"),
    "spaces": (("Only the words: {x}", "Write the words with spaces: {x}"), "{w}", " "),
    "parameters": (("Write as parameters: {x}", "Parameter tags: {x}"), "<parameter={w}>", "\n"),
}
SOURCES = (("{w}", " "), ("{w}", ", "), ('"{w}"', ", "), ("{w}", "\n"), ("{w}=", " "), ("{w}", "_"), ('"{w}": ', ""))


def forms(rng: Random, held: bool) -> Sample:
    """A list of words rewritten in another form."""
    words = [rng.choice(EVERY) if rng.random() < 0.75 else made_up(rng) for _ in range(rng.randint(3, 12))]
    if held_out("words", tuple(words)) != held:
        return forms(rng, held)
    asks, shape, glue = rng.choices(list(FORMS.values()), (4, 2, 1, 1, 2))[0]
    given_shape, given_glue = rng.choices(SOURCES, (6, 3, 2, 1, 1, 1, 1))[0]
    given = given_glue.join(given_shape.replace("{w}", word) for word in words).strip()
    asked = rng.choice(asks).replace("{x}", given)
    return Sample("forms", (user(asked), assistant(glue.join(shape.replace("{w}", word) for word in words))))


def order(rng: Random, held: bool) -> Sample:
    """Reverse, first, last and n-th of a short list."""
    words = distinct(rng, rng.randint(2, 6), held)
    kind = rng.random()
    listed = " ".join(words)
    if kind < 0.4:
        words = words[:4]
        return Sample("order", (user(rng.choice(REVERSE).format(x=" ".join(words))), assistant(" ".join(words[::-1]))))
    names = ("first", "second", "third", "fourth", "fifth", "sixth")
    place = rng.randrange(len(words))
    name = "last" if place == len(words) - 1 and rng.random() < 0.6 else names[place]
    ask = rng.choice(("What is the {n} word of: {x}", "Which word is {n}? {x}", "Say the {n} word: {x}"))
    return Sample("order", (user(ask.format(n=name, x=listed)), assistant(words[place])))


def lookup(rng: Random, held: bool, count: int = 0) -> Sample:
    """Key and value pairs, then one key."""
    count = count or rng.choice((2, 2, 3, 3, 4, 5, 6, 8))
    keys: list[str] = []
    while len(keys) < count:
        word = any_word(rng)
        if word not in keys:
            keys.append(word)
    numeric = rng.random() < 0.6
    values = [str(rng.randrange(100)) if numeric else any_word(rng) for _ in keys]
    pick = rng.randrange(count)
    if held_out("pairs", tuple(keys), pick) != held:
        return lookup(rng, held, count)
    shape, glue = rng.choice(
        (("{k}: {v}", ", "), ("{k}={v}", ", "), ("{k} is {v}", ". "), ("{k}: {v}", "\n"), ("The {k} is {v}", ". "))
    )
    text = glue.join(shape.format(k=key, v=value) for key, value in zip(keys, values, strict=True))
    text += "." if glue == ". " else ""
    ask = rng.choice(("What is {k}?", "What is the {k}?", "Which value has {k}?", "Find {k}.", "{k}?"))
    ask = ask.format(k=keys[pick])
    content = f"{text}\n{ask}" if rng.random() < 0.6 else f"{text} {ask}"
    return Sample("lookup", (user(content), assistant(values[pick])))


def noise(rng: Random) -> str:
    return rng.choice(NOISE).format(
        a=rng.choice(ADJECTIVES), t=rng.choice(THINGS), n=rng.choice(NAMES), f=rng.choice(FOODS), c=rng.choice(CITIES)
    )


def needle(rng: Random, held: bool) -> Sample:
    """One fact among sentences that do not matter."""
    field = rng.choice([*FIELDS, "secret code", "password", "magic word"])
    value = str(rng.randrange(10, 10000)) if rng.random() < 0.6 else made_up(rng)
    if held_out("needle", field, value) != held:
        return needle(rng, held)
    sentences = [noise(rng) for _ in range(rng.choice((1, 2, 3, 4, 6, 8, 12)))]
    sentences.insert(rng.randint(0, len(sentences)), f"The {field} is {value}.")
    ask = rng.choice(("What is the {k}?", "Tell me the {k}.", "What was the {k}?")).format(k=field)
    return Sample("needle", (user(" ".join(sentences) + "\n" + ask), assistant(value)))


def _fact(rng: Random) -> tuple[str, str, str, str]:
    """What the user says, what we answer, the later question, its answer."""
    name, thing, place = rng.choice([*NAMES, made_up(rng).capitalize()]), rng.choice(THINGS), rng.choice(CITIES)
    colour, age, food = rng.choice(COLOURS), rng.randint(2, 99), rng.choice(FOODS)
    pet = made_up(rng).capitalize() if rng.random() < 0.5 else rng.choice(NAMES)
    say_name = rng.choice(("My name is {n}.", "I am {n}.", "Hi, I'm {n}.", "Hello, my name is {n}.", "Call me {n}."))
    return rng.choice(
        (
            (say_name.format(n=name), f"Hello {name}!", "What is my name?", f"Your name is {name}."),
            (say_name.format(n=name), f"Hello {name}!", "What was my name?", f"Your name is {name}."),
            (say_name.format(n=name), f"Hello {name}!", "Do you know my name?", f"Your name is {name}."),
            (f"I live in {place}.", f"{place} is a nice place.", "Where do I live?", f"You live in {place}."),
            (f"I am {age} years old.", "Thank you for telling me.", "How old am I?", f"You are {age} years old."),
            (f"My {thing} is {colour}.", "I see.", f"What colour is my {thing}?", f"Your {thing} is {colour}."),
            (f"My dog is called {pet}.", "What a nice name!", "What is my dog called?", f"Your dog is called {pet}."),
            (f"I like {food}.", "Good choice!", "What do I like?", f"You like {food}."),
        )
    )


def memory(rng: Random, held: bool) -> Sample:
    """Something the user said some turns ago."""
    said, reply, ask, answer = _fact(rng)
    if held_out("memory", answer) != held:
        return memory(rng, held)
    turns: list[Message] = [user(said), assistant(reply)]
    for _ in range(rng.choice((0, 0, 1, 2))):
        said_too, reply_too, other_ask, _answer = _fact(rng)
        if other_ask.split()[-1] != ask.split()[-1]:
            turns += [user(said_too), assistant(reply_too)]
    last = rng.random()
    if last < 0.25:
        return Sample("memory", (*turns[:-1], turns[-1]))
    return Sample("memory", (*turns, user(ask), assistant(answer)))
