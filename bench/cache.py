"""What is read again: conversations of the 0.8B shape on this CPU, beside llama.cpp's server in the same run.

    .venv/bin/python bench/cache.py [--tokens 4096] [--peer-path FOLDER] [--file MODEL.gguf]

Both sides load one GGUF file and get the same token ids, turn by turn and in turns. Prompts are random ids cut into
messages; nothing depends on what they say. Prints the table of docs/cache.md and keeps the raw samples under
bench/results. `make bench-cache` runs it. Where others wait for the machine, `--parts second,agent --into FILE`
measures some of it and adds the samples to a file's; the table is of all that the file holds.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from qwench.config import EngineConfig
from qwench.engine.client import EngineClient
from qwench.engine.request import Marks, SamplingParams
from qwench.errors import UsageError

ROOT = Path(__file__).resolve().parents[1]
IDS = range(1000, 100_000)
OPENING = 6  # tokens of a turn's opening and, where a model thinks, of its thought's


@dataclass(frozen=True)
class Asked:
    """One answer: seconds to its first token, prompt tokens that were read for it, and what was said."""

    seconds: float
    read: int
    said: list[int]


@dataclass
class Row:
    """One line of the table: what was new to the side, what it read, and how long the first token took beside cold."""

    name: str
    side: str
    prompt: int
    new: int
    read: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    cold_seconds: list[float] = field(default_factory=list)

    def line(self) -> str:
        read, seconds = statistics.median(self.read), statistics.median(self.seconds)
        kept = 1 - max(0, read - self.new) / max(1, self.prompt - self.new)
        cold = statistics.median(self.cold_seconds)
        counts = f"{self.prompt:,} | {self.new:,} | {read:,.0f} | {kept:.1%}"
        return f"| {self.name} | {self.side} | {counts} | {seconds:.2f} s | {cold:.2f} s | {seconds / cold:.1%} |"


@dataclass
class Samples:
    """All that was measured, this time and, where they share a file, before."""

    rows: list[Row] = field(default_factory=list)
    overhead: list[dict[str, float]] = field(default_factory=list)
    forks: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, path: Path | None) -> Samples:
        if path is None or not path.exists():
            return cls()
        kept = json.loads(path.read_text(encoding="utf-8"))
        return cls([Row(**row) for row in kept["rows"]], kept["overhead"], kept["forks"])

    def row(self, side: str, name: str) -> Row:
        found = next((row for row in self.rows if (row.name, row.side) == (name, side)), None)
        if found is None:
            found = Row(name, side, 0, 0)
            self.rows.append(found)
        return found


@dataclass(frozen=True)
class Conversation:
    """Messages as ids; ``ends`` count the tokens before each next one."""

    ids: list[int]
    ends: tuple[int, ...]

    def say(self, *messages: Sequence[int]) -> Conversation:
        ids, ends = list(self.ids), list(self.ends)
        for message in messages:
            ids += message
            ends.append(len(ids))
        return Conversation(ids, tuple(ends))

    def until(self, end: int) -> Conversation:
        return Conversation(self.ids[:end], tuple(each for each in self.ends if each <= end))


class Side(Protocol):
    """An engine that is asked one prompt after the other."""

    name: str

    def ask(self, conversation: Conversation, opening: Sequence[int], tokens: int) -> Asked: ...

    def close(self) -> None: ...


class Ours:
    """This engine in this process."""

    name = "Qwench"

    def __init__(self, file: Path, window: int, **settings: Any) -> None:
        own = {"memory": 3 * 2**30 if settings.get("prefix_cache", True) else None, **settings}
        config = EngineConfig(model=str(file), device="cpu", max_model_len=window, max_num_seqs=9, **own)
        self.client = EngineClient(config)
        self.client.start()
        self.client.wait_ready()

    def ask(self, conversation: Conversation, opening: Sequence[int], tokens: int) -> Asked:
        return self.choices(conversation, opening, 1, tokens)[0]

    def choices(self, conversation: Conversation, opening: Sequence[int], count: int, tokens: int) -> list[Asked]:
        ids = [*conversation.ids, *opening]
        sampling = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
        start = time.perf_counter()
        marks = Marks(conversation.ends, conversation.ends[:1])
        answers = []
        for generation in self.client.submit_choices(ids, [sampling] * count, marks=marks):
            seconds, cached, said = 0.0, 0, list[int]()
            for event in generation:
                cached += event.cached_tokens
                said += event.token_ids
                seconds = seconds or (time.perf_counter() - start if said else 0.0)
            answers.append(Asked(seconds, len(ids) - cached, said))
        return answers

    def close(self) -> None:
        self.client.close()


class LlamaServer:
    """llama.cpp's server over HTTP, with its defaults but for the window and one slot."""

    name = "llama-server"

    def __init__(self, program: Path, file: Path, window: int, threads: int) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        command = [program, "-m", file, "-c", window, "-np", 1, "-t", threads, "--port", self.port]
        self.process = subprocess.Popen(
            [str(word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and self.process.poll() is None:
            with suppress(OSError):
                if self._talk("GET", "/health").get("status") == "ok":
                    return
            time.sleep(0.2)
        raise UsageError(f"{program} did not come to serve {file}; start it by hand to see why.")

    def ask(self, conversation: Conversation, opening: Sequence[int], tokens: int) -> Asked:
        body = {
            "prompt": [*conversation.ids, *opening],
            "n_predict": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "return_tokens": True,
            "cache_prompt": True,
        }
        start = time.perf_counter()
        told = self._talk("POST", "/completion", json.dumps(body))
        seconds = time.perf_counter() - start - told["timings"]["predicted_ms"] / 1000
        return Asked(seconds, told["timings"]["prompt_n"], told["tokens"])

    def _talk(self, method: str, path: str, body: str | None = None) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        connection.request(method, path, body, {"content-type": "application/json"})
        with connection.getresponse() as answer:
            return json.load(answer)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


class Script:
    """The conversations of the table, the same for every side; ``size`` tokens is the longest first prompt."""

    def __init__(self, seed: int, size: int) -> None:
        self.rng = random.Random(seed)
        self.size = size

    def words(self, count: int) -> list[int]:
        return self.rng.choices(IDS, k=count)

    def opening(self) -> Conversation:
        """A system prompt with tools, and messages of different lengths, of ``size`` tokens in all."""
        told = Conversation([], ()).say(self.words(self.size // 4))
        while len(told.ids) < self.size - 200:
            told = told.say(self.words(self.rng.randint(30, 300)))
        return told.say(self.words(self.size - len(told.ids)))

    def cold(self, side: Side, like: Conversation) -> float:
        """Seconds to the first token of a prompt as long as ``like`` that shares nothing with any other."""
        fresh = Conversation(self.words(len(like.ids)), like.ends)
        return side.ask(fresh, self.words(OPENING), 1).seconds


def second_turn(script: Script, side: Side, row: Callable[[str], Row]) -> None:
    """The template drops the first answer's reasoning: the second prompt leaves the first where its thought began."""
    turn, think = script.opening(), script.words(OPENING)
    first = side.ask(turn, think, 12)
    again = turn.say([*think[:3], *first.said[-6:], *script.words(24)], script.words(60))
    asked = side.ask(again, think, 1)
    add(row("second turn, reasoning dropped"), again, asked, 6 + 24 + 60 + OPENING, first.seconds)


def shared_system(script: Script, side: Side, row: Callable[[str], Row]) -> None:
    """Two users under one long system prompt."""
    system = Conversation([], ()).say(script.words(script.size * 3 // 4))
    one, other = (system.say(script.words(100)) for _ in range(2))
    first = side.ask(one, script.words(OPENING), 8)
    add(row("same system prompt, another user"), other, side.ask(other, script.words(OPENING), 1), 106, first.seconds)


def agent(script: Script, side: Side, row: Callable[[str], Row]) -> None:
    """Twenty turns that only append: a call, its result, and so on; then back to the third turn."""
    told = script.opening().until(script.size // 2)
    turns, read, new, seconds, prompt = [], 0, 0, 0.0, 0
    for turn in range(20):
        think = script.words(3)
        asked = side.ask(told, think, 4)
        if turn:
            read, seconds, prompt = read + asked.read, seconds + asked.seconds, prompt + len(told.ids) + 3
            new += 1 + 60 + 3  # the last token said, the result and the opening
        told = told.say([*think, *asked.said], script.words(60))
        turns.append(told)
    cold = script.cold(side, turns[9])
    line = row("agent session, turns 2 to 20 together")
    line.prompt, line.new = prompt, new
    line.read.append(read)
    line.seconds.append(seconds)
    line.cold_seconds.append(19 * cold)
    branch = turns[2].say(script.words(50))
    asked = side.ask(branch, script.words(3), 1)
    add(row("branch back to its turn 3"), branch, asked, 53, script.cold(side, branch))


def add(row: Row, conversation: Conversation, asked: Asked, new: int, cold: float) -> None:
    row.prompt, row.new = len(conversation.ids) + OPENING, new
    row.read.append(asked.read)
    row.seconds.append(asked.seconds)
    row.cold_seconds.append(cold)


def restart(script: Script, file: Path, window: int, row: Callable[[str], Row]) -> None:
    """The first turn in a process that is killed, the second in another over the same folder."""
    seed = script.rng.randrange(2**30)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--file", str(file), "--tokens", str(script.size)]
        child = subprocess.Popen(
            [*command, "--die-in", folder, "--seed", str(seed)], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        assert child.stdout is not None
        cold = float(child.stdout.readline())
        child.send_signal(signal.SIGKILL)
        child.wait()
        ours = Ours(file, window, cache_dir=folder)
        same = Script(seed, script.size)
        turn = same.opening().say(same.words(60))
        add(row("second turn after kill -9 and restart"), turn, ours.ask(turn, same.words(OPENING), 1), 66, cold)
        ours.close()


def first_half(seed: int, size: int, file: Path, window: int, folder: str) -> None:
    """In a process of its own: the first turn; once it is on disk its seconds are printed, and the end is awaited."""
    script = Script(seed, size)
    ours = Ours(file, window, cache_dir=folder)
    seconds = ours.ask(script.opening(), script.words(OPENING), 8).seconds
    while len(list(Path(folder).glob("*/*.state"))) < ours.client.stats().disk_entries:
        time.sleep(0.05)
    print(seconds, flush=True)
    time.sleep(3600)


Part = Callable[[Script, Side, Callable[[str], Row]], None]
TALKS: dict[str, Part] = {"second": second_turn, "system": shared_system, "agent": agent}


def overhead(script: Script, ours: Ours, without: Ours, runs: int, found: list[dict[str, float]]) -> None:
    """Cold prompts with and without cuts and snapshots, in pairs: seconds of the clock and of the processor.

    In memory that was all in use before, as that of a server is: the system's zeros for what is touched for the first
    time are paid once.
    """
    like = script.opening()
    script.cold(without, like)
    while not ours.client.stats().evictions:
        script.cold(ours, like)
    for run in range(runs):
        pair = {}
        for on in (True, False) if run % 2 else (False, True):  # neither is always the first of a pair
            start, name = time.process_time(), "with" if on else "without"
            pair[name] = script.cold(ours if on else without, like)
            pair[f"{name}, processor"] = time.process_time() - start
        found.append(pair)


def fork(script: Script, ours: Ours, count: int) -> dict[str, Any]:
    """What ``count`` answers to one prompt cost beyond the first, as a share of as many cold prompts."""
    turn = script.opening()
    start = time.perf_counter()
    asked = ours.choices(turn, script.words(OPENING), count, 1)
    seconds = time.perf_counter() - start
    first = min(each.seconds for each in asked)
    return {
        "count": count,
        "seconds": seconds,
        "first": first,
        "read": sum(each.read for each in asked),
        "prompt": len(turn.ids) + OPENING,
        "share": (seconds - first) / (count * first),
    }


def find_server(path: str | None) -> Path | None:
    from qwench.bench.llama import find_program

    try:
        return find_program("llama-server", "llama.cpp", {"llama.cpp": Path(path)} if path else {})
    except UsageError as error:
        print(f"without llama-server: {error.message}", file=sys.stderr)
        return None


def converse(samples: Samples, parts: Sequence[Part], file: Path, window: int, given: argparse.Namespace) -> None:
    """The conversations, on every side in turns."""
    ours = Ours(file, window)
    sides: list[Side] = [ours]
    if (program := find_server(given.peer_path)) is not None:
        sides.append(LlamaServer(program, file, window, os.cpu_count() or 1))
    try:
        for run in range(given.runs):
            for part in parts:
                for side in sides:
                    part(Script(given.seed + run, given.tokens), side, partial(samples.row, side.name))
                    print(f"{part.__name__}: {side.name}, run {run + 1}", file=sys.stderr)
    finally:
        for side in sides:
            side.close()


def main() -> int:
    given = arguments().parse_args()
    sys.path.insert(0, str(ROOT))
    from bench.suite import small_file

    file, window, seed = given.file or small_file(), 2 * given.tokens, given.seed
    if given.die_in:
        first_half(seed, given.tokens, file, window, given.die_in)
    samples = Samples.of(given.into)
    parts = given.parts.split(",")
    talks = [talk for name, talk in TALKS.items() if name in parts]
    if talks:
        converse(samples, talks, file, window, given)
    if "overhead" in parts or "fork" in parts:
        ours = Ours(file, window, memory=3 * 2**29)
        if "fork" in parts:
            for run in range(given.runs):
                samples.forks.append(fork(Script(seed + 200 + run, given.tokens), ours, 8))
        if "overhead" in parts:
            without = Ours(file, window, prefix_cache=False)
            overhead(Script(seed + 100, given.tokens), ours, without, given.runs, samples.overhead)
            without.close()
        ours.close()
    if "restart" in parts:
        for run in range(given.runs):
            restart(Script(seed + 300 + run, given.tokens), file, window, partial(samples.row, Ours.name))
    report(samples)
    keep(samples, file, given.into)
    return 0


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tokens", type=int, default=4096, metavar="N", help="of a first prompt (default: 4096)")
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="samples of each row (default: 3)")
    every = ",".join((*TALKS, "overhead", "fork", "restart"))
    parser.add_argument("--parts", default=every, metavar="A,B", help=f"what is measured (default: {every})")
    parser.add_argument("--into", type=Path, metavar="FILE", help="samples to add to (default: a new file)")
    parser.add_argument("--peer-path", metavar="FOLDER", help="where llama-server is")
    parser.add_argument("--file", type=Path, help="a GGUF file (default: random weights of the 0.8B shape)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--die-in", metavar="FOLDER", help=argparse.SUPPRESS)  # the process that restart() kills
    return parser


def report(samples: Samples) -> None:
    """The table of what was measured."""
    if samples.rows:
        print("| | side | prompt | new | read | of the rest reused | first token | cold | of cold |")
        print("|---|---|--:|--:|--:|--:|--:|--:|--:|")
    for row in sorted(samples.rows, key=lambda row: row.name):
        print(row.line())
    for clock, kind in (("", "its time"), (", processor", "its processor time")):
        if pairs := [pair[f"with{clock}"] / pair[f"without{clock}"] - 1 for pair in samples.overhead]:
            told = ", ".join(f"{pair:+.1%}" for pair in pairs)
            print(f"\nCuts and snapshots on a cold prompt: {statistics.median(pairs):+.1%} of {kind} (pairs: {told}).")
    if forks := samples.forks:
        share, count = statistics.median(each["share"] for each in forks), forks[0]["count"]
        read = statistics.median(each["read"] for each in forks)
        whole = forks[0]["prompt"]
        print(f"{count} answers to one prompt: {read:,.0f} tokens read of {count} times {whole:,}; the others cost")
        print(f"{share:.1%} of {count} prompts.")


def keep(samples: Samples, file: Path, into: Path | None) -> None:
    """The raw samples in a file."""
    told = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    commit = told.stdout.strip() or None
    date = datetime.now(UTC).isoformat(timespec="seconds")
    facts = {"date": date, "commit": commit, "file": file.name, "load": os.getloadavg()}
    path = into or ROOT / "bench" / "results" / f"cache-{date[:10]}-{commit or 'no-commit'}.json"
    path.write_text(json.dumps(facts | asdict(samples), indent=1) + "\n", encoding="utf-8")
    print(f"Raw samples: {path}", file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(main())
