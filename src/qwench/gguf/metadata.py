"""Metadata of a GGUF file, read key by key: a missing, mistyped or absurd value is one sentence with key and file."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from qwench.fields import Fields
from qwench.gguf.file import GgufFile
from qwench.gguf.header import SCALARS, STRING, Array

_BOOL = 7
_WHOLE_TYPES = frozenset(number for number, (name, _) in SCALARS.items() if name[0] in "ui")
_REAL_TYPES = frozenset(number for number, (name, _) in SCALARS.items() if name[0] == "f")


class Metadata(Fields):
    """A ``{}`` in a key stands for the architecture."""

    def __init__(self, file: GgufFile) -> None:
        super().__init__(dict(file.metadata), str(file.path))
        self.path: Path = file.path
        self.architecture = ""
        self.architecture = self.text("general.architecture")

    def place(self, name: str) -> str:
        return f"key {self._full(name)!r}"

    def get(self, name: str) -> Any:
        return self.values.get(self._full(name))

    def has(self, key: str) -> bool:
        return self._full(key) in self.values

    def count(self, key: str) -> int:
        """How many strings an array of strings holds, without making them."""
        return self._array(key, frozenset((STRING,)), "strings").count

    def strings(self, key: str) -> list[str]:
        array = self._array(key, frozenset((STRING,)), "strings")
        found, position, raw = [], 0, array.raw
        read = struct.Struct("<Q").unpack_from
        for index in range(array.count):
            end = position + 8 + read(raw, position)[0]
            try:
                found.append(raw[position + 8 : end].decode("utf-8"))
            except UnicodeDecodeError:
                raise self.error(key, f"holds text that is not UTF-8, at index {index}") from None
            position = end
        return found

    def wholes(self, key: str) -> list[int]:
        return self._numbers(key, _WHOLE_TYPES, "whole numbers")

    def flags(self, key: str) -> list[bool]:
        return [bool(item) for item in self._numbers(key, _WHOLE_TYPES | {_BOOL}, "true and false")]

    def reals(self, key: str) -> list[float]:
        return self._numbers(key, _REAL_TYPES, "numbers")

    def _numbers(self, key: str, items: frozenset[int], called: str) -> list[Any]:
        array = self._array(key, items, called)
        return list(struct.unpack(f"<{array.count}{SCALARS[array.item][1]}", array.raw))

    def _array(self, key: str, items: frozenset[int], called: str) -> Array:
        value = self.get(key)
        if value is None:
            raise self.error(key, "is missing; the model cannot be built without it")
        if not isinstance(value, Array) or value.item not in items:
            raise self.error(key, f"is {value!r:.200}; it must be an array of {called}")
        return value

    def _full(self, key: str) -> str:
        return key.replace("{}", self.architecture)
