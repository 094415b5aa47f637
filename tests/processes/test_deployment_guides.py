# ruff: noqa: E501 - command lines are as long as in the guides
"""Command lines of deployment guides run with only the program's name changed.

For the test, addresses are replaced by free ones on the loopback, and folders by the test's.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shlex
import signal
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.support.certificates import Authority, encrypted
from tests.support.runner import environment, kill_session, run_to_its_end, session
from tests.support.waiting import DEADLINE, eventually

UVICORN = """
uvicorn app.main:app
uvicorn app.main:app --host 0.0.0.0 --port 80
uvicorn app.main:app --workers 4 --host 0.0.0.0 --port 8000 --proxy-headers --forwarded-allow-ips "127.0.0.1" --no-access-log --log-level warning
uvicorn app.main:app --host 0.0.0.0 --port 8000 --proxy-headers --forwarded-allow-ips="*"
uvicorn app.main:app --reload
uvicorn app.main:app --reload --reload-dir app --reload-include '*.html' --reload-exclude 'tests/*' --reload-delay 0.5
uvicorn app.main:app --host=0.0.0.0 --port=8000 --limit-concurrency 1000 --backlog 2048 --timeout-keep-alive 5
uvicorn app.main:app --timeout-notify 30 --timeout-graceful-shutdown 30
uvicorn app.main:app --limit-max-requests 10000 --limit-max-requests-jitter 500 --workers 2
uvicorn app.main:app --ssl-keyfile=./key.pem --ssl-certfile=./cert.pem
uvicorn app.main:app --port 8443 --ssl-keyfile key.pem --ssl-certfile cert.pem --ssl-ca-certs ca.pem --ssl-cert-reqs 0 --ssl-ciphers TLSv1
uvicorn app.main:app --ssl-keyfile locked.pem --ssl-certfile cert.pem --ssl-keyfile-password secret --ssl-version 17 --timeout-worker-healthcheck 5
uvicorn app.main:app --uds /run/my-api/uvicorn.sock --proxy-headers
uvicorn app.main:app --root-path /api/v1
uvicorn --factory app.main:create_app --loop uvloop --http httptools --lifespan on
uvicorn app.main:app --loop asyncio --http h11 --interface asgi3 --ws none
uvicorn main:app --app-dir app --env-file .env --use-colors
uvicorn app.main:app --log-config log.ini --no-server-header --no-date-header --header X-Served-By:esg
uvicorn app.main:app --ws websockets --ws-max-size 1048576 --ws-max-queue 32 --ws-ping-interval 20 --ws-ping-timeout 20 --ws-per-message-deflate true
uvicorn app.main:app --access-log --server-header --date-header --reset-contextvars --h11-max-incomplete-event-size 65536
"""

GUNICORN = """
gunicorn app.main:app
gunicorn app.main:app -w 4 --bind unix:/run/my-api/gunicorn.sock --timeout 120 --graceful-timeout 30 --max-requests 1000 --max-requests-jitter 50 --access-logfile - --error-logfile -
gunicorn app.main:app --workers 4 --worker-class uvicorn.workers.UvicornWorker --bind 0.0.0.0:80
gunicorn -b unix:/run/my-api/gunicorn.sock -w 2 app.main:app
gunicorn -w 4 -k uvicorn.workers.UvicornWorker app.main:app
gunicorn -k uvicorn_worker.UvicornWorker -w 2 -b :8000 app.main:app
gunicorn -k esg.workers.ESGWorker -w 2 -b 127.0.0.1:8000 app.main:app
gunicorn -k esg.workers.ESGH11Worker app.main:app
gunicorn app.main:app --keep-alive 5 --backlog 2048 --log-level info
gunicorn --bind 0.0.0.0:8000 --workers 2 --threads 4 --worker-class gthread --worker-tmp-dir /dev/shm app.main:wsgi
gunicorn app.main:wsgi --bind 127.0.0.1:8000 --workers 3 --log-file=-
gunicorn app.main:app --name my-api --pid /run/my-api/pid --access-logfile /run/my-api/access.log --error-logfile /run/my-api/error.log
gunicorn app.main:app --certfile=cert.pem --keyfile=key.pem --bind 0.0.0.0:443
gunicorn "app.main:create_app()" -b tcp://0.0.0.0:8000 --reuse-port --no-sendfile --initgroups --reload-engine auto --no-control-socket -R
gunicorn app.main:app --chdir . --access-logformat '%(h)s %(l)s %(u)s %(t)s "%(r)s" %(s)s %(b)s %(L)s' --access-logfile -
gunicorn app.main:app --limit-request-line 4094 --limit-request-fields 100 --forwarded-allow-ips="*" --umask 007
"""

APPLICATION = """
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"served"})


def create_app():
    return app


def wsgi(environ, start_response):
    start_response("200 OK", [("content-length", "6")])
    return [b"served"]
"""

LOG_CONFIG = """
[loggers]
keys=root
[handlers]
keys=out
[formatters]
keys=
[logger_root]
level=INFO
handlers=out
[handler_out]
class=StreamHandler
args=(sys.stderr,)
"""

LINES = [line for line in (UVICORN + GUNICORN).splitlines() if line]


REFUSED = "gunicorn app.main:wsgi --bind 127.0.0.1:8000 --workers 3 --preload --log-file=-"


class Deployment:
    """Run one line."""

    def __init__(self, line: str, folder: Path) -> None:
        (folder / "app").mkdir()
        (folder / "app" / "__init__.py").touch()
        (folder / "app" / "main.py").write_text(APPLICATION)
        (folder / "tests").mkdir()
        (folder / ".env").write_text("RELEASE=1\n")
        (folder / "log.ini").write_text(LOG_CONFIG)
        self.authority = Authority(folder)
        certificate, key = self.authority.issue()
        os.rename(encrypted(key, "secret"), folder / "locked.pem")
        os.rename(certificate, folder / "cert.pem")
        os.rename(key, folder / "key.pem")
        line = line.replace("/run/my-api", str(folder)).replace("0.0.0.0:", "127.0.0.1:")
        line = re.sub(r"(127\.0\.0\.1|(?<= )):(80|443|8000)\b", "127.0.0.1:0", line)
        line = re.sub(r"--host([ =])0\.0\.0\.0", r"--host\g<1>127.0.0.1", line)
        line = re.sub(r"--port([ =])\d+", r"--port\g<1>0", line)
        self.words = shlex.split(line)[1:]
        self.tls = "certfile" in line
        self.socket = next(iter(re.findall(r"\S+\.sock\b", line)), "").removeprefix("unix:")
        self._log = folder / "stderr"
        with self._log.open("wb") as log, (folder / "stdout").open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "esg", *self.words],
                cwd=folder,
                env=environment(PORT="0"),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        return self._log.read_text()

    def connect(self) -> socket.socket | None:
        assert self.process.poll() is None, self.log
        if self.socket:
            if not os.path.exists(self.socket):
                return None
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(self.socket)
            except ConnectionRefusedError:  # it is bound, but doesn't listen yet
                connection.close()
                return None
            return connection
        found = psutil.Process(self.process.pid).net_connections("tcp")
        ports = [c.laddr.port for c in found if c.status == psutil.CONN_LISTEN]
        return socket.create_connection(("127.0.0.1", ports[0]), DEADLINE) if ports else None

    def get(self) -> tuple[int, bytes]:
        sock = eventually(self.connect, "it listens")
        sock.settimeout(DEADLINE)
        if self.tls:
            context: ssl.SSLContext = self.authority.client_context()
            sock = context.wrap_socket(sock, server_hostname="localhost")
        with contextlib.closing(http.client.HTTPConnection("localhost")) as connection:
            connection.sock = sock
            connection.request("GET", "/")
            response = connection.getresponse()
            return response.status, response.read()


@pytest.mark.parametrize("line", LINES)
def test_the_command_line_serves(line: str, tmp_path: Path) -> None:
    deployment = Deployment(line, tmp_path)
    try:
        assert deployment.get() == (200, b"served")
        os.kill(deployment.process.pid, signal.SIGTERM)
        assert deployment.process.wait(DEADLINE) == 0, deployment.log
        assert session(deployment.process.pid) == []
        assert not re.search("ERROR|CRITICAL|Traceback", deployment.log)
    finally:
        kill_session(deployment.process)
        print(deployment.log)  # noqa: T201 - for a test that fails


def test_an_option_of_a_later_version_is_refused_in_one_line(tmp_path: Path) -> None:
    done = run_to_its_end(tmp_path, *shlex.split(REFUSED)[1:])
    line = "esg: error: --preload: this version of ESG can't do that yet; leave it out\n"
    assert (done.code, done.log) == (2, line)
