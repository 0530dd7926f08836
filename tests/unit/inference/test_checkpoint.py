"""Mapped safetensors files give the tensors that were written, or say what is wrong with them."""

import gc
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from llm_inference.engine.checkpoint import Checkpoint
from llm_inference.engine.rope import UnknownModelError
from llm_inference.engine.torch_decoder import tensor_of

TENSORS = {
    "half": torch.randn(3, 5).to(torch.float16),
    "brain": torch.randn(2, 4, 3).to(torch.bfloat16),
    "single": torch.randn(7),
    "whole": torch.arange(6).view(2, 3),
    "scalar": torch.tensor(2.5),
    "none": torch.empty(0, 4),
}


def write(directory, tensors=TENSORS, name="model.safetensors"):
    save_file(tensors, directory / name, metadata={"format": "pt"})
    return directory


def test_tensors_are_those_that_were_saved(tmp_path):
    checkpoint = Checkpoint(write(tmp_path))
    assert set(checkpoint) == set(TENSORS)
    for name, tensor in TENSORS.items():
        array = checkpoint[name]
        assert f"torch.{array.dtype}" == str(tensor.dtype)
        assert array.shape == tuple(tensor.shape)
        assert torch.equal(tensor_of(array), tensor)


def test_a_file_stays_mapped_as_long_as_somebody_has_a_tensor_of_it(tmp_path):
    def mapped():
        maps = Path("/proc/self/maps").read_text(encoding="ascii")
        return str(tmp_path / "model.safetensors") in maps

    array = Checkpoint(write(tmp_path))["brain"]
    tensor = tensor_of(array.rows(1, 1))
    assert mapped()
    del array
    assert mapped()
    assert torch.equal(tensor, TENSORS["brain"][1:])
    del tensor
    gc.collect()
    assert not mapped()


def test_shards_are_found_by_their_index(tmp_path):
    write(tmp_path, {"half": TENSORS["half"]}, "model-1.safetensors")
    write(tmp_path, {"brain": TENSORS["brain"]}, "model-2.safetensors")
    places = {"half": "model-1.safetensors", "brain": "model-2.safetensors"}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    checkpoint = Checkpoint(tmp_path)
    assert len(checkpoint) == 2
    assert torch.equal(tensor_of(checkpoint["brain"]), TENSORS["brain"])


@pytest.mark.parametrize("size", [0, 5, 40, -1])
def test_a_file_that_is_cut_off_is_malformed(tmp_path, size):
    file = write(tmp_path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(ValueError, match="safetensors"):
        Checkpoint(tmp_path)


def rewrite_header(file, change):
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


def test_a_shape_that_does_not_fit_is_malformed(tmp_path):
    file = write(tmp_path) / "model.safetensors"
    rewrite_header(file, lambda header: header["single"].update(shape=[8]))
    with pytest.raises(ValueError, match="another size"):
        Checkpoint(tmp_path)["single"]


@pytest.mark.parametrize(
    "change",
    [
        {"data_offsets": [-28, 0]},
        {"data_offsets": ["0", "28"]},
        {"shape": [-7], "data_offsets": [28, 0]},
        {"shape": [-1, -7]},
        {"shape": [7.0]},
    ],
)
def test_a_place_outside_of_the_file_is_malformed(tmp_path, change):
    file = write(tmp_path) / "model.safetensors"
    rewrite_header(file, lambda header: header["single"].update(change))
    with pytest.raises((ValueError, TypeError)):
        Checkpoint(tmp_path)["single"]


def test_a_type_that_is_not_known_is_left_to_transformers(tmp_path):
    file = write(tmp_path) / "model.safetensors"
    rewrite_header(file, lambda header: header["single"].update(dtype="F8_E4M3"))
    with pytest.raises(UnknownModelError, match="F8_E4M3"):
        Checkpoint(tmp_path)["single"]
