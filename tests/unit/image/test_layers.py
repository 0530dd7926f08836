"""An environment is divided without losing a file."""

import os

from llm_image import layers

FILES = (
    "bin/python",
    "lib/python3.13/site-packages/torch/__init__.py",
    "lib/python3.13/site-packages/torch/lib/libtorch_cuda.so",
    "lib/python3.13/site-packages/nvidia/cu13/lib/libcublasLt.so.13",
    "lib/python3.13/site-packages/nvidia/cu13/lib/libcublas.so.13",
    "lib/python3.13/site-packages/fastapi/__init__.py",
)

LARGE = (FILES[2], FILES[3])


def test_every_file_is_in_one_layer_at_its_path(tmp_path):
    environment, target = tmp_path / "venv", tmp_path / "layers"
    for name in FILES:
        (environment / name).parent.mkdir(parents=True, exist_ok=True)
        (environment / name).write_text(name)
        if name in LARGE:
            os.truncate(environment / name, 100_000_000)  # takes no room
    list(layers.divide(environment, target))
    assert not environment.exists()
    found = {}
    for path in target.rglob("*"):
        if path.is_file():
            layer, *rest = path.relative_to(target).parts
            found["/" + "/".join(rest)] = layer
    assert {path.removeprefix(f"{environment}/"): layer for path, layer in found.items()} == {
        "bin/python": "rest",
        "lib/python3.13/site-packages/torch/__init__.py": "torch",
        "lib/python3.13/site-packages/torch/lib/libtorch_cuda.so": "large",
        "lib/python3.13/site-packages/nvidia/cu13/lib/libcublasLt.so.13": "large",
        "lib/python3.13/site-packages/nvidia/cu13/lib/libcublas.so.13": "cuda",
        "lib/python3.13/site-packages/fastapi/__init__.py": "rest",
    }


def test_an_environment_without_cuda_gives_the_same_layers(tmp_path):
    environment, target = tmp_path / "venv", tmp_path / "layers"
    name = "lib/python3.13/site-packages/torch/__init__.py"
    (environment / name).parent.mkdir(parents=True)
    (environment / name).write_text("")
    list(layers.divide(environment, target))
    assert sorted(path.name for path in target.iterdir()) == ["cuda", "large", "rest", "torch"]
