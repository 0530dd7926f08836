"""Shared libraries as binutils show them: what they need, define and want; and less of them.

Knows the output of `readelf` and `nm`. Does not know which library is for what.
"""

import dataclasses
import re
import subprocess
from pathlib import Path

from llm_image import ImageError

_MAGIC = b"\x7fELF"
# Letters of nm.
_FUNCTIONS = "TWi"
_DATA = "BDR"


@dataclasses.dataclass(frozen=True, order=True)
class Symbol:
    """A dynamic symbol.

    Attributes:
        name: As the linker sees it.
        version: The version node it belongs to; often none.
        size: In bytes if it is data, 0 if it is a function.
    """

    name: str
    version: str = ""
    size: int = 0


def libraries(folder: Path) -> list[Path]:
    """Every shared library below `folder`, links left out, in a fixed order."""
    found = (path for path in folder.rglob("*.so*") if path.is_file() and not path.is_symlink())
    return sorted(path for path in found if _is_elf(path))


def soname(library: Path) -> str:
    """The name that others need it by; the file's own if it has none."""
    names = re.findall(r"\(SONAME\).*\[(.*)\]", _run("readelf", "-dW", library))
    return names[0] if names else library.name


def needs(library: Path) -> list[str]:
    """The names of the libraries that are loaded with it."""
    return re.findall(r"\(NEEDED\).*\[(.*)\]", _run("readelf", "-dW", library))


def defined(library: Path) -> dict[str, Symbol]:
    """The symbols it defines for others, by name."""
    found = {}
    for line in _run("nm", "-D", "-S", "--defined-only", library).splitlines():
        *address_and_size, kind, text = line.split()
        name, version = _named(text)
        if kind in _FUNCTIONS:
            found[name] = Symbol(name, version)
        elif kind in _DATA and len(address_and_size) > 1:
            found[name] = Symbol(name, version, int(address_and_size[1], 16))
    return found


def wanted(library: Path) -> set[tuple[str, str]]:
    """Names and versions of the symbols that others must define for it, weak ones left out."""
    lines = _run("nm", "-D", "--undefined-only", library).splitlines()
    kinds = (line.split() for line in lines)
    return {_named(text) for kind, text in kinds if kind == "U"}


def strip(library: Path) -> int:
    """Remove what only linkers and debuggers read; return the bytes that this saved."""
    before = library.stat().st_size
    _run("strip", "--strip-unneeded", library)
    return before - library.stat().st_size


def _named(text: str) -> tuple[str, str]:
    name, _, version = text.partition("@")
    return name, version.removeprefix("@")


def _is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def _run(*command: str | Path) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise ImageError(f"{command[0]} is missing: install binutils") from error
    if done.returncode:
        raise ImageError(f"{command[0]} failed on {command[-1]}: {done.stderr.strip()}")
    return done.stdout
