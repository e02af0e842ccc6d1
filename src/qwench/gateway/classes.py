"""The class of a task: by the operator's rules, else by likeness to the operator's examples, else the named default.

The classifier is TF-IDF over words and word pairs with one centroid a class: it says with what cosine it found a class
and how far the next one was, and says nothing where that is little. Only the standard library: it is a few hundred
examples and one sentence.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

from qwench.gateway.signals import Signals
from qwench.gateway.tiers import TaskClass

WORD = re.compile(r"\w+|[^\w\s]")
READ = 4000  # characters of a request that are compared; its beginning and its end
CLEAR = 1.2  # times the likeness of the second class: less than that is a guess
Vector = Mapping[str, float]


@dataclass(frozen=True)
class ClassFinding:
    """A class, and how it was found. ``likeness``: the cosines of the two nearest classes, where they were compared."""

    task: TaskClass
    because: str
    likeness: tuple[tuple[str, float], ...] = ()


class Classifier:
    """Fitted once to the classes of the settings."""

    def __init__(self, classes: Mapping[str, TaskClass], unknown: TaskClass, threshold: float) -> None:
        self._classes, self._unknown, self._threshold = classes, unknown, threshold
        documents = {name: [Counter(_terms(text)) for text in each.examples] for name, each in classes.items()}
        seen = Counter(term for texts in documents.values() for text in texts for term in text)
        total = sum(map(len, documents.values()))
        self._rarity = {term: math.log((1 + total) / (1 + count)) + 1 for term, count in seen.items()}
        self._centroids: dict[str, list[tuple[str, float]]] = defaultdict(list)  # by term: its weight in each class
        for name, texts in documents.items():
            for term, weight in self._centroid(texts).items():
                self._centroids[term].append((name, weight))

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
        vector = self._vector(Counter(_terms(said)))
        scores: dict[str, float] = defaultdict(float)
        for term, weight in vector.items():
            for name, other in self._centroids.get(term, ()):
                scores[name] += weight * other
        best = tuple(sorted(scores.items(), key=lambda pair: -pair[1])[:2])
        if not best:
            return ClassFinding(self._unknown, "no rule matched, and it shares no word with any example")
        name, score = best[0]
        if score < self._threshold:
            return ClassFinding(self._unknown, f"nothing is like it: {name} {score:.2f}", best)
        if len(best) > 1 and score < CLEAR * best[1][1]:
            return ClassFinding(
                self._unknown, f"{name} {score:.2f} and {best[1][0]} {best[1][1]:.2f} are too near", best
            )
        return ClassFinding(self._classes[name], f"it is like its examples ({score:.2f})", best)

    def _vector(self, terms: Counter[str]) -> Vector:
        """Of length 1; what no example holds has no say."""
        weights = {term: (1 + math.log(n)) * self._rarity[term] for term, n in terms.items() if term in self._rarity}
        # A text most of whose words nobody has seen is like nothing: they count in its length.
        unseen = sum((1 + math.log(n)) ** 2 for term, n in terms.items() if term not in self._rarity)
        length = math.sqrt(sum(weight * weight for weight in weights.values()) + unseen)
        return {term: weight / length for term, weight in weights.items()} if length else {}

    def _centroid(self, texts: Iterable[Counter[str]]) -> Vector:
        total: dict[str, float] = defaultdict(float)
        for text in texts:
            for term, weight in self._vector(text).items():
                total[term] += weight
        length = math.sqrt(sum(weight * weight for weight in total.values()))
        return {term: weight / length for term, weight in total.items()} if length else {}


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
