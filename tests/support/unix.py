"""Requests over UNIX sockets."""

from __future__ import annotations

import http.client
import json
import socket
from typing import Any

from .waiting import DEADLINE


class UnixConnection(http.client.HTTPConnection):
    """A connection to a path, or to an abstract name with `@` in front; it never reconnects."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=DEADLINE)
        self._path = "\0" + path[1:] if path.startswith("@") else path
        self.auto_open = 0
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(DEADLINE)
        try:
            self.sock.connect(self._path)
        except OSError:
            self.sock.close()
            raise


def ask(path: str, target: str = "/whoami") -> dict[str, Any]:
    """The application's response on a new connection."""
    connection = UnixConnection(path)
    try:
        connection.request("GET", target)
        response = connection.getresponse()
        body = response.read()
        assert response.status == 200, (response.status, body)
        return json.loads(body)
    finally:
        connection.close()
