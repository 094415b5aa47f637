"""Worker classes for gunicorn: `gunicorn -k esg.workers.ESGWorker example:app`.

gunicorn stays the arbiter: it owns the sockets, forks workers and watches them. Each worker serves
as ESG's own workers do, with settings made from gunicorn's. See docs/gunicorn.md for what each of
gunicorn's settings means here.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime
import faulthandler
import os
import re
import signal
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from gunicorn.arbiter import Arbiter
from gunicorn.config import Config as GunicornConfig
from gunicorn.glogging import Logger
from gunicorn.workers.base import Worker as Base

from esg import mailbox, platforms
from esg.errors import BootError, ESGError
from esg.log.files import LogFiles
from esg.log.records import Subject, logger
from esg.log.setup import LogSetup
from esg.net.listeners import Listener
from esg.payload import (
    Assignment,
    GenerationPart,
    Settings,
    WorkerInfo,
    WorkerPart,
    set_current_worker,
)
from esg.scoreboard import Row
from esg.server.accesslog.access_log import AccessLog, LoggedAccess
from esg.server.accesslog.lines import path_and_query, printable, shown
from esg.server.asgi.interfaces import adapt
from esg.server.loops import loop_factory, loop_in_place_of
from esg.server.prepare import prepare
from esg.server.tls import described
from esg.server.worker import Worker
from esg.settings.build import Raw, build
from esg.settings.objects import Objects
from esg.settings.schema import Config, setting_named

SAME: Mapping[str, str] = {
    "keepalive": "timeout_keep_alive",
    "certfile": "ssl_certfile",
    "keyfile": "ssl_keyfile",
    "ca_certs": "ssl_ca_certs",
    "ciphers": "ssl_ciphers",
    "asgi_lifespan": "lifespan",
    "root_path": "root_path",
}
"""Settings of gunicorn, and the setting of ESG with the same meaning."""

WHERE_GIVEN: Mapping[str, str] = {
    "worker_connections": "limit_connections",
    "threads": "threads",
    "asgi_loop": "loop",
}
"""More settings of gunicorn, which only count if their value differs from its default."""

NO_LIMIT = 1024 * 1024
"""Bytes of a request line or a field if gunicorn's setting is 0; gunicorn has the same bound."""

MOST_FIELDS = 32768
"""The most header fields that gunicorn accepts, even if its setting is larger than this, or 0."""

WITHOUT_MEANING = (
    "pre_request", "post_request", "secure_scheme_headers", "forwarder_headers", "header_map",
    "proxy_allow_ips", "protocol", "http_protocols", "http2_cleartext", "permit_obsolete_folding",
    "strip_header_spaces", "permit_unconventional_http_method",
    "permit_unconventional_http_version", "casefold_http_method", "http_parser", "ssl_version",
)  # fmt: skip
"""Settings about HTTP that ESG has no counterpart for; using one logs a warning."""

BEAT = 1.0
"""The most seconds between two heartbeats."""

EXIT_SHARE = 0.25, 2.0
"""The part of gunicorn's graceful timeout that is kept for what follows a drain: a fraction of it,
and the most seconds.

gunicorn kills the worker when its graceful timeout is over. Requests that were cancelled at that
moment would have no time left for their clean-up.
"""


class ESGWorker(Base):  # type: ignore[misc]  # gunicorn has no types
    """Serves with uvloop and httptools if they are installed."""

    CONFIG_KWARGS: ClassVar[dict[str, Any]] = {"loop": "auto", "http": "auto"}
    """Settings of ESG, by name, which override gunicorn's; meant to be changed by subclasses."""

    def init_signals(self) -> None:
        """Install gunicorn's handlers, and have stacks written if the worker aborts or crashes.

        After that, gunicorn's handler of SIGABRT runs, unless the loop is blocked in C code.
        """
        super().init_signals()
        faulthandler.enable(self._error_stream())

    def _error_stream(self) -> int:
        for handler in self.log.error_log.handlers:
            with contextlib.suppress(AttributeError, OSError, ValueError):
                return int(handler.stream.fileno())
        return 2

    def run(self) -> None:
        """Serve until told to stop. If the boot fails, exits with gunicorn's code for that."""
        self._use_gunicorns_log()
        if not self.alive:  # it was told to stop while the application was imported
            return
        try:
            platforms.check()
            settings = self._prepared()
            config = settings.config
            app = adapt(self.wsgi, config)
            # The runner isn't closed: `finish` does the same, with a time limit and heartbeats.
            factory = loop_in_place_of(loop_factory(config.loop), config.loop, "worker")
            runner = asyncio.Runner(loop_factory=factory)
            serving = _Serving(self, settings, app)
            runner.run(serving.serve())
            runner.run(serving.finish())
        except ESGError as error:
            detail = error.detail if isinstance(error, BootError) else ""
            logger.error("%s%s", error, f"\n{detail}" if detail else "")
            sys.exit(Arbiter.WORKER_BOOT_ERROR)

    def _use_gunicorns_log(self) -> None:
        theirs = self.log.error_log
        logger.handlers[:] = theirs.handlers
        logger.setLevel(theirs.level)
        logger.propagate = theirs.propagate

    # -- settings ----------------------------------------------------------------------

    def _prepared(self) -> Settings:
        """The settings, with the SSL context that gunicorn's hook makes. Raises ConfigError."""
        settings = prepare(self._settings(), Objects(app=self.wsgi))
        context = settings.objects.ssl_context
        if context is None:
            return settings
        made = self.cfg.ssl_context(self.cfg, lambda: context)
        context = described(made, getattr(made, "certificate", None))
        objects = dataclasses.replace(settings.objects, ssl_context=context)
        return dataclasses.replace(settings, objects=objects)

    def _settings(self) -> Config:
        """The Config made from gunicorn's settings and `CONFIG_KWARGS`. Raises ConfigError."""
        raw = dict(self._mapped())
        for name, value in self.CONFIG_KWARGS.items():
            where = f"CONFIG_KWARGS of {type(self).__name__}"
            declared = setting_named(name, where)
            if declared.name not in raw or value != declared.default:
                raw[declared.name] = Raw(value, f"{where}: {name}")
        self._warn()
        return build(raw, objects=Objects(app=self.wsgi))

    def _mapped(self) -> Iterator[tuple[str, Raw]]:
        cfg = self.cfg
        uri = str(getattr(self.app, "app_uri", None) or "")
        name = re.match(r"[A-Za-z_][\w.]*(:[A-Za-z_][\w.]*)?$", uri.partition("(")[0])
        yield "app", Raw(name[0] if name else "application", "gunicorn's wsgi_app")
        for theirs, ours in {**SAME, **WHERE_GIVEN}.items():
            value = getattr(cfg, theirs, None)
            if value not in (None, "") and (theirs in SAME or self._is_given(theirs)):
                yield ours, Raw(_as_list(value), f"gunicorn's {theirs}")
        if self._is_given("cert_reqs"):
            yield "ssl_cert_reqs", Raw(str(int(cfg.cert_reqs)), "gunicorn's cert_reqs")
        yield from self._limits()
        # gunicorn trusts every peer on a UNIX socket, whatever its list says.
        trusted = [*_as_list(cfg.forwarded_allow_ips), "unix:"]
        yield "forwarded_allow_ips", Raw(trusted, "gunicorn's forwarded_allow_ips")
        if cfg.proxy_protocol not in (False, "off"):
            yield "proxy_protocol", Raw(True, "gunicorn's proxy_protocol")
        if self.max_requests != sys.maxsize:  # gunicorn has added the jitter
            yield "max_requests", Raw(self.max_requests, "gunicorn's max_requests")
        share, most = EXIT_SHARE
        grace = cfg.graceful_timeout - min(cfg.graceful_timeout * share, most)
        yield "graceful_timeout", Raw(grace, "gunicorn's graceful_timeout")
        yield "access_log", Raw(self._logs_access(), "gunicorn's accesslog")

    def _limits(self) -> Iterator[tuple[str, Raw]]:
        cfg = self.cfg
        line = cfg.limit_request_line or NO_LIMIT
        yield "limit_request_line", Raw(line, "gunicorn's limit_request_line")
        fields = min(cfg.limit_request_fields or MOST_FIELDS, MOST_FIELDS)
        yield "limit_request_fields", Raw(fields, "gunicorn's limit_request_fields")
        if self._is_given("limit_request_field_size"):
            size = max(256, fields * ((cfg.limit_request_field_size or NO_LIMIT) + 4))
            yield "limit_request_header_size", Raw(size, "gunicorn's limit_request_field_size")

    def _is_given(self, name: str) -> bool:
        """Whether a setting of gunicorn differs from its default."""
        default = GunicornConfig().settings.get(name)
        return default is not None and self.cfg.settings[name].get() != default.get()

    def _logs_access(self) -> bool:
        custom = getattr(type(self.log), "access", None) is not Logger.access
        return custom or bool(getattr(self.log, "access_log_enabled", True))

    def _warn(self) -> None:
        names = [name for name in WITHOUT_MEANING if self._is_given(name)]
        if names:
            self.log.warning("ESG's workers ignore these settings: %s", ", ".join(names))

    # -- other processes that listen ---------------------------------------------------

    def listens_last(self) -> bool:
        """Whether gunicorn's sockets have no acceptors left except workers that stop, too.

        If so, queued connections have to be served before the sockets close. That is the case if
        gunicorn has closed its own descriptors, and shares the sockets neither with systemd nor
        with a gunicorn that it was upgraded from or to. False if that can't be found out, for
        example in a worker that runs as another user.
        """
        if self.cfg.reuse_port:
            return True
        if _FROM_SYSTEMD or any(str(bind).startswith("fd://") for bind in self.cfg.bind):
            return False
        ours = {f"socket:[{os.fstat(sock.fileno()).st_ino}]" for sock in self.sockets}
        try:
            return not ours & _sockets_of(self.ppid) and all(
                _is_sibling(pid) for pid in _processes() if ours & _sockets_of(pid, hidden=True)
            )
        except PermissionError:
            return False

    def init_process(self) -> None:
        """Set `esg.current_worker`, then do what gunicorn does."""
        set_current_worker(WorkerInfo(self.age, 1, os.getpid()))
        super().init_process()


class ESGH11Worker(ESGWorker):
    """Serves with asyncio's own loop and h11, in pure Python."""

    CONFIG_KWARGS: ClassVar[dict[str, Any]] = {"loop": "asyncio", "http": "h11"}


# -- reading /proc, see proc(5) ----------------------------------------------------------

_FROM_SYSTEMD = "LISTEN_FDS" in os.environ
"""Whether systemd gave gunicorn its sockets; gunicorn imports this module before it removes the
variable.
"""


def _processes() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def _sockets_of(pid: int, *, hidden: bool = False) -> set[str]:
    """All sockets that a process has open; empty if the process has ended.

    Raises PermissionError for a process of another user, unless its sockets may stay `hidden`.
    """
    folder, found = f"/proc/{pid}/fd", set()
    try:
        for name in os.listdir(folder):
            with contextlib.suppress(FileNotFoundError):
                found.add(os.readlink(f"{folder}/{name}"))
    except (FileNotFoundError, ProcessLookupError):
        return found
    except PermissionError:
        if not hidden:
            raise
    return found


def _is_sibling(pid: int) -> bool:
    """Whether a process was forked by the same gunicorn, and hasn't executed another program.

    A forked process has its stack at the same address; a newly executed program, at a random one.
    """
    try:
        theirs, ours = (
            Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()
            for process in (pid, os.getpid())
        )
    except OSError:  # it has ended
        return True
    parent, stack = 1, 25
    return (theirs[parent], theirs[stack]) == (ours[parent], ours[stack])


def _as_list(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool) else [str(item) for item in value]


# -- serving -----------------------------------------------------------------------------


class _Serving(Worker):
    """ESG's worker under gunicorn. It also has the arbiter's end of the mailbox."""

    def __init__(self, owner: ESGWorker, settings: Settings, app: Any) -> None:
        self._owner = owner
        self._ours, theirs = mailbox.pair()
        self._beating: asyncio.TimerHandle | None = None
        pid = os.getpid()
        assignment = Assignment(
            WorkerPart(number=1, mailbox=theirs, row=Row.alone(), stack_fd=-1),
            GenerationPart(
                number=1,
                config=settings.config,
                listeners=[Listener(_nonblocking(sock.sock)) for sock in owner.sockets],
                logs=LogSetup.open(_quiet(settings.config), LogFiles()),
                objects=settings.objects,
            ),
        )
        super().__init__(assignment, app, Subject(1, 1, pid, text=f"worker pid={pid}"))

    async def serve(self) -> None:
        """Boot, serve, drain. Raises BootError if the application doesn't start."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._ours.fileno(), self._on_news)
        loop.add_reader(self._owner.PIPE[0], self._look)
        try:
            await self.run(own_process=True)
        finally:
            if self._beating is not None:
                self._beating.cancel()
            loop.remove_reader(self._owner.PIPE[0])
            loop.remove_reader(self._ours.fileno())

    async def finish(self) -> None:
        """Finish as ESG's own worker does, and send gunicorn heartbeats meanwhile."""
        self._beat()
        try:
            await super().finish()
        finally:
            if self._beating is not None:
                self._beating.cancel()

    def _make_access_log(self, loop: asyncio.AbstractEventLoop) -> AccessLog | LoggedAccess | None:
        return _GunicornAccess(self._owner.log) if self._config.access_log else None

    def _take_over_process(self, loop: asyncio.AbstractEventLoop) -> None:
        """Handle the signals that gunicorn sends to workers, except SIGABRT: see `init_signals`."""
        loop.set_exception_handler(self._on_loop_error)
        loop.add_signal_handler(signal.SIGTERM, self._leave, "SIGTERM")
        loop.add_signal_handler(signal.SIGQUIT, self._leave_quickly, "SIGQUIT")
        loop.add_signal_handler(signal.SIGINT, self._leave_quickly, "SIGINT")
        loop.add_signal_handler(signal.SIGUSR1, self._owner.log.reopen_files)
        for signum in (signal.SIGHUP, signal.SIGUSR2, signal.SIGWINCH):  # for gunicorn's arbiter
            loop.add_signal_handler(signum, lambda: None)

    def _leave(self, reason: str) -> None:
        """Finish the open requests, and queued ones that no other process would serve; then end."""
        self._owner.alive = False
        if self._stopping.is_set():
            return
        final = self._owner.listens_last()
        reason = "shutdown" if final else reason  # no process will listen after this one
        self._stop(mailbox.Drain(reason, self._config.graceful_timeout, final))

    def _leave_quickly(self, reason: str) -> None:
        self._owner.alive = False
        self._owner.cfg.worker_int(self._owner)
        self.hurry(reason)

    def _on_news(self) -> None:
        for message in self._ours.receive()[0]:
            if isinstance(message, mailbox.Ready):
                self._beat()
            elif isinstance(message, mailbox.NoLifespan):
                tell = self._owner.log.info if message.usual else self._owner.log.warning
                tell("%s: %s", self._owner, message.line)
            elif isinstance(message, mailbox.UntrustedPeer):
                self._owner.log.warning("%s: %s", self._owner, message.line)
            elif isinstance(message, mailbox.Due):
                self._owner.log.info("Autorestarting worker after current request.")
                self._leave(message.reason)

    def _beat(self) -> None:
        """Send gunicorn a heartbeat from the event loop, until `finish` is done."""
        pause = min(BEAT, self._owner.timeout / 2) if self._owner.timeout else BEAT
        self._beating = self._loop.call_later(pause, self._beat)
        self._owner.notify()
        self._look()

    def _look(self) -> None:
        """Leave if gunicorn has ended, or its --reload has seen a change."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._owner.PIPE[0], 4096)
        if self._stopping.is_set():
            return
        if self._owner.ppid != os.getppid():
            self._owner.log.info("Parent changed, shutting down: %s", self._owner)
            self._leave("orphaned")
        elif not self._owner.alive:
            self._leave("reload")


def _nonblocking(sock: Any) -> Any:
    """A socket of gunicorn's, made non-blocking."""
    sock.setblocking(False)
    return sock


def _quiet(config: Config) -> Config:
    """The same Config without an access log, because gunicorn logs the requests."""
    return dataclasses.replace(config, access_log=False)


class _GunicornAccess(LoggedAccess):
    """Passes finished exchanges to gunicorn's logger, which may be of any class."""

    def __init__(self, log: Any) -> None:
        super().__init__(observes=True)
        self._log = log

    def record(self, exchange: Any) -> None:
        """Log a finished exchange."""
        try:
            self._log.access(
                types.SimpleNamespace(
                    status=str(exchange.status),
                    headers=[_text(field) for field in exchange.response_headers],
                    sent=exchange.sent,
                ),
                types.SimpleNamespace(headers=[_text(f) for f in exchange.scope["headers"]]),
                _environ(exchange),
                datetime.timedelta(seconds=exchange.seconds),
            )
        except Exception:  # noqa: BLE001 - the logger's class may be the user's
            logger.exception("access log: can't write the line of a request")


def _text(field: tuple[bytes, bytes]) -> tuple[str, str]:
    return field[0].decode("latin-1"), shown(field[1])


def _environ(exchange: Any) -> dict[str, Any]:
    """A request as CGI variables, for `--access-logformat` (RFC 3875, section 4.1)."""
    scope, target = exchange.scope, exchange.target
    client, server = scope["client"] or ("", ""), scope["server"] or ("", "")
    path, query = path_and_query(target)
    environ = {
        "REQUEST_METHOD": scope["method"],
        "RAW_URI": printable(target),
        "PATH_INFO": printable(path),
        "QUERY_STRING": printable(query),
        "SERVER_PROTOCOL": f"HTTP/{scope['http_version']}",
        "SERVER_NAME": str(server[0]),
        "SERVER_PORT": str(server[1] or ""),
        "SCRIPT_NAME": shown(scope["root_path"]),
        "REMOTE_ADDR": str(client[0]) or "-",
        "REMOTE_PORT": str(client[1] or ""),
        "wsgi.url_scheme": scope["scheme"],
    }
    for name, value in scope["headers"]:
        key = name.decode("latin-1").upper().replace("-", "_")
        environ[key if key in _WITHOUT_PREFIX else f"HTTP_{key}"] = shown(value)
    return environ


_WITHOUT_PREFIX = ("CONTENT_TYPE", "CONTENT_LENGTH")
