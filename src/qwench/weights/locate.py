"""A model's name -> the folder or GGUF file that holds it: embedded, short name, Hub id (cached or downloaded), path.

What the Hugging Face cache already holds in full is used in place, without asking the network. Reads no tensors.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Literal

from qwench.errors import ConfigError, ModelNotFound
from qwench.family import PUBLISHED, nearest_names
from qwench.fault import fault

EMBEDDED = "nano"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
WANTED = ("*.safetensors", "*.json", "*.jinja")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def locate(name: str, *, offline: bool) -> Path:
    """The folder of model ``name`` in Hugging Face layout, or its GGUF file.

    ``offline`` forbids the network. Raises ModelNotFound with the nearest known names, or ConfigError for a folder
    without config.json.
    """
    if name == EMBEDDED:
        return _embedded()
    kind = _on_disk(name)
    if kind == "folder":
        return _checked(Path(name).expanduser())
    if name.lower().endswith(".gguf"):
        if kind is None:
            raise ModelNotFound(f"{name}: there is no such file; check the path.")
        return Path(name).expanduser()
    if kind == "file":
        raise ModelNotFound(
            f"{name} is a file; give a GGUF file (*.gguf), or the folder that holds it, with config.json beside it."
        )
    hub_id = PUBLISHED.get(name.lower())
    if hub_id is None and _HUB_ID.fullmatch(name):
        hub_id = name
    if hub_id is not None and hub_id.lower().endswith("-gguf"):
        raise ModelNotFound(
            f"{hub_id} is a repository of GGUF files in several sizes; download one of them with `hf download {hub_id} "
            f"FILE.gguf --local-dir .` and give its path."
        )
    if hub_id is None:
        raise ModelNotFound(_unknown(name))
    return _from_hub(hub_id, offline=offline)


def _on_disk(name: str) -> Literal["folder", "file"] | None:
    """What ``name`` is as a path; a string that cannot be a path, or that must not be looked at, is nothing."""
    try:
        path = Path(name).expanduser()
        if not name or not path.exists():
            return None
        return "folder" if path.is_dir() else "file"
    except (OSError, RuntimeError, ValueError):
        return None


def _unknown(name: str) -> str:
    looks_like_path = name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name
    if looks_like_path:
        return f"{name}: there is no such folder; check the path."
    nearest = nearest_names(name)
    hint = f"; nearest: {', '.join(nearest)}" if nearest else ""
    return (
        f"{name!r} is not a known model, a folder or a Hub id{hint}. `qwench models` lists the family; "
        f"a Hub id looks like Qwen/Qwen3.5-4B."
    )


def _embedded() -> Path:
    folder = Path(__file__).resolve().parent.parent / "assets" / EMBEDDED
    if not (folder / "config.json").is_file():
        raise ModelNotFound(
            f"The embedded model is not in this installation ({folder} has no config.json); install the package again, "
            f"or train it with `python -m qwench.train.nano`."
        )
    return folder


def _checked(folder: Path) -> Path:
    if (folder / "config.json").is_file():
        return folder
    if files := sorted(folder.glob("*.gguf")):
        raise ModelNotFound(f"{folder} holds GGUF files; give the path of the one to run, such as {files[0]}.")
    raise ConfigError(
        f"{folder} has no config.json; give the folder of a checkpoint in Hugging Face layout (config.json, "
        f"*.safetensors, tokenizer.json)."
    )


def _from_hub(hub_id: str, *, offline: bool) -> Path:
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    folder: Path | None
    try:
        folder = _snapshot(hub_id, local=True)
    except LocalEntryNotFoundError as error:
        # A snapshot that lacks files we may not need is reported by its path.
        partial = getattr(error, "snapshot_path", None)
        folder = Path(partial) if partial else None
    except HFValidationError as error:
        raise ModelNotFound(f"{hub_id!r} is not a valid Hub id: {error}.") from None
    missing = "everything" if folder is None else _missing_file(folder)
    if folder is not None and missing is None:
        return folder
    if offline:
        raise ModelNotFound(
            f"{hub_id} is not complete in the Hugging Face cache (missing: {missing}) and offline forbids a download; "
            f"run once without --offline, or copy the model here and give its folder."
        )
    return _checked(_download(hub_id))


def _snapshot(hub_id: str, *, local: bool) -> Path:
    from huggingface_hub import snapshot_download  # takes a fifth of a second; folders do without it

    if not local:
        fault("connect.hub")
    cache = os.environ.get("HF_HUB_CACHE")  # read now: the library reads it only once, when it is imported
    return Path(snapshot_download(hub_id, cache_dir=cache, allow_patterns=list(WANTED), local_files_only=local))


def _missing_file(folder: Path) -> str | None:
    """The first file that a checkpoint needs and ``folder`` lacks; None where it can be loaded."""
    if not (folder / "config.json").is_file():
        return "config.json"
    if (folder / SINGLE).is_file():
        return None
    try:
        shards = set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return SINGLE
    return next((name for name in sorted(shards, key=str) if not (folder / str(name)).is_file()), None)


def _download(hub_id: str) -> Path:
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    # The base error of the HTTP client behind the library: refused, reset, proxy, timeout.
    http_error: type[BaseException] = HfHubHTTPError.__bases__[0]

    offline_hint = "check the connection, or copy the model here and give its folder"
    try:
        return _snapshot(hub_id, local=False)
    except GatedRepoError:
        raise ModelNotFound(
            f"{hub_id} is gated; accept its terms on the Hub and log in with `hf auth login`."
        ) from None
    except RepositoryNotFoundError:
        nearest = nearest_names(hub_id)
        hint = f"; nearest: {', '.join(nearest)}" if nearest else ""
        raise ModelNotFound(f"The Hub has no model {hub_id}, or it is private{hint}.") from None
    except HfHubHTTPError as error:
        reason = str(error).splitlines()[0]
        raise ModelNotFound(
            f"{hub_id} could not be downloaded: {reason}; try again later, or {offline_hint}."
        ) from None
    except (LocalEntryNotFoundError, http_error, ConnectionError, TimeoutError):
        raise ModelNotFound(f"{hub_id} is not in the cache and the Hub cannot be reached; {offline_hint}.") from None
    except OSError as error:
        raise ModelNotFound(f"{hub_id} could not be stored in the Hugging Face cache: {error}.") from None
