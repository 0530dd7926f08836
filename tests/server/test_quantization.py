"""The real model with its weights held as 8-bit integers."""

import pytest
import torch

from llm_inference.engine import pretrained
from llm_inference.engine.codec import HuggingFaceCodec
from llm_inference.engine.directory import inspect

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
TEXT = (
    "The capital of France is Paris. It lies on the Seine, and more than two million people live "
    "there. In the north of the country there are coal mines and beaches, and in the south there "
    "are mountains, olive trees and vineyards that have been tended for two thousand years."
)


def test_it_answers_and_says_how_it_is_held(start, smollm2_dir):
    server = start(
        LLM_MODEL_ID=SMOLLM2, LLM_MODEL_DIR=str(smollm2_dir), LLM_QUANTIZATION="int8"
    ).wait()
    report = server.client.get("/startupz").json()
    assert report["quantization"] == "int8"
    assert report["device"]["dtype"] == "bfloat16"
    assert server.metric("llm_device_info", dtype="bfloat16", quantization="int8") == 1
    assert "Paris" in server.chat().json()["choices"][0]["message"]["content"]


def load(directory, quantization):
    return pretrained.load_pretrained(
        inspect(directory), dtype="bfloat16", quantization=quantization, device=torch.device("cpu")
    )


def memory(model):
    held = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return sum(tensor.numel() * tensor.element_size() for tensor in held.values())


def test_logits_stay_close_and_memory_falls(smollm2_dir):
    tokens = torch.tensor([HuggingFaceCodec.load(smollm2_dir).encode(TEXT)])
    plain, quantized = load(smollm2_dir, "none"), load(smollm2_dir, "int8")
    with torch.inference_mode():
        expected = plain(tokens).logits[0].float()
        got = quantized(tokens).logits[0].float()
    assert ((got - expected).norm() / expected.norm()).item() < 0.1
    agreement = (got.argmax(-1) == expected.argmax(-1)).float().mean().item()
    assert agreement > 0.85
    # 106 of 135 million weights go from two bytes to one; the embeddings stay.
    assert memory(quantized) < 0.62 * memory(plain)


def test_an_embedding_model_is_refused(start, minilm_dir):
    server = start(LLM_MODEL_DIR=str(minilm_dir), LLM_QUANTIZATION="int8")
    assert server.exit_code(60) == 3
    last = server.stderr().rstrip().splitlines()[-1]
    assert last.startswith("LLM_QUANTIZATION is int8, but ")
    assert "computes embeddings" in last


@pytest.mark.parametrize("value", ["int4", "INT8"])
def test_another_kind_is_a_bad_setting(start, smollm2_dir, value):
    server = start(LLM_MODEL_DIR=str(smollm2_dir), LLM_QUANTIZATION=value)
    assert server.exit_code(30) == 2
    assert f"LLM_QUANTIZATION={value!r}" in server.stderr().splitlines()[-1]
