"""A long prompt among streams: how long their tokens wait for it, and how much longer it takes than alone.

    .venv/bin/python bench/fairness.py [MODEL | --shape qwen3.5:0.8b --quantization q4] [--prompt 30000] [--streams 4]

At several depths of the prompt, put there at once as `qwench bench` does: it is read alone for two steps, then the real
scheduler reads it among streams for some steps, then the streams go on without it. What the whole prompt takes follows
from the speeds at those depths. Run with OMP_NUM_THREADS=1 and --processor-time where the machine has other work: then
seconds are those the processor gave us, and only ratios count.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from statistics import median

from qwench.bench.rows import Row
from qwench.bench.subject import Choice, Subject, build
from qwench.engine.request import Request, SamplingParams, Status

STREAM_DEPTH = 128  # tokens that every stream remembers
MARGIN = 2400  # tokens read beyond the last depth while it is measured
ALONE_STEPS, AMONG_STEPS, USUAL_STEPS = 2, 50, 30
Clock = Callable[[], float]


@dataclass(frozen=True)
class Fairness:
    """What was seen at ``depth``: seconds of steps without and with the prompt, and tokens read per second."""

    depth: int
    usual: tuple[float, ...]
    among: tuple[float, ...]
    speed_alone: float
    speed_among: float

    def gap(self, share: float) -> float:
        """The gap that ``share`` of those among the prompt's steps stay below, against the middle one of the others."""
        among = sorted(self.among)
        return among[min(int(share * len(among)), len(among) - 1)] / median(self.usual)

    @property
    def unrest(self) -> float:
        """The longest of the gaps without a prompt against the middle one: what the machine alone does to them."""
        return max(self.usual) / median(self.usual)


def rows(subject: Subject, prompt: int, streams: int, depths: Sequence[int], clock: Clock) -> list[Fairness]:
    """What a prompt of ``prompt`` tokens costs streams and is cost by them, at each of ``depths`` of it."""
    subject.engine.clock = clock
    subject.engine.scheduler.turns.pace.patience = inf  # alone it is read in whole chunks
    return [_at(subject, prompt, streams, depth, clock) for depth in depths]


def loss(found: Sequence[Fairness]) -> float:
    """The share of its speed that a prompt loses, from its beginning to the last depth."""
    alone = among = 0.0
    for one, two in pairwise(found):
        alone += (two.depth - one.depth) * (1 / one.speed_alone + 1 / two.speed_alone) / 2
        among += (two.depth - one.depth) * (1 / one.speed_among + 1 / two.speed_among) / 2
    return 1 - alone / among if among else 1 - found[0].speed_among / found[0].speed_alone


def _at(subject: Subject, prompt: int, streams: int, depth: int, clock: Clock) -> Fairness:
    engine = subject.engine
    reader = _place(subject, depth, prompt + MARGIN, 1)
    alone = _seconds(subject, ALONE_STEPS, clock)
    speed_alone = (reader.computed - depth) / sum(alone)
    reader.computed = depth
    others = [_place(subject, STREAM_DEPTH, STREAM_DEPTH + 1, 10**6) for _ in range(streams)]
    for _ in range(8):  # begins with what the streams take alone
        engine.step()
    reader.computed = depth
    among = _seconds(subject, AMONG_STEPS, clock)
    read = reader.computed - depth
    engine.abort(reader.id)
    usual = _seconds(subject, USUAL_STEPS, clock)
    for other in others:
        engine.abort(other.id)
    assert engine.scheduler.is_idle()
    return Fairness(depth, tuple(usual), tuple(among), speed_alone, read / sum(among))


def _seconds(subject: Subject, steps: int, clock: Clock) -> list[float]:
    taken = []
    for _ in range(steps):
        start = clock()
        subject.engine.step()
        taken.append(clock() - start)
    return taken


def _place(subject: Subject, depth: int, known: int, generated: int) -> Request:
    """A running sequence that knows ``known`` tokens and has computed ``depth`` of them, whatever they are."""
    scheduler = subject.engine.scheduler
    request = Request(
        id=len(scheduler.running),
        prompt_len=known,
        token_ids=[(7 * place) % subject.model.vocab_size for place in range(known)],
        sampling=SamplingParams(temperature=0.0),
        stop_token_ids=frozenset(),
        seed=0,
        max_total=known + generated,
    )
    subject.engine.add([request], [_check])
    scheduler.waiting.remove(request)
    pages = scheduler.pages.allocate(-(-known // scheduler.page_size))
    slots = scheduler.slots.allocate(1)
    assert pages is not None
    assert slots is not None
    request.pages, request.state_slot = pages, slots[0]
    request.computed, request.status = depth, Status.RUNNING
    scheduler.running.append(request)
    return request


def _check(event: object) -> None:
    assert getattr(event, "error", None) is None, event


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="nano")
    parser.add_argument("--shape")
    parser.add_argument("--quantization")
    parser.add_argument("--prompt", type=int, default=30_000)
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--depths", type=int, default=4, help="how many, from the prompt's beginning to its end")
    parser.add_argument("--processor-time", action="store_true")
    given = parser.parse_args(arguments)
    choice = Choice(given.model, given.shape, quantization=given.quantization)
    subject = build(
        choice, [Row(decode=1, depth=given.prompt + MARGIN, batch=2), Row(decode=500, batch=given.streams + 1)]
    )
    clock = time.process_time if given.processor_time else time.perf_counter
    depths = [given.prompt * place // max(given.depths - 1, 1) for place in range(given.depths)]
    print(f"{subject.resolved.threads} threads; {given.streams} streams; gaps against the middle one without a prompt")
    found = rows(subject, given.prompt, given.streams, depths, clock)
    for each in found:
        print(
            f"at {each.depth:6}: usual {1000 * median(each.usual):4.0f} ms, at most x{each.unrest:4.1f}; with a prompt"
            f" x{each.gap(0.5):4.1f}, nine of ten below x{each.gap(0.9):4.1f}, longest x{each.gap(1):4.1f};"
            f" prompt {each.speed_among:4.0f} tokens/s, alone {each.speed_alone:4.0f}"
        )
    print(f"the prompt loses {loss(found):.0%} of its speed")


if __name__ == "__main__":
    main()
