"""Compile the native library: `python build.py OUTPUT`.

Where the library is newer than its sources, nothing happens. The compiler is zig's, from the wheel
`ziglang`; it brings the headers of the oldest C library that the images may run on.
"""

import subprocess
import sys
from pathlib import Path

SOURCES = Path(__file__).resolve().parent
# AVX2 and FMA: `engine/native.py` asks the processor for both before it loads the library.
FLAGS = (
    *("-target", "x86_64-linux-gnu.2.28", "-mcpu=x86_64_v3"),
    *("-std=c11", "-O3", "-Wall", "-Wextra", "-Werror"),
    # What is not in decoder.h is nobody's business, and nobody's function of that name is ours.
    *("-shared", "-fPIC", "-fvisibility=hidden", "-s"),
)


def build(output: Path) -> bool:
    """Compile if anything has changed; whether it has.

    Raises:
        subprocess.CalledProcessError: the sources do not compile; the compiler says why.
    """
    inputs = [*SOURCES.glob("*.c"), *SOURCES.glob("*.h"), Path(__file__)]
    newest = max(path.stat().st_mtime for path in inputs)
    if output.exists() and output.stat().st_mtime > newest:
        return False
    # Beside its place first: a server that runs may have the old library open.
    fresh = output.with_suffix(".new")
    sources = sorted(str(path) for path in SOURCES.glob("*.c"))
    command = [sys.executable, "-m", "ziglang", "cc", *FLAGS, *sources, "-o", str(fresh)]
    subprocess.run(command, check=True)
    fresh.replace(output)
    return True


if __name__ == "__main__":
    build(Path(sys.argv[1]))
