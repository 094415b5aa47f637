"""The children of the arbiter, of every kind, in one table: by number and by pid.

This module starts children, reads their mail and notices their ends. The code that asks for a
child decides what its mail and its end mean.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
from collections.abc import Callable, Sequence
from types import UnionType
from typing import Any, Generic, TypeVar

from esg.frozen import frozen
from esg.mailbox import Hello, Mailbox
from esg.supervisor import processes
from esg.supervisor.child import Child

MOST_EARLY_ENDS = 64
"""The most wait statuses kept for processes that may be children whose pid isn't known yet."""

_Kind = TypeVar("_Kind", bound=Child)


@frozen
class Duties(Generic[_Kind]):
    """The callbacks for a child's mail and its end."""

    mail: UnionType
    """The kinds of messages that it may send."""
    on_mail: Callable[[_Kind, Sequence[Any]], None]
    """Called with messages of these kinds."""
    on_end: Callable[[_Kind, int | None], None]
    """Called with the wait status once it has been reaped; None if its pid was never known."""


class Children:
    """The table of children.

    A pid is learnt from the fork, or from the child's `Hello` if another child forked it. If the
    end of a process is noticed before its `Hello` is read, it is kept until then.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        attempt: Callable[..., object],
        let_go: Callable[[Child], None],
    ) -> None:
        """`attempt` calls a function with its arguments, and logs its exceptions.

        `let_go` is called in each new process: it closes all of the arbiter's descriptors that the
        child (its argument) hasn't been assigned.
        """
        self._selector = selector
        self._attempt = attempt
        self._let_go = let_go
        self._by_number: dict[tuple[type[Child], int], Child] = {}
        self._by_pid: dict[int, Child] = {}
        self._duties: dict[Child, Duties[Any]] = {}
        """The children whose mail is read."""
        self._early_ends: dict[int, int] = {}
        """Wait statuses, by pid, of processes that may be children that haven't said `Hello`."""

    def of(self, kind: type[_Kind]) -> list[_Kind]:
        """The children of one kind, including those whose end is being handled."""
        return [child for child in self._by_number.values() if isinstance(child, kind)]

    def get(self, kind: type[_Kind], number: int) -> _Kind | None:
        """The child of this kind and number, if there is one."""
        child = self._by_number.get((kind, number))
        return child if isinstance(child, kind) else None

    # -- the beginning -----------------------------------------------------------------

    def start(
        self, child: _Kind, theirs: Mailbox, main: Callable[[], int], duties: Duties[_Kind]
    ) -> None:
        """Run `main` in a new process, which exits with its result.

        `theirs` is the child's end of its mailbox. Raises OSError, with both ends of the mailbox
        closed, if the kernel has no room for a process.
        """
        try:
            self.add(child, duties)
            pid = processes.fork(lambda: self._run(child, main))
        except BaseException:
            self._remove(child)
            child.close()
            raise
        finally:
            theirs.close()
        self._early_ends.pop(pid, None)  # the end of an earlier process with the same pid
        self._record_pid(child, pid)

    def add(self, child: _Kind, duties: Duties[_Kind]) -> None:
        """Add a child to the table, and read its mail. Its pid may be unknown.

        Raises OSError if the kernel has no room to watch its mailbox.
        """
        self._selector.register(child.mailbox, selectors.EVENT_READ, lambda: self._read_mail(child))
        self._by_number[type(child), child.number] = child
        self._duties[child] = duties

    def _remove(self, child: Child) -> None:
        self._stop_reading(child)
        self._duties.pop(child, None)
        number = type(child), child.number
        if self._by_number.get(number) is child:  # not a child that was started meanwhile
            del self._by_number[number]

    def _run(self, own: Child, main: Callable[[], int]) -> int:
        """In the child: release the arbiter's descriptors, then run."""
        own.mailbox.close()
        for child in self._by_number.values():
            if child is not own:
                child.close()
        self._let_go(own)
        return main()

    def _record_pid(self, child: Child, pid: int) -> None:
        child.pid = pid
        self._by_pid[pid] = child
        if not self._any_pid_unknown():
            self._early_ends.clear()

    def _any_pid_unknown(self) -> bool:
        return any(child.pid is None for child in self._by_number.values())

    def _on_hello(self, child: Child, pid: int) -> int | None:
        """Learn a child's pid, if the pid can be its own: it may be hostile.

        Returns its wait status if its end was noticed earlier.
        """
        if child.pid is not None or pid <= 1 or pid in self._by_pid:
            child.mailbox.refuse(f"Hello with a pid that isn't its own: {pid}")
            return None
        status = self._early_ends.pop(pid, None)
        if status is None and not processes.is_own_child(pid):
            child.mailbox.refuse(f"Hello with a pid that is no child's: {pid}")
            return None
        self._record_pid(child, pid)
        child.reaped = status is not None
        return status

    # -- mail --------------------------------------------------------------------------

    def _read_mail(self, child: Child) -> None:
        """Read a child's mail, and pass it to its duties."""
        duties = self._duties.get(child)
        if duties is None:
            return  # its end was noticed earlier in this turn of the loop
        messages, alive = child.mailbox.receive(duties.mail | Hello)
        if not alive:
            self._stop_reading(child)
        status = None
        for message in messages:
            if isinstance(message, Hello) and status is None:
                status = self._on_hello(child, message.pid)
        rest = [message for message in messages if not isinstance(message, Hello)]
        if rest:
            duties.on_mail(child, rest)
        if status is not None or not (alive or child.pid or child.reaped):
            self._on_end(child, status)

    def _is_read(self, child: Child) -> bool:
        return child.mailbox in [key.fileobj for key in self._selector.get_map().values()]

    def _stop_reading(self, child: Child) -> None:
        if self._is_read(child):
            self._selector.unregister(child.mailbox)

    def dismiss(self, child: Child) -> None:
        """Close a child's mailbox, which ends a child that can't be signalled.

        The child is reaped later. If its pid isn't known, it can't be reaped, so this counts as its
        end.
        """
        self._stop_reading(child)
        child.mailbox.close()
        if child.pid is None:
            self._on_end(child, None)

    # -- the end -----------------------------------------------------------------------

    def reap(self) -> None:
        """Handle the ends of all processes that have ended."""
        for pid, status in processes.reap():
            child = self._by_pid.get(pid)
            if child is not None:
                self._on_end(child, status)
            elif self._any_pid_unknown() and len(self._early_ends) < MOST_EARLY_ENDS:
                self._early_ends[pid] = status

    def _on_end(self, child: Child, status: int | None) -> None:
        duties = self._duties.get(child)
        if duties is None:
            return
        child.reaped = True
        if child.pid is not None:
            self._by_pid.pop(child.pid, None)
        if self._is_read(child):
            self._attempt(self._read_mail, child)  # its last words
        self._attempt(duties.on_end, child, status)
        self._attempt(self._remove, child)
        self._attempt(child.close)

    def end(self, kind: type[Child]) -> None:
        """Kill the children of a kind that has nothing to finish, and wait for their ends."""
        for child in self.of(kind):
            self.dismiss(child)
            if child.pid is not None:
                # A child that can't be killed isn't waited for: it ends because its mailbox is
                # closed.
                with contextlib.suppress(PermissionError, ChildProcessError):
                    child.signal(signal.SIGKILL)
                    os.waitpid(child.pid, 0)
                self._on_end(child, None)
