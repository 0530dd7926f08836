"""From a model directory to a running engine. Imports much: import this late.

Models of the families known here are read straight from their files and run by our own runners;
transformers, whose import takes seconds, loads and runs everything else. torch is imported for it
and for a card, and not where the native library runs the model. Knows devices, types and memory.
Tells its caller which phase it is in and ends every failure in one sentence.
"""

import gc
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from llm_inference.engine import machine, models
from llm_inference.engine.codec import HuggingFaceCodec
from llm_inference.engine.directory import ModelDirectory, ModelLoadError
from llm_inference.engine.generation import BatchingEngine
from llm_inference.engine.interface import Capacity, DeviceReport, Engine, Observer
from llm_inference.engine.models import Device, GenerativeModel
from llm_lean.importing import import_torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

# Share of the memory left beside the weights that the KV cache may grow into.
_CACHE_SHARE = {"cpu": 0.5, "cuda": 0.85}
# Rows of the cache that keep the prefixes of ended sequences, for each row of the batch.
_KEPT_SHARE = 0.5
_SHORTEST = 256


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
    max_queue_tokens: int | None = None


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
    if options.quantization != "none" and not directory.generates:
        raise ModelLoadError(
            f"LLM_QUANTIZATION is {options.quantization}, but {directory.model_id} computes "
            "embeddings, and only models that generate text are quantized"
        )
    threads = options.threads or machine.processors()
    device = _pick_device(options.device)
    if device == "cuda" or not _runs_without_torch(directory, options):
        # What is not known before the weights are read is imported while they are.
        import_torch()
    if device == "cuda":
        _without_cudnn()
    on_phase("loading")
    with _one_sentence(directory.path):
        codec = HuggingFaceCodec.load(directory.path)
        # The first conversation would wait for it, the start of the server need not.
        threading.Thread(target=codec.prepare, name="chat template", daemon=True).start()
        if directory.generates:
            built = _generation(directory, options, device, codec, observer, threads=threads)
        else:
            built = _embedding(directory, options, device, codec, observer, threads=threads)
    on_phase("warming")
    with _one_sentence(directory.path):
        built.warm()
    # The model's objects live as long as the process: the collector need not look at them again.
    gc.collect()
    gc.freeze()
    return LoadedModel(
        engine=built.start(),
        device=DeviceReport(
            type=device,
            name=_device_name(device),
            dtype=built.dtype,
            memory_bytes=_device_memory(device),
            threads=threads,
        ),
    )


def _without_cudnn() -> None:
    """Let torch choose its own kernels: images leave cuDNN's out, which text models do not need."""
    import torch  # noqa: PLC0415

    torch.backends.cudnn.enabled = False
    torch.backends.cuda.enable_cudnn_sdp(enabled=False)


@dataclass(frozen=True, kw_only=True)
class _Built:
    """A loaded model: its type, how it is warmed, and how its engine starts."""

    dtype: str
    warm: Callable[[], None]
    start: Callable[[], Engine]


def _generation(
    directory: ModelDirectory,
    options: LoadOptions,
    device: Device,
    codec: HuggingFaceCodec,
    observer: Observer,
    *,
    threads: int,
) -> _Built:
    model = models.load_generative(
        directory,
        dtype=options.dtype,
        quantization=options.quantization,
        device=device,
        threads=threads,
    )
    length, rows = _cache_size(model, options)
    capacity = Capacity(
        max_length=length,
        max_concurrency=options.max_concurrency,
        max_queue=options.max_queue,
        max_queue_tokens=options.max_queue_tokens,
        vocabulary=model.vocabulary,
    )
    runner = model.runner(rows, length)
    ends = codec.eos_token_id if model.ends is None else model.ends
    ends = [] if ends is None else ends

    def start() -> Engine:
        return BatchingEngine(
            codec=codec,
            runner=runner,
            capacity=capacity,
            eos=frozenset(ends if isinstance(ends, list) else [ends]),
            observer=observer,
        )

    return _Built(dtype=model.dtype, warm=lambda: models.warm(runner), start=start)


def _embedding(
    directory: ModelDirectory,
    options: LoadOptions,
    device: Device,
    codec: HuggingFaceCodec,
    observer: Observer,
    *,
    threads: int,
) -> _Built:
    import torch  # noqa: PLC0415

    from llm_inference.engine import pretrained  # noqa: PLC0415 - imports transformers
    from llm_inference.engine.embedding import (  # noqa: PLC0415
        PoolingEngine,
        encode,
        read_pooling,
    )

    torch.set_num_threads(threads)
    model: PreTrainedModel = pretrained.load_pretrained(
        directory, dtype=options.dtype, quantization="none", device=torch.device(device)
    )
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

    dtype = str(model.dtype).removeprefix("torch.")
    return _Built(dtype=dtype, warm=warm, start=start)


def _runs_without_torch(directory: ModelDirectory, options: LoadOptions) -> bool:
    return options.quantization == "none" and models.runs_without_torch(directory, options.dtype)


def _pick_device(wanted: str) -> Device:
    if wanted == "cpu":
        return "cpu"
    usable = machine.may_have_cards() and _torch_has_cards()
    if wanted == "cuda" and not usable:
        raise ModelLoadError("LLM_DEVICE is cuda, but no CUDA device can be used here")
    if not usable:
        logger.info("no CUDA device can be used here: the model runs on the cpu")
    return "cuda" if usable else "cpu"


def _torch_has_cards() -> bool:
    import_torch()
    import torch  # noqa: PLC0415

    return torch.cuda.is_available()


def _device_memory(device: Device) -> int:
    if device == "cuda":
        import torch  # noqa: PLC0415

        return int(torch.cuda.get_device_properties(device).total_memory)
    return machine.total_memory()


def _device_name(device: Device) -> str:
    if device == "cuda":
        import torch  # noqa: PLC0415

        return str(torch.cuda.get_device_name(device))
    return machine.processor_name()


def _cache_size(model: GenerativeModel, options: LoadOptions) -> tuple[int, int]:
    """Tokens of one sequence, as asked for or as model and memory allow, and rows of the cache."""
    own, wanted = model.max_length, options.max_length
    if wanted and own and wanted > own:
        raise ModelLoadError(
            f"LLM_MAX_LENGTH is {wanted}, but the model reads {own} tokens at most"
        )
    batch = options.max_concurrency
    share = int(_free_memory(model) * _CACHE_SHARE[model.device])
    tokens = share // model.bytes_per_token
    room = tokens // batch
    length = wanted or min(own or room, room)
    if length > room or (length < min(_SHORTEST, own or _SHORTEST) and not wanted):
        raise ModelLoadError(
            f"the memory left beside the weights holds {room} tokens for each of "
            f"{batch} sequences"
            + (f", not the {wanted} of LLM_MAX_LENGTH" if wanted else "")
            + ": lower LLM_MAX_CONCURRENCY or LLM_MAX_LENGTH, or give the container more memory"
        )
    kept = min(max(1, int(batch * _KEPT_SHARE)), tokens // length - batch)
    return length, batch + kept


def _free_memory(model: GenerativeModel) -> int:
    if model.device == "cuda":
        import torch  # noqa: PLC0415

        free: int = torch.cuda.mem_get_info(model.device)[0]
        return free
    return max(0, machine.available_memory() - model.mapped_bytes)


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
