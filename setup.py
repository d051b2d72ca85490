"""Joins pyproject.toml (metadata) and CMakeLists.txt (sources and flags); heeds MAX_JOBS and CMAKE_ARGS."""

import os
import shlex
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import SetupError

ROOT = Path(__file__).resolve().parent
OLDEST_TORCH = "2.11"


def torch_version():
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return None


def torch_requirement():
    """A binary works with the minor version of torch that it was built with; a source archive with many."""
    version = torch_version()
    if version is None or "sdist" in sys.argv:
        return f"torch>={OLDEST_TORCH}"
    major, minor = version.split(".")[:2]
    return f"torch>={major}.{minor},<{major}.{int(minor) + 1}"


def program(name):
    """The environment's own before the machine's, which may be older."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return shutil.which(name, path=path)


class CMakeBuild(build_ext):
    def run(self):
        version = torch_version()
        if version is None:
            raise SetupError(
                "torch not visible: install torch, then build with `pip install --no-build-isolation .` "
                "(an isolated build cannot see the torch that fastnn will run on)"
            )
        in_place = self.inplace or getattr(self, "editable_mode", False)
        package = (ROOT if in_place else Path(self.build_lib).absolute()) / "fastnn"
        build = ROOT / "build" / f"torch-{version}-{sys.implementation.cache_tag}"
        cmake, ninja = program("cmake"), program("ninja")
        if cmake is None:
            raise SetupError("cmake not found: pip install cmake ninja")
        arguments = [f"-DPython_EXECUTABLE={sys.executable}", *shlex.split(os.environ.get("CMAKE_ARGS", ""))]
        if ninja is not None:
            arguments += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        self.command([cmake, "-S", ROOT, "-B", build, *arguments])
        jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
        self.command([cmake, "--build", build, "-j", jobs], quiet=False)
        for old in package.glob("*.so"):
            old.unlink()  # of another torch; and a running process keeps its own copy
        self.command([cmake, "--install", build, "--prefix", package])

    def command(self, words, quiet=True):
        output = subprocess.DEVNULL if quiet and self.verbose < 1 else None
        if subprocess.run(words, stdout=output, check=False).returncode != 0:
            raise SetupError(f"fastnn was not built: `{shlex.join(map(str, words))}` failed, see above")


setup(
    install_requires=[torch_requirement()],
    ext_modules=[Extension("fastnn._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
