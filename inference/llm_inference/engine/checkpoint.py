"""A model directory's safetensors files, mapped: tensors that nobody has copied yet.

Knows the format of the files and how pages are given back. Does not know what a tensor is for.
"""

import json
import math
import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from llm_inference.engine.rope import UnknownModelError

_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
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
            # A private mapping: torch wants memory that may be written.
            self._mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
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
        if max((entry["data_offsets"][1] for entry in header.values()), default=0) > (
            size - self._start
        ):
            raise ValueError(f"{path} is not the whole file")

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor where it lies in the file."""
        entry = self.entries[name]
        dtype = _TYPES.get(entry["dtype"])
        if dtype is None:
            raise UnknownModelError(f"tensors of type {entry['dtype']}")
        begin, end = entry["data_offsets"]
        count, offset = math.prod(entry["shape"]), self._start + begin
        if count * dtype.itemsize != end - begin:
            raise ValueError(f"{self.path} has a tensor {name} of another size than its shape")
        if offset % dtype.itemsize:
            raise UnknownModelError("tensors that are not aligned")
        if not count:
            return torch.empty(entry["shape"], dtype=dtype)
        flat = torch.frombuffer(self._mapping, dtype=dtype, count=count, offset=offset)
        return flat.view(entry["shape"])

    def release(self) -> None:
        """Give the pages back; what is read again comes from the page cache."""
        self._mapping.madvise(mmap.MADV_DONTNEED)


class Checkpoint(Mapping[str, torch.Tensor]):
    """The tensors of a model directory by name, in one type on one device.

    What has that type already and stays on the cpu is not copied.

    Args:
        directory: with model.safetensors, or with an index and the files it names.
        dtype: that floating point tensors are converted to; None for the checkpoint's own.
        device: where they are wanted.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file is malformed.
    """

    def __init__(self, directory: Path, *, dtype: torch.dtype | None, device: torch.device) -> None:
        self._files = [_File(path) for path in _paths(directory)]
        self._places = {name: file for file in self._files for name in file.entries}
        self._dtype, self._device = dtype, device

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor = self._places[name].tensor(name)
        dtype = self._dtype if tensor.is_floating_point() else None
        return tensor.to(device=self._device, dtype=dtype)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def release(self) -> None:
        """Give the pages of all files back that were read so far."""
        for file in self._files:
            file.release()


def _paths(directory: Path) -> list[Path]:
    index = directory / "model.safetensors.index.json"
    if not index.is_file():
        return [directory / "model.safetensors"]
    names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
    return [directory / name for name in sorted(set(names))]
