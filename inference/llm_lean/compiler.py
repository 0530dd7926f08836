"""Imports and loads models without torch's compiler, which would take half of a cold start.

transformers names torch._dynamo while it is imported, for decorators that mark functions for a
compiler and for one small class, and torch does when layers are made on the meta device, where
transformers makes them; importing it runs sympy and inductor for seconds. Inside
`without_compiler` those decorators do nothing, that class comes from its own file, and
transformers is told that flex attention is not there, which it supports. Afterwards everything is
as it was, and `import torch._dynamo` gives the real one. If transformers asks for anything else,
the real one is imported on the spot: slower, never wrong.

Knows torch's and transformers' module names; pinned by a test on the versions that are locked.
"""

import importlib
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import transformers.utils
import transformers.utils.import_utils

from llm_lean.importing import complete_torch

logger = logging.getLogger(__name__)

_COMPILER = "torch._dynamo"
# transformers imports these where they are installed, and they import the compiler themselves.
_USERS_OF_THE_COMPILER = ("torchvision",)
_HAS_FLEX = "is_torch_flex_attn_available"


def _unmarked(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that leaves its function alone: what it tells, only a compiler would hear."""
    return function


def _not_disabled(
    fn: Callable[..., Any] | None = None,
    recursive: bool = True,  # noqa: ARG001, FBT001, FBT002 - torch.compiler.disable's signature
    **_more: object,
) -> Callable[..., Any]:
    return _unmarked if fn is None else fn


class _CompilerPackage(ModuleType):
    """Stands for the package torch._dynamo without running it; its submodules are the real ones."""

    def __init__(self, path: Path) -> None:
        super().__init__(_COMPILER)
        self.__path__ = [str(path)]
        self.allow_in_graph = self.assume_constant_result = _unmarked
        self.disable = _not_disabled

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        logger.debug("transformers asked for %s.%s: importing it", _COMPILER, name)
        return getattr(self.give_way(), name)

    def give_way(self) -> ModuleType:
        """Put the real package in the place of this one."""
        if sys.modules.get(_COMPILER) is self:
            del sys.modules[_COMPILER]
        return importlib.import_module(_COMPILER)


@contextmanager
def without_compiler() -> Iterator[None]:
    """Hold torch's compiler back from imports made and models loaded inside."""
    # Models are made on the meta device.
    complete_torch()
    if _COMPILER in sys.modules or any(map(find_spec, _USERS_OF_THE_COMPILER)):
        yield
        return
    package = _CompilerPackage(Path(torch.__file__).parent / "_dynamo")
    sys.modules[_COMPILER] = package
    try:
        with (
            _replaced(torch.compiler, "disable", _not_disabled),
            _replaced(transformers.utils, _HAS_FLEX, lambda: False),
            _replaced(transformers.utils.import_utils, _HAS_FLEX, lambda: False),
        ):
            yield
    finally:
        if sys.modules.get(_COMPILER) is package:
            del sys.modules[_COMPILER]


@contextmanager
def _replaced(module: ModuleType, name: str, value: object) -> Iterator[None]:
    original = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, original)
