"""A checkpoint written anew in our own format, one output shard for each of its shards, resumable at every shard.

A shard is written beside its name, read back, compared with what was handed over, and only then renamed and noted in
the journal. Knows neither the receipt nor how a model is run.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from qwench.config import ModelConfig
from qwench.errors import CheckpointError, OutputError, UsageError
from qwench.fault import fault
from qwench.fields import read_json
from qwench.model.parameters import declare
from qwench.ops.arrays import FLOAT32, torch_dtype
from qwench.ops.lazy import torch
from qwench.ops.weight_types import WeightType
from qwench.quantisation import OWN_VERSION
from qwench.weights.formats import own
from qwench.weights.formats.safetensors import ITEM_BYTES, StoredTensor, file_of_tensors, read_chunks, read_header
from qwench.weights.load import CHUNK, FLOATS, CheckpointSource, Reader
from qwench.weights.locate import INDEX, SINGLE
from qwench.weights.names import ending_of, place_of, unused_reason
from qwench.weights.quantise import rounder
from qwench.weights.recipe import RECIPES
from qwench.weights.source import Progress, piece_rows

JOURNAL = "quantize.json"
CONFIG = "config.json"
MATRICES = ("table", "matrix", "experts")
NOT_COPIED = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".part")


@dataclass(frozen=True)
class _Output:
    """One tensor of an output shard: where its bytes go, behind ``begin`` of the data."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class _Item:
    """A stored tensor with what is written for it: itself, or the arrays of its codes as ``own.arrays`` lists them."""

    stored: StoredTensor
    kind: WeightType | None
    outputs: tuple[_Output, ...]


class Rewriting:
    """The work on one folder. Opening it checks everything that can be checked before a byte is written."""

    def __init__(self, source: Path, target: Path, config: ModelConfig, quantization: str) -> None:
        """Raises UsageError or CheckpointError saying why ``source`` cannot be written to ``target``."""
        self.source, self.target, self.config, self.quantization = source, target, config, quantization
        if config.quantised is not None:
            method = config.quantised.method
            raise CheckpointError(f"{source} is quantised already ({method}); take the unquantised repository.")
        self._recipe, self._specs = RECIPES[quantization], declare(config)
        self._journal = _open_journal(source, target, quantization)
        if not self._journal["shards"]:
            CheckpointSource(source, config, FLOAT32)  # compares all headers with the declaration
        expected = file_of_tensors(source)
        self.shards = list(dict.fromkeys(expected.values())) or [SINGLE]

    def run(self, *, delete_source: bool, progress: Progress) -> None:
        """Write what is not written yet. Raises OutputError where it cannot go on; the same call later does."""
        sizes = {name: self._size(name) for name in self.shards}
        done, total = 0, sum(sizes.values())
        for name in self.shards:
            finished = self._is_finished(name)
            if not finished:
                self._write_shard(name, _shifted(progress, done, total))
            if delete_source:
                _remove(self.source / name)
            done += sizes[name]
            progress(done, total)
        try:
            self._write_index()
            self._copy_others()
            self.write_config(None)
        except OSError as error:
            raise self._failed(self.target, error) from None

    def write_config(self, receipt: Mapping[str, Any] | None) -> None:
        """config.json of the result: from here on it is a model."""
        raw = read_json(self.source / CONFIG)
        described: dict[str, Any] = {"quant_method": "qwench", "version": OWN_VERSION, "recipe": self.quantization}
        described["types"] = self._journal["types"]
        if receipt is not None:
            described["receipt"] = dict(receipt)
        _write_json(self.target / CONFIG, raw | {"quantization_config": described})

    def close(self) -> None:
        """Everything is done: the journal goes."""
        (self.target / JOURNAL).unlink(missing_ok=True)

    def _size(self, name: str) -> int:
        file = self.source / name
        if file.is_file():
            return file.stat().st_size
        if name not in self._journal["shards"]:
            raise CheckpointError(f"{file} is missing; download the checkpoint again.")
        return 0

    def _is_finished(self, name: str) -> bool:
        """Whether the shard was written before and is still what it was."""
        noted, file = self._journal["shards"].get(name), self.target / name
        if noted is None or not file.is_file() or file.stat().st_size != noted["bytes"]:
            return False
        return bool(_digest(_checksums(file)) == noted["digest"])

    def _write_shard(self, name: str, progress: Progress) -> None:
        stored, _ = read_header(self.source / name)
        items = list(self._items(sorted(stored, key=lambda tensor: tensor.begin)))
        part = self.target / f"{name}.part"
        try:
            with part.open("wb") as file:
                given = _Writer(file, items, progress).run()
                file.flush()
                os.fsync(file.fileno())
            if _checksums(part) != given:
                raise OutputError(f"{part} does not hold what was written to it; check the disk, then go on.")
            part.replace(self.target / name)
            for item in items:
                if item.kind is not None:
                    endings = self._journal["types"].setdefault(item.kind.name, [])
                    endings += [ending_of(item.stored.name)] if ending_of(item.stored.name) not in endings else []
            noted = {"bytes": (self.target / name).stat().st_size, "digest": _digest(given)}
            self._journal["shards"][name] = noted
            _write_json(self.target / JOURNAL, self._journal)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise self._failed(part, error) from None

    def _failed(self, file: Path, error: OSError) -> OutputError:
        finished = f"{len(self._journal['shards'])} of {len(self.shards)} shards are finished and kept"
        full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        reason = "the disk is full" if full else f"it cannot be written ({error.strerror})"
        return OutputError(f"{file}: {reason}; {finished}. Make room and give the same command to go on.")

    def _items(self, stored: list[StoredTensor]) -> Iterator[_Item]:
        begin = 0
        for tensor in stored:
            kind = self._kind(tensor)
            if kind is None:
                outputs = [_Output(tensor.name, tensor.dtype, tensor.shape, begin)]
            else:
                outputs = []
                *experts, out, width = tensor.shape
                for array, dtype, shape in own.arrays(kind, out, width):
                    place = outputs[-1].begin + outputs[-1].num_bytes if outputs else begin
                    outputs.append(_Output(f"{tensor.name}_{array}", dtype, (*experts, *shape), place))
            begin = outputs[-1].begin + outputs[-1].num_bytes
            yield _Item(tensor, kind, tuple(outputs))

    def _kind(self, tensor: StoredTensor) -> WeightType | None:
        """The type a stored tensor gets; None where it is copied."""
        place = place_of(tensor.name)
        if place is None or unused_reason(tensor.name) is not None or place.name not in self._specs:
            return None
        if self._specs[place.name].kind not in MATRICES:
            return None
        return self._recipe.type_of(place.name, tensor.shape[-1])

    def _write_index(self) -> None:
        if self.shards == [SINGLE]:
            return
        found = {name: read_header(self.target / name)[0] for name in self.shards}
        total = sum(tensor.num_bytes for tensors in found.values() for tensor in tensors)
        names = {tensor.name: name for name, tensors in found.items() for tensor in tensors}
        _write_json(self.target / INDEX, {"metadata": {"total_size": total}, "weight_map": names})

    def _copy_others(self) -> None:
        """Tokenizer, template, generation settings and whatever else stands beside the weights."""
        for file in sorted(self.source.iterdir()):
            own_files = file.name in {CONFIG, INDEX, JOURNAL}
            if file.is_file() and file.suffix not in NOT_COPIED and not own_files and not file.name.startswith("."):
                shutil.copyfile(file, self.target / file.name)


class _Writer:
    """Writes one shard and keeps a checksum of every tensor it hands over."""

    def __init__(self, file: BinaryIO, items: list[_Item], progress: Progress) -> None:
        self._file, self._items = file, items
        self._reader = Reader(sum(item.stored.num_bytes for item in items), progress)
        self._written: dict[str, int] = {}  # bytes so far
        self._round = rounder()
        self._checksums: dict[str, int] = {}
        self._start = 0

    def run(self) -> dict[str, int]:
        """The checksums by name."""
        outputs = [output for item in self._items for output in item.outputs]
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        for each in outputs:
            offsets = [each.begin, each.begin + each.num_bytes]
            header[each.name] = {"dtype": each.dtype, "shape": list(each.shape), "data_offsets": offsets}
        raw = json.dumps(header, separators=(",", ":")).encode()
        raw += b" " * (-len(raw) % 8)
        self._file.write(len(raw).to_bytes(8, "little") + raw)
        self._start = 8 + len(raw)
        for item in self._items:
            for output in item.outputs:
                self._put(output, b"")
            if item.kind is None:
                self._copy(item)
            else:
                self._quantise(item, item.kind)
        return self._checksums

    def _copy(self, item: _Item) -> None:
        scratch = memoryview(bytearray(CHUNK))
        for count in read_chunks(item.stored, scratch):
            self._put(item.outputs[0], scratch[:count])
            self._reader.advance(count)

    def _quantise(self, item: _Item, kind: WeightType) -> None:
        *rows, width = item.stored.shape
        count = math.prod(rows)
        whole = replace(item.stored, shape=(count, width))
        step = piece_rows(width)
        for first in range(0, count, step):
            piece = torch.empty(min(step, count - first), width)
            self._reader.read(whole.rows(first, len(piece)), torch_dtype(FLOATS[whole.dtype]), piece)
            codes = self._round(piece, kind)
            if not codes.is_finite:
                raise CheckpointError(
                    f"Tensor {whole.name} in {whole.file} holds weights that are no finite numbers; it cannot be "
                    f"quantised."
                )
            for output, array in zip(item.outputs, own.encode(codes).values(), strict=True):
                self._put(output, array.contiguous().view(torch.uint8).view(-1).numpy().data)

    def _put(self, output: _Output, data: bytes | memoryview) -> None:
        """The next bytes of a tensor."""
        fault("write.weights")
        done = self._written.get(output.name, 0)
        self._file.seek(self._start + output.begin + done)
        self._file.write(data)
        self._written[output.name] = done + len(data)
        self._checksums[output.name] = zlib.crc32(data, self._checksums.get(output.name, 0))


def _open_journal(source: Path, target: Path, quantization: str) -> dict[str, Any]:
    """The journal of ``target``, which is made if it is not there. Raises UsageError where it is something else."""
    if target.exists() and (not target.is_dir() or target.resolve() == source.resolve()):
        raise UsageError(f"{target} is the source itself or a file; give another folder for the result.")
    settings = {"source": str(source.resolve()), "recipe": quantization}
    if (target / JOURNAL).is_file():
        found = read_json(target / JOURNAL)
        if {name: found.get(name) for name in settings} != settings:
            raise UsageError(
                f"{target} holds an unfinished conversion of {found.get('source')} to {found.get('recipe')}; "
                f"finish that one, or remove the folder."
            )
        return found
    if target.exists() and any(target.iterdir()):
        raise UsageError(f"{target} is not empty; give a new folder for the result.")
    journal: dict[str, Any] = settings | {"types": {}, "shards": {}}
    try:
        target.mkdir(parents=True, exist_ok=True)
        _write_json(target / JOURNAL, journal)
    except OSError as error:
        raise OutputError(f"{target} cannot be written ({error.strerror}); give another folder.") from None
    return journal


def _shifted(progress: Progress, before: int, total: int) -> Progress:
    """The progress of one shard as that of all."""
    return lambda done, _: progress(before + done, total)


def _checksums(file: Path) -> dict[str, int]:
    """Of every tensor of a file, as it is read back."""
    found: dict[str, int] = {}
    scratch = memoryview(bytearray(CHUNK))
    for tensor in read_header(file)[0]:
        found[tensor.name] = 0
        for count in read_chunks(tensor, scratch):
            found[tensor.name] = zlib.crc32(scratch[:count], found[tensor.name])
    return found


def _digest(checksums: Mapping[str, int]) -> int:
    return zlib.crc32(json.dumps(sorted(checksums.items())).encode())


def _remove(file: Path) -> None:
    """A source shard whose result was verified; in a cache of links the file that is linked to, too."""
    if file.is_symlink():
        file.resolve().unlink(missing_ok=True)
    file.unlink(missing_ok=True)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(path)
