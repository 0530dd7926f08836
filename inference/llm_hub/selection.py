"""Which files of a hub repository a served model consists of.

Pure: names in, names out. Weights are safetensors or nothing, because a pickle can run code when
it is loaded.
"""

import json
from collections.abc import Collection
from fnmatch import fnmatch

from llm_hub import HubError

INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"

_WANTED = (
    "*.json",
    "*.jinja",
    "*.txt",  # vocabularies and merges
    "*.model",  # sentencepiece
    "LICENSE*",
    "NOTICE*",
    # modules of a sentence-transformers pipeline, such as 1_Pooling
    "[0-9]_*/*.json",
    "[0-9]_*/model.safetensors",
)
_UNWANTED = ("*.index.json", "training_args.json")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")


def supporting(names: Collection[str]) -> list[str]:
    """Return everything but the weights: configuration, tokenizer, chat template, licence."""
    return sorted(n for n in names if _matches(n, _WANTED) and not _matches(n, _UNWANTED))


def weights(repository: str, names: Collection[str], index: str | None) -> list[str]:
    """Return the names of the weight files; `index` is the text of the shard index, if any.

    Raises:
        HubError: There are no safetensors, or shards that the index lists are missing.
    """
    if index is not None:
        shards = sorted(set(json.loads(index)["weight_map"].values()))
        if missing := sorted(set(shards) - set(names)):
            raise HubError(f"{repository} lacks the weights file {missing[0]}")
        return [INDEX, *shards]
    if WEIGHTS in names:
        return [WEIGHTS]
    if pickles := sorted(name for name in names if _matches(name, _PICKLES)):
        raise HubError(
            f"{repository} holds pickled weights only ({pickles[0]}): loading them can run code, "
            "so only safetensors are taken; name a revision or a model that has them"
        )
    others = sorted(name for name in names if name.endswith((".safetensors", ".gguf")))
    held = f", only {', '.join(others[:3])}" if others else ""
    raise HubError(f"{repository} holds no {WEIGHTS}{held}")


def _matches(name: str, patterns: Collection[str]) -> bool:
    # fnmatch lets * cross folders: a pattern means only the folder that it names.
    depth = name.count("/")
    return any(fnmatch(name, p) and p.count("/") == depth for p in patterns)
