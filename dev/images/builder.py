"""Runs one build with BuildKit; the image lies in containerd afterwards, unpacked.

Knows `buildctl` and what it prints; does not know what is built or where sources come from.
"""

import re
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

from dev.cluster import paths, tools
from dev.cluster.commands import ClusterError
from dev.cluster.progress import say
from dev.images.catalog import Image
from dev.images.sources import Sources
from dev.stand_ins import python_image

TOLD_SECONDS = 3.0
TAIL_LINES = 40
TITLE_WIDTH = 88


def build(image: Image, sources: Sources) -> None:
    """Build one image into containerd.

    Raises:
        ClusterError: The build failed; holds the end of its log and where the log is.
    """
    paths.LOGS.mkdir(parents=True, exist_ok=True)
    log = paths.LOGS / f"image-{image.name}.log"
    began = time.monotonic()
    say(f"{image.reference}: building (log: {log.relative_to(paths.CHECKOUT)})")
    with log.open("w", buffering=1) as written:
        process = subprocess.Popen(
            command(image, sources), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        try:
            _follow(process.stdout or (), written)
        except BaseException:
            process.terminate()
            raise
        finally:
            process.wait()
    if process.returncode:
        tail = "\n".join(log.read_text().splitlines()[-TAIL_LINES:])
        raise ClusterError(f"{image.reference} was not built; the end of {log}:\n{tail}")
    say(f"{image.reference}: {time.monotonic() - began:.1f} s")


def command(
    image: Image,
    sources: Sources,
    output: str | None = None,
    *,
    context: Path = paths.CHECKOUT,
    progress: str = "plain",
) -> list[str]:
    """Return the command line that builds `image`.

    Args:
        image: what is built.
        sources: where its parts come from.
        output: BuildKit's; into containerd when None.
        context: the folder that is built from, with the Dockerfile in it.
        progress: how BuildKit tells what it does.
    """
    options = {"filename": image.dockerfile, "target": image.target}
    for name, value in sources.for_image(image).items():
        options[f"build-arg:{name}"] = value
    layouts = []
    for number, (name, layout) in enumerate(sources.layouts.items()):
        options[f"context:{name}"] = f"oci-layout://l{number}@{python_image.digest(layout)}"
        layouts.append(f"--oci-layout=l{number}={layout}")
    options |= {f"context:{name}": f"local:{name}" for name in sources.directories}
    return [
        str(tools.path("buildctl")),
        f"--addr=unix://{paths.BUILDKIT_SOCKET}",
        *("build", f"--progress={progress}", "--frontend=dockerfile.v0"),
        *(f"--local={name}={context}" for name in ("context", "dockerfile")),
        *(f"--local={name}={directory}" for name, directory in sources.directories.items()),
        *(f"--opt={name}={value}" for name, value in options.items()),
        *(f"--secret={secret}" for secret in sources.secrets),
        *layouts,
        f"--output={output or _into_containerd(image)}",
    ]


def _into_containerd(image: Image) -> str:
    # The kubelet runs it from here: compressing would only cost time.
    return f"type=image,name={image.reference},unpack=true,compression=uncompressed"


def _follow(lines: Iterable[str], log: TextIO) -> None:
    """Write every line to the log; tell of the steps that took a while."""
    titles: dict[str, str] = {}
    for line in lines:
        log.write(line)
        number, _, rest = line.rstrip().partition(" ")
        if rest.startswith(("[", "exporting")):
            titles.setdefault(number, rest)
        elif (done := re.fullmatch(r"DONE ([\d.]+)s", rest)) and float(done[1]) >= TOLD_SECONDS:
            say(f"  {titles.get(number, number)[:TITLE_WIDTH]} … {done[1]} s")
