"""The model in an image: whole, listed, offline, and fetched without leaving a token."""

import io
import json
import mmap
import tarfile

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from dev.images import catalog
from dev.stand_ins import mirror, repositories

TOKEN = "hf_thisTokenMustBeFoundNowhere"
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
    assert server.shell("ls /sys/class/net") == "lo"
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
    found = repositories.read_all(root, {"org/tiny": TOKEN})
    with mirror.serving(mirror.Mirror(found, [], port=0)) as server:
        yield server


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
    assert sizes[-1] > 500_000_000  # the packages are there
