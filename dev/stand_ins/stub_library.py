"""Writes a shared library that defines symbols and does nothing.

It lets a program load whose build wants a library that the program will never call. Knows ELF
symbols as `nm` prints them and the C compiler; does not know who wants which symbol, or why.
"""

import dataclasses
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path


class StubError(Exception):
    """The compiler or `nm` is missing or failed; the message says what to do."""


@dataclasses.dataclass(frozen=True, order=True)
class Symbol:
    """One dynamic symbol; `size` in bytes, 0 for a function."""

    name: str
    size: int = 0


_PRELUDE = """\
static char zeroed[65536] __attribute__((aligned(64)));
extern const void *class_type_info[] __asm__("_ZTVN10__cxxabiv117__class_type_infoE");
struct type_info { const void *vtable; const char *name; };
"""


def undefined(library: Path) -> dict[str, str]:
    """Return the symbols `library` wants from elsewhere: name to version (often empty)."""
    names = (line.split()[-1] for line in _nm("--undefined-only", library))
    return {name: version for name, _, version in (n.partition("@") for n in names)}


def defined(library: Path) -> dict[str, Symbol]:
    """Return the symbols that `library` defines for others."""
    symbols = {}
    for line in _nm("--defined-only", library):
        *address_and_size, kind, name = line.split()
        is_data = kind in "BDRVuG"
        size = int(address_and_size[1], 16) if is_data and len(address_and_size) > 1 else 0
        symbols[name] = Symbol(name, size)
    return symbols


def write(library: Path, symbols: Iterable[Symbol], *, version: str = "") -> None:
    """Compile `library` (its name is its soname) so that it defines `symbols`.

    Functions return the address of zeroed memory, data is zeroed, C++ type_infos are real ones:
    registering a type with Python at import reads their names.
    """
    source = library.with_suffix(".c")
    definitions = [_define(number, symbol) for number, symbol in enumerate(sorted(symbols))]
    source.write_text(_PRELUDE + "".join(definitions))
    options = [f"-Wl,-soname,{library.name}"]
    if version:
        script = library.with_suffix(".map")
        script.write_text(f"{version} {{ global: *; }};\n")
        options.append(f"-Wl,--version-script={script}")
    command = ["gcc", "-shared", "-fPIC", "-O1", "-s", *options, source, "-lstdc++", "-o", library]
    _run([str(part) for part in command])


def _define(number: int, symbol: Symbol) -> str:
    label = f'__asm__("{symbol.name}")'
    if symbol.name.startswith("_ZTI"):
        value = f'{{ class_type_info + 2, "{symbol.name.removeprefix("_ZTI")}" }}'
        return f"struct type_info s{number} {label} = {value};\n"
    if symbol.size:
        return f"char s{number}[{symbol.size}] {label} __attribute__((aligned(64)));\n"
    return f"void *s{number}(void) {label};\nvoid *s{number}(void) {{ return zeroed; }}\n"


def _nm(selection: str, library: Path) -> list[str]:
    return _run(["nm", "-D", "-S", selection, str(library)]).splitlines()


def _run(command: list[str]) -> str:
    if shutil.which(command[0]) is None:
        raise StubError(f"{command[0]} is missing: apt-get install gcc libstdc++-12-dev binutils")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StubError(f"{command[0]} failed:\n{done.stderr.strip()}")
    return done.stdout
