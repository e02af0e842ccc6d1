"""One JSON object of a checkpoint, read field by field; every complaint names field and file. Knows no field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qwench.errors import ConfigError
from qwench.fault import fault

MAX_SIZE = 2**31 - 1  # no field of a real checkpoint comes near; a damaged file must not make us allocate
MAX_REAL = 1e15


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file of a checkpoint. Raises ConfigError naming the file."""
    try:
        fault("read.config")
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"{path} does not exist; the folder must hold a checkpoint in Hugging Face layout (config.json, "
            f"*.safetensors, tokenizer.json)."
        ) from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid JSON ({error}); download it again.") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} holds {type(raw).__name__} where a JSON object is expected; download it again.")
    return raw


class Fields:
    """One JSON object, read field by field; every complaint names the field (with its section) and the file."""

    def __init__(self, values: dict[str, Any], source: str, prefix: str = "") -> None:
        self.values, self.source, self.prefix = values, source, prefix

    def error(self, name: str, reason: str) -> ConfigError:
        return ConfigError(f"{self.source}: {self.place(name)} {reason}.", param=name)

    def place(self, name: str) -> str:
        """The field with the sections it lies in."""
        return f"{self.prefix}{name}"

    def get(self, name: str) -> Any:
        return self.values.get(name)  # null counts as absent, as it does in the reference

    def section(self, name: str) -> Fields | None:
        value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.error(name, f"is {value!r:.200}; it must be a JSON object")
        return Fields(value, self.source, f"{self.prefix}{name}.")

    def whole(self, name: str, default: int | None = None, *, minimum: int = 1, maximum: int = MAX_SIZE) -> int:
        """The whole number ``name``; ``default`` None means that it is needed."""
        value = self.get(name)
        if value is None:
            if default is None:
                raise self.error(name, "is missing; the model cannot be built without it")
            return default
        if not is_whole(value) or not minimum <= value <= maximum:
            raise self.error(name, f"is {value!r:.200}; it must be a whole number from {minimum} to {maximum}")
        return int(value)

    def real(self, name: str, default: float | None = None, *, above: int = 0) -> float:
        """The number ``name``; ``default`` None means that it is needed."""
        value = self.get(name)
        if value is None:
            if default is None:
                raise self.error(name, "is missing; the model cannot be built without it")
            return default
        if not is_real(value) or not above < value <= MAX_REAL:
            raise self.error(name, f"is {value!r:.200}; it must be a number above {above} and at most {MAX_REAL:g}")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(name, f"is {value!r:.200}; it must be true or false")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        value = self.get(name)
        if value is None:
            if default is None:
                raise self.error(name, "is missing; the model cannot be built without it")
            return default
        if not isinstance(value, str):
            raise self.error(name, f"is {value!r:.200}; it must be a string")
        return value

    def whole_list(self, name: str) -> tuple[int, ...] | None:
        value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or not all(is_whole(item) and item >= 0 for item in value):
            raise self.error(name, f"is {value!r:.200}; it must be a list of whole numbers")
        return tuple(value)


def is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_real(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
