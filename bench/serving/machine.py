"""On what was measured: the machine, the versions, and whether anybody else used it."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "llguidance", "llama-cpp-python", "vllm")
QUIET = 1.5
"""Load up to which nobody else counts as using the machine, the last minute's own work included."""
_ASK = (
    "import importlib.metadata as m, json, sys\n"
    "have = {}\n"
    "for name in sys.argv[1:]:\n"
    "    try: have[name] = m.version(name)\n"
    "    except m.PackageNotFoundError: pass\n"
    "print(json.dumps(have))"
)


def describe() -> dict[str, Any]:
    """Processor, cores, memory in bytes, GPU, kernel, Python, and the load of the last minute."""
    model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    memory = re.search(r"^MemTotal: +(\d+) kB$", Path("/proc/meminfo").read_text(), re.M)
    return {
        "cpu": model[1] if model else platform.machine(),
        "architecture": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory": int(memory[1]) * 1024 if memory else 0,
        "gpu": gpu(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2),
    }


def gpu() -> str:
    """Names of the NVIDIA GPUs, empty without one."""
    try:
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        asked = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return ", ".join(asked.stdout.splitlines())


def versions(python: str) -> dict[str, str]:
    """Versions of what serves models in the environment of a Python."""
    command = [python, "-c", _ASK, *PACKAGES]
    asked = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(asked.stdout)
    return found


def commit(directory: Path) -> str:
    """The commit of a directory, with `+` where something is changed; empty without git."""
    try:
        command = ["git", "-C", str(directory), "describe", "--always", "--dirty=+", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
