"""The table of children: pids, mail and ends, without a process."""

from __future__ import annotations

import os
import selectors
import signal

import pytest

from esg import mailbox
from esg.mailbox import CantWatch, Changed, FromWatcher, Hello
from esg.supervisor import children as table
from esg.supervisor import processes
from esg.supervisor.child import Child
from esg.supervisor.children import MOST_EARLY_ENDS, Children, Duties

STATUS = 3 << 8
"""The wait status of a process that has exited with 3."""


class Helper(Child):
    """A kind of child for these tests."""

    kind = "helper"


class Other(Child):
    """Another kind."""


class World:
    """A table of children, the kernel that it sees, and what it has reported."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.selector = selectors.DefaultSelector()
        self.children = Children(self.selector, self.attempt, self.let_go)
        self.mail: list[tuple[int, object]] = []
        self.ends: list[tuple[int, int | None]] = []
        self.released: list[int] = []
        self.errors: list[Exception] = []
        self.ended: list[tuple[int, int]] = []
        """Pids and statuses that the next `reap` gives."""
        self.forked: list[int] = []
        """Pids that the next forks give."""
        self.own: set[int] = set()
        """Pids of this process's children."""
        self.killed: list[tuple[int, int]] = []
        self.theirs: dict[int, mailbox.Mailbox] = {}
        """The newest children's ends of their mailboxes."""
        self.opened: list[mailbox.Mailbox] = []
        self.duties = Duties(FromWatcher, self.on_mail, self.on_end)
        monkeypatch.setattr(processes, "fork", self.fork)
        monkeypatch.setattr(processes, "reap", self.reap)
        monkeypatch.setattr(processes, "is_own_child", self.own.__contains__)
        monkeypatch.setattr(os, "kill", lambda pid, signum: self.killed.append((pid, signum)))

    def fork(self, main):
        if not self.forked:
            raise BlockingIOError(11, "no room for a process")
        return self.forked.pop(0)

    def reap(self):
        ended, self.ended = self.ended, []
        return ended

    def attempt(self, function, *arguments):
        try:
            return function(*arguments)
        except Exception as error:  # noqa: BLE001 - the arbiter's net catches everything, too
            self.errors.append(error)

    def let_go(self, child):
        self.released.append(child.number)

    def on_mail(self, child, messages):
        self.mail += [(child.number, message) for message in messages]

    def on_end(self, child, status):
        self.ends.append((child.number, status))

    def pair(self, number=1, kind=Helper):
        """A child and its end of its mailbox; a copy of that end stays open in this object."""
        ours, theirs = mailbox.pair()
        self.theirs[number] = theirs
        self.opened.append(theirs)
        return kind(number, ours), theirs

    def start(self, pid, number=1, kind=Helper):
        """A child that was forked."""
        child, theirs = self.pair(number, kind)
        self.forked.append(pid)
        close, theirs.close = theirs.close, lambda: None
        self.children.start(child, theirs, lambda: 0, self.duties)
        theirs.close = close
        return child

    def add(self, number=1):
        """A child that another child forks, so that its pid isn't known yet."""
        child, _ = self.pair(number)
        self.children.add(child, self.duties)
        return child

    def turn(self):
        """Read what has come, as the arbiter's loop does."""
        for key, _ in self.selector.select(0):
            self.attempt(key.data)

    def close(self):
        for theirs in self.opened:
            theirs.close()
        for kind in (Helper, Other):
            for child in self.children.of(kind):
                child.close()
        self.selector.close()


@pytest.fixture
def world(monkeypatch):
    world = World(monkeypatch)
    yield world
    world.close()
    assert world.errors == []


def test_a_child_is_found_by_kind_and_number(world):
    helper, other = world.start(11), world.start(12, kind=Other)
    assert world.children.of(Helper) == [helper]
    assert world.children.get(Other, 1) is other
    assert world.children.get(Other, 2) is None
    assert (helper.pid, other.pid) == (11, 12)


def test_mail_and_the_end_reach_their_duties(world):
    world.start(11)
    world.theirs[1].send(Changed("a.py"))
    world.turn()
    world.theirs[1].send(CantWatch("last words"))
    world.ended = [(11, STATUS)]
    world.children.reap()
    assert world.mail == [(1, Changed("a.py")), (1, CantWatch("last words"))]
    assert world.ends == [(1, STATUS)]
    assert world.children.of(Helper) == []
    assert not world.selector.get_map()


def test_mail_of_another_kind_is_ignored(world, caplog):
    world.start(11)
    world.theirs[1].send(mailbox.Ready())
    world.turn()
    assert world.mail == []
    assert "ignored" in caplog.text


def test_a_fork_that_fails_leaves_nothing(world):
    child, theirs = world.pair()
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="no room"):
        world.children.start(child, theirs, lambda: 0, world.duties)
    assert len(os.listdir("/proc/self/fd")) < before
    assert world.children.of(Helper) == []
    assert not world.selector.get_map()


def test_a_new_process_closes_the_arbiters_descriptors_before_it_runs(world):
    others = [world.start(11, 1), world.start(12, 2)]
    child, _ = world.pair(3)
    assert world.children._run(child, lambda: len(world.released)) == 1
    assert world.released == [3]
    for closed in (child, *others):
        assert closed.mailbox._sock.fileno() == -1
    for other in others:
        world.selector.unregister(other.mailbox)


def test_a_pid_is_learnt_by_message(world):
    child = world.add()
    world.own.add(11)
    world.theirs[1].send(Hello(11))
    world.theirs[1].send(Changed("a.py"))
    world.turn()
    assert child.pid == 11
    assert world.mail == [(1, Changed("a.py"))]
    world.ended = [(11, 0)]
    world.children.reap()
    assert world.ends == [(1, 0)]


def test_an_end_before_the_hello_is_kept(world):
    child = world.add()
    world.ended = [(11, STATUS)]
    world.children.reap()
    assert world.ends == []
    world.theirs[1].send(Hello(11))
    world.theirs[1].send(CantWatch("last words"))
    world.turn()
    assert world.mail == [(1, CantWatch("last words"))]
    assert world.ends == [(1, STATUS)]
    assert child.reaped


def test_an_end_before_the_hello_is_handled_once(world):
    """Nothing is sent to the pid meanwhile: it may be another process's by now."""
    child = world.add()
    on_mail = lambda child, messages: child.signal(signal.SIGKILL)  # noqa: E731 - a duty
    world.children._duties[child] = Duties(FromWatcher, on_mail, world.on_end)
    world.ended = [(11, STATUS)]
    world.children.reap()
    for message in (Hello(11), Hello(11), Changed("a.py")):
        world.theirs[1].send(message)
    world.turn()
    assert world.ends == [(1, STATUS)]
    assert world.killed == []
    assert world.children.of(Helper) == []


def test_a_mailbox_that_cannot_be_watched_leaves_nothing(world, monkeypatch):
    child, theirs = world.pair()
    world.forked.append(11)

    def register(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(world.selector, "register", register)
        with pytest.raises(OSError, match="No space"):
            world.children.start(child, theirs, lambda: 0, world.duties)
    assert world.forked == [11]
    assert world.children.of(Helper) == []
    assert not world.children._any_pid_unknown()


def test_ends_are_not_kept_when_every_pid_is_known(world):
    world.start(11)
    world.ended = [(99, 0)]
    world.children.reap()
    assert world.children._early_ends == {}


def test_few_ends_are_kept(world):
    world.add()
    world.ended = [(pid, 0) for pid in range(1000, 1000 + 2 * MOST_EARLY_ENDS)]
    world.children.reap()
    assert len(world.children._early_ends) == MOST_EARLY_ENDS


@pytest.mark.parametrize("pid", [-1, 0, 1, 12, 4711])
def test_a_hello_with_a_pid_that_cannot_be_its_own_is_refused(world, caplog, pid):
    """0 would signal the arbiter's process group, 1 is init, 12 another child, 4711 a stranger."""
    world.start(12, 2)
    child = world.add()
    world.own |= {1, 12}
    world.theirs[1].send(Hello(pid))
    world.turn()
    assert child.pid is None
    assert "ignored" in caplog.text
    assert child.signal(signal.SIGTERM) is False
    assert world.killed == []


def test_a_second_hello_changes_nothing(world):
    child = world.start(11)
    world.own.add(13)
    world.theirs[1].send(Hello(13))
    world.turn()
    assert child.pid == 11


def test_a_child_whose_mailbox_closes_before_its_hello_has_ended(world):
    world.add()
    world.theirs[1].close()
    world.turn()
    assert world.ends == [(1, None)]
    assert world.children.of(Helper) == []


def test_a_child_that_is_dismissed_before_its_hello_has_ended(world):
    child = world.add()
    world.children.dismiss(child)
    assert world.ends == [(1, None)]
    assert child.describe(None) == "ended before its pid was known"


def test_nothing_is_sent_to_a_child_that_was_reaped(world):
    child = world.start(11)
    world.ended = [(11, 0)]
    world.children.reap()
    assert child.signal(signal.SIGKILL) is True
    assert world.killed == []


def test_a_child_that_replaces_an_ended_one_stays_in_the_table(world):
    old = world.start(11)

    def replace(child, status):
        world.on_end(child, status)
        world.new = world.start(12)

    world.children._duties[old] = Duties(FromWatcher, world.on_mail, replace)
    world.ended = [(11, 0)]
    world.children.reap()
    assert world.children.of(Helper) == [world.new]
    world.theirs[1].send(Changed("a.py"))
    world.turn()
    assert world.mail == [(1, Changed("a.py"))]


def test_a_mailbox_that_closes_in_the_turn_of_its_end_is_no_error(world):
    world.start(11)
    world.theirs[1].close()
    (key,) = [key for key, _ in world.selector.select(0)]
    world.ended = [(11, 0)]
    world.children.reap()
    key.data()
    assert world.ends == [(1, 0)]


def test_a_duty_that_raises_leaves_no_trace_of_the_child(world):
    child = world.start(11)

    def fail(child, status):
        raise ZeroDivisionError

    world.children._duties[child] = Duties(FromWatcher, world.on_mail, fail)
    world.ended = [(11, 0)]
    world.children.reap()
    assert [type(error) for error in world.errors] == [ZeroDivisionError]
    world.errors.clear()
    assert world.children.of(Helper) == []
    assert not world.selector.get_map()


def test_children_that_have_nothing_to_finish_are_killed_and_awaited(world, monkeypatch):
    waited = []
    monkeypatch.setattr(table.os, "waitpid", lambda pid, options: waited.append(pid))
    world.start(11), world.start(12, 2)
    other = world.start(13, kind=Other)
    world.children.end(Helper)
    assert world.killed == [(11, signal.SIGKILL), (12, signal.SIGKILL)]
    assert waited == [11, 12]
    assert world.children.of(Helper) == []
    assert world.children.of(Other) == [other]
