"""A folder of models from the hub, laid out as the hub's client lays out its cache.

A model that is there whole is taken without asking the hub, which may then be out of reach.
Knows the client's layout and adds to it one file for each model and commit: the list of the files
that make it, written last. Several processes may share the folder.
"""

import json
import logging
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.file_download import repo_folder_name

from llm_hub import HubError, HubUnreachableError, selection
from llm_hub.listing import Listing, ask, one_sentence, verify

logger = logging.getLogger(__name__)

_COMMIT = re.compile(r"[0-9a-f]{40}")
_PROGRESS_SECONDS = 0.5
# A download writes all the time. A part that nobody has written to for so long was given up.
_ABANDONED_SECONDS = 300
_HOW = "set HF_TOKEN to a token that may read it"

Progress = Callable[[int, int], object]


class ModelCache:
    """One model in the folder `root`.

    Args:
        root: the folder; it is made if it is not there.
        model_id: the model.
        revision: branch, tag or commit; a commit is never asked for twice.

    Raises:
        HubError: `model_id` is no model's.
    """

    def __init__(self, root: Path, model_id: str, revision: str) -> None:
        self._root = root
        self._model_id = model_id
        self._revision = revision
        with one_sentence(model_id, revision, how_to_give_a_token=_HOW):
            self._folder = root / repo_folder_name(repo_id=model_id, repo_type="model")

    def fetch(self, on_progress: Progress) -> tuple[Path, str]:
        """The folder of the model's files and its commit, downloaded where files are missing.

        `on_progress` hears the bytes that are there and all bytes, from another thread.

        Raises:
            HubError: the model cannot be had.
        """
        known = self._revision if _COMMIT.fullmatch(self._revision) else None
        if known and self._is_whole(known):
            return self._snapshot(known), known
        try:
            listing = ask(self._model_id, self._revision, how_to_give_a_token=_HOW)
        except HubUnreachableError as error:
            commit = known or self._remembered()
            if commit is None or not self._may_be_whole(commit):
                raise
            logger.warning("%s: serving %s from %s", error, commit, self._root)
            return self._snapshot(commit), commit
        if not self._is_whole(listing.commit):
            self._download(listing, on_progress)
        if known is None:
            self._remember(listing.commit)
        return self._snapshot(listing.commit), listing.commit

    def _download(self, listing: Listing, on_progress: Progress) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._remove_abandoned()
        except OSError as error:
            raise HubError(f"{self._root} cannot be written to: {error.strerror}") from None
        index = None
        if selection.INDEX in listing.sizes:
            self._take(listing, [selection.INDEX])
            index = (self._snapshot(listing.commit) / selection.INDEX).read_text(encoding="utf-8")
        names = selection.weights(listing.name, listing.sizes, index)
        names += selection.supporting(listing.sizes)
        missing = [n for n in names if not (self._snapshot(listing.commit) / n).is_file()]
        self._check_space(sum(listing.sizes[name] for name in missing))
        began = time.monotonic()
        with self._watched(listing, names, on_progress):
            self._take(listing, names)
        verify(listing, missing, self._snapshot(listing.commit))
        self._write(self._record(listing.commit), json.dumps(sorted(names)))
        size = sum(listing.sizes[name] for name in missing) / 1e6
        seconds = time.monotonic() - began
        logger.info("downloaded %s: %.0f MB in %.1f s", listing.name, size, seconds)

    def _take(self, listing: Listing, names: Sequence[str]) -> None:
        with one_sentence(listing.model_id, listing.commit, how_to_give_a_token=_HOW):
            snapshot_download(
                listing.model_id,
                revision=listing.commit,
                allow_patterns=list(names),
                cache_dir=self._root,
            )

    def _check_space(self, needed: int) -> None:
        free = shutil.disk_usage(self._root).free
        if needed > free:
            raise HubError(
                f"no space is left for it: {needed / 1e9:.2f} GB are missing and "
                f"{self._root} has {free / 1e9:.2f} GB free"
            )

    @contextmanager
    def _watched(
        self, listing: Listing, names: Sequence[str], on_progress: Progress
    ) -> Iterator[None]:
        """Tell how far the files have come, as the disk shows it."""
        total = sum(listing.sizes[name] for name in names)
        snapshot, over = self._snapshot(listing.commit), threading.Event()

        def watch() -> None:
            while not over.wait(_PROGRESS_SECONDS):
                whole = sum(listing.sizes[name] for name in names if (snapshot / name).exists())
                on_progress(min(total, whole + self._growing()), total)

        on_progress(0, total)
        thread = threading.Thread(target=watch, name="download-progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
        on_progress(total, total)

    def _growing(self) -> int:
        """Bytes of the files that are being written."""
        return sum(size for _, size in self._parts())

    def _parts(self) -> Iterator[tuple[Path, int]]:
        for path in (self._folder / "blobs").glob("*.incomplete"):
            try:
                yield path, path.stat().st_size
            except FileNotFoundError:  # finished or given up this moment
                continue

    def _remove_abandoned(self) -> None:
        """Remove what a process that was killed had begun: its client never goes on with it."""
        for path, _ in self._parts():
            try:
                if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                    path.unlink()
            except FileNotFoundError:
                continue

    def _snapshot(self, commit: str) -> Path:
        return self._folder / "snapshots" / commit

    def _record(self, commit: str) -> Path:
        return self._folder / "served" / f"{commit}.json"

    def _is_whole(self, commit: str) -> bool:
        """Whether every file is there, as written down when the last one came."""
        try:
            names = json.loads(self._record(commit).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return all((self._snapshot(commit) / name).is_file() for name in names)

    def _may_be_whole(self, commit: str) -> bool:
        """Whether it looks whole: filled by something else than this, nobody wrote it down."""
        folder = self._snapshot(commit)
        names = [file.name for file in folder.glob("*") if file.is_file()]
        try:
            index = (folder / selection.INDEX).read_text(encoding="utf-8")
        except OSError:
            index = None
        try:
            selection.weights(commit, names, index)
        except (HubError, ValueError, KeyError):
            return False
        return "config.json" in names

    def _remembered(self) -> str | None:
        try:
            commit = (self._folder / "refs" / self._revision).read_text(encoding="utf-8").strip()
        except (OSError, ValueError):
            return None
        return commit if _COMMIT.fullmatch(commit) else None

    def _remember(self, commit: str) -> None:
        self._write(self._folder / "refs" / self._revision, commit)

    def _write(self, path: Path, text: str) -> None:
        """Write a small file at once or not at all; not being able to costs only time later."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, scratch = tempfile.mkstemp(dir=path.parent)
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            Path(scratch).replace(path)
        except OSError as error:
            logger.warning("%s cannot be written: %s", path, error.strerror)
