"""From the start of the process to its end: probes, failures to load, draining."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
CHECKOUT = Path(__file__).resolve().parents[2]


def smollm2_settings(directory, **more):
    return {"LLM_MODEL_ID": SMOLLM2, "LLM_MODEL_DIR": str(directory), **more}


@pytest.fixture
def copy_of_smollm2(tmp_path, smollm2_dir):
    """A model directory that a test may break; the weights are linked, not copied."""
    directory = tmp_path / "model"
    directory.mkdir()
    for file in smollm2_dir.iterdir():
        if file.suffix == ".safetensors":
            (directory / file.name).symlink_to(file)
        else:
            shutil.copy(file, directory / file.name)
    return directory


def test_start_up_is_told_until_it_serves(start, smollm2_dir):
    began = time.time()
    # In a type that transformers computes in: long enough a load to ask something meanwhile.
    server = start(**smollm2_settings(smollm2_dir, LLM_MODEL_REVISION="r1", LLM_DTYPE="float16"))
    assert server.wait_for_http().status_code == 200
    startup = server.client.get("/startupz")
    assert startup.status_code == 503
    assert startup.json()["phase"] in ("importing", "loading", "warming")
    assert startup.json()["device"] is None
    answered = time.time()
    # The kernel counts the start of a process in hundredths of a second.
    assert began - 0.1 <= startup.json()["started_at"] <= answered
    assert 0 < startup.json()["timeline"]["process_up"] <= answered - began + 0.1
    assert "warmed_up" not in startup.json()["timeline"]
    for path in ("/readyz", "/health"):
        assert server.client.get(path).status_code == 503
    early = server.chat()
    assert early.status_code == 503
    assert early.headers["retry-after"]
    assert "loading" in early.json()["error"]["message"]

    server.wait("/startupz")
    report = server.client.get("/startupz").json()
    assert report["phase"] == "serving"
    assert set(report["phases"]) == {"importing", "loading", "warming"}
    assert report["elapsedSeconds"] >= sum(report["phases"].values())
    assert report["model"] == {"id": SMOLLM2, "revision": "r1"}
    assert report["device"]["type"] == "cpu"
    assert report["device"]["dtype"] == "float16"
    assert report["device"]["threads"] >= 1
    assert report["device"]["memory_bytes"] > (smollm2_dir / "model.safetensors").stat().st_size
    assert report["started_at"] == startup.json()["started_at"]
    timeline = report["timeline"]
    assert list(timeline) == ["process_up", "weights_loaded", "warmed_up"]
    assert list(timeline.values()) == sorted(timeline.values())
    assert timeline["warmed_up"] == pytest.approx(sum(report["phases"].values()), abs=0.01)
    assert report["error"] is None
    for path in ("/livez", "/readyz", "/health"):
        assert server.client.get(path).status_code == 200
    assert server.metric("llm_device_info", device="cpu", dtype="float16") == 1
    assert server.metric("llm_startup_phase_seconds", phase="loading") > 0
    assert "Paris" in server.chat().json()["choices"][0]["message"]["content"]


def test_a_request_that_takes_too_long_is_ended(start, smollm2_dir):
    settings = smollm2_settings(smollm2_dir, LLM_REQUEST_TIMEOUT_SECONDS="1")
    server = start(**settings).wait()
    slow = {"max_tokens": 8000, "temperature": 1.3, "seed": 1}
    response = server.complete("Once upon a time", **slow)
    assert response.status_code == 504
    assert response.json()["error"]["type"] == "timeout"
    with server.client.stream(
        "POST",
        "/v1/completions",
        json={"model": SMOLLM2, "prompt": "Once", "stream": True, **slow},
    ) as stream:
        *_, last = [line for line in stream.iter_lines() if line]
    assert "longer than 1 s" in json.loads(last.removeprefix("data: "))["error"]["message"]
    deadline = time.monotonic() + 5
    while server.metric("vllm:num_requests_running"):
        assert time.monotonic() < deadline


@pytest.mark.parametrize("moment", ["at once", "while loading"])
def test_sigterm_before_the_model_is_loaded_ends_with_0(start, smollm2_dir, moment):
    server = start(**smollm2_settings(smollm2_dir))
    if moment == "while loading":
        server.wait_for_http()
    else:
        time.sleep(0.3)
    server.terminate()
    assert server.exit_code(10) == 0


def fails_to_load(server, *words):
    assert server.exit_code(90) == 3
    last = server.stderr().rstrip().splitlines()[-1]
    for word in words:
        assert word in last
    assert "Traceback" not in last


def test_a_missing_directory(start, tmp_path):
    server = start(LLM_MODEL_ID=SMOLLM2, LLM_MODEL_DIR=str(tmp_path / "nothing"))
    fails_to_load(server, "does not exist")


def test_the_manifest_of_another_model(start, copy_of_smollm2):
    manifest = {"id": "org/other", "revision": "r", "files": []}
    (copy_of_smollm2 / "manifest.json").write_text(json.dumps(manifest))
    fails_to_load(start(**smollm2_settings(copy_of_smollm2)), SMOLLM2, "org/other")


def test_pickled_weights(start, copy_of_smollm2):
    (copy_of_smollm2 / "model.safetensors").unlink()
    (copy_of_smollm2 / "pytorch_model.bin").write_bytes(b"pickle")
    fails_to_load(start(**smollm2_settings(copy_of_smollm2)), "pickled", "safetensors")


@pytest.mark.parametrize("damage", ["no header", "half of it", "nothing"])
def test_corrupt_weights(start, copy_of_smollm2, damage):
    weights = copy_of_smollm2 / "model.safetensors"
    whole = weights.resolve()
    weights.unlink()
    if damage == "half of it":
        with whole.open("rb") as content:
            weights.write_bytes(content.read(whole.stat().st_size // 2))
    else:
        header = b"\x10\x00\x00\x00\x00\x00\x00\x00not the header"
        weights.write_bytes(header if damage == "no header" else b"")
    fails_to_load(start(**smollm2_settings(copy_of_smollm2)), "cannot be loaded")


def test_weights_that_lack_a_layer(start, copy_of_smollm2):
    config = json.loads((copy_of_smollm2 / "config.json").read_text())
    config["num_hidden_layers"] += 1
    config.pop("layer_types", None)
    (copy_of_smollm2 / "config.json").write_text(json.dumps(config))
    fails_to_load(start(**smollm2_settings(copy_of_smollm2)), "lack", "layers.30")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"LLM_MAX_LENGTH": "100000"}, ("LLM_MAX_LENGTH", "8192")),
        ({"LLM_DEVICE": "cuda"}, ("cuda",)),
        ({"LLM_MAX_LENGTH": "8192", "LLM_MAX_CONCURRENCY": "1000"}, ("memory", "LLM_MAX_LENGTH")),
    ],
)
def test_settings_the_model_or_the_machine_cannot_meet(start, smollm2_dir, settings, words):
    fails_to_load(start(**smollm2_settings(smollm2_dir, **settings)), *words)


@pytest.mark.parametrize(
    ("name", "value"), [("LLM_PORT", "x"), ("LLM_DTYPE", "int3"), ("LLM_TYPO", "1")]
)
def test_a_bad_setting_is_exit_2(start, smollm2_dir, name, value):
    server = start(**smollm2_settings(smollm2_dir, **{name: value}))
    assert server.exit_code(30) == 2
    (line,) = server.stderr().splitlines()
    assert name in line


def test_a_port_that_is_taken_is_exit_2(start, smollm2, smollm2_dir):
    server = start(**smollm2_settings(smollm2_dir, LLM_PORT=str(smollm2.port)))
    assert server.exit_code(30) == 2
    assert f"LLM_PORT={smollm2.port}" in server.stderr().splitlines()[-1]


def check(**settings):
    return subprocess.run(
        [sys.executable, "-m", "llm_inference", "check"],
        env={"PYTHONPATH": str(CHECKOUT / "inference"), "PATH": "/usr/bin:/bin", **settings},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_check_proves_that_a_model_generates(smollm2_dir):
    result = check(**smollm2_settings(smollm2_dir))
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["task"] == "generate"
    assert report["text"] == " Paris"
    assert report["model"]["id"] == SMOLLM2


def test_check_proves_that_a_model_embeds(minilm_dir):
    report = json.loads(check(LLM_MODEL_DIR=str(minilm_dir)).stdout)
    assert (report["task"], report["dimensions"]) == ("embed", 384)


def test_check_fails_with_the_reason(tmp_path):
    result = check(LLM_MODEL_DIR=str(tmp_path))
    assert result.returncode == 3
    assert "config.json" in result.stderr.splitlines()[-1]
    assert result.stdout == ""
