"""Linear layers that hold 8-bit integers."""

import pytest
import torch
from torch import nn

from llm_inference.engine import quantization
from llm_inference.engine.quantization import (
    Int8Linear,
    QuantizationError,
    quantize_linears,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def int8(linear, wide=torch.float32):
    return Int8Linear(linear, torch.empty(1 << 20, dtype=wide))


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_are_within_half_a_step_of_what_they_were(dtype):
    torch.manual_seed(0)
    linear = nn.Linear(64, 32).to(dtype)
    layer = int8(linear)
    assert layer.weight.dtype is torch.int8
    assert layer.scale.dtype is dtype
    kept = layer.weight.double() * layer.scale.double()[:, None]
    # Of the largest of a row, a scale that was rounded down may cut a little more.
    step = layer.scale.double()[:, None] * (0.5 + 127 * torch.finfo(dtype).eps)
    assert ((kept - linear.weight.double()).abs() <= step).all()
    assert layer.weight.abs().amax(dim=1).min() >= 126


@pytest.mark.parametrize("wide", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rows", "features"), [(r, f) for r in (1, 32, 33) for f in (4, 64, 100)], ids=str
)
def test_the_product_is_that_of_the_integers_and_their_scales(
    monkeypatch, *, rows, features, dtype, bias, wide
):
    if wide is torch.bfloat16 and dtype is not wide:
        wide = torch.float32  # only bfloat16 is multiplied in itself
    monkeypatch.setattr(quantization, "_BLOCK", 200)  # several blocks, the last one smaller
    torch.manual_seed(0)
    layer = int8(nn.Linear(features, 45, bias=bias).to(dtype), wide)
    inputs = torch.randn(rows, features).to(dtype)
    exact = inputs.double() @ (layer.weight.double() * layer.scale.double()[:, None]).T
    if bias:
        exact = exact + layer.bias.double()
    with torch.inference_mode():
        got = layer(inputs)
    assert got.dtype is dtype
    error = ((got.double() - exact).norm() / exact.norm()).item()
    assert error < 2 * torch.finfo(dtype).eps


def test_the_shape_of_a_batch_is_kept():
    layer = int8(nn.Linear(4, 6).bfloat16())
    with torch.inference_mode():
        assert layer(torch.ones(3, 5, 4).bfloat16()).shape == (3, 5, 6)
        transposed = torch.ones(4, 3).bfloat16().T
        assert layer(transposed).shape == (3, 6)


def test_a_channel_of_zeros_stays_zero():
    linear = nn.Linear(8, 2, bias=False)
    linear.weight.data[1] = 0
    with torch.inference_mode():
        assert int8(linear)(torch.ones(1, 8))[0, 1] == 0


class Decoder(nn.Module):
    def __init__(self, tied):
        super().__init__()
        self.embedding = nn.Embedding(50, 16)
        self.block = nn.ModuleDict({"up": nn.Linear(16, 32), "norm": nn.LayerNorm(16)})
        self.head = nn.Linear(16, 50, bias=False)
        if tied:
            self.head.weight = self.embedding.weight


@pytest.mark.parametrize("tied", [True, False])
def test_the_output_layer_embeddings_and_norms_stay(tied):
    model = Decoder(tied)
    assert quantize_linears(model, keep=model.head) == 16 * 32
    assert isinstance(model.block["up"], Int8Linear)
    assert type(model.head) is nn.Linear
    assert type(model.block["norm"]) is nn.LayerNorm
    assert (model.head.weight is model.embedding.weight) == tied


def test_a_model_whose_weights_are_elsewhere_is_refused():
    model = Decoder(tied=False)
    model.experts = nn.Parameter(torch.zeros(4, 16, 32))
    with pytest.raises(QuantizationError, match=r"only 512 of 2,\d\d\d weights of Decoder"):
        quantize_linears(model, keep=model.head)
