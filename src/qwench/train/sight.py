"""`python -m qwench.train.sight --start DIR --preset smoke|cpu --out DIR [--resume]`: a model that reads learns to see.

Begins with a checkpoint of `qwench.train.nano` and a new tower. Pictures come from the seed and the step alone, so a
resumed run sees what the uninterrupted one would have seen.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import shutil
import time
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from qwench.train import model as models
from qwench.train.data import seeing
from qwench.train.data.mix import Mixture
from qwench.train.data.pictures import LABELS, Drawing, labels
from qwench.train.encode import FREE, PAD, SAYINGS, Row, disturbed, encode, look
from qwench.train.forward import Forward
from qwench.train.nano import SAVE_SECONDS, STATE, large_allocations
from qwench.train.optimizer import Optimizer
from qwench.train.ragged import Ragged, gather, pack
from qwench.train.recipe import SIGHT_PRESETS, SightRecipe
from qwench.train.tower import Tower

KEPT = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
SHARPNESS = 10.0  # what a row scores for the word it says exactly
TOWER, LANGUAGE = "model.visual.", "model.language_model."


class Trainer:
    """The model, its two halves' optimizers, and a reading of patches that only training needs."""

    def __init__(self, recipe: SightRecipe, start: Path, out: Path) -> None:
        self.recipe, self.out, self.step = recipe, out, 0
        self.tokenizer = prepare_folder(recipe, start, out)
        self.model = models.build(json.loads((out / "config.json").read_text(encoding="utf-8")), recipe.seed)
        old = {name: value.float() for name, value in load_file(start / "model.safetensors").items()}
        missing, _ = self.model.load_state_dict(
            {name: value for name, value in old.items() if name.startswith(LANGUAGE)}, strict=False
        )
        assert all(name.startswith(TOWER) or name == "lm_head.weight" for name in missing), missing
        dtype = torch.bfloat16 if recipe.half else torch.float32
        self.before = Forward(copy.deepcopy(self.model).requires_grad_(False), dtype)  # it does not see yet
        self.forward, self.tower = Forward(self.model, dtype), Tower(self.model.model.visual, dtype)
        self.labels = torch.nn.Linear(recipe.tower, LABELS)
        tower = {name: value for name, value in self.model.named_parameters() if name.startswith(TOWER)}
        patches = {f"labels.{name}": value for name, value in self.labels.named_parameters()}
        language = {name: value for name, value in self.model.named_parameters() if name.startswith(LANGUAGE)}
        self.optimizers = {
            "tower": Optimizer(tower),
            "labels": Optimizer(patches),
            "language": Optimizer(language, matrices=False),
        }
        self.words = [*(self.tokenizer.token_to_id(word) for word in SAYINGS), self.tokenizer.token_to_id(PAD)]
        assert None not in self.words, "a word of the captions is no token of this tokenizer"
        added = range(self.tokenizer.get_vocab_size(with_added_tokens=False), self.tokenizer.get_vocab_size())
        self.said = torch.tensor(sorted({*self.words, *added}))
        self.mixtures = [
            Mixture(Random(0), lambda sample: len(encode(self.tokenizer, sample).ids), shares)
            for _, shares in recipe.stages
        ]
        self.right: dict[str, float] = {}

    def advance(self) -> float:
        """One step; returns its loss."""
        alone = self.step < self.recipe.alone
        rng = Random(f"{self.recipe.seed} {self.step}")
        loss = self.alone(rng) if alone else self.together(rng)
        loss.backward()
        rate = self.recipe.rate(self.step)
        shares = {"tower": 1.0 if alone else self.recipe.later, "language": self.recipe.slowly}
        for name, optimizer in self.optimizers.items():
            values = list(optimizer.parameters.values())
            if all(value.grad is not None for value in values):
                torch.nn.utils.clip_grad_norm_(values, 1.0)
                share = rate * shares.get(name, 1.0)
                optimizer.step(share * self.recipe.rate_matrices, share * self.recipe.rate_rest)
            for value in values:
                value.grad = None
        if self.keeping:
            self.put_back()
        self.step += 1
        return float(loss.detach())

    @property
    def keeping(self) -> bool:
        return self.step >= self.recipe.alone + self.recipe.together

    def alone(self, rng: Random) -> Tensor:
        """The tower says what pictures of one size show, patch by patch and row by row."""
        kind, drawing = seeing.scene(rng, self.recipe.shares)
        drawn = [(kind, drawing)]
        shown = look(drawing)
        drawn += [seeing.scene(rng, self.recipe.shares, shown.grid) for _ in range(self.recipe.pictures - 1)]
        (pictures,) = gather((0, look(each)) for _, each in drawn)
        states, rows = self.tower(pictures.pixels)
        wanted = torch.stack([patch_labels(each) for _, each in drawn])
        patches = F.cross_entropy(self.labels(states).flatten(0, 1), wanted.flatten())
        loss, right = self.captions(rows, pictures.caption)
        for (kind, _), good in zip(drawn, right.tolist(), strict=True):
            self.right[kind] = 0.99 * self.right.get(kind, 0.0) + 0.01 * good
        return patches + loss

    def captions(self, rows: Tensor, caption: Tensor) -> tuple[Tensor, Tensor]:
        """How far rows [P, R, H] are from the embeddings of what they shall say [P, R], and which pictures say it."""
        words = self.model.model.language_model.embed_tokens.weight[self.words].detach()
        size = words.square().sum(-1).mean()
        scores = rows @ words.T * (SHARPNESS / size)
        told = caption != FREE
        loss = F.cross_entropy(scores[told], caption[told])
        far = (rows[told] - words[caption[told]]).square().sum(-1).mean() / size
        return loss + 0.5 * far, ((scores.argmax(-1) == caption) | ~told).all(-1)

    def together(self, rng: Random) -> Tensor:
        """The language model answers, with what the tower shows it and without; at last, without, as it did before."""
        mixture, rows, left = self.mixtures[self.recipe.stage(self.step)], list[Row](), self.recipe.tokens
        while left > 0:
            sample = mixture.draw(rng)
            row = encode(self.tokenizer, sample)
            rows.append(row if sample.thinking else disturbed(row, rng, self.recipe.slips))
            left -= len(row.ids)
        known = [row for row in rows if self.keeping and not row.shown]
        new = [row for row in rows if not self.keeping or row.shown]
        share = sum(sum(row.learn) for row in new) / sum(sum(row.learn) for row in rows)
        loss = torch.zeros(())
        if new:
            answered, said = self.learnt(pack(new, self.recipe.chunk))
            loss = share * answered + 0.3 * said
        return loss + (1 - share) * self.kept(pack(known, self.recipe.chunk)) if known else loss

    def learnt(self, batch: Ragged) -> tuple[Tensor, Tensor]:
        """How far the answers are from the wanted ones, and the rows of pictures from what they shall say."""
        seen = [self.tower(pictures.pixels)[1] for pictures in batch.pictures]
        loss, balance = self.forward.losses(batch, seen)
        said = [self.captions(part, pictures.caption) for part, pictures in zip(seen, batch.pictures, strict=True)]
        far = loss.new_zeros(())
        for told, right in said:
            far = far + told * len(right) / sum(len(each) for _, each in said)
            self.right["said"] = 0.99 * self.right.get("said", 0.0) + 0.01 * float(right.float().mean())
        return loss + self.recipe.balance * balance, far

    def kept(self, batch: Ragged) -> Tensor:
        """How far the answers are from those of the model before it saw: right or wrong, they shall stay."""
        with torch.no_grad():
            wanted, _ = self.before.logits(batch)
        now, _ = self.forward.logits(batch)
        return F.kl_div(now.log_softmax(-1), wanted.log_softmax(-1), reduction="batchmean", log_target=True)

    @torch.no_grad()
    def put_back(self) -> None:
        """Words that no picture says stay where they were: under AdamW rare ones drift far, and are miscopied."""
        now, before = (each.model.model.language_model.embed_tokens.weight for each in (self.forward, self.before))
        now.copy_(before.index_copy(0, self.said, now[self.said]))

    def save(self) -> None:
        """The resumable state and a loadable model; renamed into place so that a kill never leaves half a file."""
        state = {"step": self.step, "model": self.model.state_dict(), "labels": self.labels.state_dict()}
        state["optimizers"] = {name: optimizer.state() for name, optimizer in self.optimizers.items()}
        torch.save(state, self.out / (STATE + ".new"))
        (self.out / (STATE + ".new")).replace(self.out / STATE)
        models.save_weights(self.model, self.out / "model.new")
        (self.out / "model.new").replace(self.out / "model.safetensors")

    def resume(self) -> None:
        state = torch.load(self.out / STATE, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.labels.load_state_dict(state["labels"])
        for name, optimizer in self.optimizers.items():
            optimizer.load(state["optimizers"][name])
        self.step = state["step"]


def patch_labels(drawing: Drawing) -> Tensor:
    """[N], in the order of patches: block by block."""
    found: Tensor = torch.from_numpy(labels(drawing))
    blocks: Tensor = found.unflatten(1, (-1, 2)).unflatten(0, (-1, 2)).transpose(1, 2)
    return blocks.flatten()


def prepare_folder(recipe: SightRecipe, start: Path, out: Path) -> Tokenizer:
    """Everything but weights: as in `start`, but for the tower and how pictures are prepared for it."""
    out.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        shutil.copyfile(start / name, out / name)
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    config = json.loads((start / "config.json").read_text(encoding="utf-8"))
    sizes = models.Sizes(
        hidden=config["text_config"]["hidden_size"],
        tower=recipe.tower,
        tower_layers=recipe.tower_layers,
        tower_inner=recipe.tower_inner,
    )
    config["vision_config"] = models.vision_configuration(sizes)
    for name, text in models.side_files(config, tokenizer).items():
        (out / name).write_text(text, encoding="utf-8")
    return tokenizer


def run(recipe: SightRecipe, start: Path, out: Path, resume: bool = False, stop: int | None = None) -> Trainer:
    """Trains to the recipe's last step, or to step `stop`."""
    torch.set_num_threads(1)
    large_allocations()
    trainer = Trainer(recipe, start, out)
    if resume and (out / STATE).exists():
        trainer.resume()
    (out / "sight.json").write_text(json.dumps(dataclasses.asdict(recipe), indent=2) + "\n", encoding="utf-8")
    begun = saved = time.monotonic()
    first, mean = trainer.step, 0.0
    while trainer.step < (stop or recipe.steps):
        loss = trainer.advance()
        mean = loss if mean == 0.0 else 0.98 * mean + 0.02 * loss
        now = time.monotonic()
        if trainer.step % 50 == 0 or trainer.step == recipe.steps:
            right = " ".join(f"{kind} {100 * share:.0f}" for kind, share in sorted(trainer.right.items()))
            pace = (now - begun) / (trainer.step - first)
            print(
                f"{trainer.step}/{recipe.steps} loss {mean:.3f} right {right} {1000 * pace:.0f} ms a step", flush=True
            )
        if now - saved > SAVE_SECONDS:
            trainer.save()
            saved = now
    trainer.save()
    return trainer


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m qwench.train.sight", description="Teaches a model of qwench.train.nano to see."
    )
    parser.add_argument("--start", type=Path, required=True, help="a checkpoint that reads and writes")
    parser.add_argument("--preset", choices=sorted(SIGHT_PRESETS), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resume", action="store_true", help="go on from the last state in --out")
    parser.add_argument("--alone", type=int, help="another number of steps of the tower by itself")
    parser.add_argument("--together", type=int, help="another number of steps of both")
    parser.add_argument("--keeping", type=int, help="another number of steps of both that keep what was known")
    options = parser.parse_args()
    recipe = SIGHT_PRESETS[options.preset]
    given = {name: getattr(options, name) for name in ("alone", "together", "keeping")}
    wanted = {name: steps for name, steps in given.items() if steps is not None}
    run(dataclasses.replace(recipe, **wanted), options.start, options.out, options.resume)


if __name__ == "__main__":
    main()
