"""Releases the server's descriptors and signal handlers in children that its application forks.

A forked child inherits every descriptor and every signal handler of its parent. If a worker's child
kept them, the port would stay in use and clients' connections would stay open. A signal sent to the
child would also be written to the wake-up descriptor that it shares with the worker (since 3.12
Python clears that in a forked child; see signal.set_wakeup_fd). This module doesn't deal with
programs that are started by fork and exec: FD_CLOEXEC closes the descriptors there.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import os
import select
import signal
import socket
import stat
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn

logger = logging.getLogger("esg")

Name = tuple[Any, ...] | str | bytes
"""The address that a socket is bound to: see socket.getsockname."""

SERVERS = ("asyncio", "esg", "gunicorn", "uvloop")
"""Packages whose signal handlers make no sense outside the process that installed them."""

MOST_DESCRIPTORS = 65536
"""How many descriptors are examined if /proc isn't mounted and can't list the open ones."""

_Socket = socket.socket  # gevent puts another class in its place
_releases: list[Callable[[], None]] = []
_abandoned: list[asyncio.AbstractEventLoop] = []
"""Loops of the parent, which this forked child must not run."""
_blocked = threading.local()
_watching = False


def release_in_children(release: Callable[[], None]) -> Callable[[], None]:
    """Have `release` called first in every child that this process forks.

    Returns a function that cancels it. All signals are blocked across the fork until everything is
    released, so that the parent's handlers don't handle a signal sent to the child.
    """
    global _watching
    if not _watching:
        _watching = True
        os.register_at_fork(
            before=_before_fork, after_in_parent=_after_in_parent, after_in_child=_after_in_child
        )
    _releases.append(release)
    return functools.partial(_forget, release)


def _forget(release: Callable[[], None]) -> None:
    with contextlib.suppress(ValueError):  # already cancelled, or this is a child
        _releases.remove(release)


def _before_fork() -> None:
    if _releases:
        _blocked.before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


def _after_in_parent() -> None:
    before = _blocked.__dict__.pop("before", None)
    if before is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _after_in_child() -> None:
    releases, _releases[:] = _releases[:], []
    try:
        for release in releases:
            try:
                release()
            except Exception:  # noqa: BLE001 - the others have to be called all the same
                traceback.print_exc()
    finally:
        _after_in_parent()


# -- descriptors -------------------------------------------------------------------------


def blank(descriptors: Iterable[int]) -> None:
    """Replace these descriptors with /dev/null; negative ones are skipped.

    They aren't closed, because the objects that own them still exist. Those would later use or
    close another file that got the same number.
    """
    try:
        nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    except OSError:  # out of descriptors
        for fd in descriptors:
            with contextlib.suppress(OSError):
                os.close(fd)
        return
    try:
        for fd in descriptors:
            if fd >= 0:
                os.dup2(nothing, fd, inheritable=False)
    finally:
        os.close(nothing)


def connections_to(names: Iterable[Name]) -> list[int]:
    """The descriptors of the connections that were accepted from listeners with these names.

    An accepted socket is bound to the same address as its listener. Asking the kernel costs
    nothing until there is a fork. It also finds connections that don't have a protocol yet.
    """
    wanted = list(names)
    return [
        fd for fd, name in _connected_sockets() if any(_is_at(name, listens) for listens in wanted)
    ]


def _connected_sockets() -> Iterator[tuple[int, Name]]:
    for fd in _open_descriptors():
        try:
            if not stat.S_ISSOCK(os.fstat(fd).st_mode):
                continue
            sock = _Socket(fileno=fd)
        except OSError:
            continue
        try:
            listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            if sock.type == socket.SOCK_STREAM and not listens:
                yield fd, sock.getsockname()
        except OSError:
            continue
        finally:
            sock.detach()


def _open_descriptors() -> Iterable[int]:
    try:
        return [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        return range(min(os.sysconf("SC_OPEN_MAX"), MOST_DESCRIPTORS))


def _is_at(name: Name, listens: Name) -> bool:
    """Whether a socket named `name` was accepted from the listener named `listens`. Pure."""
    if isinstance(name, tuple) and isinstance(listens, tuple):
        same_host = listens[0] in ("0.0.0.0", "::") or name[0] == listens[0]
        return same_host and bool(name[1] == listens[1])
    if isinstance(name, tuple) or isinstance(listens, tuple):
        return False
    return os.fsdecode(name) == os.fsdecode(listens) and bool(name)


# -- signals -----------------------------------------------------------------------------


def default_signals() -> None:
    """Reset the signals that a server handles to Python's default action.

    The application's own handlers are kept. SIGCHLD is reset even if Python knows of no handler for
    it, because libuv installs its own.
    """
    signal.set_wakeup_fd(-1)
    for signum in signal.valid_signals():
        handler = signal.getsignal(signum)
        if _belongs_to_server(handler) or (signum == signal.SIGCHLD and handler == signal.SIG_DFL):
            python = signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL
            signal.signal(signum, python)


def _belongs_to_server(handler: Any) -> bool:
    handler = getattr(handler, "func", handler)  # asyncio.Runner's is a partial
    module = getattr(handler, "__module__", None)
    return isinstance(module, str) and module.partition(".")[0] in SERVERS


# -- a child that returns to the server ----------------------------------------------------


def abandon(loop: asyncio.AbstractEventLoop, thread: int) -> None:
    """In a forked child: make sure that `loop` never runs again.

    `thread` is the identifier of the thread that runs it in the parent.

    A child that returns from the application's code, instead of calling os._exit(), would go on as
    a second worker. So it is ended when it gets back to the loop. Only the parent runs the
    callbacks that are still queued.
    """
    _abandoned.append(loop)
    _renew_epoll(loop)
    for queue in [item for item in _held_by(loop) if isinstance(item, deque)]:
        for handle in list(queue):
            handle.cancel()
    if thread == threading.get_ident():
        loop.call_soon(end)


def _renew_epoll(loop: Any) -> None:
    """Give the loop its own epoll, because changes to the shared one would affect the parent.

    /dev/null won't do: libuv aborts the process if it can't wait for events.
    """
    uvloops = getattr(loop, "_get_backend_id", None)
    fd = uvloops() if uvloops is not None else loop._selector.fileno()
    with select.epoll() as epoll:
        os.dup2(epoll.fileno(), fd, inheritable=False)


def _held_by(loop: Any) -> list[Any]:
    """Objects that a loop holds; uvloop's attributes can't be read by name."""
    ready = getattr(loop, "_ready", None)
    return gc.get_referents(loop) if ready is None else [ready]


def is_forked_child(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether this is a forked child of the process that runs `loop`."""
    return any(loop is one for one in _abandoned)


def end_if_forked_child(loop: asyncio.AbstractEventLoop, error: BaseException) -> None:
    """Call `end` if this is a forked child of the process that runs `loop`."""
    if is_forked_child(loop):
        end(error)


def end(error: BaseException | None = None) -> NoReturn:
    """End a forked child in which the application has returned or raised `error`.

    The exit status is the one that Python would exit with. Exit handlers don't run: they were
    registered in the worker, and could remove something that the worker still needs.
    """
    status = 1
    try:
        if error is None:
            status = 0
            logger.warning(
                "a child process that the application forked (pid %d) returned to the server, and "
                "was ended; have it call os._exit() when it is done",
                os.getpid(),
            )
        elif isinstance(error, SystemExit):
            status = _status_of(error)
        elif isinstance(error, KeyboardInterrupt):
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        else:
            logger.error(
                "a child process that the application forked (pid %d) ended by an exception",
                os.getpid(),
                exc_info=error,
            )
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    finally:
        os._exit(status)


def _status_of(error: SystemExit) -> int:
    """The exit status for a SystemExit. A code that isn't a number is printed, as Python does."""
    if error.code is None:
        return 0
    if isinstance(error.code, int):
        return error.code & 0xFF
    print(error.code, file=sys.stderr)  # noqa: T201 - Python prints it, too
    return 1
