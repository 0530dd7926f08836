"""Write a model directory of a known shape with random weights, in bfloat16.

    PYTHONPATH=inference python3 -m bench.gpu_model --shape 8B --tokenizer DIRECTORY TARGET

The tokenizer is a real one, with fewer tokens than the shape's vocabulary: those that it does not
know are never the most likely. Needs a CUDA device, which makes gigabytes of random numbers
quickly.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file

from bench.gpu import SHAPES, Shape

# What a tokenizer has first: special tokens, whose text is empty.
_SPECIAL = 32
_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def write(target: Path, shape: Shape, tokenizer: Path) -> None:
    """Write config, tokenizer and weights, a file for each layer and one for the rest."""
    target.mkdir(parents=True, exist_ok=True)
    for name in _FILES:
        if (tokenizer / name).is_file():
            shutil.copy(tokenizer / name, target / name)
    words = len(json.loads((tokenizer / "tokenizer.json").read_text())["model"]["vocab"])
    (target / "config.json").write_text(json.dumps(_config(shape), indent=2))
    places: dict[str, str] = {}

    def save(name: str, tensors: dict[str, torch.Tensor]) -> None:
        save_file({key: tensor.cpu() for key, tensor in tensors.items()}, target / name)
        places.update(dict.fromkeys(tensors, name))

    head = _matrix(shape.vocab_size, shape.hidden_size)
    head[words:] = 0
    head[:_SPECIAL] = 0
    save(
        "rest.safetensors",
        {
            "model.embed_tokens.weight": _matrix(shape.vocab_size, shape.hidden_size),
            "model.norm.weight": _ones(shape),
            "lm_head.weight": head,
        },
    )
    for number in range(shape.num_hidden_layers):
        save(f"layer-{number}.safetensors", _layer(f"model.layers.{number}", shape))
    index = {"metadata": {}, "weight_map": places}
    (target / "model.safetensors.index.json").write_text(json.dumps(index))


def _config(shape: Shape) -> dict[str, object]:
    return {
        **asdict(shape),
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "hidden_act": "silu",
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def _layer(name: str, shape: Shape) -> dict[str, torch.Tensor]:
    hidden, inner = shape.hidden_size, shape.intermediate_size
    queries = shape.num_attention_heads * shape.head_dim
    keys = shape.num_key_value_heads * shape.head_dim
    return {
        f"{name}.self_attn.q_proj.weight": _matrix(queries, hidden),
        f"{name}.self_attn.k_proj.weight": _matrix(keys, hidden),
        f"{name}.self_attn.v_proj.weight": _matrix(keys, hidden),
        f"{name}.self_attn.o_proj.weight": _matrix(hidden, queries),
        f"{name}.mlp.gate_proj.weight": _matrix(inner, hidden),
        f"{name}.mlp.up_proj.weight": _matrix(inner, hidden),
        f"{name}.mlp.down_proj.weight": _matrix(hidden, inner),
        f"{name}.input_layernorm.weight": _ones(shape),
        f"{name}.post_attention_layernorm.weight": _ones(shape),
    }


def _matrix(rows: int, columns: int) -> torch.Tensor:
    return torch.empty((rows, columns), dtype=torch.bfloat16, device="cuda").normal_(0, 0.02)


def _ones(shape: Shape) -> torch.Tensor:
    return torch.ones(shape.hidden_size, dtype=torch.bfloat16, device="cuda")


def main() -> None:
    """Write what the flags say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="8B")
    parser.add_argument("--tokenizer", type=Path, required=True)
    chosen = parser.parse_args()
    write(chosen.target, SHAPES[chosen.shape], chosen.tokenizer)


if __name__ == "__main__":
    main()
