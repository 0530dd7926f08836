"""Models in GGUF files: what they compute is what they computed, or they are refused."""

import json
import math

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

TOKENS = torch.arange(40)[None] * 7 % 320
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    return folder


@pytest.fixture
def converted(take, preload, source):
    """Convert the file in the folder `source`."""

    def run(dtype="float32"):
        taken = take(source)
        code, said = preload("convert", "--dtype", dtype, taken)
        assert code == 0, said
        code, said = preload("prove", taken)
        assert code == 0, said
        return taken

    return run


@pytest.fixture
def refused(take, preload, source):
    def run():
        code, said = preload("convert", take(source))
        assert code == 1, said
        return said.splitlines()[-1]

    return run


def logits(model):
    with torch.inference_mode():
        return model(TOKENS).logits


@pytest.mark.parametrize(
    "kind",
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True}),
        ("qwen2", {}),
        ("qwen3", {"head_dim": 128}),
    ],
)
def test_a_model_computes_what_it_computed(new_model, write_gguf, converted, source, kind):
    model_type, settings = kind
    model = new_model(model_type, **settings)
    size = getattr(model.config, "head_dim", None) or 16
    write_gguf(source / "tiny.gguf", model, says={f"{model_type}.attention.key_length": size})
    loaded = AutoModelForCausalLM.from_pretrained(converted())
    assert type(loaded) is type(model)
    # GGUF states the epsilon of norms in 32 bits.
    assert torch.allclose(logits(loaded), logits(model), rtol=1e-5, atol=1e-5)


def test_a_converted_file_is_a_plain_directory(new_model, write_gguf, converted, source, manifest):
    write_gguf(source / "tiny.gguf", new_model())
    directory = converted()
    listed = manifest(directory)
    assert [file["path"] for file in listed["converted_from"]] == ["tiny.gguf"]
    names = {file["path"] for file in listed["files"]}
    assert {"config.json", "generation_config.json", "model.safetensors"} < names
    assert {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} < names
    assert not (directory / "tiny.gguf").exists()


def test_quantised_weights_become_plain_ones(new_model, write_gguf, converted, source):
    model = new_model()
    write_gguf(source / "tiny.gguf", model, kind=gguf.GGMLQuantizationType.Q8_0)
    directory = converted("bfloat16")
    config = json.loads((directory / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["dtype"] == "bfloat16"
    loaded = AutoModelForCausalLM.from_pretrained(directory)
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    ours, theirs = loaded.state_dict(), model.state_dict()
    for name, weight in theirs.items():
        assert torch.allclose(ours[name].float(), weight, atol=0.01), name


def test_a_file_in_a_folder_is_converted_and_the_folder_goes(
    take, preload, new_model, write_gguf, source
):
    (source / "Q8").mkdir()
    write_gguf(source / "Q8" / "tiny.gguf", new_model())
    taken = take(source)
    code, said = preload("convert", taken)
    assert code == 0, said
    assert not (taken / "Q8").exists()
    assert (taken / "model.safetensors").is_file()


def rope_factors(theta, size):
    """What llama.cpp's converter writes for LLAMA3."""
    factors = []
    low, high = LLAMA3["low_freq_factor"], LLAMA3["high_freq_factor"]
    for step in range(0, size, 2):
        turns = LLAMA3["original_max_position_embeddings"] / (2 * math.pi * theta ** (step / size))
        if turns > high:
            factors.append(1.0)
        elif turns < low:
            factors.append(LLAMA3["factor"])
        else:
            smooth = (turns - low) / (high - low)
            factors.append(1 / ((1 - smooth) / LLAMA3["factor"] + smooth))
    return np.array(factors)


def test_llama_3s_positions_are_scaled_as_they_were(new_model, write_gguf, converted, source):
    shape = {"head_dim": 128, "max_position_embeddings": 131_072}
    model = new_model(**shape, rope_parameters=dict(LLAMA3))
    factors = {"rope_freqs.weight": rope_factors(10_000.0, 128)}
    says = {"llama.rope.dimension_count": 128}
    write_gguf(source / "tiny.gguf", model, tensors=factors, says=says)
    directory = converted()
    loaded = AutoModelForCausalLM.from_pretrained(directory)
    written = json.loads((directory / "config.json").read_text())["rope_parameters"]
    assert {key: written[key] for key in LLAMA3} == LLAMA3
    positions = torch.tensor([[90_000]])
    ours, theirs = (m.model.rotary_emb(torch.zeros(1), positions) for m in (loaded, model))
    assert torch.allclose(ours[0], theirs[0])


def test_positions_scaled_in_another_way_are_refused(new_model, write_gguf, refused, source):
    factors = {"rope_freqs.weight": np.linspace(1, 8, 8)}
    write_gguf(source / "tiny.gguf", new_model(), tensors=factors)
    assert "tiny.gguf scales positions in another way than Llama 3" in refused()


@pytest.mark.parametrize(
    "case",
    [
        (
            {"says": {"llama.rope.scaling.type": "yarn"}},
            "tiny.gguf says llama.rope.scaling.type yarn, which the conversion would lose",
        ),
        (
            {"says": {"llama.attention.sliding_window": 128}},
            "says llama.attention.sliding_window 128, which the conversion would lose",
        ),
        (
            {"tensors": {"blk.0.attn_q_norm.weight": np.ones(16)}},
            "holds blk.0.attn_q_norm.weight, which the conversion would lose",
        ),
        (
            {"tensors": {"blk.1.ffn_up.weight": None}},
            "differ in model.layers.1.mlp.up_proj.weight",
        ),
        ({"pre": "viking"}, "says tokenizer.ggml.pre viking, which is not known here"),
        ({"template": None}, "tiny.gguf holds no chat template"),
    ],
)
def test_what_would_be_lost_is_refused(new_model, write_gguf, refused, source, case):
    given, sentence = case
    write_gguf(source / "tiny.gguf", new_model(), **given)
    assert sentence in refused()


@pytest.mark.parametrize("keep", [0, 3, 40, 2000, -1000])
def test_a_file_that_is_cut_off_is_refused(new_model, write_gguf, refused, source, keep):
    path = write_gguf(source / "tiny.gguf", new_model())
    path.write_bytes(path.read_bytes()[:keep])
    assert refused().startswith("error: tiny.gguf cannot be converted: ")


def test_an_architecture_that_transformers_does_not_read_is_refused(refused, source):
    writer = gguf.GGUFWriter(source / "tiny.gguf", "bert")
    writer.add_block_count(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert "GGUF model with architecture bert is not supported" in refused()


def test_text_is_split_as_the_file_says(new_model, write_gguf, converted, source):
    text = "the 12"
    found = {}
    for pre in ("gpt-2", "smollm"):
        (source / "tiny.gguf").unlink(missing_ok=True)
        write_gguf(source / "tiny.gguf", new_model(), pre=pre)
        directory = converted()
        found[pre] = AutoTokenizer.from_pretrained(directory).tokenize(text)
        directory.rename(directory.with_name(pre))
    assert found == {"gpt-2": ["the", "Ġ", "12"], "smollm": ["the", "Ġ", "1", "2"]}


def test_what_lies_beside_the_file_comes_first(
    new_model, write_gguf, write_tokenizer, converted, source
):
    write_gguf(source / "tiny.gguf", new_model(), pre="viking", template=None)
    write_tokenizer(source)
    (source / "chat_template.jinja").write_text("{{ messages[0]['content'] }}!")
    (source / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    directory = converted()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    chat = [{"role": "user", "content": "Hi"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "Hi!"
    assert tokenizer.tokenize("the 12") == ["the", "Ġ", "12"]
    written = json.loads((directory / "generation_config.json").read_text())
    assert written["eos_token_id"] == [1, 2]


def test_the_end_of_a_turn_ends_an_answer(new_model, write_gguf, converted, source):
    write_gguf(source / "tiny.gguf", new_model(), says={"tokenizer.ggml.eot_token_id": 2})
    written = json.loads((converted() / "generation_config.json").read_text())
    assert written["eos_token_id"] == [1, 2]


def test_a_tokenizer_of_more_tokens_than_the_model_is_refused(
    new_model, write_gguf, refused, source
):
    write_gguf(source / "tiny.gguf", new_model(vocab_size=256))
    assert "tokens, the model only 256" in refused()
