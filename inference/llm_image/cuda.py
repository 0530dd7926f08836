"""CUDA libraries, reduced to those that serving calls.

torch's CUDA build links every library of the toolkit, and a process that lacks one of them does
not start, though a decoder needs only matrix products and the run-time compiler. What is not in
`KEPT` goes. In the place of a library that something kept is linked to stands a small one of the
same name: each of its functions raises torch's own error, which says that the image leaves the
library out. So whatever a new release of torch links is left out too, and still loads.

Knows libraries and symbols; not what torch does with them. Runs after `packages`, needs binutils
and zig.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path

from llm_image import ImageError, elf
from llm_image.packages import remove

KEPT = (
    "libcublas.so.*",
    "libcublasLt.so.*",
    "libcudart.so.*",
    "libcudnn.so.*",  # chooses among libraries of its own, which go: torch asks for its version
    "libcupti.so.*",
    "libnvrtc.so.*",
    "libnvrtc-builtins.so.*",
)
"""The sonames of NVIDIA's libraries that serving calls; each must be there."""

# Compiles kernels that were written in Python. The server's own come from NVRTC.
_UNUSED_PACKAGES = ("triton",)

# Raises what Python sees as a RuntimeError. It unwinds through the stub, which has tables for that.
_RAISE = "_ZN3c106detail14torchCheckFailEPKcS2_jS2_"
_SOURCE = f"""\
void fail(const char *, const char *, unsigned, const char *) __asm__("{_RAISE}");
#define FUNCTION(number, name) \\
    void function##number(void) __asm__(name); \\
    void function##number(void) {{ fail(name, LIBRARY, 0, \\
        name ": this image leaves " LIBRARY " out, which serving text models does not need"); }}
#define DATA(number, name, size) \\
    char data##number[size] __asm__(name) __attribute__((aligned(64)));
"""


def reduce(site: Path) -> Iterator[str]:
    """Remove libraries from `site`, a site-packages, or replace them; yield what that saved.

    Raises:
        ImageError: A library that is kept is not there, or a compiler fails.
    """
    for name in _UNUSED_PACKAGES:
        yield f"{name}: {sum(map(remove, _of_package(site, name))) / 1e6:.0f} MB"
    yield from _reduce_libraries(site)
    yield from _remove_all_but_libraries(site / "nvidia")
    for path in _empty_packages(site):
        remove(path)
        yield f"{path.name}: nothing of it is left"


def _reduce_libraries(site: Path) -> Iterator[str]:
    held = elf.libraries(site / "nvidia")
    names = {path: elf.soname(path) for path in held}
    kept = {path for path in held if is_kept(names[path])}
    for pattern in KEPT:
        if not any(fnmatch(names[path], pattern) for path in kept):
            raise ImageError(f"no library is called {pattern}: mend llm_image.cuda")
    users = [*elf.libraries(site / "torch"), *sorted(kept)]
    linked = {name for user in users for name in elf.needs(user)}
    wanted = set().union(*(elf.wanted(user) for user in users))
    for path in sorted(set(held) - kept):
        symbols = [
            s for s in elf.defined(path).values() if (s.name, s.version) in wanted and _is_c(s)
        ]
        saved = remove(path)
        if names[path] not in linked:
            yield f"{path.name}: {saved / 1e6:.0f} MB"
            continue
        write_stub(path, names[path], symbols, needs=site / "torch" / "lib" / "libc10.so")
        yield f"{path.name}: {saved / 1e6:.0f} MB, in its place one of {len(symbols)} symbols"


def _is_c(symbol: elf.Symbol) -> bool:
    """NVIDIA's interfaces are in C; some libraries hold a C++ library too, which is not theirs."""
    return not symbol.name.startswith("_Z")


def is_kept(soname: str) -> bool:
    """Whether the library of this name stays; NVRTC's `.alt` is a second copy of it."""
    return ".alt." not in soname and any(fnmatch(soname, pattern) for pattern in KEPT)


def write_stub(path: Path, soname: str, symbols: Iterable[elf.Symbol], *, needs: Path) -> None:
    """Write a library to `path` that defines `symbols`; its functions raise an error.

    Args:
        path: Where it goes, beside torch in the same site-packages.
        soname: What others need it by.
        symbols: What they want of it.
        needs: torch's libc10.so, which has the error.

    Raises:
        ImageError: The compiler fails.
    """
    symbols = sorted(symbols)
    with tempfile.TemporaryDirectory() as folder:
        source, script = Path(folder, "stub.c"), Path(folder, "stub.map")
        source.write_text(_source(soname, symbols))
        options = []
        if versions := _versions(symbols):
            script.write_text(versions)
            options.append(f"-Wl,--version-script={script}")
        depth = len(path.parent.relative_to(needs.parents[2]).parts)
        origin = "/".join(["$ORIGIN", *[".."] * depth, "torch", "lib"])
        command = [
            *(sys.executable, "-m", "ziglang", "cc", "-shared", "-fPIC", "-O1", "-s"),
            *("-fasynchronous-unwind-tables", "-fexceptions", f"-Wl,-soname,{soname}"),
            *(*options, f"-Wl,-rpath,{origin}", "-Wl,--no-as-needed"),
            *(str(source), str(needs), "-o", str(path)),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ImageError(f"{path.name} does not compile: {done.stderr.strip()}")


def _source(soname: str, symbols: list[elf.Symbol]) -> str:
    lines = [f'#define LIBRARY "{soname}"', _SOURCE]
    for number, symbol in enumerate(symbols):
        if symbol.size:
            lines.append(f'DATA({number}, "{symbol.name}", {symbol.size})')
        else:
            lines.append(f'FUNCTION({number}, "{symbol.name}")')
    return "\n".join(lines) + "\n"


def _versions(symbols: list[elf.Symbol]) -> str:
    """A version script: who was linked to a symbol of some version wants it under that."""
    nodes: dict[str, list[str]] = {}
    for symbol in symbols:
        if symbol.version:
            nodes.setdefault(symbol.version, []).append(f"{symbol.name};")
    return "".join(f"{name} {{ global: {' '.join(nodes[name])} }};\n" for name in sorted(nodes))


def _remove_all_but_libraries(folder: Path) -> Iterator[str]:
    """Headers, static libraries, device bitcode, programs: what compiles extensions."""
    files = [path for path in folder.rglob("*") if path.is_file() or path.is_symlink()]
    loose = [path for path in files if not re.search(r"\.so(\.|$)|^__init__\.py$", path.name)]
    yield f"nvidia's other files: {sum(map(remove, loose)) / 1e6:.0f} MB"
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def _of_package(site: Path, name: str) -> list[Path]:
    return [*site.glob(name), *site.glob(f"{name}-*.dist-info")]


def _empty_packages(site: Path) -> list[Path]:
    """The metadata of NVIDIA's packages of which no library is left: nothing to scan."""
    found = []
    for metadata in sorted(site.glob("nvidia_*.dist-info")):
        rows = (metadata / "RECORD").read_text().splitlines()
        files = [site / row.split(",")[0] for row in rows if row.startswith("nvidia/")]
        if files and not any(path.is_file() and ".so" in path.name for path in files):
            found.append(metadata)
    return found
