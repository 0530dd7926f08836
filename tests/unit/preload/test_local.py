"""A model from a directory: taken as one from the hub is, or refused with the reason."""

import subprocess

import pytest

from llm_preload.local import NONE_GIVEN

TINY = ("--id", "org/tiny")


@pytest.fixture
def source(write_model, tmp_path):
    return write_model(tmp_path / "source")


def test_what_serving_needs_is_taken_and_listed(take, source, manifest):
    (source / "pytorch_model.bin").write_bytes(b"pickle")
    (source / "onnx").mkdir()
    (source / "onnx" / "model.onnx").write_bytes(b"")
    taken = take(source)
    held = {path.name for path in taken.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} < held
    assert not held & {"pytorch_model.bin", "onnx"}
    listed = manifest(taken)
    assert {file["path"] for file in listed["files"]} == held - {"manifest.json"}
    assert (listed["id"], listed["requested"]) == ("org/tiny", "local")


def test_shards_and_modules_are_taken(take, write_model, tmp_path, manifest):
    source = write_model(tmp_path / "source", shards=2)
    (source / "1_Pooling").mkdir()
    (source / "1_Pooling" / "config.json").write_text("{}")
    names = {file["path"] for file in manifest(take(source))["files"]}
    assert {"model.safetensors.index.json", "1_Pooling/config.json"} < names
    assert len([name for name in names if "-of-" in name]) > 1


def test_the_revision_is_what_sha256sum_says_of_the_files(take, source, manifest):
    taken = take(source)
    listed = manifest(taken)
    names = sorted(file["path"] for file in listed["files"])
    lines = subprocess.run(["sha256sum", *names], cwd=taken, capture_output=True, check=True).stdout
    said = subprocess.run(["sha256sum"], input=lines, capture_output=True, check=True).stdout
    assert said.decode().split()[0] == listed["revision"]


def test_a_revision_pins_the_content(take, source, manifest, refusal):
    revision = manifest(take(source))["revision"]
    take(source, "--revision", revision, name="again")
    (source / "config.json").write_text((source / "config.json").read_text() + "\n")
    said = refusal(source, *TINY, "--revision", revision)
    assert said.startswith("error: the directory's content is ")
    assert said.endswith(f", not {revision}")


def test_the_files_are_in_the_log(preload, source, tmp_path, manifest):
    target = tmp_path / "model"
    target.mkdir()
    code, said = preload(
        "fetch", *TINY, "--context", source, "--scratch", tmp_path / "scratch", target
    )
    assert code == 0
    lines = [line.split() for line in said.splitlines()]
    for file in manifest(target)["files"]:
        assert [file["path"], str(file["size"]), file["sha256"]] in lines


def test_pickles_alone_are_refused(refusal, source):
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    said = refusal(source, *TINY)
    assert "the build context model holds pickled weights only (pytorch_model.bin)" in said


def test_a_link_out_of_the_directory_is_refused(refusal, source, tmp_path):
    (source / "model.safetensors").rename(tmp_path / "blob")
    (source / "model.safetensors").symlink_to(tmp_path / "blob")
    assert "model.safetensors in the build context model is a link" in refusal(source, *TINY)


def test_a_link_within_the_directory_is_followed(take, source):
    (source / "model.safetensors").rename(source / "blob")
    (source / "model.safetensors").symlink_to("blob")
    assert not (take(source) / "model.safetensors").is_symlink()


def test_an_empty_directory_is_not_taken_for_none(refusal, tmp_path):
    (tmp_path / "empty").mkdir()
    assert refusal(tmp_path / "empty", *TINY) == "error: the build context model holds no file"


def test_a_directory_wants_a_name(refusal, source):
    assert "wants --build-arg MODEL_ID=" in refusal(source)


@pytest.mark.parametrize("argument", ["--revision", "--file"])
def test_a_revision_or_a_file_of_no_model_is_refused(refusal, tmp_path, argument):
    (tmp_path / NONE_GIVEN).touch()
    assert "v1 is of no model without" in refusal(tmp_path, argument, "v1")


def test_without_a_model_nothing_is_done(preload, tmp_path):
    (tmp_path / NONE_GIVEN).touch()
    target = tmp_path / "model"
    target.mkdir()
    where = ("--context", tmp_path, "--scratch", tmp_path / "scratch", target)
    for command in (("fetch", *where), ("convert", target), ("prove", target)):
        code, said = preload(*command)
        assert (code, said.split(":")[0]) == (0, "no model")
    assert list(target.iterdir()) == []
    code, said = preload("convert", "--dtype", "float16", target)
    assert (code, said) == (1, "error: there are no weights to store as float16\n")


def test_one_gguf_file_is_found_and_several_have_to_be_named(take, refusal, tmp_path, manifest):
    source = tmp_path / "source"
    source.mkdir()
    (source / "q4.gguf").write_bytes(b"GGUF")
    (source / "LICENSE").write_text("free")
    (source / "config.json").write_text("{}")
    assert [file["path"] for file in manifest(take(source))["files"]] == ["LICENSE", "q4.gguf"]
    (source / "q8.gguf").write_bytes(b"GGUF")
    said = refusal(source, *TINY)
    assert said.endswith("holds q4.gguf, q8.gguf: name one of them as MODEL_FILE")
    named = take(source, "--file", "q8.gguf", name="named")
    assert {path.name for path in named.iterdir()} == {"LICENSE", "q8.gguf", "manifest.json"}
