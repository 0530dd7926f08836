"""The kernels of the cuda_*.cu files, compiled for one decoder and called with tensors.

Knows grids, blocks and which shapes the kernels want. Does not know in which order a model needs
them.
"""

import math
from pathlib import Path

import torch

from llm_inference.engine.cuda_module import Kernel, compile_kernels
from llm_inference.engine.torch_decoder import Decoder, Rope

# In this order; each uses what is defined before.
_SOURCES = ("cuda_numbers.cu", "cuda_rows.cu", "cuda_attention.cu", "cuda_vectors.cu")
_TYPES = {torch.bfloat16: "BFLOAT16", torch.float16: "FLOAT16", torch.float32: "FLOAT32"}
_ACTIVATIONS = {"silu": 0, "gelu_tanh": 1, "gelu": 2}
_MAX_HEAD_DIM = 256
_MAX_HIDDEN = 512 * 32
_MAX_GROUP_BYTES = 40 * 1024
_SIGNATURES = {
    "embed": "pppf",
    "add_norm": "ppppp",
    "activate": "pp",
    "turn_and_store": "ppppppppifi",
    "argmax": "ppppil",
    "attend": "ppppppppii",
    "advance": "pppi",
}
_VECTOR_SIGNATURES = {"gemv": "ppppppii", "gemv_gate_up": "pppp"}

# Threads of a block, as the source has them.
_NORM, _TURN, _ARGMAX, _ATTEND, _VECTOR = 512, 256, 256, 128, 256
_HEADS_PER_TURN = 8
_EIGHT = 8
# A block has a few thousand logits to look at: enough blocks to read them at full speed.
_ARGMAX_PARTS = 32
# Blocks for each multiprocessor, which is what fits.
_VECTOR_BLOCKS = 2
_MAX_SPLITS = 32
_MAX_VECTOR = 96 * 1024


def source() -> str:
    """The CUDA C of all kernels."""
    folder = Path(__file__).parent
    return "\n".join((folder / name).read_text(encoding="utf-8") for name in _SOURCES)


def supported(decoder: Decoder) -> bool:
    """Whether the kernels can run it; if not, transformers' own model can."""
    return (
        decoder.dtype in _TYPES
        and decoder.head_dim <= _MAX_HEAD_DIM
        and decoder.head_dim % _EIGHT == 0
        and decoder.hidden <= _MAX_HIDDEN
        and decoder.hidden % _EIGHT == 0
        and decoder.heads % decoder.kv_heads == 0
        and decoder.heads // decoder.kv_heads * decoder.head_dim * 4 <= _MAX_GROUP_BYTES
    )


class Kernels:
    """What runs on the device beside matrix products of many rows.

    All tensors are contiguous, in the decoder's dtype unless said otherwise, on its device.

    Args:
        decoder: whose shape they are compiled for.
        rows: most tokens of a decode step.
        max_length: positions in a row of the cache.

    Raises:
        CudaModuleError: they cannot be compiled here.
    """

    def __init__(self, decoder: Decoder, *, rows: int, max_length: int) -> None:
        self._decoder = decoder
        self._max_length = max_length
        self._intermediate = decoder.layers[0].down.shape[1]
        device = decoder.device
        self._processors = torch.cuda.get_device_properties(device).multi_processor_count
        self.takes_vectors = self._can_take_vectors()
        signatures = dict(_SIGNATURES)
        if self.takes_vectors:
            signatures |= _VECTOR_SIGNATURES
        self._kernels = compile_kernels(source(), self._defines(), signatures)
        group = decoder.heads // decoder.kv_heads
        # Only few rows are split, and no more than fill the device.
        pairs = max(rows, 2 * self._processors // decoder.kv_heads + 1)
        self._partial = torch.empty(
            pairs * decoder.kv_heads * group * (decoder.head_dim + 2),
            dtype=torch.float32,
            device=device,
        )
        self._tickets = torch.zeros(rows * decoder.kv_heads, dtype=torch.int32, device=device)
        self._best = torch.zeros(rows, dtype=torch.int64, device=device)
        self._argmax_tickets = torch.zeros(rows, dtype=torch.int32, device=device)

    def _can_take_vectors(self) -> bool:
        decoder = self._decoder
        widths = (decoder.hidden, decoder.heads * decoder.head_dim, self._intermediate)
        return (
            decoder.dtype is not torch.float32
            and all(width % _EIGHT == 0 and 2 * width <= _MAX_VECTOR for width in widths)
            and torch.cuda.get_device_capability(decoder.device) >= (8, 0)
        )

    def _defines(self) -> dict[str, str | int]:
        decoder = self._decoder
        return {
            _TYPES[decoder.dtype]: 1,
            "HIDDEN": decoder.hidden,
            "INTERMEDIATE": self._intermediate,
            "HEADS": decoder.heads,
            "KV_HEADS": decoder.kv_heads,
            "HEAD_DIM": decoder.head_dim,
            "EPS": f"{decoder.norm_eps:e}f",
            "ATTENTION_SCALE": f"{decoder.attention_scale:.9e}f",
            "ATTENTION_SOFTCAP": f"{decoder.attention_softcap or 0.0:e}f",
            "RESIDUAL_SCALE": f"{decoder.residual_scale:.9e}f",
            "ACTIVATION": _ACTIVATIONS[decoder.activation],
        }

    def splits(self, rows: int) -> int:
        """Blocks that share a row's positions, so that `rows` of them fill the device."""
        return max(1, min(_MAX_SPLITS, 2 * self._processors // (rows * self._decoder.kv_heads)))

    def embed(self, out: torch.Tensor, tokens: torch.Tensor) -> None:
        """`out` (rows, hidden): the embeddings of int32 `tokens` (rows,)."""
        decoder = self._decoder
        scale = float(torch.tensor(decoder.embedding_scale, dtype=decoder.dtype))
        self._kernels["embed"]((len(tokens), 1, 1), 256, (out, decoder.embedding, tokens, scale))

    def add_norm(
        self,
        residual: torch.Tensor,
        delta: torch.Tensor | None,
        weight: torch.Tensor | None,
        out: torch.Tensor | None,
        *,
        post: torch.Tensor | None = None,
    ) -> None:
        """Add `delta`, normed by `post`, to `residual`, both (rows, hidden); `out`: its norm.

        `post` and `weight` are float32 (hidden,); what is None is left out.
        """
        self._kernels["add_norm"](
            (len(residual), 1, 1), _NORM, (out, residual, delta, post, weight)
        )

    def activate(self, out: torch.Tensor, gate_up: torch.Tensor) -> None:
        """`out` (rows, intermediate) of `gate_up` (rows, 2 * intermediate)."""
        blocks = math.ceil(self._intermediate / (256 * 8))
        self._kernels["activate"]((blocks, len(gate_up), 1), 256, (out, gate_up))

    def turn_and_store(
        self,
        qkv: torch.Tensor,
        cache: torch.Tensor,
        rows: torch.Tensor,
        positions: torch.Tensor,
        *,
        query_norm: torch.Tensor | None,
        key_norm: torch.Tensor | None,
        rope: Rope | None,
    ) -> None:
        """Norm and turn the queries of `qkv` (tokens, heads + 2 * kv_heads, head_dim) in place.

        Its keys, normed and turned, and its values go to `cache` (2, rows, kv_heads, max_length,
        head_dim), to the row and position of each token, int32 (tokens,). Nothing is stored for a
        token whose position is negative.
        """
        decoder = self._decoder
        groups = math.ceil((decoder.heads + 2 * decoder.kv_heads) / _HEADS_PER_TURN)
        self._kernels["turn_and_store"](
            (len(rows), groups, 1),
            _TURN,
            (
                *(qkv, cache[0], cache[1], rows, positions, query_norm, key_norm),
                rope.frequencies if rope else None,
                2 * len(rope.frequencies) if rope else 0,
                rope.scale if rope else 1.0,
                self._max_length,
            ),
        )

    def attend(
        self,
        out: torch.Tensor,
        qkv: torch.Tensor,
        cache: torch.Tensor,
        rows: torch.Tensor,
        positions: torch.Tensor,
        *,
        window: int | None,
    ) -> None:
        """Attention of one token in each of `rows`, at its position, over its row of `cache`.

        Args:
            out: (rows, heads * head_dim).
            qkv: as `turn_and_store` left it.
            cache: (2, rows, kv_heads, max_length, head_dim).
            rows: int32, which row each token belongs to.
            positions: int32; where negative, `out` is left as it is.
            window: positions seen, None for all.
        """
        kv_heads, count = self._decoder.kv_heads, len(rows)
        self._kernels["attend"](
            (kv_heads, count, self.splits(count)),
            _ATTEND,
            (
                *(out, qkv, cache[0], cache[1], rows, positions, self._partial, self._tickets),
                self._max_length,
                window or 0,
            ),
        )

    def argmax(self, out: torch.Tensor, logits: torch.Tensor) -> None:
        """`out`, int32 (rows,): index of the largest of `logits` (rows, vocabulary).

        The lowest index of equals, and -1 where the largest is not finite.
        """
        rows, vocabulary = logits.shape
        self._kernels["argmax"](
            (_ARGMAX_PARTS, rows, 1),
            _ARGMAX,
            (out, logits, self._best, self._argmax_tickets, vocabulary, logits.stride(0)),
        )

    def advance(self, inputs: torch.Tensor, chosen: torch.Tensor, count: int) -> None:
        """Make `inputs`, int32 (3, rows), those of the next step: `chosen`, one position on."""
        self._kernels["advance"]((1, 1, 1), 256, (inputs[0], inputs[2], chosen, count))

    def gemv(
        self,
        out: torch.Tensor | None,
        vector: torch.Tensor,
        matrix: torch.Tensor,
        *,
        norm: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
        residual: torch.Tensor | None = None,
    ) -> None:
        """`matrix` @ `vector` + `bias` to `out`, or added to `residual`.

        With `norm`, float32 weights, the vector is normalised first.
        """
        lines, columns = matrix.shape
        self._launch_vector(
            "gemv", lines, columns, (out, residual, vector, norm, matrix, bias, lines, columns)
        )

    def gemv_gate_up(
        self, out: torch.Tensor, vector: torch.Tensor, norm: torch.Tensor, gate_up: torch.Tensor
    ) -> None:
        """activation(gate @ norm(vector)) * (up @ norm(vector))."""
        self._launch_vector(
            "gemv_gate_up", self._intermediate, self._decoder.hidden, (out, vector, norm, gate_up)
        )

    def _launch_vector(
        self,
        name: str,
        lines: int,
        columns: int,
        arguments: tuple[torch.Tensor | int | None, ...],
    ) -> None:
        warps = _VECTOR // 32
        blocks = min(math.ceil(lines / warps), _VECTOR_BLOCKS * self._processors)
        kernel: Kernel = self._kernels[name]
        kernel((blocks, 1, 1), _VECTOR, arguments, shared=2 * columns)
