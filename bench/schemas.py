"""Which JSON schemas a grammar library can hold an answer to, how fast, and whether it accepts what it should.

    python bench/schemas.py llguidance --vocabulary qwen.tiktoken --bench maskbench/data --suite tests/draft2020-12

For each schema: does it compile, in what time (its first mask included); for each of its instances, token by token:
the time of a mask, and whether the instance is accepted as the schema says. What llguidance claims is counted apart:
the schemas that it compiles by itself, with its own options and a thousand times its own limits; the server, with its
options and bounds (``qwench.text.grammar``), should hold to nearly all of them. ``--bench`` takes files of MaskBench
(part of jsonschemabench), ``--suite`` those of JSON-Schema-Test-Suite, ``--vocabulary`` a file of ranks in tiktoken's
form. The library is llguidance or xgrammar, whichever is installed; the last line is one JSON document.
"""

from __future__ import annotations

import argparse
import base64
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import llguidance

from qwench.text.grammar import Grammars, read_structure
from qwench.text.tokenizer import Tokenizer

END = 248_046
Step = Callable[[int], bool]  # takes a token, if it may come
SHOWN = 12
LONGEST = 64  # bytes of a word
LIMITS = "max_items_in_row initial_lexer_fuel step_lexer_fuel step_max_items max_lexer_states max_grammar_size".split()
FAR = 1000  # times the library's own limits: what it could do without any


class Vocabulary:
    """Words of a file of ranks, and the tags behind them, which no text contains. A tokenizer to the server's code."""

    def __init__(self, path: Path) -> None:
        lines = (line.split() for line in path.read_bytes().splitlines() if line)
        ranks = {int(rank): base64.b64decode(word) for word, rank in lines}
        words = [ranks[rank] for rank in range(len(ranks))]
        tags = range(len(words), len(words) + 33)
        self.tokens = [*words, *(f"<|tag {tag}|>".encode() for tag in tags)]
        self._ids = {word: rank for rank, word in enumerate(words)}
        self.special_token_ids = list(tags)
        self.size, self.added = len(self.tokens), frozenset(tags)
        self.eos_token_id, self.bos_token_id = END, None
        self.ours = llguidance.LLTokenizer(llguidance.TokenizerWrapper(self), n_vocab=self.size, eos_token=END)

    def __call__(self, text: bytes) -> list[int]:
        """The longest word each time: another division than the real one, the same for both libraries."""
        ids, at = list[int](), 0
        while at < len(text):
            end = next(end for end in range(min(len(text), at + LONGEST), at, -1) if text[at:end] in self._ids)
            ids.append(self._ids[text[at:end]])
            at = end
        return ids

    def token_bytes(self, token: int) -> bytes:
        return self.tokens[token]

    def encode_plain(self, text: str) -> list[int]:
        return self(text.encode("utf-8", "replace"))

    def encode(self, value: Any) -> list[int]:
        return self(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))


class WithLlguidance:
    """As the server uses it."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._grammars = Grammars(cast(Tokenizer, vocabulary), frozenset({END}))
        self._tokenizer, own = vocabulary.ours, llguidance.LLParserLimits()
        self._far = llguidance.LLParserLimits(**{name: FAR * getattr(own, name) for name in LIMITS})
        self.compile({})  # lays out the vocabulary

    def claims(self, schema: Any) -> bool:
        """Whether the library alone can make an automaton of it."""
        try:
            source = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema))
        except ValueError:
            return False
        return not llguidance.LLMatcher(self._tokenizer, source, log_level=0, limits=self._far).is_error()

    def compile(self, schema: Any) -> Any:
        grammar = read_structure({"guided_json": schema})
        assert grammar is not None
        return self._grammars.compile(grammar)

    def walk(self, compiled: Any) -> tuple[Step, Step]:
        matcher = compiled.deep_copy()

        def allowed(token: int) -> bool:
            mask = matcher.compute_bitmask()
            return not matcher.is_error() and bool(mask[token // 8] >> token % 8 & 1)

        return allowed, matcher.consume_token


class WithXgrammar:
    def __init__(self, vocabulary: Vocabulary) -> None:
        import xgrammar  # type: ignore[import-not-found]

        self._library = xgrammar
        kind = xgrammar.VocabType.RAW
        info = xgrammar.TokenizerInfo(vocabulary.tokens, kind, stop_token_ids=[END])
        self._compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
        self._mask = xgrammar.allocate_token_bitmask(1, info.vocab_size)

    def claims(self, _: Any) -> bool:
        """Not asked: it compiles without bounds, so that what it claims is what it compiles."""
        return False

    def compile(self, schema: Any) -> Any:
        return self._compiler.compile_json_schema(json.dumps(schema), any_whitespace=True, strict_mode=False)

    def walk(self, compiled: Any) -> tuple[Step, Step]:
        matcher = self._library.GrammarMatcher(compiled)

        def allowed(token: int) -> bool:
            matcher.fill_next_token_bitmask(self._mask)
            return bool(int(self._mask[0, token // 32]) >> token % 32 & 1)

        return allowed, matcher.accept_token


def cases(args: argparse.Namespace) -> Iterator[tuple[str, Any, list[dict[str, Any]]]]:
    """The set, a schema, and its instances with whether they are valid."""
    for path in sorted(args.bench.glob("*.json"))[:: args.every] if args.bench else ():
        found = json.loads(path.read_text(encoding="utf-8"))
        yield "jsonschemabench", found["schema"], found["tests"]
    for path in sorted(args.suite.glob("*.json")) if args.suite else ():
        for found in json.loads(path.read_text(encoding="utf-8")):
            yield "JSON-Schema-Test-Suite", found["schema"], found["tests"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", choices=("llguidance", "xgrammar"))
    parser.add_argument("--vocabulary", type=Path, required=True)
    parser.add_argument("--bench", type=Path)
    parser.add_argument("--suite", type=Path)
    parser.add_argument("--every", type=int, default=1, help="take every so-many-th file of the bench")
    parser.add_argument("--seconds", type=float, default=5.0, help="a schema that takes longer to compile has failed")
    args = parser.parse_args()
    vocabulary = Vocabulary(args.vocabulary)
    start = time.perf_counter()
    library = (WithLlguidance if args.library == "llguidance" else WithXgrammar)(vocabulary)
    report: dict[str, Any] = {"library": args.library, "prepare_seconds": round(time.perf_counter() - start, 2)}
    for name, schema, tests in cases(args):
        instances = [(vocabulary.encode(test["data"]), test["valid"]) for test in tests]
        judge(library, schema, instances, report.setdefault(name, fresh()), args.seconds)
    for found in report.values():
        if isinstance(found, dict):
            for kind in ("compile_ms", "mask_us"):
                found[kind] = spread(found[kind])
            found["reasons"] = dict(found["reasons"].most_common(SHOWN))
    print(json.dumps(report))


def fresh() -> dict[str, Any]:
    """``claimed`` by the library alone, and ``held`` of these by the server; ``compiled``: held, claimed or not."""
    counts = dict.fromkeys(("schemas", "claimed", "held", "compiled", "valid", "accepted", "invalid", "refused"), 0)
    return {**counts, "compile_ms": [], "mask_us": [], "reasons": Counter()}


def judge(
    library: Any, schema: Any, instances: list[tuple[list[int], bool]], found: dict[str, Any], seconds: float
) -> None:
    claimed = library.claims(schema)
    found["schemas"] += 1
    found["claimed"] += claimed
    start = time.perf_counter()
    try:
        compiled = library.compile(schema)
    except Exception as error:  # noqa: BLE001 - each library has its own
        told = str(error).removeprefix("guided_json cannot be held to: ").splitlines()[0][:60]
        found["reasons"][f"claimed, but {told}" if claimed else told] += 1
        return
    taken = time.perf_counter() - start
    found["compile_ms"].append(1000 * taken)
    if taken > seconds:
        found["reasons"]["took too long"] += 1
        return
    found["compiled"] += 1
    found["held"] += claimed
    for tokens, valid in instances:
        kinds = ("valid", "accepted") if valid else ("invalid", "refused")
        found[kinds[0]] += 1
        found[kinds[1]] += accepts(library, compiled, tokens, found["mask_us"]) == valid


def accepts(library: Any, compiled: Any, tokens: list[int], times: list[float]) -> bool:
    allowed, take = library.walk(compiled)
    for token in (*tokens, END):
        start = time.perf_counter()
        may = allowed(token)
        times.append(1e6 * (time.perf_counter() - start))
        if not may:
            return False
        if token != END:
            take(token)
    return True


def spread(values: list[float]) -> dict[str, float]:
    """Median, the worst of a hundred, the worst."""
    values = sorted(values) or [0.0]
    return {
        "median": round(statistics.median(values), 2),
        "p99": round(values[int(0.99 * (len(values) - 1))], 2),
        "most": round(values[-1], 2),
    }


if __name__ == "__main__":
    main()
