"""Linear layers that widen bfloat16."""

import pytest
import torch
from torch import nn

from llm_inference.engine import linear
from llm_inference.engine.linear import WideningLinear, widen_linears


@pytest.fixture(autouse=True)
def old_processor(monkeypatch):
    monkeypatch.setattr(linear, "multiplies_bfloat16", lambda: False)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 7, 8, 50])
def test_results_are_the_float32_product_rounded_once(monkeypatch, rows, bias):
    monkeypatch.setattr(linear, "_BLOCK", 100)  # several blocks, the last one smaller
    torch.manual_seed(0)
    plain = nn.Linear(16, 45, bias=bias).bfloat16()
    layer = WideningLinear(plain, torch.empty(100))
    inputs = torch.randn(rows, 16).bfloat16()
    exact = nn.functional.linear(
        inputs.double(), plain.weight.double(), plain.bias.double() if bias else None
    )
    with torch.inference_mode():
        got = layer(inputs)
    assert got.dtype is torch.bfloat16
    torch.testing.assert_close(got.double(), exact, rtol=2**-7, atol=1e-2)


def test_the_shape_of_a_batch_is_kept():
    layer = WideningLinear(nn.Linear(4, 6).bfloat16(), torch.empty(1 << 20))
    with torch.inference_mode():
        assert layer(torch.ones(3, 5, 4).bfloat16()).shape == (3, 5, 6)


def test_weights_are_shared_and_only_bfloat16_is_replaced():
    model = nn.ModuleDict({"a": nn.Linear(4, 4).bfloat16(), "b": nn.Linear(4, 4)})
    weight = model["a"].weight
    assert widen_linears(model) == 1
    assert isinstance(model["a"], WideningLinear)
    assert model["a"].weight is weight
    assert type(model["b"]) is nn.Linear
    assert set(model.state_dict()) == {"a.weight", "a.bias", "b.weight", "b.bias"}


def test_a_processor_that_multiplies_bfloat16_keeps_its_kernels(monkeypatch):
    monkeypatch.setattr(linear, "multiplies_bfloat16", lambda: True)
    assert widen_linears(nn.Sequential(nn.Linear(4, 4).bfloat16())) == 0
