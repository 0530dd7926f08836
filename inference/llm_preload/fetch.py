"""Fetches one model at one revision from the hub that ``HF_ENDPOINT`` names.

Knows where the files go; which files make a model, and what the hub may answer, is `llm_hub`'s
to say.
"""

import shutil
from pathlib import Path

from huggingface_hub import snapshot_download

from llm_hub import HubError, selection
from llm_hub.listing import Listing, ask, one_sentence, verify
from llm_preload import PreloadError

_HOW = "give a token that may read it as the secret hf_token"


def fetch(model_id: str, revision: str, directory: Path, scratch: Path) -> str:
    """Fetch a model into `directory`; return the commit that `revision` resolved to.

    `scratch` keeps the files of a download that was interrupted: the next build fetches the rest.

    Raises:
        PreloadError: The hub, its answer or a file's hash is not as it has to be.
    """
    try:
        listing = ask(model_id, revision, how_to_give_a_token=_HOW)
        folder = _download(listing, scratch / listing.commit)
    except HubError as error:
        raise PreloadError(str(error)) from error
    directory.mkdir(parents=True, exist_ok=True)
    shutil.copytree(folder, directory, dirs_exist_ok=True)
    shutil.rmtree(folder)
    return listing.commit


def _download(listing: Listing, folder: Path) -> Path:
    """Download what `selection` chooses, compare the hashes that the hub states."""
    index = None
    if selection.INDEX in listing.sizes:
        _snapshot(listing, [selection.INDEX], folder)
        index = (folder / selection.INDEX).read_text()
    names = selection.weights(listing.name, listing.sizes, index)
    names += selection.supporting(listing.sizes)
    _snapshot(listing, names, folder)
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    verify(listing, names, folder)
    return folder


def _snapshot(listing: Listing, names: list[str], folder: Path) -> None:
    with one_sentence(listing.model_id, listing.commit, how_to_give_a_token=_HOW):
        snapshot_download(
            listing.model_id, revision=listing.commit, allow_patterns=names, local_dir=folder
        )
