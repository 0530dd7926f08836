"""What the container may use: processors, memory and cards.

Knows Linux control groups of both versions, /proc, and how CUDA's driver is asked without torch.
Knows nothing of the model.
"""

import ctypes
import math
import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
# Version 1 writes "no limit" as a number close to 2**63.
_UNLIMITED = 1 << 60
_CPUINFO = Path("/proc/cpuinfo")
# Where AMD's driver is, torch may have a device that it calls cuda too.
_ROCM = Path("/dev/kfd")


def processors(root: Path = _CGROUP) -> int:
    """Processors this process may use at once, at least 1: its affinity, capped by its quota."""
    usable = len(os.sched_getaffinity(0))
    quota = _processor_quota(root)
    return usable if quota is None else max(1, min(usable, math.ceil(quota)))


def available_memory(root: Path = _CGROUP, meminfo: Path = Path("/proc/meminfo")) -> int:
    """Bytes that can still be allocated: what the machine has free, capped by the cgroup."""
    free = _meminfo(meminfo, "MemAvailable")
    limit, used = _memory_limit(root)
    return free if limit is None else max(0, min(free, limit - used))


def total_memory(root: Path = _CGROUP, meminfo: Path = Path("/proc/meminfo")) -> int:
    """Bytes of memory this process may use at most: the machine's, capped by the cgroup."""
    total = _meminfo(meminfo, "MemTotal")
    limit, _ = _memory_limit(root)
    return total if limit is None else min(total, limit)


def processor_name(cpuinfo: Path = _CPUINFO) -> str:
    """What the processor calls itself, "cpu" if it does not say."""
    return _cpuinfo(cpuinfo, "model name") or "cpu"


def may_have_cards(driver: str = "libcuda.so.1", rocm: Path = _ROCM) -> bool:
    """Whether it is worth asking torch for a card: CUDA's driver has one, or AMD's is there."""
    if rocm.exists():
        return True
    try:
        library = ctypes.CDLL(driver)
        count = ctypes.c_int(0)
        failed = library.cuInit(0) or library.cuDeviceGetCount(ctypes.byref(count))
    except (OSError, AttributeError):
        return False
    return not failed and count.value > 0


def _cpuinfo(cpuinfo: Path, name: str) -> str | None:
    try:
        with cpuinfo.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                key, _, value = line.partition(":")
                if key.strip() == name:
                    return value.strip()
    except OSError:
        pass
    return None


def _processor_quota(root: Path) -> float | None:
    if (fields := _read(root / "cpu.max")) is not None:
        quota, period = fields.split()
        return None if quota == "max" else int(quota) / int(period)
    quota_us = _read(root / "cpu" / "cpu.cfs_quota_us")
    period_us = _read(root / "cpu" / "cpu.cfs_period_us")
    if quota_us is None or period_us is None or int(quota_us) <= 0:
        return None
    return int(quota_us) / int(period_us)


def _memory_limit(root: Path) -> tuple[int | None, int]:
    """Limit and use in bytes; page cache that can be reclaimed does not count as used."""
    for limit_file, used_file, stat_file in (
        (root / "memory.max", root / "memory.current", root / "memory.stat"),
        (
            root / "memory" / "memory.limit_in_bytes",
            root / "memory" / "memory.usage_in_bytes",
            root / "memory" / "memory.stat",
        ),
    ):
        limit, used = _read(limit_file), _read(used_file)
        if limit is None or used is None:
            continue
        if limit == "max" or int(limit) >= _UNLIMITED:
            return None, 0
        return int(limit), int(used) - _reclaimable(_read(stat_file) or "")
    return None, 0


def _reclaimable(stat: str) -> int:
    values = dict(line.split() for line in stat.splitlines() if line.count(" ") == 1)
    names = ("total_inactive_file", "total_active_file")
    if "total_inactive_file" not in values:
        names = ("inactive_file", "active_file")
    return sum(int(values.get(name, 0)) for name in names)


def _meminfo(meminfo: Path, name: str) -> int:
    for line in meminfo.read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{meminfo} does not say {name}")


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return None
