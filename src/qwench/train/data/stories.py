"""Very short stories from a grammar of plots; every story uses the character and the thing it was asked for."""

from __future__ import annotations

from random import Random

from qwench.train.data.sample import Sample, assistant, held_out, user
from qwench.train.data.words import ADJECTIVES, ANIMALS, FOODS, NAMES, PLACES, THINGS, article

ASK = (
    "Write a story about {c} and {t}.", "Tell me a story about {c} and {t}.", "Write a short story about {c} and {t}.",
    "Please tell me a story about {c} and {t}.", "A story about {c} and {t}, please.", "Tell a story about {c} and {t}.",
)  # fmt: skip
ASK_ANY = ("Tell me a story.", "Write a short story.", "Write a story.", "Tell me a short story.")
OPEN = (
    "Once upon a time there was {ac} called {n}.", "There once was {aca} called {n}.", "{n} was {aca}.",
    "A {a} {c} called {n} lived near the {p}.",
)  # fmt: skip
PLOTS: tuple[tuple[tuple[str, ...], ...], ...] = (
    (("One day {n} found {at} in the {p}.", "One morning {n} saw {at} near the {p}."), ('"Whose {t} is this?" asked {n}.', "{n} did not know whose {t} it was."),
     ("{n} asked {m}, but it was not the {t} of {m}.", "{m} said it was not hers."), ("Then {o} came and cried.", "Then {o} came and looked sad."),
     ('"I lost my {t}," said {o}.',), ("{n} gave the {t} back.", "So {n} gave {o} the {t}."), ("{o} was happy and they became friends.",)),
    (("{n} wanted {at} more than anything.", "More than anything {n} wanted {at}."), ("But {n} had no money.", "But {at} was too dear."),
     ("So {n} helped {m} in the {p} all day.", "So {n} worked for {m} in the {p}."), ("In the evening {m} said thank you.",),
     ("{m} gave {n} {aat}.",), ("{n} was very proud of it.", "{n} danced all the way home.")),
    (("{n} had {aat}.",), ("One day the {t} broke.", "One day the {t} fell and broke."), ("{n} was very sad.", "{n} sat down and cried."),
     ("{m} came and looked at the {t}.",), ('"I can mend it," said {m}.',), ("Soon the {t} was as good as new.",), ('"Thank you!" said {n}.',)),
    (("{n} and {m} both wanted the {t}.", "{n} and {m} saw {at} at the same time."), ('"It is mine!" said {n}.',), ('"No, it is mine!" said {m}.',),
     ("They pulled and pulled until they fell down.",), ("Then they had to laugh.", "Then both of them laughed."), ("From that day they shared the {t}.",)),
    (("One night {n} heard a noise in the {p}.",), ("{n} was afraid, but went to look.", "{n} took {at} and went to look."), ("It was only {o}, who had lost the way.",),
     ("{n} gave {o} some {f} and the {t}.",), ("In the morning they walked home together.",)),
    (("It rained all day and {n} was bored.", "It was a cold day and {n} was bored."), ("Then {n} found {aat} under the bed.",), ("{n} showed the {t} to {m}.",),
     ("They played with it until the sun came out.",), ("It was the best day of all.",)),
    (("{n} lost the {t} in the {p}.",), ("{n} looked under the leaves, but it was not there.", "{n} looked behind every tree."), ("{m} helped to look.",),
     ("At last they saw the {t} in the water.", "At last they found the {t} next to a stone."), ("{n} gave {m} some {f} to say thank you.",), ("They ate and were happy.",)),
    (("It was the birthday of {m}.",), ("{n} had no present.", "{n} did not know what to give."), ("So {n} made {at} from wood.", "So {n} put {at} in a box."),
     ("{m} opened it and smiled.",), ('"I always wanted {at}!" said {m}.',), ("They ate {f} and sang.",)),
    (("{n} found {aat} and it could talk.", "One day the {t} of {n} began to talk."), ('"Take me to the {p}," said the {t}.',), ("So {n} took it there.",),
     ("There they met {o}.",), ('"I waited for you," said {o}.',), ("Now {n} had two new friends.",)),
    (("{n} was not strong, but clever.",), ("One day {o} took the {t} and ran to the {p}.", "One day {o} hid the {t} in the {p}."), ("{n} went after {o} and told a funny tale.",),
     ("{o} laughed so much that the {t} fell down.",), ("{n} picked it up and went home.",), ("After that {o} never took a thing again.",)),
)  # fmt: skip


def tell(rng: Random, character: str, thing: str) -> str:
    name, friend = rng.sample(NAMES, 2)
    other = rng.choice([animal for animal in ANIMALS if animal != character])
    adjective, second = rng.choice(ADJECTIVES), rng.choice(ADJECTIVES)
    values = {
        "n": name, "m": friend, "o": "the " + other, "c": character, "t": thing, "a": adjective, "p": rng.choice(PLACES), "f": rng.choice(FOODS),
        "ac": article(character), "at": article(thing), "aca": f"{article(adjective)} {character}", "aat": f"{article(second)} {thing}",
    }  # fmt: skip
    plot = rng.choice(PLOTS)
    sentences = [rng.choice(options).format(**values) for options in (OPEN, *plot)]
    return " ".join(
        sentence[0].upper() + sentence[1:] if sentence[0] != '"' else _spoken(sentence) for sentence in sentences
    )


def _spoken(sentence: str) -> str:
    return sentence[0] + sentence[1].upper() + sentence[2:]


def story(rng: Random, held: bool) -> Sample:
    """Held out: a character with a thing."""
    while True:
        character, thing = rng.choice(ANIMALS), rng.choice(THINGS)
        if held_out("story", character, thing) == held:
            break
    text = tell(rng, character, thing)
    kind = rng.random()
    if kind < 0.3 and not held:
        return Sample("story", text=text)
    if kind < 0.4 and not held:
        return Sample("story", (user(rng.choice(ASK_ANY)), assistant(text)))
    asked = rng.choice(ASK).format(c=article(character), t=article(thing))
    return Sample("story", (user(asked), assistant(text)))
