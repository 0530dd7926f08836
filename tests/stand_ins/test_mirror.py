"""The unmodified client of the hub, and uv, take the mirror for the real thing."""

import hashlib
import http.client
import json
import os
import subprocess
import sys
import urllib.request

import pytest

from dev.stand_ins import hub as downloads
from dev.stand_ins import mirror, packages, repositories

GATED = "org/gated"
SIZE = 24_000_000
TOKEN = "hf_the_right_one"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for name in ("org/model", GATED):
        directory = root / name
        (directory / "1_Pooling").mkdir(parents=True)
        (directory / "model.safetensors").write_bytes(os.urandom(SIZE))
        (directory / "config.json").write_text('{"architectures": []}')
        (directory / "1_Pooling" / "config.json").write_text("{}")
        (directory / ".hidden").write_text("no")
    return root


@pytest.fixture(scope="module")
def hub(root, tmp_path_factory):
    wheel = tmp_path_factory.mktemp("wheels") / "torch-9.9+cpu-py3-none-any.whl"
    wheel.write_bytes(b"PK")
    found = repositories.read_all(root, {GATED: TOKEN})
    with mirror.serving(mirror.Mirror(found, [wheel], port=0)) as server:
        yield server


def client(hub, tmp_path, code, **environment):
    """Run `code` with the hub's client, in a process that knows HF_ENDPOINT and nothing else."""
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def download(repository, **options):
    call = ", ".join(f"{name}={value!r}" for name, value in options.items())
    return f"from huggingface_hub import *\nprint(snapshot_download({repository!r}, {call}))"


def hashes(directory):
    return {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.rglob("*")
        if path.is_file() and not path.relative_to(directory).parts[0].startswith(".")
    }


def test_a_snapshot_is_equal_and_names_its_revision(hub, root, tmp_path):
    done = client(hub, tmp_path, download("org/model"))
    assert done.returncode == 0, done.stderr
    snapshot = tmp_path / "home" / "hub" / "models--org--model" / "snapshots"
    revision = hub.repositories["org/model"].revision
    assert done.stdout.strip() == str(snapshot / revision)
    assert hashes(snapshot / revision) == hashes(root / "org/model")


def test_a_revision_can_be_pinned(hub, root, tmp_path):
    revision = hub.repositories["org/model"].revision
    code = download("org/model", revision=revision, local_dir=str(tmp_path / "copy"))
    assert client(hub, tmp_path, code).returncode == 0
    assert hashes(tmp_path / "copy") == hashes(root / "org/model")


def test_a_download_that_breaks_goes_on_where_it_was(hub, root, tmp_path, monkeypatch):
    asked = []
    copy, send = mirror._copy, mirror.Handler._send

    def remember(handler, path, headers):
        if handler.command == "GET" and path.name == "model.safetensors":
            asked.append(handler.headers.get("Range"))
        send(handler, path, headers)

    def break_once(source, target, length):
        if length == SIZE:
            copy(source, target, SIZE - 1_000_000)
            raise ConnectionResetError
        copy(source, target, length)

    monkeypatch.setattr(mirror.Handler, "_send", remember)
    monkeypatch.setattr(mirror, "_copy", break_once)
    done = client(hub, tmp_path, download("org/model", local_dir=str(tmp_path / "copy")))
    assert done.returncode == 0, done.stderr
    assert hashes(tmp_path / "copy") == hashes(root / "org/model")
    assert len(asked) == 2
    # The client keeps whole chunks of what it had.
    assert int(asked[1].removeprefix("bytes=").split("-")[0]) > SIZE / 2


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (download("org/none"), "RepositoryNotFoundError"),
        (download("org/model", revision="nightly"), "RevisionNotFoundError"),
        (
            "from huggingface_hub import *\nhf_hub_download('org/model', 'none.json')",
            "EntryNotFoundError",
        ),
        (download(GATED), "GatedRepoError"),
        (download(GATED, token="hf_a_wrong_one"), "GatedRepoError"),
    ],
)
def test_what_is_not_there_is_refused_as_the_hub_does(hub, tmp_path, code, error):
    done = client(hub, tmp_path, code)
    assert done.returncode == 1
    assert error in done.stderr


def test_the_right_token_opens_a_gated_repository(hub, root, tmp_path):
    code = download(GATED, local_dir=str(tmp_path / "copy"))
    done = client(hub, tmp_path, code, HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    assert hashes(tmp_path / "copy") == hashes(root / GATED)


def ask(hub, path, method="GET", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", hub.server_port)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer, body


def test_head_states_what_get_gives(hub):
    path = "/org/model/resolve/main/model.safetensors"
    head, nothing = ask(hub, path, "HEAD")
    answer, body = ask(hub, path)
    assert nothing == b""
    assert len(body) == int(head.headers["Content-Length"]) == int(head.headers["X-Linked-Size"])
    assert head.headers["ETag"] == f'"{hashlib.sha256(body).hexdigest()}"'
    assert head.headers["X-Repo-Commit"] == hub.repositories["org/model"].revision
    assert head.headers["ETag"] == answer.headers["ETag"]


@pytest.mark.parametrize(
    ("asked", "status", "part"),
    [
        ("bytes=0-9", 206, slice(10)),
        ("bytes=23999990-", 206, slice(SIZE - 10, None)),
        ("bytes=23999990-99999999", 206, slice(SIZE - 10, None)),
        ("bytes=24000000-", 416, slice(0)),
    ],
)
def test_ranges(hub, root, asked, status, part):
    answer, body = ask(hub, "/org/model/resolve/main/model.safetensors", Range=asked)
    assert answer.status == status
    whole = (root / "org/model/model.safetensors").read_bytes()
    assert body == whole[part]


@pytest.mark.parametrize(
    "path",
    ["/org/model/resolve/main/../../gated/config.json", "/org/model/resolve/main/.hidden", "/x"],
)
def test_nothing_else_is_served(hub, path):
    answer, body = ask(hub, path)
    assert answer.status == 404
    assert "error" in json.loads(body)


def test_the_wheel_index_is_one_that_uv_reads(hub):
    page = urllib.request.urlopen(f"{hub.url}/simple/torch/").read().decode()
    assert '<a href="/wheels/torch-9.9%2Bcpu-py3-none-any.whl">' in page
    command = [sys.executable, "-m", "uv", "pip", "install", "--dry-run", "--no-deps"]
    options = ["--default-index", f"{hub.url}/simple", "--no-cache", "torch==9.9+cpu"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    # It is found and fetched; that it is no wheel inside is all that is wrong with it.
    assert "torch" in done.stderr
    assert "not found" not in done.stderr.lower()


def test_development_downloads_without_the_client(hub, root, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    downloads.download("org/model", tmp_path / "copy")
    assert hashes(tmp_path / "copy") == hashes(root / "org/model")
    with pytest.raises(packages.PackageError, match=r"the hub refuses .*org/gated.*: 401"):
        downloads.download(GATED, tmp_path / "gated")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    downloads.download(GATED, tmp_path / "gated")
    assert hashes(tmp_path / "gated") == hashes(root / GATED)


def test_a_download_that_breaks_off_is_no_model(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    copy = mirror._copy
    monkeypatch.setattr(mirror, "_copy", lambda s, t, length: copy(s, t, min(length, 1_000_000)))
    monkeypatch.setattr(downloads, "TIMEOUT_SECONDS", 1.0)
    with pytest.raises(packages.PackageError, match=r"model\.safetensors broke off"):
        downloads.download("org/model", tmp_path / "copy")


def test_a_revision_changes_with_any_file_and_only_then(root):
    before = repositories.read("org/model", root / "org/model")
    assert repositories.read("org/model", root / "org/model").revision == before.revision
    config = root / "org/model/config.json"
    held = config.read_text()
    config.write_text("{}")
    changed = repositories.read("org/model", root / "org/model").revision
    config.write_text(held)
    assert changed != before.revision
    assert len(changed) == 40


def test_a_taken_port_is_said(hub):
    with pytest.raises(
        mirror.MirrorError, match=rf"port {hub.server_port} of 127\.0\.0\.1 is taken"
    ):
        mirror.Mirror({}, [], port=hub.server_port)
