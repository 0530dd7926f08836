"""Log probabilities in the shapes of both APIs. Knows tokens' bytes, through the codec."""

import math
from collections.abc import Sequence
from typing import Any

from llm_inference.engine.interface import TextCodec, TokenLogprob

# JSON has no infinity; OpenAI writes this for what cannot be.
_NEVER = -9999.0


def chat_logprobs(codec: TextCodec, entries: Sequence[TokenLogprob]) -> dict[str, Any]:
    """The object of chat completions: each token with the most likely ones of its step."""
    content = [
        {
            **_entry(codec, entry.token, entry.logprob),
            "top_logprobs": [_entry(codec, token, logprob) for token, logprob in entry.top],
        }
        for entry in entries
    ]
    return {"content": content, "refusal": None}


def text_logprobs(
    codec: TextCodec, entries: Sequence[TokenLogprob], *, top: bool, offset: int
) -> dict[str, Any]:
    """The object of text completions: lists of equal length, one item for each token.

    Args:
        codec: knows tokens.
        entries: the tokens.
        top: whether the most likely tokens were asked for.
        offset: characters of the choice before the first token.
    """
    tokens, offsets = [], []
    for entry in entries:
        data = codec.token_bytes(entry.token)
        tokens.append(_written(data))
        offsets.append(offset)
        # A character of several tokens counts where its last one ends it.
        offset += len(data.decode("utf-8", "ignore"))
    return {
        "tokens": tokens,
        "token_logprobs": [_finite(entry.logprob) for entry in entries],
        "top_logprobs": [_most_likely(codec, entry) for entry in entries] if top else None,
        "text_offset": offsets,
    }


def _most_likely(codec: TextCodec, entry: TokenLogprob) -> dict[str, float]:
    """The most likely tokens of a step, and the chosen one whether it is among them or not."""
    chosen = (entry.token, entry.logprob)
    return {
        _written(codec.token_bytes(token)): _finite(logprob)
        for token, logprob in (*entry.top, chosen)
    }


def _entry(codec: TextCodec, token: int, logprob: float) -> dict[str, Any]:
    data = codec.token_bytes(token)
    return {
        "token": data.decode("utf-8", "replace"),
        "logprob": _finite(logprob),
        "bytes": list(data),
    }


def _written(data: bytes) -> str:
    """A token as text; its bytes in OpenAI's notation if it is a part of a character."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else _NEVER
