"""A model's chat template: conversations to text, as transformers renders them.

Templates are programs in jinja that come with a model. They see messages and tools as plain data,
and the texts of the special tokens. Knows jinja's sandbox, imported when the first template is
compiled. Does not know tokens.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Template

_TOOL_USE, _DEFAULT = "tool_use", "default"
# What a message's reasoning is called by templates and clients; the first is today's name.
_REASONING = ("reasoning_content", "thinking", "reasoning")
# From an enumeration's member, for one, to the text or number it is.
_BARE: Mapping[type, Callable[[Any], object]] = {
    str: str.__str__,
    int: int.__int__,
    float: float.__float__,
}


class ChatTemplate:
    """Renders conversations; may be used from several threads.

    Args:
        source: the template, or several by name: `default`, and `tool_use` for where there are
            tools.
        variables: what the template sees beside messages and tools: the special tokens.
    """

    def __init__(self, source: str | Mapping[str, str], variables: Mapping[str, str]) -> None:
        self._sources = {_DEFAULT: source} if isinstance(source, str) else dict(source)
        self._variables = dict(variables)
        self._compiled: dict[str, Template] = {}
        self._lock = threading.Lock()

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = True,
    ) -> str:
        """The text of a conversation.

        Raises:
            jinja2.TemplateError: the template is broken or refuses the messages.
            ValueError: there are no messages, or none of the templates is the default.
        """
        if not messages:
            raise ValueError("a conversation needs at least one message")
        name = _TOOL_USE if tools is not None and _TOOL_USE in self._sources else _DEFAULT
        return self._template(name).render(
            messages=[_message(message) for message in messages],
            tools=None if tools is None else _plain(list(tools)),
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **self._variables,
        )

    def compile(self) -> None:
        """Compile what is rendered without tools ahead of its first use."""
        self._template(_DEFAULT)

    def _template(self, name: str) -> "Template":
        if name not in self._sources:
            raise ValueError(f"the model has no chat template named {name}")
        from llm_inference.engine import jinja_sandbox  # noqa: PLC0415 - imports jinja

        with self._lock:
            if name not in self._compiled:
                self._compiled[name] = jinja_sandbox.ENVIRONMENT.from_string(self._sources[name])
            return self._compiled[name]


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as templates expect it: nothing that is null, reasoning by all its names."""
    plain = {key: _plain(value) for key, value in message.items() if value is not None}
    reasoning = next((plain[name] for name in _REASONING if name in plain), None)
    if reasoning is None:
        return plain
    return {"thinking": reasoning, **plain, "reasoning_content": reasoning}


def _plain(value: object) -> object:
    """A copy of JSON-like data without the methods of whatever classes it was made of."""
    if value is None or isinstance(value, bool):
        return value
    for kind, bare in _BARE.items():
        if isinstance(value, kind):
            return bare(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return f"<{type(value).__name__}>"
