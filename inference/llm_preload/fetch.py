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


def fetch(model_id: str, revision: str, directory: Path, scratch: Path, *, file: str = "") -> str:
    """Fetch a model into `directory`; return the commit that `revision` resolved to.

    `file` names a GGUF file to take in place of safetensors. `scratch` keeps the files of a
    download that was interrupted: the next build fetches the rest.

    Raises:
        PreloadError: The hub, its answer or a file's hash is not as it has to be.
    """
    try:
        listing = ask(model_id, revision, how_to_give_a_token=_HOW)
        folder = scratch / listing.commit
        names = _download(listing, folder, file)
    except HubError as error:
        raise PreloadError(str(error)) from error
    for name in names:  # not all that is there: an interrupted download may have been of others
        target = directory / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / name, target)
    shutil.rmtree(folder)
    return listing.commit


def _download(listing: Listing, folder: Path, file: str) -> list[str]:
    """Download what `selection` chooses, compare the hashes that the hub states."""
    names = _names(listing, folder, file)
    _snapshot(listing, names, folder)
    verify(listing, names, folder)
    return names


def _names(listing: Listing, folder: Path, file: str) -> list[str]:
    if file:
        return selection.gguf(listing.name, listing.sizes, file)
    index = None
    if selection.INDEX in listing.sizes:
        _snapshot(listing, [selection.INDEX], folder)
        index = (folder / selection.INDEX).read_text()
    try:
        names = selection.weights(listing.name, listing.sizes, index)
    except HubError as error:
        if any(name.endswith(".gguf") for name in listing.sizes):
            raise HubError(f"{error}; MODEL_FILE takes the name of a GGUF file") from None
        raise
    return names + selection.supporting(listing.sizes)


def _snapshot(listing: Listing, names: list[str], folder: Path) -> None:
    with one_sentence(listing.model_id, listing.commit, how_to_give_a_token=_HOW):
        snapshot_download(
            listing.model_id, revision=listing.commit, allow_patterns=names, local_dir=folder
        )
