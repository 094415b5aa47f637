"""Distinguishes workers that the kernel killed for lack of memory from those killed otherwise.

The kernel counts such kills for each cgroup: `oom_kill` in `memory.events` (version 2, where it
includes the cgroups below) and in `memory.oom_control` (version 1). See the kernel's
Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

RECENT = 10.0
"""Seconds for which a counted kill may explain the end of a worker: freeing memory takes time."""


class OOMKills:
    """The kills in this process's cgroup."""

    def __init__(self, root: Path = Path("/")) -> None:
        """`root` is where /proc and /sys are looked for."""
        self._file = next((file for file in _files(root) if _count(file) is not None), None)
        self._counted = self._read()
        self._seen: deque[float] = deque()

    def look(self, now: float) -> None:
        """Note new kills. `now` is in monotonic seconds."""
        count = self._read()
        self._seen.extend([now] * min(count - self._counted, 1000))
        self._counted = count
        while self._seen and self._seen[0] < now - RECENT:
            self._seen.popleft()

    def take(self, now: float) -> Path | None:
        """For a process that ended by SIGKILL: the file that counted its kill, if one did."""
        self.look(now)
        if not self._seen:
            return None
        self._seen.popleft()
        return self._file

    def _read(self) -> int:
        return (_count(self._file) or 0) if self._file is not None else 0


def _files(root: Path) -> Iterator[Path]:
    """Where the count may be, the likeliest first: in a container the path isn't that of outside.

    A cgroup without the memory controller has no such file; the nearest parent with one counts.
    """
    for line in _lines(root / "proc/self/cgroup"):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        inside = PurePosixPath("/", path)
        for folder in (inside, *inside.parents):
            below = folder.relative_to("/")
            if "memory" in controllers.split(","):
                yield root / "sys/fs/cgroup/memory" / below / "memory.oom_control"
            elif not controllers:
                yield root / "sys/fs/cgroup" / below / "memory.events"


def _count(file: Path) -> int | None:
    """The number of kills, or None if the file doesn't say."""
    for line in _lines(file):
        name, _, value = line.partition(" ")
        if name == "oom_kill" and value.strip().isdigit():
            return int(value)
    return None


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
