"""A model directory's safetensors files, mapped: tensors that nobody has copied yet.

Knows the format of the files. Does not know what a tensor is for.
"""

import ctypes
import json
import math
import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llm_inference.engine.arrays import ITEM_BYTES, Array, Piece
from llm_inference.engine.rope import UnknownModelError

_TYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
_LENGTH_BYTES = 8
_LONGEST_HEADER = 100 << 20


class _File:
    """One mapped file and where its tensors are."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size < _LENGTH_BYTES:
                raise ValueError(f"{path} is no safetensors file")
            # A private mapping: only memory that may be written tells its address. Nobody writes.
            self._mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._mapping))
        length = int.from_bytes(self._mapping[:_LENGTH_BYTES], "little")
        self._start = _LENGTH_BYTES + length
        if length > _LONGEST_HEADER or self._start > size:
            raise ValueError(f"{path} is no safetensors file, or not the whole of it")
        try:
            header = json.loads(self._mapping[_LENGTH_BYTES : self._start])
        except ValueError as error:
            raise ValueError(f"{path} has no safetensors header: {error}") from error
        header.pop("__metadata__", None)
        self.entries: dict[str, dict[str, Any]] = header
        # What lies behind the mapping's end must never be read.
        if max((entry["data_offsets"][1] for entry in header.values()), default=0) > (
            size - self._start
        ):
            raise ValueError(f"{path} is not the whole file")

    def tensor(self, name: str) -> Array:
        """The tensor where it lies in the file, which stays mapped as long as somebody has it."""
        entry = self.entries[name]
        dtype = _TYPES.get(entry["dtype"])
        if dtype is None:
            raise UnknownModelError(f"tensors of type {entry['dtype']}")
        begin, end = entry["data_offsets"]
        shape, offset = tuple(entry["shape"]), self._start + begin
        if not all(isinstance(n, int) and n >= 0 for n in (begin, end, *shape)):
            raise ValueError(f"{self.path} has a tensor {name} of an impossible shape or place")
        if math.prod(shape) * ITEM_BYTES[dtype] != end - begin:
            raise ValueError(f"{self.path} has a tensor {name} of another size than its shape")
        if offset % ITEM_BYTES[dtype]:
            raise UnknownModelError("tensors that are not aligned")
        rows = shape[0] if shape else 1
        return Array(dtype, shape, (Piece(self._address + offset, rows, self._mapping),))


class Checkpoint(Mapping[str, Array]):
    """The tensors of a model directory by name, where they lie in its files.

    Args:
        directory: with model.safetensors, or with an index and the files it names.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file is malformed.
    """

    def __init__(self, directory: Path) -> None:
        files = [_File(path) for path in _paths(directory)]
        self._places = {name: file for file in files for name in file.entries}

    def __getitem__(self, name: str) -> Array:
        return self._places[name].tensor(name)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _paths(directory: Path) -> list[Path]:
    index = directory / "model.safetensors.index.json"
    if not index.is_file():
        return [directory / "model.safetensors"]
    names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
    return [directory / name for name in sorted(set(names))]
