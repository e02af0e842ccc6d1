"""`make bench-router`: the router on outcome tables that others published, beside the policies anybody could have.

    always the best     the one option that solves most, for every task
    matched random      each task to an option drawn with the shares of our choices
    class table         for each class the option with the greatest mean of solved·V − cost
    ours                qwench.gateway's router over the outcomes of the other folds, the class told
    ours, class guessed the same, the class found by the gateway's classifier over the other folds' prompts
    class table, class guessed  the class table, asked for the class that those prompts are most like
    class oracle        the class table, fitted on what it is tested on
    oracle              for each task the cheapest option that solves it

Five folds: what is tested was never seen; ten ways to cut them, averaged task by task, since one cut decides ties by
chance (guessing classes takes long, so that is done for the first alone). Intervals are bootstraps over tasks, 95 %.

Which options a table holds is chance too. So where there are more than four, ours is held against the class table over
sets of four: all of them, or 200 drawn from seed 0 where there are more than that; at the same values, with the same
folds and cuts. What is told is the mean over tasks and sets of p·V − c, ours less the class table's, and of its parts,
with an interval from resamples of tasks and of sets together; and the share of sets in which ours is not below. The
board of SWE-bench (25 models, bash only) serves for this alone. This was written before any of it was computed.

The last line is JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.outcomes import FOLDER, Numbers, Outcomes, tables
from qwench.gateway.gates import DataFinding
from qwench.gateway.ledger import Tally
from qwench.gateway.posterior import Outcomes as Posterior
from qwench.gateway.prices import Prices
from qwench.gateway.router import Ask, Router
from qwench.gateway.signals import Signals
from qwench.gateway.tiers import Cascade, DataClass, Option, Routing, Settings, TaskClass, Tier

FOLDS = 5
CUTS = 10
RESAMPLES = 1000
SIZE = 4  # options in a set
SETS = 200  # at most
Choices = NDArray[np.int64]
UNKNOWN = "unknown"
SILENT = Signals("", "", 1, None, frozenset({"text"}), False, False, False, None, (), ("",), (1,))
PUBLIC = DataFinding(DataClass.PUBLIC, "a benchmark")


@dataclass(frozen=True)
class Result:
    """One policy: what each task cost and whether it was solved (a share, where it is drawn)."""

    name: str
    solved: Numbers
    costs: Numbers


def evaluate(table: Outcomes, folds: Choices, value: float, *, guess: bool = False) -> list[Result]:
    rows = np.arange(len(table.kinds))
    best = int(np.lexsort((table.costs.mean(0), -table.solved.mean(0)))[0])

    def chosen(name: str, choices: Choices) -> Result:
        return Result(name, table.solved[rows, choices], table.costs[rows, choices])

    ours, _ = out_of_fold(table, folds, value)
    shares = np.bincount(ours, minlength=len(table.options)) / len(ours)
    worth = table.solved * value - table.costs
    results = [
        chosen(f"always {table.options[best]}", np.full(len(rows), best)),
        Result("matched random", table.solved @ shares, table.costs @ shares),
        chosen("class table", by_class(table, folds, value)),
        chosen("ours", ours),
    ]
    if guess:
        results += guessed(table, folds, value)
    if table.tested:
        results.append(cascaded(table, folds, value))
    cheapest = np.where(table.solved > 0, table.costs, np.inf)
    solved = table.solved.max(1) > 0
    oracle = np.where(solved, cheapest.argmin(1), table.costs.argmin(1))
    return [*results, chosen("class oracle", class_means(table.kinds, worth, worth)), chosen("oracle", oracle)]


def averaged(runs: Sequence[Sequence[Result]]) -> list[Result]:
    """The policies of the first run, each task's result being the mean of all runs that have the policy."""
    found = []
    for first in runs[0]:
        same = [each for run in runs for each in run if each.name == first.name]
        solved, costs = (np.mean([getattr(each, name) for each in same], axis=0) for name in ("solved", "costs"))
        found.append(Result(first.name, solved, costs))
    return found


def by_class(table: Outcomes, folds: Choices, value: float) -> Choices:
    """The class table; a class that the other folds lack takes their best option."""
    found = np.zeros(len(table.kinds), dtype=np.int64)
    kinds, worth = np.array(table.kinds), table.solved * value - table.costs
    for fold in range(FOLDS):
        seen, tested = folds != fold, np.flatnonzero(folds == fold)
        usual = int(worth[seen].mean(0).argmax())
        for kind in set(kinds[tested]):
            known = worth[seen & (kinds == kind)]
            found[tested[kinds[tested] == kind]] = int(known.mean(0).argmax()) if len(known) else usual
    return found


def class_means(kinds: Sequence[str], fitted: Numbers, tested: Numbers) -> Choices:
    found = np.zeros(len(tested), dtype=np.int64)
    names = np.array(kinds)
    for kind in set(kinds):
        found[names == kind] = int(fitted[names == kind].mean(0).argmax())
    return found


def out_of_fold(table: Outcomes, folds: Choices, value: float, *, cascades: bool = False) -> tuple[Choices, Choices]:
    """What the gateway's own router chooses where the class is told, knowing the other folds.

    And who answers after it, -1 for nobody.
    """
    kinds = table.kinds
    first, second = np.zeros(len(kinds), dtype=np.int64), np.full(len(kinds), -1)
    for fold in range(FOLDS):
        router = fitted(table, folds != fold, value, cascades=cascades)
        decisions = {kind: router.decide(Ask(SILENT, PUBLIC, told=kind)) for kind in set(kinds)}
        for task in np.flatnonzero(folds == fold).tolist():
            decision = decisions[kinds[task]]
            first[task] = table.options.index(decision.option.model)
            if decision.cascade:
                second[task] = table.options.index(decision.cascade.then.model)
    return first, second


def guessed(table: Outcomes, folds: Choices, value: float) -> list[Result]:
    """Ours and the class table where the class of every task has to be found: with the other folds' prompts for
    examples."""
    rows = np.arange(len(table.kinds))
    ours, tabled = by_class(table, folds, value), by_class(table, folds, value)
    kinds, worth = np.array(table.kinds), table.solved * value - table.costs
    for fold in range(FOLDS):
        seen = folds != fold
        router = fitted(table, seen, value, examples=True)
        usual = int(worth[seen].mean(0).argmax())
        means = {kind: int(worth[seen & (kinds == kind)].mean(0).argmax()) for kind in set(kinds[seen])}
        for task in np.flatnonzero(~seen).tolist():
            decision = router.decide(Ask(replace(SILENT, said=table.prompts[task]), PUBLIC))
            ours[task] = table.options.index(decision.option.model)
            like = decision.task.likeness
            tabled[task] = means[like[0][0]] if like else usual
    both = (("ours, class guessed", ours), ("class table, class guessed", tabled))
    return [Result(name, table.solved[rows, choices], table.costs[rows, choices]) for name, choices in both]


def fitted(
    table: Outcomes, seen: NDArray[np.bool_], value: float, *, cascades: bool = False, examples: bool = False
) -> Router:
    """The router after the outcomes of the tasks that were ``seen``; its default is the one with most gain of these.
    ``examples``: their prompts are its classes' examples."""
    tier = Tier("bench", "openai", "http://127.0.0.1:1", frozenset(DataClass), "bench", "none")
    options = {name: Option(tier, name) for name in table.options}
    kinds = np.array(table.kinds)
    tallies, classes = [], {}
    for kind in sorted(set(table.kinds)):
        rows = seen & (kinds == kind)
        told = tuple(table.prompts[task] for task in np.flatnonzero(rows).tolist()) if examples else ()
        classes[kind] = TaskClass(kind, value, examples=told)
        for place, name in enumerate(table.options):
            solved, cost = int(table.solved[rows, place].sum()), table.costs[rows, place]
            mean = float(cost.mean()) if len(cost) else None
            tallies.append(Tally(kind, "bench", name, "", "", solved, int(rows.sum()) - solved, int(rows.sum()), mean))
    unknown = TaskClass(UNKNOWN, value)
    pairs = [(one, two) for one in options.values() for two in options.values() if one != two] if cascades else []
    best = table.options[int((table.solved[seen] * value - table.costs[seen]).mean(0).argmax())]
    settings = Settings(
        path=Path("bench"),
        tiers={"bench": tier},
        options={option.name: option for option in options.values()},
        default=options[best],
        classes={**classes, UNKNOWN: unknown},
        unknown=unknown,
        cascades=tuple(Cascade(one, two, "finished", 1.0, 0.0) for one, two in pairs),
        routing=Routing(),
    )
    return Router(settings, Prices(()), Posterior(tallies), random.Random(0))


def cascaded(table: Outcomes, folds: Choices, value: float) -> Result:
    """Ours, where a first answer may be checked by the benchmark's own tests: a check that is never wrong."""
    rows = np.arange(len(table.kinds))
    first, second = out_of_fold(table, folds, value, cascades=True)
    solved, costs = table.solved[rows, first], table.costs[rows, first]
    again = (second >= 0) & (solved < 1)
    costs = costs + np.where(again, table.costs[rows, second], 0)
    return Result("ours, perfect check", np.where(again, table.solved[rows, second], solved), costs)


def summaries(results: Sequence[Result], value: float, seed: int = 1) -> list[dict[str, Any]]:
    """Means with intervals; and differences to the best single option and to the class table, over the same tasks."""
    best, usual = results[0], next(each for each in results if each.name == "class table")
    rng, size = np.random.default_rng(seed), len(best.solved)
    gains = [each.solved * value - each.costs for each in (*results, best, usual)]
    columns = np.column_stack([column for each in results for column in (each.solved, each.costs)] + gains)
    drawn = np.array([columns[rng.integers(0, size, size)].mean(0) for _ in range(RESAMPLES)])
    both = np.vstack([columns.mean(0), drawn])
    offset = 2 * len(results)
    found = []
    for place, result in enumerate(results):
        solved, costs, gain = both[:, 2 * place], both[:, 2 * place + 1], both[:, offset + place]
        numbers = {
            "solved": solved,
            "cost": costs,
            "cost_per_solved": costs / np.maximum(solved, 1 / size),
            "gain": gain,
            "gain_over_best": gain - both[:, -2],
            "gain_over_class_table": gain - both[:, -1],
        }
        found.append({"policy": result.name, **{name: _interval(values) for name, values in numbers.items()}})
    return found


def _interval(values: Numbers) -> list[float]:
    """What was measured, and between what 95 % of the resamples lie."""
    low, high = np.quantile(values[1:], (0.025, 0.975))
    return [float(values[0]), float(low), float(high)]


def option_sets(count: int) -> list[tuple[int, ...]]:
    """All sets of so many options, or those that are drawn."""
    every = list(itertools.combinations(range(count), SIZE))
    drawn = np.random.default_rng(0).permutation(len(every))[:SETS]
    return [every[place] for place in sorted(drawn.tolist())]


def over_sets(table: Outcomes, cuts: Sequence[Choices], value: float) -> dict[str, Any]:
    """Ours less the class table, over tasks and sets of options: p·V − c, the share solved, the cost."""
    rows, sets = np.arange(len(table.kinds)), option_sets(len(table.options))
    more, dearer = np.zeros((len(sets), len(rows))), np.zeros((len(sets), len(rows)))
    for folds in cuts:
        for number, places in enumerate(list(each) for each in sets):
            names = tuple(table.options[place] for place in places)
            part = replace(table, options=names, solved=table.solved[:, places], costs=table.costs[:, places])
            ours, tabled = out_of_fold(part, folds, value)[0], by_class(part, folds, value)
            for found, cells in ((more, part.solved), (dearer, part.costs)):
                found[number] += (cells[rows, ours] - cells[rows, tabled]) / len(cuts)
    gain, rng = more * value - dearer, np.random.default_rng(1)
    drawn = [
        (rng.integers(0, len(gain), len(gain)), rng.integers(0, gain.shape[1], gain.shape[1])) for _ in range(RESAMPLES)
    ]
    told: dict[str, Any] = {"sets": len(gain), "not_below": float((gain.mean(1) >= -1e-12).mean())}
    for name, cells in (("gain_over_class_table", gain), ("solved_over", more), ("cost_over", dearer)):
        resampled = [cells[some].mean(0)[tasks].mean() for some, tasks in drawn]
        told[name] = _interval(np.array([cells.mean(), *resampled]))
    return told


def show_sets(table: Outcomes, value: float, told: dict[str, Any]) -> None:
    size = f"{told['sets']} sets of {SIZE} options"
    print(f"\n{table.name}: {size}; V = {value:g} {table.unit}; ours over the class table")
    print("p·V − c {:+.5f} ({:+.5f} to {:+.5f})".format(*told["gain_over_class_table"]))
    print("solved {:+.2%} ({:+.2%} to {:+.2%})".format(*told["solved_over"]))
    print("cost {:+.5f} ({:+.5f} to {:+.5f})".format(*told["cost_over"]))
    print(f"not below in {told['not_below']:.0%} of the sets")


def show(table: Outcomes, value: float, found: Sequence[dict[str, Any]]) -> None:
    size = f"{len(table.kinds)} tasks, {len(table.options)} options, {len(set(table.kinds))} classes"
    print(f"\n{table.name}: {size}; V = {value:g} {table.unit}")
    print(f"{'policy':24} {'solved':24} {'cost per task':28} {'per solved':10} {'p·V − c':8} over the class table")
    for each in found:
        solved = "{:.1%} ({:.1%} to {:.1%})".format(*each["solved"])
        cost = "{:.4f} ({:.4f} to {:.4f})".format(*each["cost"])
        over = "{:+.4f} ({:+.4f} to {:+.4f})".format(*each["gain_over_class_table"])
        solved_cost, gain = each["cost_per_solved"][0], each["gain"][0]
        print(f"{each['policy']:24} {solved:24} {cost:28} {solved_cost:<10.4f} {gain:<8.4f} {over}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=FOLDER, help="what bench/outcomes.py fetched")
    parser.add_argument("--json", type=Path, help="also write the document there")
    args = parser.parse_args()
    found = tables(args.data)
    if not found:
        print(f"There are no outcome tables in {args.data}; run python bench/outcomes.py.", file=sys.stderr)
        return 1
    document: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "folds": FOLDS,
        "cuts": CUTS,
        "tables": [],
        "sets": [],
    }
    for table in found:
        cuts = [np.random.default_rng(seed).permutation(len(table.kinds)) % FOLDS for seed in range(CUTS)]
        guessable = bool(table.prompts) and len(set(table.kinds)) > 1
        for value in table.values if table.whole else ():
            runs = [evaluate(table, folds, value, guess=guessable and number == 0) for number, folds in enumerate(cuts)]
            told = summaries(averaged(runs), value)
            show(table, value, told)
            facts = {"name": table.name, "tasks": len(table.kinds), "value": value, "unit": table.unit}
            document["tables"].append({**facts, "policies": told})
        for value in table.values if len(table.options) > SIZE else ():
            among = over_sets(table, cuts, value)
            show_sets(table, value, among)
            document["sets"].append({"name": table.name, "value": value, "unit": table.unit, **among})
    if args.json:
        args.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())
