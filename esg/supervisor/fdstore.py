"""Listeners of which the service manager keeps a copy, and hands it over after a crash.

See sd_notify(3), FDSTORE=1. A copy has a name and nothing else, so the name says which bind it is
for, and which socket it is: a file at its path may be another's by the time it comes back.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import socket
from collections.abc import Sequence

from esg.errors import ListenError
from esg.net.binds import Bind, UnixAddress
from esg.net.listeners import SO_DETACH_FILTER, Handed, Listener, adopted, misfit
from esg.net.unixsocket import SocketFile
from esg.supervisor.systemd import Notifier

PREFIX = "esg/"
"""What names in the store begin with. Sockets of units have a unit's name, which has no slash."""

_FILE = re.compile(r"([0-9a-f]+)-([0-9a-f]+)")


def is_stored(item: Handed) -> bool:
    """Whether it is one that this program has left with the service manager."""
    return item.name.startswith(PREFIX)


def name_of(bind: Bind | None) -> str:
    """What all listeners of a bind are called: to be read by people, then to be told apart by."""
    text = str(bind)
    readable = re.sub(r"[^A-Za-z0-9._@-]", "_", text)[-150:]
    return f"{PREFIX}{readable}/{hashlib.sha256(os.fsencode(text)).hexdigest()[:12]}"


class Store:
    """What the service manager keeps for this process."""

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier
        self._names: dict[Listener, str] = {}

    def take_back(self, items: Sequence[Handed], binds: Sequence[Bind]) -> list[Listener]:
        """The listeners for these binds; the rest is forgotten, and doesn't listen any more."""
        wanted = {name_of(bind): bind for bind in binds}
        found: dict[str, Listener] = {}
        for item in items:
            if item.name in found:  # the store may have it twice
                os.close(item.fd)
                continue
            bind = wanted.get(item.name.rpartition("/")[0])
            listener = _recovered(item, bind) if bind is not None else None
            if listener is None:
                _dispose(item)
                self._forget(item.name)
            else:
                found[item.name] = listener
        self._names = {listener: name for name, listener in found.items()}
        return [listener for listener in found.values() if not self._turned_down(listener, binds)]

    def put(self, listener: Listener) -> None:
        """Have the service manager keep a copy, if there is one and it is ours.

        The manager sends no answer, and ignores descriptors beyond the number that it says it
        stores. So only descriptors within that number count as stored.
        """
        if listener.borrowed is not None or listener.stored is not False:
            return
        capacity = self._notifier.capacity
        if capacity is not None and len(self._names) >= capacity:
            return
        name = f"{name_of(listener.bind)}/{_identity(listener)}"
        if self._notifier.send("FDSTORE=1", f"FDNAME={name}", fds=[listener.fileno()]):
            self._names[listener] = name
            listener.stored = None if capacity is None else True

    def remove(self, listener: Listener) -> None:
        """Have the service manager close its copy."""
        name = self._names.pop(listener, "")
        if name:
            listener.stored = False
            self._forget(name)

    def _turned_down(self, listener: Listener, binds: Sequence[Bind]) -> bool:
        """Whether it can't be used as it is, and was closed."""
        assert listener.bind is not None
        beside = [other for other in self._names if other.bind == listener.bind]
        if not misfit(listener, listener.bind, beside, binds):
            return False
        self.remove(listener)
        listener.remove()
        return True

    def _forget(self, name: str) -> None:
        self._notifier.send("FDSTOREREMOVE=1", f"FDNAME={name}")


def _identity(listener: Listener) -> str:
    """What tells a socket from all others while it is open, that of its file if it has one."""
    if listener.file is not None:
        return f"{listener.file.device:x}-{listener.file.inode:x}"
    return f"{os.fstat(listener.fileno()).st_ino:x}"


def _file_of(item: Handed, path: str) -> SocketFile | None:
    """The file that the socket was made with."""
    numbers = _FILE.fullmatch(item.name.rpartition("/")[2])
    if numbers is None:
        return None
    return SocketFile(os.path.abspath(path), *(int(number, 16) for number in numbers.groups()))


def _recovered(item: Handed, bind: Bind) -> Listener | None:
    """A listener again, if whoever connects comes to it."""
    file = None
    if isinstance(bind, UnixAddress) and not bind.path.startswith("@"):
        file = _file_of(item, bind.path)
        if file is None or not file.is_there:
            return None
    try:
        sock = adopted(item.fd)
    except ListenError:
        return None
    with contextlib.suppress(OSError):  # there need not be a filter
        sock.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
    return Listener(sock, bind, file, stored=True)


def _dispose(item: Handed) -> None:
    """Close what isn't listened on any more, and delete its file if that is still its own."""
    with contextlib.suppress(OSError):
        with socket.socket(fileno=item.fd) as sock:
            name = sock.getsockname()
            file = _file_of(item, name) if isinstance(name, str) and name else None
            if file is not None:
                file.remove()
        return
    with contextlib.suppress(OSError):
        os.close(item.fd)
