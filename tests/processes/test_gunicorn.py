"""ESG's worker classes under the real gunicorn."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.app import application
from tests.support.certificates import Authority
from tests.support.load import Load
from tests.support.runner import answer, environment, kill_session, session
from tests.support.waiting import DEADLINE, eventually

gunicorn_config = pytest.importorskip("gunicorn.config")

PROGRAM = str(Path(sys.executable).with_name("gunicorn"))
"""Not `-m gunicorn`: an upgrade runs `sys.argv` again, and `gunicorn.http` would hide `http`."""

CLASSES = ["esg.workers.ESGWorker", "esg.workers.ESGH11Worker"]
TROUBLE = re.compile(r"\[(ERROR|CRITICAL)\]|Traceback|Warning:")


class Gunicorn:
    """A running gunicorn with `example:app` in its folder."""

    def __init__(
        self, folder: Path, *arguments: str, worker: str, source: str, bind: str = "127.0.0.1:0"
    ) -> None:
        self.folder = folder
        self.claims: list[str] = []
        (folder / "example.py").write_text(source)
        command = [sys.executable, PROGRAM, "example:app", "-k", worker, "-b", bind]
        if "control_socket_disable" in gunicorn_config.Config().settings:
            command.append("--no-control-socket")
        with (folder / "log").open("wb") as log, (folder / "out").open("wb") as out:
            self.process = subprocess.Popen(
                [*command, *arguments],
                cwd=folder,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    @property
    def out(self) -> str:
        return (self.folder / "out").read_text()

    @property
    def port(self) -> int:
        return int(self.wait_for_log(r"Listening at: https?://127\.0\.0\.1:(\d+)")[1])

    def wait_for_log(self, pattern: str) -> re.Match[str]:
        return eventually(lambda: re.search(pattern, self.log), f"{pattern!r} in the log")

    def workers(self) -> set[int]:
        return {child.pid for child in psutil.Process(self.process.pid).children()}

    def signal(self, signum: int) -> None:
        os.kill(self.process.pid, signum)

    def notes(self, what: str) -> list[int]:
        file = self.folder / "notes"
        lines = file.read_text().splitlines() if file.exists() else []
        return [int(line.split()[1]) for line in lines if line.split()[0] == what]

    def begin(self, path: str, **headers: str) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE)
        connection.request("GET", path, headers=headers)
        return connection

    def whoami(self) -> dict[str, object]:
        connection = self.begin("/whoami")
        try:
            return answer(connection)
        finally:
            connection.close()

    def stop(self, code: int = 0) -> None:
        """Stop it. It must end, leave no process behind, and log no unexpected error."""
        try:
            if self.process.poll() is None:
                self.signal(signal.SIGTERM)
            assert self.process.wait(DEADLINE) == code
            assert session(self.process.pid) == []
            lines = [line for line in self.log.splitlines() if TROUBLE.search(line)]
            assert [li for li in lines if not any(re.search(c, li) for c in self.claims)] == []
        finally:
            kill_session(self.process)


Start = Callable[..., Gunicorn]


@pytest.fixture
def gunicorn(tmp_path: Path) -> Iterator[Start]:
    """Starts one gunicorn and waits until all its workers serve."""
    started: list[Gunicorn] = []

    def start(
        *arguments: str,
        worker: str = CLASSES[0],
        source: str | None = None,
        bind: str = "127.0.0.1:0",
        workers: int = 1,
        wait: bool = True,
    ) -> Gunicorn:
        made = Gunicorn(
            tmp_path,
            *arguments,
            "-w",
            str(workers),
            worker=worker,
            source=source or application(),
            bind=bind,
        )
        started.append(made)
        if wait:
            eventually(lambda: len(made.notes("startup")) == workers, "the workers have started")
        return made

    try:
        yield start
        for made in started:
            made.stop()
    finally:
        for made in started:
            kill_session(made.process)
            print(f"--- its log:\n{made.log}")  # noqa: T201 - for a test that fails


@pytest.mark.parametrize("worker", CLASSES)
def test_requests_are_served(gunicorn: Start, worker: str) -> None:
    server = gunicorn(worker=worker, workers=2)
    with Load(server.port, keep_alive=3, fresh=3) as load:
        load.wait_until_answered("fresh", 100)
        load.wait_until_answered("keep-alive", 100)
    assert server.whoami()["pid"] in server.workers()


LOOP_AND_PARSER = (
    "note(type(asyncio.get_running_loop()).__module__); "
    "note('httptools' if 'httptools' in __import__('sys').modules else 'h11')"
)


def test_the_slower_class_runs_asyncio_and_h11(gunicorn: Start) -> None:
    source = application(at_startup=LOOP_AND_PARSER)
    server = gunicorn(source=source, worker="esg.workers.ESGH11Worker")
    assert server.notes("asyncio.unix_events")
    assert server.notes("h11")


def test_the_faster_class_runs_uvloop_and_httptools(gunicorn: Start) -> None:
    pytest.importorskip("uvloop")
    pytest.importorskip("httptools")
    server = gunicorn(source=application(at_startup=LOOP_AND_PARSER))
    assert server.notes("uvloop")
    assert server.notes("httptools")


SUBCLASS = """
from esg.workers import ESGWorker

class Mine(ESGWorker):
    CONFIG_KWARGS = {"loop": "asyncio", "server_header": False, "headers": [("x-mine", "yes")]}
"""


def test_a_subclass_chooses_settings(gunicorn: Start, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(SUBCLASS.replace('"headers"', '"header"'))
    connection = gunicorn(worker="mine.Mine").begin("/whoami")
    response = connection.getresponse()
    assert (response.headers["x-mine"], response.headers["server"]) == ("yes", None)
    connection.close()


def test_a_subclass_with_an_unknown_setting_is_refused(gunicorn: Start, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(SUBCLASS.replace("server_header", "serve_header"))
    server = gunicorn(worker="mine.Mine", wait=False)
    server.claims += ["."]
    server.wait_for_log(
        r"CONFIG_KWARGS of Mine: unknown key 'serve_header'; did you mean server_header\?"
    )
    assert server.process.wait(DEADLINE) == 3
    server.process.returncode = 0


def test_tls_is_served(gunicorn: Start, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue()
    server = gunicorn("--certfile", certificate, "--keyfile", key, workers=2)
    with Load(server.port, keep_alive=2, fresh=2, tls=authority.client_context()) as load:
        load.wait_until_answered("fresh", 20)


def test_the_hook_that_makes_the_tls_context_is_called(gunicorn: Start, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue()
    (tmp_path / "conf.py").write_text(
        "import ssl\n"
        "def ssl_context(config, default):\n"
        "    context = default()\n"
        "    context.minimum_version = ssl.TLSVersion.TLSv1_3\n"
        "    return context\n"
    )
    server = gunicorn("-c", "conf.py", "--certfile", certificate, "--keyfile", key)
    context = authority.client_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        socket.create_connection(("127.0.0.1", server.port), DEADLINE) as plain,
        pytest.raises(ssl.SSLError),
    ):
        context.wrap_socket(plain, server_hostname="localhost")


def test_a_hook_may_make_a_tls_context_of_its_own(gunicorn: Start, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue()
    (tmp_path / "conf.py").write_text(
        "import ssl\n"
        "def ssl_context(config, default):\n"
        "    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)\n"
        "    context.load_cert_chain(config.certfile, config.keyfile)\n"
        "    return context\n"
    )
    server = gunicorn("-c", "conf.py", "--certfile", certificate, "--keyfile", key)
    connection = http.client.HTTPSConnection(
        "localhost", server.port, timeout=DEADLINE, context=authority.client_context()
    )
    with contextlib.closing(connection):
        connection.request("GET", "/whoami")
        assert connection.getresponse().status == 200


def test_an_invalid_certificate_prevents_the_boot(gunicorn: Start, tmp_path: Path) -> None:
    (tmp_path / "bad.pem").write_text("nonsense")
    server = gunicorn("--certfile", "bad.pem", "--keyfile", "bad.pem", wait=False)
    server.claims += ["."]
    server.wait_for_log(r"gunicorn's certfile: .*bad\.pem")
    assert server.process.wait(DEADLINE) == 3
    server.process.returncode = 0


def test_max_requests_with_jitter_loses_nothing(gunicorn: Start) -> None:
    server = gunicorn("--max-requests", "80", "--max-requests-jitter", "40", workers=2)
    first = server.workers()
    with Load(server.port, keep_alive=3, fresh=3, slow=1) as load:
        eventually(lambda: not server.workers() & first, "both workers were replaced")
        eventually(lambda: len(server.notes("startup")) >= 5, "and one of those, too")
        load.wait_until_answered("fresh", 20)
    assert server.log.count("Autorestarting worker") >= 3


def test_a_reload_loses_nothing_and_serves_the_new_code(gunicorn: Start) -> None:
    server = gunicorn(workers=2)
    first = server.workers()
    with Load(server.port, keep_alive=4, fresh=4, slow=2, downloads=1) as load:
        load.wait_until_answered("fresh", 50)
        (server.folder / "example.py").write_text(application("two"))
        server.signal(signal.SIGHUP)
        eventually(lambda: not server.workers() & first, "the old workers are gone")
        load.wait_until_answered("fresh", 50)
    assert server.whoami()["version"] == "two"


@pytest.mark.parametrize("round_", range(3))
def test_a_shutdown_loses_nothing(gunicorn: Start, round_: int) -> None:
    server = gunicorn(workers=1 + round_)
    with Load(server.port, keep_alive=4, fresh=24, slow=2) as load:
        load.wait_until_answered("fresh", 100)
        load.shutdown_begins()
        server.signal(signal.SIGTERM)
        assert server.process.wait(DEADLINE) == 0
    assert len(server.notes("shutdown")) == 1 + round_


def test_a_quick_shutdown_waits_for_nothing(gunicorn: Start) -> None:
    server = gunicorn()
    connection = server.begin("/slow/30")
    eventually(lambda: server.notes("slow"), "the request is there")
    server.signal(signal.SIGQUIT)
    assert server.process.wait(5) == 0
    assert server.notes("shutdown")
    connection.close()


def test_a_request_may_take_longer_than_the_timeout(gunicorn: Start) -> None:
    server = gunicorn("--timeout", "1")
    connection = server.begin("/slow/3.5")
    assert answer(connection)["pid"] in server.workers()
    connection.close()


def test_a_drain_may_take_longer_than_the_timeout(gunicorn: Start) -> None:
    server = gunicorn("--timeout", "1")
    connection = server.begin("/slow/3.5")
    eventually(lambda: server.notes("slow"), "the request is there")
    server.signal(signal.SIGTERM)
    assert answer(connection)["path"] == "/slow/3.5"
    assert server.process.wait(DEADLINE) == 0
    connection.close()


def test_a_worker_whose_loop_is_blocked_is_replaced_and_its_stack_logged(gunicorn: Start) -> None:
    server = gunicorn("--timeout", "1")
    server.claims += ["WORKER TIMEOUT", "exited with code 1", "in the application: GET", "^Trace"]
    before = server.workers()
    connection = server.begin("/block/60")
    server.wait_for_log("WORKER TIMEOUT")
    server.wait_for_log("report_of_the_month")
    eventually(lambda: server.workers() and not server.workers() & before, "another is there")
    eventually(lambda: len(server.notes("startup")) == 2, "and has started")
    assert server.whoami()["pid"] in server.workers()
    connection.close()


def test_the_access_log_is_written_by_gunicorn(gunicorn: Start) -> None:
    form = "%(h)s %(m)s %(U)s?%(q)s %(s)s %(B)s %({x-tag}i)s %({content-length}o)s %(p)s"
    server = gunicorn("--access-logfile", "access", "--access-logformat", form)
    connection = server.begin("/whoami/a?b=1%0a", **{"X-Tag": 'one"two'})
    size = len(connection.getresponse().read())
    connection.close()
    (worker,) = server.workers()
    line = f"127.0.0.1 GET /whoami/a?b=1%0a 200 {size} one\\x22two {size} <{worker}>\n"
    file = server.folder / "access"
    eventually(lambda: file.read_text() == line, "the line is there")
    file.rename(server.folder / "rotated")
    server.signal(signal.SIGUSR1)
    eventually(file.exists, "the file is reopened")
    eventually(lambda: server.whoami() and file.read_text(), "the worker writes to it")


LOGGER = """
from gunicorn.glogging import Logger

class Mine(Logger):
    def access(self, resp, req, environ, request_time):
        self.info("mine %s %s %s", resp.status, environ["RAW_URI"], request_time.seconds)
"""


def test_a_custom_logger_class_gets_the_requests(gunicorn: Start, tmp_path: Path) -> None:
    (tmp_path / "mylog.py").write_text(LOGGER)
    server = gunicorn("--logger-class", "mylog.Mine")
    server.whoami()
    server.wait_for_log("mine 200 /whoami 0")


def test_without_an_access_log_there_is_none(gunicorn: Start) -> None:
    server = gunicorn()
    server.whoami()
    server.stop()
    assert server.out == ""
    assert "whoami" not in server.log


SCOPE = """
import json

async def app(scope, receive, send):
    assert scope["type"] == "http"
    body = json.dumps([scope["client"][0], scope["scheme"], scope["root_path"]]).encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})
"""


@pytest.mark.parametrize(
    ("trusted", "seen"),
    [("127.0.0.1", '["9.9.9.9", "https", ""]'), ("10.0.0.1", '["127.0.0.1", "http", ""]')],
)
def test_the_proxies_that_gunicorn_trusts_are_trusted(
    gunicorn: Start, trusted: str, seen: str
) -> None:
    server = gunicorn("--forwarded-allow-ips", trusted, source=SCOPE, wait=False)
    headers = {"X-Forwarded-For": "9.9.9.9", "X-Forwarded-Proto": "https"}
    connection = server.begin("/", **headers)
    assert connection.getresponse().read().decode() == seen
    connection.close()


def test_gunicorns_keepalive_is_obeyed(gunicorn: Start) -> None:
    server = gunicorn("--keep-alive", "1")
    connection = server.begin("/whoami")
    answer(connection)
    connection.sock.settimeout(3)  # by default it would be 5 s
    assert connection.sock.recv(1) == b"", "the server closes it"
    connection.close()


def test_gunicorns_limits_are_obeyed(gunicorn: Start) -> None:
    server = gunicorn("--limit-request-line", "100")
    connection = server.begin("/whoami/" + "x" * 200)
    assert connection.getresponse().status == 414
    connection.close()


def test_a_lifespan_that_fails_prevents_the_boot(gunicorn: Start) -> None:
    source = application(at_startup="raise RuntimeError('no such bucket')")
    server = gunicorn("--asgi-lifespan", "on", source=source, wait=False)
    server.claims += ["."]
    server.wait_for_log("RuntimeError: no such bucket")
    assert server.process.wait(DEADLINE) == 3
    server.process.returncode = 0


def test_a_wsgi_application_is_served(gunicorn: Start) -> None:
    source = """
def app(environ, start_response):
    start_response("200 OK", [("content-length", "5")])
    return [b"hello"]
"""
    connection = gunicorn(source=source, wait=False).begin("/")
    assert connection.getresponse().read() == b"hello"
    connection.close()


def test_a_unix_socket_is_served(gunicorn: Start, tmp_path: Path) -> None:
    path = str(tmp_path / "sock")
    server = gunicorn(bind=f"unix:{path}")
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(DEADLINE)
        client.connect(path)
        client.sendall(b"GET /whoami HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        received = b"".join(iter(lambda: client.recv(4096), b""))
    assert received.startswith(b"HTTP/1.1 200 OK\r\n")
    assert f'"pid": {server.workers().pop()}'.encode() in received


@pytest.mark.parametrize("trusted", ["127.0.0.1", "10.0.0.1"])
def test_a_proxy_on_a_unix_socket_is_trusted_as_by_gunicorn(
    gunicorn: Start, tmp_path: Path, trusted: str
) -> None:
    path = tmp_path / "sock"
    server = gunicorn(
        "--forwarded-allow-ips", trusted, source=SCOPE, bind=f"unix:{path}", wait=False
    )
    server.wait_for_log("Listening at: unix:")
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(DEADLINE)
        client.connect(str(path))
        client.sendall(
            b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
            b"X-Forwarded-For: 9.9.9.9\r\nX-Forwarded-Proto: https\r\n\r\n"
        )
        received = b"".join(iter(lambda: client.recv(4096), b""))
    assert received.endswith(b'\r\n\r\n["9.9.9.9", "https", ""]')


WITHOUT_MEMFD = "import os; del os.memfd_create; from gunicorn.app.wsgiapp import run; run()"


def test_an_unsupported_system_is_reported_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "example.py").write_text(SCOPE)
    line = ["example:app", "-k", CLASSES[0], "-b", "127.0.0.1:0", "--no-control-socket"]
    with subprocess.Popen(
        [sys.executable, "-c", WITHOUT_MEMFD, *line],
        cwd=tmp_path,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            _, log = process.communicate(timeout=DEADLINE)
        finally:
            kill_session(process)
    assert process.returncode == 3
    assert len(re.findall("ESG needs Linux; .* os.memfd_create", log)) == 1
    assert "Traceback" not in log


def test_an_upgrade_of_gunicorn_keeps_the_sockets_working(gunicorn: Start) -> None:
    server = gunicorn("--pid", "pid", workers=2)
    port, first = server.port, server.workers()
    server.signal(signal.SIGUSR2)
    file = server.folder / "pid.2"
    eventually(file.exists, "the new gunicorn has begun")
    other = psutil.Process(int(file.read_text()))
    try:
        eventually(lambda: len(server.notes("startup")) == 4, "its workers have started")
        with Load(port, fresh=4) as load:
            server.signal(signal.SIGTERM)
            assert server.process.wait(DEADLINE) == 0
            load.wait_until_answered("fresh", 50)
            assert not first & {child.pid for child in other.children()}
    finally:
        other.terminate()
        eventually(lambda: session(server.process.pid) == [], "all have ended")


def test_settings_without_effect_cause_a_warning(gunicorn: Start, tmp_path: Path) -> None:
    (tmp_path / "conf.py").write_text("def pre_request(worker, req):\n    pass\n")
    server = gunicorn("-c", "conf.py", "--strip-header-spaces")
    server.wait_for_log(
        r"\[WARNING\] ESG's workers ignore these settings: pre_request, strip_header_spaces\n"
    )


def test_an_orphan_drains_and_ends(gunicorn: Start) -> None:
    server = gunicorn(workers=2)
    workers = [psutil.Process(pid) for pid in server.workers()]
    server.signal(signal.SIGKILL)
    gone = {psutil.STATUS_ZOMBIE}
    eventually(
        lambda: all(not w.is_running() or w.status() in gone for w in workers), "they have ended"
    )
    assert server.process.wait() == -signal.SIGKILL
    server.process.returncode = 0


ECHO = """
async def app(scope, receive, send):
    assert scope["type"] == "websocket"
    await receive()
    await send({"type": "websocket.accept"})
    message = await receive()
    await send({"type": "websocket.send", "text": message["text"]})
    await receive()
"""


@pytest.mark.parametrize("worker", CLASSES)
def test_a_websocket_is_served_and_logged(gunicorn: Start, worker: str) -> None:
    client = pytest.importorskip("websockets.sync.client")
    from websockets.exceptions import ConnectionClosed

    server = gunicorn("--access-logfile", "-", source=ECHO, worker=worker, wait=False)
    with client.connect(f"ws://127.0.0.1:{server.port}/chat", proxy=None) as connection:
        connection.send("hello")
        assert connection.recv(DEADLINE) == "hello"
        server.signal(signal.SIGTERM)
        with pytest.raises(ConnectionClosed) as closed:
            connection.recv(DEADLINE)
    assert closed.value.rcvd.code == 1001
    assert server.process.wait(DEADLINE) == 0
    assert re.search(r'"GET /chat HTTP/1\.1" 101 ', server.out)
    assert re.search(r'"WEBSOCKET /chat HTTP/1\.1" 1001 ', server.out)


FORKS = """
def end_a_child():
    pid = os.fork()
    if pid == 0:
        while True:
            time.sleep(1)
    os.kill(pid, 15)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""


@pytest.mark.parametrize("worker", CLASSES)
def test_a_signal_to_a_forked_child_does_not_reach_the_worker(gunicorn: Start, worker: str) -> None:
    source = application(at_import=FORKS, at_startup='note(f"ended{end_a_child()}")')
    running = gunicorn(worker=worker, source=source)
    pid = running.whoami()["pid"]
    assert running.notes("ended-15") == [pid]
    assert running.workers() == {pid}
    assert "Worker exiting" not in running.log
