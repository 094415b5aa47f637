"""The payload: boots the application, serves it on one event loop, drains and exits."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import functools
import gc
import os
import random
import signal
import socket
import threading
from collections.abc import Callable
from typing import Any

from esg import forks, lifeline, mailbox
from esg.errors import BootError, ESGError
from esg.frozen import frozen
from esg.loader import load_application
from esg.log.records import Subject, logger, worker_subject
from esg.log.setup import reopen_handlers, stay_enabled
from esg.net.listeners import Listener
from esg.payload import DUMP_SIGNAL, Assignment, GenerationPart, WorkerInfo, set_current_worker
from esg.scoreboard import Cell, RowState
from esg.server import leftovers, protocols
from esg.server.acceptor import Acceptor
from esg.server.accesslog.access_log import AccessLog, LoggedAccess, access_log
from esg.server.asgi import debug_page
from esg.server.asgi.interfaces import adapt, interface_behind
from esg.server.asgi.lifespan import Lifespan
from esg.server.asgi.types import Application
from esg.server.cancellation import cancel, cancel_others, close_generators
from esg.server.http1.connection import Connection
from esg.server.http1.parked import Parked
from esg.server.loops import LoopFactory, loop_factory, loop_in_place_of
from esg.server.malloc import keep_free_memory
from esg.server.packages import forget_replaced
from esg.server.standstill import Standstill
from esg.server.state import TICK, Service
from esg.server.websocket.frames import GOING_AWAY, SERVICE_RESTART
from esg.settings.schema import Config
from esg.waits import Load

SHUTDOWN_MINIMUM = 3.0
"""The least time for the lifespan's shutdown, in seconds, even if the drain ended late."""

IDLE_TIME = 1.0
"""Seconds of silence after which, in development, a connection can be closed: no request is due."""

ENDS = ("shutdown", "should_exit")
"""Reasons for a drain after which no worker is left to connect to."""

LONGEST_PAUSE = 0.02
"""The most seconds between the ends of two WebSockets when a worker drains."""

CANCEL_LIMIT = 1.0
"""Seconds for cancelled requests to end."""

LONGEST_LIST = 200
"""The most characters of `--forwarded-allow-ips` that a line of the log repeats."""

ORPHANED = "orphaned"
"""The reason for the drain of a worker whose arbiter is gone."""


@frozen
class Loaded:
    """A generation's application, ready to be served, and the event loop to serve it on."""

    app: Application
    loop_factory: LoopFactory


def run_worker(assignment: Assignment) -> int:
    """Run a worker until it is done; returns its exit status. See `esg.payload.Payload`."""
    subject = begin(assignment)
    try:
        return serve(assignment, load(assignment.generation))
    except BootError as error:
        leftovers.limit_children(CANCEL_LIMIT, subject)
        failure = mailbox.BootFailed(str(error), error.detail, error.exit_code)
        assignment.worker.mailbox.send(failure)
        return error.exit_code


def begin(assignment: Assignment) -> Subject:
    """Make this process the worker of the assignment; returns its subject in the log."""
    own = assignment.worker
    keep_free_memory(assignment.generation.config.malloc_trim)
    faulthandler.enable(own.stack_fd)
    faulthandler.register(DUMP_SIGNAL, own.stack_fd)
    info = WorkerInfo(own.number, assignment.generation.number, os.getpid())
    set_current_worker(info)
    own.row[Cell.PID], own.row[Cell.GENERATION] = info.pid, info.generation
    own.row[Cell.STATE] = RowState.BOOTING
    forks.release_in_children(lambda: _release(assignment, own_process=True))
    return _subject(assignment)


def load(generation: GenerationPart) -> Loaded:
    """Load the application of a generation. Raises BootError.

    It starts no thread, so a process that has loaded the application may fork workers.
    """
    config = generation.config
    forget_replaced()
    factory = loop_factory(config.loop)  # before the application may patch modules
    app = adapt(_load(config, generation.objects.app), config)
    stay_enabled()
    return Loaded(app, factory)


def serve(assignment: Assignment, loaded: Loaded) -> int:
    """Serve the application until the worker is done; returns its exit status. Raises BootError."""
    subject = _subject(assignment)
    limit = functools.partial(_time_without_arbiter, assignment)
    lifeline.watch(assignment.worker.mailbox.fileno(), subject, limit)
    lifeline.untie()
    loop = assignment.generation.config.loop
    # The runner isn't closed: `finish` does the same, with a time limit and heartbeats.
    runner = asyncio.Runner(loop_factory=loop_in_place_of(loaded.loop_factory, loop, subject))
    worker = Worker(assignment, loaded.app)
    runner.run(worker.run(own_process=True))
    runner.run(worker.finish())
    return 0


def _subject(assignment: Assignment) -> Subject:
    number, generation = assignment.worker.number, assignment.generation.number
    return worker_subject(number, generation, os.getpid())


def _load(config: Config, given: Any) -> Any:
    """Load the application. End a child that its modules forked, if the child returns here."""
    pid, error = os.getpid(), None
    try:
        return load_application(config, given)
    except ESGError as failed:
        error = failed.__context__ or failed
        raise
    finally:
        if os.getpid() != pid:
            forks.end(error)


def _release(assignment: Assignment, *, own_process: bool) -> None:
    """In a forked child: release the worker's descriptors.

    The log stays, since the application may write to it from there.
    """
    listeners, stacks = assignment.generation.listeners, assignment.worker.stack_fd
    mail = assignment.worker.mailbox.descriptors
    forks.blank([*mail, *(listener.fileno() for listener in listeners)])
    forks.blank(forks.connections_to(listener.name for listener in listeners))
    if not own_process:
        return
    forks.default_signals()
    forks.blank([lifeline.tied()])
    if stacks >= 0:
        faulthandler.unregister(DUMP_SIGNAL)
    if stacks > 2:
        with contextlib.suppress(OSError):  # without a standard error
            # The child's own crash must not look like the worker's.
            os.dup2(2, stacks, inheritable=False)


class Worker:
    """One worker's life from its event loop's first turn to its last.

    It may be alone in its process, or run in a loop of another program. In that case, orders come
    only by mailbox and from `hurry`.
    """

    def __init__(
        self, assignment: Assignment, app: Application, subject: Subject | None = None
    ) -> None:
        """`subject` names it in the log; by default, that is its number and generation."""
        self._assignment = assignment
        self._config = assignment.generation.config
        self._listeners = assignment.generation.listeners
        self._logs = assignment.generation.logs
        self._row = assignment.worker.row
        self._mailbox = assignment.worker.mailbox
        self._app = app
        self._subject = subject or _subject(assignment)
        self._lifespan = Lifespan(app, self._config.lifespan, self._subject)
        self._startup_place: str | None = None
        """The last reported place of the lifespan's startup; None if it isn't running."""
        self._stopping = asyncio.Event()
        self._order = mailbox.Drain("", 0.0, final=False)
        self._quick = asyncio.Event()
        self._why_quick = ""
        self._terminations = 0
        self._deadline = 0.0
        self._wind_down_deadline = 0.0
        """The time by which the loop should have ended all work, even if the drain ended late."""

    async def run(self, *, own_process: bool) -> None:
        """Boot, serve, drain. Raises BootError if the application doesn't start."""
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._service = self._make_service(loop)
        context = self._assignment.generation.objects.ssl_context
        self._acceptor = Acceptor(self._service, self._listeners, self._row.loads, context)
        loop.add_reader(self._mailbox.fileno(), self._on_mail)
        keep = self._release_in_children(own_process)
        if own_process:
            self._take_over_process(loop)
        self._ticker = loop.call_later(TICK, self._tick)
        try:
            if await self._boot():
                if not self._stopping.is_set():
                    self._begin(own_process)
                await self._stopping.wait()
                await self._drain()
            else:
                self._mailbox.send(mailbox.StoppedAccepting())
            if own_process:
                await self._wind_down()
            else:
                await self._end_connections()
        finally:
            self._ticker.cancel()
            loop.remove_reader(self._mailbox.fileno())
            if not own_process:
                keep()

    def _release_in_children(self, own_process: bool) -> Callable[[], None]:
        """Make forked children release this worker's descriptors; returns a function that ends
        this."""
        loop, thread = self._loop, threading.get_ident()

        def release() -> None:
            _release(self._assignment, own_process=own_process)
            if own_process:
                forks.abandon(loop, thread)

        return forks.release_in_children(release)

    # -- boot --------------------------------------------------------------------------

    def _make_service(self, loop: asyncio.AbstractEventLoop) -> Service:
        service = Service(
            self._app,
            self._config,
            loop,
            self._row,
            subject=self._subject,
            access_log=self._make_access_log(loop),
            due_at=_due_at(self._config),
            on_due=lambda: self._report_due("max-requests"),
        )
        protocols.enable(service)
        if service.proxies is not None:
            service.proxies.on_untrusted = self._report_untrusted
        return service

    def _report_untrusted(self, peer: str | None, field: bytes) -> None:
        trusted = list(self._config.forwarded_allow_ips)
        if len(",".join(trusted)) > LONGEST_LIST:
            trusted = []
        name = field.decode("ascii").title()
        self._mailbox.send(mailbox.UntrustedPeer(peer or "", name, trusted))

    def _make_access_log(self, loop: asyncio.AbstractEventLoop) -> AccessLog | LoggedAccess | None:
        return access_log(self._logs, loop, self._subject)

    def _take_over_process(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.set_exception_handler(self._on_loop_error)
        loop.add_signal_handler(signal.SIGTERM, self._on_terminate)
        loop.add_signal_handler(signal.SIGQUIT, self._on_quit)
        # Signals that are meant for the arbiter, but that a terminal or a careless `pkill` sends to
        # workers, too. Runner.run() has taken SIGINT over as well by now.
        for signum in (signal.SIGINT, signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU):
            loop.add_signal_handler(signum, _ignore)
        loop.add_signal_handler(signal.SIGUSR2, _ignore)
        loop.add_signal_handler(signal.SIGUSR1, self._reopen_logs)

    async def _boot(self) -> bool:
        """Run the lifespan's startup; False if told to stop meanwhile."""
        startup = asyncio.ensure_future(self._lifespan.startup())
        stopped = asyncio.ensure_future(self._stopping.wait())
        if self._config.lifespan != "off":
            self._startup_place = ""
            self._mailbox.send(mailbox.InStartup(""))
        await asyncio.wait((startup, stopped), return_when=asyncio.FIRST_COMPLETED)
        self._startup_place = None
        stopped.cancel()
        if not startup.done():
            startup.cancel()
            await self._lifespan.cancel()
            return False
        await startup
        if self._lifespan.refusal is not None:
            self._mailbox.send(self._lifespan.refusal)
        stay_enabled()
        self._service.state = self._lifespan.state
        return True

    def _begin(self, own_process: bool) -> None:
        """Begin to accept, and report that."""
        if own_process:
            gc.collect()
            gc.freeze()
        self._row.beat()
        self._row[Cell.STATE] = RowState.READY
        self._acceptor.start()
        self._mailbox.send(self._introduction())
        if own_process:
            lifeline.look_regularly(Standstill(self._service, self._row, self._mailbox).look)
        self._mailbox.send(mailbox.Ready())

    def _introduction(self) -> mailbox.Serves:
        loop = type(self._loop).__module__.partition(".")[0]
        parser = self._service.parser.__module__.rpartition(".")[2].removesuffix("_parser")
        return mailbox.Serves(interface_behind(self._app), loop, parser)

    def _on_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        """Log an exception that wasn't caught, in a callback or in a task that isn't awaited."""
        error = context.get("exception")
        logger.error(
            "%s %s",
            self._subject,
            context.get("message"),
            exc_info=error if isinstance(error, BaseException) else None,
        )

    def _tick(self) -> None:
        self._ticker = self._loop.call_later(TICK, self._tick)
        self._service.tick()
        self._logs.files.flush()
        if self._startup_place is not None:
            self._report_startup()

    def _report_startup(self) -> None:
        """Tell the arbiter where the lifespan's startup waits, for the log."""
        place = self._lifespan.place(self._config.real_folder or _folder())
        if place != self._startup_place:
            self._startup_place = place
            self._mailbox.send(mailbox.InStartup(place))

    # -- orders ------------------------------------------------------------------------

    def _on_mail(self) -> None:
        messages, alive = self._mailbox.receive(mailbox.FromArbiter)
        for message in messages:
            if isinstance(message, mailbox.Drain) and message.reason == "SIGQUIT":
                self.hurry(message.reason)  # if the arbiter may not send the signal
            elif isinstance(message, mailbox.Drain):
                self._stop(message)
            elif isinstance(message, mailbox.ReloadFailed):
                if self._config.debug:
                    self._service.app = debug_page.in_front_of(
                        self._app, message.reason, message.detail
                    )
            elif isinstance(message, mailbox.NewLogFiles):
                self._logs.files.take_over(message.paths, message.fds)
                reopen_handlers()
            elif isinstance(message, mailbox.NewRow):
                self._see(message)
            elif isinstance(message, mailbox.RowGone):
                self._row.forget(message.number)
            elif isinstance(message, mailbox.NewListener):
                for fd in message.fds:
                    self._acceptor.replace(message.url, socket.socket(fileno=fd))
        if not alive:
            self._loop.remove_reader(self._mailbox.fileno())
            if not self._stopping.is_set():
                logger.error("%s the arbiter is gone, draining", self._subject)
            grace = self._config.graceful_timeout
            self._stop(mailbox.Drain(ORPHANED, grace, final=True))

    def _see(self, message: mailbox.NewRow) -> None:
        for fd in message.fds:
            try:
                self._row.see(message.number, fd)
            except (OSError, ValueError) as error:
                logger.warning(
                    "%s can't see how many connections worker=%d has: %s",
                    self._subject,
                    message.number,
                    error,
                )

    def _on_terminate(self) -> None:
        """Handle SIGTERM to this worker: ask for a replacement, then drain; a second one drains
        now."""
        self._terminations += 1
        if self._terminations == 1 and self._row[Cell.STATE] == RowState.READY:
            self._report_due("SIGTERM")
        else:
            self._mailbox.send(mailbox.Draining("SIGTERM"))
            self._stop(mailbox.Drain("SIGTERM", self._config.graceful_timeout, final=False))

    def _on_quit(self) -> None:
        if not self._stopping.is_set():
            self._mailbox.send(mailbox.Draining("SIGQUIT"))
        self.hurry("SIGQUIT")

    def hurry(self, reason: str) -> None:
        """Drain without waiting, even if a drain has begun."""
        if not self._quick.is_set():
            self._why_quick = reason
        self._quick.set()
        self._stop(mailbox.Drain(reason, 0.0, final=False))

    def _reopen_logs(self) -> None:
        """Handle SIGUSR1 to this worker: it opens the files itself, with its own permissions."""
        _, errors = self._logs.files.reopen()
        reopen_handlers()
        for error in errors:
            logger.error("%s %s", self._subject, error)

    def _report_due(self, reason: str) -> None:
        self._mailbox.send(mailbox.Due(reason))

    def _stop(self, order: mailbox.Drain) -> None:
        if not self._stopping.is_set():
            self._order = order
            self._stopping.set()

    def load(self) -> Load:
        """The work that it has to finish."""
        service = self._service
        websockets = len(service.sockets)
        requests = max(0, len(service.running) - websockets)  # a WebSocket is a call, too
        return Load(self._assignment.worker.number, requests, websockets, len(service.connections))

    # -- drain -------------------------------------------------------------------------

    async def _drain(self) -> None:
        """Finish running requests, then shut the application down."""
        self._deadline = deadline = self._loop.time() + self._order.grace
        self._row[Cell.STATE] = RowState.DRAINING
        self._service.draining = True
        self._farewell = self._loop.create_task(self._close_sockets(self._order))
        if self._quick.is_set():
            self._acceptor.stop()
        else:
            orphaned = self._order.reason == ORPHANED
            await self._acceptor.stop_last(self._ends, empties_all=orphaned)
        self._mailbox.send(mailbox.StoppedAccepting())
        if self._config.reload:
            self._close_idle()
        await self._wait_until_idle(deadline)
        await self._cancel_rest()
        left = deadline - self._loop.time()
        await self._lifespan.shutdown(max(left, SHUTDOWN_MINIMUM))
        if self._service.access_log is not None:
            self._service.access_log.flush()

    def _ends(self, listener: Listener) -> bool:
        """Whether no other process accepts from this listener after this worker."""
        if self._order.reason == ORPHANED and listener.stored is not False:
            return False  # the next arbiter gets it, or may get it, from the service manager
        return self._order.final or listener.url() in self._order.dropped

    def _close_idle(self) -> None:
        """Close connections that have been idle for a second, such as those of browsers.

        Otherwise this worker would serve their next request with the old code, although the
        developer has just written new code.
        """
        limit = self._loop.time() - IDLE_TIME - TICK  # the clock is up to a tick behind
        for connection in list(self._service.connections):
            if isinstance(connection, Connection | Parked):
                connection.close_if_idle(limit)

    async def _wait_until_idle(self, deadline: float) -> None:
        """Wait until all work is finished, the grace period is over, or the arbiter orders a quick
        end."""
        while not self._quick.is_set() and self._loop.time() < deadline:
            if self._service.idle and not self._acceptor.busy:
                return
            await asyncio.sleep(0.02)

    async def _close_sockets(self, order: mailbox.Drain) -> None:
        """Close WebSockets, spread over the first half of the grace period, because their clients
        reconnect."""
        ends = order.final or order.reason in ENDS or self._quick.is_set()
        code = GOING_AWAY if ends else SERVICE_RESTART
        sockets = list(self._service.sockets)
        random.shuffle(sockets)
        begun = self._loop.time()
        pause = min(order.grace / 2 / max(1, len(sockets)), LONGEST_PAUSE)
        for number, session in enumerate(sockets):
            late = begun + number * pause - self._loop.time()
            if late > 0 and not self._quick.is_set():
                await asyncio.sleep(late)
            session.close_with(code, "")

    async def _cancel_rest(self) -> None:
        await self._farewell
        tasks = [exchange.task for exchange in self._service.running]
        if tasks:
            why = "the grace period is over"
            if self._quick.is_set():
                why = f"told to stop immediately ({self._why_quick})"
            noun = "request" if len(tasks) == 1 else "requests"
            logger.warning("%s cancels %d %s: %s", self._subject, len(tasks), noun, why)
        self._service.cancels = True
        deadlocked = [task for task in tasks if not cancel(task)]
        if deadlocked:
            logger.error(
                "%s can't cancel %d of them: their tasks wait for each other in a circle",
                self._subject,
                len(deadlocked),
            )
        if tasks:
            await asyncio.wait(tasks, timeout=CANCEL_LIMIT)
        for exchange in list(self._service.running):  # their tasks go on
            exchange.end_badly()
        for connection in list(self._service.connections):
            connection.close()
        await _let_connections_end()

    async def _end_connections(self) -> None:
        """End connections that clients keep open; otherwise they would outlive the server."""
        for connection in list(self._service.connections):
            connection.end()
        await _let_connections_end()

    async def _wind_down(self) -> None:
        """End the application's tasks and generators that still run in the loop."""
        self._wind_down_deadline = self._loop.time() + 2 * CANCEL_LIMIT
        await cancel_others(CANCEL_LIMIT)
        await close_generators(self._time_left())

    async def finish(self) -> None:
        """Wait for the application's threads and processes that still run.

        Only for a worker that has its process to itself. It must run in a second main task, after
        that of `run`: some libraries (AnyIO, and so Starlette) keep their threads until the main
        task ends.
        """
        self._tick()
        try:
            await leftovers.join_threads(self._time_left(), self._quick, self._subject)
        finally:
            self._ticker.cancel()
        leftovers.limit_children(self._time_left(), self._subject)

    def _time_left(self) -> float:
        """Seconds until the worker should have ended, or the short time that the last steps
        have."""
        end = 0.0 if self._quick.is_set() else max(self._deadline, self._wind_down_deadline)
        return max(end - self._loop.time(), CANCEL_LIMIT / 2)


async def _let_connections_end() -> None:
    """Let closed connections notice their end, and log it: TCP, and TLS above it."""
    for _ in range(2):
        await asyncio.sleep(0)


def _time_without_arbiter(assignment: Assignment) -> float:
    """Seconds for a worker to end after its arbiter is gone."""
    if assignment.worker.row[Cell.STATE] == RowState.BOOTING:
        return 0.0
    return assignment.generation.config.graceful_timeout + SHUTDOWN_MINIMUM + 4 * CANCEL_LIMIT


def _due_at(config: Config) -> int:
    """The number of the request at which this worker is due: --max-requests plus random jitter."""
    if not config.max_requests:
        return 0
    return config.max_requests + random.randint(0, config.max_requests_jitter)


def _folder() -> str:
    """The folder that this process is in; empty if that was deleted."""
    try:
        return os.getcwd()
    except OSError:
        return ""


def _ignore() -> None:
    """Ignore a signal that is meant for the arbiter."""
