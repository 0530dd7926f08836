"""What is wrong with a model directory, in one sentence."""

import json

import pytest

from llm_inference.engine.directory import ModelLoadError, inspect, name_of


@pytest.fixture
def model(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    manifest = {"id": "org/model", "requested": "main", "revision": "abc", "files": []}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    return tmp_path


def test_a_whole_directory_passes(model):
    directory = inspect(model, model_id="org/model", revision="abc")
    assert (directory.model_id, directory.revision, directory.generates) == (
        "org/model",
        "abc",
        True,
    )


def test_the_manifest_says_what_nobody_asked_for(model):
    directory = inspect(model)
    assert (directory.model_id, directory.revision) == ("org/model", "abc")


def test_a_branch_is_met_by_the_commit_it_was(model):
    assert inspect(model, revision="main").revision == "abc"


def test_a_directory_is_named_by_its_manifest_else_by_itself(model):
    assert name_of(model) == "org/model"
    (model / "manifest.json").write_text("{")
    assert name_of(model) == model.name


def test_a_mounted_directory_needs_no_manifest(model):
    (model / "manifest.json").unlink()
    assert inspect(model, model_id="other/name").model_id == "other/name"


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"model_id": "org/other"}, "LLM_MODEL_ID is org/other, .* holds org/model"),
        ({"revision": "def"}, "LLM_MODEL_REVISION is def, .* holds revision abc"),
    ],
)
def test_another_model_is_refused(model, asked, sentence):
    with pytest.raises(ModelLoadError, match=sentence):
        inspect(model, **asked)


def test_a_missing_directory(tmp_path):
    with pytest.raises(ModelLoadError, match="does not exist"):
        inspect(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(model, name):
    (model / name).unlink()
    with pytest.raises(ModelLoadError, match=f"holds no {name}"):
        inspect(model)


def test_pickled_weights_are_not_loaded(model):
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelLoadError, match=r"pickled weights only \(pytorch_model.bin\)"):
        inspect(model)


def test_a_missing_shard_is_named(model):
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelLoadError, match=r"lacks the weights file model-1\.safetensors"):
        inspect(model)


@pytest.mark.parametrize("content", ["{", "[]", "\xff"])
def test_a_broken_config_is_named(model, content):
    (model / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ModelLoadError, match=r"config\.json"):
        inspect(model)


def test_an_encoder_does_not_generate(model):
    (model / "config.json").write_text(json.dumps({"architectures": ["BertModel"]}))
    assert not inspect(model).generates
    with pytest.raises(ModelLoadError, match="BertModel, which does not generate"):
        inspect(model, task="generate")


def test_a_generating_model_can_be_asked_to_embed(model):
    assert not inspect(model, task="embed").generates
