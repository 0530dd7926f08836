"""Writes the model in a GGUF file as a plain directory: safetensors, configuration, tokenizer.

Knows GGUF's names and what transformers takes over from such a file. A file that says more than
that is refused: the model would load, and compute something else.
"""

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.integrations.ggml import GGUF_CONFIG_MAPPING
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
from transformers.modeling_gguf_pytorch_utils import (
    TENSOR_PROCESSORS,
    TensorProcessor,
    get_gguf_hf_weights_map,
    load_gguf_checkpoint,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from llm_preload import PreloadError
from llm_preload.convert import check, save

# The factors of Llama 3's positions: a tensor in GGUF, four numbers in a configuration.
_ROPE_FACTORS = "rope_freqs.weight"
_LLAMA3 = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def _head_size(config: Any) -> int:  # noqa: ANN401
    return int(getattr(config, "head_dim", 0) or config.hidden_size // config.num_attention_heads)


# Settings that transformers does not take over: what its configuration has to say of them.
_SAME: Mapping[str, Callable[[Any], Any]] = {
    "attention.causal": lambda _: True,
    "attention.key_length": _head_size,
    "attention.sliding_window": lambda config: getattr(config, "sliding_window", None),
    "attention.value_length": _head_size,
    "attn_logit_softcapping": lambda config: getattr(config, "attn_logit_softcapping", None),
    "final_logit_softcapping": lambda config: getattr(config, "final_logit_softcapping", None),
    "rope.dimension_count": _head_size,
    "rope.scaling.original_context_length": lambda config: config.max_position_embeddings,
    "rope.scaling.type": lambda _: "none",
    "vocab_size": lambda config: config.vocab_size,
}
# Ways to split text before its tokens are looked up, besides those that transformers knows.
_PLAIN_SPLIT = "gpt-2"
_SPLITS = {
    "smollm": lambda: Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
}


def convert(source: Path, directory: Path, dtype: str) -> None:
    """Write the model in `source` to `directory`, its weights as `dtype`.

    A tokenizer, a chat template and generation settings that are there already come before those
    of the file. All weights are held in memory, as `dtype`.

    Raises:
        PreloadError: The file is broken, or says something that would be lost.
    """
    wanted = check(dtype)
    try:
        _convert(source, directory, wanted)
    except (
        *(ArithmeticError, AttributeError, ImportError, LookupError, OSError, RuntimeError),
        *(TypeError, ValueError, struct.error),
    ) as error:
        sentence = " ".join(str(error).split()) or type(error).__name__
        raise PreloadError(f"{source.name} cannot be converted: {sentence}") from error


def _convert(source: Path, directory: Path, dtype: torch.dtype) -> None:
    reader = GGUFReader(source)
    said = {name: field.contents() for name, field in reader.fields.items()}
    where = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    config = AutoConfig.from_pretrained(**where)
    _check_settings(source.name, said, config)
    factors = [tensor.data for tensor in reader.tensors if tensor.name == _ROPE_FACTORS]
    if factors:
        _scale_positions(source.name, config, torch.tensor(factors[0]))
    with torch.device("meta"):  # names and shapes only: every weight comes from the file
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    _check_tensors(source.name, {tensor.name for tensor in reader.tensors}, said, model)
    tokenizer = _tokenizer(source, directory, said, config)
    # Not from_pretrained: it wants a package more, for nothing that is needed here.
    weights = load_gguf_checkpoint(
        str(source), return_tensors=True, model_to_load=model, torch_dtype=dtype
    )["tensors"]
    if wrong := model.state_dict().keys() - set(model.all_tied_weights_keys) ^ weights.keys():
        raise PreloadError(f"{source.name} and its architecture differ in {sorted(wrong)[0]}")
    save(weights, directory / "model.safetensors", {"format": "pt"})
    config.architectures = [type(model).__name__]
    config.save_pretrained(directory)
    if not (directory / "generation_config.json").is_file():
        _set_ends(model.generation_config, said)
        model.generation_config.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    _check_written(directory, dtype)


def _check_settings(name: str, said: Mapping[str, Any], config: Any) -> None:  # noqa: ANN401
    """Refuse a file with a setting of its architecture that the configuration has not."""
    prefix = f"{said['general.architecture']}."
    names = (said["general.architecture"], config.model_type)
    mapping: Mapping[str, str | int | None] = next(
        (GGUF_CONFIG_MAPPING[n] for n in names if n in GGUF_CONFIG_MAPPING), {}
    )
    taken = {setting for setting, renamed in mapping.items() if renamed not in (None, -1)}
    for key, value in said.items():
        setting = key.removeprefix(prefix)
        if not key.startswith(prefix) or setting in taken:
            continue
        if setting not in _SAME or value != _SAME[setting](config):
            raise PreloadError(f"{name} says {key} {value}, which the conversion would lose")


def _check_tensors(name: str, held: set[str], said: Mapping[str, Any], model: Any) -> None:  # noqa: ANN401
    """Refuse a file with a tensor that the model has no place for."""
    kind = TENSOR_PROCESSORS.get(said["general.architecture"], TensorProcessor)
    known = get_gguf_hf_weights_map(model, kind(config=model.config.to_dict()))
    if lost := sorted(held - known.keys() - {_ROPE_FACTORS}):
        raise PreloadError(f"{name} holds {lost[0]}, which the conversion would lose")


def _scale_positions(name: str, config: Any, factors: torch.Tensor) -> None:  # noqa: ANN401
    """State in the configuration what the tensor of factors says: Llama 3's scaling."""
    theta = config.rope_parameters["rope_theta"]
    config.rope_parameters = {**_LLAMA3, "rope_theta": theta, "factor": float(factors.max())}
    config.standardize_rope_params()
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    steps = torch.arange(0, _head_size(config), 2, dtype=torch.float32) / _head_size(config)
    if scaled.shape != factors.shape or not torch.allclose(
        factors, theta**-steps / scaled, rtol=1e-3
    ):
        raise PreloadError(f"{name} scales positions in another way than Llama 3: {_ROPE_FACTORS}")


def _tokenizer(source: Path, directory: Path, said: Mapping[str, Any], config: Any) -> Any:  # noqa: ANN401
    """The tokenizer beside the file, else the one that it holds; with a chat template."""
    if (directory / "tokenizer.json").is_file():
        tokenizer = AutoTokenizer.from_pretrained(directory, config=config)
    else:
        tokenizer = AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name)
        _set_split(source.name, tokenizer, said)
        tokenizer.model_max_length = config.max_position_embeddings
    if len(tokenizer) > config.vocab_size:
        raise PreloadError(
            f"the tokenizer has {len(tokenizer)} tokens, the model only {config.vocab_size}"
        )
    if (template := directory / "chat_template.jinja").is_file():
        tokenizer.chat_template = template.read_text(encoding="utf-8")
    if not tokenizer.chat_template:
        raise PreloadError(
            f"{source.name} holds no chat template: give the file in a directory of its own, with "
            "the model's chat_template.jinja beside it"
        )
    return tokenizer


def _set_split(name: str, tokenizer: Any, said: Mapping[str, Any]) -> None:  # noqa: ANN401
    """Split text as the file says. An unknown way is refused: another gives other tokens."""
    if said.get("tokenizer.ggml.model") != "gpt2":  # only these are split before
        return
    split = said.get("tokenizer.ggml.pre")
    if split in _SPLITS:
        tokenizer.backend_tokenizer.pre_tokenizer = _SPLITS[split]()
    elif split not in GGUF_PRE_TOKENIZER_SPLITS and split != _PLAIN_SPLIT:
        raise PreloadError(
            f"{name} says tokenizer.ggml.pre {split}, which is not known here: give the file in a "
            "directory of its own, with the model's tokenizer.json and tokenizer_config.json "
            "beside it"
        )


def _set_ends(generation: Any, said: Mapping[str, Any]) -> None:  # noqa: ANN401
    """A turn of a chat may end with another token than a text does."""
    ends = [said.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot")]
    distinct = sorted({end for end in ends if end is not None})
    if len(distinct) > 1:
        generation.eos_token_id = distinct


def _check_written(directory: Path, dtype: torch.dtype) -> None:
    settings = json.loads((directory / "config.json").read_text())
    if "quantization_config" in settings or settings["dtype"] != str(dtype).removeprefix("torch."):
        raise PreloadError("config.json does not describe plain weights")
