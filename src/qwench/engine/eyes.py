"""What the engine sees with: the vision tower, loaded when the first picture comes, and what it made of pictures.

Small pictures of one request are looked at together: the tower's weights are read once for them. Rows are kept by the
hash of what was looked at, those of late, so a second question about a picture looks no more.
Knows neither where pictures come from nor how the language model reads.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from qwench.config import VisionConfig
from qwench.engine.request import Request
from qwench.engine.sight import Media
from qwench.ops.arrays import as_torch, to_host
from qwench.ops.kernels import Kernels
from qwench.ops.lazy import torch
from qwench.ops.store import Plan
from qwench.ops.weight_types import WeightType
from qwench.weights.vision import VisionWeights

if TYPE_CHECKING:
    from qwench.model.vision import VisionTower

KEPT_BYTES = 256 * 2**20
Found = TypeVar("Found")


def build_tower(config: VisionConfig, weights: VisionWeights, kernels: Kernels) -> VisionTower:
    """The tower over ``weights``, laid out for ``kernels``."""
    from qwench.model.vision import VisionTower  # and with it torch

    shapes = {name: spec.shape for name, spec in weights.specs.items() if spec.kind == "matrix"}
    dtype = weights.kinds["merger.norm"]
    assert not isinstance(dtype, WeightType)
    store = kernels.store(Plan(shapes, {name: weights.kinds[name] for name in shapes}, dtype))
    vectors: dict[str, torch.Tensor] = {}
    for name, value in weights.parts():
        if name in shapes:
            store.put(name, None, value)
        else:
            vectors[name] = as_torch(kernels.place(to_host(value)))
    return VisionTower(config, store.finish(), vectors, kernels)


@dataclass(frozen=True)
class _Begun:
    """``work`` on the rows of each of ``digests``."""

    digests: tuple[bytes, ...]
    work: Generator[None, None, Sequence[torch.Tensor]]


class Eyes:
    """``open_tower`` is called once, when there is something to look at. Rows that no request holds are kept in at most
    ``limit`` bytes.
    """

    def __init__(self, open_tower: Callable[[], VisionTower], limit: int = KEPT_BYTES) -> None:
        self._open_tower = open_tower
        self._limit = limit
        self._tower: VisionTower | None = None
        self._rows: OrderedDict[bytes, torch.Tensor] = OrderedDict()  # the last used last
        self._begun: _Begun | None = None
        self._held: dict[int, frozenset[bytes]] = {}  # by the number of who shows them

    def look(self, request: Request, going_on: Callable[[], bool]) -> bool:
        """Look at what ``request`` shows behind what is known of it, while ``going_on``; True once all is seen.

        Its rows then stay until ``release``.
        """
        wanted = {span.digest for span in request.sight.spans if span.stop > request.expected}
        shown = {digest: media for digest, media in request.sight.media.items() if digest in wanted}
        while unseen := self._unseen(shown):
            if self._begun is None or unseen.keys().isdisjoint(self._begun.digests):
                self._begin(unseen)
            while self._advance():
                if not going_on():
                    return False
        self._held[request.id] = frozenset(wanted)
        return True

    def see(self, wanted: Mapping[bytes, Media]) -> Mapping[bytes, torch.Tensor]:
        """The rows [n, H] of every picture and video in ``wanted``, whether it was looked at or not."""
        while unseen := self._unseen(wanted):
            self._begin(unseen)
            while self._advance():
                pass
        for digest in wanted:
            self._rows.move_to_end(digest)
        found = {digest: self._rows[digest] for digest in wanted}
        self._forget()
        return found

    def release(self, request: Request) -> None:
        """The request is over, whatever became of it."""
        if self._begun is not None and not request.sight.media.keys().isdisjoint(self._begun.digests):
            self._begun = None  # whoever shows the same begins again: rarer than one who holds memory and left
        if self._held.pop(request.id, None):
            self._forget()

    def _unseen(self, wanted: Mapping[bytes, Media]) -> dict[bytes, Media]:
        return {digest: media for digest, media in wanted.items() if digest not in self._rows}

    def _begin(self, unseen: Mapping[bytes, Media]) -> None:
        """With the first of ``unseen``, and with those behind it that the tower takes in the same pass."""
        if self._tower is None:
            self._tower = self._open_tower()
        chosen: dict[bytes, Media] = {}
        patches = 0
        for digest, media in unseen.items():
            patches += math.prod(media.grid)
            if chosen and patches > self._tower.together:
                break
            chosen[digest] = media
        shown = [(torch.from_numpy(media.patches), media.grid) for media in chosen.values()]
        self._begun = _Begun(tuple(chosen), self._tower.encode_all(shown))

    def _advance(self) -> bool:
        """Go on with what was begun; False once it is done."""
        assert self._begun is not None
        begun, self._begun = self._begun, None  # what fails is not begun any more
        try:
            with torch.inference_mode():
                next(begun.work)
        except StopIteration as end:
            self._rows.update(zip(begun.digests, end.value, strict=True))
        else:
            self._begun = begun
        return self._begun is not None

    def _forget(self) -> None:
        """Let go what was not used for longest, until what nobody holds is within the limit."""
        held = frozenset[bytes]().union(*self._held.values())
        free = [digest for digest in self._rows if digest not in held]
        size = sum(self._rows[digest].nbytes for digest in free)
        for digest in free:
            if size <= self._limit:
                return
            size -= self._rows.pop(digest).nbytes


def finish(work: Generator[None, None, Found]) -> Found:
    """What ``work`` comes to, without a pause."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            found: Found = end.value
            return found
