"""Metadata of a GGUF file, read key by key: a missing, mistyped or absurd value is one sentence with key and file."""

from __future__ import annotations

import struct
from pathlib import Path

from qwench.config import MAX_REAL, MAX_SIZE
from qwench.errors import ConfigError
from qwench.gguf.file import GgufFile
from qwench.gguf.header import SCALARS, STRING, Array, Value

_WHOLE_TYPES = frozenset(number for number, (name, _) in SCALARS.items() if name[0] in "ui")


class Metadata:
    """``default`` None means that a key is needed. A ``{}`` in a key stands for the architecture."""

    def __init__(self, file: GgufFile) -> None:
        self.path: Path = file.path
        self._values = file.metadata
        self.architecture = ""
        self.architecture = self.text("general.architecture")

    def error(self, key: str, reason: str) -> ConfigError:
        name = self._full(key)
        return ConfigError(f"{self.path}: key {name!r} {reason}.", param=name)

    def has(self, key: str) -> bool:
        return self._full(key) in self._values

    def whole(self, key: str, default: int | None = None, *, minimum: int = 1, maximum: int = MAX_SIZE) -> int:
        value = self._value(key, default)
        if type(value) is not int or not minimum <= value <= maximum:
            raise self.error(key, f"is {_shown(value)}; it must be a whole number from {minimum} to {maximum}")
        return value

    def real(self, key: str, default: float | None = None, *, above: float = 0) -> float:
        value = self._value(key, default)
        if isinstance(value, (bool, str, Array)) or not above < value <= MAX_REAL:
            raise self.error(key, f"is {_shown(value)}; it must be a number above {above:g} and at most {MAX_REAL:g}")
        return float(value)

    def number(self, key: str) -> float:
        """Any number that is there."""
        value = self._value(key, None)
        if isinstance(value, (bool, str, Array)) or not abs(value) <= MAX_REAL:
            raise self.error(key, f"is {_shown(value)}; it must be a number")
        return float(value)

    def flag(self, key: str, default: bool | None = None) -> bool:
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self.error(key, f"is {_shown(value)}; it must be true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        value = self._value(key, default)
        if not isinstance(value, str):
            raise self.error(key, f"is {_shown(value)}; it must be a string")
        return value

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
        array = self._array(key, _WHOLE_TYPES, "whole numbers")
        return list(struct.unpack(f"<{array.count}{SCALARS[array.item][1]}", array.raw))

    def flags(self, key: str) -> list[bool]:
        array = self._array(key, _WHOLE_TYPES | {7}, "true and false")
        return [bool(item) for item in struct.unpack(f"<{array.count}{SCALARS[array.item][1]}", array.raw)]

    def is_array(self, key: str) -> bool:
        return isinstance(self._values.get(self._full(key)), Array)

    def _array(self, key: str, items: frozenset[int], called: str) -> Array:
        value = self._value(key, None)
        if not isinstance(value, Array) or value.item not in items:
            raise self.error(key, f"is {_shown(value)}; it must be an array of {called}")
        return value

    def _value(self, key: str, default: Value | None) -> Value:
        value = self._values.get(self._full(key), default)
        if value is None:
            raise self.error(key, "is missing; take another conversion of this model")
        return value

    def _full(self, key: str) -> str:
        return key.replace("{}", self.architecture)


def _shown(value: Value) -> str:
    if not isinstance(value, Array):
        return f"{value!r:.80}"
    name = "strings" if value.item == STRING else SCALARS[value.item][0]
    return f"an array of {value.count} {name}"
