"""Every call that the world outside can make fail, failing: what the user is told, and what goes on working."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import errno
import json
import threading
from collections.abc import Callable, Iterator
from contextvars import copy_context
from pathlib import Path
from typing import Any

import httpx
import pytest

from qwench import cli
from qwench.cli.serve import bind
from qwench.config import EngineConfig, ModelConfig
from qwench.engine.client import EngineClient
from qwench.engine.request import SamplingParams
from qwench.errors import (
    CheckpointError,
    ConfigError,
    ModelNotFound,
    OutOfMemory,
    OutputError,
    QwenchError,
    RequestError,
    TemplateError,
    UsageError,
)
from qwench.fault import FAULTS, Plan, fault, planned
from qwench.media.fetch import Sources
from qwench.media.pool import Decoders
from qwench.media.reader import MediaReader
from qwench.media.settings import VisionSettings
from qwench.ops.arrays import FLOAT32
from qwench.ops.kernels import native_usable
from qwench.ops.loading import FILE
from qwench.ops.native import load_library
from qwench.server.service import ServerSettings
from qwench.text.chat import ChatTemplate
from qwench.text.model import ModelText
from qwench.text.tokenizer import Tokenizer
from qwench.weights.locate import locate
from qwench.weights.open import open_weights
from tests.media.files import encoded, noise
from tests.meta.tree import PACKAGE, files, syntax
from tests.server.conftest import NAME, running, wait_until
from tests.server.scripted import ScriptedEngine, answering, install
from tests.server.tiny import write_checkpoint, write_text

BROKEN = OSError(errno.EIO, "Input/output error")
FULL = OSError(errno.ENOSPC, "No space left on device")
GREEDY = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": NAME, "messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture
def plan() -> Iterator[Plan]:
    with planned() as plan:
        yield plan


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("fault") / "whole")


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("fault") / "text")


def test_without_a_plan_nothing_happens() -> None:
    for name in FAULTS:
        fault(name)


def test_a_plan_counts_and_fails_as_often_as_it_says(plan: Plan) -> None:
    plan.fail("send", BROKEN, after=2, times=1)
    fault("send")
    fault("send")
    with pytest.raises(OSError, match="Input/output"):
        fault("send")
    fault("send")
    plan.fail("send", FULL)
    plan.mend("send")
    fault("send")
    assert plan.reached["send"] == 5


def test_a_plan_reaches_threads_and_tasks_started_from_it_and_no_others(plan: Plan) -> None:
    plan.fail("send", BROKEN)
    met: list[bool] = []

    def meet() -> None:
        try:
            fault("send")
        except OSError:
            met.append(True)
        else:
            met.append(False)

    async def task() -> None:
        await asyncio.create_task(asyncio.to_thread(meet))

    asyncio.run(task())
    inherited = threading.Thread(target=copy_context().run, args=(meet,))
    stranger = threading.Thread(target=meet)
    for thread in (inherited, stranger):
        thread.start()
        thread.join()
    assert met == [True, True, False]


def test_the_names_are_those_in_the_code() -> None:
    """``fault("x")`` with a listed name, each name somewhere; ``memory_for("x")`` stands for memory.x."""
    found = set()
    for path in files(PACKAGE, "*.py"):
        for node in ast.walk(syntax(path)):
            match node:
                case ast.Call(func=ast.Name("fault"), args=[ast.Constant(str(name))]):
                    found.add(name)
                case ast.Call(func=ast.Name("memory_for"), args=[ast.Constant(str(what)), *_]):
                    found.add(f"memory.{what}")
    assert found == set(FAULTS)


def sentence(error: type[QwenchError], act: Callable[[], object]) -> str:
    """What the user is told by ``act``."""
    with pytest.raises(error) as caught:
        act()
    told = caught.value.message
    assert told.endswith(".")
    assert "\n" not in told
    return told


def read(folder: Path) -> object:

    return list(open_weights(folder, ModelConfig.from_folder(folder), FLOAT32).parts())


@pytest.mark.parametrize(
    ("name", "error", "file", "act"),
    [
        ("read.config", ConfigError, "config.json", ModelConfig.from_folder),
        ("read.tokenizer", CheckpointError, "tokenizer.json", Tokenizer.from_folder),
        ("read.header", CheckpointError, "model.safetensors", read),
        ("read.weights", CheckpointError, "model.safetensors", read),
    ],
)
def test_a_file_that_the_disk_does_not_give(
    plan: Plan, checkpoint: Path, name: str, error: type[QwenchError], file: str, act: Callable[[Path], object]
) -> None:
    plan.fail(name, BROKEN, times=1)
    told = sentence(error, lambda: act(checkpoint))
    assert told.startswith(f"{checkpoint / file} cannot be read")
    assert "Input/output error" in told
    act(checkpoint)  # the next attempt finds everything as it was


def test_a_template_that_the_disk_does_not_give(plan: Plan, tmp_path: Path, text_folder: Path) -> None:
    tokenizer = Tokenizer.from_folder(text_folder)
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    plan.fail("read.template", BROKEN)
    told = sentence(TemplateError, lambda: ChatTemplate.from_folder(tmp_path, tokenizer))
    assert told.startswith(f"{tmp_path / 'chat_template.jinja'} cannot be read")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), "the Hub cannot be reached; check"),
        (TimeoutError(), "the Hub cannot be reached; check"),
        (FULL, "could not be stored in the Hugging Face cache: [Errno 28] No space left on device."),
    ],
)
def test_a_hub_that_does_not_answer_and_a_full_cache(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, told: str
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    plan.fail("connect.hub", error)
    assert told in sentence(ModelNotFound, lambda: locate("Qwen/Qwen3.5-4B", offline=False))


@pytest.mark.parametrize(("what", "fix"), [("weights", "smaller model"), ("cache", "lower max_model_len")])
@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: ...")])
def test_memory_that_is_not_there_when_the_engine_starts(
    plan: Plan, checkpoint: Path, what: str, fix: str, error: Exception
) -> None:
    plan.fail(f"memory.{what}", error)
    client = engine(checkpoint)
    told = sentence(OutOfMemory, client.wait_ready)
    assert told.startswith(f"There is not enough memory for the {what}: ")
    assert fix in told
    client.close()


def test_other_errors_of_torch_stay_bugs(plan: Plan, checkpoint: Path) -> None:
    plan.fail("memory.cache", RuntimeError("shape mismatch"))
    client = engine(checkpoint)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        client.wait_ready()
    client.close()


def engine(checkpoint: Path) -> EngineClient:
    import torch

    torch.set_num_threads(1)
    client = EngineClient(EngineConfig(model=str(checkpoint), dtype="float32", device="cpu"))
    client.start()
    return client


def test_memory_that_is_not_there_for_a_step_costs_that_step_only(plan: Plan, checkpoint: Path) -> None:
    client = engine(checkpoint)
    client.wait_ready()
    before = [token for event in client.submit([1, 2, 3], GREEDY) for token in event.token_ids]
    plan.fail("memory.step", MemoryError("12 GiB are not there"), after=1, times=1)
    *_, last = client.submit([1, 2, 3], GREEDY)
    assert (last.finish_reason, last.error) == ("error", "MemoryError: 12 GiB are not there")
    assert [token for event in client.submit([1, 2, 3], GREEDY) for token in event.token_ids] == before
    assert client.stats().pages_used == client.stats().slots_used == 0
    client.close()


def test_a_library_that_cannot_be_opened_leaves_torch(plan: Plan) -> None:

    if not FILE.exists():
        pytest.skip("no native library was built")
    load_library.cache_clear()
    plan.fail("library.open", OSError("wrong ELF class"))
    assert native_usable("cpu", FLOAT32) == (False, "no native library: wrong ELF class")
    plan.mend("library.open")
    assert native_usable("cpu", FLOAT32)[0]


@pytest.fixture
def batch(tmp_path: Path, text_folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Input and output of a batch of ten requests that a scripted engine answers."""
    from qwench.engine.client import EngineStatus

    class Loaded(ScriptedEngine):
        def start(self, vocabulary: object = None) -> None:
            self.become(EngineStatus("ready", 1.0))

        def wait_ready(self, timeout: float | None = None) -> None:
            self._require_ready()

    def make(_config: EngineConfig) -> ScriptedEngine:
        made = Loaded(text_folder, lambda _prompt, sampling: made.spell("fine", sampling))
        return made

    install(monkeypatch, make)
    source = tmp_path / "in.jsonl"
    lines = [{"custom_id": str(number), "method": "POST", "url": CHAT, "body": BODY} for number in range(10)]
    source.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return source, tmp_path / "out.jsonl"


def generate(batch: tuple[Path, Path]) -> int:
    return cli.main(["generate", "m", str(batch[0]), "-o", str(batch[1])])


@pytest.mark.parametrize(("error", "reason"), [(FULL, "the disk is full"), (BROKEN, "input/output error")])
def test_results_written_before_the_disk_failed_are_kept_and_the_same_command_goes_on(
    plan: Plan, batch: tuple[Path, Path], capsys: pytest.CaptureFixture[str], error: OSError, reason: str
) -> None:
    plan.fail("write.results", error, after=5)  # one to open the file, four results
    assert generate(batch) == OutputError.exit_code
    told = capsys.readouterr().err
    assert f"cannot take more results: {reason}. The 4 written in this run are kept; make room" in told
    assert "Traceback" not in told
    kept = batch[1].read_text().splitlines()
    assert len(kept) == 4
    plan.mend("write.results")
    assert generate(batch) == 0
    lines = batch[1].read_text().splitlines()
    assert lines[:4] == kept
    assert {json.loads(line)["custom_id"] for line in lines} == {str(number) for number in range(10)}


def test_a_result_file_that_cannot_be_opened(
    plan: Plan, batch: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    plan.fail("write.results", FULL)
    assert generate(batch) == OutputError.exit_code
    assert f"{batch[1]} cannot be written (No space left on device); give another file" in capsys.readouterr().err


@pytest.mark.parametrize("after", [3, 15])  # while lines are counted, and while they are answered
def test_an_input_that_breaks_off(
    plan: Plan, batch: tuple[Path, Path], capsys: pytest.CaptureFixture[str], after: int
) -> None:
    plan.fail("read.requests", BROKEN, after=after, times=1)
    assert generate(batch) == UsageError.exit_code
    told = capsys.readouterr().err
    assert f"{batch[0]} cannot be read (Input/output error); give a file of requests" in told
    assert "Traceback" not in told
    assert generate(batch) == 0
    assert len(batch[1].read_text().splitlines()) == 10


def test_a_port_that_cannot_be_bound(plan: Plan) -> None:
    plan.fail("listen", OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address"))
    told = sentence(UsageError, lambda: bind("127.0.0.1", 0))
    assert told == "cannot listen on 127.0.0.1 port 0: Cannot assign requested address; try --host 127.0.0.1."


@pytest.mark.parametrize("error", [FULL, BROKEN])
def test_a_full_disk_behind_standard_output(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: OSError
) -> None:
    monkeypatch.setattr(cli, "_silence", lambda: None)  # pytest's own standard output stays
    plan.fail("write.output", error)
    assert cli.main(["--version"]) == OutputError.exit_code
    told = capsys.readouterr().err
    assert told == f"qwench: standard output cannot be written ({error.strerror}); send it elsewhere.\n"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("after", [0, 1])
def test_a_client_that_is_gone_when_it_is_answered(
    plan: Plan, text_folder: Path, caplog: pytest.LogCaptureFixture, stream: bool, after: int
) -> None:
    made = answering("fine")(text_folder)
    plan.fail("send", ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), after=after, times=1)
    with running(made, made.text, ServerSettings(names=(NAME,))) as address, httpx.Client(base_url=address) as http:
        with contextlib.suppress(httpx.RemoteProtocolError):  # whatever a dead connection reads
            http.post(CHAT, json=BODY | {"stream": stream})
        wait_until(lambda: not made.alive)
        assert http.post(CHAT, json=BODY).json()["choices"][0]["message"]["content"] == "fine"
    assert "Traceback" not in caplog.text


def test_a_client_that_is_gone_while_it_asks(plan: Plan, text_folder: Path) -> None:
    made = answering("fine")(text_folder)
    plan.fail("receive", ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), times=1)
    with running(made, made.text, ServerSettings(names=(NAME,))) as address, httpx.Client(base_url=address) as http:
        http.post(CHAT, json=BODY)  # whatever a dead connection reads
        assert not made.submitted
        assert http.post(CHAT, json=BODY).json()["choices"][0]["message"]["content"] == "fine"


def test_the_text_of_a_model_is_read_under_a_plan(plan: Plan, text_folder: Path) -> None:
    ModelText(text_folder, ModelConfig.from_folder(text_folder))
    assert {name for name, count in plan.reached.items() if count} >= {"read.config", "read.tokenizer"}


def test_what_is_to_be_looked_at_and_cannot_be_had(plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(noise(64, 64)))
    reader = MediaReader(VisionSettings(), sources=Sources(web=True, files=True), decoders=Decoders(1))
    for name, part in (
        ("read.media", {"type": "image", "image": str(path)}),
        ("connect.media", {"type": "image_url", "image_url": {"url": "https://good.example/a.png"}}),
        ("start.decoder", {"type": "image", "image": str(path)}),
    ):
        plan.fail(name, BROKEN, times=1)
        with pytest.raises(RequestError, match=r"^the part .*(cannot be|has an address)"):
            reader.open(part, "the part")
        assert plan.reached[name]
    assert reader.open({"type": "image", "image": str(path)}, "the part")
    reader.close()
