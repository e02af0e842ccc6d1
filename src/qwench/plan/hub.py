"""A model on the Hub by its headers: the beginnings of its files are asked for by range, and the rest stays there.

What came is laid into a folder as a download would lie there, each file as long as the Hub says, with a hole for what
was not asked for. So whatever reads headers reads these. Knows no shape.
"""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from urllib.parse import quote

from qwench.config import ModelConfig
from qwench.errors import CheckpointError, ConfigError, ModelNotFound
from qwench.fault import fault
from qwench.gguf.header import read_header
from qwench.plan.model import HEADER_LENGTH, MAX_HEADER

NAME = re.compile(r"([\w.-]+/[\w.-]+)(?:/([\w./-]+\.gguf))?", re.IGNORECASE)
PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
CONFIG = "config.json"
FIRST = 2**20  # bytes of a file that are asked for first; most headers are shorter, or say there how long they are
MOST = 2**26  # of a GGUF file, which does not: a vocabulary takes about 12 MiB
LARGEST = 2**43  # bytes that a file may say it has
PATIENCE = 20.0  # seconds without a byte
NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class Files:
    """The files of one repository, with their sizes. Raises ModelNotFound where there is none, or no way to it."""

    def __init__(self, repository: str) -> None:
        from huggingface_hub import constants, get_token

        self.repository = repository
        if constants.HF_HUB_OFFLINE:
            raise self._unreachable()
        self._hub = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")  # now: the library reads it once
        token = get_token()
        self._headers = {"accept-encoding": "identity", **({"authorization": f"Bearer {token}"} if token else {})}
        told = self._get(f"api/models/{repository}/tree/main?recursive=true", MOST)
        try:
            self.sizes = {entry["path"]: int(entry["size"]) for entry in json.loads(told) if entry["type"] == "file"}
            if not all(0 <= size <= LARGEST for size in self.sizes.values()):
                raise ValueError("a size that no file has")
        except (ValueError, KeyError, TypeError):
            raise ModelNotFound(f"{self._hub} does not list the files of {repository} as the Hub does.") from None

    def beginning(self, file: str, count: int) -> bytes:
        """The first ``count`` bytes, or all where there are fewer. Raises ModelNotFound."""
        return self._get(f"{self.repository}/resolve/main/{quote(file)}", count, {"range": f"bytes=0-{count - 1}"})

    def _get(self, path: str, count: int, more: Mapping[str, str] = NO_HEADERS) -> bytes:
        import httpx  # leaves our token out where it is led to another host

        found, headers = bytearray(), {**self._headers, **more}
        try:
            fault("connect.hub")
            with httpx.stream(
                "GET", f"{self._hub}/{path}", headers=headers, follow_redirects=True, timeout=PATIENCE
            ) as response:
                if response.status_code in (401, 403, 404):
                    told = f"The Hub has no {self.repository}, or it is not open to you"
                    raise ModelNotFound(
                        f"{told}; check its name, accept its terms there, or log in with `hf auth login`."
                    )
                if response.status_code not in (200, 206):
                    told = f"{self.repository} cannot be read: the Hub answered {response.status_code}"
                    raise ModelNotFound(f"{told}; try again later.")
                for piece in response.iter_raw():
                    found += piece
                    if len(found) >= count:  # who knows no ranges sends everything
                        break
        except (httpx.HTTPError, OSError):
            raise self._unreachable() from None
        return bytes(found[:count])

    def _unreachable(self) -> ModelNotFound:
        return ModelNotFound(
            f"{self.repository} is no published shape and not on this machine, and the Hub cannot be reached; give a "
            "folder, a .gguf file, or the published model it was made from."
        )

    def lay(self, folder: Path, file: str, head: bytes) -> Path:
        path = folder / Path(file).name
        with path.open("wb") as out:
            out.write(head)
            out.truncate(max(self.sizes[file], len(head)))
        return path


def is_name(name: str) -> bool:
    """Whether this can be a model on the Hub, and not just a file's path."""
    matched = NAME.fullmatch(name)
    return matched is not None and not matched[1].lower().endswith(".gguf")


@contextmanager
def headers(name: str) -> Iterator[Path]:
    """A folder, or a GGUF file, with the headers of ``name``: OWNER/MODEL, or OWNER/MODEL/FILE.gguf.

    Raises ModelNotFound, ConfigError and CheckpointError.
    """
    matched = NAME.fullmatch(name)
    assert matched is not None
    repository, file = matched[1], matched[2]
    files = Files(repository)
    with TemporaryDirectory() as scratch:
        folder = Path(scratch) / repository.partition("/")[2]
        folder.mkdir()
        try:
            yield _gguf(files, folder, file) if file else _folder(files, folder)
        except (CheckpointError, ConfigError) as error:
            error.message = error.message.replace(str(folder), f"{repository} on the Hub")
            raise


def _folder(files: Files, folder: Path) -> Path:
    """Configuration; and where that says nothing of the bits of each weight, the headers of all weights."""
    if CONFIG not in files.sizes:
        offered = [file for file in files.sizes if file.lower().endswith(".gguf")]
        hint = f"name a file, such as {files.repository}/{offered[0]}" if offered else "it is no model of ours"
        raise ModelNotFound(f"{files.repository} has no {CONFIG} on the Hub; {hint}.")
    files.lay(folder, CONFIG, files.beginning(CONFIG, min(max(files.sizes[CONFIG], 1), MOST)))
    if ModelConfig.from_folder(folder).quantised is not None:
        for file in files.sizes:
            if file.endswith(".safetensors") and "/" not in file:
                files.lay(folder, file, _safetensors(files, file))
    return folder


def _safetensors(files: Files, file: str) -> bytes:
    head = files.beginning(file, FIRST)
    if len(head) < HEADER_LENGTH:
        raise CheckpointError(f"{files.repository}/{file} on the Hub is no safetensors file: it ends in its header.")
    length = HEADER_LENGTH + min(struct.unpack_from("<Q", head)[0], MAX_HEADER)
    return head[:length] if length <= len(head) else files.beginning(file, length)


def _gguf(files: Files, folder: Path, file: str) -> Path:
    """All parts of the file: weights are counted in each."""
    if file not in files.sizes:
        offered = [each for each in files.sizes if each.lower().endswith(".gguf")]
        raise ModelNotFound(
            f"{files.repository} has no {file} on the Hub; it has {', '.join(offered[:5]) or 'no GGUF'}."
        )
    whole = PART.sub("", file)
    parts = sorted(each for each in files.sizes if each == file or (PART.search(each) and PART.sub("", each) == whole))
    for part in parts:
        _gguf_part(files, folder, part)
    return folder / Path(file).name


def _gguf_part(files: Files, folder: Path, file: str) -> None:
    """As much of it as its header needs: twice as much each time that was too little."""
    count = FIRST
    while True:
        path = files.lay(folder, file, files.beginning(file, count))
        enough = count >= min(files.sizes[file], MOST)
        try:
            tensors = read_header(path).tensors
        except CheckpointError:
            if enough:
                raise
        else:
            # A header that is cut would go on in the hole, so that its tensors begin behind what came.
            if enough or min((tensor.begin for tensor in tensors), default=0) <= count:
                return
        count *= 2
