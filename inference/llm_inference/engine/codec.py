"""The model's tokenizer: text and conversations to token ids, token ids to text piece by piece.

Knows tokenizers and chat templates, no torch. Everything here may be called from several threads:
only the immutable backend tokenizer is used, never the wrapper's truncation and padding state.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from llm_inference.engine.token_bytes import TokenBytes
from llm_inference.engine.tokenizer import DirectTokenizer, UnknownTokenizerError, read_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

# Special tokens that an answer's reader must see: a tool call starts, ends or is divided there.
_CALL_MARKERS = (
    "<tool_call>",
    "</tool_call>",
    "<|python_tag|>",
    "[TOOL_CALLS]",
    "[ARGS]",
    "[CALL_ID]",
)
_NOTHING: Mapping[int, str] = {}
# Prompt tokens a detokeniser needs before a continuation: enough for a character and its space.
_CONTEXT_TOKENS = 6


class Detokenizer:
    """Turns token ids into text as they come; only whole characters leave it.

    Special tokens give no text, but for those to be kept. Bytes that never become a character are
    dropped at the end.

    Args:
        tokenizer: the backend tokenizer.
        context: token ids that stand before the first one pushed.
        kept: special tokens that are told, and their text.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        context: Sequence[int] = (),
        kept: Mapping[int, str] = _NOTHING,
    ) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(ids=list(context), skip_special_tokens=True)
        self._kept = kept

    def push(self, token: int) -> str:
        """Text that `token` completes, possibly none."""
        if token in self._kept:
            # What comes next is no continuation of the text before.
            self._stream = DecodeStream(ids=[], skip_special_tokens=True)
            return self._kept[token]
        return self._stream.step(self._tokenizer, token) or ""


class HuggingFaceCodec:
    """Encodes and decodes with the tokenizers library, and renders with a model's chat template.

    Args:
        tokenizer: read from a model directory, by ourselves or by transformers.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase | DirectTokenizer") -> None:
        self._tokenizer = tokenizer
        self._backend: Tokenizer = tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        added = self._backend.get_added_tokens_decoder()
        self._added = {token.content: number for number, token in added.items()}
        self._token_bytes = TokenBytes(self._backend)
        self._kept = {
            number: added[number].content
            for number in map(self._added.get, _CALL_MARKERS)
            if number is not None and added[number].special
        }
        self.chat_template = _source(tokenizer.chat_template)
        self.has_chat_template = bool(self.chat_template)

    @classmethod
    def load(cls, directory: Path) -> "HuggingFaceCodec":
        """Read the tokenizer of a model directory.

        Raises:
            ValueError: it has no tokenizer that the tokenizers library can run.
        """
        try:
            return cls(read_tokenizer(directory))
        except UnknownTokenizerError as error:
            logger.info("transformers reads the tokenizer: %s", error)
        from transformers import AutoTokenizer  # noqa: PLC0415 - heavy, only in the loader thread

        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        if getattr(tokenizer, "backend_tokenizer", None) is None:
            raise ValueError("the model has no fast tokenizer (tokenizer.json)")
        return cls(tokenizer)

    def prepare(self) -> None:
        """Do ahead what the first conversation would wait for; in any thread."""
        if isinstance(self._tokenizer, DirectTokenizer):
            try:
                self._tokenizer.prepare()
            except Exception:
                # A broken template is told to whoever sends a conversation.
                logger.warning("the model's chat template cannot be compiled", exc_info=True)

    @property
    def eos_token_id(self) -> int | None:
        """The tokenizer's own end of sequence."""
        token: int | None = self._tokenizer.eos_token_id
        return token

    def tokenizer_json(self) -> str:
        """The tokenizer as the tokenizers library writes it."""
        json: str = self._backend.to_str()
        return json

    def added_token(self, text: str) -> int | None:
        """The id of the token, special or added by the model's makers, that is written so."""
        return self._added.get(text)

    def encode(self, text: str, *, special_tokens: bool = True) -> list[int]:
        """Token ids of `text`, with the special tokens the model expects around it."""
        ids: list[int] = self._backend.encode(text, add_special_tokens=special_tokens).ids
        return ids

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """Token ids of a conversation, ending where the assistant's answer starts.

        Raises:
            ValueError: the model's chat template refuses the messages.
        """
        from jinja2 import TemplateError  # noqa: PLC0415 - only a model with a template needs it

        try:
            prompt = self._render(messages, tools, add_generation_prompt=add_generation_prompt)
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            # A template is a program that expects messages of its own making.
            raise ValueError(f"the model's chat template refuses the messages: {error}") from error
        # The template writes the special tokens itself.
        return self.encode(prompt, special_tokens=False)

    def _render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool,
    ) -> str:
        text: str = self._tokenizer.apply_chat_template(
            list(messages),
            tools=list(tools) or None,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
        )
        return text

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of token ids, special tokens included."""
        text: str = self._backend.decode(list(tokens), skip_special_tokens=False)
        return text

    def token_bytes(self, token: int) -> bytes:
        """What one token adds to a text; a part of a character, perhaps."""
        return self._token_bytes(token)

    def detokenizer(self, prompt: Sequence[int] = ()) -> Detokenizer:
        """A detokeniser for what follows `prompt`."""
        return Detokenizer(self._backend, prompt[-_CONTEXT_TOKENS:], self._kept)


def _source(template: "str | Mapping[str, str] | None") -> str:
    """The text of a chat template; of all of them, where a model has several by name."""
    if template is None or isinstance(template, str):
        return template or ""
    return "\n".join(template.values())
