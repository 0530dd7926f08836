"""Images as containerd holds them, and containers of them."""

import contextlib
import dataclasses
import functools
import json
import os
import subprocess
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from dev.cluster import images, paths, tools
from dev.images import builder, catalog, sources

CTR = (str(tools.path("ctr")), "-a", str(paths.CONTAINERD_SOCKET), "-n", images.NAMESPACE)
# What a pod of the operator gets: nothing to write to but /tmp.
POD = ("--read-only", "--mount", "type=tmpfs,dst=/tmp,options=mode=1777")


# Of each path: mode, inode, device, links, user, group, size and times, as os.stat_result has them.
LIST = """
import json, os
found, waiting = {}, ["/"]
while waiting:
    with os.scandir(waiting.pop()) as entries:
        for entry in entries:
            if entry.path not in ("/proc", "/sys", "/dev", "/tmp"):
                found[entry.path] = tuple(entry.stat(follow_symlinks=False))
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
print(json.dumps(found))
"""


@dataclasses.dataclass
class Built:
    """An image in containerd."""

    reference: str

    def blob(self, digest: str) -> bytes:
        return subprocess.run(
            [*CTR, "content", "get", digest], capture_output=True, check=True
        ).stdout

    @property
    def manifest(self) -> dict[str, Any]:
        target = images.ctr("images", "list", f"name=={self.reference}").splitlines()[1].split()[2]
        found = json.loads(self.blob(target))
        if "manifests" in found:
            found = json.loads(self.blob(found["manifests"][0]["digest"]))
        return found

    @property
    def config(self) -> dict[str, Any]:
        return json.loads(self.blob(self.manifest["config"]["digest"]))

    def run(self, *command: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        """Run a command in a container without a network, as a pod's container runs."""
        name = f"test-{uuid.uuid4().hex[:12]}"
        return subprocess.run(
            [*CTR, "run", "--rm", *POD, *options, self.reference, name, *command],
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )

    @functools.cached_property
    def files(self) -> dict[str, os.stat_result]:
        """Every file and folder that the image holds: path → what the system says of it."""
        found = json.loads(self.python(LIST, options=("--user", "0:0")))
        return {path: os.stat_result(values) for path, values in found.items()}

    def python(self, code: str, **kwargs: Any) -> str:
        done = self.run("python", "-c", code, **kwargs)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    @property
    def layers(self) -> list[int]:
        """The bytes of each layer, unpacked."""
        return [layer["size"] for layer in self.manifest["layers"]]


@dataclasses.dataclass(frozen=True)
class Container:
    """A running container."""

    name: str
    process: subprocess.Popen[str]

    def execute(self, *command: str) -> int:
        exec_id = uuid.uuid4().hex[:12]
        return subprocess.run(
            [*CTR, "task", "exec", "--exec-id", exec_id, self.name, *command],
            capture_output=True,
            timeout=60,
            check=False,
        ).returncode

    def stop(self) -> tuple[int, str]:
        """Send SIGTERM; return the exit code and what it wrote to stderr."""
        subprocess.run([*CTR, "task", "kill", "-s", "SIGTERM", self.name], check=True)
        _, errors = self.process.communicate(timeout=60)
        return self.process.returncode, errors


@contextlib.contextmanager
def running(image: Built, *options: str):
    """Run an image's own entry point for as long as the block lasts."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    with subprocess.Popen(
        [*CTR, "run", "--rm", *POD, *options, image.reference, name],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield Container(name, process)
        finally:
            # More than once: it may not have been started yet.
            while process.poll() is None:
                subprocess.run([*CTR, "task", "kill", "-s", "SIGKILL", name], check=False)
                time.sleep(0.5)


@pytest.fixture
def run_container():
    return running


@functools.cache
def _built(name: str) -> Built:
    return Built(catalog.named(name).reference)


@pytest.fixture(scope="session")
def built():
    """Images by the names of the catalogue."""
    return _built


@pytest.fixture(params=[image.name for image in catalog.ALL])
def image(request):
    return _built(request.param)


@pytest.fixture(params=[i.name for i in catalog.ALL if i.target in ("cpu", "gpu")])
def server(request):
    return _built(request.param)


@pytest.fixture
def cpu():
    return _built("smollm2-cpu")


@pytest.fixture
def gpu():
    return _built("smollm2-gpu")


@pytest.fixture
def operator():
    return _built("operator")


@pytest.fixture
def weights():
    return _built("smollm2-weights")


@pytest.fixture(scope="session")
def opened():
    """The sources that the images were built from, so that their stages are found in the cache."""
    with sources.opened([catalog.named("smollm2-cpu")]) as found:
        yield found


@pytest.fixture
def build(opened, tmp_path):
    """Build a target with other arguments; returns the outcome and the folder of its OCI layout.

    `model` is the directory of a model, in place of the hub; `anew` are stages that are not to come
    out of the cache; `options` go to buildctl, and `layers` to what writes the image.
    """

    def run(
        target: str,
        arguments: dict[str, str],
        secrets: tuple[str, ...] = (),
        *,
        model: Path | None = None,
        anew: tuple[str, ...] = (),
        options: tuple[str, ...] = (),
        layers: str = "compression=uncompressed",
    ):
        layout = tmp_path / f"layout-{uuid.uuid4().hex[:8]}"
        dockerfile = catalog.OPERATOR.dockerfile if target == "operator" else "Dockerfile.inference"
        image = catalog.Image("test", "localhost/test", dockerfile, target)
        given = dataclasses.replace(
            opened,
            arguments=opened.arguments | arguments,
            secrets=[*opened.secrets, *secrets],
            repositories={},
            directories={} if model is None else {"model": model},
        )
        output = f"type=oci,tar=false,dest={layout},{layers}"
        uncached = [f"--opt=no-cache={','.join(anew)}"] if anew else []
        done = subprocess.run(
            [*builder.command(image, given, output), *uncached, *options],
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        return done, Path(layout)

    return run
