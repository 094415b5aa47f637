"""How many CPUs this process may use, according to its affinity and its cgroup's quota."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def usable(root: Path = Path("/")) -> int:
    """The number of CPUs for `--workers auto`, at least 1; a quota of 1.5 CPUs counts as 2.

    See sched_getaffinity(2), and the kernel's documentation of cgroups: `cpu.max` in version 2,
    `cpu.cfs_quota_us` in version 1. The quotas of a cgroup's ancestors apply, too. `root` is the
    folder that contains /proc and /sys.
    """
    count = float(len(os.sched_getaffinity(0)))
    return max(1, math.ceil(min([count, *_quotas(root)])))


def _quotas(root: Path) -> Iterator[float]:
    for line in _lines(root / "proc/self/cgroup"):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            for folder in _upwards(root / "sys/fs/cgroup", path):
                yield from _quota(_words(folder / "cpu.max"))
        elif "cpu" in controllers.split(","):
            for mount in dict.fromkeys((controllers, "cpu")):
                for folder in _upwards(root / "sys/fs/cgroup" / mount, path):
                    quota = _words(folder / "cpu.cfs_quota_us")
                    yield from _quota(quota + _words(folder / "cpu.cfs_period_us"))


def _upwards(mount: Path, path: str) -> Iterator[Path]:
    """The cgroup's folder and its parents; inside a container some of them may be missing."""
    inside = PurePosixPath("/", path)
    for folder in (inside, *inside.parents):
        yield mount / folder.relative_to("/")


def _quota(words: list[str]) -> Iterator[float]:
    """The number of CPUs for a quota and its period, in microseconds; nothing without a quota."""
    if len(words) == 2 and all(word.isdigit() for word in words) and int(words[1]):
        yield int(words[0]) / int(words[1])


def _words(file: Path) -> list[str]:
    return " ".join(_lines(file)).split()


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []
