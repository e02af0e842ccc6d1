"""The tests of the kernels once more, over a library that the sanitizers of addresses and of undefined steps watch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.meta.tree import PACKAGE, ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not (shutil.which("c++") and shutil.which("cmake")), reason="no C++ compiler or no CMake here"),
]
# Odd sizes, strides, threads, refusals of every operation, and files, by plain C++ and AVX2, which such a build holds.
FILES = ("test_native.py", "test_native_attention.py", "test_native_experts.py", "test_quantised_linear.py",
         "test_alone.py", "test_layers.py", "test_program.py", "test_tiled_heads.py", "test_choosing.py",
         "test_loading.py", "test_vocabulary.py")  # fmt: skip
BEYOND = """
import torch
from qwench.ops.native import Native, load_library
native, logits, found = Native("scalar", 1), torch.zeros(8), torch.zeros(2, dtype=torch.int64)
load_library().qw_largest(native.context, 2, 8, logits.data_ptr(), 8, found.data_ptr())
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """In which the package is a copy with such a library."""
    folder = tmp_path_factory.mktemp("sanitized")
    package, build = folder / "src" / "qwench", folder / "build"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    configure = ["cmake", "-S", str(ROOT / "csrc"), "-B", str(build), "-DQWENCH_SANITIZE=ON"]
    for command in (configure, ["cmake", "--build", str(build), "--parallel", str(os.cpu_count() or 1)]):
        subprocess.run(command, check=True, capture_output=True)
    shutil.copy(build / "libqwench.so", package / "ops")
    find = [["c++", f"-print-file-name={name}"] for name in ("libasan.so", "libubsan.so")]
    runtimes = [subprocess.run(each, check=True, capture_output=True, text=True).stdout.strip() for each in find]
    return os.environ | {
        "PYTHONPATH": str(package.parent),
        "LD_PRELOAD": ":".join(runtimes),
        # The interpreter itself frees little; what is too large is refused by us.
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }


def run(environment: dict[str, str], *arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    return done.returncode, (done.stdout + done.stderr)[-6000:]


def test_it_would_be_seen(environment: dict[str, str]) -> None:
    """A call that says two rows of logits where there is one."""
    status, told = run(environment, "-c", BEYOND)
    assert status != 0
    assert "heap-buffer-overflow" in told
    assert str(Path(environment["PYTHONPATH"]) / "qwench" / "ops" / "libqwench.so") in told or "csrc" in told


@pytest.mark.parametrize("file", FILES)
def test_no_kernel_leaves_its_bounds(environment: dict[str, str], file: str) -> None:
    # -s: a sanitizer ends the process, and what it says would be lost with what pytest holds back.
    status, told = run(environment, "-m", "pytest", "-q", "-s", "-x", "-p", "no:cacheprovider", f"tests/ops/{file}")
    assert status == 0, told
