"""A server that takes its model from a hub when it starts: a loopback one, with the real model."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dev.stand_ins import mirror, repositories

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
GATED, PICKLED, HUGE = "org/gated", "org/pickled", "org/huge"
TOKEN = "hf_the_right_one"
# What is sent of the weights before they are held back; the client writes whole chunks of 10 MB.
BEFORE_HELD, WRITTEN = 35_000_000, 20_000_000


class Hub:
    """A mirror that can be watched, slowed down and taken away."""

    def __init__(self, found):
        self.server = mirror.Mirror(found, [], port=0)
        self.asked = []
        self.held = threading.Event()
        self.held.set()

    @property
    def url(self):
        return self.server.url

    @property
    def commit(self):
        return self.server.repositories[MINILM].revision

    def downloads(self):
        return [path for method, path in self.asked if method == "GET" and "/resolve/" in path]


@pytest.fixture(scope="module")
def models(tmp_path_factory, minilm_dir):
    root = tmp_path_factory.mktemp("models")
    for model_id in (MINILM, GATED, HUGE):
        (root / model_id).parent.mkdir(parents=True, exist_ok=True)
        (root / model_id).symlink_to(minilm_dir)
    (root / PICKLED).mkdir()
    (root / PICKLED / "pytorch_model.bin").write_bytes(b"pickle")
    (root / PICKLED / "config.json").write_text("{}")
    return repositories.read_all(root, {GATED: TOKEN})


@pytest.fixture
def hub(models, monkeypatch):
    hub = Hub(models)
    route, copy = mirror.Handler._route, mirror._copy

    def watched(handler, path):
        hub.asked.append((handler.command, path))
        route(handler, path)

    def held(source, target, length):
        if length > 10_000_000:  # the weights
            copy(source, target, BEFORE_HELD)
            length -= BEFORE_HELD
            hub.held.wait(60)
        copy(source, target, length)

    monkeypatch.setattr(mirror.Handler, "_route", watched)
    monkeypatch.setattr(mirror, "_copy", held)
    with mirror.serving(hub.server):
        yield hub
        hub.held.set()


@pytest.fixture
def cache(tmp_path):
    folder = tmp_path / "cache"
    folder.mkdir()
    return folder


@pytest.fixture
def fetching(start, hub, cache):
    """Start a server that fetches its model; offline by default, as an image may be."""

    def begin(**settings):
        return start(
            **{
                "LLM_MODEL_SOURCE": "hub",
                "LLM_MODEL_ID": MINILM,
                "LLM_HUB_CACHE_DIR": str(cache),
                "HF_ENDPOINT": hub.url,
                "HF_HUB_OFFLINE": "1",
                "HOME": "/nonexistent",
                **settings,
            }
        )

    return begin


def embeds(server):
    answer = server.client.post("/v1/embeddings", json={"model": MINILM, "input": "a"})
    return len(answer.json()["data"][0]["embedding"]) == 384


def test_a_model_is_downloaded_with_progress_and_served_as_the_commit_it_is(fetching, hub, cache):
    hub.held.clear()
    server = fetching()
    server.wait_for_http()
    deadline = time.monotonic() + 60
    while not (report := server.client.get("/startupz").json())["download"] or (
        report["download"]["bytes_done"] < WRITTEN
    ):
        assert time.monotonic() < deadline, report
    assert report["phase"] == "downloading"
    assert "downloaded" not in report["timeline"]
    # Everything but what is held back.
    done, total = report["download"]["bytes_done"], report["download"]["bytes_total"]
    assert WRITTEN <= done < total
    assert server.client.get("/livez").status_code == 200
    assert server.client.get("/readyz").status_code == 503
    hub.held.set()

    report = server.wait().client.get("/startupz").json()
    assert report["model"] == {"id": MINILM, "revision": hub.commit}
    assert report["download"] == {"bytes_done": total, "bytes_total": total}
    assert list(report["timeline"]) == ["process_up", "downloaded", "weights_loaded", "warmed_up"]
    assert set(report["phases"]) == {"importing", "downloading", "loading", "warming"}
    assert report["timeline"]["warmed_up"] == pytest.approx(
        sum(report["phases"].values()), abs=0.01
    )
    assert embeds(server)
    snapshot = cache / "models--sentence-transformers--all-MiniLM-L6-v2" / "snapshots" / hub.commit
    held = {path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*.*")}
    assert "model.safetensors" in held
    assert "1_Pooling/config.json" in held
    assert not [name for name in held if name.endswith((".bin", ".onnx", ".py", ".h5"))]
    assert total == sum((snapshot / name).stat().st_size for name in held)


def test_a_second_start_downloads_nothing(fetching, hub, cache):
    server = fetching().wait()
    server.stop()
    assert hub.downloads()
    hub.asked.clear()

    # A branch is asked for, but what it names is there.
    server = fetching().wait()
    assert hub.asked
    assert not hub.downloads()
    assert server.client.get("/startupz").json()["download"] is None
    server.stop()
    hub.asked.clear()

    # A commit is not even asked for.
    fetching(LLM_MODEL_REVISION=hub.commit).wait().stop()
    assert hub.asked == []

    # Without the hub, the branch is what it was.
    server = fetching(HF_ENDPOINT="http://127.0.0.1:9").wait()
    assert server.client.get("/startupz").json()["model"]["revision"] == hub.commit
    assert "the hub does not answer" in server.stderr()
    assert embeds(server)


def test_a_download_that_was_broken_off_goes_on_with_what_is_missing(fetching, hub, cache):
    hub.held.clear()
    server = fetching()
    blobs = cache / "models--sentence-transformers--all-MiniLM-L6-v2" / "blobs"
    deadline = time.monotonic() + 60
    while not any(part.stat().st_size >= WRITTEN for part in blobs.glob("*.incomplete")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    server.process.kill()
    server.process.wait()
    whole = [path for path in blobs.iterdir() if path.suffix != ".incomplete"]
    (left,) = blobs.glob("*.incomplete")
    assert whole
    os.utime(left, (1, 1))  # as after a while
    hub.held.set()
    hub.asked.clear()

    server = fetching().wait()
    assert embeds(server)
    assert [Path(path).name for path in hub.downloads()] == ["model.safetensors"]
    assert list(blobs.glob("*.incomplete")) == []


def test_a_file_that_is_lost_from_the_cache_is_fetched_again(fetching, hub, cache):
    fetching().wait().stop()
    (weights,) = cache.rglob("model.safetensors")
    weights.resolve().unlink()
    hub.asked.clear()
    assert embeds(fetching(LLM_MODEL_REVISION=hub.commit).wait())
    assert [Path(path).name for path in hub.downloads()] == ["model.safetensors"]


def test_a_gated_model_is_opened_by_a_token(fetching):
    server = fetching(LLM_MODEL_ID=GATED, LLM_SERVED_NAME=MINILM, HF_TOKEN=TOKEN).wait()
    assert embeds(server)
    assert TOKEN not in server.stderr()


# Everything is read-only but the cache; the user has another number than its owner, and no name.
CONFINED = """
mount --make-rprivate /
mount --bind "$1" "$1"
mount -o remount,bind,ro /
shift
exec unshare --user --map-user=54321 --map-group=54321 "$@"
"""


def test_any_user_with_nothing_but_the_cache_to_write_to(hub, cache):
    """`check` does what the server does when it starts."""
    confined = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-ec", CONFINED, "sh"]
    done = subprocess.run(
        [*confined, str(cache), sys.executable, "-m", "llm_inference", "check"],
        env={
            "PYTHONPATH": str(Path(__file__).resolve().parents[2] / "inference"),
            "PATH": "/usr/bin:/bin:/usr/sbin:/sbin",
            "HOME": "/nonexistent",
            "LLM_MODEL_SOURCE": "hub",
            "LLM_MODEL_ID": MINILM,
            "LLM_HUB_CACHE_DIR": str(cache),
            "HF_ENDPOINT": hub.url,
        },
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"]["revision"] == hub.commit
    assert hub.downloads()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"LLM_MODEL_ID": "org/none"}, "there is no model org/none"),
        ({"LLM_MODEL_ID": "a/b/c"}, "a/b/c is not the id of a model"),
        ({"LLM_MODEL_REVISION": "v9"}, f"{MINILM} has no revision v9"),
        ({"LLM_MODEL_ID": GATED}, "is gated: set HF_TOKEN"),
        ({"LLM_MODEL_ID": GATED, "HF_TOKEN": "hf_a_wrong_one"}, "is gated: set HF_TOKEN"),
        ({"LLM_MODEL_ID": GATED, "HF_TOKEN": "hf_bäd"}, "characters that no token has"),
        ({"LLM_MODEL_ID": PICKLED}, "pickled weights only (pytorch_model.bin)"),
        ({"HF_ENDPOINT": "http://user:secret@127.0.0.1:9"}, "the hub does not answer"),
        ({"LLM_HUB_CACHE_DIR": "/proc/cache"}, "/proc/cache cannot be written to"),
    ],
)
def test_what_cannot_be_had_is_exit_3_and_one_sentence(fetching, hub, settings, reason):
    server = fetching(**settings)
    assert server.exit_code(60) == 3
    last = server.stderr().rstrip().splitlines()[-1]
    assert reason in last
    model, revision = (
        settings.get("LLM_MODEL_ID", MINILM),
        settings.get("LLM_MODEL_REVISION", "main"),
    )
    endpoint = settings.get("HF_ENDPOINT", hub.url).replace("user:secret@", "")
    assert last.startswith(f"cannot fetch {model} at {revision} from {endpoint}: ")
    assert "hf_" not in server.stderr()
    assert "secret@" not in server.stderr()
    assert "Traceback" not in server.stderr()


def test_a_model_that_is_larger_than_the_disk_is_not_begun(fetching, hub, monkeypatch):
    blob = mirror._blob

    def huge(file):
        found = blob(file)
        return found | {"size": 1 << 60} if file.name == "model.safetensors" else found

    monkeypatch.setattr(mirror, "_blob", huge)
    server = fetching()
    assert server.exit_code(60) == 3
    assert "no space is left for it: 1152921504" in server.stderr().splitlines()[-1]
    assert not any("model.safetensors" in path for path in hub.downloads())


def test_weights_that_are_not_what_the_hub_says_are_not_served(fetching, hub, cache, monkeypatch):
    copy = mirror._copy

    def changed(source, target, length):
        if length > 10_000_000:
            target.write(b"\0" * length)
            return
        copy(source, target, length)

    monkeypatch.setattr(mirror, "_copy", changed)
    server = fetching()
    assert server.exit_code(60) == 3
    assert "hashes differ" in server.stderr().splitlines()[-1]
    monkeypatch.setattr(mirror, "_copy", copy)
    assert embeds(fetching().wait())


def test_sigterm_ends_a_download(fetching, hub):
    hub.held.clear()
    server = fetching()
    server.wait_for_http()
    deadline = time.monotonic() + 30
    while server.client.get("/startupz").json()["phase"] != "downloading":
        assert time.monotonic() < deadline
    server.terminate()
    assert server.exit_code(15) == 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"LLM_MODEL_SOURCE": "hub"}, "LLM_MODEL_SOURCE=hub needs LLM_MODEL_ID"),
        ({"LLM_HUB_CACHE_DIR": "/cache"}, "LLM_HUB_CACHE_DIR needs LLM_MODEL_SOURCE=hub"),
        ({"LLM_MODEL_SOURCE": "s3"}, "LLM_MODEL_SOURCE='s3'"),
    ],
)
def test_settings_that_do_not_go_together_are_exit_2(start, settings, words):
    server = start(**settings)
    assert server.exit_code(30) == 2
    (line,) = server.stderr().splitlines()
    assert words in line
