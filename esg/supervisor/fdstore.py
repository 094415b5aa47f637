"""Copies of listeners that the service manager keeps, and returns if the arbiter crashed.

See FDSTORE=1 in sd_notify(3). A name is all that can be stored with a descriptor, so the name
identifies the bind and the socket. By the time a UNIX socket is returned, the file at its path may
belong to another socket.
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
from esg.net.listeners import Handed, Listener
from esg.net.opening import misfit
from esg.net.streamsocket import SO_DETACH_FILTER, adopted
from esg.net.unixsocket import SocketFile
from esg.supervisor.systemd import Notifier

PREFIX = "esg/"
"""The start of every name in the store. Sockets of units have unit names, which have no slash."""

_FILE = re.compile(r"([0-9a-f]+)-([0-9a-f]+)")


def is_stored(item: Handed) -> bool:
    """Whether this program stored the descriptor with the service manager."""
    return item.name.startswith(PREFIX)


def name_of(bind: Bind | None) -> str:
    """The name of all listeners of a bind: a part for people to read, then a hash of the bind."""
    text = str(bind)
    readable = re.sub(r"[^A-Za-z0-9._@-]", "_", text)[-150:]
    return f"{PREFIX}{readable}/{hashlib.sha256(os.fsencode(text)).hexdigest()[:12]}"


class Store:
    """The descriptors that the service manager keeps for this process."""

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier
        self._names: dict[Listener, str] = {}

    def take_back(self, items: Sequence[Handed], binds: Sequence[Bind]) -> list[Listener]:
        """The stored listeners for these binds. Others are closed and removed from the store."""
        wanted = {name_of(bind): bind for bind in binds}
        found: dict[str, Listener] = {}
        for item in items:
            if item.name in found:  # the store may hold duplicates
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
        return [listener for listener in found.values() if not self._rejected(listener, binds)]

    def put(self, listener: Listener) -> None:
        """Have the service manager, if there is one, keep a copy of a listener that ESG opened.

        The manager doesn't answer, and it ignores descriptors beyond its announced capacity. So
        only descriptors within that capacity count as stored.
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

    def _rejected(self, listener: Listener, binds: Sequence[Bind]) -> bool:
        """Close a listener that doesn't fit its bind any more; True if it was closed."""
        assert listener.bind is not None
        siblings = [other for other in self._names if other.bind == listener.bind]
        if not misfit(listener, listener.bind, siblings, binds):
            return False
        self.remove(listener)
        listener.remove()
        return True

    def _forget(self, name: str) -> None:
        self._notifier.send("FDSTOREREMOVE=1", f"FDNAME={name}")


def _identity(listener: Listener) -> str:
    """An identifier no other open socket has: device and inode of its file, or its own inode."""
    if listener.file is not None:
        return f"{listener.file.device:x}-{listener.file.inode:x}"
    return f"{os.fstat(listener.fileno()).st_ino:x}"


def _file_of(item: Handed, path: str) -> SocketFile | None:
    """The file that was created with a UNIX socket, going by the socket's stored name."""
    numbers = _FILE.fullmatch(item.name.rpartition("/")[2])
    if numbers is None:
        return None
    return SocketFile(os.path.abspath(path), *(int(number, 16) for number in numbers.groups()))


def _recovered(item: Handed, bind: Bind) -> Listener | None:
    """A listener from a stored descriptor; None if clients of `bind` wouldn't reach it."""
    file = None
    if isinstance(bind, UnixAddress) and not bind.path.startswith("@"):
        file = _file_of(item, bind.path)
        if file is None or not file.is_there:
            return None
    try:
        sock = adopted(item.fd)
    except ListenError:
        return None
    with contextlib.suppress(OSError):  # it fails if no filter is attached
        sock.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
    return Listener(sock, bind, file, stored=True)


def _dispose(item: Handed) -> None:
    """Close a descriptor that no bind needs, and delete the socket's file if it is still there."""
    with contextlib.suppress(OSError):
        with socket.socket(fileno=item.fd) as sock:
            name = sock.getsockname()
            file = _file_of(item, name) if isinstance(name, str) and name else None
            if file is not None:
                file.remove()
        return
    with contextlib.suppress(OSError):
        os.close(item.fd)
