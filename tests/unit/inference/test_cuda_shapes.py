"""Which decoders the CUDA kernels run, in which batch sizes; no device is needed to know."""

import dataclasses

import pytest
import torch

from llm_inference.engine.cuda_kernels import supported
from llm_inference.engine.cuda_module import CudaModuleError, compile_binary
from llm_inference.engine.cuda_runner import CudaRunner, _batch_size, cache_bytes_per_token
from llm_inference.engine.torch_decoder import Decoder, Layer, Rope


def decoder(*, heads=4, kv_heads=2, head_dim=64, hidden=256, dtype=torch.bfloat16):
    def matrix(rows, columns):
        return torch.zeros((rows, columns), dtype=dtype)

    layer = Layer(
        attention_norm=torch.ones(hidden),
        qkv=matrix((heads + 2 * kv_heads) * head_dim, hidden),
        output=matrix(hidden, heads * head_dim),
        mlp_norm=torch.ones(hidden),
        gate_up=matrix(32, hidden),
        down=matrix(hidden, 16),
        rope=Rope(frequencies=torch.ones(head_dim // 2)),
    )
    return Decoder(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        embedding=matrix(8, hidden),
        layers=(layer, dataclasses.replace(layer, window=4)),
        norm=torch.ones(hidden),
        head=matrix(8, hidden),
        norm_eps=1e-5,
        attention_scale=0.125,
    )


@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_usual_shapes_are_supported(head_dim, dtype):
    assert supported(decoder(head_dim=head_dim, dtype=dtype))


@pytest.mark.parametrize(
    "shape",
    [
        {"head_dim": 12},
        {"head_dim": 512},
        {"hidden": 100},
        {"heads": 5},
        {"dtype": torch.float64},
        {"heads": 128, "kv_heads": 1, "head_dim": 256},
    ],
)
def test_what_the_kernels_cannot_hold_is_refused(shape):
    assert not supported(decoder(**shape))
    with pytest.raises(ValueError, match="shape"):
        CudaRunner(decoder(**shape), rows=1, max_length=16)


def test_a_step_runs_in_the_smallest_batch_size_that_holds_it():
    sizes = [_batch_size(count) for count in range(1, 1025)]
    assert all(size >= count for count, size in enumerate(sizes, 1))
    assert sizes == sorted(sizes)
    assert [_batch_size(count) for count in (1, 3, 17, 129, 257)] == [1, 4, 24, 160, 320]
    assert len(set(sizes)) < 32


def test_the_cache_holds_keys_and_values_of_every_layer():
    assert cache_bytes_per_token(decoder()) == 2 * 2 * 2 * 64 * 2
    assert cache_bytes_per_token(decoder(dtype=torch.float32)) == 2 * 2 * 2 * 64 * 4


def test_a_torch_without_cuda_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "0.0")
    with pytest.raises(CudaModuleError, match="missing"):
        compile_binary("", [])
