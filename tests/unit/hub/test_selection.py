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


@given(st.lists(st.text(alphabet="ab./_0123456789-", min_size=1), unique=True))
def test_no_pickle_and_no_code_is_ever_taken(names):
    dangerous = {name + end for name in names for end in (".bin", ".pt", ".pkl", ".py", ".so")}
    assert not dangerous & set(selection.supporting(dangerous | {*REPOSITORY}))
