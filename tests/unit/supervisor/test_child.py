"""A worker's handle in the arbiter: mail, signals, the file of its stacks."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from esg.mailbox import Drain, FromArbiter, Mailbox, NewLogFiles, ReloadFailed
from esg.supervisor.child import WorkerHandle


@pytest.fixture
def handle_and_worker() -> Iterator[tuple[WorkerHandle, Mailbox]]:
    """A handle without a process, and the worker's end of its mailbox."""
    handle, workers_end = WorkerHandle.open(1, 1)
    yield handle, workers_end
    handle.close()
    workers_end.close()


def fill(handle: WorkerHandle) -> None:
    """Post into a mailbox that isn't read, until there is no room."""
    while handle.mailbox.send(ReloadFailed("full", "x" * 4000)):
        continue


def received(mailbox: Mailbox) -> list[FromArbiter]:
    """The messages that have arrived, without those of `fill`."""
    messages, _ = mailbox.receive(FromArbiter)
    return [message for message in messages if getattr(message, "reason", "") != "full"]


def test_a_drain_that_finds_a_full_mailbox_is_delivered_later(handle_and_worker) -> None:
    handle, worker = handle_and_worker
    fill(handle)
    handle.post(Drain("reload", 30.0, final=False))
    handle.deliver()
    assert received(worker) == []
    handle.deliver()
    (drain,) = received(worker)
    assert drain.reason == "reload"


def test_the_grace_period_of_a_drain_runs_while_its_message_waits(
    handle_and_worker, monkeypatch
) -> None:
    handle, worker = handle_and_worker
    now = [100.0]
    monkeypatch.setattr("esg.supervisor.child.time.monotonic", lambda: now[0])
    fill(handle)
    handle.post(Drain("reload", 30.0, final=False))
    now[0] += 12.0
    received(worker)
    handle.deliver()
    assert received(worker) == [Drain("reload", 18.0, final=False)]


def test_only_the_newest_waiting_message_of_a_kind_is_sent(handle_and_worker) -> None:
    handle, worker = handle_and_worker
    fill(handle)
    for reason in ("first", "second"):
        handle.post(ReloadFailed(reason, ""))
    handle.post(Drain("shutdown", 1.0, final=True))
    received(worker)
    handle.deliver()
    assert [message.reason for message in received(worker)] == ["second", "shutdown"]


def test_descriptors_of_waiting_mail_lead_to_the_same_files_later(
    handle_and_worker, tmp_path
) -> None:
    handle, worker = handle_and_worker
    fill(handle)
    log, other = (os.open(tmp_path / name, os.O_CREAT | os.O_WRONLY) for name in ("log", "other"))
    for _ in range(2):  # the second takes the first one's place
        handle.post(NewLogFiles(["log"], [log]))
    inode = os.fstat(log).st_ino
    os.dup2(other, log)
    received(worker)
    open_before = len(os.listdir("/proc/self/fd"))
    handle.deliver()
    assert len(os.listdir("/proc/self/fd")) == open_before - 1
    (news,) = received(worker)
    assert os.fstat(news.fds[0]).st_ino == inode
    for fd in (log, other, *news.fds):
        os.close(fd)


def test_mail_for_a_worker_that_is_gone_is_not_kept(handle_and_worker) -> None:
    handle, worker = handle_and_worker
    worker.close()
    handle.post(Drain("reload", 30.0, final=False))
    assert handle._owed == []
