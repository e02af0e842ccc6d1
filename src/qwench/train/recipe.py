"""The presets: sizes, steps, batch, rates and mixture of a training run; plain data, no torch."""

from __future__ import annotations

from dataclasses import dataclass

from qwench.train.data.mix import EARLY, LAST, LATE

Stages = tuple[tuple[float, dict[str, float]], ...]
SUMS_ONLY: Stages = ((1.0, {"small sum thinking": 1.0}),)
WHOLE: Stages = ((0.145, EARLY), (0.658, LATE), (1.0, LAST))


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
        """Warm-up, flat, then linear to 2 %."""
        start = self.steps * (1 - self.decay)
        fall = 1.0 if step < start else 1 - 0.98 * (step - start) / max(1.0, self.steps - start)
        return min(1.0, (step + 1) / self.warm_up) * fall

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
