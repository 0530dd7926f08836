"""Rewrites weights in another floating-point type, one file at a time.

Knows safetensors and the ``dtype`` of config.json; holds one shard in memory at once.
"""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from llm_preload import PreloadError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def convert(directory: Path, dtype: str) -> None:
    """Store the floating-point weights below `directory` as `dtype`, a key of `DTYPES`.

    Raises:
        PreloadError: There is no such type.
    """
    if dtype not in DTYPES:
        raise PreloadError(f"the weights cannot be stored as {dtype}, only as {', '.join(DTYPES)}")
    for path in sorted(directory.rglob("*.safetensors")):
        with safe_open(path, framework="pt") as weights:
            metadata = weights.metadata()
            tensors = {name: weights.get_tensor(name) for name in weights.keys()}  # noqa: SIM118
        for name, tensor in tensors.items():
            if tensor.is_floating_point():
                tensors[name] = tensor.to(DTYPES[dtype])
        save_file(tensors, path, metadata=metadata)
    config = directory / "config.json"
    content = json.loads(config.read_text())
    content.pop("torch_dtype", None)  # the older name of the same thing
    content["dtype"] = dtype
    config.write_text(json.dumps(content, indent=2) + "\n")
