"""The model directory before anything is loaded from it: is it there, is it whole, is it right?

Knows the files of a HuggingFace model and the manifest an image build writes beside them. Knows
no torch. Everything wrong with a directory ends here in one sentence.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


class ModelLoadError(Exception):
    """The model cannot be served; the message is one sentence that says why."""


@dataclass(frozen=True, kw_only=True)
class ModelDirectory:
    """A checked model directory.

    Attributes:
        path: where it is.
        model_id: what is served, from the request or the manifest.
        revision: its revision, None if nobody says.
        config: parsed config.json.
        generates: whether its architecture continues text; otherwise it embeds.
    """

    path: Path
    model_id: str
    revision: str | None
    config: dict[str, Any]
    generates: bool


def inspect(
    path: Path,
    *,
    model_id: str | None = None,
    revision: str | None = None,
    task: str = "auto",
    has_manifest: bool = True,
) -> ModelDirectory:
    """Check the directory against what is asked of it.

    Without `has_manifest` a file of that name is the model's own and says nothing here.

    Raises:
        ModelLoadError: it is missing, incomplete, another model, or not for `task`.
    """
    if not path.is_dir():
        raise ModelLoadError(f"the model directory {path} does not exist")
    manifest = read_json(path / "manifest.json", required=False) if has_manifest else {}
    _check_manifest(manifest, model_id=model_id, revision=revision)
    config = read_json(path / "config.json", required=True)
    _check_weights(path)
    generates = any("ForCausalLM" in name for name in config.get("architectures") or [])
    generates = generates and not (path / "modules.json").is_file()
    if task == "generate" and not generates:
        raise ModelLoadError(
            f"LLM_TASK=generate, but the model in {path} is "
            f"{_architecture(config)}, which does not generate text"
        )
    return ModelDirectory(
        path=path,
        model_id=model_id or manifest.get("id") or config.get("_name_or_path") or path.name,
        revision=manifest.get("revision") or revision,
        config=config,
        generates=generates and task != "embed",
    )


def name_of(path: Path) -> str:
    """What the directory itself says it holds: the manifest's id, else its own name."""
    try:
        manifest = read_json(path / "manifest.json", required=False)
    except ModelLoadError:  # told when the model is loaded
        manifest = {}
    return str(manifest.get("id") or path.name)


def _architecture(config: dict[str, Any]) -> str:
    return ", ".join(config.get("architectures") or []) or str(config.get("model_type"))


def _check_manifest(
    manifest: dict[str, Any], *, model_id: str | None, revision: str | None
) -> None:
    held = manifest.get("id")
    if model_id and held and held != model_id:
        raise ModelLoadError(f"LLM_MODEL_ID is {model_id}, but the model directory holds {held}")
    held = manifest.get("revision")
    # A branch or tag is met by the commit that it was when the directory was made.
    if revision and held and revision not in (held, manifest.get("requested")):
        raise ModelLoadError(
            f"LLM_MODEL_REVISION is {revision}, but the model directory holds revision {held}"
        )


def _check_weights(path: Path) -> None:
    if (index := path / "model.safetensors.index.json").is_file():
        shards = set(read_json(index, required=True).get("weight_map", {}).values())
        missing = sorted(shard for shard in shards if not (path / shard).is_file())
        if missing:
            raise ModelLoadError(f"{path} lacks the weights file {missing[0]}")
        return
    if (path / "model.safetensors").is_file():
        return
    pickles = sorted(file.name for pattern in _PICKLES for file in path.glob(pattern))
    if pickles:
        raise ModelLoadError(
            f"{path} holds pickled weights only ({pickles[0]}); "
            "they can run code when loaded, so only safetensors are served"
        )
    raise ModelLoadError(f"{path} holds no model.safetensors")


def read_json(path: Path, *, required: bool) -> dict[str, Any]:
    """The JSON object in a file; empty if the file is missing and not `required`.

    Raises:
        ModelLoadError: the file is missing, unreadable or holds something else.
    """
    if not path.is_file():
        if required:
            raise ModelLoadError(f"{path.parent} holds no {path.name}")
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ModelLoadError(f"{path} does not hold a JSON object")
    return content
