"""Models that transformers runs: every architecture it has, and none of it imported early.

Imports transformers: import this late. Knows weights, caches and attention masks of transformers'
models. Does not know requests.
"""

import inspect as python_inspect
import os
from typing import TYPE_CHECKING, Literal

import torch

from llm_inference.engine.directory import ModelDirectory, ModelLoadError
from llm_inference.engine.linear import widen_linears
from llm_inference.engine.quantization import QuantizationError, quantize_linears
from llm_lean.compiler import without_compiler

with without_compiler():
    # The last two are what every model imports: here, so that they are imported lean.
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
    from transformers import modeling_layers as _modeling_layers  # noqa: F401
    from transformers.generation import utils as _generation_utils  # noqa: F401
    from transformers.utils import logging as transformers_logging

if TYPE_CHECKING:
    from transformers import PreTrainedModel

transformers_logging.disable_progress_bar()

_FULL, _SLIDING = "full_attention", "sliding_attention"


def load_pretrained(
    directory: ModelDirectory,
    *,
    dtype: str,
    quantization: Literal["none", "int8"],
    device: torch.device,
) -> "PreTrainedModel":
    """The model in eval mode on `device`; `dtype` "auto" is the checkpoint's own.

    Raises:
        ModelLoadError: the checkpoint lacks weights of the model, or is not to be quantized.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    config = AutoConfig.from_pretrained(directory.path, local_files_only=True)
    auto = AutoModelForCausalLM if directory.generates else AutoModel
    with without_compiler():
        model, report = auto.from_pretrained(
            directory.path,
            config=config,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    # transformers would fill what is missing with random numbers and serve that.
    missing = sorted(name for name in report["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise ModelLoadError(
            f"the weights in {directory.path} lack {len(missing)} tensors, {missing[0]} for one"
        )
    model = model.eval().requires_grad_(requires_grad=False)
    if quantization == "int8":
        # Before it goes to the device, which then never holds the wide weights.
        try:
            quantize_linears(model, keep=model.get_output_embeddings())
        except QuantizationError as error:
            raise ModelLoadError(str(error)) from None
    model = model.to(device)
    widen_linears(model)
    return model


def cache_shapes(model: "PreTrainedModel") -> list[tuple[int, int, int]]:
    """(heads, key_dim, value_dim) of each layer, from a forward pass over one token.

    Raises:
        ModelLoadError: the model cannot be batched, or keeps another kind of cache.
    """
    if "position_ids" not in python_inspect.signature(model.forward).parameters:
        raise ModelLoadError(
            f"{type(model).__name__} takes no positions and cannot be batched by this server"
        )
    token = torch.zeros((1, 1), dtype=torch.long, device=model.device)
    with torch.inference_mode():
        cache = model(input_ids=token, use_cache=True).past_key_values
    layers = getattr(cache, "layers", [])
    if not layers or not all(hasattr(layer, "keys") for layer in layers):
        raise ModelLoadError(
            f"{type(model).__name__} does not keep a standard key-value cache, "
            "which this server needs"
        )
    return [(x.keys.shape[1], x.keys.shape[3], x.values.shape[3]) for x in layers]


def windows(model: "PreTrainedModel", directory: ModelDirectory) -> dict[str, int | None]:
    """The sliding window of each kind of attention layer the model has, None for full attention.

    Raises:
        ModelLoadError: it has layers of another kind.
    """
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or [_SLIDING if window else _FULL]
    if unknown := sorted(set(kinds) - {_FULL, _SLIDING}):
        raise ModelLoadError(
            f"the model in {directory.path} has {unknown[0]} layers, which this server cannot batch"
        )
    return {kind: window if kind == _SLIDING else None for kind in dict.fromkeys(kinds)}


def end_tokens(model: "PreTrainedModel") -> int | list[int] | None:
    """Token ids that end a sequence, as the generation config has them."""
    ends: int | list[int] | None = getattr(model.generation_config, "eos_token_id", None)
    return ends
