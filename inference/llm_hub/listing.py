"""What the hub says that it holds of a model, and the errors that it says instead.

Knows the hub's client and its exceptions. Reads HF_ENDPOINT and HF_TOKEN through it, and lets no
token into a message. Does not know where files are put.
"""

import errno
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from llm_hub import HubError, HubUnreachableError
from llm_hub.digest import sha256

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = (401, 403)
_SERVER_ERROR = 500
_TOO_MANY = 429


@dataclass(frozen=True, kw_only=True)
class Listing:
    """A model at one commit.

    Attributes:
        model_id: the model.
        commit: what its revision resolved to, 40 hex digits.
        sizes: bytes of each file.
        hashes: SHA-256 of each file that the hub states one for: the large ones.
    """

    model_id: str
    commit: str
    sizes: dict[str, int]
    hashes: dict[str, str]

    @property
    def name(self) -> str:
        """Model and commit, for messages."""
        return f"{self.model_id} at {self.commit}"


def ask(model_id: str, revision: str, *, how_to_give_a_token: str) -> Listing:
    """Ask the hub what it holds of `model_id` at `revision`, a branch, a tag or a commit.

    Raises:
        HubError: it holds no such thing, or does not give it.
        HubUnreachableError: it does not answer.
    """
    with one_sentence(model_id, revision, how_to_give_a_token=how_to_give_a_token):
        info = HfApi().model_info(model_id, revision=revision, files_metadata=True)
    if info.sha is None:
        raise HubError(f"the hub names no commit for {model_id} at {revision}")
    siblings = info.siblings or []
    return Listing(
        model_id=model_id,
        commit=info.sha,
        sizes={sibling.rfilename: sibling.size or 0 for sibling in siblings},
        hashes={sibling.rfilename: sibling.lfs.sha256 for sibling in siblings if sibling.lfs},
    )


def verify(listing: Listing, names: Sequence[str], folder: Path) -> None:
    """Compare files with the hashes that the hub states; one that differs is removed.

    Raises:
        HubError: one does.
    """
    for name in names:
        path = folder / name
        if name in listing.hashes and sha256(path) != listing.hashes[name]:
            path.resolve().unlink()
            path.unlink(missing_ok=True)
            raise HubError(f"{name} of {listing.name} is not what the hub says: hashes differ")


def endpoint() -> str:
    """The address of the hub, without a password that it may hold."""
    address = urlsplit(constants.ENDPOINT)
    return address._replace(netloc=address.netloc.rpartition("@")[2]).geturl()


@contextmanager
def one_sentence(  # noqa: C901 - a table of what the client raises
    model_id: str, revision: str, *, how_to_give_a_token: str
) -> Iterator[None]:
    """Turn whatever the hub's client raises into a HubError."""
    try:
        yield
    except GatedRepoError:
        raise HubError(f"{model_id} is gated: {how_to_give_a_token}") from None
    except RevisionNotFoundError:
        raise HubError(f"{model_id} has no revision {revision}") from None
    except RepositoryNotFoundError:
        hint = f"if it is private, {how_to_give_a_token}"
        raise HubError(f"there is no model {model_id} on the hub; {hint}") from None
    except UnicodeEncodeError:
        raise HubError("HF_TOKEN holds characters that no token has") from None
    except HFValidationError:
        raise HubError(f"{model_id} is not the id of a model") from None
    except HfHubHTTPError as error:
        raise _answered(error, how_to_give_a_token) from None
    except (LocalEntryNotFoundError, httpx2.TransportError, TimeoutError) as error:
        raise HubUnreachableError(f"the hub does not answer: {_reason(error)}") from None
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise HubError(f"the hub cannot be asked: {_reason(error)}") from None
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise HubError(f"no space is left for it: {error.strerror}") from None
        raise HubError(_reason(error)) from None


def _answered(error: HfHubHTTPError, how_to_give_a_token: str) -> HubError:
    status = error.response.status_code
    if status in _REFUSED:
        return HubError(f"the hub refuses with {status}: {how_to_give_a_token}")
    kind = HubUnreachableError if status >= _SERVER_ERROR or status == _TOO_MANY else HubError
    return kind(f"the hub answers {status}: {_reason(error)}")


def _reason(error: BaseException) -> str:
    """An exception's own words in one line, without a token."""
    if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__  # it only says that nothing was in the cache either
    words = " ".join(str(error).split()) or type(error).__name__
    secrets = (os.environ.get("HF_TOKEN"), urlsplit(constants.ENDPOINT).password)
    return _without(words, [secret for secret in secrets if secret])


def _without(words: str, secrets: Collection[str]) -> str:
    for secret in secrets:
        words = words.replace(secret, "***").replace(repr(secret)[1:-1], "***")
    return words
