"""The threads in which WSGI applications run."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable

Job = Callable[[], None]


class Threads:
    """Daemon threads, started when they are needed. A thread that hangs doesn't delay an exit.

    `concurrent.futures` can't be used, because the interpreter waits for its threads at exit.

    Only one thread at a time is woken for the jobs of one turn of the event loop. It takes one job
    after the other, and the next thread is woken if jobs still wait in the loop's next turn. That
    turn comes when the first thread waits for something, because then it lets the loop run. So an
    application that waits has all its threads, and one that only computes isn't slowed down by
    threads that take the interpreter's lock from each other.
    """

    def __init__(self, size: int, later: Callable[[Job], object]) -> None:
        """At most `size` threads; further jobs wait.

        `later` calls a function in the loop's next turn. `submit` is called on that loop, too.
        """
        self._size = size
        self._later = later
        self._jobs: deque[Job] = deque()
        self._lock = threading.Lock()
        self._idle: list[threading.Lock] = []
        """A lock for each idle thread, which waits until it is released."""
        self._waking = 0
        """The threads that were woken or started and haven't taken a job yet."""
        self._looks = False
        """Whether the next turn of the loop looks for waiting jobs."""
        self.started = 0

    def submit(self, job: Job) -> None:
        """Run `job` in a thread; what it raises is for `threading.excepthook`.

        Raises RuntimeError if there is no thread.
        """
        self._jobs.append(job)
        if not self._looks:
            self._wake_one()
            self._looks = True
            self._later(self._look)

    def close(self) -> None:
        """Let each thread end when no job waits, without waiting for it."""
        with self._lock:
            self.started = self._size = 0
            idle, self._idle = self._idle, []
        for bell in idle:
            bell.release()

    # -- on the loop -------------------------------------------------------------------

    def _look(self) -> None:
        """Wake another thread if more jobs wait than threads are on their way."""
        self._looks = len(self._jobs) > self._waking and self._wake_one()
        if self._looks:
            self._later(self._look)

    def _wake_one(self) -> bool:
        """Wake or start a thread; returns False if all are busy, and no more can be started."""
        with self._lock:
            bell = self._idle.pop() if self._idle else None
            starts = bell is None and self.started < self._size
            self.started += starts
            self._waking += starts or bell is not None
        if bell is not None:
            bell.release()
            return True
        return starts and self._start()

    def _start(self) -> bool:
        thread = threading.Thread(target=self._work, name=f"wsgi-{self.started}", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the system can't start another thread
            with self._lock:
                self.started -= 1
                self._waking -= 1
                if self.started == 0:
                    self._jobs.clear()
                    raise
            return False
        return True

    # -- in the threads ----------------------------------------------------------------

    def _work(self) -> None:
        bell = threading.Lock()
        bell.acquire()
        woken = True
        while True:
            with self._lock:
                self._waking -= woken
                woken = False
                job = self._jobs.popleft() if self._jobs else None
                if job is None:
                    if not self._size:
                        return
                    self._idle.append(bell)
            if job is None:
                bell.acquire()
                woken = True
            else:
                try:
                    job()
                except BaseException:  # noqa: BLE001 - without this thread, jobs might wait forever
                    current = threading.current_thread()
                    threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), current)))
                del job  # a thread that waits for its next job must not keep objects alive
