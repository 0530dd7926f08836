"""The model's tokenizer: text and conversations to token ids, token ids to text piece by piece.

Knows tokenizers and chat templates, no torch. Everything here may be called from several threads:
only the immutable backend tokenizer is used, never the wrapper's truncation and padding state.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Prompt tokens a detokeniser needs before a continuation: enough for a character and its space.
_CONTEXT_TOKENS = 6


class Detokenizer:
    """Turns token ids into text as they come; only whole characters leave it.

    Special tokens give no text. Bytes that never become a character are dropped at the end.

    Args:
        tokenizer: the backend tokenizer.
        context: token ids that stand before the first one pushed.
    """

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(ids=list(context), skip_special_tokens=True)

    def push(self, token: int) -> str:
        """Text that `token` completes, possibly none."""
        return self._stream.step(self._tokenizer, token) or ""


class HuggingFaceCodec:
    """Encodes and decodes with a transformers tokenizer backed by the tokenizers library."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer = tokenizer
        self._backend: Tokenizer = tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        self.has_chat_template = bool(tokenizer.chat_template)

    @classmethod
    def load(cls, directory: Path) -> "HuggingFaceCodec":
        """Read the tokenizer of a model directory.

        Raises:
            ValueError: it has no tokenizer that the tokenizers library can run.
        """
        from transformers import AutoTokenizer  # noqa: PLC0415 - heavy, only in the loader thread

        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        if getattr(tokenizer, "backend_tokenizer", None) is None:
            raise ValueError("the model has no fast tokenizer (tokenizer.json)")
        return cls(tokenizer)

    @property
    def eos_token_id(self) -> int | None:
        """The tokenizer's own end of sequence."""
        token: int | None = self._tokenizer.eos_token_id
        return token

    def encode(self, text: str) -> list[int]:
        """Token ids of `text` with the special tokens the model expects around it."""
        ids: list[int] = self._backend.encode(text).ids
        return ids

    def encode_chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Token ids of a conversation, ending where the assistant's answer starts.

        Raises:
            ValueError: the model's chat template refuses the messages.
        """
        from jinja2 import TemplateError  # noqa: PLC0415 - only a model with a template needs it

        try:
            prompt = self._tokenizer.apply_chat_template(
                list(messages), add_generation_prompt=True, tokenize=False
            )
        except TemplateError as error:
            raise ValueError(f"the model's chat template refuses the messages: {error}") from error
        ids: list[int] = self._backend.encode(prompt, add_special_tokens=False).ids
        return ids

    def detokenizer(self, prompt: Sequence[int] = ()) -> Detokenizer:
        """A detokeniser for what follows `prompt`."""
        return Detokenizer(self._backend, prompt[-_CONTEXT_TOKENS:])
