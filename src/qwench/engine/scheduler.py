"""The scheduler: arithmetic on two counters per request. No phases, no torch, no clock, no input or output.

Every step closes some of *known - computed*: of each running request that misses one token (it is generating), and of
prompts as far as time and turns allow (``engine/turns.py``). Where a row passes one of its request's cuts, the state
there is kept; a request begins after what is kept of it already, or is about to be. When pages run out, snapshots go
first; then the youngest running request gives everything back and waits again; its tokens are kept and computed again,
from its deepest snapshot on. A prompt that nobody waits for any more ends where it is, or is read to its end in the
background; what was computed of it is kept.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from itertools import count

from qwench.cache.cuts import cut_points
from qwench.cache.pool import Pool
from qwench.cache.prefix import Found, PrefixCache, PrefixPolicy, Snapshot
from qwench.cache.tree import pack, shared
from qwench.engine.request import FinishReason, Request, Reuse, Saved, Status, TokenEvent, TokenLogprob
from qwench.engine.turns import Turns


@dataclass(frozen=True)
class StepRow:
    """Compute ``count`` tokens of ``request`` from ``start`` on, and save the states behind some of them.

    ``samples``: the last token asks for a new one.
    """

    request: Request
    start: int
    count: int
    saves: tuple[Snapshot, ...] = ()

    @property
    def samples(self) -> bool:
        return self.start + self.count == len(self.request.token_ids)

    @property
    def prompt_targets(self) -> range:
        """Places in ``token_ids`` whose log-probability this row owes: prompt tokens that follow one of its tokens."""
        request = self.request
        if request.sampling.prompt_logprobs is None:
            return range(0)
        first = max(self.start + 1, request.prompt_logprobs_told, 1)
        return range(first, min(self.start + self.count + 1, request.prompt_len))


@dataclass
class Copies:
    """Pairs of numbers, from and to: states from slot to slot and keys and values from page to page, in this order."""

    states: list[tuple[int, int]] = field(default_factory=list)
    pages: list[tuple[int, int]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.states or self.pages)


@dataclass(frozen=True)
class Step:
    """Rows in the order the batch wants them (single tokens first).

    Before them ``copies`` are made, and then ``fresh_slots`` zeroed.
    """

    rows: tuple[StepRow, ...]
    fresh_slots: tuple[int, ...]
    copies: Copies = field(default_factory=Copies)


def is_led(request: Request) -> bool:
    """Whether it waits for what another one is reading."""
    leader = request.leader
    return leader is not None and leader.status is Status.RUNNING and leader.computed < request.led_to


def may_begin(request: Request) -> bool:
    """Whether a waiting request waits for nothing that is being read."""
    return not request.arriving and not is_led(request)


def without_lost(row: StepRow) -> StepRow:
    """The row without the snapshots that are gone."""
    return replace(row, saves=tuple(each for each in row.saves if each.node is not None))


@dataclass(frozen=True)
class RowResult:
    """What the runner found for one row: the drawn token if it samples, and log-probabilities where asked for.

    ``error`` says that this row's logits are no numbers. ``rank`` is that of the token that closes thinking, where the
    request's thought asked for it and it is among the likeliest.
    """

    token_id: int | None = None
    logprob: TokenLogprob | None = None
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    error: str | None = None
    rank: int | None = None


@dataclass(frozen=True)
class Fork:
    """``others`` have the same tokens as a request, and wait until it has computed ``at`` of them."""

    at: int
    others: list[Request]


class Scheduler:
    """Owns the counters and status of every request, and decides who holds which page and slot.

    ``slots`` are for running requests and snapshots together: all but ``policy.limit`` are for the former.
    """

    def __init__(
        self,
        pages: Pool,
        slots: Pool,
        *,
        page_size: int,
        max_step_tokens: int,
        policy: PrefixPolicy = PrefixPolicy(),  # noqa: B008 - it is frozen
        finish_abandoned: bool = False,
        sparsity: float = 1.0,
    ) -> None:
        self.pages = pages
        self.slots = slots
        self.page_size = page_size
        self.max_step_tokens = max_step_tokens
        self.max_running = slots.size - (policy.limit if policy.state_pages else 0)
        self.cache = PrefixCache(pages, slots, page_size=page_size, policy=policy)
        self.finish_abandoned = finish_abandoned
        self.turns = Turns(sparsity)
        self.waiting: list[Request] = []
        self.running: list[Request] = []  # in the order they began
        self.num_preemptions = 0
        self._copies = Copies()  # to be made before anything else is computed
        self._kept: list[tuple[Snapshot, list[int]]] = []
        self._held: list[Sequence[int]] = []  # pages that are copied beside the steps
        self._moves = 0  # whoever found no room looks again only when something was given back, or kept
        self._forks: dict[Request, Fork] = {}  # by who computes for the others
        self._arrivals = count()
        self._suspects: dict[Request, int] = {}  # they run apart until so many of their tokens are computed

    def add(self, requests: Sequence[Request]) -> None:
        """Queue answers to one prompt: the first computes it, the others begin with its last token."""
        for request in requests:
            request.arrival = next(self._arrivals)
            marks = request.marks
            if self.cache.policy.limit:
                request.cuts = cut_points(request.prompt_len, marks.ends, marks.orders, self.cache.policy.near)
        self._lead(list(requests))
        self._queue(requests[0])

    def abort(self, request: Request, *, sound: bool = True) -> None:
        """Take the request out, whatever it is doing. What it computed is kept if it is ``sound``.

        With ``finish_abandoned`` a prompt that is being read is read on in the background: its client may ask again.
        """
        last = request.prompt_len - 1
        if request.status is Status.RUNNING:
            if sound and self.finish_abandoned and self.cache.policy.limit and request.computed < last:
                request.background, request.abandoned = True, True
                if last not in request.cuts:
                    insort(request.cuts, last)
            else:
                self._finish(request, sound=sound)
            return
        for fork in self._forks.values():
            if request in fork.others:
                fork.others.remove(request)
                break
        else:
            self.waiting.remove(request)
            self._release_choices(request)
        request.status = Status.FINISHED

    def end_thinking(self, request: Request) -> None:
        """Have the request's thinking closed with its next token."""
        if request.thought is not None:
            request.thought.end()

    def is_idle(self) -> bool:
        return not self.running and not self.waiting

    def schedule(self) -> Step:
        """The next step; empty only if there is nothing to do."""
        self._suspects = {each: end for each, end in self._suspects.items() if each.status is not Status.FINISHED}
        apart = next(iter(self._suspects), None)
        rows = [
            StepRow(request, request.computed, request.missing)
            for request in list(self.running)
            # An older row's growth may have preempted this one.
            if request.status is Status.RUNNING and request.is_live and apart in (None, request) and self._grow(request)
        ]
        rows = [row for row in rows if row.request.status is Status.RUNNING]
        fresh = self._read(rows, apart)
        if apart is not None and not rows and self.running:
            self._suspects.clear()  # there is no room beside those who wait for it: together again
            return self.schedule()
        # One that went again to make room for another's may have left its slot to somebody who runs.
        rows = [row if all(each.node for each in row.saves) else without_lost(row) for row in rows]
        rows.sort(key=lambda row: row.count > 1)  # stable
        return Step(tuple(rows), tuple(fresh), self.copies())

    def _read(self, rows: list[StepRow], apart: Request | None) -> list[int]:
        """Add to the ``rows`` of streams those of prompts whose turn it is (``apart`` alone, if given); the slots of
        those that begin anew."""
        budget = self.max_step_tokens - len(rows)
        readers = [request for request in self.running if not request.is_live]
        if len(self.running) < self.max_running:
            readers += (request for request in self.waiting if request.looked and may_begin(request))
        readers = [request for request in readers if apart in (None, request)]
        fresh: list[int] = []
        self.turns.begin(len(rows), readers)
        while budget > 0 and (request := self.turns.next(readers)) is not None:
            begins = request.status is Status.WAITING
            if begins:
                admitted = self._admit(request)
                readers = [each for each in readers if each.status is Status.RUNNING or (admitted and not is_led(each))]
                if not admitted:
                    continue
            if begins and request.computed == 0:
                assert request.state_slot is not None
                fresh.append(request.state_slot)
            count = min(request.missing, self.turns.may_read(request, budget))
            if not count:
                break
            self.turns.read(request, count, readers)
            readers.remove(request)
            saves = self._keep_cuts(request, request.computed, count) if self.cache.policy.state_pages else ()
            rows.append(StepRow(request, request.computed, count, saves))
            budget -= count
        return fresh

    def took(self, step: Step, seconds: float) -> None:
        """``step`` took so long: the next ones are measured by it."""
        reads = [(row.count, row.start) for row in step.rows if not row.request.is_live]
        self.turns.pace.took(seconds, len(step.rows) - len(reads), reads)

    def commit(self, step: Step, results: Sequence[RowResult]) -> Iterator[tuple[Request, TokenEvent]]:
        """Write the step's outcome into its requests, finish those that are done, and tell what happened.

        Afterwards ``copies`` are due before the next step.
        """
        for snapshot in (each for row in step.rows for each in row.saves):
            snapshot.ready = True
            self._moves += 1
        for row, result in zip(step.rows, results, strict=True):
            request = row.request
            request.computed += row.count
            if request.computed >= self._suspects.get(request, request.computed + 1):
                del self._suspects[request]
            request.prompt_logprobs_told = max(request.prompt_logprobs_told, row.prompt_targets.stop)
            reuse = None if request.reuse_told else request.reuse
            request.reuse_told = True
            if result.error is not None:
                self.cache.forget(request.identities())
                self._finish(request, sound=False)
                yield request, TokenEvent(finish_reason="error", error=result.error, failure="nan_logits", reuse=reuse)
                continue
            if not self.cache.policy.state_pages:
                self._keep_cuts(request, row.start, row.count)
            fork = self._forks.get(request)
            if fork is not None and request.computed >= fork.at:
                self._release_choices(request)
            if request.abandoned and request.computed >= request.prompt_len - 1:
                self._finish(request)
                yield request, TokenEvent(finish_reason="abort", reuse=reuse)
                continue
            if result.token_id is None:
                if result.prompt_logprobs or reuse:
                    yield request, TokenEvent(prompt_logprobs=result.prompt_logprobs, reuse=reuse)
                continue
            token_id, thought = result.token_id, request.thought
            known = (token_id,) if thought is None else thought.take(token_id, result.rank)
            drawn = known == (token_id,)  # else thinking was closed in its place
            stops = drawn and not (thought and thought.is_open) and token_id in request.stop_token_ids
            stops = stops and request.num_generated >= request.sampling.min_tokens
            request.token_ids += known
            failure = None if request.guide is None or stops else request.guide.accept(known)
            over = len(request.token_ids) >= request.max_total
            reason: FinishReason | None = "error" if failure else "stop" if stops else "length" if over else None
            if reason is not None:
                self._finish(request)
            yield (
                request,
                TokenEvent(
                    token_ids=() if stops else known,
                    logprobs=() if result.logprob is None else (result.logprob,) if drawn else (None,) * len(known),
                    prompt_logprobs=result.prompt_logprobs,
                    finish_reason=reason,
                    error=failure,
                    failure="grammar_too_complex" if failure else None,
                    stop_token_id=token_id if stops else None,
                    reuse=reuse,
                    closed_by=thought.closed_by if thought else None,
                    repeats=thought is not None and thought.repeats,
                ),
            )

    def undo(self, step: Step) -> None:
        """Nothing of ``step`` was computed: the snapshots it should have filled go."""
        for snapshot in (each for row in step.rows for each in row.saves):
            self.cache.drop(snapshot)

    def begin_again(self, step: Step) -> None:
        """``step`` failed, so nothing that was being written is trusted: everybody gives it back and waits. Who of
        several was to blame shows when those of the step come again one by one, before anybody else."""
        self.undo(step)
        ends = {row.request: row.start + row.count for row in step.rows}
        for request in list(self.running):
            self._preempt(request)
        if len(ends) > 1:
            self._suspects = ends

    def is_suspect(self, request: Request) -> bool:
        return request in self._suspects

    def copies(self) -> Copies:
        """The copies that are due now; asking takes them over."""
        due, self._copies = self._copies, Copies()
        return due

    def kept(self) -> list[tuple[Snapshot, list[int]]]:
        """Snapshots that should survive this process, with their tokens; asking takes them over."""
        kept, self._kept = self._kept, []
        return kept

    def unsought(self) -> list[Request]:
        """Waiting requests that were not looked for on disk yet, as many as could run now."""
        room = self.max_running - len(self.running)
        return [request for request in self.waiting if not request.sought][:room] if room > 0 else []

    def unseen(self) -> list[Request]:
        """Waiting requests that show what was not looked at yet, as many as could run now, in the order they came."""
        room = self.max_running - len(self.running)
        waiting = sorted((each for each in self.waiting if not each.looked), key=lambda request: request.arrival)
        return [each for each in waiting if may_begin(each)][:room] if room > 0 else []

    def hold(self, pages: Sequence[int]) -> None:
        """The caller's share of ``pages`` is on the books until ``give_back``: it copies them beside the steps."""
        self._held.append(pages)

    def give_back(self, pages: Sequence[int]) -> None:
        self._held.remove(pages)
        self.pages.release(pages)
        self._moves += 1

    def save(self, request: Request) -> Saved:
        """The sequence as it is between two steps, pinned until ``release``. Its copy is due like any other."""
        if request.status is Status.RUNNING and request.computed:
            self._keep_now(request, must=True)
        snapshot = request.anchor
        if snapshot is not None and (snapshot.node is None or snapshot.position < request.computed):
            snapshot = None
        if snapshot is not None:
            snapshot.pins += 1
        thought, guide = copy(request.thought), copy(request.guide)
        return Saved(request.prompt_len, tuple(request.token_ids), snapshot, thought, request.sight, guide)

    def release(self, saved: Saved) -> None:
        """Nobody will continue from ``saved``; what is kept for it may go."""
        if saved.snapshot is not None:
            saved.snapshot.pins -= 1
            self._moves += 1

    def check(self) -> None:
        """Assert that the books of pages and slots match what requests and snapshots hold; run whenever it idles."""
        idle = [*self.waiting, *(request for fork in self._forks.values() for request in fork.others)]
        assert all(not request.pages and request.state_slot is None and not request.anchor for request in idle)
        held = [*(each.pages for each in (*self.running, *self.cache)), *self._held]
        self.pages.check(page for pages in held for page in pages)
        slots = [*(request.state_slot for request in self.running), *(snapshot.slot for snapshot in self.cache)]
        self.slots.check(slot for slot in slots if slot is not None)
        assert not self._forks.keys() - {*self.running, *self.waiting}

    def _admit(self, request: Request) -> bool:
        """Start a waiting request behind what is kept of it, if pages of all its known tokens can be had; never by
        preempting."""
        moves = self._moves + self.cache.moves
        if len(self.running) >= self.max_running or (self.running and request.refused_at == moves):
            return False
        found = self.cache.find(request.identities(), self.reusable(request))
        # Alone with the cache it begins anew: what is found may hold the one page that is missing.
        if not self._begin(request, found) and (self.running or not self._begin(request, Found())):
            request.refused_at = moves
            return False
        if request.reuse is None:
            cached, matched = (min(count, request.prompt_len) for count in (request.computed, found.matched))
            tier = request.anchor.tier if request.anchor else "live"
            request.reuse = Reuse(cached, matched, found.differs, tier)
        if request.anchor is not None:
            request.anchor.tier = "live"
        junction = min(found.matched, len(request.token_ids) - 1)
        if junction - request.computed >= self.cache.policy.near and junction not in request.cuts:
            insort(request.cuts, junction)  # here it leaves what is stored; whoever leaves it here again will gain
        request.status = Status.RUNNING
        self.waiting.remove(request)
        self.running.append(request)
        for other in self.waiting:
            self._follow(other, request)
        return True

    def _follow(self, request: Request, leader: Request) -> None:
        """Let the request wait until ``leader`` has read what both begin with, if that is worth waiting for."""
        near, known = self.cache.policy.near, max(leader.computed, request.expected)
        if not self.cache.policy.limit or (leader.background and not request.background):
            return
        if leader.identities(near) != request.identities(near):
            return
        most = min(self.reusable(request), len(leader.token_ids) - 1)
        if most - known < near:
            return
        position = shared(pack(leader.identities(most)), pack(request.identities(most)))
        if position - known >= near and (not is_led(request) or position > request.led_to):
            request.leader, request.led_to = leader, position
            if position not in leader.cuts:
                insort(leader.cuts, position)

    def _queue(self, request: Request) -> None:
        """Let the request wait, with a guess at what will not have to be computed: short prompts go first."""
        request.expected = self.cache.find(request.identities(), self.reusable(request)).position
        for reader in self.running:
            self._follow(request, reader)
        self.waiting.append(request)

    def _begin(self, request: Request, found: Found) -> bool:
        """Give the request its pages and its slot: behind ``found``, or from nothing."""
        snapshot = found.snapshot
        whole, rest = divmod(found.position, self.page_size)
        alone = not self.running and snapshot is None
        needed = self._pages_for(len(request.token_ids)) - whole
        if not self.can_be_had(needed, snapshot):
            return False
        if snapshot is not None:
            snapshot.pins += 1
        own = self.cache.take_pages(needed, background=request.background and bool(self.running), pinned=alone)
        if own is None:
            if snapshot is not None:
                snapshot.pins -= 1
            return False
        taken = self.slots.allocate(1)
        assert taken is not None, "snapshots hold slots that are meant for running requests"
        request.state_slot, request.anchor, request.pages = taken[0], snapshot, own
        if snapshot is not None:
            self.pages.share(snapshot.pages[:whole])
            request.pages = snapshot.pages[:whole] + own
            if rest:  # the sequence goes on inside a page: the page stays as it is, its copy is written on
                self._copies.pages.append((snapshot.pages[whole], own[0]))
            if snapshot.slot is not None:
                self._copies.states.append((snapshot.slot, request.state_slot))
            self.cache.use(snapshot)
        request.computed = found.position
        return True

    def can_be_had(self, needed: int, snapshot: Snapshot | None) -> bool:
        """Whether ``needed`` pages would be free without all other snapshots: else those would go for nothing."""
        if needed <= self.pages.num_free:
            return True
        held = set(snapshot.pages if snapshot else ())
        return needed <= self.pages.size - len(held.union(*(request.pages for request in self.running)))

    def reusable(self, request: Request) -> int:
        """How many known tokens may be left out: never the last, and none that a log-probability is owed for."""
        if request.sampling.prompt_logprobs is None or request.prompt_logprobs_told >= request.prompt_len:
            return len(request.token_ids) - 1
        return max(request.prompt_logprobs_told - 1, 0)

    def _grow(self, request: Request) -> bool:
        """Give the request pages for all it knows (thinking that is closed adds several tokens at once), preempting
        the youngest, abandoned ones first, until there are.

        False if it was the request itself that had to go.
        """
        needed = self._pages_for(len(request.token_ids)) - len(request.pages)
        while needed > 0:
            alone = len(self.running) == 1
            pages = self.cache.take_pages(needed, background=request.background and not alone, pinned=alone)
            if pages is not None:
                request.pages += pages
                break
            victim = next((each for each in self.running if each.abandoned), self.running[-1])
            self._preempt(victim)
            if victim is request:
                return False
        return True

    def _pages_for(self, tokens: int) -> int:
        return -(-tokens // self.page_size)

    def _keep_cuts(self, request: Request, start: int, count: int) -> tuple[Snapshot, ...]:
        """Places for the states at the cuts that ``count`` tokens from ``start`` on reach; the step fills them."""
        fork = self._forks.get(request)
        first, last = (bisect_right(request.cuts, position) for position in (start, start + count))
        taken = []
        for cut in request.cuts[first:last]:
            snapshot = self._keep(request, cut, must=fork is not None and cut == fork.at)
            if snapshot is not None:
                snapshot.ready = snapshot.slot is None
                taken.append(snapshot)
            if cut == request.cuts[-1] or cut in request.marks.orders:
                self._note(request, cut)
        return tuple(taken)

    def _keep_now(self, request: Request, *, must: bool = False) -> None:
        """Keep the state behind what is computed."""
        snapshot = self._keep(request, request.computed, must=must)
        if snapshot is not None and snapshot.slot is not None:
            assert request.state_slot is not None
            self._copies.states.append((request.state_slot, snapshot.slot))

    def _keep(self, request: Request, position: int, *, must: bool) -> Snapshot | None:
        """Hold on to what is kept of the first ``position`` tokens, if it is worth its place; it is told if it is new,
        with a state to be filled."""
        known, pages = request.identities(position), request.pages[: self._pages_for(position)]
        snapshot, new = self.cache.keep(known, pages, background=request.background, instead=request.anchor, must=must)
        if snapshot is None or snapshot is request.anchor:
            return None
        self._let_go(request)
        request.anchor = snapshot
        snapshot.pins += 1
        return snapshot if new else None

    def _note(self, request: Request, position: int) -> None:
        snapshot = request.anchor
        if snapshot is not None and snapshot.position == position and not request.background:
            self._kept.append((snapshot, request.identities(position)))

    def _lead(self, requests: list[Request]) -> None:
        """The first of ``requests`` computes their prompt and cuts before its last token; the others wait for that."""
        leader, *others = requests
        if others:
            at = len(leader.token_ids) - 1
            if at not in leader.cuts:
                insort(leader.cuts, at)
            self._forks[leader] = Fork(at, others)

    def _release_choices(self, leader: Request) -> None:
        """Let those who wait for ``leader`` begin: with its prompt, or, if it ended before, led by the next of them."""
        fork = self._forks.pop(leader, None)
        if fork is None or not fork.others:
            return
        if leader.computed >= fork.at:
            for request in fork.others:
                self._queue(request)
        else:
            self._lead(fork.others)
            self._queue(fork.others[0])

    def _preempt(self, request: Request) -> None:
        self.running.remove(request)
        self._release(request)
        request.status = Status.WAITING
        request.num_preemptions += 1
        self.num_preemptions += 1
        self._queue(request)

    def _finish(self, request: Request, *, sound: bool = True) -> None:
        """The request is over; somebody may append to it, or ask again for what was interrupted."""
        kept = request.anchor.position if request.anchor else 0
        if sound and request.computed - kept >= self.cache.policy.near:
            self._keep_now(request)
            self._note(request, request.computed)
        self.running.remove(request)
        self._release_choices(request)
        self._release(request)
        request.status = Status.FINISHED
        self.turns.pace.ended()

    def _release(self, request: Request) -> None:
        self._moves += 1
        self.pages.release(request.pages)
        request.pages = []
        if request.state_slot is not None:
            self.slots.release([request.state_slot])
            request.state_slot = None
        self._let_go(request)
        request.computed = 0

    def _let_go(self, request: Request) -> None:
        if request.anchor is not None:
            request.anchor.pins -= 1
            request.anchor = None
            self._moves += 1
