"""Makes an environment ready to build fastnn: `python scripts/environment.py .venv`.

Creates it where it is missing, installs requirements.txt into it, and keeps a torch that it already has.
A second run finds nothing to do and says nothing. Needs only the standard library; what is missing on
the machine is said in one sentence.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TORCH_RANGE = ((2, 11), (2, 14))  # first and last minor version that fastnn builds with


def stop(sentence: str) -> None:
    sys.exit(f"fastnn: {sentence}")


def torch_of(python: Path) -> str | None:
    """The version of torch that this interpreter sees."""
    code = "from importlib.metadata import version; print(version('torch'))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def check_machine() -> None:
    if sys.version_info < (3, 10):  # noqa: UP036
        version = sys.version.split()[0]
        stop(
            f"Python 3.10 or newer is needed, this is {version}: name another, e.g. `make PYTHON=python3.12`."
        )
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        stop(
            f"no C++ compiler ({compiler}): install g++ 11 or newer (Debian, Ubuntu: apt-get install g++) "
            "or name one in CXX."
        )
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        stop("Python's C headers are missing: install them (Debian, Ubuntu: apt-get install python3-dev).")


def create(folder: Path) -> None:
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        stop("Python's venv module is missing: install it (Debian, Ubuntu: apt-get install python3-venv).")
    print(f"fastnn: creating {folder}", flush=True)
    done = subprocess.run([sys.executable, "-m", "venv", folder], check=False)
    if done.returncode != 0:
        stop(f"could not create {folder}; see above.")


def install(python: Path, folder: Path, requirements: list[str]) -> None:
    listing = folder / ".fastnn-install.txt"
    listing.write_text("\n".join(requirements) + "\n", encoding="utf-8")
    print(f"fastnn: installing {len(requirements)} pinned packages into {folder} (once; minutes)", flush=True)
    done = subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", listing], check=False)
    if done.returncode != 0:
        stop(
            "pip could not install what requirements.txt asks for (see above): is a package registry reachable?"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a virtual environment, or where to create one")
    parser.add_argument("--torch", help="install this torch instead of the pinned one, e.g. torch==2.14.1")
    options = parser.parse_args()
    folder = options.folder.absolute()
    python = folder / "bin" / "python"

    check_machine()
    if not python.exists():
        create(folder)
    lines = [
        re.sub(r"\s*#.*", "", line).strip() for line in (ROOT / "requirements.txt").read_text().splitlines()
    ]
    requirements = [line for line in lines if line and not line.startswith("torch==")]
    pinned = [options.torch] if options.torch else [line for line in lines if line.startswith("torch==")]

    stamp = folder / ".fastnn-requirements"
    wanted = hashlib.sha256("\n".join(pinned + requirements).encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    present = torch_of(python)
    if present is None:
        requirements = pinned + requirements
    else:
        minor = tuple(int(part) for part in present.split(".")[:2])
        first, last = TORCH_RANGE
        if not first <= minor <= last:
            stop(
                f"{folder} has torch {present}; fastnn builds with {first[0]}.{first[1]} to {last[0]}.{last[1]}: "
                "name another environment, e.g. `make VENV=.venv-fastnn`."
            )
        print(f"fastnn: keeping torch {present} of {folder}", flush=True)
        requirements = [f"torch=={present}", *requirements]
    install(python, folder, requirements)
    stamp.write_text(wanted)


if __name__ == "__main__":
    main()
