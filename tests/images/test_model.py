"""The model in an image: whole, listed, offline, and fetched without leaving a token."""

import io
import json
import mmap
import os
import subprocess
import sys
import tarfile

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from dev.cluster import paths
from dev.images import catalog
from dev.stand_ins import mirror, repositories
from dev.stand_ins import models as stand_ins

TOKEN = "hf_thisTokenMustBeFoundNowhere"
GGUF = "smollm2.gguf"
NOWHERE = "http://127.0.0.1:9"
VERIFY = """
import hashlib, json, pathlib
root = pathlib.Path("/model")
manifest = json.loads((root / "manifest.json").read_text())
listed = {f["path"]: (f["size"], f["sha256"]) for f in manifest["files"]}
held = {}
for path in root.rglob("*"):
    if path.is_file() and path.name != "manifest.json":
        content = path.read_bytes()
        held[path.relative_to(root).as_posix()] = (
            len(content), hashlib.sha256(content).hexdigest())
assert held == listed, (held, listed)
print(json.dumps({"id": manifest["id"], "revision": manifest["revision"], "files": list(held)}))
"""


def test_the_manifest_is_what_is_there(server):
    found = json.loads(server.python(VERIFY))
    (image,) = (image for image in catalog.ALL if image.reference == server.reference)
    assert found["id"] == image.model.id
    assert len(found["revision"]) == 40
    assert "model.safetensors" in found["files"]
    assert not [name for name in found["files"] if name.endswith((".bin", ".py", ".pt"))]


def test_the_server_loads_it_without_a_network(server):
    # A container of its own network namespace has no interface but loopback.
    assert server.python("import os; print(*os.listdir('/sys/class/net'))") == "lo"
    done = server.run("python", "-m", "llm_inference", "check")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["device"]["type"] == "cpu"
    if "smollm2" in server.reference:
        assert said["text"].strip() == "Paris"
    else:
        assert said["dimensions"] == 384


def test_cpu_and_gpu_share_the_models_layer(cpu, gpu, weights):
    layers = [{layer["digest"] for layer in image.manifest["layers"]} for image in (cpu, gpu)]
    largest = max(
        (layer for layer in cpu.manifest["layers"] if layer["size"] < 300_000_000),
        key=lambda layer: layer["size"],
    )
    assert largest["digest"] in layers[0] & layers[1]


def test_the_weights_image_holds_the_model_alone(cpu, weights):
    held = json.loads(cpu.python(VERIFY))["files"]
    (layer,) = weights.manifest["layers"]
    with tarfile.open(fileobj=io.BytesIO(weights.blob(layer["digest"]))) as archive:
        files = {member.name for member in archive if member.isfile()}
        modes = {member.mode & 0o777 for member in archive.getmembers() if member.isfile()}
    assert files == {*held, "manifest.json"}
    assert modes == {0o644}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A hub with a tiny gated model, and one that has only pickled weights."""
    root = tmp_path_factory.mktemp("hub")
    tiny = root / "org" / "tiny"
    vocabulary = {"<unk>": 0, "The": 1, "capital": 2}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(tiny)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "vocab_size": 8}
    layers = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    LlamaForCausalLM(LlamaConfig(**sizes, **layers)).to(torch.float32).save_pretrained(tiny)
    pickled = root / "org" / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text("{}")
    (pickled / "pytorch_model.bin").write_bytes(b"\x80\x04N.")
    broken = root / "org" / "broken"
    broken.mkdir()
    for file in tiny.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    (broken / "tokenizer.json").unlink()
    packed = root / "org" / "packed"
    packed.mkdir()
    (packed / GGUF).symlink_to(stand_ins.gguf(stand_ins.SMOLLM2))
    found = repositories.read_all(root, {"org/tiny": TOKEN})
    with mirror.serving(mirror.Mirror(found, [], port=0)) as server:
        yield server


@pytest.fixture
def tiny(hub):
    """The directory of the tiny model."""
    return hub.repositories["org/tiny"].files["config.json"].path.parent


def blob(layout, described):
    return layout / "blobs" / described["digest"].replace(":", "/")


def image_of(layout):
    """The manifest of the image in an OCI layout, and its configuration."""
    found = json.loads((layout / "index.json").read_text())
    while "manifests" in found:
        found = json.loads(blob(layout, found["manifests"][0]).read_text())
    return found, json.loads(blob(layout, found["config"]).read_text())["config"]


def unpacked(layout, target):
    """The model of a weights image, as a directory."""
    (layer,) = image_of(layout)[0]["layers"]
    with tarfile.open(blob(layout, layer)) as archive:
        archive.extractall(target, filter="data")
    return target


def test_a_directory_takes_the_place_of_the_hub(build, tiny, tmp_path):
    arguments = {"MODEL_ID": "org/mine", "HF_ENDPOINT": NOWHERE}
    done, layout = build("weights", arguments, model=tiny)
    assert done.returncode == 0, done.stderr
    assert "LlamaForCausalLM" in done.stderr  # proven
    directory = unpacked(layout, tmp_path / "model")
    manifest = json.loads((directory / "manifest.json").read_text())
    assert (manifest["id"], manifest["requested"]) == ("org/mine", "local")
    for file in manifest["files"]:
        assert (directory / file["path"]).read_bytes() == (tiny / file["path"]).read_bytes()
        assert f"{file['size']} {file['sha256']}" in done.stderr
    assert image_of(layout)[1]["Labels"]["dev.llm-operator.model.id"] == "org/mine"


def test_a_directory_that_cannot_be_served_is_not_built(build, tiny, tmp_path):
    broken = tmp_path / "mine"
    broken.mkdir()
    (broken / "config.json").write_bytes((tiny / "config.json").read_bytes())
    (broken / "pytorch_model.bin").write_bytes(b"pickle")
    done, _ = build("weights", {"MODEL_ID": "org/mine"}, model=broken)
    assert done.returncode != 0
    assert "error: the build context model holds pickled weights only" in done.stderr


def test_two_builds_give_the_same_image(build, tiny):
    arguments = {
        "MODEL_ID": "org/mine",
        "MODEL_DTYPE": "float16",
        "SOURCE_DATE_EPOCH": "1700000000",
    }
    digests = []
    for _ in range(2):
        anew = ("fetched", "proven", "weights")
        done, layout = build("weights", arguments, model=tiny, anew=anew)
        assert done.returncode == 0, done.stderr
        digests.append(image_of(layout)[0])
    assert digests[0] == digests[1]


def test_a_gguf_file_becomes_plain_weights_that_answer(build, hub, tmp_path):
    revision = hub.repositories["org/packed"].revision
    arguments = {"MODEL_ID": "org/packed", "MODEL_FILE": GGUF, "MODEL_REVISION": revision}
    done, layout = build("weights", {**arguments, "HF_ENDPOINT": hub.url})
    assert done.returncode == 0, done.stderr
    assert image_of(layout)[1]["Labels"]["dev.llm-operator.model.revision"] == revision
    directory = unpacked(layout, tmp_path / "model")
    manifest = json.loads((directory / "manifest.json").read_text())
    assert manifest["revision"] == revision
    assert [file["path"] for file in manifest["converted_from"]] == [GGUF]
    assert not list(directory.rglob("*.gguf"))
    assert json.loads((directory / "config.json").read_text())["dtype"] == "bfloat16"
    checked = subprocess.run(
        [sys.executable, "-m", "llm_inference", "check"],
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(paths.CHECKOUT / "inference"),
            "LLM_MODEL_DIR": str(directory),
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr
    said = json.loads(checked.stdout.splitlines()[-1])
    assert said["text"].strip() == "Paris"


def test_a_gated_model_wants_a_token(build, hub):
    done, _ = build("weights", {"MODEL_ID": "org/tiny", "HF_ENDPOINT": hub.url})
    assert done.returncode != 0
    said = "error: org/tiny is gated: give a token that may read it as the secret hf_token"
    assert said in done.stderr


def test_a_token_is_found_in_no_layer_and_no_history(build, hub, tmp_path):
    (tmp_path / "token").write_text(TOKEN)
    secrets = (f"id=hf_token,src={tmp_path / 'token'}",)
    arguments = {"MODEL_ID": "org/tiny", "HF_ENDPOINT": hub.url, "MODEL_DTYPE": "bfloat16"}
    done, layout = build("cpu", arguments, secrets)
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stderr
    blobs = list((layout / "blobs" / "sha256").iterdir())
    assert len(blobs) > 4
    assert any(_holds(blob, b'"id": "org/tiny"') for blob in blobs)
    assert not [blob for blob in blobs if _holds(blob, TOKEN.encode())]
    # Converted as asked, and the manifest is of what was written.
    assert any(_holds(blob, b'"dtype": "bfloat16"') for blob in blobs)


def _holds(path, needle):
    if not path.stat().st_size:
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as content:
        return content.find(needle) >= 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"MODEL_ID": "org/pickled"}, "holds pickled weights only (pytorch_model.bin)"),
        ({"MODEL_ID": "org/none"}, "error: there is no model org/none on the hub"),
        (
            {"MODEL_ID": "org/pickled", "MODEL_REVISION": "v9"},
            "error: org/pickled has no revision v9",
        ),
        ({"MODEL_ID": "org/broken"}, "error: the model does not load offline: "),
        (
            {"MODEL_ID": "org/packed"},
            f"only {GGUF}; MODEL_FILE takes the name of a GGUF file",
        ),
        ({"MODEL_ID": "org/packed", "MODEL_FILE": "q9.gguf"}, f"holds no q9.gguf, only {GGUF}"),
        ({"MODEL_FILE": "q9.gguf"}, "error: q9.gguf is of no model without"),
        ({}, "error: weights need --build-arg MODEL_ID"),
    ],
)
def test_what_cannot_be_served_is_not_built(build, hub, arguments, sentence):
    done, _ = build("weights", {**arguments, "HF_ENDPOINT": hub.url})
    assert done.returncode != 0
    assert sentence in done.stderr


def test_an_image_without_a_model_says_so(build, tmp_path):
    done, layout = build("cpu", {"MODEL_ID": ""})
    assert done.returncode == 0, done.stderr
    sizes = sorted(blob.stat().st_size for blob in (layout / "blobs" / "sha256").iterdir())
    assert sizes[-1] > 400_000_000  # the packages are there
