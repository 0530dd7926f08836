"""A decoder's arithmetic written down plainly, as what faster runners are compared with.

One sequence, the whole of it at once, without a cache. Knows `Decoder` and nothing else.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from llm_inference.engine.torch_decoder import Decoder, Layer, Rope

_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": nn.functional.silu,
    "gelu": nn.functional.gelu,
    "gelu_tanh": partial(nn.functional.gelu, approximate="tanh"),
}


@torch.inference_mode()
def logits(decoder: Decoder, tokens: torch.Tensor) -> torch.Tensor:
    """What comes after each of `tokens` (n,): (n, vocabulary) in the decoder's type."""
    embedded = decoder.embedding[tokens]
    x = embedded * torch.tensor(decoder.embedding_scale, dtype=embedded.dtype)
    for layer in decoder.layers:
        attended = _attention(decoder, layer, _norm(decoder, x, layer.attention_norm))
        if layer.attention_post_norm is not None:
            attended = _norm(decoder, attended, layer.attention_post_norm)
        x = x + attended * decoder.residual_scale
        passed = _mlp(decoder, layer, _norm(decoder, x, layer.mlp_norm))
        if layer.mlp_post_norm is not None:
            passed = _norm(decoder, passed, layer.mlp_post_norm)
        x = x + passed * decoder.residual_scale
    output = _norm(decoder, x, decoder.norm) @ decoder.head.T * decoder.logit_scale
    if decoder.logit_softcap is not None:
        output = torch.tanh(output / decoder.logit_softcap) * decoder.logit_softcap
    return output


def _norm(decoder: Decoder, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    wide = x.float()
    mean = wide.square().mean(-1, keepdim=True)
    return (wide * torch.rsqrt(mean + decoder.norm_eps) * weight).to(x.dtype)


def _mlp(decoder: Decoder, layer: Layer, x: torch.Tensor) -> torch.Tensor:
    gate, up = (x @ layer.gate_up.T).chunk(2, dim=-1)
    return (_ACTIVATIONS[decoder.activation](gate) * up) @ layer.down.T


def _attention(decoder: Decoder, layer: Layer, x: torch.Tensor) -> torch.Tensor:
    heads, kv_heads, dim = decoder.heads, decoder.kv_heads, decoder.head_dim
    qkv = nn.functional.linear(x, layer.qkv, layer.qkv_bias).view(len(x), -1, dim).transpose(0, 1)
    queries, keys, values = torch.split(qkv, [heads, kv_heads, kv_heads])
    if layer.query_norm is not None and layer.key_norm is not None:
        queries = _norm(decoder, queries, layer.query_norm)
        keys = _norm(decoder, keys, layer.key_norm)
    if layer.rope is not None:
        queries, keys = _turn(layer.rope, queries), _turn(layer.rope, keys)
    keys, values = (part.repeat_interleave(heads // kv_heads, dim=0) for part in (keys, values))
    scores = (queries @ keys.transpose(1, 2)).float() * decoder.attention_scale
    if decoder.attention_softcap is not None:
        scores = torch.tanh(scores / decoder.attention_softcap) * decoder.attention_softcap
    scores = scores.masked_fill(_hidden(len(x), layer.window, x.device), -torch.inf)
    mixed = scores.softmax(-1).to(x.dtype) @ values
    return nn.functional.linear(
        mixed.transpose(0, 1).reshape(len(x), -1), layer.output, layer.output_bias
    )


def _turn(rope: Rope, x: torch.Tensor) -> torch.Tensor:
    """Turn (heads, n, dim) by the positions 0 to n."""
    half = len(rope.frequencies)
    angles = torch.arange(x.shape[1], device=x.device)[:, None] * rope.frequencies
    cos, sin = ((part * rope.scale).to(x.dtype) for part in (angles.cos(), angles.sin()))
    first, second, rest = torch.split(x, [half, half, x.shape[-1] - 2 * half], dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)


def _hidden(length: int, window: int | None, device: torch.device) -> torch.Tensor:
    """Whether a token (row) does not see another (column)."""
    at = torch.arange(length, device=device)
    hidden = at > at[:, None]
    return hidden if window is None else hidden | (at <= at[:, None] - window)
