"""What llama-cpp-python's server needs: an environment of its own, and the model as GGUF.

Knows their lock and where they are kept. How the server is started is in servers.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

from dev import environment
from dev.cluster.progress import step
from dev.stand_ins import cache, models

LOCK = environment.LOCKS / "bench-llama.txt"


def python() -> Path:
    """The Python that has the server, installed now unless the cache has it.

    Its C++ is compiled for this machine, which takes minutes, a C++ compiler and 2 GB of memory.

    Raises:
        subprocess.CalledProcessError: It could not be installed; the output says why.
    """
    locked = hashlib.sha256(LOCK.read_bytes()).hexdigest()[:10]
    folder = cache.stand_ins() / f"llama-{locked}-python{sys.version_info.minor}"
    found = folder / "bin" / "python"
    done = folder / "done"
    with cache.locked(folder.name):
        if not done.exists():
            with step("make an environment with llama-cpp-python"):
                make = ("venv", "--clear", f"--python={sys.executable}", str(folder))
                subprocess.run([environment.UV, "--quiet", *make], check=True)
                fill = ("pip", "install", f"--python={found}", "--compile-bytecode")
                locks = ("--require-hashes", "--requirements", str(LOCK))
                subprocess.run([environment.UV, "--quiet", *fill, *locks], check=True)
            done.touch()
    return found


def gguf() -> Path:
    """SmolLM2 as its package ships it."""
    return models.gguf(models.SMOLLM2)
