"""Arrows only point down: every import of the package against the table of layers."""

from __future__ import annotations

import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.meta.tree import PACKAGE, ROOT, files, imports, module_name

BASE = (
    "errors",
    "fault",
    "fields",
    "quantisation",
    "config",
    "log",
    "family",
    "progress",
    "gguf",
    "files",
    "footprint",
)
TENSORS = ("torch", "numpy", "ml_dtypes")


@dataclass(frozen=True)
class Layer:
    """What the files of one package may import: our modules (and what is below them), and packages of others."""

    ours: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


ANYTHING = Layer(ours=("",), others=("*",))

# The first entry that matches a module counts, so exceptions stand above their package.
LAYERS = {
    "errors": Layer(),
    "fault": Layer(),
    "family": Layer(),
    "progress": Layer(),
    "log": Layer(ours=("errors",)),
    "fields": Layer(ours=("errors", "fault")),
    "quantisation": Layer(ours=("errors", "fields")),
    "config": Layer(ours=("errors", "fields", "quantisation")),
    "gguf": Layer(ours=("errors", "fault", "fields", "config", "gguf")),
    "files": Layer(ours=("errors", "config", "gguf")),
    "footprint": Layer(ours=("config",)),
    "device": Layer(BASE, TENSORS),
    "ops": Layer((*BASE, "device", "ops"), (*TENSORS, "triton")),
    "model.parameters": Layer(BASE),
    "model.positions": Layer(),
    "model": Layer((*BASE, "device", "ops", "model"), TENSORS),
    "weights.locate": Layer(BASE, ("huggingface_hub",)),
    "weights.gguf": Layer((*BASE, "device", "ops", "model.parameters", "weights"), (*TENSORS, "gguf")),
    "weights": Layer((*BASE, "device", "ops", "model.parameters", "weights"), TENSORS),
    "cache.storage": Layer((*BASE, "device", "ops", "cache"), TENSORS),
    "cache": Layer((*BASE, "cache")),
    "engine.loops": Layer(),
    "engine.thinking": Layer(("engine.loops",)),
    "engine.sight": Layer(("model.positions",)),
    "engine.request": Layer(("errors", "engine.sight", "engine.thinking", "cache.prefix")),  # the last for a type only
    "engine.turns": Layer(("engine.request",)),
    "engine.scheduler": Layer(("errors", "config", "cache", "engine.request", "engine.turns")),
    "engine.client": Layer((*BASE, "device", "ops.loading", "model", "weights", "cache", "engine")),
    "engine": Layer((*BASE, "device", "ops", "model", "weights", "cache", "engine"), TENSORS),
    "media": Layer((*BASE, "media"), ("numpy", "PIL", "av", "pypdfium2", "pillow_heif")),
    "text": Layer(
        (*BASE, "text", "media", "engine.request", "engine.thinking"), ("tokenizers", "jinja2", "llguidance")
    ),
    "plan.hub": Layer((*BASE, "plan"), ("huggingface_hub", "httpx")),
    # What it takes from the layers of the engine loads no torch, and the engine takes the same.
    "plan": Layer(
        (*BASE, "device", "model.parameters", "ops.weight_types", "weights.recipe", "weights.gguf_match", "plan"),
        ("rich",),
    ),
    "reason.cell": Layer(),  # these two run as processes of their own
    "reason.judge": Layer(),
    "reason": Layer((*BASE, "text", "engine.client", "engine.request", "engine.thinking", "reason")),
    "llm": Layer((*BASE, "text", "media", "engine.client", "engine.request", "engine.thinking", "reason")),
    "server.traces": Layer((*BASE, "server"), ("opentelemetry",)),
    "server": Layer(
        (
            *(*BASE, "text", "media", "model.parameters", "engine.client", "engine.request", "engine.thinking"),
            *("reason", "server", "__init__"),
        ),
        ("fastapi", "starlette", "pydantic", "uvicorn", "h11"),
    ),
    # The accounts know nothing of HTTP; engines are reached over it alone.
    **dict.fromkeys(
        (
            "gateway.records gateway.usage gateway.prices gateway.tables gateway.rows gateway.store gateway.anchor "
            "gateway.writer gateway.ledger gateway.chain gateway.history gateway.imports gateway.exports "
            "gateway.report gateway.words gateway.terminal gateway.page"
        ).split(),
        Layer((*BASE, "plan", "gateway"), ("sqlalchemy", "numpy", "rich")),
    ),
    # The rest stands behind the server's own gate, reads what clients send as the server does, and calls upstreams.
    "gateway.engines": Layer((*BASE, "gateway"), ("httpx",)),
    "gateway.wire": Layer(("gateway.tiers",), ("h11", "httpx")),
    **dict.fromkeys(("gateway.app", "gateway.admin"), Layer((*BASE, "gateway", "server"), ("starlette",))),
    "gateway.deltas": Layer(("server.answer", "text.reading", "text.stream")),
    "gateway.run": Layer(("gateway", "server.run"), ("uvicorn",)),
    "gateway": Layer((*BASE, "plan", "text.thinking", "text.grammar", "media.parts", "gateway", "server"), ()),
    "bench": ANYTHING,
    "cli": ANYTHING,
    "train": ANYTHING,
    "__main__": Layer(("cli",)),
    "": Layer(("llm", "engine.request")),
}


def layer_of(module: str) -> Layer:
    for name, layer in LAYERS.items():
        if module == name or (name and module.startswith(f"{name}.")):
            return layer
    raise AssertionError(f"{module}: no layer; say in LAYERS (and in docs/architecture.md) what it may import")


def may_import(layer: Layer, imported: str) -> bool:
    top, _, rest = imported.partition(".")
    if top in sys.stdlib_module_names:
        return True
    if top != "qwench":
        return top in layer.others or "*" in layer.others
    if not rest:
        return True  # `from qwench import __version__` loads nothing
    return any(rest == allowed or rest.startswith(f"{allowed}.") or not allowed for allowed in layer.ours)


@pytest.mark.parametrize("path", files(PACKAGE, "*.py"), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_only_from_below(path: Path) -> None:
    layer = layer_of(module_name(path))
    wrong = [f"{path}:{line}: {name}" for name, line in imports(path) if not may_import(layer, name)]
    assert not wrong, "imports against the table of layers:\n" + "\n".join(wrong)


@pytest.mark.parametrize("path", files(PACKAGE, "*.py"), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nobody_imports_a_command_or_the_trainer(path: Path) -> None:
    module = module_name(path)
    if module.split(".")[0] in {"cli", "train", "__main__"}:
        return
    wrong = [name for name, _ in imports(path) if name.startswith(("qwench.cli", "qwench.train"))]
    assert not wrong, f"{path} imports {wrong}"


@pytest.mark.parametrize("path", files(PACKAGE, "*.py"), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_torch_is_loaded_by_who_computes_with_it(path: Path) -> None:
    """Not by reading a file of ours: the native kernels need none of it."""
    module = module_name(path)
    if module.startswith(("bench", "cli", "train")) or module in {"device", "ops.lazy", "ops.eager", "model.vision"}:
        return
    assert "torch" not in {name.partition(".")[0] for name, _ in imports(path)}, "take it from ops/lazy"


def arithmetic() -> list[Path]:
    """The scheduler, what it schedules and the accounting below it; tensors and files are one module's each."""
    accounting = [path for path in files(PACKAGE / "cache", "*.py") if path.stem not in ("storage", "disk")]
    return [PACKAGE / "engine" / "request.py", PACKAGE / "engine" / "scheduler.py", *accounting]


@pytest.mark.parametrize("path", arithmetic(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_arithmetic_knows_neither_torch_nor_a_clock(path: Path) -> None:
    loaded = {name.partition(".")[0] for name, _ in imports(path)}
    assert not loaded & {"torch", "numpy", "time", "datetime", "random", "threading", "os"}


def test_the_table_catches_an_arrow_that_points_up() -> None:
    assert not may_import(layer_of("ops.linear"), "qwench.model.qwen")
    assert not may_import(layer_of("engine.scheduler"), "torch")
    assert not may_import(layer_of("server.chat"), "qwench.engine.core")
    assert may_import(layer_of("server.chat"), "qwench.engine.client")
    with pytest.raises(AssertionError, match="no layer"):
        layer_of("helpers")


def test_every_declared_dependency_is_imported_and_every_import_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {_name(line) for line in project["dependencies"]}
    trained = {_name(line) for line in project["optional-dependencies"]["train"]}
    came_along = {"starlette"}  # part of fastapi's own interface
    declared -= {"python_multipart"}  # starlette reads forms with it
    compared = {"gguf", "transformers", "vllm"}  # what a comparison with other engines needs; without them it says so
    run_time, training = set[str](), set[str]()
    # Code books of types that are converted, HEIC, traces: without them these are refused by name.
    optional = {"weights.gguf": {"gguf"}, "media.image": {"pillow_heif"}, "server.traces": {"opentelemetry"}}
    renamed = {"PIL": "pillow"}
    for path in files(PACKAGE, "*.py"):
        found = training if module_name(path).startswith("train") else run_time
        tops = {renamed.get(top, top) for top in (name.partition(".")[0] for name, _ in imports(path))}
        found |= tops - {"qwench"} - sys.stdlib_module_names - came_along
        found -= compared if module_name(path).startswith("bench") else optional.get(module_name(path), set())
    assert run_time == declared, f"declared and imported differ: {run_time ^ declared}"
    assert training - declared == trained, (
        f"the extra `train` and what the trainer imports differ: {trained ^ training}"
    )


def _name(requirement: str) -> str:
    for mark in "<>=!~[; ":
        requirement = requirement.partition(mark)[0]
    return requirement.strip().lower().replace("-", "_")
