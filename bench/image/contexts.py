"""A copy of what images are built from, in which code can be changed: never in the checkout.

Knows which files a build sees, and how to make a stage tell what an image holds; does not know how
a build is run.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from bench.image import HERE, ROOT
from bench.image.variants import Variant

CODE = "inference/llm_inference/server.py"
"""The file that a change of the code is made in."""
CENSUS = HERE / "census.py"
CENSUS_STAGE = "bench-figures"
CENSUS_FILE = "figures.json"
_IGNORE = ".dockerignore"


def copy(folder: Path, variants: Iterable[Variant]) -> None:
    """Copy into `folder` what the checkout gives to builds, and the Dockerfiles.

    A file's time is no part of what BuildKit compares, so that a copy is built from the same cache.
    """
    ignored = (ROOT / _IGNORE).read_text()
    left_out = shutil.ignore_patterns(*hidden(ignored))
    for name in shown(ignored):
        shutil.copytree(ROOT / name, folder / name, ignore=left_out)
    (folder / _IGNORE).write_text(ignored)
    for variant in variants:
        text = variant.dockerfile.read_text()
        (folder / variant.dockerfile.name).write_text(text)


def shown(ignored: str) -> list[str]:
    """The folders that a .dockerignore lets a build see, which leaves all else out."""
    return [line[1:] for line in ignored.splitlines() if line.startswith("!")]


def hidden(ignored: str) -> list[str]:
    """The names that a .dockerignore leaves out of those folders, wherever they are."""
    return [line.removeprefix("**/") for line in ignored.splitlines() if line.startswith("**/")]


def change_code(folder: Path, comment: str) -> None:
    """Change the server's code in a copy by one line that does nothing."""
    file = folder / CODE
    file.write_text(f"{file.read_text()}\n# {comment}\n")


def with_census(dockerfile: str, stage: str, *, python: str, path: str) -> str:
    """A Dockerfile with two stages more: one counts what `stage` holds, one has the figures alone.

    The script is in the Dockerfile, not in the context: a context with one file more would be
    another one to a Dockerfile that copies all of it.

    Args:
        dockerfile: the text of one that has both stages.
        stage: whose files are counted; nothing of it is run.
        python: a stage with Python and a shell.
        path: the folders that the stage's own PATH names.
    """
    script = CENSUS.read_text()
    return (
        f"{dockerfile}\n"
        f"FROM {python} AS bench-census\n"
        "USER 0\n"
        f"RUN --network=none --mount=type=bind,from={stage},target=/bench-root "
        f"python - /bench-root '{path}' <<'CENSUS' >/{CENSUS_FILE}\n"
        f"{script}"
        "CENSUS\n"
        f"FROM scratch AS {CENSUS_STAGE}\n"
        f"COPY --from=bench-census /{CENSUS_FILE} /\n"
    )
