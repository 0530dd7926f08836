"""Which files of a hub repository a served model consists of.

Pure: names in, names out. Weights are safetensors or nothing, because a pickle can run code when
it is loaded.
"""

import json
import re
from collections.abc import Collection
from fnmatch import fnmatch

from llm_hub import HubError

INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"

_TERMS = ("LICENSE*", "NOTICE*", "USE_POLICY*")
_WANTED = (
    "*.json",
    "*.jinja",
    "*.txt",  # vocabularies and merges
    "*.model",  # sentencepiece
    *_TERMS,
    # modules of a sentence-transformers pipeline, such as 1_Pooling
    "[0-9]_*/*.json",
    "[0-9]_*/model.safetensors",
)
# What training left behind, and weight files' lists of other formats.
_UNWANTED = (
    "*.index.json",
    "*_results.json",
    "data_config.json",
    "trainer_state.json",
    "training_args.json",
)
# A GGUF file holds its own configuration and tokenizer. What lies beside it comes before that.
_BESIDE_GGUF = (
    *_TERMS,
    "chat_template.jinja",
    "generation_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
_PART_OF_GGUF = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
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


def gguf(repository: str, names: Collection[str], name: str) -> list[str]:
    """Return the names that a model in the GGUF file `name` consists of, that file first.

    Raises:
        HubError: There is no such file, or it is not one that can be read alone.
    """
    if not name.endswith(".gguf"):
        raise HubError(f"{name} is no GGUF file: safetensors are found without being named")
    if name not in names:
        held = sorted(other for other in names if other.endswith(".gguf"))
        others = f", only {', '.join(held)}" if held else " and no other GGUF file"
        raise HubError(f"{repository} holds no {name}{others}")
    if _PART_OF_GGUF.search(name):
        raise HubError(f"{name} is one part of a model: only whole GGUF files can be read")
    return [name, *sorted(n for n in names if _matches(n, _BESIDE_GGUF))]


def _matches(name: str, patterns: Collection[str]) -> bool:
    # fnmatch lets * cross folders: a pattern means only the folder that it names.
    depth = name.count("/")
    return any(fnmatch(name, p) and p.count("/") == depth for p in patterns)
