"""Writes a GGUF file as a plain HuggingFace model directory: bf16 safetensors and a tokenizer.

Runs as a script in an environment with transformers, gguf and torch:
``python convert_gguf.py FILE.gguf DIRECTORY``. Knows neither packages nor the cache.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint


def convert(source: Path, target: Path) -> None:
    """Dequantise `source` into `target`; the weights keep what precision the GGUF has."""
    where = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    config = AutoConfig.from_pretrained(**where)
    tokenizer.model_max_length = config.max_position_embeddings
    with torch.device("meta"):  # names and shapes only: every weight comes from the file
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    # Not from_pretrained(gguf_file=...): that wants accelerate, for nothing that is needed here.
    checkpoint = load_gguf_checkpoint(
        str(source), return_tensors=True, model_to_load=model, torch_dtype=torch.bfloat16
    )
    weights = checkpoint["tensors"]
    if wrong := model.state_dict().keys() - set(model.all_tied_weights_keys) ^ weights.keys():
        raise SystemExit(f"{source.name}: weights missing or unknown: {sorted(wrong)}")
    # Not model.save_pretrained: it imports, for a minute, what only a sharded model needs.
    target.mkdir(exist_ok=True)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    config.architectures = [type(model).__name__]
    config.save_pretrained(target)
    model.generation_config.save_pretrained(target)
    tokenizer.save_pretrained(target)
    settings = json.loads((target / "config.json").read_text())
    if "quantization_config" in settings or settings["dtype"] != "bfloat16":
        raise SystemExit(f"{target}/config.json does not describe plain bf16 weights: {settings}")
    if not tokenizer.chat_template:
        raise SystemExit(f"{source.name} holds no chat template")


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
