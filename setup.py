"""The native library as an optional part of the build: with a C++ compiler it is built, without one torch computes.

Everything else about the package stands in pyproject.toml. The library is no Python extension (it knows no Python), so
one wheel per platform serves every version of Python.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

SOURCE = Path(__file__).parent / "csrc"
LIBRARY = Extension("qwench.ops.libqwench", sources=[], optional=True)  # optional: a failure is a warning


class BuildLibrary(build_ext):
    """Runs CMake and puts the library where the package will look for it."""

    def build_extension(self, ext: Extension) -> None:
        build = Path(self.build_temp).absolute() / "native"
        build.mkdir(parents=True, exist_ok=True)
        try:
            self._cmake("-S", str(SOURCE), "-B", str(build), "-DCMAKE_BUILD_TYPE=Release")
            self._cmake("--build", str(build), "--parallel", str(os.cpu_count() or 1))
        except (OSError, subprocess.CalledProcessError) as error:
            raise CompileError(f"the native library was not built ({error}); Qwench will run on torch") from error
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(build / target.name, target)

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split("."))) + ".so"

    def _cmake(self, *arguments: str) -> None:
        subprocess.run(["cmake", *arguments], check=True)


class PlatformWheel(bdist_wheel):
    """A wheel for this platform and every Python 3."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(ext_modules=[LIBRARY], cmdclass={"build_ext": BuildLibrary, "bdist_wheel": PlatformWheel})
