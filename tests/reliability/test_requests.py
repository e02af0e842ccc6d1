"""Goals 1 to 3: bad requests are refused, at random too, and bad files are named."""

from __future__ import annotations

import logging
import random
import shutil
import statistics
from pathlib import Path

import pytest
import torch

from qwench.config import EngineConfig, ModelConfig
from qwench.engine.client import EngineClient
from qwench.errors import QwenchError
from qwench.server.app import build_app
from qwench.server.keys import Key
from qwench.server.service import ServerSettings
from qwench.text.model import ModelText
from tests.hostile import cases_inside as inside
from tests.hostile import cases_outside as outside
from tests.hostile.mutations import bombard, mutated
from tests.hostile.target import Case, Target
from tests.reliability.effort import busy, effort
from tests.reliability.process import served
from tests.server.tiny import write_checkpoint
from tests.weights.collected import load

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

SECRET = "sk-reliable-0123456789"
LONGEST_BLOCK = 0.25  # seconds of processor time that the loop may spend at one go


def every_case() -> list[Case]:
    reaching = (outside.ssrf(9), outside.media(), outside.templates(), outside.embeddings(), outside.administration())
    saying = (inside.malformed(), inside.limits(), inside.prompts(), inside.tools(), inside.names())
    shaping = (inside.schemas(), inside.patterns(), inside.grammars(), inside.crowd())
    sending = (inside.browsers(), inside.encodings(), inside.echoes())
    return [case for group in (*reaching, *saying, *shaping, *sending) for case in group]


def test_goal_01_bad_requests_are_refused(tmp_path: Path) -> None:
    """Every case with a key and without one, by a server that runs without its asserts."""
    flags = ("--max-model-len", "4096")
    for key in (None, SECRET):
        given = ("--api-key", key) if key else ()
        with served(tmp_path, *flags, *given, PYTHONOPTIMIZE="1") as server:
            target = Target(server.address, key)
            before, seconds = target.text(), list[float]()
            faults = target.faults(every_case(), seconds)
            assert not faults, "\n".join(faults)
            assert target.text() == before
            assert statistics.median(seconds) < 0.05 * busy()
            told = server.log.read_text()
            assert "Traceback" not in told
            assert SECRET not in told


@pytest.mark.parametrize("key", [None, SECRET], ids=["without a key", "with a key"])
def test_goal_02_bad_requests_at_random(caplog: pytest.LogCaptureFixture, key: str | None) -> None:
    client = EngineClient(EngineConfig(model="nano", max_model_len=1024, max_num_seqs=8))
    text = ModelText(client.files, client.model)
    client.start(text.vocabulary)
    client.wait_ready(60)
    keys = (Key.of(key),) if key else ()
    app = build_app(client, text, ServerSettings(names=("nano",), keys=keys))
    seeds = range(1_000_000, 1_000_000 + effort("mutations"))
    with caplog.at_level(logging.ERROR):
        faults, longest = bombard(app, (mutated(seed, key) for seed in seeds), key)
    assert not faults, "\n".join(faults)
    assert not caplog.records
    assert longest < LONGEST_BLOCK
    if key:
        assert key not in caplog.text
    client.close()


def test_goal_03_bad_files_are_named(tmp_path: Path) -> None:
    """Random changes to header, configuration, tokenizer and template: a file is read, or named in one sentence."""
    sound = write_checkpoint(tmp_path / "sound")
    names = ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
    kept = {name: (sound / name).read_bytes() for name in names if (sound / name).exists()}
    folder = Path(shutil.copytree(sound, tmp_path / "damaged"))
    for seed in range(effort("damaged files")):
        rng = random.Random(seed)
        name = rng.choice(sorted(kept))
        data = bytearray(kept[name])
        header = 8 + int.from_bytes(data[:8], "little") if name.endswith(".safetensors") else len(data)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(header)] = rng.randrange(256)
        (folder / name).write_bytes(data if rng.random() < 0.8 else data[: rng.randrange(len(data))])
        told = _complaint(folder)
        assert told is None or ("\n" not in told.strip() and Path(name).stem in told), (seed, name, told)
        (folder / name).write_bytes(kept[name])


def _complaint(folder: Path) -> str | None:
    """What a start would say of the files; None if they can be read."""
    try:
        config = ModelConfig.from_folder(folder)
        ModelText(folder, config)
        load(folder, config, dtype=torch.float32)
    except QwenchError as error:
        return error.message
    return None
