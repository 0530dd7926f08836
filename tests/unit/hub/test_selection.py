"""Which files of a repository go into an image."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_hub import HubError, selection

REPOSITORY = [
    ".gitattributes",
    "1_Pooling/config.json",
    "2_Dense/model.safetensors",
    "LICENSE",
    "README.md",
    "chat_template.jinja",
    "config.json",
    "model.safetensors",
    "modules.json",
    "onnx/config.json",
    "onnx/model.onnx",
    "original/tokenizer.model",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "run.py",
    "tokenizer.json",
    "tokenizer.model",
    "vocab.txt",
]


def test_what_a_model_needs_is_taken_and_nothing_else():
    assert selection.supporting(REPOSITORY) == [
        "1_Pooling/config.json",
        "2_Dense/model.safetensors",
        "LICENSE",
        "chat_template.jinja",
        "config.json",
        "modules.json",
        "tokenizer.json",
        "tokenizer.model",
        "vocab.txt",
    ]


def test_weights_are_safetensors_beside_a_pickle():
    assert selection.weights("a/b", REPOSITORY, None) == ["model.safetensors"]


def test_shards_are_those_of_the_index():
    index = json.dumps({"weight_map": {"a": "model-2.safetensors", "b": "model-1.safetensors"}})
    names = ["model-1.safetensors", "model-2.safetensors", "model.fp16.safetensors"]
    assert selection.weights("a/b", names, index) == [
        "model.safetensors.index.json",
        "model-1.safetensors",
        "model-2.safetensors",
    ]
    with pytest.raises(HubError, match=r"a/b lacks the weights file model-2\.safetensors"):
        selection.weights("a/b", names[:1], index)


@pytest.mark.parametrize("pickle", ["pytorch_model.bin", "model.pt", "model.pth", "weights.ckpt"])
def test_pickles_alone_are_refused_with_the_reason(pickle):
    with pytest.raises(HubError) as refused:
        selection.weights("a/b at main", ["config.json", pickle], None)
    assert str(refused.value) == (
        f"a/b at main holds pickled weights only ({pickle}): loading them can run code, so only "
        "safetensors are taken; name a revision or a model that has them"
    )


def test_other_weights_are_named():
    with pytest.raises(HubError, match=r"holds no model\.safetensors, only model\.q4\.gguf"):
        selection.weights("a/b", ["model.q4.gguf"], None)


# What well-known repositories hold, and which of it is not fetched. .gitattributes and README.md,
# which none of them is without, are left out.
PUBLISHED = {
    "meta-llama/Llama-3.2-1B": (
        "LICENSE.txt USE_POLICY.md config.json generation_config.json model.safetensors "
        "special_tokens_map.json tokenizer.json tokenizer_config.json",
        "original/consolidated.00.pth original/params.json original/tokenizer.model",
    ),
    "Qwen/Qwen2.5-7B-Instruct": (
        "LICENSE config.json generation_config.json merges.txt model-00001-of-00004.safetensors "
        "model-00002-of-00004.safetensors model-00003-of-00004.safetensors "
        "model-00004-of-00004.safetensors model.safetensors.index.json tokenizer.json "
        "tokenizer_config.json vocab.json",
        "",
    ),
    "google/gemma-2-2b-it": (
        "config.json generation_config.json model-00001-of-00002.safetensors "
        "model-00002-of-00002.safetensors model.safetensors.index.json special_tokens_map.json "
        "tokenizer.json tokenizer.model tokenizer_config.json",
        "",
    ),
    "HuggingFaceTB/SmolLM2-135M-Instruct": (
        "config.json generation_config.json merges.txt model.safetensors special_tokens_map.json "
        "tokenizer.json tokenizer_config.json vocab.json",
        "all_results.json eval_results.json onnx/model.onnx onnx/model_q4.onnx "
        "runs/May/events.out.tfevents train_results.json trainer_state.json training_args.bin",
    ),
    "sentence-transformers/all-MiniLM-L6-v2": (
        "1_Pooling/config.json config.json config_sentence_transformers.json model.safetensors "
        "modules.json sentence_bert_config.json special_tokens_map.json tokenizer.json "
        "tokenizer_config.json vocab.txt",
        "data_config.json onnx/model.onnx openvino/openvino_model.bin openvino/openvino_model.xml "
        "pytorch_model.bin rust_model.ot tf_model.h5 train_script.py",
    ),
    "BAAI/bge-small-en-v1.5": (
        "1_Pooling/config.json config.json config_sentence_transformers.json model.safetensors "
        "modules.json sentence_bert_config.json special_tokens_map.json tokenizer.json "
        "tokenizer_config.json vocab.txt",
        "onnx/model.onnx pytorch_model.bin",
    ),
}


@pytest.mark.parametrize("repository", PUBLISHED)
def test_of_a_published_repository_what_serving_needs_is_taken(repository):
    needed, other = (names.split() for names in PUBLISHED[repository])
    shards = [name for name in needed if "-of-" in name]
    index = json.dumps({"weight_map": dict(enumerate(shards))}) if shards else None
    names = [*needed, *other, ".gitattributes", "README.md"]
    taken = selection.weights(repository, names, index) + selection.supporting(names)
    assert sorted(taken) == sorted(needed)


def test_a_gguf_file_is_taken_with_what_comes_before_its_own():
    names = [*REPOSITORY, "q4.gguf", "q8.gguf", "tokenizer_config.json"]
    assert selection.gguf("a/b", names, "q4.gguf") == [
        "q4.gguf",
        "LICENSE",
        "chat_template.jinja",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("q5.gguf", "a/b holds no q5.gguf, only m-00001-of-00002.gguf, q4.gguf"),
        ("model.safetensors", "model.safetensors is no GGUF file"),
        ("m-00001-of-00002.gguf", "m-00001-of-00002.gguf is one part of a model"),
    ],
)
def test_a_gguf_file_that_cannot_be_read_alone_is_refused(name, sentence):
    with pytest.raises(HubError, match=sentence):
        selection.gguf("a/b", ["q4.gguf", "m-00001-of-00002.gguf", "model.safetensors"], name)


@given(st.lists(st.text(alphabet="ab./_0123456789-", min_size=1), unique=True))
def test_no_pickle_and_no_code_is_ever_taken(names):
    dangerous = {name + end for name in names for end in (".bin", ".pt", ".pkl", ".py", ".so")}
    assert not dangerous & set(selection.supporting(dangerous | {*REPOSITORY}))
