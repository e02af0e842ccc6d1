"""Outcome tables that others published: which model solved which task, and what that cost. Fetched, never kept here.

    python bench/outcomes.py                      # clones what it needs from GitHub into build/outcomes
    python bench/outcomes.py --git OWNER/NAME=DIR  # takes a repository from a local git directory instead

- CodeRouterBench, test split (MIT): coding tasks × 8 models, class labels of the benchmark's own, no prompts.
- SWE-bench, bash-only agent, per instance: 500 tasks × 4 models; the class is the repository. And its board of December
  2025: the same tasks × 25 models, from which sets of options are drawn.
- RouteLLM (Apache-2.0): MMLU and GSM8K prompts, Mixtral 8x7B against GPT-4; no costs, so calls of the strong count.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "outcomes"
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Source:
    """A repository and the paths in it that are wanted; ``into`` is the folder they are put in. ``commit``: which."""

    repository: str
    paths: tuple[str, ...]
    into: str
    commit: str = "HEAD"


SOURCES = (
    Source("davidpizon/agent-as-a-router", ("data/coderouterbench/id_test_results_long.csv",), "coderouterbench"),
    Source("SWE-bench/swe-bench.github.io", ("data/info_for_leaderboard.json",), "swebench"),
    Source(
        "SWE-bench/swe-bench.github.io",
        ("data/leaderboards.json",),
        "swebench_board",
        "f1176b65ae29d14f4f52208b48e3d8cfc972bc17",
    ),
    Source(
        "lm-sys/RouteLLM", ("routellm/evals/mmlu/responses", "routellm/evals/gsm8k/gsm8k_responses.csv"), "routellm"
    ),
)


@dataclass(frozen=True)
class Outcomes:
    """``solved`` and ``costs``: tasks × options. ``kinds``: the class of each task. ``prompts``: empty if unpublished.

    ``unit`` of the costs; ``values``: what a solved task is taken to be worth, in that unit. ``tested``: solved means
    that tests passed, so a check of an answer could be as good. ``whole``: nobody would offer all of the options at
    once, so only sets of them are routed among.
    """

    name: str
    options: tuple[str, ...]
    kinds: tuple[str, ...]
    solved: Numbers
    costs: Numbers
    prompts: tuple[str, ...]
    unit: str
    values: tuple[float, ...]
    tested: bool = False
    whole: bool = True


def fetch(folder: Path, local: dict[str, Path]) -> list[str]:
    """Everything that is not there yet. Returns a sentence for each source that cannot be had."""
    missing = []
    for source in SOURCES:
        target = folder / source.into
        if target.exists():
            continue
        try:
            with tempfile.TemporaryDirectory() as scratch:
                git = local.get(source.repository) or _clone(source, Path(scratch))
                files = _git(git, "ls-tree", "-r", "--name-only", source.commit, *source.paths).split()
                if not files:
                    raise subprocess.CalledProcessError(1, "git", stderr="the paths are not there")
                contents = {Path(name).name: _git(git, "show", f"{source.commit}:{name}") for name in files}
        except subprocess.CalledProcessError as error:
            missing.append(f"{source.repository}: {str(error.stderr).strip().splitlines()[-1:] or error}")
            continue
        target.mkdir(parents=True)
        for name, text in contents.items():
            (target / name).write_text(text, encoding="utf-8")
    return missing


def _clone(source: Source, scratch: Path) -> Path:
    git = scratch / "git"
    _git(scratch, "init", "-q", "--bare", str(git))
    _git(git, "remote", "add", "origin", f"https://github.com/{source.repository}.git")
    _git(git, "fetch", "-q", "--depth=1", "--filter=blob:none", "origin", source.commit)
    _git(git, "update-ref", "HEAD", "FETCH_HEAD")
    return git


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *words], check=True, capture_output=True, text=True)
    return done.stdout


def coderouterbench(folder: Path) -> Outcomes:
    """Solved is a score of 1: other scores are likenesses."""
    with next((folder / "coderouterbench").glob("*.csv")).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    cells = {(row["task_id"], row["model"]): row for row in rows}
    options = tuple(dict.fromkeys(row["model"] for row in rows))
    tasks = [task for task in dict.fromkeys(row["task_id"] for row in rows) if all((task, o) in cells for o in options)]
    return Outcomes(
        "CodeRouterBench",
        options,
        tuple(cells[task, options[0]]["dimension"] for task in tasks),
        np.array([[float(cells[task, o]["score"]) >= 1 for o in options] for task in tasks], float),
        np.array([[float(cells[task, o]["cost_usd"]) for o in options] for task in tasks]),
        (),
        "USD",
        (0.05, 0.5),
    )


def swebench(folder: Path) -> Outcomes:
    told = json.loads(next((folder / "swebench").glob("*.json")).read_text(encoding="utf-8"))
    options = tuple(told)
    tasks = [task for task in told[options[0]] if all(task in told[option] for option in options)]
    return Outcomes(
        "SWE-bench (bash only)",
        options,
        tuple(task.rpartition("-")[0] for task in tasks),
        np.array([[told[option][task]["resolved"] for option in options] for task in tasks], float),
        np.array([[told[option][task]["cost"] for option in options] for task in tasks], float),
        (),
        "USD",
        (1.0, 10.0),
        tested=True,
    )


def swebench_board(folder: Path) -> Outcomes:
    """Every model of the bash-only board whose results and costs of single tasks are published, as it lists them."""
    told = json.loads(next((folder / "swebench_board").glob("*.json")).read_text(encoding="utf-8"))
    board = next(each for each in told["leaderboards"] if each["name"] == "bash-only")
    known = {each["name"]: each["per_instance_details"] for each in board["results"] if "per_instance_details" in each}
    tasks = sorted(set.intersection(*(set(cells) for cells in known.values())))
    return Outcomes(
        "SWE-bench board (bash only)",
        tuple(known),
        tuple(task.rpartition("-")[0] for task in tasks),
        np.array([[cells[task]["resolved"] for cells in known.values()] for task in tasks], float),
        np.array([[cells[task]["cost"] for cells in known.values()] for task in tasks], float),
        (),
        "USD",
        (1.0, 10.0),
        tested=True,
        whole=False,
    )


def routellm(folder: Path) -> list[Outcomes]:
    files = sorted((folder / "routellm").glob("*.csv"))
    groups = {"RouteLLM MMLU": [f for f in files if f.name.startswith("mmlu_")], "RouteLLM GSM8K": files[:0]}
    groups["RouteLLM GSM8K"] = [f for f in files if f.name.startswith("gsm8k")]
    return [_routellm(name, found) for name, found in groups.items() if found]


def _routellm(name: str, files: Sequence[Path]) -> Outcomes:
    kinds, prompts, solved = list[str](), list[str](), list[list[bool]]()
    options: tuple[str, ...] = ()
    for path in files:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            names = [column for column in reader.fieldnames or () if column not in ("prompt", "")]
            options = tuple(names[:2])
            for row in reader:
                kinds.append(path.stem)
                prompts.append(row["prompt"])
                solved.append([row[option].strip().lower() in ("true", "1", "1.0") for option in options])
    strong = max(range(2), key=lambda place: sum(row[place] for row in solved))
    costs = np.zeros((len(solved), 2))
    costs[:, strong] = 1
    table = np.array(solved, float)
    return Outcomes(name, options, tuple(kinds), table, costs, tuple(prompts), "calls of the strong model", (4.0, 20.0))


def tables(folder: Path = FOLDER) -> list[Outcomes]:
    """Those that were fetched."""
    found = []
    if (folder / "coderouterbench").exists():
        found.append(coderouterbench(folder))
    if (folder / "swebench").exists():
        found.append(swebench(folder))
    if (folder / "swebench_board").exists():
        found.append(swebench_board(folder))
    if (folder / "routellm").exists():
        found += routellm(folder)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--into", type=Path, default=FOLDER)
    parser.add_argument("--git", action="append", default=[], metavar="OWNER/NAME=DIR")
    args = parser.parse_args()
    local = {name: Path(folder) for name, _, folder in (each.partition("=") for each in args.git)}
    missing = fetch(args.into, local)
    for line in missing:
        print(f"not to be had: {line}", file=sys.stderr)
    for table in tables(args.into):
        print(f"{table.name}: {len(table.kinds)} tasks, {len(table.options)} options, {len(set(table.kinds))} classes")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
