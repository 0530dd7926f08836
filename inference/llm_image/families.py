"""The model families of transformers, reduced to those that read text.

transformers has the code of hundreds of models that hear, see or fold proteins. A family stays if
transformers lists it among those that write text, fill masks or encode text, or if one that stays
imports it or names its type, as a model that also sees names the one that it sees with. Of the
others the configurations and tokenizers stay: automatic classes look through all of them.
Knows how transformers lays its models out; not which of them is served.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from llm_image import ImageError

_LISTS = (
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES",
)
_ALWAYS = "auto"
_STAYS = ("__init__.py", "configuration_*.py", "tokenization_*.py")


def surplus(models: Path) -> Iterator[Path]:
    """Files of `models`, transformers' folder of that name, that reading text needs none of.

    Raises:
        ImageError: The lists of families are not where they were.
    """
    folders = {path.name for path in models.iterdir() if (path / "__init__.py").exists()}
    kept = _closure(models, folders)
    for name in sorted(folders - kept):
        for path in sorted((models / name).glob("*.py")):
            if not any(path.match(pattern) for pattern in _STAYS):
                yield path


def _closure(models: Path, folders: set[str]) -> set[str]:
    folder = _pairs(models, "SPECIAL_MODEL_TYPE_TO_MODULE_NAME")
    names = _pairs(models, "CONFIG_MAPPING_NAMES")
    types = {name: folder.get(name, name).replace("-", "_") for name in names}
    kept = {types.get(name, name) for each in _LISTS for name in _pairs(models, each)}
    kept = (kept & folders) | {_ALWAYS} | _imported_elsewhere(models, folders)
    waiting = list(kept)
    while waiting:
        found = (_wants(models / waiting.pop(), types) & folders) - kept
        kept |= found
        waiting += found
    return kept


def _wants(family: Path, types: dict[str, str]) -> set[str]:
    """The families that one imports or names the type of."""
    found: set[str] = set()
    for path in family.glob("*.py"):
        if path.name.startswith(("modular_", "convert_")):
            continue
        text = path.read_text(encoding="utf-8")
        found.update(re.findall(r"(?m)^\s*from \.\.(\w+)", text))
        if family.name != _ALWAYS:
            found.update(types[name] for name in re.findall(r'"([\w-]+)"', text) if name in types)
    return found


def _imported_elsewhere(models: Path, folders: set[str]) -> set[str]:
    """The families that the rest of transformers imports from."""
    found: set[str] = set()
    for path in models.parent.rglob("*.py"):
        if not path.is_relative_to(models):
            text = path.read_text(encoding="utf-8")
            found.update(re.findall(r"from (?:\.+|transformers\.)models\.(\w+)", text))
    return found & folders


def _pairs(models: Path, variable: str) -> dict[str, str]:
    """What a mapping of the automatic classes maps strings to; "" for what is no string."""
    for path in sorted((models / _ALWAYS).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
                target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
                if isinstance(target, ast.Name) and target.id == variable:
                    return dict(_items(node.value))
    raise ImageError(f"transformers has no {variable} any more: mend llm_image.families")


def _items(value: ast.expr) -> Iterator[tuple[str, str]]:
    """The items of `OrderedDict([(key, value), …])` or of `{key: value, …}`."""
    for node in ast.walk(value):
        pairs: list[tuple[ast.expr | None, ast.expr]] = []
        if isinstance(node, ast.Dict):
            pairs = list(zip(node.keys, node.values, strict=True))
        elif isinstance(node, ast.Tuple) and len(node.elts) > 1:
            pairs = [(node.elts[0], node.elts[1])]
        for key, held in pairs:
            if isinstance(key, ast.Constant) and isinstance(key.value, str):
                yield key.value, str(held.value) if isinstance(held, ast.Constant) else ""
