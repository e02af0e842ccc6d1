"""Recommended sampling, per published model and per mode, with its source; and how long the small models may think.

A model is recognised by its shape (hidden size, layers, experts), because folders are renamed while fine-tuned copies
keep the shape. Else the checkpoint's generation_config.json counts, else nothing is changed (neutral).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from qwench.config import ModelConfig
from qwench.engine.request import SamplingParams
from qwench.errors import ConfigError, RequestError
from qwench.fields import read_json
from qwench.files import ModelFiles
from qwench.gguf.file import GgufFile
from qwench.text.gguf_text import gguf_sampling

QWEN35 = frozenset(("qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text"))
QWEN3 = frozenset(("qwen3", "qwen3_moe"))
SMALL_BUDGETS: Mapping[str, int] = MappingProxyType(
    {"Qwen3.5-0.8B": 2048, "Qwen3.5-2B": 4096, "Qwen3-0.6B": 4096, "Qwen3-1.7B": 8192}
)


@dataclass(frozen=True)
class SamplingPreset:
    """The fields a model's authors recommend, neutral where they are silent; ``source`` says who recommends them."""

    source: str
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0

    def params(self, overrides: Mapping[str, Any] | None = None) -> SamplingParams:
        """SamplingParams of the preset with what the user asked for on top.

        Temperature 0 asks for the model's own first choice, so no recommended penalty or cut is applied to it.
        """
        asked = dict(overrides or {})
        recommended = {name: value for name, value in asdict(self).items() if name != "source"}
        if asked.get("temperature") == 0:
            recommended = {}
        try:
            return SamplingParams(**{**recommended, **asked})
        except TypeError as error:
            raise RequestError(f"Unknown sampling parameter ({error}).") from error


NEUTRAL = SamplingPreset("neutral (no recommendation for this model)")


@dataclass(frozen=True)
class ModelPresets:
    """One preset per mode.

    The default budget is ours, no card's: the smallest models often do not stop thinking by themselves.
    """

    thinking: SamplingPreset
    direct: SamplingPreset
    thinking_budget: int | None = None  # in tokens, where a request names none; None does not bound

    def of(self, *, thinking: bool) -> SamplingPreset:
        return self.thinking if thinking else self.direct


def _card(
    name: str, thinking: tuple[float, float, int, float], direct: tuple[float, float, int, float]
) -> ModelPresets:
    """(temperature, top_p, top_k, presence_penalty) of each mode, as the model card of ``name`` gives them."""

    def preset(mode: str, values: tuple[float, float, int, float]) -> SamplingPreset:
        temperature, top_p, top_k, presence = values
        source = f"{name} model card, {mode}"
        return SamplingPreset(source, temperature, top_p, top_k, presence_penalty=presence)

    budget = SMALL_BUDGETS.get(name)
    return ModelPresets(preset("thinking, general", thinking), preset("non-thinking, general", direct), budget)


def published(config: ModelConfig) -> ModelPresets | None:
    """The recommendation for a published shape, None for any other."""
    key = (config.hidden_size, config.num_layers, config.moe.num_experts if config.moe else 0)
    if config.model_type in QWEN35:
        small, medium = ((1.0, 0.95, 20, 1.5), (1.0, 1.0, 20, 2.0)), ((1.0, 0.95, 20, 1.5), (0.7, 0.8, 20, 1.5))
        large = ((0.6, 0.95, 20, 0.0), (0.7, 0.8, 20, 1.5))
        table = {
            (1024, 24, 0): ("Qwen3.5-0.8B", *small),
            (2048, 24, 0): ("Qwen3.5-2B", *small),
            (2560, 32, 0): ("Qwen3.5-4B", *medium),
            (4096, 32, 0): ("Qwen3.5-9B", *medium),
            (5120, 64, 0): ("Qwen3.5-27B", *medium),
            (2048, 40, 256): ("Qwen3.5-35B-A3B", *medium),
            (3072, 48, 256): ("Qwen3.5-122B-A10B", *medium),
            (4096, 60, 512): ("Qwen3.5-397B-A17B", *large),
        }
    elif config.model_type in QWEN3:
        modes = (0.6, 0.95, 20, 0.0), (0.7, 0.8, 20, 0.0)
        names = {
            (1024, 28, 0): "Qwen3-0.6B",
            (2048, 28, 0): "Qwen3-1.7B",
            (2560, 36, 0): "Qwen3-4B",
            (4096, 36, 0): "Qwen3-8B",
            (5120, 40, 0): "Qwen3-14B",
            (5120, 64, 0): "Qwen3-32B",
            (2048, 48, 128): "Qwen3-30B-A3B",
            (4096, 94, 128): "Qwen3-235B-A22B",
        }
        table = {shape: (name, *modes) for shape, name in names.items()}
    else:
        return None
    return _card(*table[key]) if key in table else None


def presets_for(files: ModelFiles, config: ModelConfig) -> ModelPresets:
    """The table's presets, else those of generation_config.json or of a GGUF file's metadata, else neutral ones."""
    known = published(config)
    if known is not None:
        return known
    if isinstance(files, GgufFile):
        preset = _preset(gguf_sampling(files), "metadata of the file", files.path)
    else:
        preset = _from_generation_config(files / "generation_config.json")
    return ModelPresets(preset, preset)


def _from_generation_config(path: Path) -> SamplingPreset:
    if not path.exists():
        return NEUTRAL
    raw = read_json(path)
    names = [field.name for field in fields(SamplingPreset) if field.name != "source"]
    given = {name: raw[name] for name in names if raw.get(name) is not None}
    if raw.get("do_sample") is False:
        given = {"temperature": 0.0}
    return _preset(given, f"{path.name} of the checkpoint", path)


def _preset(given: Mapping[str, Any], source: str, path: Path) -> SamplingPreset:
    """What a checkpoint recommends. Raises ConfigError naming the file."""
    if not given:
        return NEUTRAL
    preset = replace(NEUTRAL, source=source, **given)
    try:
        preset.params()
    except RequestError as error:
        raise ConfigError(f"{path}: {error.message}") from error
    return preset
