"""Images as containerd holds them, and containers of them."""

import contextlib
import dataclasses
import json
import subprocess
import uuid
from pathlib import Path
from typing import Any

import pytest

from dev.cluster import images, paths, tools
from dev.images import builder, catalog, sources

CTR = (str(tools.path("ctr")), "-a", str(paths.CONTAINERD_SOCKET), "-n", images.NAMESPACE)
# What a pod of the operator gets: nothing to write to but /tmp.
POD = ("--read-only", "--mount", "type=tmpfs,dst=/tmp,options=mode=1777")


@dataclasses.dataclass(frozen=True)
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

    def python(self, code: str, **kwargs: Any) -> str:
        done = self.run("python", "-c", code, **kwargs)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def shell(self, script: str, **kwargs: Any) -> str:
        done = self.run("sh", "-c", script, **kwargs)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


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
            if process.poll() is None:
                subprocess.run([*CTR, "task", "kill", "-s", "SIGKILL", name], check=False)


@pytest.fixture
def run_container():
    return running


@pytest.fixture(params=[image.name for image in catalog.ALL])
def image(request):
    return Built(catalog.named(request.param).reference)


@pytest.fixture(params=[i.name for i in catalog.ALL if i.target in ("cpu", "gpu")])
def server(request):
    return Built(catalog.named(request.param).reference)


@pytest.fixture
def cpu():
    return Built(catalog.named("smollm2-cpu").reference)


@pytest.fixture
def gpu():
    return Built(catalog.named("smollm2-gpu").reference)


@pytest.fixture
def operator():
    return Built(catalog.OPERATOR.reference)


@pytest.fixture
def weights():
    return Built(catalog.named("smollm2-weights").reference)


@pytest.fixture(scope="session")
def opened():
    """The sources that the images were built from, so that their stages are found in the cache."""
    with sources.opened([catalog.named("smollm2-cpu")]) as found:
        yield found


@pytest.fixture
def build(opened, tmp_path):
    """Build a target with other arguments; returns the outcome and the folder of its OCI layout.

    `model` is the directory of a model, in place of the hub; `anew` are stages that are not to come
    out of the cache.
    """

    def run(
        target: str,
        arguments: dict[str, str],
        secrets: tuple[str, ...] = (),
        model: Path | None = None,
        anew: tuple[str, ...] = (),
    ):
        layout = tmp_path / f"layout-{uuid.uuid4().hex[:8]}"
        image = catalog.Image("test", "localhost/test", "Dockerfile.inference", target)
        given = dataclasses.replace(
            opened,
            arguments=opened.arguments | arguments,
            secrets=[*opened.secrets, *secrets],
            repositories={},
            directories={} if model is None else {"model": model},
        )
        output = f"type=oci,tar=false,dest={layout},compression=uncompressed"
        options = [f"--opt=no-cache={','.join(anew)}"] if anew else []
        done = subprocess.run(
            [*builder.command(image, given, output), *options],
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        return done, Path(layout)

    return run
