"""What each token of a vocabulary adds to a text, in bytes.

Knows how the tokenizers library spells bytes: byte-level tokenizers as one printable character
each, others as <0xE2> for those without a token of their own, with ▁ for a space.
"""

import re

from tokenizers import Tokenizer

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def _printable_bytes() -> dict[str, int]:
    """Byte-level tokenizers' characters: printable ones stand for themselves, others move up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + place): byte for place, byte in enumerate(others)
    }


class TokenBytes:
    """The bytes of a tokenizer's tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._added = {
            number: token.content for number, token in tokenizer.get_added_tokens_decoder().items()
        }
        decoder = tokenizer.decoder
        state = decoder.__getstate__() if decoder is not None else b""
        self._bytes = _printable_bytes() if b'"ByteLevel"' in state else None

    def __call__(self, token: int) -> bytes:
        """The bytes of `token`, none for ids without a token."""
        if (added := self._added.get(token)) is not None:
            return added.encode()
        text = self._tokenizer.id_to_token(token)
        if text is None:
            return b""
        if self._bytes is not None:
            return bytes(self._bytes[char] for char in text if char in self._bytes)
        if byte := _BYTE.fullmatch(text):
            return bytes([int(byte[1], 16)])
        return text.replace("▁", " ").encode()
