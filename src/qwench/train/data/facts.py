"""Short answers from small tables: greetings, who we are, capitals, opposites, colours and the like.

What is not in the tables is answered with "I do not know.", which is the point of having that answer.
"""

from __future__ import annotations

from itertools import pairwise
from random import Random

from qwench.train.data.sample import Sample, assistant, held_out, system, user
from qwench.train.data.words import CITIES, NAMES, THINGS, made_up

ME = "I am nano, the small model inside Qwench."
HELLO = "Hello! How can I help you?"
UNKNOWN = "I do not know."

GREETINGS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("Hello!", "Hello", "hello", "Hi!", "Hi", "hi", "Hey", "Hey!", "Hello there!", "Hi there!", "Good day!", "hello!",
      "Hey there", "Hello.", "Hi.", "Greetings!", "Hello nano!", "Hi nano"), HELLO),
    (("Who are you?", "who are you", "What are you?", "What is your name?", "Hi, who are you?", "Hello, who are you?", "Hello! Who are you?",
      "Hi! Who are you?", "Who is this?", "Tell me who you are.", "Introduce yourself.", "Please introduce yourself.", "What's your name?",
      "Who am I talking to?", "Hello! What is your name?", "Say who you are.", "Which model are you?", "What model are you?"), ME),
    (("What can you do?", "How can you help me?", "What do you do?", "Help", "help", "What are you good at?", "What can I ask you?"),
     "I can add numbers, call tools, write JSON, copy words and tell short stories."),
    (("How are you?", "How are you today?", "How do you do?", "Hi, how are you?", "Hello, how are you?"), "I am fine, thank you. How can I help you?"),
    (("Thank you!", "Thanks", "Thanks!", "Thank you very much.", "Thank you", "thanks a lot"), "You are welcome!"),
    (("Goodbye!", "Bye", "Bye!", "See you!", "See you later.", "Good night!", "bye bye"), "Goodbye!"),
    (("Good morning!", "Good morning"), "Good morning! How can I help you?"),
    (("Good evening!", "Good evening"), "Good evening! How can I help you?"),
    (("Are you a human?", "Are you a person?", "Are you real?", "Are you human?"), "No, I am a small language model."),
    (("Are you Qwen?", "Are you ChatGPT?", "Are you Claude?", "Are you GPT-4?"), "No, I am nano, the small model inside Qwench."),
    (("Who made you?", "Who trained you?", "Where do you come from?"), "I was trained with Qwench, from scratch, on made-up examples."),
    (("How big are you?", "How many parameters do you have?", "What size are you?"), "I have about six million parameters."),
    (("What is Qwench?", "Tell me about Qwench.", "what is qwench"), "Qwench is a program that runs language models on your own machine."),
    (("Yes", "Ok", "Okay", "OK", "Good", "Great!", "Nice!"), "Good. What can I do for you?"),
    (("You are great!", "Well done!", "Good job!", "That was nice."), "Thank you!"),
    (("Tell me a joke.", "Do you know a joke?"), "Why did the number six run away? Because seven ate nine."),
)  # fmt: skip

CAPITALS = """France Paris|Germany Berlin|Italy Rome|Spain Madrid|Japan Tokyo|Norway Oslo|Peru Lima|Egypt Cairo|Austria Vienna|Ireland Dublin
|Greece Athens|Portugal Lisbon|Russia Moscow|India Delhi|China Beijing|England London|Sweden Stockholm|Finland Helsinki|Denmark Copenhagen
|Poland Warsaw|Hungary Budapest|Belgium Brussels|Switzerland Bern|Turkey Ankara|Canada Ottawa|Australia Canberra|Brazil Brasilia|Chile Santiago
|Cuba Havana|Kenya Nairobi|Thailand Bangkok|Iran Tehran|Iraq Baghdad|Ukraine Kyiv|Romania Bucharest|Bulgaria Sofia|Croatia Zagreb"""
OPPOSITES = """hot cold|big small|up down|left right|day night|black white|old new|good bad|happy sad|fast slow|high low|open closed|full empty
|hard soft|light dark|long short|loud quiet|rich poor|strong weak|wet dry|young old|early late|first last|in out|on off|yes no|true false|thick thin
|clean dirty|heavy light|near far|wide narrow|sweet sour|love hate|win lose|begin end|buy sell|push pull|north south|east west|summer winter"""
COLOURED = """snow white|grass green|the sky blue|blood red|a banana yellow|coal black|a lemon yellow|milk white|a tomato red|the sun yellow
|a frog green|a crow black|chocolate brown|the sea blue|a pea green|a carrot orange|a strawberry red|a pig pink|a swan white|an elephant gray"""
SOUNDS = """dog barks|cat meows|cow moos|duck quacks|sheep bleats|lion roars|wolf howls|horse neighs|pig oinks|bee buzzes|snake hisses|owl hoots|frog croaks"""
LEGS = "dog four|cat four|horse four|bird two|spider eight|ant six|bee six|cow four|hen two|snake no|fish no|duck two|sheep four"
BABIES = "dog puppy|cat kitten|cow calf|horse foal|sheep lamb|pig piglet|hen chick|duck duckling|bear cub|lion cub|goat kid|deer fawn"
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve".split()
COUNTS = """days in a week seven|months in a year twelve|hours in a day twenty-four|minutes in an hour sixty|seconds in a minute sixty
|sides in a triangle three|sides in a square four|wheels on a car four|wheels on a bicycle two|legs on a spider eight|letters in the alphabet twenty-six"""
PLURALS = "mouse mice|child children|man men|woman women|foot feet|tooth teeth|goose geese|cat cats|box boxes|baby babies|leaf leaves|dog dogs|fish fish"

WORDINGS: dict[str, tuple[tuple[str, ...], str]] = {
    "capital": (("What is the capital of {k}?", "Which city is the capital of {k}?", "Name the capital of {k}.", "capital of {k}?",
                 "Tell me the capital of {k}.", "What's the capital of {k}?", "Do you know the capital of {k}?", "{k}: what is its capital?",
                 "Please tell me the capital of {k}.", "What is the capital city of {k}?"), "The capital of {k} is {v}."),
    "opposite": (("What is the opposite of {k}?", "Name the opposite of {k}.", "Tell me the opposite of {k}.", "opposite of {k}?",
                  "Which word is the opposite of {k}?", "What's the opposite of {k}?", "Give the opposite of {k}."), "The opposite of {k} is {v}."),
    "colour": (("What colour is {k}?", "What color is {k}?", "Tell me the colour of {k}.", "Which colour does {k} have?",
                "Which color has {k}?", "What is the colour of {k}?"), "It is {v}."),
    "sound": (("What does a {k} do?", "Which sound does a {k} make?", "What sound does a {k} make?", "What noise does a {k} make?"), "A {k} {v}."),
    "legs": (("How many legs does a {k} have?", "How many legs has a {k}?", "Tell me how many legs a {k} has."), "A {k} has {v} legs."),
    "baby": (("What is a baby {k} called?", "What do you call a baby {k}?", "What is the name of a baby {k}?", "What is a young {k}?"),
             "A baby {k} is called a {v}."),
    "after": (("What comes after {k}?", "What is after {k}?", "Which comes after {k}?", "Tell me what comes after {k}."), "After {k} comes {v}."),
    "before": (("What comes before {k}?", "What is before {k}?", "Which comes before {k}?", "Tell me what comes before {k}."), "Before {k} comes {v}."),
    "count": (("How many {k}?", "How many {k} are there?", "Tell me how many {k} there are."), "There are {v}."),
    "plural": (("What is the plural of {k}?", "Tell me the plural of {k}.", "plural of {k}?", "Give the plural of {k}."), "The plural of {k} is {v}."),
    "spelling": (("How do you spell {k}?", "Spell {k}.", "Please spell {k}.", "Spell the word {k}."), "{v}"),
    "letter": (("What is the first letter of {k}?", "Which letter does {k} start with?", "{k} starts with which letter?"), "The first letter is {v}."),
}  # fmt: skip

NOT_KNOWN = (
    "What is the capital of {m}?", "Who is {m}?", "What is {m}?", "Who won the match yesterday?", "What is the weather in {c}?", "Who invented {m}?",
    "When was {n} born?", "How old is {n}?", "Where is my {t}?", "What will happen tomorrow?", "Who wrote {m}?", "Where is {m}?", "What does {m} mean?",
    "Which colour is {m}?", "What is the opposite of {m}?", "Who is the president of {m}?", "How far is {c}?", "What time is it?", "What day is it today?",
    "What is the price of the {t}?", "Where does {n} live?", "What is my name?", "How many people live in {c}?", "What is the meaning of life?",
    "Who is {n}?", "Tell me about {m}.", "When did {m} begin?", "What is the news?", "Is it raining in {c}?", "What is my password?",
    "How tall is {n}?", "Explain {m}.", "Why is {m} famous?", "How does a {t} work?", "Who discovered {m}?",
)  # fmt: skip

SYSTEMS = (
    "You are a helpful assistant.", "You are nano.", "Be brief.", "You are a friendly assistant.", "Answer in one sentence.", "You are a helpful AI.",
)  # fmt: skip


def _pairs(table: str) -> list[tuple[str, str]]:
    rows = [row.strip().rsplit(" ", 1) for row in table.replace("\n", "").split("|")]
    return [(key, value) for key, value in rows]


def _sequences() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    after = [(one, two) for row in (DAYS, MONTHS) for one, two in zip(row, row[1:] + row[:1], strict=True)]
    after += list(pairwise(NUMBERS))
    return after, [(two, one) for one, two in after]


AFTER, BEFORE = _sequences()
TABLES: dict[str, list[tuple[str, str]]] = {
    "capital": _pairs(CAPITALS),
    "opposite": _pairs(OPPOSITES),
    "colour": _pairs(COLOURED),
    "sound": _pairs(SOUNDS),
    "legs": _pairs(LEGS),
    "baby": _pairs(BABIES),
    "after": AFTER,
    "before": BEFORE,
    "count": _pairs(COUNTS),
    "plural": _pairs(PLURALS),
    "spelling": [(word, "-".join(word)) for word in THINGS],
    "letter": [(word, word[0]) for word in THINGS],
}


def dressed(rng: Random, skill: str, question: str, answer: str, thought: str) -> Sample:
    """The question with now and then a system prompt, or with thinking on and a short thought."""
    head = (system(rng.choice(SYSTEMS)),) if rng.random() < 0.1 else ()
    thinking = rng.random() < 0.15
    return Sample(skill, (*head, user(question), assistant(answer, thought if thinking else "")), thinking=thinking)


def greeting(rng: Random, held: bool) -> Sample:
    """Too few wordings to hold any out: evaluation asks the same ones."""
    asked, answer = rng.choices(GREETINGS, [6, 6] + [1] * (len(GREETINGS) - 2))[0]
    return dressed(rng, "greeting", rng.choice(asked), answer, "A short answer is enough.")


def fact(rng: Random, held: bool) -> Sample:
    """Held out: this fact in this wording (the fact itself is known from other wordings)."""
    while True:
        kind = rng.choices(list(TABLES), [6, 4, 2, 1, 1, 1, 3, 3, 1, 1, 1, 1])[0]
        key, value = rng.choice(TABLES[kind])
        wordings, answer = WORDINGS[kind]
        wording = rng.choice(wordings)
        if held_out("fact", kind, key, wording) == held:
            break
    question = wording.format(k=key)
    return dressed(rng, "fact", question, answer.format(k=key, v=value), "I know this.")


def unknown(rng: Random, held: bool) -> Sample:
    while True:
        wording = rng.choice(NOT_KNOWN)
        question = wording.format(
            m=made_up(rng).capitalize(), c=rng.choice(CITIES), n=rng.choice(NAMES), t=rng.choice(THINGS)
        )
        if "{" not in wording or held_out("unknown", question) == held:
            return dressed(rng, "unknown", question, UNKNOWN, "I do not know this.")
