"""Downloads a model directory from the hub, before there is an environment with the hub's client.

For development and tests on the host: image builds fetch with the client itself. Knows the two
routes of the hub that it takes; does not know what to do where the hub is not reached.
"""

import json
import os
import shutil
import urllib.error
import urllib.request
from fnmatch import fnmatch
from http.client import HTTPResponse
from pathlib import Path
from urllib.parse import quote

from dev.stand_ins.packages import PackageError

DEFAULT_ENDPOINT = "https://huggingface.co"
WANTED = ("*.json", "*.txt", "*.jinja", "model*.safetensors")
UNWANTED = ("onnx/*", "openvino/*")
TIMEOUT_SECONDS = 60.0


def download(model_id: str, directory: Path) -> None:
    """Fetch the files that make up `model_id` at its main revision.

    Raises:
        PackageError: The hub refuses or breaks off; names the file.
    """
    endpoint = os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT
    with _open(f"{endpoint}/api/models/{model_id}/revision/main") as answer:
        info = json.load(answer)
    names = [sibling["rfilename"] for sibling in info["siblings"]]
    for name in (name for name in names if _matches(name, WANTED) and not _matches(name, UNWANTED)):
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        address = f"{endpoint}/{model_id}/resolve/{info['sha']}/{quote(name)}"
        with _open(address) as answer, path.open("wb") as target:
            try:
                shutil.copyfileobj(answer, target, 1 << 20)
            except OSError as error:
                raise PackageError(f"{address} broke off: {error}") from error
            if answer.length:
                raise PackageError(f"{address} broke off, {answer.length} bytes are missing")


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _open(address: str) -> HTTPResponse:
    headers = {"User-Agent": "llm-operator-dev"}
    if token := os.environ.get("HF_TOKEN"):
        headers["Authorization"] = f"Bearer {token}"
    request = urllib.request.Request(address, headers=headers)  # noqa: S310 - the hub's own
    try:
        answer: HTTPResponse = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)  # noqa: S310
    except urllib.error.HTTPError as error:
        raise PackageError(f"the hub refuses {address}: {error.code} {error.reason}") from None
    except OSError as error:
        raise PackageError(f"cannot fetch {address}: {error}") from error
    return answer
