"""Builds fastnn._C by CMake, which alone knows sources and flags. Metadata lives in pyproject.toml."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Distribution, Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """Configure, build and install into the package folder."""

    def run(self) -> None:
        try:
            import torch
        except ImportError:
            raise SystemExit(
                "fastnn builds against the torch that is installed, and none is visible: "
                "install torch, then use `pip install --no-build-isolation .`"
            ) from None
        package = ROOT if self.inplace else Path(self.build_lib).resolve()
        build = ROOT / "build" / f"{torch.__version__}-{sys.implementation.cache_tag}"
        jobs = os.environ.get("MAX_JOBS", str(os.cpu_count() or 1))
        cuda = os.environ.get("FASTNN_CUDA", "OFF")
        configure = [
            "-S", str(ROOT), "-B", str(build), "-G", "Ninja",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DCMAKE_INSTALL_PREFIX={package / 'fastnn'}",
            f"-DFASTNN_CUDA={cuda}",
            *os.environ.get("CMAKE_ARGS", "").split(),
        ]  # fmt: skip
        # pip's cmake and ninja live beside the interpreter; the system's may be too old.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        environment = {**os.environ, "PATH": path}
        cmake = shutil.which("cmake", path=path)
        if cmake is None:
            raise SystemExit("cmake is missing: pip install cmake ninja")
        for arguments in (configure, ["--build", str(build), "-j", jobs], ["--install", str(build)]):
            subprocess.run([cmake, *arguments], check=True, env=environment)


class BinaryDistribution(Distribution):
    def has_ext_modules(self) -> bool:
        return True


setup(
    distclass=BinaryDistribution,
    ext_modules=[Extension("fastnn._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
