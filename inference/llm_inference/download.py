"""The model from the hub, before it is loaded: imports the hub's client, so import this late.

Knows the settings and how their failure is told. How a download goes is `llm_hub`'s business.
"""

import os
from collections.abc import Callable
from pathlib import Path

from llm_inference.engine.directory import ModelLoadError
from llm_inference.settings import Settings

# The client reads these while it is imported. An image may be offline by default; who asks for the
# hub is not. Chunks beside the files would only fill the disk: files are downloaded once.
os.environ |= {"HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0"}
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_XET_CHUNK_CACHE_SIZE_BYTES", "0")

from huggingface_hub import constants

from llm_hub import HubError
from llm_hub.cache import ModelCache
from llm_hub.listing import endpoint

_MAIN = "main"


def fetch(settings: Settings, on_progress: Callable[[int, int], object]) -> tuple[Path, str]:
    """The directory of the model that `settings` name, and its commit; afterwards offline.

    Raises:
        ModelLoadError: it cannot be had; names the model, its revision and the hub.
    """
    model_id, revision = settings.model_id or "", settings.model_revision or _MAIN
    try:
        found = ModelCache(settings.hub_cache_dir, model_id, revision).fetch(on_progress)
    except HubError as error:
        raise ModelLoadError(
            f"cannot fetch {model_id} at {revision} from {endpoint()}: {error}"
        ) from error
    # What loads the model finds all of it in the directory.
    constants.HF_HUB_OFFLINE = True
    return found
