"""The offline face: vLLM's quick start runs, outputs are complete and in order, mistakes are named before any work."""

from __future__ import annotations

import asyncio
import gc
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from qwench import LLM, SamplingParams
from qwench.engine.request import TokenEvent, TokenLogprob, Vocabulary
from qwench.errors import ContextLengthExceeded, EngineUnavailable, ModelNotFound, QwenchError, RequestError, UsageError
from qwench.llm import Prompt, read_size
from tests.server.scripted import ScriptedEngine, answering
from tests.server.tiny import write_checkpoint, write_text

USER = [{"role": "user", "content": "Hi"}]


class Scripted(ScriptedEngine):
    """A scripted engine that is loaded from the beginning."""

    def start(self, vocabulary: Vocabulary | None = None) -> None:
        assert vocabulary is not None

    def wait_ready(self, timeout: float | None = None) -> None:
        self._require_ready()


Open = Callable[..., tuple[LLM, Scripted]]


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("llm") / "text")


@pytest.fixture
def scripted(text_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Open:
    def start(script: str | Callable[[str, SamplingParams], Iterable[Any]]) -> tuple[LLM, Scripted]:
        engine = Scripted(text_folder, lambda _prompt, sampling: engine.spell(str(script), sampling))
        if not isinstance(script, str):
            engine.script = script
        monkeypatch.setattr("qwench.llm.EngineClient", lambda config: engine)
        return LLM(str(text_folder)), engine

    return start


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    """The real engine over random weights."""
    import torch

    torch.set_num_threads(1)
    folder = write_checkpoint(tmp_path_factory.mktemp("llm") / "whole")
    with LLM(model=str(folder), device="cpu", dtype="float32", memory="256MiB", max_num_seqs=4) as llm:
        yield llm


def test_vllms_quick_start(llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = ["Hello, my name is", "The president of the United States is", "The capital of France is"]
    sampling_params = SamplingParams(temperature=0.8, top_p=0.95, max_tokens=8)
    outputs = llm.generate(prompts, sampling_params)
    for prompt, output in zip(prompts, outputs, strict=True):
        assert output.prompt == prompt
        assert output.prompt_token_ids == llm.get_tokenizer().encode(prompt)
        answer = output.outputs[0]
        assert answer.text == llm.get_tokenizer().decode(answer.token_ids)
        assert answer.finish_reason in {"length", "stop"}
        assert answer.finished()
        assert len(answer.token_ids) == 8 or answer.finish_reason == "stop"
        assert (answer.index, answer.logprobs, answer.cumulative_logprob) == (0, None, None)
        assert output.finished
    assert capsys.readouterr().out == ""


def test_the_batch_is_what_each_prompt_gives_alone(llm: LLM) -> None:
    prompts: list[Prompt] = ["Hello", {"prompt": "The answer"}, {"prompt_token_ids": [5, 6, 7]}]
    greedy = SamplingParams(temperature=0, max_tokens=6)
    together = llm.generate(prompts, greedy, use_tqdm=False)
    alone = [llm.generate(prompt, greedy, use_tqdm=False)[0] for prompt in prompts]
    assert [each.outputs[0].token_ids for each in together] == [each.outputs[0].token_ids for each in alone]
    assert [each.prompt for each in together] == ["Hello", "The answer", None]
    assert len({each.request_id for each in together + alone}) == 6


def test_a_seed_repeats_and_its_choices_differ(llm: LLM) -> None:
    params = SamplingParams(n=3, seed=11, temperature=1.0, max_tokens=8)
    first, second = (llm.generate("Hello", params, use_tqdm=False)[0].outputs for _ in range(2))
    assert [each.token_ids for each in first] == [each.token_ids for each in second]
    assert [each.index for each in first] == [0, 1, 2]
    assert len({tuple(each.token_ids) for each in first}) == 3


def test_logprobs_in_vllms_form(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=5, logprobs=3, prompt_logprobs=2, ignore_eos=True)
    output = llm.generate("Hello world", params, use_tqdm=False)[0]
    answer = output.outputs[0]
    assert answer.logprobs is not None
    assert answer.cumulative_logprob is not None
    assert len(answer.logprobs) == len(answer.token_ids) == 5
    for token, top in zip(answer.token_ids, answer.logprobs, strict=True):
        assert [entry.rank for entry in top.values()] == [1, 2, 3]
        assert top[token].rank == 1  # greedy
        assert top[token].decoded_token == llm.get_tokenizer().token_text(token)
    drawn = [top[token].logprob for token, top in zip(answer.token_ids, answer.logprobs, strict=True)]
    assert answer.cumulative_logprob == pytest.approx(sum(drawn))
    assert output.prompt_logprobs is not None
    assert output.prompt_logprobs[0] is None
    assert len(output.prompt_logprobs) == len(output.prompt_token_ids)
    for token, before in zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True):
        assert before is not None
        assert token in before
        assert len(before) in {2, 3}


def test_chat_equals_the_rendered_prompt(llm: LLM) -> None:
    greedy = SamplingParams(temperature=0, max_tokens=6)
    output = llm.chat(USER, greedy, enable_thinking=False, use_tqdm=False)[0]
    assert output.prompt is not None
    assert output.prompt.endswith("<think>\n\n</think>\n\n")
    again = llm.generate({"prompt_token_ids": output.prompt_token_ids}, greedy, use_tqdm=False)[0]
    assert again.outputs[0].token_ids == output.outputs[0].token_ids


def test_several_conversations_and_params_of_their_own(llm: LLM) -> None:
    params = [SamplingParams(temperature=0, max_tokens=2), SamplingParams(temperature=0, max_tokens=3)]
    outputs = llm.chat([USER, [{"role": "user", "content": "Bye"}]], params, use_tqdm=False)
    assert [len(output.outputs[0].token_ids) for output in outputs] == [2, 3]
    with pytest.raises(RequestError, match="sampling_params has 2 entries for 1 prompts"):
        llm.generate("Hi", params)
    with pytest.raises(RequestError, match=r"sampling_params\[0\] is of type dict"):
        llm.generate("Hi", [{"temperature": 0}])  # type: ignore[list-item]


def test_the_engines_limits_come_as_its_errors(llm: LLM) -> None:
    with pytest.raises(ContextLengthExceeded, match=r"^prompts\[1\]: the prompt has 600 tokens.* 512 tokens"):
        llm.generate(["fine", {"prompt_token_ids": [5] * 600}], SamplingParams(max_tokens=1), use_tqdm=False)
    stats = llm.client.stats()
    deadline = time.monotonic() + 10
    while (stats.running or stats.waiting) and time.monotonic() < deadline:
        stats = llm.client.stats()
    assert (stats.running, stats.waiting, stats.slots_used) == (0, 0, stats.snapshots)


def test_a_bad_prompt_is_refused_before_any_other_runs(llm: LLM) -> None:
    before = llm.client.stats()
    good: list[Prompt] = ["fine"] * 20
    for bad, sentence in (([5] * 600, "the prompt has 600 tokens"), ([5, 10**6], "prompt holds token id 1000000")):
        with pytest.raises(RequestError, match=rf"^prompts\[20\]: {sentence}"):
            llm.generate([*good, {"prompt_token_ids": bad}], SamplingParams(max_tokens=4), use_tqdm=False)
    with pytest.raises(ContextLengthExceeded, match=r"^prompts\[1\]: the prompt has "):
        llm.chat([USER, [{"role": "user", "content": "x " * 600}]], SamplingParams(max_tokens=4), use_tqdm=False)
    assert llm.client.stats() == before


def test_it_works_inside_a_running_loop(llm: LLM) -> None:
    async def notebook() -> int:
        return len(llm.generate("Hello", SamplingParams(max_tokens=1), use_tqdm=False))

    assert asyncio.run(notebook()) == 1


def test_reasoning_stands_apart_in_chat_and_not_in_generate(scripted: Open) -> None:
    llm, _ = scripted("I see.\n</think>\n\nForty-two.")
    answer = llm.chat(USER, SamplingParams(), enable_thinking=True, use_tqdm=False)[0].outputs[0]
    assert (answer.reasoning_content, answer.text, answer.finish_reason) == ("I see.", "Forty-two.", "stop")
    assert answer.reasoning_tokens == len(llm.get_tokenizer().encode("I see.\n</think>"))
    raw = llm.generate("x", SamplingParams(), use_tqdm=False)[0].outputs[0]
    assert (raw.reasoning_content, raw.text) == (None, "I see.\n</think>\n\nForty-two.")


def test_a_budget_reaches_the_engine_and_its_end_the_output(scripted: Open) -> None:
    def script(_prompt: str, _sampling: SamplingParams) -> Iterable[TokenEvent]:
        ids = tuple(engine.text.tokenizer.encode("I see.\n</think>\n\nYes."))
        yield TokenEvent(ids[:1], (TokenLogprob(ids[0], -0.5, 1, ()),))
        yield TokenEvent(ids[1:], (None,) * (len(ids) - 1), finish_reason="length", closed_by="budget")

    llm, engine = scripted(script)
    answer = llm.chat(USER, SamplingParams(logprobs=0), thinking_budget=64, use_tqdm=False)[0].outputs[0]
    assert (answer.reasoning_content, answer.text, answer.thinking_closed_by) == ("I see.", "Yes.", "budget")
    assert answer.cumulative_logprob == -0.5  # what was written was not drawn
    assert answer.logprobs is not None
    assert len(answer.logprobs) == len(answer.token_ids)
    llm.chat(USER, thinking_budget=64, enable_thinking=False, use_tqdm=False)
    llm.generate("x", use_tqdm=False)
    first, second, third = engine.rules
    assert first is not None
    assert second is not None
    assert (first.open, first.budget, second.open, third) == (True, 64, False, None)


def test_a_stop_string_ends_the_sequence_in_the_engine(scripted: Open) -> None:
    def script(_prompt: str, sampling: SamplingParams) -> Iterable[Any]:
        yield from engine.spell("one two three", sampling)[:-1]
        yield threading.Event()  # never set: only an abort goes on from here

    llm, engine = scripted(script)
    params = SamplingParams(stop=["two", "never"], logprobs=0)
    answer = llm.generate("x", params, use_tqdm=False)[0].outputs[0]
    assert (answer.text, answer.finish_reason, answer.stop_reason) == ("one ", "stop", "two")
    assert llm.get_tokenizer().decode(answer.token_ids).endswith("two")
    assert answer.logprobs is not None
    assert len(answer.logprobs) == len(answer.token_ids)
    assert not engine.alive
    shown = SamplingParams(stop="two", include_stop_str_in_output=True)
    assert llm.generate("x", shown, use_tqdm=False)[0].outputs[0].text == "one two"


def test_a_stop_id_is_the_reason_only_when_asked_for(scripted: Open) -> None:
    llm, _ = scripted("yes")
    end = llm.get_tokenizer().id_of("<|im_end|>")
    assert end is not None
    assert llm.generate("x", SamplingParams(), use_tqdm=False)[0].outputs[0].stop_reason is None
    asked = SamplingParams(stop_token_ids=[end])
    assert llm.generate("x", asked, use_tqdm=False)[0].outputs[0].stop_reason == end


def test_without_params_the_recommended_ones_are_used(scripted: Open, text_folder: Path) -> None:
    (text_folder / "generation_config.json").write_text('{"temperature": 0.3, "top_k": 7}', encoding="utf-8")
    try:
        llm, engine = scripted("yes")
    finally:
        (text_folder / "generation_config.json").unlink()
    llm.generate("x", use_tqdm=False)
    llm.chat(USER, use_tqdm=False)
    assert engine.submitted == [SamplingParams(temperature=0.3, top_k=7)] * 2


def test_the_template_gets_its_variables(scripted: Open) -> None:
    llm, engine = scripted("yes")
    tools = [{"type": "function", "function": {"name": "look_up", "parameters": {}}}]
    llm.chat(USER, tools=tools, chat_template_kwargs={"enable_thinking": True}, use_tqdm=False)
    assert "look_up" in engine.prompts[0]
    assert engine.prompts[0].endswith("<think>\n")
    llm.chat(USER, add_generation_prompt=False, use_tqdm=False)
    assert engine.prompts[1].endswith("Hi<|im_end|>\n")


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda llm: llm.generate(""), "The prompt is empty"),
        (lambda llm: llm.generate(["a", {"prompt_token_ids": []}]), r"prompts\[1\]: The prompt is empty"),
        (lambda llm: llm.generate([1, 2]), r"prompts\[0\]: The prompt is of type int; give text"),
        (lambda llm: llm.generate({"prompt_token_ids": "ab"}), "prompt_token_ids is no list of whole numbers"),
        (lambda llm: llm.generate({"text": "x"}), "of type NoneType; give text"),
        (
            lambda llm: llm.generate({"prompt": "x", "multi_modal_data": {"image": [1]}}),
            "multi_modal_data is something to look at, but this model reads text only",
        ),
        (lambda llm: llm.chat([]), "messages is empty"),
        (lambda llm: llm.chat([{"role": "critic", "content": "x"}]), r"messages\[0\] has the role 'critic'"),
        (lambda llm: llm.chat(USER, thinking_budget=-1), "thinking_budget is -1; give a number of tokens from 0"),
        (lambda llm: llm.generate("x", SamplingParams(max_tokens=0)), "max_tokens is 0"),
        (lambda llm: llm.generate("x", SamplingParams(temperature=float("nan"))), "temperature is nan"),
    ],
)
def test_mistakes_are_named_and_nothing_runs(scripted: Open, call: Callable[[LLM], Any], sentence: str) -> None:
    llm, engine = scripted("yes")
    with pytest.raises(RequestError, match=sentence):
        call(llm)
    assert engine.submitted == []


def test_no_prompts_are_no_outputs(scripted: Open) -> None:
    llm, _ = scripted("yes")
    assert llm.generate([]) == []


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"max_num_seq": 3}, "LLM has no option max_num_seq; did you mean max_num_seqs?"),
        ({"xyz": 3}, "LLM has no option xyz; known are "),
        ({"trust_remote_code": True}, "never runs code that comes with a model"),
        ({"tensor_parallel_size": 4}, "tensor_parallel_size is 4"),
        ({"gpu_memory_utilization": 2}, "gpu_memory_utilization is 2"),
        ({"memory": "lots"}, "memory is 'lots'; give bytes, or a size such as 2GiB"),
        ({"max_model_len": 0}, "max_model_len is 0"),
        ({"dtype": "int3"}, "dtype is 'int3'"),
    ],
)
def test_options_are_checked_before_loading(text_folder: Path, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        LLM(str(text_folder), **options)


def test_vllms_options_are_accepted(text_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def make(config: Any) -> Scripted:
        seen.append(config)
        return answering_engine(text_folder)

    monkeypatch.setattr("qwench.llm.EngineClient", make)
    LLM(
        "m",
        dtype="half",
        trust_remote_code=False,
        gpu_memory_utilization=0.8,
        tensor_parallel_size=1,
        memory=7,
        seed=None,
    )
    LLM("m", dtype="torch.bfloat16", memory="1.5 GiB", offline=True)
    assert [(each.dtype, each.memory, each.seed) for each in seen] == [
        ("float16", 7, 0),
        ("bfloat16", 3 * 2**29, 0),
    ]
    assert [each.offline for each in seen] == [False, True]


def answering_engine(folder: Path) -> Scripted:
    return Scripted(folder, answering("yes")(folder).script)


def test_a_missing_model_or_broken_weights_are_one_error(tmp_path: Path, text_folder: Path) -> None:
    with pytest.raises(ModelNotFound):
        LLM(str(tmp_path / "nothing"), offline=True)
    with pytest.raises(QwenchError, match="safetensors"):
        LLM(str(text_folder))  # a checkpoint without weights


def test_an_engine_failure_reaches_the_caller(scripted: Open) -> None:
    llm, engine = scripted(lambda _prompt, _sampling: [TokenEvent(finish_reason="error", error="out of memory")])
    with pytest.raises(EngineUnavailable, match="out of memory"):
        llm.generate(["a", "b"], use_tqdm=False)
    assert not engine.alive


def test_an_interrupt_frees_what_was_running(scripted: Open) -> None:
    llm, engine = scripted(lambda _prompt, _sampling: [threading.Event(), TokenEvent(finish_reason="stop")])

    main = threading.main_thread().ident
    assert main is not None

    def interrupt() -> None:
        while len(engine.alive) < 3:
            time.sleep(0.01)
        signal.pthread_kill(main, signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        llm.generate(["a", "b", "c"], use_tqdm=False)
    deadline = time.monotonic() + 5
    while engine.alive and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not engine.alive


def test_more_sequences_than_the_engine_takes_at_once(scripted: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwench.llm.MAX_IN_FLIGHT", 4)
    most = []

    def script(prompt: str, sampling: SamplingParams) -> Sequence[TokenEvent]:
        most.append(len(engine.alive))
        return engine.spell(prompt, sampling)

    llm, engine = scripted(script)
    prompts = [f"number {index}" for index in range(40)]
    assert [each.outputs[0].text for each in llm.generate(prompts, SamplingParams(), use_tqdm=False)] == prompts
    assert max(most) <= 4


def test_closing_and_forgetting_are_safe(scripted: Open) -> None:
    llm, engine = scripted("yes")
    llm.generate("x", use_tqdm=False)
    llm.close()
    llm.close()
    assert engine.status().state == "stopped"
    with pytest.raises(EngineUnavailable):
        llm.generate("x", use_tqdm=False)
    llm, engine = scripted("yes")
    llm.generate("x", use_tqdm=False)
    del llm
    gc.collect()
    assert engine.status().state == "stopped"
    LLM.__new__(LLM).close()  # what remains of a constructor that raised


@pytest.mark.parametrize(
    ("text", "size"),
    [("2GiB", 2 << 30), ("512M", 512 << 20), ("1.5 gb", 3 << 29), ("1000", 1000), (" 4k ", 4096), ("1tib", 1 << 40)],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert read_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1", "1 GiB x", "1.2.3G", "1e9"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="memory is "):
        read_size(text)
