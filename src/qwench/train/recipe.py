"""The presets: sizes, steps, batch, rates and mixture of a training run; plain data, no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from qwench.train.data.mix import EARLY, LAST, LATE, SEEING, SETTLING

Stages = tuple[tuple[float, dict[str, float]], ...]
SUMS_ONLY: Stages = ((1.0, {"small sum thinking": 1.0}),)
WHOLE: Stages = ((0.145, EARLY), (0.658, LATE), (1.0, LAST))


def trapezoid(step: int, steps: int, warm_up: int, decay: float) -> float:
    """The share of the full rate at a step: warm-up, flat, then linear to 2 %."""
    start = steps * (1 - decay)
    fall = 1.0 if step < start else 1 - 0.98 * (step - start) / max(1.0, steps - start)
    return min(1.0, (step + 1) / warm_up) * fall


@dataclass(frozen=True)
class Recipe:
    """A run is a function of this and nothing else: neither speed nor the number of processes changes the result."""

    steps: int
    tokens: tuple[int, ...]  # tokens a shard and step, growing over the run in equal stretches of the first half
    hidden: int = 256
    layers: int = 8
    key_heads: int = 2
    value_heads: int = 4
    expert_width: int = 48
    vocabulary: int = 4096
    shards: int = 2
    chunk: int = 32
    seed: int = 2026
    rate_matrices: float = 0.02
    rate_rest: float = 4e-3
    warm_up: int = 60
    decay: float = 0.45  # the last share of the steps, over which the rates fall
    balance: float = 0.01
    clip: float = 1.0
    slips: float = 0.02  # share of the written tokens that are shown wrongly, outside thoughts
    half: bool = True  # products in bfloat16
    compiled: bool = True
    device: str = "cpu"
    corpus: int = 46_000  # samples the tokenizer is trained on
    stages: Stages = WHOLE  # up to this share of the steps, this mixture

    def rate(self, step: int) -> float:
        return trapezoid(step, self.steps, self.warm_up, self.decay)

    def stage(self, step: int) -> int:
        return next(index for index, (end, _) in enumerate(self.stages) if step < end * self.steps or end == 1.0)

    def budget(self, step: int) -> int:
        """Tokens of one shard at this step."""
        stretch = max(1, self.steps // 2 // len(self.tokens))
        return self.tokens[min(step // stretch, len(self.tokens) - 1)]


PRESETS = {
    "smoke": Recipe(
        steps=260,
        tokens=(512,),
        hidden=128,
        layers=4,
        key_heads=1,
        value_heads=2,
        expert_width=32,
        vocabulary=512,
        stages=SUMS_ONLY,
        compiled=False,
        corpus=4000,
        warm_up=20,
    ),
    "cpu": Recipe(steps=7600, tokens=(1024,)),
    "gpu": Recipe(steps=6000, tokens=(16384, 32768), device="cuda"),
}


@dataclass(frozen=True)
class SightRecipe:
    """How a model that reads and writes learns to see: first the tower by itself, then both together, in two parts.

    By itself the tower learns to say, in the language model's own embeddings, what a picture shows, a word a row;
    the language model then has only to listen. So most of the pictures cost the tower and nothing else.
    In the second part together, text is learnt from the model as it was before, token by token, so that it stays.
    """

    alone: int  # steps of the tower
    together: int  # steps of both
    keeping: int  # steps of both with what was known before as the teacher of text
    pictures: int = 96  # in a step of the tower
    tokens: int = 1024  # in a step of both, pictures included
    tower: int = 64
    tower_layers: int = 4
    tower_inner: int = 192
    seed: int = 2026
    chunk: int = 32
    rate_matrices: float = 0.02  # of the tower
    rate_rest: float = 1e-3
    later: float = 0.2  # of these, where both learn together
    slowly: float = 0.3  # of these, for the language model
    warm_up: int = 60
    decay: float = 0.5
    balance: float = 0.01
    slips: float = 0.02
    half: bool = False  # on the CPUs tried, small products are faster in float32
    shares: dict[str, float] = field(
        default_factory=lambda: {"number": 0.3, "word": 0.45, "shapes": 0.15, "bars": 0.1}  # of the pictures alone
    )
    stages: Stages = ((0.52, SEEING), (1.0, SETTLING))  # up to this share of the steps together, this mixture

    @property
    def steps(self) -> int:
        return self.alone + self.together + self.keeping

    def rate(self, step: int) -> float:
        """Each part has its own rise and fall."""
        if step < self.alone:
            return trapezoid(step, self.alone, self.warm_up, self.decay)
        if step < self.alone + self.together:
            return trapezoid(step - self.alone, self.together, self.warm_up, self.decay)
        return trapezoid(step - self.alone - self.together, self.keeping, self.warm_up, self.decay)

    def stage(self, step: int) -> int:
        """Of the steps together; the last one is that of keeping."""
        share = (step - self.alone) / max(1, self.together)
        return next(index for index, (end, _) in enumerate(self.stages) if share < end or end == 1.0)


SIGHT_PRESETS = {
    "smoke": SightRecipe(
        alone=300,
        together=40,
        keeping=0,
        pictures=48,
        tokens=512,
        shares={"number": 1.0},
        stages=((1.0, {"seen number": 1.0}),),
    ),
    "cpu": SightRecipe(alone=3700, together=1000, keeping=500),
}
