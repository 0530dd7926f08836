"""Rewrites weights in another floating-point type, one file at a time.

Knows safetensors and the ``dtype`` of config.json; holds one shard in memory at once.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from llm_hub.selection import INDEX
from llm_preload import PreloadError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_LENGTH_BYTES = 8


def check(dtype: str) -> torch.dtype:
    """The type that `dtype` names, a key of `DTYPES`.

    Raises:
        PreloadError: There is no such type.
    """
    if dtype not in DTYPES:
        raise PreloadError(f"the weights cannot be stored as {dtype}, only as {', '.join(DTYPES)}")
    return DTYPES[dtype]


def convert(directory: Path, dtype: str) -> None:
    """Store the floating-point weights below `directory` as `dtype`, a key of `DTYPES`.

    Raises:
        PreloadError: There is no such type, or the weights are quantised.
    """
    wanted = check(dtype)
    config = directory / "config.json"
    content = json.loads(config.read_text())
    if method := (content.get("quantization_config") or {}).get("quant_method"):
        raise PreloadError(
            f"the weights are quantised ({method}): storing them as {dtype} would lose their scales"
        )
    for path in sorted(directory.rglob("*.safetensors")):
        with safe_open(path, framework="pt") as weights:
            metadata = weights.metadata()
            tensors = {name: weights.get_tensor(name) for name in weights.keys()}  # noqa: SIM118
        for name, tensor in tensors.items():
            if tensor.is_floating_point():
                tensors[name] = tensor.to(wanted)
        save(tensors, path, metadata)
    _restate_size(directory)
    content.pop("torch_dtype", None)  # the older name of the same thing
    content["dtype"] = dtype
    config.write_text(json.dumps(content, indent=2) + "\n")


def save(
    tensors: Mapping[str, torch.Tensor], path: Path, metadata: Mapping[str, str] | None
) -> None:
    """Write a safetensors file whose bytes depend on its content alone."""
    save_file(dict(tensors), path, metadata=dict(metadata) if metadata else None)
    # The library writes the metadata in an order that differs from one process to the next.
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        header = json.loads(file.read(length))
        if "__metadata__" in header:
            header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) > length:
            raise PreloadError(f"{path.name}: its metadata cannot be put in order")
        file.seek(_LENGTH_BYTES)
        file.write(text.ljust(length))


def _restate_size(directory: Path) -> None:
    """Let the index of shards state the bytes that their tensors have now."""
    if not (index := directory / INDEX).is_file():
        return
    content = json.loads(index.read_text())
    size = 0
    for name in set(content["weight_map"].values()):
        with (directory / name).open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        size += (directory / name).stat().st_size - _LENGTH_BYTES - length
    content.setdefault("metadata", {})["total_size"] = size
    index.write_text(json.dumps(content, indent=2) + "\n")
