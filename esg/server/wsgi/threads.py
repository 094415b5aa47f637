"""The threads in which WSGI applications run."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Final

_END: Final = None


class Threads:
    """Daemon threads, started when they are needed. A thread that hangs doesn't delay an exit.

    `concurrent.futures` can't be used, because the interpreter waits for its threads at exit.
    """

    def __init__(self, size: int) -> None:
        """At most `size` threads; further jobs wait."""
        self._size = size
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._free = 0
        """The number of idle threads, minus the number of waiting jobs."""
        self.started = 0

    def submit(self, job: Callable[[], None]) -> None:
        """Run `job`, which must not raise, in a thread. Raises RuntimeError if there is none."""
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
        except RuntimeError:  # the system can't start another thread
            with self._lock:
                self.started -= 1
                self._free -= 1
                if self.started == 0:
                    self._free += 1
                    raise

    def close(self) -> None:
        """Let each thread end when its jobs are done, without waiting for it."""
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
