"""deploy/haproxy in a real HAProxy, in front of real servers."""

from __future__ import annotations

import contextlib
import csv
import http.client
import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import websockets.sync.client

from tests.support.front import (
    CLIENT,
    FILES,
    SOURCE,
    Front,
    certified,
    deployed,
    free_port,
    program,
    running,
)
from tests.support.load import Load
from tests.support.runner import Esg
from tests.support.waiting import DEADLINE, eventually

Start = Callable[..., Esg]

OPTIONS = ("--proxy-protocol", "--timeout-keep-alive", "15")


class HAProxy:
    """A running HAProxy: the proxy, its port without TLS, and the states of its servers."""

    def __init__(self, front: Front, plain: int, admin: Path) -> None:
        self.front, self.plain, self._admin = front, plain, admin

    def statuses(self) -> dict[str, str]:
        """The result of the health checks for each server; empty until the admin socket exists.

        HAProxy renames that socket into place after it has begun to listen on its ports.
        """
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(DEADLINE)
            try:
                sock.connect(str(self._admin))
            except FileNotFoundError:
                return {}
            sock.sendall(b"show stat\n")
            with sock.makefile() as answer:
                rows = csv.DictReader(answer.read().removeprefix("# ").splitlines())
        return {row["svname"]: row["status"] for row in rows if row["svname"].startswith("esg")}

    def wait_for(self, **statuses: str) -> None:
        eventually(lambda: self.statuses() == statuses, f"the servers are {statuses}")


@contextlib.contextmanager
def haproxy(folder: Path, *servers: int) -> Iterator[HAProxy]:
    """The configuration file with other servers."""
    command = program("haproxy")
    certificate, key, tls = certified(folder)
    together = folder / "example.org.pem"
    together.write_text(Path(certificate).read_text() + Path(key).read_text())
    plain, encrypted, admin = free_port(), free_port(), folder / "admin.sock"
    values = {
        "bind :80": f"bind 127.0.0.1:{plain}",
        "bind :443": f"bind 127.0.0.1:{encrypted}",
        "/etc/haproxy/example.org.pem": str(together),
        "/run/haproxy/admin.sock": str(admin),
        "10.0.0.11:8000": f"127.0.0.1:{servers[0]}",
        "10.0.0.12:8000": f"127.0.0.1:{servers[-1]}",
    }
    if os.geteuid() != 0:
        values |= {"    user haproxy\n    group haproxy\n    chroot /var/lib/haproxy\n": ""}
    file = folder / "haproxy.cfg"
    file.write_text(deployed("haproxy/haproxy.cfg", values))
    words = [command, "-W", "-f", str(file)]
    with running(folder, words, encrypted, tls) as front:
        assert "[WARNING]" not in front.log
        yield HAProxy(front, plain, admin)
        assert "[ALERT]" not in front.log


@pytest.fixture
def behind(start: Start, tmp_path: Path) -> Iterator[HAProxy]:
    esg = start(*OPTIONS, source=SOURCE, files=FILES)
    with haproxy(tmp_path, esg.port) as proxy:
        yield proxy


def test_the_configuration_does_what_its_comments_say(behind: HAProxy) -> None:
    """One HAProxy for all checks: starting one for each would take longer than the checks."""
    it_says_who_the_client_is(behind.front)
    it_takes_no_clients_word(behind.front)
    it_passes_on_websockets(behind.front)
    behind.front.streams("/pieces")
    it_leads_to_tls(behind.plain)


def it_says_who_the_client_is(front: Front) -> None:
    told = front.get("/tell")
    host, port = told["client"]
    assert host == CLIENT
    assert port > 0
    assert (told["scheme"], told["server"]) == ("https", ["127.0.0.1", front.port])
    assert told["headers"]["host"] == f"127.0.0.1:{front.port}"


def it_takes_no_clients_word(front: Front) -> None:
    forged = {
        "X-Forwarded-For": "6.6.6.6",
        "X-Forwarded-Proto": "http",
        "X-Forwarded-Host": "evil.example",
        "X-Real-IP": "6.6.6.6",
        "Forwarded": "for=6.6.6.6;proto=http;host=evil.example",
    }
    told = front.get("/tell", forged)
    assert (told["client"][0], told["scheme"]) == (CLIENT, "https")
    assert told["headers"].keys() == {"host", "accept-encoding"}


def it_passes_on_websockets(front: Front) -> None:
    with contextlib.closing(
        socket.create_connection(("127.0.0.1", front.port), DEADLINE, (CLIENT, 0))
    ) as sock:
        url, name = f"wss://127.0.0.1:{front.port}/", sock.getsockname()
        with websockets.sync.client.connect(url, sock=sock, ssl=front.tls) as client:
            assert json.loads(client.recv(DEADLINE)) == ["wss", list(name)]
            client.send("through HAProxy")
            assert client.recv(DEADLINE) == "through HAProxy"


def it_leads_to_tls(plain: int) -> None:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", plain)) as connection:
        connection.request("POST", "/order?n=1", headers={"Host": "example.org"})
        response = connection.getresponse()
    assert response.status == 308
    assert response.headers["location"] == "https://example.org/order?n=1"


def test_haproxy_notices_a_server_that_stops_and_loses_nothing(
    start: Start, tmp_path: Path
) -> None:
    first, second = (start(*OPTIONS, source=SOURCE, files=FILES) for _ in range(2))
    options: Any = {"keep_alive": 2, "fresh": 2}
    with haproxy(tmp_path, first.port, second.port) as proxy:
        proxy.wait_for(esg1="UP", esg2="UP")
        with Load(proxy.front.port, tls=proxy.front.tls, **options) as load:
            first.signal(signal.SIGTERM)
            proxy.wait_for(esg1="DOWN", esg2="UP")
            load.wait_until_answered("fresh", 20)
            assert first.wait() == 0
