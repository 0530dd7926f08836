"""Fetches one model at one revision from the hub that ``HF_ENDPOINT`` names.

Knows the hub's client and its errors; which files make a model is `selection`'s to say.
"""

import os
import shutil
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import ModelInfo

from llm_preload import PreloadError, manifest, selection


def fetch(model_id: str, revision: str, directory: Path, scratch: Path) -> str:
    """Fetch a model into `directory`; return the revision that `revision` resolved to.

    `scratch` keeps the files of a download that was interrupted: the next build fetches the rest.

    Raises:
        PreloadError: The hub, its answer or a file's hash is not as it has to be.
        selection.SelectionError: The repository holds no safetensors.
    """
    try:
        info = HfApi().model_info(model_id, revision=revision, files_metadata=True)
        if info.sha is None:
            raise PreloadError(f"the hub names no revision for {model_id} at {revision}")
        folder = _download(info, scratch / info.sha)
    except GatedRepoError:
        hint = "give a token that may read it as the secret hf_token"
        raise PreloadError(f"{model_id} is gated: {hint}") from None
    except RevisionNotFoundError:
        raise PreloadError(f"{model_id} has no revision {revision}") from None
    except RepositoryNotFoundError:
        hint = "if it is private, give a token as the secret hf_token"
        raise PreloadError(f"there is no model {model_id} on the hub; {hint}") from None
    except (HfHubHTTPError, OSError) as error:
        hub = os.environ.get("HF_ENDPOINT", "the hub")
        raise PreloadError(f"cannot fetch {model_id} from {hub}: {error}") from error
    directory.mkdir(parents=True, exist_ok=True)
    shutil.copytree(folder, directory, dirs_exist_ok=True)
    shutil.rmtree(folder)
    return info.sha


def _download(info: ModelInfo, folder: Path) -> Path:
    """Download what `selection` chooses, compare the hashes that the hub states."""
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or []}
    repository = f"{info.id} at {info.sha}"
    index = None
    if selection.INDEX in siblings:
        _snapshot(info, [selection.INDEX], folder)
        index = (folder / selection.INDEX).read_text()
    names = selection.weights(repository, siblings, index)
    names += selection.supporting(siblings)
    _snapshot(info, names, folder)
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    for name in names:
        stated = siblings[name].lfs
        if stated is not None and manifest.sha256(folder / name) != stated.sha256:
            (folder / name).unlink()
            raise PreloadError(f"{name} of {repository} is not what the hub says: hashes differ")
    return folder


def _snapshot(info: ModelInfo, names: list[str], folder: Path) -> None:
    snapshot_download(info.id, revision=info.sha, allow_patterns=names, local_dir=folder)
