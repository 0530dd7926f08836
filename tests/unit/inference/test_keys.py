"""The file of API keys: what it accepts, and what becomes of it when it changes."""

import logging

import pytest

from llm_inference.keys import KeyFile, KeysError


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "keys"
    path.write_bytes(b"# of the first team\nsk-one\n\n  sk-two  \r\n")
    return path


def test_every_key_of_the_file_is_good_and_nothing_else(path):
    keys = KeyFile(path)
    assert keys.accepts(b"sk-one")
    assert keys.accepts(b"sk-two")
    for wrong in (b"", b"sk-on", b"sk-one ", b"SK-ONE", b"# of the first team", b"\xff"):
        assert not keys.accepts(wrong)


@pytest.mark.parametrize("content", [b"", b"\n  \n", b"# nothing but this\n"])
def test_a_file_without_a_key_is_refused(path, content):
    path.write_bytes(content)
    with pytest.raises(KeysError, match=r"keys holds no API key"):
        KeyFile(path)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(KeysError, match=r"none cannot be read: No such file"):
        KeyFile(tmp_path / "none")


def test_a_changed_file_is_taken_up(path, clock):
    keys = KeyFile(path, clock)
    path.write_bytes(b"sk-three\n")
    clock.now += 2
    assert keys.accepts(b"sk-three")
    assert not keys.accepts(b"sk-one")


def test_a_swapped_folder_is_taken_up(tmp_path, clock):
    """As the kubelet renews a mounted Secret: keys -> ..data/keys, ..data -> a new folder."""
    for folder, key in (("..1", b"sk-one"), ("..2", b"sk-two")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "keys").write_bytes(key)
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "keys").symlink_to("..data/keys")
    keys = KeyFile(tmp_path / "keys", clock)
    (tmp_path / "..new").symlink_to("..2")
    (tmp_path / "..new").rename(tmp_path / "..data")
    clock.now += 2
    assert keys.accepts(b"sk-two")
    assert not keys.accepts(b"sk-one")


@pytest.mark.parametrize("loss", ["gone", "empty", "a folder"])
def test_a_file_that_is_lost_leaves_the_keys_and_an_error(path, clock, caplog, loss):
    keys = KeyFile(path, clock)
    if loss == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
        if loss == "a folder":
            path.mkdir()
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            clock.now += 2
            assert keys.accepts(b"sk-one")
            assert not keys.accepts(b"sk-three")
    (record,) = caplog.records  # not one for each request
    assert record.levelno == logging.ERROR
    if loss == "a folder":
        path.rmdir()
    path.write_bytes(b"sk-three")
    clock.now += 2
    assert keys.accepts(b"sk-three")
    assert not keys.accepts(b"sk-one")


def test_no_key_is_kept_or_logged(path, clock, caplog):
    keys = KeyFile(path, clock)
    path.write_bytes(b"sk-three")
    clock.now += 2
    with caplog.at_level(logging.DEBUG):
        assert keys.accepts(b"sk-three")
    assert "sk-" not in caplog.text
    assert "sk-" not in repr(vars(keys))
