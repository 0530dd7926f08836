"""The Python environment of development: `.venv`, and the locks it comes from.

Knows which lock file belongs to which dependency groups.
Does not know where torch's CPU build comes from: `dev.stand_ins` decides that.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
VENV = ROOT / ".venv"
UV = VENV / "bin" / "uv"
LOCKS = ROOT / "requirements"
STAMP = VENV / ".locked"
NATIVE = ROOT / "inference" / "native" / "build.py"
LIBRARY = ROOT / "inference" / "llm_inference" / "engine" / "_native.so"

# The images run Python 3.13 on x86-64 Linux; whoever develops brings 3.11 or newer.
IMAGE = ("--python-version=3.13", "--python-platform=x86_64-manylinux_2_28")
GROUPS: dict[str, tuple[str, ...]] = {
    "operator.txt": ("--group=operator", *IMAGE),
    "inference-cpu.txt": ("--group=inference", "--group=torch-cpu-needs", *IMAGE),
    "inference-gpu.txt": ("--group=inference", "--group=torch", *IMAGE),
    "build.txt": ("--group=build", *IMAGE),
    "model.txt": ("--group=model", *IMAGE),
    "bench.txt": ("--group=bench", "--no-deps", "--universal", "--python-version=3.11"),
    "bench-llama.txt": ("--group=bench-llama", "--universal", "--python-version=3.11"),
    "dev.txt": ("--group=dev", "--universal", "--python-version=3.11"),
}


def prepare() -> None:
    """Make `.venv` hold the locked packages and the CPU build of torch; compile the native library.

    Raises:
        subprocess.CalledProcessError: A package could not be installed, or the library not be
            compiled; the output says why.
    """
    locks = ("dev.txt", "torch-cpu.txt")
    wanted = hashlib.sha256(b"".join((LOCKS / name).read_bytes() for name in locks)).hexdigest()
    if not STAMP.exists() or STAMP.read_text() != wanted:
        _install(wanted)
    subprocess.run([VENV / "bin" / "python", NATIVE, LIBRARY], check=True)


def _install(wanted: str) -> None:
    began = time.monotonic()
    print("environment: .venv from requirements/dev.txt", flush=True)
    if not UV.exists():
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
        pinned = ("--require-hashes", "--requirement", LOCKS / "build.txt")
        subprocess.run([VENV / "bin" / "pip", "install", "--quiet", *pinned], check=True)
    install("--require-hashes", "--requirements", str(LOCKS / "dev.txt"))
    subprocess.run([sys.executable, "-m", "dev.stand_ins", "torch"], cwd=ROOT, check=True)
    STAMP.write_text(wanted)
    print(f"environment: {time.monotonic() - began:.0f} s", flush=True)


def install(*arguments: str) -> None:
    """`uv pip install` into `.venv`, compiled: torch and transformers start in half the time."""
    options = ("--quiet", "--compile-bytecode", f"--python={VENV / 'bin' / 'python'}")
    subprocess.run([UV, "pip", "install", *options, *arguments], check=True)


def lock() -> None:
    """Resolve the dependency groups anew, with hashes and without an index address."""
    prepare()
    for name, options in GROUPS.items():
        command = [
            *(str(UV), "pip", "compile", "--quiet", "--generate-hashes", "--no-emit-index-url"),
            *("--upgrade", "--custom-compile-command=make lock", *options),
            *(f"--output-file={LOCKS / name}", str(ROOT / "pyproject.toml")),
        ]
        subprocess.run(command, check=True, cwd=ROOT)
        print(f"locked requirements/{name}", flush=True)


def main() -> None:
    """Prepare `.venv`, or renew the locks."""
    parser = argparse.ArgumentParser(prog="python3 -m dev.environment", description=__doc__)
    parser.add_argument("action", nargs="?", choices=("prepare", "lock"), default="prepare")
    {"prepare": prepare, "lock": lock}[parser.parse_args().action]()


if __name__ == "__main__":
    main()
