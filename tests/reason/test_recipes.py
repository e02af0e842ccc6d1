"""Recipes over a scripted engine and over nano: the budget is a law, most votes win, nothing is left running."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from qwench import LLM, SamplingParams
from qwench.engine.request import TokenEvent, TokenLogprob
from qwench.errors import EngineUnavailable, RequestError
from qwench.reason import told
from qwench.reason.checks import Check, Verdict
from qwench.reason.course import Budget, Outcome
from qwench.reason.recipes import Task, reason
from qwench.reason.strategy import METHODS, Method, Strategy, read_strategy
from tests.server.conftest import wait_until
from tests.server.scripted import END, ScriptedEngine
from tests.server.tiny import write_text

ASKED = [{"role": "user", "content": "What is 47 + 38?"}]
Answer = Callable[[str, int], tuple[str, float]]  # of a prompt and a sample's number: what is said, and how surely


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("reason") / "text")


def scripted(folder: Path, answer: Answer) -> ScriptedEngine:
    """An engine whose samples say what ``answer`` gives for their prompt and seed, with log-probabilities to match."""

    def script(prompt: str, sampling: SamplingParams) -> Iterator[TokenEvent]:
        words, logprob = answer(prompt, sampling.seed or 0)
        ids = engine.text.tokenizer.encode(words)
        assert sampling.max_tokens is not None
        for at, token in enumerate(ids[: sampling.max_tokens]):
            last = at + 1 == sampling.max_tokens < len(ids)
            known = (TokenLogprob(token, logprob, 1, ()),)
            yield TokenEvent((token,), known, finish_reason="length" if last else None)
        if len(ids) <= sampling.max_tokens:
            yield TokenEvent(finish_reason="stop", stop_token_id=engine.text.tokenizer.id_of(END))

    engine = ScriptedEngine(folder, script)
    return engine


def run(engine: ScriptedEngine, strategy: Strategy, check: Check | None = None, most: int = 50) -> Outcome:
    sampling = SamplingParams(seed=0, max_tokens=most)
    task = Task(ASKED, engine.text.chat_prompt, sampling, strategy, check)
    outcome = asyncio.run(reason(engine, engine.text.tokenizer, task, task.limit(engine)))
    wait_until(lambda: not engine.alive)
    return outcome


def test_the_vote_ends_as_soon_as_they_agree(text_folder: Path) -> None:
    engine = scripted(text_folder, lambda _, number: ("85", -0.1))
    outcome = run(engine, Strategy("vote", samples=16))
    assert outcome.sample.content == "85"
    assert outcome.report["stopped"] == "agreed"
    assert outcome.report["stays"] >= 0.95
    assert len(outcome.report["samples"]) == len(engine.submitted) == 4
    assert "4 of 4 votes for the answer" in told.after(outcome.report)


def test_where_they_differ_the_vote_goes_on_and_most_win(text_folder: Path) -> None:
    engine = scripted(text_folder, lambda _, number: (("85", "84", "85", "83")[number % 4], -0.1))
    outcome = run(engine, Strategy("vote", samples=12))
    assert outcome.sample.content == "85"
    assert [each["answer"] for each in outcome.report["votes"]] == ["85", "84", "83"]
    assert 8 < len(outcome.report["samples"]) <= 12


def test_a_cut_or_empty_sample_has_no_vote(text_folder: Path) -> None:
    long = "It is " + "eighty " * 40
    engine = scripted(text_folder, lambda _, number: (long if number % 3 else "85", -0.1))
    outcome = run(engine, Strategy("vote", samples=9), most=10)
    assert outcome.sample.content == "85"
    assert [each["answer"] for each in outcome.report["votes"]] == ["85"]
    assert {sample["answer"] for sample in outcome.report["samples"] if not sample["counted"]} != {"85"}


def test_the_least_confident_do_not_vote_and_stop_early(text_folder: Path) -> None:
    engine = scripted(text_folder, lambda _, number: ("85", -0.1) if number % 4 == 0 else ("84 84 84 84", -3.0))
    spell = engine.script

    def endless(prompt: str, sampling: SamplingParams) -> Iterator[Any]:
        """From the second round on the unsure ones would never end by themselves."""
        events = list(spell(prompt, sampling))
        number = sampling.seed or 0
        return iter([*events[:-1], engine.go] if number >= 3 and number % 4 else events)

    engine.script = endless
    outcome = run(engine, Strategy("vote", samples=10, keep=0.25, window=4))
    assert outcome.sample.content == "85"
    assert [each["answer"] for each in outcome.report["votes"]] == ["85"]
    ends = [sample["finish_reason"] for sample in outcome.report["samples"]]
    assert ends[:3] == ["stop"] * 3
    assert "unsure" in ends[3:]


def passes(answer: str) -> Verdict:
    return Verdict(answer == "85", f"{answer} is not right")


def test_best_of_stops_at_the_first_that_passes(text_folder: Path) -> None:
    engine = scripted(text_folder, lambda _, number: ("85" if number >= 2 else "84", -0.1))
    outcome = run(engine, Strategy("best_of", samples=16), passes)
    assert outcome.sample.content == "85"
    assert (outcome.report["passed"], outcome.report["stopped"]) == (True, "passed")
    assert len(engine.submitted) == 3  # one, then two


def test_the_next_attempt_is_shown_what_failed(text_folder: Path) -> None:
    engine = scripted(text_folder, lambda prompt, _: ("85" if "84 is not right" in prompt else "84", -0.1))
    outcome = run(engine, Strategy("best_of", samples=4), passes)
    assert outcome.sample.content == "85"
    assert sum("84 is not right" in prompt for prompt in engine.prompts) == 1
    assert outcome.report["tokens"]["prompt"] > len(engine.text.chat_prompt(ASKED).token_ids)


def test_where_nothing_passes_the_surest_is_given_and_it_is_said(text_folder: Path) -> None:
    engine = scripted(text_folder, lambda _, number: (str(number), -1.0 if number != 2 else -0.5))
    outcome = run(engine, Strategy("best_of", samples=4), passes)
    assert outcome.sample.content == "2"
    assert (outcome.report["passed"], outcome.report["stopped"]) == (False, "samples")
    assert "no answer passed the check" in told.after(outcome.report)


def test_a_forest_goes_on_from_its_own_tokens_and_votes(text_folder: Path) -> None:
    thought = "one two three four five six seven eight nine ten eleven twelve"

    def grow(prompt: str, number: int) -> tuple[str, float]:
        told_already = prompt.rpartition("assistant")[2]
        rest = thought[len(told_already.partition("one")[1] + told_already.partition("one")[2]) :]
        return rest or "end", -0.1

    engine = scripted(text_folder, grow)
    outcome = run(engine, Strategy("forest", samples=2, depth=2, step=4, branches=2), most=90)
    assert outcome.sample.content == thought
    assert len(engine.submitted) == 2 + 4 + 2
    assert outcome.report["votes"] == [{"answer": thought, "votes": 2}]


@pytest.mark.parametrize("budget", range(60, 200, 7))
def test_a_forest_never_grows_so_much_that_nobody_can_answer(text_folder: Path, budget: int) -> None:
    thought = " ".join(f"word{number % 10}" for number in range(8))

    def grow(prompt: str, _: int) -> tuple[str, float]:
        said = prompt.rpartition("assistant")[2]
        return thought[len(said.partition("word")[1] + said.partition("word")[2]) :] or "end", -0.1

    engine = scripted(text_folder, grow)
    outcome = run(engine, Strategy("forest", samples=5, depth=4, step=10, budget=budget), most=60)
    assert outcome.sample.content == thought
    assert outcome.finish_reason == "stop"


def test_a_forest_looks_again_at_what_failed(text_folder: Path) -> None:
    engine = scripted(text_folder, lambda prompt, _: ("85" if "not right" in prompt else "84", -0.1))
    outcome = run(engine, Strategy("forest", samples=2), passes)
    assert outcome.sample.content == "85"
    assert outcome.report["passed"] is True


@pytest.mark.parametrize("seed", range(60))
def test_the_budget_is_never_exceeded_and_every_token_is_counted(text_folder: Path, seed: int) -> None:
    rng = Random(seed)
    lengths = [rng.randint(0, 40) for _ in range(64)]
    engine = scripted(text_folder, lambda _, number: ("word " * lengths[number % 64] + str(number % 3), -rng.random()))
    method: Method = rng.choice(METHODS)
    strategy = Strategy(
        method,
        samples=rng.randint(1, 6 if method == "forest" else 20),
        budget=rng.randint(1, 300),
        keep=rng.choice((1.0, 0.5)),
        window=rng.randint(1, 8),
        step=rng.randint(1, 20),
        depth=rng.randint(1, 3),
    )
    check = passes if method == "best_of" or rng.random() < 0.3 else None
    report = run(engine, strategy, check, most=rng.randint(1, 60)).report
    tokens = report["tokens"]
    assert tokens["used"] == sum(sample["tokens"] for sample in report["samples"])
    assert tokens["used"] <= tokens["at_most"] <= (strategy.budget or 0)
    assert len(report["samples"]) == len(engine.submitted) <= strategy.most_samples()


def test_a_budget_too_small_for_all_begins_fewer_and_not_all_too_short() -> None:
    budget = Budget(100)
    assert budget.shares([60, 60, 60], least=40) == [50, 50]
    budget.settle(100, 70)
    assert budget.shares([60], least=40) == []
    assert budget.shares([20], least=40) == [20]
    assert budget.left == 10


def test_a_failed_sample_fails_the_answer_and_frees_the_rest(text_folder: Path) -> None:
    engine = scripted(text_folder, lambda _, number: ("85", -0.1))
    spell = engine.script

    def fail(prompt: str, sampling: SamplingParams) -> Any:
        if sampling.seed == 1:
            return [TokenEvent(finish_reason="error", error="the kernel is gone")]
        return [*list(spell(prompt, sampling))[:1], engine.go]

    engine.script = fail
    with pytest.raises(EngineUnavailable, match="the kernel is gone"):
        run(engine, Strategy("vote", samples=4))
    wait_until(lambda: not engine.alive)


def test_an_interrupt_leaves_nothing_running(text_folder: Path) -> None:
    engine = scripted(text_folder, lambda _, number: ("85", -0.1))
    engine.script = lambda _prompt, _sampling: [engine.go]

    async def interrupted() -> None:
        task = Task(ASKED, engine.text.chat_prompt, SamplingParams(max_tokens=5), Strategy())
        work = asyncio.create_task(reason(engine, engine.text.tokenizer, task, 5))
        await asyncio.to_thread(wait_until, lambda: bool(engine.alive))
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)

    asyncio.run(interrupted())
    wait_until(lambda: not engine.alive)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"method": "votes"}, "s.method is 'votes'; give one of vote, best_of, forest"),
        ({"samples": 65}, "s.samples is 65; give a whole number from 1 to 64"),
        ({"samples": True}, "s.samples is True"),
        ({"budget": 0}, "s.budget is 0"),
        ({"confidence": 0.5}, "s.confidence is 0.5; give a number above 0.5 and at most 1"),
        ({"keep": 0}, "s.keep is 0"),
        ({"sample": 3}, "s has no field 'sample'; did you mean samples?"),
        ({"method": "best_of"}, "s: best_of needs a check"),
        ({"method": "forest", "samples": 20}, "64 samples at most"),
        ([], "s should be an object"),
    ],
)
def test_a_strategy_that_makes_no_sense_is_one_sentence(given: object, sentence: str) -> None:
    with pytest.raises(RequestError) as refusal:
        read_strategy(given, "s")
    assert sentence in refusal.value.message
    assert (refusal.value.param or "").startswith("s")


@pytest.fixture(scope="module")
def nano() -> Iterator[LLM]:
    import torch

    torch.set_num_threads(1)
    with LLM("nano") as llm:
        yield llm


def test_nano_agrees_on_a_sum_and_its_prompt_is_read_once(nano: LLM) -> None:
    before = nano.client.stats().prompt_tokens
    found = nano.reason(ASKED, "vote", enable_thinking=True, sampling_params=SamplingParams(seed=1, max_tokens=200))
    assert found.text == "85"
    assert found.reasoning_content
    assert found.report["stopped"] == "agreed"
    tokens = found.report["tokens"]
    assert tokens["used"] == sum(sample["tokens"] for sample in found.report["samples"]) <= tokens["at_most"] == 1600
    assert nano.client.stats().prompt_tokens - before < tokens["prompt"] + len(found.report["samples"])


def test_nano_under_every_strategy_keeps_the_budget(nano: LLM) -> None:
    product = [{"role": "user", "content": "What is 47 * 38?"}]
    for strategy, check in (("vote", None), ("best_of", "arithmetic"), ("forest", None), ("forest", "arithmetic")):
        generated = nano.client.stats().generated_tokens
        found = nano.reason(product, strategy, budget=350, check=check, enable_thinking=True)
        report = found.report
        assert report["tokens"]["used"] <= 350
        # The engine draws end tokens too, and a step or two more before it hears of a stop.
        assert nano.client.stats().generated_tokens - generated <= report["tokens"]["used"] + 2 * len(report["samples"])


def test_nano_greedy_is_refused_and_so_is_a_prompt_that_does_not_fit(nano: LLM) -> None:
    with pytest.raises(RequestError, match="every sample would be the same"):
        nano.reason(ASKED, sampling_params=SamplingParams(temperature=0))
    with pytest.raises(RequestError, match="strategy has no field 'n'"):
        nano.reason(ASKED, {"n": 5})
    with pytest.raises(RequestError, match="together more than the window"):
        nano.reason(ASKED, sampling_params=SamplingParams(max_tokens=10**6))
