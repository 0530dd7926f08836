"""From a model directory to a running engine. Imports torch and transformers: import this late.

Knows devices, dtypes, weights and memory. Tells its caller which phase it is in and ends every
failure in one sentence.
"""

import gc
import inspect as python_inspect
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from llm_inference.engine import machine
from llm_inference.engine.cache import RowCache
from llm_inference.engine.codec import HuggingFaceCodec
from llm_inference.engine.directory import ModelDirectory, ModelLoadError
from llm_inference.engine.embedding import PoolingEngine, encode, read_pooling
from llm_inference.engine.generation import BatchingEngine
from llm_inference.engine.interface import (
    Capacity,
    DeviceReport,
    Engine,
    Observer,
)
from llm_inference.engine.lean_imports import without_compiler
from llm_inference.engine.linear import widen_linears
from llm_inference.engine.quantization import QuantizationError, quantize_linears
from llm_inference.engine.runner import CausalRunner

with without_compiler():
    # The last two are what every model imports: here, so that they are imported lean.
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
    from transformers import modeling_layers as _modeling_layers  # noqa: F401
    from transformers.generation import utils as _generation_utils  # noqa: F401
    from transformers.utils import logging as transformers_logging

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)
transformers_logging.disable_progress_bar()

# Share of the memory left beside the weights that the KV cache may grow into.
_CACHE_SHARE = {"cpu": 0.5, "cuda": 0.85}
_SHORTEST = 256
_FULL, _SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """How to load a model; None and "auto" leave the choice to the model and the machine."""

    dtype: str = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    quantization: Literal["none", "int8"] = "none"
    threads: int | None = None
    max_length: int | None = None
    max_concurrency: int = 16
    max_queue: int = 64


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A running engine and what it runs on."""

    engine: Engine
    device: DeviceReport


def load_model(
    directory: ModelDirectory,
    options: LoadOptions,
    *,
    on_phase: Callable[[str], object],
    observer: Observer,
) -> LoadedModel:
    """Load the model and start its engine; calls `on_phase` with "loading" and "warming".

    Raises:
        ModelLoadError: it cannot be served; the message is one sentence.
    """
    on_phase("loading")
    if options.quantization != "none" and not directory.generates:
        raise ModelLoadError(
            f"LLM_QUANTIZATION is {options.quantization}, but {directory.model_id} computes "
            "embeddings, and only models that generate text are quantized"
        )
    threads = options.threads or machine.processors()
    torch.set_num_threads(threads)
    device = _pick_device(options.device)
    with _one_sentence(directory.path):
        codec = HuggingFaceCodec.load(directory.path)
        model = _load_weights(directory, options, device)
    build = _build_generation if directory.generates else _build_embedding
    engine, warm = build(model, codec, directory, options, observer)
    on_phase("warming")
    with _one_sentence(directory.path):
        warm()
    # The model's objects live as long as the process: the collector need not look at them again.
    gc.collect()
    gc.freeze()
    return LoadedModel(
        engine=engine(),
        device=DeviceReport(
            type=device.type,
            name=_device_name(device),
            dtype=str(model.dtype).removeprefix("torch."),
            memory_bytes=_device_memory(device),
            threads=threads,
        ),
    )


Built = tuple[Callable[[], Engine], Callable[[], None]]


def _build_generation(
    model: "PreTrainedModel",
    codec: HuggingFaceCodec,
    directory: ModelDirectory,
    options: LoadOptions,
    observer: Observer,
) -> Built:
    shapes = _cache_shapes(model)
    capacity = Capacity(
        max_length=_generation_length(model, shapes, options),
        max_concurrency=options.max_concurrency,
        max_queue=options.max_queue,
        vocabulary=model.get_input_embeddings().num_embeddings,
    )
    cache = RowCache(
        shapes=shapes,
        rows=capacity.max_concurrency,
        max_length=capacity.max_length,
        dtype=model.dtype,
        device=model.device,
    )
    runner = CausalRunner(model=model, cache=cache, windows=_windows(model, directory))

    def warm() -> None:
        runner.prefill(0, [0] * 8, 0, None)
        runner.decode(0, [0], [8], [])

    def start() -> Engine:
        return BatchingEngine(
            codec=codec,
            runner=runner,
            capacity=capacity,
            eos=_end_tokens(model, codec),
            observer=observer,
        )

    return start, warm


def _build_embedding(
    model: "PreTrainedModel",
    codec: HuggingFaceCodec,
    directory: ModelDirectory,
    options: LoadOptions,
    observer: Observer,
) -> Built:
    pooling = read_pooling(directory.path)
    own = getattr(model.config, "max_position_embeddings", None) or 512
    longest = min(own, pooling.max_length or own)
    if options.max_length and options.max_length > own:
        raise ModelLoadError(
            f"LLM_MAX_LENGTH is {options.max_length}, but the model reads {own} tokens at most"
        )
    capacity = Capacity(
        max_length=options.max_length or longest,
        max_concurrency=options.max_concurrency,
        max_queue=options.max_queue,
        vocabulary=model.get_input_embeddings().num_embeddings,
    )
    pad = getattr(model.config, "pad_token_id", None) or 0

    def warm() -> None:
        encode(model, pooling, [codec.encode("warm")], pad)

    def start() -> Engine:
        return PoolingEngine(
            model=model,
            codec=codec,
            pooling=pooling,
            pad=pad,
            capacity=capacity,
            observer=observer,
        )

    return start, warm


def _pick_device(wanted: str) -> torch.device:
    if wanted == "cpu":
        return torch.device("cpu")
    usable = torch.cuda.is_available()
    if wanted == "cuda" and not usable:
        raise ModelLoadError("LLM_DEVICE is cuda, but no CUDA device can be used here")
    if not usable:
        logger.info("no CUDA device can be used here: the model runs on the cpu")
    return torch.device("cuda" if usable else "cpu")


def _device_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return machine.total_memory()


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "cpu"
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "cpu")


def _load_weights(
    directory: ModelDirectory, options: LoadOptions, device: torch.device
) -> "PreTrainedModel":
    """The model in eval mode on `device`.

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
            dtype=options.dtype if options.dtype == "auto" else getattr(torch, options.dtype),
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
    if options.quantization == "int8":
        # Before it goes to the device, which then never holds the wide weights.
        try:
            quantize_linears(model, keep=model.get_output_embeddings())
        except QuantizationError as error:
            raise ModelLoadError(str(error)) from None
    model = model.to(device)
    widen_linears(model)
    return model


def _cache_shapes(model: "PreTrainedModel") -> list[tuple[int, int, int]]:
    """(heads, key_dim, value_dim) of each layer, from a forward pass over one token."""
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


def _windows(model: "PreTrainedModel", directory: ModelDirectory) -> dict[str, int | None]:
    """The sliding window of each kind of attention layer the model has, None for full attention."""
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or [_SLIDING if window else _FULL]
    if unknown := sorted(set(kinds) - {_FULL, _SLIDING}):
        raise ModelLoadError(
            f"the model in {directory.path} has {unknown[0]} layers, which this server cannot batch"
        )
    return {kind: window if kind == _SLIDING else None for kind in dict.fromkeys(kinds)}


def _generation_length(
    model: "PreTrainedModel", shapes: list[tuple[int, int, int]], options: LoadOptions
) -> int:
    """Tokens of one sequence: what is asked for, or what the model and the memory allow."""
    own = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    wanted = options.max_length
    if wanted and own and wanted > own:
        raise ModelLoadError(
            f"LLM_MAX_LENGTH is {wanted}, but the model reads {own} tokens at most"
        )
    per_length = RowCache.bytes_per_token(shapes, model.dtype) * options.max_concurrency
    room = int(_free_memory(model.device) * _CACHE_SHARE[model.device.type]) // per_length
    length = wanted or min(own or room, room)
    if length > room or (length < min(_SHORTEST, own or _SHORTEST) and not wanted):
        raise ModelLoadError(
            f"the memory left beside the weights holds {room} tokens for each of "
            f"{options.max_concurrency} sequences"
            + (f", not the {wanted} of LLM_MAX_LENGTH" if wanted else "")
            + ": lower LLM_MAX_CONCURRENCY or LLM_MAX_LENGTH, or give the container more memory"
        )
    return length


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        return free
    return machine.available_memory()


def _end_tokens(model: "PreTrainedModel", codec: HuggingFaceCodec) -> frozenset[int]:
    """Token ids that end a sequence: the generation config's, else the tokenizer's."""
    ends = getattr(model.generation_config, "eos_token_id", None)
    if ends is None:
        ends = codec.eos_token_id
    if ends is None:
        return frozenset()
    return frozenset(ends if isinstance(ends, list) else [ends])


@contextmanager
def _one_sentence(path: Path) -> Iterator[None]:
    """Turn whatever a library raises over a broken model into a ModelLoadError."""
    try:
        yield
    except ModelLoadError:
        raise
    except MemoryError as error:
        raise ModelLoadError(f"the model in {path} does not fit the memory") from error
    except Exception as error:
        logger.debug("loading failed", exc_info=True)
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelLoadError(f"the model in {path} cannot be loaded: {reason}") from error
