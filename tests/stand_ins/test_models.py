"""The stand-in models are normal model directories that answer like the real ones."""

import json
import math
import os
import subprocess
import sys

import pytest
from safetensors import safe_open

from dev.stand_ins import models


@pytest.fixture(scope="module")
def smollm2():
    return models.ensure(models.SMOLLM2)


@pytest.fixture(scope="module")
def minilm():
    return models.ensure(models.MINILM)


def run(code, directory):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code, str(directory)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_smollm2_is_plain_bf16_safetensors(smollm2):
    config = json.loads((smollm2 / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["dtype"] == "bfloat16"
    assert "quantization_config" not in config
    with safe_open(smollm2 / "model.safetensors", framework="pt") as weights:
        kinds = {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
        count = sum(
            math.prod(weights.get_slice(name).get_shape())
            for name in weights.keys()  # noqa: SIM118
        )
    assert kinds == {"BF16"}
    assert count == 134_515_008
    assert json.loads((smollm2 / "generation_config.json").read_text())["eos_token_id"] == 2
    assert (smollm2 / "chat_template.jinja").read_text().startswith("{% for message in messages")


def test_the_quantised_file_is_there_as_its_package_ships_it(monkeypatch):
    file = models.gguf(models.SMOLLM2)
    with file.open("rb") as opened:
        assert opened.read(4) == b"GGUF"
    assert file.stat().st_size > 80_000_000

    def fetch(*_):
        pytest.fail("the cache has it")

    monkeypatch.setattr(models.packages, "download", fetch)
    assert models.gguf(models.SMOLLM2) == file


ASK = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
chat = [{"role": "user", "content": "What is the capital of France?"}]
inputs = tokenizer.apply_chat_template(
    chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
)
output = model.generate(**inputs, max_new_tokens=16, do_sample=False)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
"""


def test_smollm2_answers(smollm2):
    assert run(ASK, smollm2) == "The capital of France is Paris."


def test_minilm_has_its_pipeline(minilm):
    modules = json.loads((minilm / "modules.json").read_text())
    for module in modules:
        assert (minilm / module["path"]).exists() or module["type"].endswith("Normalize")
    pooling = json.loads((minilm / "1_Pooling" / "config.json").read_text())
    assert pooling["pooling_mode_mean_tokens"] is True


EMBED = """
import sys, torch
from transformers import AutoModel, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModel.from_pretrained(sys.argv[1])
texts = ["A dog runs in the park.", "A puppy plays outside.", "Interest rates rose again."]
inputs = tokenizer(texts, padding=True, return_tensors="pt")
with torch.inference_mode():
    states = model(**inputs).last_hidden_state
mask = inputs["attention_mask"][..., None]
mean = (states * mask).sum(1) / mask.sum(1)
near, far = torch.cosine_similarity(mean[:1], mean[1:]).tolist()
print(near > far + 0.3, tuple(mean.shape))
"""


def test_minilm_knows_what_is_alike(minilm):
    assert run(EMBED, minilm) == "True (3, 384)"


def test_models_are_readable_by_any_user(smollm2, minilm):
    for directory in (smollm2, minilm):
        for path in (directory, *directory.rglob("*")):
            assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644)
