"""The cache: a stand-in is there whole or not at all."""

import pytest

from dev.stand_ins import cache


def test_a_failed_build_leaves_what_was_there(tmp_path):
    target = tmp_path / "thing"
    target.mkdir()
    (target / "old").touch()

    def fail_halfway():
        with cache.building(target) as scratch:
            (scratch / "new").touch()
            raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        fail_halfway()
    assert [path.name for path in tmp_path.iterdir()] == ["thing"]
    assert [path.name for path in target.iterdir()] == ["old"]


def test_a_finished_build_replaces_what_was_there(tmp_path):
    target = tmp_path / "org" / "thing"
    for name in ("old", "new"):
        with cache.building(target) as scratch:
            (scratch / name).touch()
    assert [path.name for path in target.iterdir()] == ["new"]
    assert [path.name for path in target.parent.iterdir()] == ["thing"]


def test_the_cache_root_can_be_chosen(monkeypatch, tmp_path):
    monkeypatch.setenv("LLM_OPERATOR_CACHE", str(tmp_path))
    assert cache.models() == tmp_path / "models"
    assert cache.stand_ins() == tmp_path / "stand-ins"
