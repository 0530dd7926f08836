"""Linear layers in bfloat16 for processors that cannot multiply it.

Without AVX-512 or AMX, torch multiplies bfloat16 matrices row by row: a batch of 16 takes 16
times as long as one, and a prompt of 256 tokens takes seconds. From a few rows on it is several
times faster to widen a block of the weights to float32, which is exact, and to multiply that. The
weights stay bfloat16 in memory. Knows layers, not models.
"""

import torch
from torch import nn

# Where widening begins to pay; measured on AVX2 with hidden sizes from 576 to 1536.
_ROWS = 8
# Weights widened at once: 4 MB in float32, so that the product finds them in the cache.
_BLOCK = 1 << 20


class WideningLinear(nn.Module):
    """An nn.Linear in bfloat16 that computes in float32 when given more than a few rows.

    Args:
        linear: the layer to stand in for; its parameters are shared, not copied.
        scratch: float32 (at least _BLOCK or in_features,), shared by all layers of a model.
    """

    def __init__(self, linear: nn.Linear, scratch: torch.Tensor) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._scratch = [scratch]  # in a list: not a part of the module's state

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(..., in_features) to (..., out_features)."""
        rows = inputs.numel() // self.in_features
        if rows < _ROWS:
            return nn.functional.linear(inputs, self.weight, self.bias)
        wide = inputs.reshape(rows, self.in_features).float()
        output = inputs.new_empty((rows, self.out_features))
        step = max(1, _BLOCK // self.in_features)
        for start in range(0, self.out_features, step):
            part = self.weight[start : start + step]
            block = self._scratch[0][: part.numel()].view_as(part)
            block.copy_(part)
            product = wide @ block.T
            if self.bias is not None:
                product += self.bias[start : start + step]
            output[:, start : start + step] = product
        return output.view(*inputs.shape[:-1], self.out_features)


def widen_linears(model: nn.Module) -> int:
    """Replace the model's bfloat16 linear layers where this processor needs it; how many were."""
    if multiplies_bfloat16():
        return 0
    linears: list[tuple[nn.Module, str, nn.Linear]] = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear
        and child.weight.dtype is torch.bfloat16
        and child.weight.device.type == "cpu"
    ]
    if not linears:
        return 0
    scratch = torch.empty(max(_BLOCK, *(linear.in_features for *_, linear in linears)))
    for parent, name, linear in linears:
        setattr(parent, name, WideningLinear(linear, scratch))
    return len(linears)


def multiplies_bfloat16() -> bool:
    """Whether oneDNN has bfloat16 kernels for this processor."""
    if not torch._C._has_mkldnn:  # noqa: SLF001 - its public name is untyped
        return False
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # noqa: SLF001 - no public one
