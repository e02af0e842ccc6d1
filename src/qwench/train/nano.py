"""`python -m qwench.train.nano --preset smoke|cpu|gpu --out DIR [--resume]`: trains the embedded model from nothing.

Data comes from the seed and the step alone, so a resumed run sees what the uninterrupted one would have seen.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.distributed as dist
from tokenizers import Tokenizer

from qwench.train import model as models
from qwench.train import tokenizer as tokenizers
from qwench.train.data.mix import Mixture, sample_text
from qwench.train.encode import disturbed, encode, parts
from qwench.train.forward import Forward, Pieces
from qwench.train.optimizer import Optimizer
from qwench.train.ragged import Ragged, pack
from qwench.train.recipe import PRESETS, Recipe
from qwench.train.template import TEMPLATE

STATE = "state.pt"
SAVE_SECONDS = 300.0


def prepare_folder(recipe: Recipe, out: Path) -> Tokenizer:
    """Tokenizer, template and configuration, once per folder."""
    path = out / "tokenizer.json"
    if not path.exists():
        corpus = ("".join(text for text, _ in parts(sample)) for sample in sample_text(recipe.seed, recipe.corpus))
        tokenizers.save(tokenizers.train(corpus, recipe.vocabulary), out)
    tokenizer = Tokenizer.from_file(str(path))
    for name, text in models.side_files(configuration(recipe, tokenizer), tokenizer).items():
        (out / name).write_text(text, encoding="utf-8")
    (out / "chat_template.jinja").write_text(TEMPLATE.read_text(encoding="utf-8"), encoding="utf-8")
    return tokenizer


def configuration(recipe: Recipe, tokenizer: Tokenizer) -> dict[str, Any]:
    sizes = models.Sizes(
        recipe.vocabulary, recipe.hidden, recipe.layers, recipe.key_heads, recipe.value_heads, recipe.expert_width
    )
    return models.configuration(sizes, tokenizer)


class Trainer:
    """One process's part of a run: the whole model, and the shards `rank, rank + processes, ...` of every batch."""

    def __init__(self, recipe: Recipe, out: Path, rank: int, processes: int) -> None:
        self.recipe, self.out, self.rank, self.processes = recipe, out, rank, processes
        self.tokenizer = prepare_folder(recipe, out)
        self.device = torch.device(recipe.device)
        self.model = models.build(configuration(recipe, self.tokenizer), recipe.seed).to(self.device)
        named = dict(self.model.model.language_model.named_parameters())
        self.optimizer = Optimizer(named)
        self.parameters = list(named.values())
        pieces = Pieces.compiled() if recipe.compiled else Pieces()
        self.forward = Forward(self.model, torch.bfloat16 if recipe.half else torch.float32, pieces)
        self.mixtures = [
            Mixture(Random(0), lambda sample: len(encode(self.tokenizer, sample).ids), shares)
            for _, shares in recipe.stages
        ]
        self.step = 0

    def batch(self, step: int, shard: int) -> Ragged:
        rng, rows, left = Random(f"{self.recipe.seed} {step} {shard}"), [], self.recipe.budget(step)
        mixture = self.mixtures[self.recipe.stage(step)]
        while left > 0:
            sample = mixture.draw(rng)
            row = encode(self.tokenizer, sample)
            # A thought builds on what it wrote; everything else has to follow the prompt whatever was written.
            rows.append(row if sample.thinking else disturbed(row, rng, self.recipe.slips))
            left -= len(rows[-1].ids)
        return pack(rows, self.recipe.chunk).to(self.device)

    def gradients(self, step: int) -> tuple[float, int]:
        """Fills .grad with the mean over all shards; returns this process's mean loss and its tokens."""
        total, tokens, flat = 0.0, 0, None
        own = range(self.rank, self.recipe.shards, self.processes)
        for shard in own:
            batch = self.batch(step, shard)
            loss, balance = self.forward.losses(batch)
            (loss + self.recipe.balance * balance).backward()
            # Shards are summed as flat buffers, in one process as in two, so that the sums are the same to the bit.
            part = torch.cat([_taken(parameter).flatten() for parameter in self.parameters])
            flat = part if flat is None else flat + part
            total, tokens = total + float(loss.detach()), tokens + len(batch.ids)
        assert flat is not None
        if self.processes > 1:
            dist.all_reduce(flat)
        flat /= self.recipe.shards
        flat *= min(1.0, self.recipe.clip / (float(flat.norm()) + 1e-6))
        for parameter, part in zip(self.parameters, flat.split([one.numel() for one in self.parameters]), strict=True):
            parameter.grad = part.view_as(parameter)
        return total / len(own), tokens

    def advance(self) -> tuple[float, int]:
        loss, tokens = self.gradients(self.step)
        rate = self.recipe.rate(self.step)
        self.optimizer.step(rate * self.recipe.rate_matrices, rate * self.recipe.rate_rest)
        for parameter in self.parameters:
            parameter.grad = None
        self.step += 1
        return loss, tokens

    def save(self) -> None:
        """The resumable state and a loadable model; renamed into place so that a kill never leaves half a file."""
        state = {"step": self.step, "model": self.model.state_dict(), "optimizer": self.optimizer.state()}
        torch.save(state, self.out / (STATE + ".new"))
        (self.out / (STATE + ".new")).replace(self.out / STATE)
        models.save_weights(self.model, self.out / "model.new")
        (self.out / "model.new").replace(self.out / "model.safetensors")

    def resume(self) -> None:
        state = torch.load(self.out / STATE, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load(state["optimizer"])
        self.step = state["step"]


def _taken(parameter: torch.Tensor) -> torch.Tensor:
    gradient, parameter.grad = parameter.grad, None
    assert gradient is not None
    return gradient


def run(
    recipe: Recipe, out: Path, rank: int = 0, processes: int = 1, resume: bool = False, stop: int | None = None
) -> Trainer:
    """Trains to the recipe's last step, or to step `stop`."""
    if recipe.device == "cpu":
        torch.set_num_threads(1)
        large_allocations()
    trainer = Trainer(recipe, out, rank, processes)
    if resume and (out / STATE).exists():
        trainer.resume()
    started = saved = time.monotonic()
    first, tokens, mean = trainer.step, 0, 0.0
    while trainer.step < (stop or recipe.steps):
        loss, seen = trainer.advance()
        tokens += seen * processes
        mean = loss if mean == 0.0 else 0.98 * mean + 0.02 * loss
        now = time.monotonic()
        if rank == 0 and (trainer.step % 20 == 0 or trainer.step == recipe.steps):
            report(trainer.step, recipe.steps, first, mean, tokens, now - started)
        if rank == 0 and now - saved > SAVE_SECONDS:
            trainer.save()
            saved = now
    if rank == 0:
        trainer.save()
    return trainer


def report(step: int, steps: int, first: int, loss: float, tokens: int, seconds: float) -> None:
    filled = 24 * step // steps
    left = seconds / max(1, step - first) * (steps - step) / 60
    bar = "#" * filled + "." * (24 - filled)
    speed = f"{tokens / 1e6:.2f} M tokens {tokens / seconds:,.0f} tok/s"
    print(f"[{bar}] {step}/{steps} loss {loss:.3f} {speed} {left:.0f} min left", flush=True)


def large_allocations() -> None:
    """Keeps freed tensors in the process: returning them costs a page fault per page at every step."""
    import ctypes

    try:
        library = ctypes.CDLL("libc.so.6")
        library.mallopt(-3, 2**30)
        library.mallopt(-1, 2**31 - 1)
    except (OSError, AttributeError):  # not glibc: slower, nothing else
        return


def _worker(rank: int, recipe: Recipe, out: Path, processes: int, resume: bool, rendezvous: str) -> None:
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=processes)
    run(recipe, out, rank, processes, resume)
    dist.destroy_process_group()


def launch(recipe: Recipe, out: Path, processes: int, resume: bool) -> None:
    """One process per shard on a CPU: steadier than threads when something else wants the cores."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "recipe.json").write_text(json.dumps(dataclasses.asdict(recipe), indent=2) + "\n", encoding="utf-8")
    prepare_folder(recipe, out)
    if processes == 1:
        run(recipe, out, resume=resume)
        return
    meeting = out / "rendezvous"
    meeting.unlink(missing_ok=True)
    arguments = (recipe, out, processes, resume, f"file://{meeting.absolute()}")
    torch.multiprocessing.spawn(_worker, arguments, nprocs=processes)  # type: ignore[attr-defined,no-untyped-call]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m qwench.train.nano", description="Trains the embedded model from nothing."
    )
    parser.add_argument("--preset", choices=sorted(PRESETS), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --out")
    parser.add_argument("--steps", type=int, help="another number of steps; the rates fall accordingly")
    parser.add_argument("--processes", type=int, default=0, help="default: one per shard on a CPU, else one")
    options = parser.parse_args()
    recipe = PRESETS[options.preset]
    if options.steps:
        recipe = dataclasses.replace(recipe, steps=options.steps)
    cores = os.cpu_count() or 1
    processes = options.processes or (min(recipe.shards, cores) if recipe.device == "cpu" else 1)
    launch(recipe, options.out, processes, options.resume)


if __name__ == "__main__":
    main()
