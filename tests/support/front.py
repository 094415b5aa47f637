"""Real proxies in front of real servers, with the files of deploy/, and requests to them."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from .app import application
from .certificates import Authority
from .runner import CHECKOUT, environment, kill_session, session
from .waiting import DEADLINE, eventually

CLIENT = "127.0.0.9"
"""The address of clients, so that they aren't taken for the proxy."""

SOURCE = '''\
import asyncio
import json

import usual

next_piece = asyncio.Event()


async def tell(scope, receive, send):
    """What the application sees of a request."""
    headers = {name.decode(): value.decode() for name, value in scope["headers"]}
    told = {name: scope[name] for name in ("client", "scheme", "server")} | {"headers": headers}
    await usual.Exchange(scope, receive, send).answer(json.dumps(told).encode())


async def pieces(scope, receive, send):
    """A response whose second piece comes when another request asks for it."""
    headers = [(b"content-type", b"text/event-stream")]
    if scope["query_string"] == b"unbuffered":
        headers.append((b"x-accel-buffering", b"no"))
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"data: 1\\n\\n", "more_body": True})
    await next_piece.wait()
    next_piece.clear()
    await send({"type": "http.response.body", "body": b"data: 2\\n\\n"})


async def more(scope, receive, send):
    next_piece.set()
    await usual.Exchange(scope, receive, send).answer(b"{}")


async def echo(scope, receive, send):
    await receive()
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.send", "text": json.dumps([scope["scheme"], scope["client"]])})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})


ROUTES = {"/tell": tell, "/stream/pieces": pieces, "/pieces": pieces, "/more": more}


async def app(scope, receive, send):
    if scope["type"] == "websocket":
        await echo(scope, receive, send)
    elif scope["type"] == "http" and scope["path"] == "/healthz":
        await usual.Exchange(scope, receive, send).answer(b"")
    else:
        await ROUTES.get(scope["path"], usual.app)(scope, receive, send)
'''
"""An application for `start(source=SOURCE, files=FILES)`."""

FILES = {"usual.py": application()}

NGINX = """\
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr notice;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/esg.conf;
}}
"""
"""The configuration that includes a site."""


class Front:
    """A running proxy, with TLS for clients that trust its authority."""

    def __init__(self, folder: Path, command: Sequence[str], port: int, tls: ssl.SSLContext):
        self.port, self.tls = port, tls
        self._log = folder / "front.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        return self._log.read_text()

    def listens(self) -> bool:
        assert self.process.poll() is None, self.log
        with contextlib.suppress(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", self.port), DEADLINE).close()
            return True
        return False

    def connect(self) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection(
            "127.0.0.1", self.port, timeout=DEADLINE, context=self.tls, source_address=(CLIENT, 0)
        )

    def get(self, path: str, headers: dict[str, str] | None = None) -> dict[str, Any]:
        """The application's JSON response, on a new connection."""
        with contextlib.closing(self.connect()) as connection:
            connection.request("GET", path, headers=headers or {})
            response = connection.getresponse()
            body = response.read()
            assert response.status == 200, (response.status, body)
            return json.loads(body)

    def streams(self, path: str) -> None:
        """The first piece of a response arrives before the second one is sent."""
        with contextlib.closing(self.connect()) as connection:
            connection.request("GET", path)
            response = connection.getresponse()
            assert response.read1() == b"data: 1\n\n"
            self.get("/more")
            assert response.read() == b"data: 2\n\n"

    def stop(self, signum: int) -> None:
        self.process.send_signal(signum)
        self.process.wait(DEADLINE)
        eventually(lambda: not session(self.process.pid), "its processes are gone")


@contextlib.contextmanager
def running(
    folder: Path, command: Sequence[str], port: int, tls: ssl.SSLContext, end: int = signal.SIGTERM
) -> Iterator[Front]:
    """Run a proxy; `end` is the signal that stops it gracefully."""
    front = Front(folder, command, port, tls)
    try:
        eventually(front.listens, "the proxy listens")
        yield front
        front.stop(end)
    finally:
        kill_session(front.process)
        print(front.log)  # noqa: T201 - for a test that fails


def program(name: str) -> str:
    """The path of a program that a test requires."""
    found = shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin")
    if found is None:
        pytest.skip(f"needs {name}")
    return found


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def deployed(name: str, values: dict[str, str]) -> str:
    """A file of deploy/ with some values replaced for a test; it must contain each of them."""
    text = (CHECKOUT / "deploy" / name).read_text()
    for written, meant in values.items():
        assert written in text, written
        text = text.replace(written, meant)
    return text


def certified(folder: Path) -> tuple[str, str, ssl.SSLContext]:
    """A certificate, its key, and the clients' context that trusts it."""
    authority = Authority(folder)
    return *authority.issue(), authority.client_context()


@contextlib.contextmanager
def nginx(folder: Path, upstream: dict[str, str]) -> Iterator[tuple[Front, int]]:
    """The site with another upstream; returns nginx, and the port without TLS."""
    command = program("nginx")
    certificate, key, tls = certified(folder)
    plain, encrypted = free_port(), free_port()
    values = for_version(command) | {
        "listen 80;": f"listen 127.0.0.1:{plain};",
        "listen [::]:80;": f"listen 127.0.0.2:{plain};",
        "listen 443 ": f"listen 127.0.0.1:{encrypted} ",
        "listen [::]:443 ": f"listen 127.0.0.2:{encrypted} ",
        "/etc/ssl/example.org/chain.pem": certificate,
        "/etc/ssl/example.org/key.pem": key,
    }
    (folder / "esg.conf").write_text(deployed("nginx/esg.conf", values | upstream))
    user = "user root;\n" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(user + NGINX.format(folder=folder))
    with running(
        folder, [command, *nginx_options(folder)], encrypted, tls, signal.SIGQUIT
    ) as front:
        yield front, plain
    for level in ("[error]", "[crit]", "[alert]", "[emerg]"):
        assert level not in front.log


HTTP2 = {
    "    listen 443 ssl;\n    listen [::]:443 ssl;\n    http2 on;\n": "",
    "#listen 443 ssl http2;": "listen 443 ssl http2;",
    "#listen [::]:443 ssl http2;": "listen [::]:443 ssl http2;",
}
"""The changes for an nginx before 1.25.1 that the site's comment describes."""


def for_version(command: str) -> dict[str, str]:
    """The changes to the site that the installed nginx needs."""
    told = subprocess.run([command, "-v"], stderr=subprocess.PIPE, text=True, check=True).stderr
    version = re.search(r"nginx/(\d+)\.(\d+)\.(\d+)", told)
    assert version, told
    return HTTP2 if tuple(map(int, version.groups())) < (1, 25, 1) else {}


def nginx_options(folder: Path) -> list[str]:
    """The options that start nginx in this folder."""
    return ["-e", "stderr", "-p", str(folder), "-c", str(folder / "nginx.conf")]
