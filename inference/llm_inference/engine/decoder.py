"""What a decoder-only transformer is made of, in one shape for many model families.

Llama, Mistral, Qwen, Phi and Gemma differ in a handful of choices: biases, norms, an activation, a
window. Here these are fields, and the weights are ready to be multiplied: query, key and value in
one matrix, gate and up in another. Who runs a decoder needs to know nothing else.

Weights are `arrays.Array` as they are read, and torch's tensors where torch multiplies them: see
`torch_decoder`. Knows the order of the arithmetic. Does not know where weights come from, what runs
them, or what a request is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Generic, Literal, Protocol, TypeVar


class Numbers(Protocol):
    """What weights are, whoever holds them."""

    @property
    def shape(self) -> Sequence[int]:
        """Sizes of the dimensions."""


Tensor = TypeVar("Tensor", bound=Numbers)
Other = TypeVar("Other", bound=Numbers)
AnyDecoder = TypeVar("AnyDecoder", bound="Decoder[Any]")

# What has the type of the matrices. Norms and frequencies are float32 whatever that is.
_IN_MATRIX_TYPE = frozenset(
    {"qkv", "qkv_bias", "output", "output_bias", "gate_up", "down", "embedding", "head"}
)


@dataclass(frozen=True, kw_only=True)
class Rope(Generic[Tensor]):
    """Rotary positions: the first `2 * len(frequencies)` of a head's dimensions turn.

    Attributes:
        frequencies: float32 (rotary_dim / 2,), angle of each pair of dimensions per position.
            Dimension i is paired with i + rotary_dim / 2.
        scale: what cosines and sines are multiplied by.
    """

    frequencies: Tensor
    scale: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Layer(Generic[Tensor]):
    """One layer: x += attention(norm(x)); x += mlp(norm(x)).

    Norms are root mean squares, computed in float32, and their weights are what the normalised
    values are multiplied by (a family's "1 + weight" is already added up). These weights are
    float32 whatever the matrices are; biases have the type of the matrices.

    Attributes:
        attention_norm: (hidden,), before attention.
        qkv: ((heads + 2 * kv_heads) * head_dim, hidden): queries, then keys, then values.
        qkv_bias: of as many, or None.
        query_norm, key_norm: (head_dim,) over each head before it is turned, or None.
        output: (hidden, heads * head_dim).
        output_bias: (hidden,), or None.
        attention_post_norm: (hidden,), of attention's output before it is added, or None.
        mlp_norm: (hidden,), before the mlp.
        gate_up: (2 * intermediate, hidden): the gate, which is activated, then up.
        down: (hidden, intermediate).
        mlp_post_norm: (hidden,), of the mlp's output before it is added, or None.
        window: a token sees the last `window` positions, its own among them; None for all.
        rope: how its heads are turned; None for a layer without positions.
    """

    attention_norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None = None
    query_norm: Tensor | None = None
    key_norm: Tensor | None = None
    output: Tensor
    output_bias: Tensor | None = None
    attention_post_norm: Tensor | None = None
    mlp_norm: Tensor
    gate_up: Tensor
    down: Tensor
    mlp_post_norm: Tensor | None = None
    window: int | None = None
    rope: Rope[Tensor] | None


@dataclass(frozen=True, kw_only=True)
class Decoder(Generic[Tensor]):
    """A whole model; all matrices are (out, in) and contiguous, in one dtype on one device.

    Attributes:
        heads: query heads; each group of heads / kv_heads shares keys and values.
        kv_heads: key and value heads.
        head_dim: dimensions of a head.
        embedding: (vocabulary, hidden).
        embedding_scale: what embeddings are multiplied by, rounded to their dtype first.
        layers: in order.
        norm: (hidden,), after the last layer.
        head: (vocabulary, hidden); the embedding itself where the two are tied.
        norm_eps: added to mean squares.
        attention_scale: what the products of queries and keys are multiplied by.
        attention_softcap: scores s become cap * tanh(s / cap), or None.
        logit_softcap: the same for logits, or None.
        logit_scale: what logits are multiplied by first.
        residual_scale: what a layer's two outputs are multiplied by before they are added.
        activation: of the gate.
        max_length: positions the model was made for, or None.
    """

    heads: int
    kv_heads: int
    head_dim: int
    embedding: Tensor
    embedding_scale: float = 1.0
    layers: tuple[Layer[Tensor], ...]
    norm: Tensor
    head: Tensor
    norm_eps: float
    attention_scale: float
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    logit_scale: float = 1.0
    residual_scale: float = 1.0
    activation: Literal["silu", "gelu_tanh", "gelu"] = "silu"
    max_length: int | None = None

    @property
    def vocabulary(self) -> int:
        """Token ids are less than this."""
        return int(self.head.shape[0])

    @property
    def hidden(self) -> int:
        """Size of what goes from layer to layer."""
        return int(self.embedding.shape[1])


def mapped(
    decoder: Decoder[Tensor],
    kind: type[AnyDecoder],
    matrix: Callable[[Tensor], Other],
    norm: Callable[[Tensor], Other],
) -> AnyDecoder:
    """The decoder of a `kind` that holds other weights.

    What is shared stays shared: an embedding that is the head, the rotary positions of layers.

    Args:
        decoder: with the weights as they are.
        kind: the class to make.
        matrix: gives what stands for a matrix or a bias.
        norm: gives what stands for the weights of a norm, or for frequencies.
    """
    made: dict[int, Any] = {}

    def of(name: str, value: Any) -> Any:  # noqa: ANN401 - fields of any kind
        if isinstance(value, tuple):
            return tuple(whole(layer, Layer) for layer in value)
        if isinstance(value, Rope):
            if id(value) not in made:
                made[id(value)] = whole(value, Rope)
            return made[id(value)]
        if value is None or isinstance(value, int | float | str):
            return value
        if id(value) not in made:
            made[id(value)] = (matrix if name in _IN_MATRIX_TYPE else norm)(value)
        return made[id(value)]

    def whole(part: Any, kind: Any) -> Any:  # noqa: ANN401 - a dataclass of this module
        return kind(
            **{field.name: of(field.name, getattr(part, field.name)) for field in fields(part)}
        )

    mapped_decoder: AnyDecoder = whole(decoder, kind)
    return mapped_decoder
