"""What a decoder-only transformer is made of, in one shape for many model families.

Llama, Mistral, Qwen, Phi and Gemma differ in a handful of choices: biases, norms, an activation, a
window. Here these are fields, and the weights are tensors ready to be multiplied: query, key and
value in one matrix, gate and up in another. Who runs a decoder needs to know nothing else.

Knows tensors and the order of the arithmetic. Does not know where weights come from, what runs
them, or what a request is.
"""

from dataclasses import dataclass
from typing import Literal

import torch


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary positions: the first `2 * len(frequencies)` of a head's dimensions turn.

    Attributes:
        frequencies: float32 (rotary_dim / 2,), angle of each pair of dimensions per position.
            Dimension i is paired with i + rotary_dim / 2.
        scale: what cosines and sines are multiplied by.
    """

    frequencies: torch.Tensor
    scale: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Layer:
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

    attention_norm: torch.Tensor
    qkv: torch.Tensor
    qkv_bias: torch.Tensor | None = None
    query_norm: torch.Tensor | None = None
    key_norm: torch.Tensor | None = None
    output: torch.Tensor
    output_bias: torch.Tensor | None = None
    attention_post_norm: torch.Tensor | None = None
    mlp_norm: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor
    mlp_post_norm: torch.Tensor | None = None
    window: int | None = None
    rope: Rope | None


@dataclass(frozen=True, kw_only=True)
class Decoder:
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
    embedding: torch.Tensor
    embedding_scale: float = 1.0
    layers: tuple[Layer, ...]
    norm: torch.Tensor
    head: torch.Tensor
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

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.embedding.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.device
