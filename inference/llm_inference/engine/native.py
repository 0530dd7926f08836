"""The native library, as Python sees it: `decoder.h` and `convert.h` of `inference/native`.

Calls release the interpreter's lock while they run. Knows pointers and arrays. Does not know what
a step is for: that is the runner's; `native_sampling` knows the library's other half.
"""

import ctypes
import functools
import logging
import math
import mmap
from collections.abc import Sequence
from ctypes import POINTER, c_char_p, c_float, c_int, c_int64, c_void_p
from pathlib import Path
from typing import Any, ClassVar

from llm_inference.engine.arrays import ITEM_BYTES, Array, Piece, rounded, widened
from llm_inference.engine.decoder import Decoder, Layer, Rope, mapped

logger = logging.getLogger(__name__)

LIBRARY = Path(__file__).with_name("_native.so")
_INTERFACE = 3
# Matrices and heads are read in groups of so many numbers.
_GROUP = 16
_TYPES = {"float32": 0, "bfloat16": 1}
_CONVERTED = {"float32": 0, "bfloat16": 1, "float16": 2, "float64": 3}
_ACTIVATIONS = {"silu": 0, "gelu_tanh": 1, "gelu": 2}


class _Matrix(ctypes.Structure):
    _fields_: ClassVar[Any] = [("weights", c_void_p), ("out", c_int64), ("in_", c_int64)]


class _Rope(ctypes.Structure):
    _fields_: ClassVar[Any] = [
        ("frequencies", c_void_p),
        ("pairs", c_int64),
        ("scale", c_float),
    ]


class _Layer(ctypes.Structure):
    _fields_: ClassVar[Any] = [
        ("attention_norm", c_void_p),
        ("qkv", _Matrix * 3),
        ("qkv_bias", c_void_p),
        ("query_norm", c_void_p),
        ("key_norm", c_void_p),
        ("output", _Matrix),
        ("output_bias", c_void_p),
        ("attention_post_norm", c_void_p),
        ("mlp_norm", c_void_p),
        ("gate", _Matrix),
        ("up", _Matrix),
        ("down", _Matrix),
        ("mlp_post_norm", c_void_p),
        ("window", c_int64),
        ("rope", c_int64),
    ]


class _Decoder(ctypes.Structure):
    _fields_: ClassVar[Any] = [
        ("type", c_int64),
        ("activation", c_int64),
        ("heads", c_int64),
        ("kv_heads", c_int64),
        ("head_dim", c_int64),
        ("layers_count", c_int64),
        ("ropes_count", c_int64),
        ("layers", POINTER(_Layer)),
        ("ropes", POINTER(_Rope)),
        ("embedding", _Matrix),
        ("head", _Matrix),
        ("norm", c_void_p),
        ("embedding_scale", c_float),
        ("norm_eps", c_float),
        ("attention_scale", c_float),
        ("residual_scale", c_float),
        ("logit_scale", c_float),
        ("attention_softcap", c_float),
        ("logit_softcap", c_float),
        ("cache", c_void_p),
        ("rows", c_int64),
        ("max_length", c_int64),
    ]


class _Span(ctypes.Structure):
    _fields_: ClassVar[Any] = [("row", c_int64), ("position", c_int64), ("tokens", c_int64)]


@functools.cache
def library() -> ctypes.CDLL | None:
    """The library, or None where it is missing or does not suit this processor or this code."""
    try:
        loaded = ctypes.CDLL(str(LIBRARY))
    except OSError as error:
        logger.info("the native library cannot be loaded: %s", error)
        return None
    if (interface := loaded.decoder_interface()) != _INTERFACE:
        logger.warning("the native library has interface %d, not %d", interface, _INTERFACE)
        return None
    loaded.decoder_instructions.restype = c_char_p
    if loaded.decoder_instructions() is None:
        logger.info("this processor has no AVX2, or ATEN_CPU_CAPABILITY turns the library off")
        return None
    loaded.decoder_cache_bytes.argtypes = [POINTER(_Decoder)]
    loaded.decoder_cache_bytes.restype = c_int64
    loaded.decoder_open.argtypes = [POINTER(_Decoder), c_int, c_int64]
    loaded.decoder_open.restype = c_void_p
    loaded.decoder_close.argtypes = [c_void_p]
    loaded.decoder_close.restype = None
    loaded.decoder_step.argtypes = [c_void_p, POINTER(_Span), c_int64, POINTER(c_int64), c_void_p]
    loaded.decoder_copy.argtypes = [c_void_p, c_int64, c_int64, c_int64]
    loaded.decoder_threads.argtypes = [c_void_p]
    loaded.decoder_threads.restype = c_void_p
    loaded.numbers_convert.argtypes = [c_int64, c_void_p, c_int64, c_void_p, c_int64]
    return loaded


def instructions() -> str | None:
    """The set of instructions that a decoder opened now would run with: "avx512" or "avx2"."""
    loaded = library()
    name: bytes | None = loaded.decoder_instructions() if loaded else None
    return name.decode() if name else None


def computes_in(dtype: str | None) -> bool:
    """Whether the library is there and computes in this type, or in some if it is not known."""
    return (dtype is None or dtype in _TYPES) and library() is not None


def supported(decoder: Decoder[Array]) -> bool:
    """Whether `NativeDecoder` can run this decoder, here."""
    layer = decoder.layers[0]
    sizes = (decoder.hidden, decoder.head_dim, layer.down.shape[1])
    return all(size % _GROUP == 0 for size in sizes) and computes_in(decoder.embedding.dtype)


def converted(decoder: Decoder[Array], dtype: str) -> Decoder[Array]:
    """The decoder with its matrices in a type that the library computes in.

    What has that type is not copied.

    Raises:
        MemoryError: there is no memory for the copies.
    """

    def convert(matrix: Array) -> Array:
        return matrix if matrix.dtype == dtype else _convert(matrix, dtype)

    return mapped(decoder, Decoder[Array], convert, lambda norm: norm)


def _convert(matrix: Array, dtype: str) -> Array:
    loaded = library()
    if loaded is None:
        raise RuntimeError("there is no native library for this processor")
    result = _room(dtype, matrix.shape)
    columns, at = math.prod(matrix.shape[1:]), result.address
    for piece in matrix.pieces:
        count = piece.rows * columns
        if loaded.numbers_convert(
            _CONVERTED[matrix.dtype], piece.address, _CONVERTED[dtype], at, count
        ):
            raise ValueError(f"{matrix.dtype} cannot be made into {dtype}")
        at += count * ITEM_BYTES[dtype]
    return result


def _room(dtype: str, shape: tuple[int, ...]) -> Array:
    """Zeros; the system gives the memory page by page, as it is written to."""
    size = math.prod(shape) * ITEM_BYTES[dtype]
    try:
        memory = mmap.mmap(-1, size)
    except (OSError, OverflowError, ValueError) as error:
        raise MemoryError(f"{size} bytes cannot be had") from error
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    return Array(dtype, shape, (Piece(address, shape[0], memory),))


class NativeDecoder:
    """A decoder and its cache in the native library.

    Args:
        decoder: one that is `supported`; its matrices are used where they lie.
        rows: sequences the cache holds.
        max_length: positions of each.
        most_tokens: tokens of one pass.
        threads: that compute, the caller's among them.

    Raises:
        MemoryError: there is no memory for the cache or the activations.
    """

    def __init__(
        self,
        decoder: Decoder[Array],
        *,
        rows: int,
        max_length: int,
        most_tokens: int,
        threads: int,
    ) -> None:
        loaded = library()
        if loaded is None:
            raise RuntimeError("there is no native library for this processor")
        self.library = loaded
        self._kept: list[object] = []
        self._structure = self._describe(decoder)
        self._structure.rows, self._structure.max_length = rows, max_length
        size = rows * loaded.decoder_cache_bytes(self._structure)
        # Not all of it is there yet: the rows grow into it.
        self._cache = _room("uint8", (size,))
        self._structure.cache = self._cache.address
        self._handle = loaded.decoder_open(self._structure, threads, most_tokens)
        if not self._handle:
            raise MemoryError("the activations' memory or the threads cannot be had")
        self._vocabulary = decoder.vocabulary
        self._logits = _room("float32", (1, decoder.vocabulary))

    @property
    def threads(self) -> int:
        """The library's threads, for `native_sampling`; they end when this is closed."""
        threads: int = self.library.decoder_threads(self._handle)
        return threads

    def step(
        self, spans: Sequence[tuple[int, int, int]], tokens: Sequence[int], *, logits: bool = True
    ) -> Array:
        """Run tokens through the model and keep their keys and values.

        What a row's logits are depends on its own tokens alone, bit for bit: not on the other
        spans, and not on how its tokens were divided among passes.

        Args:
            spans: (row, position of the first token, number of tokens); each row at most once.
            tokens: of the first span, then of the second, and so on.
            logits: whether they are wanted.

        Returns:
            float32 logits (spans, vocabulary) after each span's last token, valid until the next
            step; no rows if they are not wanted.

        Raises:
            ValueError: a row, a position or a token does not exist.
        """
        count = len(spans)
        if sum(span[2] for span in spans) != len(tokens):
            raise ValueError(f"{len(tokens)} tokens do not fill the spans {list(spans)}")
        if logits and self._logits.shape[0] < count:
            self._logits = _room("float32", (count, self._vocabulary))
        failed = self.library.decoder_step(
            self._handle,
            (_Span * count)(*(_Span(*span) for span in spans)),
            count,
            (c_int64 * len(tokens))(*tokens),
            self._logits.address if logits else None,
        )
        if failed:
            raise ValueError(f"spans {list(spans)} or their tokens are beyond the model's bounds")
        return self._logits.rows(0, count if logits else 0)

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of row `source` to row `target`.

        Raises:
            ValueError: a row or a position does not exist.
        """
        if self.library.decoder_copy(self._handle, source, target, length):
            raise ValueError(f"{length} positions of row {source} do not fit row {target}")

    def close(self) -> None:
        """Stop the threads and free the memory; nothing else may be called afterwards."""
        if self._handle:
            self.library.decoder_close(self._handle)
            self._handle = None

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self.close()

    def _describe(self, decoder: Decoder[Array]) -> _Decoder:
        """The decoder's structure; all that it points to is kept."""
        ropes = list(
            {id(layer.rope): layer.rope for layer in decoder.layers if layer.rope}.values()
        )
        layers = (_Layer * len(decoder.layers))(
            *(self._layer(decoder, layer, ropes) for layer in decoder.layers)
        )
        self._kept.append(layers)
        rope_array = (_Rope * len(ropes))(
            *(
                _Rope(self._vector(rope.frequencies), rope.frequencies.shape[0], rope.scale)
                for rope in ropes
            )
        )
        self._kept.append(rope_array)
        # Embeddings are multiplied by a number of their own type.
        scale = rounded(decoder.embedding_scale, decoder.embedding.dtype)
        return _Decoder(
            type=_TYPES[decoder.embedding.dtype],
            activation=_ACTIVATIONS[decoder.activation],
            heads=decoder.heads,
            kv_heads=decoder.kv_heads,
            head_dim=decoder.head_dim,
            layers_count=len(layers),
            ropes_count=len(ropes),
            layers=layers,
            ropes=rope_array,
            embedding=self._matrix(decoder.embedding),
            head=self._matrix(decoder.head),
            norm=self._vector(decoder.norm),
            embedding_scale=scale,
            norm_eps=decoder.norm_eps,
            attention_scale=decoder.attention_scale,
            residual_scale=decoder.residual_scale,
            logit_scale=decoder.logit_scale,
            attention_softcap=decoder.attention_softcap or 0.0,
            logit_softcap=decoder.logit_softcap or 0.0,
        )

    def _layer(
        self, decoder: Decoder[Array], layer: Layer[Array], ropes: list[Rope[Array]]
    ) -> _Layer:
        queries, keys = (count * decoder.head_dim for count in (decoder.heads, decoder.kv_heads))
        inner = layer.down.shape[1]
        return _Layer(
            attention_norm=self._vector(layer.attention_norm),
            qkv=(_Matrix * 3)(
                self._matrix(layer.qkv.rows(0, queries)),
                self._matrix(layer.qkv.rows(queries, keys)),
                self._matrix(layer.qkv.rows(queries + keys, keys)),
            ),
            qkv_bias=self._vector(layer.qkv_bias),
            query_norm=self._vector(layer.query_norm),
            key_norm=self._vector(layer.key_norm),
            output=self._matrix(layer.output),
            output_bias=self._vector(layer.output_bias),
            attention_post_norm=self._vector(layer.attention_post_norm),
            mlp_norm=self._vector(layer.mlp_norm),
            gate=self._matrix(layer.gate_up.rows(0, inner)),
            up=self._matrix(layer.gate_up.rows(inner, inner)),
            down=self._matrix(layer.down),
            mlp_post_norm=self._vector(layer.mlp_post_norm),
            window=layer.window or 0,
            rope=-1 if layer.rope is None else [id(rope) for rope in ropes].index(id(layer.rope)),
        )

    def _matrix(self, array: Array) -> _Matrix:
        self._kept.append(array)
        return _Matrix(array.address, *array.shape)

    def _vector(self, array: Array | None) -> int | None:
        """Address of the numbers in float32, contiguous."""
        if array is None:
            return None
        if array.dtype != "float32" or len(array.pieces) > 1:
            array = widened(array)
        self._kept.append(array)
        return array.address
