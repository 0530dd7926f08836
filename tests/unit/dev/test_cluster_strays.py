"""Of the files in the machine's fixed places only the cluster's own are removed."""

import os
import socket
from pathlib import Path

import pytest

from dev.cluster import network, strays


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """The fixed places, in a folder of their own and empty."""
    for name in ("CONTAINER_LOGS", "CNI_RESULTS", "DEVICE_PLUGINS", "FIFOS"):
        place = tmp_path / name.lower()
        place.mkdir()
        monkeypatch.setattr(strays, name, place)
    monkeypatch.setattr(strays, "OTHER_CONTAINERD", tmp_path / "containerd.sock")
    monkeypatch.setattr(
        strays, "FOLDERS", (strays.CONTAINER_LOGS, strays.CNI_RESULTS, strays.DEVICE_PLUGINS)
    )
    return tmp_path


HERE = Path("/src/here")


def test_the_links_of_this_checkout_go_and_others_stay(machine):
    own, other = (strays.CONTAINER_LOGS / name for name in ("own.log", "other.log"))
    own.symlink_to("/src/here/.dev/logs/pods/x/0.log")
    other.symlink_to("/var/log/pods/x/0.log")
    assert strays.find(HERE) == [own]
    strays.remove(HERE)
    assert [file.name for file in strays.CONTAINER_LOGS.iterdir()] == ["other.log"]


def test_only_results_of_this_network_go(machine):
    (strays.CNI_RESULTS / f"{network.NAME}-abc-eth0").touch()
    (strays.CNI_RESULTS / "cbr0-abc-eth0").touch()
    strays.remove(HERE)
    assert [file.name for file in strays.CNI_RESULTS.iterdir()] == ["cbr0-abc-eth0"]


def test_folders_that_are_empty_then_go(machine):
    (strays.CNI_RESULTS / f"{network.NAME}-abc-eth0").touch()
    strays.remove(HERE)
    assert not strays.CNI_RESULTS.exists()
    assert strays.find(HERE) == []


def test_a_kubelet_that_lives_keeps_its_socket(machine, monkeypatch):
    monkeypatch.chdir(strays.DEVICE_PLUGINS)  # a socket's path must be short
    path = strays.DEVICE_PLUGINS / "kubelet.sock"
    with socket.socket(socket.AF_UNIX) as kubelet:
        kubelet.bind("kubelet.sock")
        kubelet.listen()
        monkeypatch.setattr(strays, "DEVICE_PLUGINS", Path())
        assert strays.find(HERE) == []
    assert strays.find(HERE) == [Path("kubelet.sock")]
    assert path.is_socket()


def test_pipes_go_unless_another_containerd_is_there(machine):
    (strays.FIFOS / "1").mkdir()
    os.mkfifo(strays.FIFOS / "1" / "stdout")
    strays.OTHER_CONTAINERD.touch()
    assert strays.find(HERE) == []
    strays.OTHER_CONTAINERD.unlink()
    strays.remove(HERE)
    assert list(strays.FIFOS.iterdir()) == []
