"""Weights written anew: of the type that is asked for, the same bytes each time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

CHECKOUT = Path(__file__).parents[3]


def test_weights_are_converted_and_so_is_what_is_said_of_them(
    take, preload, write_model, tmp_path, manifest
):
    taken = take(write_model(tmp_path / "source", shards=2))
    before = manifest(taken)
    code, said = preload("convert", "--dtype", "bfloat16", taken)
    assert code == 0, said
    assert json.loads((taken / "config.json").read_text())["dtype"] == "bfloat16"
    tensors = [load_file(path) for path in taken.glob("*.safetensors")]
    assert {t.dtype for held in tensors for t in held.values()} == {torch.bfloat16}
    index = json.loads((taken / "model.safetensors.index.json").read_text())
    stored = sum(t.numel() * t.element_size() for held in tensors for t in held.values())
    assert index["metadata"]["total_size"] == stored
    after = manifest(taken)
    assert (after["id"], after["revision"]) == ("org/tiny", before["revision"])
    changed = {file["path"] for file in after["converted_from"]}
    assert changed == {"config.json", "model.safetensors.index.json", *index["weight_map"].values()}
    assert all(file in before["files"] for file in after["converted_from"])


def test_an_unknown_type_is_refused(take, preload, write_model, tmp_path):
    code, said = preload("convert", "--dtype", "int8", take(write_model(tmp_path / "source")))
    assert code == 1
    assert said == (
        "error: the weights cannot be stored as int8, only as float32, bfloat16, float16\n"
    )


def test_quantised_weights_are_not_converted(take, preload, write_model, tmp_path):
    source = write_model(tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8"}
    (source / "config.json").write_text(json.dumps(config))
    code, said = preload("convert", "--dtype", "bfloat16", take(source))
    assert code == 1
    assert "the weights are quantised (fp8)" in said


def test_a_chat_template_that_takes_no_message_is_refused(take, preload, write_model, tmp_path):
    source = write_model(tmp_path / "source")
    (source / "chat_template.jinja").write_text("{{ raise_exception('only robots may speak') }}")
    code, said = preload("prove", take(source))
    assert code == 1
    assert said == "error: the chat template takes no user's message: only robots may speak\n"


@pytest.fixture
def formats(write_model, write_gguf, new_model, tmp_path):
    """A directory of safetensors with much to say, and one with a GGUF file."""
    plain = write_model(tmp_path / "plain")
    with safe_open(plain / "model.safetensors", framework="pt") as weights:
        tensors = {name: weights.get_tensor(name) for name in weights.keys()}  # noqa: SIM118
    many = {"format": "pt"} | {f"note {number}": "ä" for number in range(8)}
    save_file(tensors, plain / "model.safetensors", metadata=many)
    packed = tmp_path / "packed"
    packed.mkdir()
    write_gguf(packed / "tiny.gguf", new_model())
    return {"plain": plain, "packed": packed}


def build(context, target, scratch):
    """What the image build does, in processes of its own."""
    target.mkdir()
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(CHECKOUT / "inference"),
        "SOURCE_DATE_EPOCH": "1700000000",
        "HOME": "/nonexistent",
    }
    run = (sys.executable, "-m", "llm_preload")
    fetch = ("fetch", "--id", "org/tiny", "--context", context, "--scratch", scratch, target)
    for command in (fetch, ("convert", "--dtype", "bfloat16", target), ("prove", target)):
        subprocess.run([*run, *map(str, command)], env=environment, check=True, timeout=300)
    return {
        path.relative_to(target).as_posix(): (
            path.stat().st_mtime,
            path.stat().st_mode,
            path.read_bytes() if path.is_file() else None,
        )
        for path in (target, *target.rglob("*"))
    }


@pytest.mark.parametrize("kind", ["plain", "packed"])
def test_two_builds_give_the_same_bytes(formats, tmp_path, kind):
    first, second = (
        build(formats[kind], tmp_path / name, tmp_path / "scratch") for name in ("first", "second")
    )
    assert first == second
    assert {time for time, _, _ in first.values()} == {1700000000}
    metadata = first["model.safetensors"][2][8:]
    assert (b'"note 7":"\xc3\xa4"' in metadata) == (kind == "plain")
