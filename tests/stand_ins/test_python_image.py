"""The base image is Debian with the Python that ``python:3.13-slim`` has."""

import hashlib
import json
import tarfile

import pytest

from dev.stand_ins import python_image
from dev.stand_ins.reach import Real, is_reachable

pytestmark = pytest.mark.skipif(
    is_reachable(Real.PYTHON_IMAGE), reason="the real base image is used here"
)


@pytest.fixture(scope="module")
def layout():
    return python_image.ensure()


def blob(layout, descriptor):
    algorithm, digest = descriptor["digest"].split(":")
    path = layout / "blobs" / algorithm / digest
    assert path.stat().st_size == descriptor["size"]
    with path.open("rb") as content:
        assert hashlib.file_digest(content, algorithm).hexdigest() == digest
    return path


@pytest.fixture(scope="module")
def manifest(layout):
    (entry,) = json.loads((layout / "index.json").read_text())["manifests"]
    assert entry["digest"] == python_image.digest(layout)
    return json.loads(blob(layout, entry).read_text())


@pytest.fixture(scope="module")
def files(layout, manifest):
    (layer,) = manifest["layers"]
    with tarfile.open(blob(layout, layer)) as archive:
        yield {member.name.removeprefix("."): member for member in archive}


def test_the_configuration_is_like_the_real_ones(layout, manifest):
    config = json.loads(blob(layout, manifest["config"]).read_text())
    environment = dict(pair.split("=", 1) for pair in config["config"]["Env"])
    assert environment["PATH"].startswith("/usr/local/bin:")
    assert environment["PYTHON_VERSION"].startswith("3.13.")
    assert config["rootfs"]["diff_ids"] == [manifest["layers"][0]["digest"]]


@pytest.mark.parametrize("name", ["python", "python3", "python3.13"])
def test_python_is_where_the_real_image_has_it(files, name):
    assert files[f"/usr/local/bin/{name}"].linkname == "/usr/bin/python3"
    assert "/usr/lib/python3.13/ensurepip/__init__.py" in files


def test_it_is_slim_and_carries_nothing_of_this_machine(files):
    assert sum(member.size for member in files.values()) < 140_000_000
    held = [name for name in files if name.startswith(("/root/", "/var/cache/", "/var/log/"))]
    assert [name for name in held if files[name].isfile() and "/root/." not in name] == []
    assert not [name for name in files if name.startswith("/usr/local/share/ca-certificates/")]
    assert not [name for name in files if name.startswith(("/usr/bin/gcc", "/usr/bin/cc"))]
