"""The arbiter's workers: their mail, and the rows of the scoreboard that they are sent."""

from __future__ import annotations

import errno
import os
from types import SimpleNamespace

import pytest

from esg.mailbox import FromArbiter, NewRow, ReloadFailed
from esg.supervisor.child import WorkerHandle
from esg.supervisor.workers import Workers


@pytest.fixture
def handle_and_worker():
    """A handle without a process, and the worker's end of its mailbox."""
    handle, workers_end = WorkerHandle.open(1, 1)
    yield handle, workers_end
    handle.close()
    workers_end.close()


def rows(mail) -> list[int]:
    """The numbers of the rows that have arrived."""
    messages, _ = mail.receive(FromArbiter)
    news = [message for message in messages if isinstance(message, NewRow)]
    for fd in [fd for message in news for fd in message.fds]:
        os.close(fd)
    return [message.number for message in news]


def test_a_worker_is_sent_the_rows_of_newer_ones_once_it_serves(handle_and_worker):
    handle, worker = handle_and_worker
    workers = Workers(SimpleNamespace(of=lambda kind: [handle]), None, "", None)
    board = workers._board
    for number in (2, 3):
        board.new_row(number)
        handle.unseen.add(number)
    workers.look_after()
    assert rows(worker) == []
    handle.serves = True
    while handle.mailbox.send(ReloadFailed("full", "x" * 4000)):
        continue
    workers.look_after()
    workers.remove(3)
    rows(worker)
    workers.look_after()
    assert rows(worker) == [2]
    workers.look_after()
    assert rows(worker) == []
    board.remove(2)


def test_a_worker_that_cannot_be_told_keeps_no_other_from_being_told():
    class Handle:
        def __init__(self, full):
            self.full, self.mail = full, []

        def post(self, message):
            if self.full:
                raise OSError(errno.EMFILE, "Too many open files")
            self.mail.append(message)

    handles = {1: Handle(full=False), 2: Handle(full=True), 3: Handle(full=False)}
    children = SimpleNamespace(of=lambda kind: [], get=lambda kind, number: handles.get(number))
    workers = Workers(children, None, "", None)
    message = ReloadFailed("a reason", "")
    with pytest.raises(OSError, match="Too many open files"):
        workers.tell([1, 2, 3, 4], message)
    assert [handle.mail for handle in handles.values()] == [[message], [], [message]]
