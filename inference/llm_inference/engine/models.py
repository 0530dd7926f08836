"""Models that generate text, whoever runs them: a decoder read here, or one of transformers.

Knows which runner suits which model, and imports torch for those that need it. Does not know
requests.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from llm_inference.engine import native
from llm_inference.engine.arrays import FLOATING, Array
from llm_inference.engine.checkpoint import Checkpoint
from llm_inference.engine.cpu_runner import CpuRunner
from llm_inference.engine.decoder import Decoder
from llm_inference.engine.directory import ModelDirectory, read_json
from llm_inference.engine.families import knows, read_decoder
from llm_inference.engine.interface import SamplingParams
from llm_inference.engine.step import Draw, Runner
from llm_lean.importing import import_torch

logger = logging.getLogger(__name__)

_WARM_TOKENS = 8

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True, kw_only=True)
class GenerativeModel:
    """A loaded model, and how to make what runs it.

    Attributes:
        dtype: name of the type that is computed in.
        device: where the weights are.
        vocabulary: token ids are less than this.
        max_length: positions the model was made for, or None.
        bytes_per_token: of the cache.
        mapped_bytes: of weights that are used where they lie in the page cache, which does not
            count as memory in use: it has to stay there nevertheless.
        ends: token ids that end a sequence; None if the model's files do not say.
        runner: from rows and tokens of one row to a runner.
    """

    dtype: str
    device: Device
    vocabulary: int
    max_length: int | None
    bytes_per_token: int
    mapped_bytes: int
    ends: int | list[int] | None
    runner: Callable[[int, int], Runner]


def runs_without_torch(directory: ModelDirectory, dtype: str) -> bool:
    """Whether the cpu will most likely run the model by the native library.

    Its tensors have not been looked at: one that is not known still brings transformers in.
    """
    return (
        directory.generates
        and knows(directory.config)
        and native.computes_in(_wanted_type(directory, dtype))
    )


def load_generative(
    directory: ModelDirectory,
    *,
    dtype: str,
    quantization: Literal["none", "int8"],
    device: Device,
    threads: int,
) -> GenerativeModel:
    """Load the model on `device`; `dtype` "auto" is the checkpoint's own.

    Raises:
        ModelLoadError: the checkpoint lacks weights, or cannot be batched or quantized.
    """
    if quantization == "none":
        model = _known_model(directory, dtype, device, threads)
        if model is not None:
            return model
    return _pretrained_model(directory, dtype, quantization, device, threads)


def load_decoder(directory: ModelDirectory, *, dtype: str) -> Decoder[Array] | None:
    """The decoder in a model directory, or None for a family that is not known here.

    Its weights are where they lie in the mapped files, in the type that they have there.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file is malformed.
    """
    if not knows(directory.config):
        # Said in words, without opening a file.
        return read_decoder(directory.config, {})
    wanted = _wanted_type(directory, dtype)
    return read_decoder(directory.config, Checkpoint(directory.path), dtype=wanted)


def warm(runner: Runner) -> None:
    """Let a runner work once, so that the first request finds everything loaded."""
    if (prepare := getattr(runner, "warm", None)) is not None:
        prepare()
    runner.prefill(0, [0] * _WARM_TOKENS, 0, None)
    greedy = Draw(sampling=SamplingParams(temperature=0), seed=0)
    runner.decode(0, [0], [_WARM_TOKENS], [greedy])


def _wanted_type(directory: ModelDirectory, dtype: str) -> str | None:
    """The type to compute in; None for that of the checkpoint's tensors, whatever it is."""
    config = directory.config
    # Older configurations call it torch_dtype.
    own = config.get("dtype") or config.get("torch_dtype")
    name = str(own if dtype == "auto" else dtype)
    return name if name in FLOATING else None


def _known_model(
    directory: ModelDirectory, dtype: str, device: Device, threads: int
) -> GenerativeModel | None:
    """The model by a decoder read here and our own runner; None if there is none for it."""
    decoder = load_decoder(directory, dtype=dtype)
    if decoder is None:
        return None
    wanted = _wanted_type(directory, dtype) or decoder.embedding.dtype
    on = _on_cuda if device == "cuda" else _on_cpu
    made = on(decoder, wanted, threads)
    if made is None:
        logger.info("transformers runs the model: there is no runner for it here")
        return None
    runner, bytes_per_token, mapped = made
    return GenerativeModel(
        dtype=wanted,
        device=device,
        vocabulary=decoder.vocabulary,
        max_length=decoder.max_length,
        bytes_per_token=bytes_per_token,
        mapped_bytes=mapped,
        ends=_end_tokens(directory),
        runner=runner,
    )


# A runner for rows and tokens of one row, bytes of the cache for a token, and bytes of weights that
# stay mapped.
_Made = tuple[Callable[[int, int], Runner], int, int]


def _on_cpu(decoder: Decoder[Array], dtype: str, threads: int) -> _Made | None:
    if not native.computes_in(dtype):
        return None
    converted = native.converted(decoder, dtype)
    if not CpuRunner.supported(converted):
        return None
    return (
        lambda rows, length: CpuRunner(converted, rows=rows, max_length=length, threads=threads),
        CpuRunner.bytes_per_token(converted),
        bytes_of(decoder) if decoder.embedding.dtype == dtype else 0,
    )


def bytes_of(decoder: Decoder[Array]) -> int:
    """Bytes of its matrices."""
    matrices = {id(decoder.embedding): decoder.embedding, id(decoder.head): decoder.head}
    for layer in decoder.layers:
        for matrix in (layer.qkv, layer.output, layer.gate_up, layer.down):
            matrices[id(matrix)] = matrix
    return sum(matrix.shape[0] * matrix.row_bytes for matrix in matrices.values())


def _on_cuda(decoder: Decoder[Array], dtype: str, threads: int) -> _Made | None:
    import torch  # noqa: PLC0415 - only where there is a card

    from llm_inference.engine.cuda_runner import (  # noqa: PLC0415
        CudaRunner,
        cache_bytes_per_token,
        supported,
    )
    from llm_inference.engine.torch_decoder import to_torch  # noqa: PLC0415

    torch.set_num_threads(threads)
    there = to_torch(decoder, dtype=getattr(torch, dtype), device="cuda")
    if not supported(there):
        return None
    return (
        lambda rows, length: CudaRunner(there, rows=rows, max_length=length),
        cache_bytes_per_token(there),
        0,
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
    device: Device,
    threads: int,
) -> GenerativeModel:
    import_torch()
    import torch  # noqa: PLC0415

    from llm_inference.engine import pretrained  # noqa: PLC0415 - imports transformers
    from llm_inference.engine.cache import RowCache  # noqa: PLC0415
    from llm_inference.engine.runner import CausalRunner  # noqa: PLC0415

    torch.set_num_threads(threads)
    model = pretrained.load_pretrained(
        directory, dtype=dtype, quantization=quantization, device=torch.device(device)
    )
    shapes, windows = pretrained.cache_shapes(model), pretrained.windows(model, directory)

    def runner(rows: int, length: int) -> Runner:
        cache = RowCache(
            shapes=shapes, rows=rows, max_length=length, dtype=model.dtype, device=model.device
        )
        return CausalRunner(model=model, cache=cache, windows=windows)

    return GenerativeModel(
        dtype=str(model.dtype).removeprefix("torch."),
        device=device,
        vocabulary=model.get_input_embeddings().num_embeddings,
        max_length=getattr(model.config.get_text_config(), "max_position_embeddings", None),
        bytes_per_token=RowCache.bytes_per_token(shapes, model.dtype),
        mapped_bytes=0,
        ends=pretrained.end_tokens(model),
        runner=runner,
    )
