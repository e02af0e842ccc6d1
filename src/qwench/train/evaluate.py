"""`python -m qwench.train.evaluate DIR`: the held-out table of a checkpoint, greedy, by our engine or by transformers.

Independent of who generates: a generator is a function from prompts to (completion ids, ended by itself).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from tokenizers import Tokenizer

from qwench.text.vision import text_of
from qwench.train.data.sample import Sample
from qwench.train.encode import prompt_text
from qwench.train.suites import Suite, suites

Completion = tuple[list[int], bool]
SEED = 77


@dataclass(frozen=True)
class Prompt:
    """What is asked: ids, with one placeholder for each of the pictures."""

    ids: list[int]
    pictures: tuple[Image.Image, ...] = ()


Generate = Callable[[list[Prompt], int], list[Completion]]


@dataclass(frozen=True)
class Result:
    """One row of the table; shares in per cent, the interval is Wilson's at 95 %."""

    skill: str
    thinking: bool
    n: int
    exact: float
    low: float
    high: float
    ended: float
    parsed: float | None
    failures: list[dict[str, str]]


def wilson(right: int, count: int) -> tuple[float, float]:
    z, share = 1.96, right / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return 100 * (middle - half), 100 * (middle + half)


def run_suite(suite: Suite, tokenizer: Tokenizer, generate: Generate, count: int) -> Result:
    samples = suite.samples(count, SEED)
    prompts = [
        Prompt(
            tokenizer.encode(prompt_text(sample, len(sample.messages) - 1), add_special_tokens=False).ids,
            tuple(drawing.picture for drawing in sample.drawings),
        )
        for sample in samples
    ]
    completions = generate(prompts, suite.limit)
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids, _ in completions]
    verdicts = [suite.verdict(sample, text) for sample, text in zip(samples, texts, strict=True)]
    right = sum(verdict.exact for verdict in verdicts)
    low, high = wilson(right, count)
    failures = [
        {"asked": asked(sample), "written": text}
        for sample, text, verdict in zip(samples, texts, verdicts, strict=True)
        if not verdict.exact
    ]
    parsed = [verdict.parsed for verdict in verdicts if verdict.parsed is not None]
    share = 100 * sum(parsed) / len(parsed) if parsed else None
    ended = 100 * sum(ended for _, ended in completions) / count
    return Result(suite.name, suite.thinking, count, 100 * right / count, low, high, ended, share, failures[:3])


def asked(sample: Sample) -> str:
    """The question, and what the pictures say, since they cannot be shown in a table."""
    shown = "".join(f"[{' '.join(map(str, drawing.caption))}] " for drawing in sample.drawings)
    return shown + text_of(sample.messages[-2]["content"])


def table(results: Sequence[Result]) -> str:
    lines = ["| skill | thinking | n | exact % | 95 % interval | ends by itself % |", "|---|---|---|---|---|---|"]
    for row in results:
        note = "" if row.parsed is None else f" (parsed {row.parsed:.1f})"
        switch = "on" if row.thinking else "off"
        interval = f"{row.low:.1f} to {row.high:.1f}"
        lines.append(f"| {row.skill} | {switch} | {row.n} | {row.exact:.1f}{note} | {interval} | {row.ended:.1f} |")
    return "\n".join(lines)


def transformers_generator(folder: Path, batch: int = 256) -> Generate:
    """Batched greedy generation by transformers, float32, padded on the left."""
    import torch
    from transformers import Qwen3_5MoeForConditionalGeneration

    model: Any = Qwen3_5MoeForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    ends = set(model.generation_config.eos_token_id)
    pad = model.generation_config.pad_token_id

    def generate(prompts: list[Prompt], limit: int) -> list[Completion]:
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index].ids))
        # Those with pictures one by one: how their tokens are padded is no question of this table.
        shown = [[index] for index in order if prompts[index].pictures]
        plain = [index for index in order if not prompts[index].pictures]
        done: dict[int, Completion] = {}
        for part in shown + [plain[start : start + batch] for start in range(0, len(plain), batch)]:
            given = _looked_at(folder, prompts[part[0]]) if prompts[part[0]].pictures else {}
            rows = [given.pop("ids")] if given else [prompts[index].ids for index in part]
            longest = max(map(len, rows))
            ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows])
            mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
            with torch.no_grad():
                out = model.generate(
                    input_ids=ids, attention_mask=mask, max_new_tokens=limit, do_sample=False, pad_token_id=pad, **given
                )
            for index, row in zip(part, out[:, longest:].tolist(), strict=True):
                stop = next((place for place, token in enumerate(row) if token in ends), None)
                done[index] = (row if stop is None else row[:stop], stop is not None)
        return [done[index] for index in range(len(prompts))]

    return generate


def _looked_at(folder: Path, prompt: Prompt) -> dict[str, Any]:
    """The ids with room for the pictures, and these as transformers wants them, prepared by our own code."""
    import torch

    from qwench.config import ModelConfig
    from qwench.media.image import fit
    from qwench.media.settings import Caps, VisionSettings

    config = ModelConfig.from_folder(folder)
    assert config.vision is not None, "this checkpoint cannot see"
    settings = VisionSettings.from_folder(folder, config.vision)
    pictures = [fit(picture, settings, Caps()) for picture in prompt.pictures]
    waiting, ids = iter(pictures), list[int]()
    for token in prompt.ids:
        ids += [token] * (next(waiting).tokens if token == config.image_token_id else 1)
    return {
        "ids": ids,
        "pixel_values": torch.cat([torch.from_numpy(picture.patches) for picture in pictures]),
        "image_grid_thw": torch.tensor([picture.grid for picture in pictures]),
        "mm_token_type_ids": torch.tensor([[int(token == config.image_token_id) for token in ids]]),
    }


def engine_generator(folder: Path) -> Generate:
    """Greedy generation by Qwench itself."""
    from qwench import LLM, SamplingParams

    llm: Any = LLM(model=str(folder))

    def generate(prompts: list[Prompt], limit: int) -> list[Completion]:
        given = [
            {"prompt_token_ids": prompt.ids}
            | ({"multi_modal_data": {"image": list(prompt.pictures)}} if prompt.pictures else {})
            for prompt in prompts
        ]
        outs = llm.generate(given, SamplingParams(temperature=0, max_tokens=limit))
        return [(list(out.outputs[0].token_ids), out.outputs[0].finish_reason == "stop") for out in outs]

    return generate


GENERATORS: dict[str, Callable[[Path], Generate]] = {"engine": engine_generator, "transformers": transformers_generator}


def evaluate(folder: Path, generate: Generate, count: int, only: str = "") -> list[Result]:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    results = []
    for suite in suites():
        if only in suite.name:
            started = time.monotonic()
            results.append(run_suite(suite, tokenizer, generate, count))
            row = results[-1]
            seconds = time.monotonic() - started
            print(
                f"{row.skill}, thinking {row.thinking}: {row.exact:.1f} %, {seconds:.0f} s", file=sys.stderr, flush=True
            )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m qwench.train.evaluate", description="The held-out table of a checkpoint."
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--by", choices=sorted(GENERATORS), default="engine", help="who generates")
    parser.add_argument("--only", default="", help="suites whose name contains this")
    parser.add_argument("--out", type=Path, help="where the JSON goes; default: DIR/evaluation.json")
    options = parser.parse_args()
    results = evaluate(options.folder, GENERATORS[options.by](options.folder), options.samples, options.only)
    document = {
        "samples": options.samples,
        "by": options.by,
        "greedy": True,
        "results": [asdict(row) for row in results],
    }
    path = options.out or options.folder / "evaluation.json"
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
