"""Runs the server in this process, on a real socket, with the test's application.

A test is a coroutine that runs on the server's loop, once with asyncio and once with uvloop,
and with each parser.
`serve(app, **settings)` gives a `Server`, and its `connect()` a raw `Client`. `Server.advance`
moves the clock. At the end of each test, the log must have no error that the test hasn't claimed,
nothing may have reached the loop's exception handler, and no connection may be left.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import socket
import ssl
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvloop

from esg.log.files import LogFile, LogFiles
from esg.log.records import worker_subject
from esg.log.setup import LogSetup
from esg.net.opening import open_listeners
from esg.scoreboard import Row
from esg.server import protocols
from esg.server.acceptor import Acceptor
from esg.server.accesslog.access_log import AccessLog, LoggedAccess, access_log
from esg.server.prepare import prepare
from esg.server.state import TICK, Service
from esg.server.wsgi.adapter import WSGIAdapter
from esg.settings.schema import Config
from tests.support.certificates import Authority

from .tls_client import TLSClient
from .wire import Client, until

PARSERS = [pytest.param({"http": name}, id=name) for name in ("httptools", "h11")]
"""The settings that choose a parser; most tests run with each."""


SUBJECT = worker_subject(1, 1, 1)


def setup_of(config: Config, log_fd: int) -> LogSetup:
    """The log of a test's server; an access log that isn't a file has the descriptor -1."""
    definition = {} if log_fd == -1 else None
    return LogSetup(config, LogFiles(), LogFile(2), LogFile(log_fd), definition)


ON_EVERY_LOOP = {"test_splitting", "test_pipelining", "test_request_bodies", "test_closing"}
"""Modules whose tests also run with h11 on asyncio's loop, because the loop's reads may matter."""


WITH_ONE_PARSER = {"test_over_tls"}
"""Modules whose tests run with httptools alone: a parser doesn't see how its bytes arrived."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out combinations that would take time and show nothing new.

    In most modules this is h11 on asyncio's loop; in those of `WITH_ONE_PARSER`, h11 on any loop.
    """
    kept, left_out = [], []
    for item in items:
        names = item.callspec.id.split("-") if hasattr(item, "callspec") else []
        rare = "h11" in names and (
            ("asyncio" in names and item.path.stem not in ON_EVERY_LOOP)
            or item.path.stem in WITH_ONE_PARSER
        )
        (left_out if rare else kept).append(item)
    items[:] = kept
    if left_out:
        config.hook.pytest_deselected(items=left_out)


class _Shifted:
    """A loop whose clock a test can move."""

    shift = 0.0

    def time(self) -> float:
        return super().time() + self.shift  # type: ignore[misc]


class AsyncioLoop(_Shifted, asyncio.SelectorEventLoop):
    pass


class UvloopLoop(_Shifted, uvloop.Loop):
    pass


class LogBook(logging.Handler):
    """The log records of a test."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        # As text, because a traceback would keep the objects in its frames alive.
        if record.exc_info:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
            record.exc_info = None
        self.records.append(record)

    def claim(self, text: str) -> str:
        """Remove an expected error or warning with `text` from the log; returns its whole text."""
        for record in self.errors:
            if text in record.getMessage():
                self.records.remove(record)
                return logging.Formatter().format(record)
        raise AssertionError(f"no error with {text!r} in {self.messages}")

    @property
    def errors(self) -> list[logging.LogRecord]:
        return [record for record in self.records if record.levelno >= logging.WARNING]

    @property
    def messages(self) -> list[str]:
        return [record.getMessage() for record in self.records]


class Server:
    """A service that accepts on a loopback address."""

    def __init__(
        self,
        loop: Any,
        app: Any,
        config: Config,
        *,
        piece: int | None,
        address: str,
        access_log: AccessLog | LoggedAccess | None,
        client_context: ssl.SSLContext | None,
        ssl_context: Any,
    ) -> None:
        self._client_context = client_context
        self._loop = loop
        self._piece = piece
        self._clients: list[Client] = []
        self.row = Row.alone()
        self.dues: list[int] = []
        self.service = Service(
            app,
            config,
            loop,
            self.row,
            subject=SUBJECT,
            access_log=access_log,
            due_at=config.max_requests,
            on_due=lambda: self.dues.append(self.service.requests),
        )
        protocols.enable(self.service)
        (listener,) = open_listeners((address,), 128, "--bind")
        self.address = listener.sock.getsockname()[:2]
        self._acceptor = Acceptor(self.service, [listener], list, ssl_context)
        self._acceptor.start()

    def connect(self, piece: int | None = None, receive_buffer: int = 0) -> Client:
        """A new connection; `receive_buffer` limits what the kernel keeps for a slow reader."""
        sock = socket.socket(socket.AF_INET6 if ":" in self.address[0] else socket.AF_INET)
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.connect(self.address)
        if self._client_context is None:
            client = Client(self._loop, sock, piece or self._piece)
        else:
            context = self._client_context
            client = TLSClient(self._loop, sock, piece or self._piece, context=context)
        self._clients.append(client)
        return client

    def advance(self, seconds: float) -> None:
        """Let time pass while the service runs, and let it notice."""
        self._loop.shift += seconds
        self.service.now = self._loop.time() - min(seconds, TICK)
        self.service.tick()

    def stand_still(self, seconds: float) -> None:
        """Let time pass in which nothing ran, and let the service notice."""
        self._loop.shift += seconds
        self.service.tick()

    async def connections(self, count: int) -> None:
        """Wait until the service has this number of connections."""
        await until(lambda: len(self.service.connections) == count)

    async def stop(self) -> None:
        """Hang up every client; then every connection and every application call must end."""
        self._acceptor.stop()
        for client in self._clients:
            client.close()
        await until(lambda: not self._acceptor.busy)
        await self.connections(0)
        await until(lambda: self.service.idle)


@pytest.fixture(params=[AsyncioLoop, UvloopLoop], ids=["asyncio", "uvloop"], autouse=True)
def runner(request: pytest.FixtureRequest) -> Iterator[asyncio.Runner]:
    """Runs the test and the server."""
    unhandled: list[str] = []

    def note(_: Any, context: dict[str, Any]) -> None:
        error = context.get("exception")
        lines = traceback.format_exception(error) if error else []
        unhandled.append(context["message"] + "\n" + "".join(lines))

    with asyncio.Runner(loop_factory=request.param) as runner:
        runner.get_loop().set_exception_handler(note)
        yield runner
    assert "\n".join(unhandled) == ""


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is a coroutine."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    arguments = {name: pyfuncitem.funcargs[name] for name in names}
    pyfuncitem.funcargs["runner"].run(pyfuncitem.obj(**arguments))
    return True


@pytest.fixture
def log() -> Iterator[LogBook]:
    """The log; an error that the test hasn't claimed makes it fail."""
    logger = logging.getLogger("esg")
    before = logger.level, logger.propagate
    book = LogBook()
    logger.addHandler(book)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    yield book
    logger.removeHandler(book)
    logger.level, logger.propagate = before
    assert [logging.Formatter().format(record) for record in book.errors] == []


@pytest.fixture(params=PARSERS)
def parser_settings(request: pytest.FixtureRequest) -> dict[str, Any]:
    return request.param


@pytest.fixture
def piece() -> int | None:
    """How many bytes clients send at once; a module may replace this to try several."""
    return None


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Issues certificates."""
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def certificate(authority: Authority) -> tuple[str, str]:
    """The files of a server's certificate and key."""
    return authority.issue()


@pytest.fixture
def tls() -> tuple[dict[str, Any], ssl.SSLContext] | None:
    """Settings that turn TLS on, and the clients' context; a module may replace this."""
    return None


@pytest.fixture
def serve(
    runner: asyncio.Runner,
    log: LogBook,
    parser_settings: dict[str, Any],
    piece: int | None,
    tls: tuple[dict[str, Any], ssl.SSLContext] | None,
) -> Iterator[Callable[..., Server]]:
    """Starts servers: `serve(app, **settings)`."""
    servers: list[Server] = []
    loop = runner.get_loop()

    def start(
        app: Any,
        *,
        address: str = "127.0.0.1:0",
        log_fd: int | None = None,
        prepared: bool = True,
        **settings: Any,
    ) -> Server:
        tls_settings, client_context = tls or ({}, None)
        config = Config(app="test:app", **(parser_settings | tls_settings | settings))
        ssl_context = None
        if prepared:
            settings = prepare(config)
            config, ssl_context = settings.config, settings.objects.ssl_context
        records = None if log_fd is None else access_log(setup_of(config, log_fd), loop, SUBJECT)
        server = Server(
            loop,
            app,
            config,
            piece=piece,
            address=address,
            access_log=records,
            client_context=client_context,
            ssl_context=ssl_context,
        )
        servers.append(server)
        return server

    def stop() -> None:
        """Stop all servers, for a test that checks something afterwards."""
        while servers:
            runner.run(servers.pop().stop())

    start.stop = stop  # type: ignore[attr-defined]
    yield start
    stop()


@pytest.fixture
def serve_wsgi(serve: Callable[..., Server]) -> Iterator[Callable[..., Server]]:
    """Starts servers of WSGI applications: `serve_wsgi(app, threads=4, **settings)`."""
    adapters: list[WSGIAdapter] = []

    def start(app: Any, *, threads: int = 4, multiprocess: bool = False, **settings: Any) -> Server:
        adapters.append(WSGIAdapter(app, threads=threads, multiprocess=multiprocess))
        return serve(adapters[-1], **settings)

    yield start
    for adapter in adapters:
        adapter.close()
