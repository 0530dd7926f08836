"""What of a package goes, and what is compiled ahead."""

import pytest

from llm_image import ImageError, packages

INFERENCE = packages.RECIPES["inference"]


@pytest.mark.parametrize(
    "path",
    [
        "torch/__init__.py",
        "torch/nn/functional.py",
        "torch/distributed/__init__.py",
        "torch/distributed/rpc/api.py",
        "transformers/models/auto/modeling_auto.py",
        "transformers/models/__init__.py",
        "transformers/modeling_utils.py",
        "fastapi/applications.py",
    ],
)
def test_what_a_start_imports_is_compiled(path):
    assert INFERENCE.compiles(path)


@pytest.mark.parametrize(
    "path",
    [
        "torch/distributed/fsdp/api.py",
        "transformers/models/whisper/modeling_whisper.py",
        "numpy/linalg/tests/test_linalg.py",
    ],
)
def test_what_is_seldom_imported_is_not(path):
    assert not INFERENCE.compiles(path)


def test_removing_tells_what_it_saved(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "one").write_bytes(b"123")
    (folder / "two").symlink_to("one")
    assert packages.remove(folder) == 3 + len("one")
    assert not folder.exists()


def test_a_release_that_moved_its_files_is_told(tmp_path):
    with pytest.raises(ImageError, match="there is no torch/include"):
        list(packages.reduce(tmp_path, INFERENCE))


def test_bytecode_does_not_depend_on_file_times(tmp_path):
    source = tmp_path / "module.py"
    source.write_text("answer = 42\n")
    assert packages.compile_bytecode(tmp_path, INFERENCE) == 1
    (compiled,) = tmp_path.glob("__pycache__/*.pyc")
    # Flags: the file holds a hash, and nobody compares it.
    assert compiled.read_bytes()[4:8] == b"\x01\0\0\0"
