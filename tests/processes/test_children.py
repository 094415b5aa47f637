"""Child processes and threads of the application: while its worker serves, and at its end."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.app import application
from tests.support.runner import CHECKOUT, Esg, session
from tests.support.waiting import eventually

Start = Callable[..., Esg]

CHILDREN = '''
import json, multiprocessing, os, signal, socket, sys, time

fork = multiprocessing.get_context("fork")


def nap(connection):
    try:
        connection.send("ready")
        time.sleep(600)
    except KeyboardInterrupt:
        os._exit(130)


def is_servers(fd):
    """Whether this descriptor is one of the server's: sockets, the mailbox, the stack file."""
    kind = os.readlink(f"/proc/self/fd/{fd}")
    if kind.startswith("socket:"):
        sock = socket.socket(fileno=os.dup(int(fd)))
        with sock:
            name = sock.getsockname()
            return bool(name) or sock.type == socket.SOCK_SEQPACKET
    return "memfd:esg-stack" in kind


def held():
    return [fd for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")
            and is_servers(fd)]


def pipes(pid="self"):
    """The pipes that a process has open, except those of this process's standard streams."""
    found = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            found.add(os.readlink(f"/proc/{pid}/fd/{fd}"))
        except OSError:
            continue
    standard = {os.readlink(f"/proc/self/fd/{fd}") for fd in range(3)}
    return {link for link in found if link.startswith("pipe:")} - standard


def look(connection, arbiter):
    connection.send([*held(), *(pipes() & pipes(arbiter))])


def work(path):
    if path.startswith("/signal/"):
        ours, theirs = fork.Pipe()
        child = fork.Process(target=nap, args=(theirs,))
        child.start()
        ours.recv()
        # Python 3.13.0 overlooks a signal in a fork of a thread unless it interrupts a system call.
        while child.exitcode is None:
            os.kill(child.pid, int(path.split("/")[2]))
            child.join(0.05)
        return child.exitcode
    if path == "/held":
        ours, theirs = fork.Pipe()
        child = fork.Process(target=look, args=(theirs, os.getppid()))
        child.start()
        found = ours.recv()
        child.join()
        return found
    if path == "/pool":
        with fork.Pool(3) as pool:
            return pool.map(abs, [-1, -2])
    if path == "/long":
        pid = os.fork()
        if pid == 0:
            time.sleep(600)
            os._exit(0)
        return pid
    if path.startswith("/end/"):
        pid = os.fork()
        if pid == 0:
            how = path.split("/")[2]
            if how == "exit":
                sys.exit(7)
            if how == "raise":
                raise ValueError("in the child")
            return "the child's response"
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return os.getpid()
'''

ASGI = """
async def app(scope, receive, send):
    assert scope["type"] == "http"
    body = json.dumps(work(scope["path"])).encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})
"""

WSGI = """
def app(environ, start_response):
    body = json.dumps(work(environ["PATH_INFO"])).encode()
    start_response("200 OK", [])
    return [body]
"""

KINDS = {"asgi": CHILDREN + ASGI, "wsgi": CHILDREN + WSGI}


def get(esg: Esg, path: str) -> Any:
    connection = esg.begin(path)
    with contextlib.closing(connection):
        response = connection.getresponse()
        body = response.read()
        assert response.status == 200, body
        return json.loads(body)


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_child_has_default_signals_and_no_descriptors_of_the_server(
    start: Start, kind: str, loop: str
) -> None:
    esg = start("--loop", loop, "--lifespan", "off", source=KINDS[kind])
    (worker,) = esg.workers()
    assert get(esg, "/held") == []
    for signum in (signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        assert get(esg, f"/signal/{signum.value}") == -signum, signum.name
    assert get(esg, f"/signal/{signal.SIGINT.value}") == 130  # a KeyboardInterrupt, as anywhere
    assert get(esg, "/pool") == [1, 2]
    assert get(esg, "/") == worker
    assert not esg.logged("due reason|draining")


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_child_that_returns_to_the_server_ends(start: Start, kind: str, loop: str) -> None:
    esg = start("--loop", loop, "--lifespan", "off", source=KINDS[kind])
    esg.claim("ended by an exception")
    (worker,) = esg.workers()
    assert get(esg, "/end/exit") == 7
    assert get(esg, "/end/raise") == 1
    assert get(esg, "/end/return") == 0
    esg.wait_for_log("a child process that the application forked .* returned to the server")
    assert get(esg, "/") == worker
    assert "ValueError: in the child" in esg.log


@pytest.fixture
def long_child() -> Iterator[list[int]]:
    """The pids of children that outlive their worker, to be ended after the test."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("kind", KINDS)
def test_a_child_that_outlives_its_worker_keeps_none_of_its_sockets(
    start: Start, kind: str, long_child: list[int]
) -> None:
    esg = start("--lifespan", "off", source=KINDS[kind])
    esg.claim("died: killed by SIGKILL")
    idle = esg.connect()
    (worker,) = esg.workers()
    long_child.append(get(esg, "/long"))
    os.kill(worker, signal.SIGKILL)
    assert is_closed(idle)
    esg.wait_for_log(" ready", count=2)
    assert get(esg, "/") in esg.workers()
    long_child.append(get(esg, "/long"))
    port = esg.port
    esg.signal(signal.SIGTERM)
    assert esg.wait() == 0
    assert len(session(esg.process.pid)) == 2  # the children
    again = start("--lifespan", "off", source=KINDS[kind], listen=("--port", str(port)))
    assert get(again, "/") in again.workers()
    for pid in long_child:
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: session(esg.process.pid) == [], "the children are gone")


def is_closed(connection: http.client.HTTPConnection) -> bool:
    assert isinstance(connection.sock, socket.socket)
    with contextlib.suppress(ConnectionResetError):
        assert connection.sock.recv(1) == b""
    connection.close()
    return True


def test_a_child_that_a_module_forks_does_not_become_a_worker(start: Start) -> None:
    forks = "\n".join(
        (
            "pid = os.fork()",
            "if pid:",
            "    note(f'code{os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}')",
        )
    )
    esg = start("--workers", "1", source=application(at_import=forks))
    assert esg.notes("code0") == esg.workers()
    assert len(esg.logged(" ready")) == 1


# -- the import ------------------------------------------------------------------------


def test_there_is_no_thread_while_the_application_is_imported(start: Start) -> None:
    source = application(at_import="note(f'threads{len(os.listdir(\"/proc/self/task\"))}')")
    esg = start(source=source)
    assert esg.notes("threads1") == esg.workers()


def test_a_worker_that_hangs_in_its_import_ends_with_its_arbiter(start: Start) -> None:
    hangs = "note('import')\nctypes.PyDLL(None).sleep(600)  # with the interpreter's lock"
    esg = start(source=application(at_import=hangs), wait=False)
    esg.exit_code = -signal.SIGKILL
    eventually(lambda: esg.notes("import"), "the import has begun")
    esg.signal(signal.SIGKILL)
    esg.wait()
    eventually(lambda: session(esg.process.pid) == [], "the worker is gone")


# -- the end of a worker -----------------------------------------------------------------

POOLS = """
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
pools = [
    ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")),
    ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")),
    ThreadPoolExecutor(1),
]
def use_pools():
    return [pool.submit(abs, -1).result() for pool in pools]
"""


def test_pools_of_the_application_end_with_its_worker(start: Start) -> None:
    """Long before the grace period is over."""
    source = application(at_import=POOLS.strip(), at_startup="use_pools()")
    esg = start("--graceful-timeout", "600", source=source)
    esg.reload()
    esg.wait_for_log("gen=1 .* gone: exit status 0")
    esg.signal(signal.SIGTERM)
    assert esg.wait() == 0


STARLETTE = """
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
app = Starlette(routes=[Route("/", lambda request: PlainTextResponse("1"))])
"""


def test_threads_that_anyio_keeps_do_not_delay_the_end(start: Start) -> None:
    """It keeps them until the main task ends, and Starlette runs plain functions in them."""
    esg = start("--graceful-timeout", "600", source=STARLETTE)
    assert get(esg, "/") == 1
    esg.signal(signal.SIGTERM)
    assert esg.wait() == 0
    assert not esg.logged("still busy")


THREADS = """
import threading
def work():
    time.sleep(0.5)
    note("work_done")
    threading.Event().wait()
def begin():
    threading.Thread(target=work, name="ledger").start()
    threading.Thread(target=threading.Event().wait, name="daemon", daemon=True).start()
"""


def test_threads_get_the_rest_of_the_grace_period_and_late_ones_are_named(start: Start) -> None:
    source = application(at_import=THREADS.strip(), at_startup="begin()")
    esg = start("--graceful-timeout", "1.5", source=source)
    workers = esg.workers()
    esg.claim("still busy")
    esg.signal(signal.SIGTERM)
    assert esg.wait() == 0
    assert esg.notes("work_done") == workers
    esg.wait_for_log("ends with threads that are still busy: ledger$")


PROCESS = """
import multiprocessing
def begin():
    context = multiprocessing.get_context("fork")
    context.Process(target=time.sleep, args=(600,), name="ledger").start()
"""


def test_processes_that_outlast_the_grace_period_are_ended_and_named(start: Start) -> None:
    source = application(at_import=PROCESS.strip(), at_startup="begin()")
    esg = start("--graceful-timeout", "0", source=source)
    esg.claim("ends child processes")
    esg.signal(signal.SIGTERM)
    assert esg.wait() == 0
    esg.wait_for_log(r"ends child processes that are still running: ledger \(pid \d+\)")


SITE = """
import atexit, os
def note():
    with open("notes", "a") as notes:
        notes.write(f"site {os.getpid()}\\n")
atexit.register(note)
"""

HANDLERS = """
import atexit, logging.handlers
atexit.register(note, "exit")
logging.getLogger("shop").addHandler(
    logging.handlers.MemoryHandler(100, target=logging.FileHandler("shop.log")))
logging.getLogger("shop").error("kept until the end")
"""


def test_exit_handlers_run_whoever_registered_them(start: Start, tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(SITE)
    path = os.pathsep.join((str(site), str(CHECKOUT)))
    esg = start(source=application(at_import=HANDLERS.strip()), extra={"PYTHONPATH": path})
    workers, arbiter = esg.workers(), esg.pid
    esg.signal(signal.SIGTERM)
    assert esg.wait() == 0
    assert esg.notes("exit") == workers
    assert esg.notes("site") == [*workers, arbiter]
    assert "kept until the end" in (esg.folder / "shop.log").read_text()
