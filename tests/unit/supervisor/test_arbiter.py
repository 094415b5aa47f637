"""The arbiter's loop and its actions, with simulated children and a clock that the test sets.

A test is a generator. It plays the workers, the kernel and the operator; at each `yield` the
arbiter works until it would wait. The arbiter's own `run` runs, with real sockets, mailboxes and
log files; what it would fork, signal or reap is written down by `World`.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import functools
import gc
import logging
import os
import re
import selectors
import signal
import time
from collections.abc import Iterator
from typing import Any, get_args

import pytest

from esg import mailbox
from esg.errors import ConfigError
from esg.mailbox import FromArbiter, Mailbox
from esg.payload import DUMP_SIGNAL, Settings
from esg.settings.build import Raw, build
from esg.supervisor import arbiter as module
from esg.supervisor import processes, signals, workers
from esg.supervisor.arbiter import Arbiter
from esg.supervisor.child import WorkerHandle
from esg.supervisor.fleet import actions as do
from esg.supervisor.fleet import events as on
from esg.supervisor.net import FAILURE_PAUSE
from esg.supervisor.orders import Orders

FIRST_PID = 1_000_001
"""Above the largest pid that Linux gives by default, so that a mistake signals no process."""

KILLED, SEGFAULT, FINE = 9, 11, 0
"""Wait statuses."""


class Selector(selectors.DefaultSelector):
    """Lets the test go on when the arbiter would wait."""

    world: World

    def select(self, timeout: float | None = None) -> list[Any]:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        self.world.go_on(timeout)
        return super().select(0)


class Worker:
    """A worker's side."""

    def __init__(self, handle: WorkerHandle, mail: Mailbox) -> None:
        self.handle = handle
        self._mail = mail
        self.number = handle.number
        self.send = mail.send

    @property
    def pid(self) -> int:
        assert self.handle.pid is not None
        return self.handle.pid

    def mail(self) -> list[FromArbiter]:
        """What the arbiter has sent since the last call."""
        messages, _ = self._mail.receive(FromArbiter)
        for message in messages:
            for fd in mailbox.descriptors_of(message):
                os.close(fd)
        return messages

    def fill(self) -> None:
        """Leave no room in its mailbox."""
        while self.handle.mailbox.send(mailbox.ReloadFailed("full", "x" * 4000)):
            continue


class World:
    """An arbiter, and everything around it."""

    def __init__(self, folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch
        self.now = time.monotonic()
        self.log_file = folder / "error.log"
        self.raw: dict[str, Any] = {
            "app": "example:app",
            "bind": ("127.0.0.1:0",),
            "workers": 2,
            "error_logfile": str(self.log_file),
            "access_log": False,
        }
        self.workers: dict[int, Worker] = {}
        """The newest worker with each number."""
        self._mailboxes: list[Mailbox] = []
        self.fork_error: Exception | None = None
        self.kill_error: OSError | None = None
        self.killed: list[tuple[int, int]] = []
        self.pauses: list[float] = []
        self.allow_critical = False
        """Whether a test has planted an error that the net catches."""
        self._ended: list[tuple[int, int]] = []
        self._script: Iterator[None] = iter(())
        Selector.world = self
        monkeypatch.setattr(module.selectors, "DefaultSelector", Selector)
        monkeypatch.setattr(module, "setproctitle", lambda title: None)
        monkeypatch.setattr(signals.SignalQueue, "install", lambda queue: None)
        monkeypatch.setattr(signals.signal, "set_wakeup_fd", lambda fd: None)
        monkeypatch.setattr(processes, "fork", self._fork)
        monkeypatch.setattr(processes, "reap", self._reap)
        monkeypatch.setattr(os, "kill", self._kill)
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(time, "monotonic_ns", lambda: int(self.now * 1e9))
        monkeypatch.setattr(time, "sleep", self.pauses.append)
        monkeypatch.setattr(WorkerHandle, "open", self._open(WorkerHandle.open))

    # -- what the arbiter asks for -----------------------------------------------------

    def _open(self, original: Any) -> Any:
        def opened(number: int, generation: int) -> tuple[WorkerHandle, Mailbox]:
            handle, theirs = original(number, generation)
            self._close_later(theirs)
            self.workers[number] = Worker(handle, theirs)
            return handle, theirs

        return opened

    def _close_later(self, mail: Mailbox) -> None:
        """The arbiter closes its copy of a worker's mailbox, which is the only one here."""
        self._mailboxes.append(mail)
        self._patch.setattr(type(mail), "close", lambda mail: None)

    def _fork(self, main: Any) -> int:
        if self.fork_error is not None:
            raise copy.copy(self.fork_error)  # a new one each time, without the last traceback
        self._pid = getattr(self, "_pid", FIRST_PID - 1) + 1
        return self._pid

    def _reap(self) -> list[tuple[int, int]]:
        ended, self._ended = self._ended, []
        return ended

    def _kill(self, pid: int, signum: int) -> None:
        assert pid >= FIRST_PID, "a real process would be signalled"
        if self.kill_error is not None:
            raise self.kill_error
        self.killed.append((pid, signum))

    # -- what a test does --------------------------------------------------------------

    def run(self, script: Any, **settings: Any) -> int:
        """Run an arbiter for as long as the script takes; returns its exit code."""
        self.raw |= settings
        self.arbiter = Arbiter(self.settings(), lambda assignment: 0, self.settings)
        self._script = iter(script(self))
        return self.arbiter.run()

    def settings(self) -> Settings:
        return Settings(build({name: Raw(value, "the test") for name, value in self.raw.items()}))

    def go_on(self, timeout: float | None) -> None:
        try:
            next(self._script)
        except StopIteration:
            raise AssertionError(f"the script is over, the arbiter waits: {self.log}") from None

    def signal(self, signum: int) -> None:
        """Send the arbiter a signal."""
        self.arbiter._signals._note(signum, None)
        self.arbiter._signals._writer.send(b"\0")

    def serve(self) -> Iterator[None]:
        """Boot whatever was forked."""
        yield
        for worker in list(self.workers.values()):
            if not worker.handle.serves and not worker.handle.reaped:
                worker.send(mailbox.Ready())
        yield

    def end(self, number: int, status: int = FINE) -> None:
        """Have a worker's process end."""
        self._ended.append((self.workers[number].pid, status))
        self.signal(signal.SIGCHLD)

    def stop(self) -> Iterator[None]:
        """Stop gracefully."""
        self.signal(signal.SIGTERM)
        yield
        for handle in list(self.arbiter._workers):
            self.end(handle.number)
        yield

    def forget_rows(self) -> None:
        """Let go of the rows of workers that couldn't be forked; only this object keeps them."""
        for worker in self.workers.values():
            if worker.handle.pid is None:
                worker.handle.row = None

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def close(self) -> None:
        self._patch.undo()
        for worker in self.workers.values():
            worker.handle.close()
        for mail in self._mailboxes:
            mail.close()


@pytest.fixture
def world(tmp_path, monkeypatch):
    logger = logging.getLogger("esg")
    before = list(logger.handlers), logger.level, logger.propagate
    world = World(tmp_path, monkeypatch)
    yield world
    world.close()
    logger.handlers, logger.level, logger.propagate = before


def script(function):
    """A test whose body is the script, with a graceful stop at its end."""

    @functools.wraps(function)
    def test(world):
        def whole(world):
            yield from world.serve()
            yield from function(world)
            yield from world.stop()

        assert world.run(whole) == 0
        assert world.allow_critical or "CRITICAL" not in world.log

    del test.__wrapped__  # pytest would look at the arguments of the script
    return test


def drains(worker):
    return [message for message in worker.mail() if isinstance(message, mailbox.Drain)]


def open_files():
    """What the descriptors of this process refer to."""
    folder = "/proc/self/fd"
    found = set()
    for name in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError):  # that of the folder itself
            found.add(os.readlink(f"{folder}/{name}"))
    return found


# -- the life of a service -------------------------------------------------------------


def test_it_serves_and_stops(world):
    def life(world):
        yield from world.serve()
        assert "serving workers=2" in world.log
        assert world.arbiter._net._spread
        world.signal(signal.SIGTERM)
        yield
        for worker in world.workers.values():
            (drain,) = drains(worker)
            assert (drain.reason, drain.final) == ("shutdown", True)
            world.end(worker.number)
        yield

    assert world.run(life) == 0
    assert "stopped, exit status 0" in world.log
    assert "CRITICAL" not in world.log


def test_nothing_is_left_open(world):
    before = open_files()

    def life(world):
        yield from world.serve()
        yield from world.stop()

    world.run(life)
    world.close()
    gc.collect()  # the arbiter is part of a reference cycle, and keeps the rows of its scoreboard
    assert open_files() - before <= {str(world.log_file)}


def test_an_application_that_cannot_boot_ends_the_start(world):
    def life(world):
        yield
        for number in (1, 2):
            world.workers[number].send(mailbox.BootFailed("no module shop", "Traceback", 4))
            world.end(number, 4 << 8)
        yield

    assert world.run(life) == 4
    assert "no module shop" in world.log


@script
def test_a_killed_worker_is_replaced(world):
    world.end(1, KILLED)
    yield
    assert "died: killed by SIGKILL from another process or the kernel" in world.log
    yield from world.serve()
    assert len(list(world.arbiter._workers)) == 2, world.log


def test_a_worker_with_too_much_memory_is_replaced(world, monkeypatch):
    sizes = {}
    monkeypatch.setattr(workers, "memory_of", lambda pid, enough: sizes.get(pid, enough))

    def life(world):
        yield from world.serve()
        sizes[world.workers[1].pid] = 9 << 20
        world.now += 31
        yield
        assert "worker=1 gen=1 pid=1000001 due reason=max-memory memory=9MiB" in world.log
        assert drains(world.workers[1]) == []
        yield from world.serve()
        assert [order.reason for order in drains(world.workers[1])] == ["max-memory"]
        yield from world.stop()

    assert world.run(life, max_memory="8MiB") == 0
    assert world.log.count("due reason") == 1


def test_the_soft_limit_of_memory_is_looked_at_less_often_than_the_hard_one(world, monkeypatch):
    looks = []
    monkeypatch.setattr(
        workers, "memory_of", lambda pid, enough: looks.append((pid, enough >> 20)) or enough
    )

    def life(world):
        yield from world.serve()
        world.now += 31
        yield
        looks.clear()
        for _ in range(9):
            world.now += 1.1
            yield
        yield from world.stop()

    assert world.run(life, workers=1, max_memory="8MiB", max_memory_hard="16MiB") == 0
    assert looks.count((FIRST_PID, 8)) <= 1
    assert looks.count((FIRST_PID, 16)) >= 7


@script
def test_a_segfault_is_logged_with_its_stack(world):
    os.write(world.workers[1].handle.stack_fd, b"Fatal Python error: Segmentation fault\n\nhere")
    world.end(1, SEGFAULT)
    yield
    assert re.search(r"died: killed by SIGSEGV.*\n  Fatal Python error", world.log)
    yield from world.serve()


@script
def test_the_last_mail_of_a_worker_is_read_before_its_end(world):
    world.workers[1].send(mailbox.Due("max-requests"))
    world.end(1)
    yield
    yield from world.serve()
    assert "CRITICAL" not in world.log


@script
def test_workers_see_the_rows_of_the_others_and_not_their_own(world):
    rows = {
        worker.number: {m.number for m in worker.mail() if isinstance(m, mailbox.NewRow)}
        for worker in world.workers.values()
    }
    assert rows == {1: {2}, 2: set()}  # what was there at the fork is inherited
    assert not any(handle.unseen for handle in world.arbiter._workers)
    yield


@script
def test_the_reason_is_logged_even_if_the_stack_cannot_be_read(world):
    def fail():
        raise OSError("no stack")

    world.workers[1].handle.last_stack = fail
    world.end(1, KILLED)
    yield
    assert "died: killed by SIGKILL from another process or the kernel" in world.log
    assert "no stack" in world.log
    yield from world.serve()
    world.allow_critical = True


@script
def test_an_unknown_process_is_reaped_without_a_log_line(world):
    before = world.log
    world._ended.append((FIRST_PID + 77, 0))
    world.signal(signal.SIGCHLD)
    yield
    assert world.log == before


# -- mail ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "event"),
    [
        (mailbox.Ready(), on.WorkerReady(1)),
        (mailbox.BootFailed("why", "where", 3), on.WorkerBootFailed(1, "why", "where", 3)),
        (mailbox.Due("max-requests"), on.WorkerDue(1, "max-requests")),
        (mailbox.Draining("SIGTERM"), on.WorkerRetiring(1, "SIGTERM")),
        (mailbox.StoppedAccepting(), on.WorkerStoppedAccepting(1)),
    ],
)
def test_mail_of_a_worker_becomes_an_event(world, monkeypatch, message, event):
    events = []

    def life(world):
        yield
        monkeypatch.setattr(world.arbiter, "_decide", lambda event: events.append(event) or [])
        world.workers[1].send(message)
        yield
        world.arbiter._exit_code = 0
        world.signal(signal.SIGCHLD)
        yield

    world.run(life)
    assert event in events


def test_every_message_of_a_worker_is_handled(world):
    """Whatever it says, even at an odd time, the arbiter goes on."""
    odd = [
        mailbox.NoLifespan("it returned", usual=True),
        mailbox.Serves("ASGI", "uvloop", "httptools"),
        mailbox.InStartup("shop.py:3"),
        mailbox.HeldRequests(["GET /"], [1.0], 1, 0),
        mailbox.UntrustedPeer("10.0.0.1", "X-Forwarded-For", ["127.0.0.1"]),
        mailbox.Ready(),
        mailbox.Due("max-requests"),
        mailbox.Draining("SIGTERM"),
        mailbox.StoppedAccepting(),
    ]
    kinds = set(get_args(mailbox.FromWorker)) - {mailbox.BootFailed}
    assert {type(message) for message in odd} == kinds

    def life(world):
        yield from world.serve()
        for message in odd:
            world.workers[1].send(message)
        yield
        yield from world.serve()
        yield from world.stop()

    assert world.run(life) == 0
    assert "CRITICAL" not in world.log
    assert "esg " in world.log
    assert "X-Forwarded-For" in world.log


@script
def test_mail_that_does_not_fit_is_sent_later(world):
    worker = world.workers[1]
    worker.fill()
    world.signal(signal.SIGUSR1)
    yield
    assert not [m for m in worker.mail() if isinstance(m, mailbox.NewLogFiles)]
    world.now += 1.5
    yield
    assert [m for m in worker.mail() if isinstance(m, mailbox.NewLogFiles)]


@script
def test_a_closed_mailbox_is_not_read_again(world):
    world._mailboxes[0]._sock.close()
    os.close(world._mailboxes[0]._pipe)
    world._mailboxes[0]._pipe = -1
    yield
    watched = {key.fileobj for key in world.arbiter._selector.get_map().values()}
    assert world.workers[1].handle.mailbox not in watched
    world.end(1, KILLED)
    yield
    yield from world.serve()


# -- spawning --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)), "temporarily unavailable"),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), "LimitNOFILE"),
        (ConfigError("no such user"), "no such user"),
        (ZeroDivisionError("oops"), "oops"),
    ],
)
def test_a_worker_that_cannot_be_forked_is_tried_again(world, error, text):
    def life(world):
        yield from world.serve()
        world.fork_error = error
        world.end(1, KILLED)
        yield
        assert text in world.log
        world.fork_error = None
        world.now += 60
        yield
        yield from world.serve()
        assert len(list(world.arbiter._workers)) == 2
        yield from world.stop()

    assert world.run(life) == 0
    assert ("CRITICAL" in world.log) == isinstance(error, ZeroDivisionError)


def test_no_descriptor_leaks_when_forks_fail(world):
    def life(world):
        yield from world.serve()
        world.end(1, KILLED)
        world.fork_error = BlockingIOError(errno.EAGAIN, "no")
        yield
        world.forget_rows()
        gc.collect()  # descriptors of other tests
        kept = len(world._mailboxes)
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            world.now += 60
            yield
        world.forget_rows()
        theirs = 2 * (len(world._mailboxes) - kept)  # the workers' ends, which only this test keeps
        assert theirs > 0
        assert len(os.listdir("/proc/self/fd")) == before + theirs
        world.fork_error = None
        world.now += 60
        yield from world.serve()
        yield from world.stop()

    assert world.run(life) == 0


# -- signals to workers ----------------------------------------------------------------


@script
def test_a_stuck_worker_is_asked_where_it_is_and_ended(world):
    worker = world.workers[1]
    worker.handle.row.beat()
    for _ in range(120):
        world.now += 1
        world.workers[2].handle.row.beat()
        yield
        if (worker.pid, DUMP_SIGNAL) in world.killed:
            os.write(worker.handle.stack_fd, b"Thread 0x1 (most recent call first):\n  File a")
        if (worker.pid, signal.SIGABRT) in world.killed:
            break
    assert "stuck: its event loop has stood still" in world.log
    assert "stacks of its threads" in world.log
    world.end(1, signal.SIGABRT)
    yield
    yield from world.serve()


@script
def test_a_signal_that_is_not_permitted_is_logged_once_and_replaced_by_mail(world):
    worker = world.workers[1]
    world.kill_error = PermissionError(errno.EPERM, "Operation not permitted")
    world.arbiter._perform(do.Quit(1))
    assert [drain.reason for drain in drains(worker)] == ["SIGQUIT"]
    world.arbiter._perform(do.Kill(1))
    assert world.log.count("can't be sent") == 1
    assert "CAP_KILL" in world.log
    assert worker.handle.mailbox._sock.fileno() == -1
    world.kill_error = None
    world.end(1)
    yield
    yield from world.serve()


# -- reloads ---------------------------------------------------------------------------


@script
def test_a_reload_replaces_the_workers(world):
    world.signal(signal.SIGHUP)
    yield
    for _ in range(6):
        yield from world.serve()
        for worker in world.workers.values():
            if drains(worker):
                world.end(worker.number)
        yield
    assert "reloaded workers=2" in world.log
    assert {handle.generation for handle in world.arbiter._workers} == {2}
    assert world.arbiter._generations.current.number == 2


@script
def test_settings_that_cannot_be_read_change_nothing(world):
    world.raw["workers"] = "many"
    world.signal(signal.SIGHUP)
    yield
    assert "reload refused, gen=1 goes on serving" in world.log
    world.raw["workers"] = 2
    assert {handle.generation for handle in world.arbiter._workers} == {1}


@script
def test_a_log_that_cannot_be_opened_changes_nothing(world):
    world.raw |= {"access_log": True, "access_logfile": "/proc/no/such/folder"}
    world.signal(signal.SIGHUP)
    yield
    assert "gen=1 goes on serving" in world.log
    assert "/proc/no/such/folder" in world.log
    assert {handle.generation for handle in world.arbiter._workers} == {1}


@script
def test_ttin_adds_a_worker_and_ttou_removes_one(world):
    world.signal(signal.SIGTTIN)
    yield
    yield from world.serve()
    assert len(list(world.arbiter._workers)) == 3
    world.signal(signal.SIGTTOU)
    yield
    assert sum(handle.draining for handle in world.arbiter._workers) == 1


# -- the table of actions --------------------------------------------------------------

ABSENT = 99

ACTIONS = [
    do.Drain(ABSENT, "reload", 1.0, final=False),
    do.Discard(ABSENT, 1.0, final=False),
    do.Quit(ABSENT),
    do.DumpStack(ABSENT),
    do.AskWhere(ABSENT),
    do.ReportBoot(ABSENT, 5.0),
    do.ReportStop((ABSENT,), quick=False),
    do.Abort(ABSENT),
    do.Kill(ABSENT),
    do.ReopenLogs((ABSENT,)),
    do.ShowFailure((ABSENT,), "why", "where"),
    do.Log("info", "said", ABSENT),
    do.StopWatching(),
    do.Tell("serving", "2 workers"),
    do.Answer(7, ok=True, text="done"),
]


def test_every_action_is_in_the_table():
    assert set(Arbiter._PERFORM) | set(Orders.PERFORM) == set(get_args(do.Action))
    assert not set(Arbiter._PERFORM) & set(Orders.PERFORM)


@pytest.mark.parametrize("action", ACTIONS, ids=lambda action: type(action).__name__)
def test_an_action_for_a_worker_that_is_gone_does_no_harm(world, action):
    """It may not have been forked, or its end was noticed after the fleet had decided."""

    def life(world):
        yield from world.serve()
        assert world.arbiter._perform(action) is None
        assert world.killed == []
        yield from world.stop()

    assert world.run(life) == 0


# -- the net ---------------------------------------------------------------------------


def test_an_exception_is_logged_and_the_loop_continues(world, monkeypatch):
    def life(world):
        yield from world.serve()
        monkeypatch.setattr(world.arbiter._sockets, "look_after", lambda: 1 / 0)
        for _ in range(3):
            world.now += 1.5
            yield
        monkeypatch.undo_look_after()
        yield from world.stop()

    monkeypatch.undo_look_after = lambda: setattr(
        world.arbiter._sockets, "look_after", lambda: None
    )
    assert world.run(life) == 0
    assert world.log.count("unexpected error, the arbiter goes on") == 1
    assert "ZeroDivisionError" in world.log
    assert world.pauses == [FAILURE_PAUSE] * len(world.pauses) != []


def test_the_next_action_is_performed_after_one_that_raises(world, monkeypatch):
    def life(world):
        yield from world.serve()
        perform = dict(Arbiter._PERFORM) | {do.Log: lambda arbiter, action: 1 / 0}
        monkeypatch.setattr(Arbiter, "_PERFORM", perform)
        world.signal(signal.SIGTERM)
        yield
        assert all(drains(worker) for worker in world.workers.values())
        for number in (1, 2):
            world.end(number)
        yield

    assert world.run(life) == 0
    assert "ZeroDivisionError" in world.log


def test_an_exception_before_workers_serve_ends_the_start(world, monkeypatch):
    monkeypatch.setattr(Arbiter, "_listen", lambda arbiter: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        world.run(lambda world: iter(()))
