"""Finds out whether a worker that ended by SIGKILL was killed for lack of memory.

The kernel counts the processes it kills for lack of memory in each cgroup: as `oom_kill` in
`memory.events` (version 2, which includes the cgroups below) and in `memory.oom_control`
(version 1). See the kernel's Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

RECENT = 10.0
"""Seconds for which a counted kill may explain the end of a worker. The kernel counts the kill
before it frees the worker's memory, which takes time.
"""


class OOMKills:
    """The kernel's kills for lack of memory in this process's cgroup."""

    def __init__(self, root: Path = Path("/")) -> None:
        """`root` is the folder that has /proc and /sys; tests give another."""
        self._file = next((file for file in _files(root) if _count(file) is not None), None)
        self._counted = self._read()
        self._seen: deque[float] = deque()

    def look(self, now: float) -> None:
        """Take note of new kills. `now` is in monotonic seconds."""
        count = self._read()
        self._seen.extend([now] * min(count - self._counted, 1000))
        self._counted = count
        while self._seen and self._seen[0] < now - RECENT:
            self._seen.popleft()

    def take(self, now: float) -> Path | None:
        """The file that counted the kill of a process that ended by SIGKILL.

        None if no kill was counted that could be this one. Each kill explains one process.
        """
        self.look(now)
        if not self._seen:
            return None
        self._seen.popleft()
        return self._file

    def _read(self) -> int:
        return (_count(self._file) or 0) if self._file is not None else 0


def _files(root: Path) -> Iterator[Path]:
    """The files that may have the count, the most likely first.

    In a container, /proc/self/cgroup may have the path that the host sees, so its parents are
    tried as well. A cgroup without the memory controller has no such file, but one of its parents
    may.
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
