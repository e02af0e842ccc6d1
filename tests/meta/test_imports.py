"""What must load no torch does not, and the first word of the command line is instant."""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys

import pytest

from tests.meta.tree import PACKAGE, ROOT, files, module_name

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
LIMIT = 0.3  # seconds above a bare interpreter's start
HEAVY = {
    "torch",
    "numpy",
    "transformers",
    "safetensors",
    "fastapi",
    "pydantic",
    "uvicorn",
    "tokenizers",
    "jinja2",
    "huggingface_hub",
    "httpx",
    "sqlalchemy",
}


def run(*arguments: str) -> str:
    """Standard output of a fresh interpreter."""
    done = subprocess.run([sys.executable, *arguments], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    return done.stdout


def loaded_by(code: str) -> set[str]:
    """Top-level names in sys.modules after ``code`` ran in a fresh interpreter."""
    told = run(
        "-c",
        f"{code}\nimport sys, json\nprint()\nprint(json.dumps(sorted({{m.partition('.')[0] for m in sys.modules}})))",
    )
    return set(json.loads(told.splitlines()[-1]))


def light_modules() -> list[str]:
    """Every module that has to stay free of torch; commands among them, whose work is imported when they run."""
    light = (
        "errors",
        "log",
        "config",
        "engine.request",
        "engine.scheduler",
        "engine.client",
        "text",
        "plan",
        "gateway",
        "llm",
        "reason",
        "server",
        "gateway",
        "cli",
    )
    names = (module_name(path) for path in files(PACKAGE, "*.py"))
    return [name for name in names if name.startswith(light)]


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert not loaded_by("import qwench; qwench.SamplingParams") & HEAVY


def test_help_loads_nothing_heavy() -> None:
    assert not loaded_by("from qwench.cli import main; assert main(['--help']) == 0") & HEAVY


def test_light_modules_load_no_torch() -> None:
    lines = "; ".join(f"import qwench.{name}" for name in light_modules())
    assert not loaded_by(lines) & {"torch", "transformers"}


def test_public_names_exist_and_unknown_ones_are_named() -> None:
    import qwench

    assert sorted(qwench.__all__) == dir(qwench)
    for name in qwench.__all__:
        assert getattr(qwench, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Llm'; its public names are LLM, SamplingParams"):
        _ = qwench.Llm


@pytest.mark.parametrize("arguments", [("-c", "import qwench"), ("-m", "qwench", "--help")], ids=["import", "help"])
def test_the_start_is_instant(arguments: tuple[str, ...]) -> None:
    run(*arguments)  # compiles what is not yet compiled
    ours, bare = [], []
    for _ in range(3):
        bare.append(_seconds("-c", "pass"))
        ours.append(_seconds(*arguments))
    assert statistics.median(ours) - statistics.median(bare) < LIMIT, f"{ours} against {bare} for a bare interpreter"


def _seconds(*arguments: str) -> float:
    """Processor time of a child: on a quiet machine that is the time one waits, on a busy one still ours alone."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run(*arguments)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
