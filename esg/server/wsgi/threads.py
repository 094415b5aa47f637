"""The threads in which WSGI applications run."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Final

_END: Final = None


class Threads:
    """Daemon threads, made as they are needed: one that hangs doesn't keep its process from ending.

    `concurrent.futures` has no such threads: the interpreter waits for each of them at its end.
    """

    def __init__(self, size: int) -> None:
        """At most `size` threads; further jobs wait."""
        self._size = size
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._free = 0
        """Threads without a job, less the jobs that wait for one."""
        self.started = 0

    def submit(self, job: Callable[[], None]) -> None:
        """Have a thread run `job`, which must raise nothing. Raises RuntimeError for no thread."""
        with self._lock:
            self._free -= 1
            grows = self._free < 0 and self.started < self._size
            if grows:
                self.started += 1
                self._free += 1
        if grows:
            self._start()
        self._jobs.put(job)

    def _start(self) -> None:
        thread = threading.Thread(target=self._work, name=f"wsgi-{self.started}", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the system has no room for another
            with self._lock:
                self.started -= 1
                self._free -= 1
                if self.started == 0:
                    self._free += 1
                    raise

    def close(self) -> None:
        """Let each thread end when it has nothing more to do; nobody waits for that."""
        with self._lock:
            started, self.started, self._size = self.started, 0, 0
        for _ in range(started):
            self._jobs.put(_END)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not _END:
            job()
            del job  # a thread that waits for its next job must not keep objects alive
            with self._lock:
                self._free += 1
