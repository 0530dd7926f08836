"""A model directory's tokenizer without transformers, whose import takes seconds.

Reads tokenizer.json with the library that wrote it, and from tokenizer_config.json what the chat
template needs to know. Where transformers would do anything beyond that (add tokens that
tokenizer.json does not have, or convert another format) it is left to do so. Knows files and
special tokens. Does not know requests.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from llm_inference.engine.chat_template import ChatTemplate

logger = logging.getLogger(__name__)

# Classes that use tokenizer.json as it is, and what they call special tokens that nothing names.
_CLASSES: Mapping[str, Mapping[str, str]] = {
    "TokenizersBackend": {},
    "PreTrainedTokenizer": {},
    "LlamaTokenizer": {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"},
    "GemmaTokenizer": {
        "unk_token": "<unk>",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "mask_token": "<mask>",
    },
    "Qwen2Tokenizer": {
        "unk_token": "<|endoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    },
}
# Settings that change what a tokenizer does, and are not read here.
_CHANGING = ("auto_map", "fast_tokenizer_files", "split_special_tokens", "add_prefix_space")
_FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")


class UnknownTokenizerError(Exception):
    """Only transformers knows how to read this tokenizer; the message says why."""


class DirectTokenizer:
    """A tokenizer and chat template read from a model directory.

    Args:
        backend: the tokenizer.
        special_tokens: texts of the special tokens by name, `eos_token` for one.
        chat_template: None if there is none; several by name.
    """

    def __init__(
        self,
        backend: Tokenizer,
        special_tokens: Mapping[str, str],
        chat_template: str | Mapping[str, str] | None,
    ) -> None:
        self.backend_tokenizer = backend
        self.chat_template = chat_template
        self.special_tokens = dict(special_tokens)
        self._template = (
            ChatTemplate(chat_template, special_tokens) if chat_template is not None else None
        )

    @property
    def eos_token_id(self) -> int | None:
        """The token that ends a text."""
        text = self.special_tokens.get("eos_token")
        number: int | None = None if text is None else self.backend_tokenizer.token_to_id(text)
        return number

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        tokenize: bool = False,  # noqa: ARG002 - the name of transformers' own
    ) -> str:
        """The text of a conversation; see `ChatTemplate.render`."""
        if self._template is None:
            raise ValueError("the model has no chat template")
        return self._template.render(messages, tools, add_generation_prompt=add_generation_prompt)

    def prepare(self) -> None:
        """Compile the chat template, if there is one, ahead of its first use."""
        if self._template is not None:
            self._template.compile()


def read_tokenizer(directory: Path) -> DirectTokenizer:
    """The tokenizer of a model directory.

    Raises:
        UnknownTokenizerError: transformers would do more than read tokenizer.json.
        ValueError: a file is malformed.
    """
    file = directory / "tokenizer.json"
    if not file.is_file():
        raise UnknownTokenizerError("there is no tokenizer.json")
    config = _read(directory / "tokenizer_config.json")
    defaults = _defaults(config)
    for name in _CHANGING:
        if config.get(name):
            raise UnknownTokenizerError(f"tokenizer_config.json sets {name}")
    if "added_tokens_decoder" not in config:
        config |= _read(directory / "special_tokens_map.json")
    backend = Tokenizer.from_file(str(file))
    special_tokens = defaults | _special_tokens(config)
    if backend.padding is not None:
        special_tokens.setdefault("pad_token", backend.padding["pad_token"])
    _check_added(backend, special_tokens, config)
    if "added_tokens_decoder" not in config:
        _check_present(backend, _read(directory / "added_tokens.json"))
    return DirectTokenizer(backend, special_tokens, _chat_template(directory, config))


def _defaults(config: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens that the tokenizer's class has, but those that the config says are not."""
    name = str(config.get("tokenizer_class")).removesuffix("Fast")
    if name not in _CLASSES:
        raise UnknownTokenizerError(f"its class is {name}")
    return {key: text for key, text in _CLASSES[name].items() if key not in config}


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Texts by name of everything that is called a token."""
    named = {key: value for key, value in config.items() if key.endswith("_token")}
    extra = config.get("extra_special_tokens")
    named |= extra if isinstance(extra, dict) else {}
    texts = {
        key: value["content"] if isinstance(value, dict) else value for key, value in named.items()
    }
    return {key: text for key, text in texts.items() if isinstance(text, str)}


def _check_added(
    backend: Tokenizer, special_tokens: Mapping[str, str], config: Mapping[str, Any]
) -> None:
    """Make sure that tokenizer.json has all added tokens that the config names, just so."""
    added: dict[int, AddedToken] = backend.get_added_tokens_decoder()
    for number, token in (config.get("added_tokens_decoder") or {}).items():
        mine = added.get(int(number))
        if mine is None or mine.content != token["content"]:
            raise UnknownTokenizerError(f"tokenizer.json lacks the token {token['content']}")
        if any(flag in token and getattr(mine, flag) != token[flag] for flag in _FLAGS):
            raise UnknownTokenizerError(f"tokenizer.json has another {mine.content}")
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    listed = [] if isinstance(extra, dict) else extra
    texts = [token["content"] if isinstance(token, dict) else token for token in listed]
    known = {token.content for token in added.values()}
    for text in (*special_tokens.values(), *texts):
        if text not in known:
            raise UnknownTokenizerError(f"tokenizer.json does not have {text} as an added token")


def _check_present(backend: Tokenizer, tokens: Mapping[str, Any]) -> None:
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    for text, number in tokens.items():
        if text not in known or backend.token_to_id(text) != number:
            raise UnknownTokenizerError(f"tokenizer.json lacks the token {text}")


def _chat_template(directory: Path, config: Mapping[str, Any]) -> str | Mapping[str, str] | None:
    """The templates in files, which outrank those in tokenizer_config.json."""
    files = {
        file.stem: file.read_text(encoding="utf-8")
        for file in sorted((directory / "additional_chat_templates").glob("*.jinja"))
    }
    if (file := directory / "chat_template.jinja").is_file():
        files["default"] = file.read_text(encoding="utf-8")
    template: Any = files or config.get("chat_template")
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}
    if isinstance(template, dict) and set(template) == {"default"} and files:
        return str(template["default"])
    if template is not None and not isinstance(template, str | dict):
        raise ValueError(f"{directory} has a chat template that is no text")
    return template


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    content = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{file} does not hold a JSON object")  # noqa: TRY004
    return content
