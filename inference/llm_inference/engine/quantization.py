"""Weights held as 8-bit integers: half the memory of 16 bits, and half of what a step reads.

Each output channel of a linear layer has one scale, and its weights are the scale times an integer
from -127 to 127 (symmetric, weight-only: inputs and products keep the type that is computed in).
Embeddings, norms and the output layer stay as they are. Knows layers, not models.
"""

from collections.abc import Iterator

import torch
from torch import nn

from llm_inference.engine.linear import multiplies_bfloat16

_LARGEST = 127
# Up to here torch's kernel for bfloat16 multiplies the integers as they are, with more rows it is
# faster to widen them; measured on AVX2 with hidden sizes from 576 to 4096. For other types the
# kernel is slower than widening at any size.
_ROWS = 32
# The kernel reads whole vectors of a processor and, past the end of what does not fill them,
# memory that is not its own.
_VECTOR = 32
# Weights widened at once: 4 MB in float32, so that the product finds them in the cache.
_BLOCK = 1 << 20


class QuantizationError(Exception):
    """The model's weights cannot be held so; the message is one sentence."""


class Int8Linear(nn.Module):
    """An nn.Linear whose weights are integers, for inference.

    Args:
        linear: the layer to stand in for.
        scratch: on cpu, (at least _BLOCK or in_features,), shared by all layers of a model, in
            the type that many rows are multiplied in.

    Attributes:
        weight: int8 (out_features, in_features).
        scale: (out_features,) in the type that is computed in.
    """

    weight: torch.Tensor
    scale: torch.Tensor

    def __init__(self, linear: nn.Linear, scratch: torch.Tensor) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self._packed = linear.in_features % _VECTOR == 0
        weight, scale = _quantize(linear.weight.detach())
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self._scratch = [scratch]  # in a list: not a part of the module's state

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(..., in_features) to (..., out_features)."""
        rows = inputs.reshape(-1, self.in_features)
        if inputs.device.type != "cpu":
            output = (rows @ self.weight.to(rows.dtype).T) * self.scale
        elif self._packed and rows.dtype is torch.bfloat16 and len(rows) <= _ROWS:
            output = torch._weight_int8pack_mm(rows.contiguous(), self.weight, self.scale)  # noqa: SLF001
        else:
            output = self._widened(rows)
        if self.bias is not None:
            output = output + self.bias
        return output.view(*inputs.shape[:-1], self.out_features)

    def _widened(self, rows: torch.Tensor) -> torch.Tensor:
        wide = rows.to(self._scratch[0].dtype)
        output = rows.new_empty((len(rows), self.out_features))
        step = max(1, _BLOCK // self.in_features)
        for start in range(0, self.out_features, step):
            part = slice(start, start + step)
            weight = self.weight[part]
            block = self._scratch[0][: weight.numel()].view_as(weight)
            block.copy_(weight)
            output[:, part] = (wide @ block.T) * self.scale[part].to(wide.dtype)
        return output


def quantize_linears(model: nn.Module, *, keep: nn.Module | None) -> int:
    """Replace the linear layers of `model`, but for `keep`; how many weights they have.

    Raises:
        QuantizationError: most of its weights are in layers of another kind.
    """
    linears = [found for found in _linears(model) if found[2] is not keep]
    quantized = sum(linear.weight.numel() for *_, linear in linears)
    if linears:
        widest = max(linear.in_features for *_, linear in linears)
        native = linears[0][2].weight.dtype is torch.bfloat16 and multiplies_bfloat16()
        wide = torch.bfloat16 if native else torch.float32
        scratch = torch.empty(max(_BLOCK, widest), dtype=wide)
    while linears:
        parent, name, linear = linears.pop()
        setattr(parent, name, Int8Linear(linear, scratch))
        del linear  # its weights go before the next layer's come
    embeddings = [m for m in model.modules() if isinstance(m, nn.Embedding)] + [keep]
    kept = {id(p) for module in embeddings if module is not None for p in module.parameters()}
    rest = sum(p.numel() for p in model.parameters() if id(p) not in kept)
    if rest > quantized:
        raise QuantizationError(
            f"LLM_QUANTIZATION is int8, but only {quantized:,} of {quantized + rest:,} weights of "
            f"{type(model).__name__} are in linear layers that can be held so"
        )
    return quantized


def _linears(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    for parent in model.modules():
        for name, child in parent.named_children():
            if type(child) is nn.Linear:
                yield parent, name, child


def _quantize(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Integers and scales of (out, in) weights, rounded with the scale as it is kept."""
    exact = weight.float()
    scale = (exact.abs().amax(dim=1) / _LARGEST).to(weight.dtype)
    # A row of zeros, or one too small for the type of the scale, stays zero.
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    rounded = (exact / scale.float()[:, None]).round_().clamp_(-_LARGEST, _LARGEST)
    return rounded.to(torch.int8), scale
