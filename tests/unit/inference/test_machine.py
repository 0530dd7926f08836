"""What a container may use, from control groups of both versions."""

import os
import subprocess
import sys

import pytest

from llm_inference.engine import machine

MEMINFO = "MemTotal: 1000 kB\nMemAvailable:    800 kB\n"


@pytest.fixture(autouse=True)
def eight_processors(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


def named(tmp_path, files):
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    return tmp_path


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "200000 100000"}, 2),
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "10000 100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
    ],
)
def test_processors(tmp_path, files, expected):
    assert machine.processors(named(tmp_path, files)) == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 800 * 1024),
        ({"memory.max": "max", "memory.current": "5"}, 800 * 1024),
        ({"memory.max": "5000", "memory.current": "3000"}, 2000),
        (
            {
                "memory.max": "5000",
                "memory.current": "4000",
                "memory.stat": "inactive_file 1000\nactive_file 500\n",
            },
            2500,
        ),
        (
            {"memory/memory.limit_in_bytes": "5000", "memory/memory.usage_in_bytes": "6000"},
            0,
        ),
        (
            {
                "memory/memory.limit_in_bytes": "9223372036854771712",
                "memory/memory.usage_in_bytes": "6000",
            },
            800 * 1024,
        ),
    ],
)
def test_available_memory(tmp_path, files, expected):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(MEMINFO)
    assert machine.available_memory(named(tmp_path, files), meminfo) == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 1000 * 1024),
        ({"memory.max": "max", "memory.current": "5"}, 1000 * 1024),
        ({"memory.max": "5000", "memory.current": "3000"}, 5000),
        ({"memory.max": "5000000", "memory.current": "3000"}, 1000 * 1024),
    ],
)
def test_total_memory(tmp_path, files, expected):
    (meminfo := tmp_path / "meminfo").write_text(MEMINFO)
    assert machine.total_memory(named(tmp_path, files), meminfo) == expected


def test_what_the_processor_says_of_itself(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Some: CPU\nflags\t\t: fpu avx2 fma\n")
    assert machine.processor_name(cpuinfo) == "Some: CPU"
    for nothing in (tmp_path / "missing", tmp_path / "empty"):
        (tmp_path / "empty").write_text("")
        assert machine.processor_name(nothing) == "cpu"


DRIVER = """
int cuInit(unsigned flags) { return INIT; }
int cuDeviceGetCount(int *count) { *count = COUNT; return 0; }
"""


@pytest.mark.parametrize(
    ("init", "count", "expected"), [(0, 2, True), (0, 0, False), (100, 1, False)]
)
def test_a_card_is_looked_for_where_its_driver_has_one(tmp_path, init, count, expected):
    source, driver = tmp_path / "driver.c", tmp_path / "driver.so"
    source.write_text(DRIVER.replace("INIT", str(init)).replace("COUNT", str(count)))
    compiler = [sys.executable, "-m", "ziglang", "cc", "-shared", "-fPIC"]
    subprocess.run([*compiler, source, "-o", driver], check=True)
    assert machine.may_have_cards(str(driver), tmp_path / "kfd") is expected


def test_without_a_driver_there_is_no_card(tmp_path):
    assert not machine.may_have_cards(str(tmp_path / "missing.so"), tmp_path / "kfd")
    (tmp_path / "kfd").touch()
    assert machine.may_have_cards(str(tmp_path / "missing.so"), tmp_path / "kfd")
