"""The class of a task: by the operator's rules, else by likeness to the operator's examples, else the named default.

The classifier is TF-IDF over words and word pairs with one centroid a class: it says with what cosine it found a class
and how far the next one was. Where two are near it names none, and says how likely each is; where nothing is like the
request it says nothing. What little likeness is, and what a difference of cosines tells, it learns from its examples,
each compared as if it were not one. Only the standard library: it is a few hundred examples and one sentence.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from qwench.gateway.signals import Signals
from qwench.gateway.tiers import TaskClass

WORD = re.compile(r"\w+|[^\w\s]")
READ = 4000  # characters of a request that are compared; its beginning and its end
CLEAR = 1.2  # times the likeness of the second class: less than that is a guess
LEAST = 0.15  # the cosine below which nothing is alike, where examples are too few to tell
RARE = 0.05  # of the examples may be less like their own kind than what is called alike
COMPARED = 500  # examples that are compared as if they were none, at most
SHARPEST = tuple(2 ** (power / 2) for power in range(21))  # what a difference of cosines is multiplied by
TINY = 1e-9
NEGLIGIBLE = 1e-3  # likelihood of a class that is left out
Vector = Mapping[str, float]


@dataclass(frozen=True)
class ClassFinding:
    """A class, and how it was found. ``likeness``: the cosines of the two nearest classes, where they were compared.
    ``shares``: how likely each class is, where none was named because several are near."""

    task: TaskClass
    because: str
    likeness: tuple[tuple[str, float], ...] = ()
    shares: tuple[tuple[TaskClass, float], ...] = ()


class Classifier:
    """Fitted once to the classes of the settings. ``least``: the cosine below which nothing is alike; without it the
    examples tell."""

    def __init__(self, classes: Mapping[str, TaskClass], unknown: TaskClass, least: float | None = None) -> None:
        self._classes, self._unknown = classes, unknown
        documents = {name: [Counter(_terms(text)) for text in each.examples] for name, each in classes.items()}
        seen = Counter(term for texts in documents.values() for text in texts for term in text)
        texts_of_all = sum(map(len, documents.values()))
        self._rarity = {term: math.log((1 + texts_of_all) / (1 + count)) + 1 for term, count in seen.items()}
        self._centroids: dict[str, list[tuple[str, float]]] = defaultdict(list)  # by term: its weight in each class
        sums = {name: self._sum(texts) for name, texts in documents.items() if texts}
        self._lengths = {name: math.sqrt(_product(total, total)) for name, total in sums.items()}
        for name, total in sums.items():
            for term, weight in total.items():
                self._centroids[term].append((name, weight / self._lengths[name]))
        compared = self._compared(documents, seen, sums)
        self._sharp = _sharpness(compared)
        self._least = _least(compared) if least is None else least

    def find(self, signals: Signals, told: str | None = None) -> ClassFinding:
        """``told`` is the class that the client named; one that nobody knows is the default, and says so."""
        if told is not None:
            known = self._classes.get(told)
            if known is not None:
                return ClassFinding(known, "the client named it")
            return ClassFinding(self._unknown, f"the client named {ascii(told)[:40]}, which is no class")
        said = signals.said.lower()
        for task in self._classes.values():
            reason = _rule(task, signals, said) if task.ruled else None
            if reason is not None:
                return ClassFinding(task, reason)
        return self._guess(signals.said)

    def _guess(self, said: str) -> ClassFinding:
        if not self._centroids:
            return ClassFinding(self._unknown, "no rule matched, and no class has examples")
        scores = self._scores(self._vector(Counter(_terms(said))))
        best = tuple(sorted(scores.items(), key=lambda pair: -pair[1])[:2])
        if best[0][1] <= 0:
            return ClassFinding(self._unknown, "no rule matched, and it shares no word with any example")
        name, score = best[0]
        if score < self._least:
            return ClassFinding(self._unknown, f"nothing is like it: {name} {score:.2f}", best)
        if len(best) > 1 and score < CLEAR * best[1][1]:
            because = f"{name} {score:.2f} and {best[1][0]} {best[1][1]:.2f} are too near"
            return ClassFinding(self._unknown, because, best, self._likely(scores))
        return ClassFinding(self._classes[name], f"it is like its examples ({score:.2f})", best)

    def _scores(self, vector: Vector) -> dict[str, float]:
        """The cosine of every class that has examples."""
        scores = dict.fromkeys(self._lengths, 0.0)
        for term, weight in vector.items():
            for name, other in self._centroids.get(term, ()):
                scores[name] += weight * other
        return scores

    def _likely(self, scores: Mapping[str, float]) -> tuple[tuple[TaskClass, float], ...]:
        """How likely each class is; nothing where the examples do not tell."""
        if not self._sharp:
            return ()
        top, told = max(scores.values()), dict.fromkeys(scores, 0.0)
        for belief, sharp in self._sharp:
            weights = {name: math.exp(sharp * (score - top)) for name, score in scores.items()}
            total = math.fsum(weights.values())
            for name, weight in weights.items():
                told[name] += belief * weight / total
        kept = {name: share for name, share in told.items() if share > NEGLIGIBLE}
        total = math.fsum(kept.values())
        return tuple((self._classes[name], share / total) for name, share in sorted(kept.items(), key=lambda p: -p[1]))

    def _compared(
        self, documents: Mapping[str, list[Counter[str]]], seen: Mapping[str, int], sums: Mapping[str, Vector]
    ) -> list[tuple[str, dict[str, float]]]:
        """The class of examples and the cosines they would have if they were none; of classes with several of them."""
        pairs = [(name, text) for name, texts in documents.items() if len(texts) > 1 for text in texts]
        found = []
        for name, text in pairs[:: max(1, math.ceil(len(pairs) / COMPARED))]:
            mine = self._vector(text)
            asked = self._vector(text, frozenset(term for term in text if seen[term] == 1))
            scores, length = self._scores(asked), self._lengths[name]
            others = length * length - 2 * _product(mine, sums[name]) + _product(mine, mine)  # the rest's, squared
            inner = scores[name] * length - _product(asked, mine)
            scores[name] = inner / math.sqrt(others) if others > TINY else 0.0
            found.append((name, scores))
        return found

    def _vector(self, terms: Counter[str], unknown: frozenset[str] = frozenset()) -> dict[str, float]:
        """Of length 1; what no example holds, and what is ``unknown``, has no say."""
        known = {term: n for term, n in terms.items() if term in self._rarity and term not in unknown}
        weights = {term: (1 + math.log(n)) * self._rarity[term] for term, n in known.items()}
        # A text most of whose words nobody has seen is like nothing: they count in its length.
        unseen = sum((1 + math.log(n)) ** 2 for term, n in terms.items() if term not in known)
        length = math.sqrt(_product(weights, weights) + unseen)
        return {term: weight / length for term, weight in weights.items()} if length else {}

    def _sum(self, texts: Iterable[Counter[str]]) -> Vector:
        total: dict[str, float] = defaultdict(float)
        for text in texts:
            for term, weight in self._vector(text).items():
                total[term] += weight
        return total


def _product(one: Vector, other: Vector) -> float:
    return math.fsum(weight * other[term] for term, weight in one.items() if term in other)


def _least(compared: Sequence[tuple[str, Mapping[str, float]]]) -> float:
    """The cosine that all but a few examples would reach if they were none."""
    reached = sorted(max(scores.values()) for _, scores in compared)
    place = math.floor(RARE * (len(reached) + 1)) - 1
    return reached[place] if place >= 0 else LEAST


def _sharpness(compared: Sequence[tuple[str, Mapping[str, float]]]) -> list[tuple[float, float]]:
    """The factors that may make cosines logarithms of how likely classes are, each with the belief in it that the
    examples' own classes suggest: a few examples that are told apart without a mistake do not make one certain."""
    if not compared:
        return []
    logs = []
    for sharp in SHARPEST:
        told = 0.0
        for name, scores in compared:
            top = max(scores.values())
            others = math.fsum(math.exp(sharp * (score - top)) for score in scores.values())
            told += sharp * (scores[name] - top) - math.log(others)
        logs.append(told)
    beliefs = [math.exp(each - max(logs)) for each in logs]
    total = math.fsum(beliefs)
    pairs = zip(beliefs, SHARPEST, strict=True)
    return [(belief / total, sharp) for belief, sharp in pairs if belief > NEGLIGIBLE * total]


def _rule(task: TaskClass, signals: Signals, said: str) -> str | None:
    """Which of the class's rules holds; None if none does."""
    if task.tools is not None and task.tools == signals.tools:
        return "it offers tools" if task.tools else "it offers no tools"
    word = next((word for word in task.words if re.search(rf"(?<!\w){re.escape(word)}(?!\w)", said)), None)
    if word is not None:
        return f"it says {word!a}"
    found = task.pattern.search(signals.said) if task.pattern else None
    return None if found is None else "its pattern matches"


def _terms(text: str) -> Iterable[str]:
    if len(text) > 2 * READ:
        text = f"{text[:READ]} {text[-READ:]}"
    words = WORD.findall(text.lower())
    yield from words
    yield from (f"{first} {second}" for first, second in pairwise(words))
