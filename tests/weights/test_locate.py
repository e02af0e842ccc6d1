"""From a name to a folder, without a network: embedded, short name, Hub id in a cache laid out as the Hub's, folder."""

from __future__ import annotations

import json
import socket
import types
from pathlib import Path
from typing import Any

import pytest

from qwench.errors import ConfigError, ModelNotFound
from qwench.weights import locate as module
from qwench.weights.locate import locate

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever opens a socket here fails with an error that nothing catches."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def cached(cache: Path, hub_id: str, files: dict[str, str]) -> Path:
    """A snapshot as the Hub's library lays it out: blobs, links to them, refs/main."""
    repository = cache / f"models--{hub_id.replace('/', '--')}"
    snapshot = repository / "snapshots" / COMMIT
    for folder in (snapshot, repository / "refs", repository / "blobs"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    for number, (name, content) in enumerate(files.items()):
        blob = repository / "blobs" / f"{number:040x}"
        blob.write_text(content)
        (snapshot / name).symlink_to(blob)
    return snapshot


WHOLE = {"config.json": "{}", "model.safetensors": "x", "tokenizer.json": "{}"}
INDEX = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}})
SHARDED = {"config.json": "{}", "model.safetensors.index.json": INDEX, "model-1.safetensors": "x"}


@pytest.mark.parametrize("offline", [True, False])
@pytest.mark.parametrize("name", ["Qwen/Qwen3.5-4B", "qwen3.5:4b", "QWEN3.5:4B"])
def test_a_complete_snapshot_is_used_in_place(cache: Path, name: str, offline: bool) -> None:
    """Also without --offline: what is there in full is not asked for again."""
    snapshot = cached(cache, "Qwen/Qwen3.5-4B", WHOLE)
    assert locate(name, offline=offline).resolve() == snapshot.resolve()


def test_a_complete_sharded_snapshot(cache: Path) -> None:
    snapshot = cached(cache, "someone/model", SHARDED | {"model-2.safetensors": "x"})
    assert locate("someone/model", offline=True).resolve() == snapshot.resolve()


def test_a_snapshot_known_to_lack_something_unneeded_is_used(cache: Path) -> None:
    """The library keeps a list of the repository's files and calls a snapshot without all of them incomplete."""
    snapshot = cached(cache, "someone/model", WHOLE)
    trees = snapshot.parent.parent / "trees"
    trees.mkdir()
    files = [{"path": name, "size": 1, "blob_id": "0" * 40} for name in (*WHOLE, "preprocessor_config.json")]
    (trees / f"{COMMIT}.json").write_text(json.dumps({"version": 1, "entries": files}))
    assert locate("someone/model", offline=True).resolve() == snapshot.resolve()


@pytest.mark.parametrize(
    ("files", "missing"),
    [
        (None, "everything"),
        ({"tokenizer.json": "{}"}, "config.json"),
        ({"config.json": "{}"}, "model.safetensors"),
        (SHARDED, "model-2.safetensors"),
        ({"config.json": "{}", "model.safetensors.index.json": "{"}, "model.safetensors"),
    ],
)
def test_offline_says_what_is_missing_and_what_to_do(cache: Path, files: dict[str, str] | None, missing: str) -> None:
    if files is not None:
        cached(cache, "Qwen/Qwen3.5-4B", files)
    with pytest.raises(ModelNotFound) as caught:
        locate("qwen3.5:4b", offline=True)
    assert caught.value.message == (
        f"Qwen/Qwen3.5-4B is not complete in the Hugging Face cache (missing: {missing}) and offline forbids a "
        f"download; run once without --offline, or copy the model here and give its folder."
    )


def test_an_unreachable_hub_is_one_sentence(cache: Path) -> None:
    """The test suite sets HF_HUB_OFFLINE, so the library refuses before it opens a socket."""
    with pytest.raises(ModelNotFound) as caught:
        locate("Qwen/Qwen3.5-4B", offline=False)
    assert caught.value.message == (
        "Qwen/Qwen3.5-4B is not in the cache and the Hub cannot be reached; check the connection, or copy the model "
        "here and give its folder."
    )


def test_the_hub_s_answers_become_sentences(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import errors

    base = errors.HfHubHTTPError.__bases__[0]
    response: Any = types.SimpleNamespace(headers={}, request=None, status_code=404)
    answers: list[tuple[BaseException, str]] = [
        (
            errors.RepositoryNotFoundError("no", response=response),
            "The Hub has no model Qwen/Qwen3.5-4, or it is private",
        ),
        (
            errors.GatedRepoError("no", response=response),
            "is gated; accept its terms on the Hub and log in with `hf auth",
        ),
        (errors.HfHubHTTPError("busy\nmore", response=response), "could not be downloaded: busy; try again later, or"),
        (base("refused"), "is not in the cache and the Hub cannot be reached; check"),
        (OSError(28, "No space left on device"), "could not be stored in the Hugging Face cache: [Errno 28] No space"),
    ]
    for error, sentence in answers:

        def snapshot(_: str, *, local: bool, error: BaseException = error) -> Path:
            raise errors.LocalEntryNotFoundError("not here") if local else error

        monkeypatch.setattr(module, "_snapshot", snapshot)
        with pytest.raises(ModelNotFound) as caught:
            locate("Qwen/Qwen3.5-4", offline=False)
        assert sentence in caught.value.message


def test_a_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert locate(str(tmp_path), offline=True) == tmp_path


def test_a_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        locate(str(tmp_path), offline=True)
    assert caught.value.message == (
        f"{tmp_path} has no config.json; give the folder of a checkpoint in Hugging Face layout (config.json, "
        f"*.safetensors, tokenizer.json)."
    )


def test_a_folder_of_gguf_files(tmp_path: Path) -> None:
    (tmp_path / "model-Q4_K_M.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelNotFound, match=r"holds GGUF files; give the path of the one to run, .*model-Q4_K_M\.gguf"):
        locate(str(tmp_path), offline=True)


def test_a_gguf_file_is_itself(tmp_path: Path) -> None:
    path = tmp_path / "model-Q4_K_M.GGUF"
    path.write_bytes(b"GGUF")
    assert locate(str(path), offline=True) == path


def test_a_file(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(ModelNotFound, match=r"is a file; give a GGUF file \(\*\.gguf\), or the folder that holds it"):
        locate(str(tmp_path / "model.safetensors"), offline=True)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("model.gguf", "model.gguf: there is no such file; check the path."),
        ("unsloth/Qwen3.5-4B-GGUF", "is a repository of GGUF files in several sizes; download one of them with `hf"),
        ("./nowhere", "./nowhere: there is no such folder; check the path."),
        ("/nowhere/at/all", "/nowhere/at/all: there is no such folder; check the path."),
        ("qwen3.5:4", "'qwen3.5:4' is not a known model, a folder or a Hub id; nearest: qwen3.5:4b, "),
        ("Qwen3.5-4B", "nearest: "),
        ("nanp", "nearest: nano. `qwench models` lists the family"),
        ("zzz", "'zzz' is not a known model, a folder or a Hub id. `qwench models` lists the family; a Hub id looks"),
        ("", "'' is not a known model"),
        ("a/b--c", "is not a valid Hub id"),
        ("x" * 5000, "is not a known model"),
        ("x\0y", "is not a known model"),
        ("~nobody-of-that-name/x/y", "there is no such folder"),
    ],
)
def test_a_name_that_leads_nowhere(name: str, sentence: str) -> None:
    with pytest.raises(ModelNotFound) as caught:
        locate(name, offline=True)
    assert sentence in caught.value.message
    assert caught.value.status == 404


def test_nano_is_a_folder_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "__file__", str(tmp_path / "weights" / "locate.py"))
    with pytest.raises(ModelNotFound, match=r"is not in this installation .* `python -m qwench\.train\.nano`\."):
        locate("nano", offline=True)
    folder = tmp_path / "assets" / "nano"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert locate("nano", offline=True) == folder
