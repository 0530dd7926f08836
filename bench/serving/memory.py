"""Memory of a process and its children, and what a model needs of it.

Knows `/proc` and a model's `config.json`. Proportional set size: a page that several processes
share counts for each by its part, so that children are not counted twice.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")


@dataclass(frozen=True)
class Memory:
    """Proportional set size in bytes.

    Attributes:
        total: All of it.
        anonymous: What was allocated.
        file: What is mapped from files: libraries, and weights that are not copied.
    """

    total: int
    anonymous: int
    file: int


def of_tree(pid: int) -> Memory:
    """Memory of a process and all its descendants."""
    total = anonymous = file = 0
    for member in _tree(pid):
        try:
            fields = _rollup((_PROC / str(member) / "smaps_rollup").read_text())
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended
        total += fields["Pss"]
        anonymous += fields["Pss_Anon"]
        file += fields["Pss_File"]
    return Memory(total, anonymous, file)


def _rollup(text: str) -> dict[str, int]:
    """Bytes by field of a `smaps_rollup`."""
    return {name: int(kb) * 1024 for name, kb in re.findall(r"^(\w+): +(\d+) kB$", text, re.M)}


def _tree(pid: int) -> set[int]:
    parents: dict[int, int] = {}
    for stat in _PROC.glob("[0-9]*/stat"):
        try:
            text = stat.read_text("utf-8", "replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        parents[int(stat.parent.name)] = int(text.rpartition(")")[2].split()[1])
    members, new = {pid}, {pid}
    while new:
        new = {child for child, parent in parents.items() if parent in new} - members
        members |= new
    return members


def cache_bytes_per_token(directory: Path) -> int:
    """Bytes that keys and values of one token take in 16 bits, of a model with full attention."""
    config = json.loads((directory / "config.json").read_text())
    heads = config["num_attention_heads"]
    size: int = config.get("head_dim") or config["hidden_size"] // heads
    layers: int = config["num_hidden_layers"]
    return 2 * 2 * layers * int(config.get("num_key_value_heads", heads)) * size
