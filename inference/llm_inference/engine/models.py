"""Models that generate text, whoever runs them: a decoder read here, or one of transformers.

Knows which runner suits which model. Does not know requests.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from llm_inference.engine.checkpoint import Checkpoint
from llm_inference.engine.decoder import Decoder
from llm_inference.engine.directory import ModelDirectory, read_json
from llm_inference.engine.families import read_decoder
from llm_inference.engine.step import Runner

logger = logging.getLogger(__name__)

_WARM_TOKENS = 8


@dataclass(frozen=True, kw_only=True)
class GenerativeModel:
    """A loaded model, and how to make what runs it.

    Attributes:
        dtype: type that is computed in.
        device: where the weights are.
        vocabulary: token ids are less than this.
        max_length: positions the model was made for, or None.
        bytes_per_token: of the cache.
        ends: token ids that end a sequence; None if the model's files do not say.
        runner: from rows and tokens of one row to a runner.
    """

    dtype: torch.dtype
    device: torch.device
    vocabulary: int
    max_length: int | None
    bytes_per_token: int
    ends: int | list[int] | None
    runner: Callable[[int, int], Runner]


def load_generative(
    directory: ModelDirectory,
    *,
    dtype: str,
    quantization: Literal["none", "int8"],
    device: torch.device,
) -> GenerativeModel:
    """Load the model on `device`; `dtype` "auto" is the checkpoint's own.

    Raises:
        ModelLoadError: the checkpoint lacks weights, or cannot be batched or quantized.
    """
    if quantization == "none":
        decoder = load_decoder(directory, dtype=dtype, device=device)
        if decoder is not None and (model := _decoder_model(directory, decoder)) is not None:
            return model
        del decoder  # before the same weights are loaded once more
    return _pretrained_model(directory, dtype, quantization, device)


def load_decoder(directory: ModelDirectory, *, dtype: str, device: torch.device) -> Decoder | None:
    """The decoder in a model directory, or None for a family that is not known here.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file is malformed.
    """
    config = directory.config
    # Older configurations call it torch_dtype; without either a checkpoint's own type is taken.
    own = config.get("dtype") or config.get("torch_dtype")
    name = own if dtype == "auto" else dtype
    wanted = getattr(torch, str(name), None) if name else None
    checkpoint = Checkpoint(
        directory.path, dtype=wanted if isinstance(wanted, torch.dtype) else None, device=device
    )
    decoder = read_decoder(config, checkpoint)
    # What was copied need not stay mapped, and what was not comes back from the page cache.
    checkpoint.release()
    return decoder


def warm(runner: Runner) -> None:
    """Let a runner work once, so that the first request finds everything loaded."""
    if (prepare := getattr(runner, "warm", None)) is not None:
        prepare()
    runner.prefill(0, [0] * _WARM_TOKENS, 0, None)
    runner.decode(0, [0], [_WARM_TOKENS], [])


def _decoder_model(directory: ModelDirectory, decoder: Decoder) -> GenerativeModel | None:
    """The decoder with our own runner for its device; None if that cannot run it."""
    found = _cuda_runner(decoder) if decoder.device.type == "cuda" else _cpu_runner(decoder)
    if found is None:
        logger.info("transformers runs the model: there is no runner for it here")
        return None
    runner, bytes_per_token = found
    return GenerativeModel(
        dtype=decoder.dtype,
        device=decoder.device,
        vocabulary=decoder.vocabulary,
        max_length=decoder.max_length,
        bytes_per_token=bytes_per_token,
        ends=_end_tokens(directory),
        runner=runner,
    )


def _cpu_runner(decoder: Decoder) -> tuple[Callable[[int, int], Runner], int] | None:
    from llm_inference.engine.cpu_runner import CpuRunner  # noqa: PLC0415 - loads a library

    if not CpuRunner.supported(decoder):
        return None
    return (
        lambda rows, length: CpuRunner(decoder, rows=rows, max_length=length),
        CpuRunner.bytes_per_token(decoder),
    )


def _cuda_runner(decoder: Decoder) -> tuple[Callable[[int, int], Runner], int] | None:
    from llm_inference.engine.cuda_runner import (  # noqa: PLC0415 - only where there is a card
        CudaRunner,
        cache_bytes_per_token,
        supported,
    )

    if not supported(decoder):
        return None
    return (
        lambda rows, length: CudaRunner(decoder, rows=rows, max_length=length),
        cache_bytes_per_token(decoder),
    )


def _end_tokens(directory: ModelDirectory) -> int | list[int] | None:
    """As transformers finds them: in generation_config.json, without one in config.json."""
    file = directory.path / "generation_config.json"
    source = read_json(file, required=True) if file.is_file() else directory.config
    ends: int | list[int] | None = source.get("eos_token_id")
    return ends


def _pretrained_model(
    directory: ModelDirectory,
    dtype: str,
    quantization: Literal["none", "int8"],
    device: torch.device,
) -> GenerativeModel:
    from llm_inference.engine import pretrained  # noqa: PLC0415 - imports transformers
    from llm_inference.engine.cache import RowCache  # noqa: PLC0415
    from llm_inference.engine.runner import CausalRunner  # noqa: PLC0415

    model = pretrained.load_pretrained(
        directory, dtype=dtype, quantization=quantization, device=device
    )
    shapes, windows = pretrained.cache_shapes(model), pretrained.windows(model, directory)

    def runner(rows: int, length: int) -> Runner:
        cache = RowCache(
            shapes=shapes, rows=rows, max_length=length, dtype=model.dtype, device=model.device
        )
        return CausalRunner(model=model, cache=cache, windows=windows)

    return GenerativeModel(
        dtype=model.dtype,
        device=model.device,
        vocabulary=model.get_input_embeddings().num_embeddings,
        max_length=getattr(model.config.get_text_config(), "max_position_embeddings", None),
        bytes_per_token=RowCache.bytes_per_token(shapes, model.dtype),
        ends=pretrained.end_tokens(model),
        runner=runner,
    )
