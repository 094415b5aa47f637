"""`esg.Server`: serving on another program's event loop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import http.client
import logging
import os
import re
import signal
import socket
import ssl
import threading

import pytest

import esg
from esg import waits
from esg.errors import AppImportError, BootError, ConfigError, ListenError
from esg.server.loops import loop_factory
from tests.support.certificates import Authority
from tests.support.log import records
from tests.support.waiting import DEADLINE, eventually

LOOPS = ["asyncio", "uvloop"]

REQUEST = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"
UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: test\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


@pytest.fixture(autouse=True)
def log():
    """Restores the logger at the end."""
    logger = logging.getLogger("esg")
    before = logger.level, logger.propagate, logger.handlers[:]
    yield
    logger.level, logger.propagate, logger.handlers[:] = before


class App:
    """Answers, notes its lifespan, and can be told to wait."""

    def __init__(self):
        self.notes = []
        self.seen = 0

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            await receive()
            self.notes.append("startup")
            await send({"type": "lifespan.startup.complete"})
            await receive()
            self.notes.append("shutdown")
            await send({"type": "lifespan.shutdown.complete"})
            return
        self.seen += 1
        if scope["path"] == "/forever":
            self.notes.append("forever")
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                self.notes.append("cancelled")
                raise
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"hello"})


def make(app, **settings):
    settings = {"port": 0, "access_log": False, "log_level": "critical"} | settings
    return esg.Server(esg.Config(app, **settings))


def bound():
    return socket.create_server(("127.0.0.1", 0))


def get(port, path="/"):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE)
    try:
        connection.request("GET", path)
        return connection.getresponse().read()
    finally:
        connection.close()


async def until(condition):
    async with asyncio.timeout(DEADLINE):
        while not condition():
            await asyncio.sleep(0.005)


@contextlib.contextmanager
def in_thread(server, sock=None):
    """The server in a separate thread, as in test suites."""
    failures = []

    def target():
        try:
            server.run(sockets=sock and [sock])
        except BaseException as error:  # noqa: BLE001 - handed to the test
            failures.append(error)

    thread = threading.Thread(target=target)
    thread.start()
    try:
        eventually(lambda: server.started or failures, "started")
        yield
    finally:
        server.should_exit = True
        thread.join(DEADLINE)
        assert not thread.is_alive()
        assert failures == []


# -- life ------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", LOOPS)
def test_a_server_runs_in_a_thread(loop):
    app, sock = App(), bound()
    port = sock.getsockname()[1]
    server = make(app, loop=loop)
    assert not server.started
    with in_thread(server, sock):
        assert get(port) == b"hello"
    assert not server.started
    assert app.notes == ["startup", "shutdown"]
    assert sock.fileno() == -1


def test_a_server_runs_in_a_task():
    async def main():
        app, sock = App(), bound()
        server = make(app)
        task = asyncio.create_task(server.serve(sockets=[sock]))
        await until(lambda: server.started)
        assert await asyncio.to_thread(get, sock.getsockname()[1]) == b"hello"
        server.should_exit = True
        await task
        assert app.notes == ["startup", "shutdown"]

    asyncio.run(main())


def test_it_listens_where_its_config_says(capfd):
    async def main():
        with bound() as other:
            port = other.getsockname()[1]
        server = make(App(), port=port, log_level="info", access_log=True)
        task = asyncio.create_task(server.serve())
        await until(lambda: server.started)
        assert await asyncio.to_thread(get, port) == b"hello"
        server.should_exit = True
        await task
        with pytest.raises(ConnectionRefusedError):
            await asyncio.to_thread(get, port)
        return server, port

    server, port = asyncio.run(main())
    captured = capfd.readouterr()
    told = [record for record in records(captured.err) if record.pid == os.getpid()]
    assert len(told) == len(captured.err.splitlines())
    assert {record.worker for record in told} == {server._subject.worker}
    assert [record.event for record in told] == [
        f"listening on http://127.0.0.1:{port}",
        f"esg {esg.__version__} serves {__name__}:App (ASGI, asyncio, httptools)",
        "ready",
        "draining reason=should_exit",
        "stopped",
    ]
    assert '"GET / HTTP/1.1" 200 OK' in captured.out


@pytest.fixture
def impatient(monkeypatch):
    """Reports of what the server is waiting for come much earlier and more often than usual."""
    monkeypatch.setattr(waits, "FIRST_WAIT", 0.02)
    monkeypatch.setattr(waits, "INTERVAL", 0.02)


def test_a_stop_that_takes_long_is_logged_with_what_it_waits_for(impatient, tmp_path):
    log = tmp_path / "log"

    async def main():
        app, sock = App(), bound()
        server = make(app, log_level="info", error_logfile=str(log))
        task = asyncio.create_task(server.serve(sockets=[sock]))
        await until(lambda: server.started)
        port = sock.getsockname()[1]
        client = asyncio.create_task(asyncio.to_thread(get, port, "/forever"))
        await until(lambda: "forever" in app.notes)
        assert "waiting for" not in log.read_text()
        server.should_exit = True
        line = "waiting for 1 request; set force_exit to cut it\n"
        await until(lambda: log.read_text().count(line) > 1)
        server.force_exit = True
        await task
        with contextlib.suppress(http.client.HTTPException):
            await client

    asyncio.run(main())
    assert records(log.read_text())[-1].event == "stopped"


def test_a_startup_that_takes_long_is_logged_with_where_it_waits(impatient, tmp_path):
    log = tmp_path / "log"
    gate = asyncio.Event()

    async def app(scope, receive, send):
        await gate.wait()
        await App()(scope, receive, send)

    async def main():
        server = make(app, log_level="info", error_logfile=str(log))
        task = asyncio.create_task(server.serve())
        line = app.__code__.co_firstlineno + 1
        told = rf"lifespan startup of \S+\.app for \d+ s: \S*test_embedded\.py:{line}$"
        await until(lambda: log.exists() and re.search(told, log.read_text(), re.MULTILINE))
        gate.set()
        await until(lambda: server.started)
        before = log.read_text().count("startup of")
        server.should_exit = True
        await task
        assert log.read_text().count("startup of") == before

    asyncio.run(main())


def test_a_factory_may_make_its_own_tls_context(tmp_path):
    authority = Authority(tmp_path)
    seen = []

    async def app(scope, receive, send):
        seen.append((scope["scheme"], scope["extensions"]["tls"]["server_cert"]))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"hello"})

    def context(config, usual):
        own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        own.load_cert_chain(*authority.issue())
        return own

    sock = bound()
    server = make(app, lifespan="off", ssl_context_factory=context)
    with in_thread(server, sock):
        connection = http.client.HTTPSConnection(
            "localhost", sock.getsockname()[1], timeout=DEADLINE, context=authority.client_context()
        )
        with contextlib.closing(connection):
            connection.request("GET", "/")
            assert connection.getresponse().read() == b"hello"
    assert seen == [("https", None)]


def test_several_servers_run_in_one_process():
    first, second = App(), App()
    socks = bound(), bound()
    ports = [sock.getsockname()[1] for sock in socks]
    with in_thread(make(first), socks[0]), in_thread(make(second), socks[1]):
        assert [get(port) for port in ports] == [b"hello", b"hello"]
        assert (first.seen, second.seen) == (1, 1)


def test_a_server_can_serve_again():
    app = App()
    server = make(app)
    with in_thread(server, bound()):
        pass
    server.should_exit = False
    with in_thread(server, bound()):
        pass
    assert app.notes == ["startup", "shutdown"] * 2


def test_a_server_told_to_stop_during_its_startup_does_not_wait_for_the_startup():
    notes = []

    async def app(scope, receive, send):
        try:
            await asyncio.sleep(3600)
        finally:
            notes.append("cancelled")

    async def main():
        server = make(app)
        server.should_exit = True
        async with asyncio.timeout(DEADLINE):
            await server.serve(sockets=[bound()])
        assert not server.started

    asyncio.run(main())
    assert notes == ["cancelled"]


def test_a_server_serves_once_at_a_time():
    server = make(App())
    with in_thread(server, bound()), pytest.raises(RuntimeError, match="is already serving"):
        asyncio.run(server.serve())


def test_a_server_stops_after_its_limit_of_requests():
    async def main():
        sock = bound()
        server = make(App(), limit_max_requests=2)
        task = asyncio.create_task(server.serve(sockets=[sock]))
        await until(lambda: server.started)
        for _ in range(2):
            await asyncio.to_thread(get, sock.getsockname()[1])
        async with asyncio.timeout(DEADLINE):
            await task

    asyncio.run(main())


def test_force_exit_cuts_running_requests_short():
    async def main():
        app, sock = App(), bound()
        server = make(app)
        task = asyncio.create_task(server.serve(sockets=[sock]))
        await until(lambda: server.started)
        client = asyncio.create_task(asyncio.to_thread(get, sock.getsockname()[1], "/forever"))
        await until(lambda: "forever" in app.notes)
        server.should_exit = True
        server.force_exit = True
        async with asyncio.timeout(DEADLINE):
            await task
        await asyncio.gather(client, return_exceptions=True)
        assert app.notes == ["startup", "forever", "cancelled", "shutdown"]

    asyncio.run(main())


@pytest.fixture
def short_limits(monkeypatch):
    """Little time for the application's shutdown and for cancelled tasks."""
    for module in ("worker", "embedded", "asgi.lifespan"):
        monkeypatch.setattr(f"esg.server.{module}.CANCEL_LIMIT", 0.01)
    monkeypatch.setattr("esg.server.worker.SHUTDOWN_MINIMUM", 0.01)


@pytest.mark.usefixtures("short_limits")
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("stubborn", ["lifespan", "http"])
def test_a_task_that_catches_every_cancellation_does_not_hold_up_run(loop, stubborn, caplog):
    begun, released = threading.Event(), threading.Event()

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
        while scope["type"] == stubborn and not released.is_set():
            begun.set()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)

    sock = bound()
    address = sock.getsockname()
    try:
        with (
            in_thread(make(app, loop=loop, graceful_timeout=0), sock),
            socket.create_connection(address) as client,
        ):
            client.sendall(REQUEST)
            assert begun.wait(DEADLINE)
    finally:
        released.set()
    gc.collect()
    assert "without waiting for tasks that can't be cancelled: 1" in caplog.text
    assert "GeneratorExit" not in caplog.text


@pytest.mark.usefixtures("short_limits")
@pytest.mark.parametrize("loop", LOOPS)
def test_a_request_that_goes_on_after_its_cancellation_is_answered_by_the_server(loop):
    begun, released = threading.Event(), threading.Event()

    async def app(scope, receive, send):
        begun.set()
        while not released.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)

    sock = bound()
    address = sock.getsockname()
    server = make(app, loop=loop, lifespan="off", graceful_timeout=0)
    try:
        with (
            in_thread(server, sock),
            socket.create_connection(address, timeout=DEADLINE) as client,
        ):
            client.sendall(REQUEST)
            assert begun.wait(DEADLINE)
            server.should_exit = True
            assert client.recv(1000).startswith(b"HTTP/1.1 503 ")
    finally:
        released.set()


def test_a_cancelled_task_ends_in_good_order():
    async def main():
        app, sock = App(), bound()
        server = make(app)
        task = asyncio.create_task(server.serve(sockets=[sock]))
        await until(lambda: server.started)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert app.notes == ["startup", "shutdown"]
        assert sock.fileno() == -1
        assert not server.started

    asyncio.run(main())


def test_a_server_leaves_nothing_on_the_loop():
    async def main():
        loop = asyncio.get_running_loop()
        before = set(loop._selector.get_map())
        tasks = asyncio.all_tasks()
        server = make(App(), loop="asyncio")
        task = asyncio.create_task(server.serve(sockets=[bound()]))
        await until(lambda: server.started)
        server.should_exit = True
        await task
        assert set(loop._selector.get_map()) == before
        assert asyncio.all_tasks() == tasks

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(main())


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("protocol", ["http", "websocket"])
def test_no_connection_outlives_the_server(loop, protocol):
    async def app(scope, receive, send):
        if scope["type"] == "websocket":
            await send({"type": "websocket.accept"})
            await receive()
            await receive()
        else:
            await App()(scope, receive, send)

    async def main():
        sock = bound()
        server = make(app, loop=loop, lifespan="off", graceful_timeout=0)
        task = asyncio.create_task(server.serve(sockets=[sock]))
        await until(lambda: server.started)
        reader, writer = await asyncio.open_connection(*sock.getsockname())
        writer.write(UPGRADE if protocol == "websocket" else REQUEST)
        await reader.readuntil(b"\r\n\r\n")
        worker = server._worker
        assert len(worker._service.connections) == 1
        server.should_exit = True
        await task
        left = len(worker._service.connections)
        writer.close()
        assert left == 0

    with asyncio.Runner(loop_factory=loop_factory(loop)) as runner:
        runner.run(main())


def test_a_server_changes_nothing_in_the_process():
    before = gc.get_freeze_count(), signal.getsignal(signal.SIGQUIT)
    with in_thread(make(App()), bound()):
        assert (gc.get_freeze_count(), signal.getsignal(signal.SIGQUIT)) == before
        assert esg.current_worker() is None


# -- signals ---------------------------------------------------------------------------


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_it_and_is_raised_again_for_the_previous_handler(loop, signum):
    got = []
    before = signal.signal(signum, lambda *_: got.append(signum))
    app = App()
    server = make(app, loop=loop)

    async def main():
        task = asyncio.create_task(server.serve(sockets=[bound()]))
        await until(lambda: server.started)
        assert signal.getsignal(signum) == server.handle_exit
        os.kill(os.getpid(), signum)
        async with asyncio.timeout(DEADLINE):
            await task

    try:
        asyncio.run(main())
        assert got == [signum]
    finally:
        signal.signal(signum, before)
    assert app.notes == ["startup", "shutdown"]


def test_a_second_interrupt_forces_the_end():
    server = make(App())
    server.handle_exit(signal.SIGINT, None)
    assert (server.should_exit, server.force_exit) == (True, False)
    server.handle_exit(signal.SIGTERM, None)
    assert not server.force_exit
    server.handle_exit(signal.SIGINT, None)
    assert server.force_exit


# -- what goes wrong -------------------------------------------------------------------


def serve(server, sockets=None):
    asyncio.run(asyncio.wait_for(server.serve(sockets=sockets), DEADLINE))


def test_an_application_that_cannot_be_imported_raises_an_error():
    with pytest.raises(AppImportError, match="no module 'nosuch'"):
        serve(make("nosuch:app"))


def test_an_application_that_cannot_start_raises_an_error():
    async def app(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    sock = bound()
    with pytest.raises(BootError, match="no database"):
        serve(make(app), [sock])
    assert sock.fileno() == -1


def test_an_address_in_use_raises_an_error():
    with bound() as other, pytest.raises(ListenError, match="in use"):
        serve(make(App(), port=other.getsockname()[1]))


@pytest.mark.parametrize(
    ("family", "kind"),
    [(socket.AF_UNIX, socket.SOCK_DGRAM), (socket.AF_INET, socket.SOCK_DGRAM)],
)
def test_a_socket_of_another_kind_is_refused(family, kind):
    with socket.socket(family, kind) as sock, pytest.raises(ConfigError, match="stream socket"):
        serve(make(App()), [sock])


def test_a_unix_socket_is_served_and_removed(tmp_path):
    path = tmp_path / "web"
    with in_thread(make(App(), port=None, uds=str(path))), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(b"GET / HTTP/1.0\r\nHost: a\r\n\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 200 OK")
    assert not path.exists()


def test_a_bound_socket_is_listened_on():
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    port = sock.getsockname()[1]
    with in_thread(make(App()), sock):
        assert get(port) == b"hello"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"workers": 2}, "argument workers: "),
        ({"chdir": "/"}, "argument chdir: "),
        ({"timeout_boot": 5}, "argument timeout_boot: "),
        ({"reload": True}, "argument reload: "),
    ],
)
def test_settings_that_need_an_arbiter_are_refused(settings, told):
    with pytest.raises(ConfigError, match=rf"{told}.*use esg\.run"):
        make(App(), **settings)


def test_settings_that_need_no_arbiter_are_accepted():
    make(App(), graceful_timeout=1, max_requests=5, name="shop", workers=1)


def test_servers_that_have_ended_leave_logging_and_files_as_they_were(tmp_path):
    async def main():
        files = set(os.listdir("/proc/self/fd"))
        names = {"access_logfile": str(tmp_path / "a"), "error_logfile": str(tmp_path / "e")}
        servers = [make(App(), access_log=True, log_level="info", **names) for _ in range(2)]
        tasks = [asyncio.ensure_future(server.serve()) for server in servers]
        while not all(server.started for server in servers):
            await asyncio.sleep(0.001)
        for server, task in zip(servers, tasks, strict=True):
            logger.error("%s", "still written")
            server.should_exit = True
            await task
        assert set(os.listdir("/proc/self/fd")) == files

    logger = logging.getLogger("esg")
    before = logger.handlers[:], logger.level, logger.propagate, logging.lastResort
    asyncio.run(main())
    assert (logger.handlers, logger.level, logger.propagate, logging.lastResort) == before
    assert (tmp_path / "e").read_text().count("still written") == 2


@pytest.mark.parametrize("first", [0, 1])
def test_whichever_server_ends_first_the_handlers_are_those_from_before(first):
    async def main():
        servers = [make(App()), make(App())]
        tasks = []
        for server in servers:
            tasks.append(asyncio.ensure_future(server.serve()))
            await until(lambda server=server: server.started)
        for number in (first, 1 - first):
            assert signal.getsignal(signal.SIGTERM) != before
            servers[number].should_exit = True
            await tasks[number]

    before = signal.getsignal(signal.SIGTERM)
    asyncio.run(main())
    assert signal.getsignal(signal.SIGTERM) == before


# -- children of the application -------------------------------------------------------


def in_child(work):
    """The exit status of a forked child that runs `work`: the result of `work`."""
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            status = work() or 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def sockets_at(port):
    """The number of this process's TCP sockets that are bound to a port."""
    found = 0
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(int(fd))) as sock:
            found += sock.family == socket.AF_INET and sock.getsockname()[1] == port
    return found


@pytest.mark.parametrize("loop", LOOPS)
def test_a_forked_child_has_the_signals_of_the_program_and_no_socket_of_the_server(loop):
    sock = bound()
    port = sock.getsockname()[1]
    seen = []

    class Forking(App):
        async def __call__(self, scope, receive, send):
            if scope["type"] == "http":
                seen.append(sockets_at(port))
                seen.append(in_child(lambda: sockets_at(port)))
                seen.append(in_child(lambda: os.kill(os.getpid(), signal.SIGTERM)))
                server.should_exit = True
            await super().__call__(scope, receive, send)

    server = make(Forking(), loop=loop)
    client = threading.Thread(target=get, args=(port,))
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        client.start()
        server.run(sockets=[sock])
        client.join()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [2, 0, -signal.SIGTERM]  # the listener and the client's connection
    assert in_child(lambda: sockets_at(port)) == 0


@pytest.mark.filterwarnings("error")
def test_run_in_an_event_loop_says_what_to_do():
    async def run():
        make(App()).run()

    with pytest.raises(RuntimeError, match=r"await serve\(\)"):
        asyncio.run(run())
