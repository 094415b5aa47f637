"""A service manager as in sd_notify(3): a socket for notifications, and a descriptor store."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from .waiting import eventually


class Manager:
    """Listens on NOTIFY_SOCKET; it must be closed."""

    def __init__(self, folder: Path) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(f"{folder}/notify")
        self._sock.setblocking(False)
        self._messages: list[dict[str, str]] = []
        self.store: dict[str, list[int]] = {}
        """Stored descriptors by name; they would be handed over at the next start."""
        self.stores = True
        """Whether it stores descriptors; without FileDescriptorStoreMax= in the unit it doesn't."""
        self.environment = {"NOTIFY_SOCKET": self._sock.getsockname()}

    @property
    def messages(self) -> list[dict[str, str]]:
        """The messages so far, each as a dictionary."""
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(self._sock, 4096, 8)
            except BlockingIOError:
                return self._messages
            message = dict(line.split("=", 1) for line in data.decode().split("\n"))
            if "FDSTORE" in message and not self.stores:
                for fd in fds:
                    os.close(fd)
            elif "FDSTORE" in message:
                self.store.setdefault(message["FDNAME"], []).extend(fds)
            else:
                assert not fds
            if "FDSTOREREMOVE" in message:
                for fd in self.store.pop(message["FDNAME"], []):
                    os.close(fd)
            self._messages.append(message)

    def said(self, name: str) -> list[str]:
        """The values of a variable, in order."""
        return [message[name] for message in self.messages if name in message]

    def wait_for(self, name: str, value: str | None = None, count: int = 1) -> dict[str, str]:
        """Wait for the `count`th message that contains this."""

        def found() -> list[dict[str, str]]:
            return [m for m in self.messages if name in m and value in (None, m[name])]

        return eventually(lambda: found()[count - 1 :], f"{name}={value}, {count} times")[0]

    def states(self) -> list[str]:
        """The READY, RELOADING and STOPPING messages, in order."""
        names = ("READY", "RELOADING", "STOPPING")
        return [name for message in self.messages for name in names if name in message]

    def close(self) -> None:
        for fds in self.store.values():
            for fd in fds:
                os.close(fd)
        self._sock.close()
