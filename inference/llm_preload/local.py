"""Takes a model out of a directory that the build was given, on the terms that the hub's meet.

Knows the build context and copies out of it; which files make a model is `llm_hub`'s to say.
"""

import shutil
from pathlib import Path

from llm_hub import HubError, selection
from llm_preload import PreloadError

# What the build context holds where none was given.
NONE_GIVEN = ".none-given"


def is_given(context: Path) -> bool:
    """Whether `context` is a directory of the caller's."""
    return not (context / NONE_GIVEN).is_file()


def take(context: Path, directory: Path, *, file: str = "") -> None:
    """Copy the files that make a model from `context` into `directory`.

    `file` names a GGUF file. Without it safetensors are taken, or the only GGUF file if there are
    none.

    Raises:
        PreloadError: They do not make a model, or one is a link to somewhere else.
    """
    names = [p.relative_to(context).as_posix() for p in context.rglob("*") if not p.is_dir()]
    try:
        chosen = _choose(context, names, file)
    except HubError as error:
        raise PreloadError(str(error)) from error
    for name in chosen:
        _check_link(context, name)
        target = directory / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(context / name, target)


def _choose(context: Path, names: list[str], file: str) -> list[str]:
    where = "the build context model"
    if not names:
        raise PreloadError(f"{where} holds no file")
    ggufs = sorted(name for name in names if name.endswith(".gguf"))
    is_plain = selection.INDEX in names or selection.WEIGHTS in names
    if not file and ggufs and not is_plain:
        if len(ggufs) > 1:
            raise PreloadError(f"{where} holds {', '.join(ggufs)}: name one of them as MODEL_FILE")
        file = ggufs[0]
    if file:
        return selection.gguf(where, names, file)
    index = None
    if selection.INDEX in names:
        _check_link(context, selection.INDEX)
        index = (context / selection.INDEX).read_text(encoding="utf-8")
    return selection.weights(where, names, index) + selection.supporting(names)


def _check_link(context: Path, name: str) -> None:
    # As in a folder of the hub's client, whose files are links to their content.
    path = (context / name).resolve()
    if not path.is_relative_to(context.resolve()) or not path.is_file():
        raise PreloadError(
            f"{name} in the build context model is a link that leads out of it: copy the directory "
            "with its content (cp -rL)"
        )
