"""Imports torch without what only tracing and exporting models needs: a fifth of its import.

`import torch` ends with modules that describe every operator to the meta device and to exporters.
Nothing that runs a model on a processor or a card asks for them. Inside `import_torch` placeholders
stand for them; whoever asks a placeholder for anything, or imports the module later, gets the real
one. transformers makes models on the meta device: `complete_torch` brings all of it in first.

Knows torch's module names; pinned by a test on the version that is locked.
"""

import importlib
import sys
from types import ModuleType

_HELD_BACK = ("torch._meta_registrations", "torch.export")


class _Placeholder(ModuleType):
    """Stands for a module that is imported when somebody asks for something in it."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.give_way(), name)

    def give_way(self) -> ModuleType:
        """Put the real module in the place of this one."""
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return importlib.import_module(self.__name__)


def import_torch() -> None:
    """Import torch, unless somebody has, without the modules that are held back."""
    if "torch" in sys.modules:
        return
    placeholders = {name: _Placeholder(name) for name in _HELD_BACK}
    sys.modules.update(placeholders)
    try:
        importlib.import_module("torch")
    finally:
        for name, placeholder in placeholders.items():
            if sys.modules.get(name) is placeholder:
                del sys.modules[name]


def complete_torch() -> None:
    """Import what was held back."""
    for name in ("torch", *_HELD_BACK):
        importlib.import_module(name)
