"""Which of the real things this machine can reach.

Each is tried once a run, with a short time-out. Knows addresses, and that a stand-in is used only
for what gives no answer; does not know what stands in.
"""

import concurrent.futures
import enum
import functools
import os
import urllib.error
import urllib.request

from dev.cluster.progress import say

TIMEOUT_SECONDS = 3.0


class Real(enum.Enum):
    """A real thing: what it is called, the address that proves it, the variable that replaces it.

    A machine with its own mirror names it in the variable; then nothing is tried or stood in for.
    """

    PYTHON_IMAGE = ("the python base image", "https://registry-1.docker.io/v2/", "BASE_IMAGE")
    TORCH_CPU = (
        "PyTorch's CPU index",
        "https://download.pytorch.org/whl/cpu/torch/",
        "TORCH_CPU_INDEX",
    )
    HUB = ("the model hub", "https://huggingface.co/api/models?limit=1", "HF_ENDPOINT")

    def __init__(self, title: str, address: str, variable: str) -> None:
        self.title = title
        self.address = address
        self.variable = variable


def is_reachable(real: Real) -> bool:
    """Whether `real`, or what the environment names in its place, is to be used."""
    return bool(os.environ.get(real.variable)) or _answers()[real]


@functools.cache
def _answers() -> dict[Real, bool]:
    """Try all of them at once; say which do not answer."""
    with concurrent.futures.ThreadPoolExecutor(len(Real)) as pool:
        answers = dict(zip(Real, pool.map(_answers_at, (r.address for r in Real)), strict=True))
    for real, answered in answers.items():
        if not answered:
            say(f"{real.title} cannot be reached: a stand-in takes its place")
    return answers


def _answers_at(address: str) -> bool:
    request = urllib.request.Request(address, method="HEAD")  # noqa: S310 (constants above)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS):  # noqa: S310
            return True
    except urllib.error.HTTPError as error:
        return error.code == 401  # a registry that asks for a token is there  # noqa: PLR2004
    except OSError:
        return False
