"""Compile the native library: `python build.py OUTPUT`.

Where the library is newer than its sources, nothing happens. The compiler is zig's, from the wheel
`ziglang`; it brings the headers of the oldest C library that the images may run on.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

SOURCES = Path(__file__).resolve().parent
FLAGS = (
    *("-target", "x86_64-linux-gnu.2.28"),
    *("-std=c11", "-O3", "-Wall", "-Wextra", "-Werror"),
    # What is not in decoder.h is nobody's business, and nobody's function of that name is ours.
    *("-fPIC", "-fvisibility=hidden"),
)
# Sets of instructions, of which sets.c chooses one when it runs. Tuned for none in particular.
SETS = {"avx2": "x86_64_v3", "avx512": "x86_64_v4+avx512bf16"}
# What runs before that choice, or computes nothing.
ONCE = ("sets.c", "threads.c")
# What wider registers would not make faster; it runs only where a set has been found.
NARROW = ("convert.c", "sampling.c")


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
    with tempfile.TemporaryDirectory() as directory:
        objects = [
            compiled
            for name, processor in SETS.items()
            for compiled in _compile(
                [path for path in sorted(SOURCES.glob("*.c")) if _belongs(path, name)],
                Path(directory) / name,
                *(f"-mcpu={processor}", f"-DSET={name}", "-include", str(SOURCES / "names.h")),
            )
        ]
        for names, processor in ((ONCE, "x86_64"), (NARROW, SETS["avx2"])):
            once = [SOURCES / name for name in names]
            objects += _compile(once, Path(directory) / processor, f"-mcpu={processor}")
        _zig("-shared", "-s", *map(str, objects), "-o", str(fresh))
    fresh.replace(output)
    return True


def _belongs(source: Path, name: str) -> bool:
    """Whether a file is compiled for a set: not where it has another set's name."""
    others = tuple(f"_{other}" for other in SETS if other != name)
    return source.name not in ONCE + NARROW and not source.stem.endswith(others)


def _compile(sources: list[Path], directory: Path, *flags: str) -> list[Path]:
    directory.mkdir()
    objects = []
    for source in sources:
        objects.append(directory / f"{source.stem}.o")
        _zig(*flags, "-c", str(source), "-o", str(objects[-1]))
    return objects


def _zig(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "ziglang", "cc", *FLAGS, *arguments], check=True)


if __name__ == "__main__":
    build(Path(sys.argv[1]))
