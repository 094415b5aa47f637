"""A failed worker loses only its own requests, and the log says why it failed."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from tests.support.app import application
from tests.support.load import Load
from tests.support.log import Record
from tests.support.runner import Esg, answer, is_lost
from tests.support.waiting import DEADLINE, all_along, eventually

Start = Callable[..., Esg]

STACKS = "stacks of its threads:"


def seconds_between(first: Record, second: Record) -> float:
    return (second.time - first.time).total_seconds()


def line_of(esg: Esg, text: str) -> int:
    """The number of the line of the application that holds `text`."""
    lines = (esg.folder / "example.py").read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line)


# -- workers that talk nonsense --------------------------------------------------------

HOSTILE = """\
    import array, errno, gc, socket, struct
    from esg.mailbox import WorkersEnd
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sender = socket.create_connection(listener.getsockname())
        reader, _ = listener.accept()
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 60))
    sender.setblocking(False)
    try:
        while True:
            sender.send(bytes(1 << 16))
    except BlockingIOError:
        pass
    globals()["kept"] = reader, sender  # unread, so that the last close() of the sender waits
    right = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [sender.fileno()]))]
    (mailbox,) = [thing for thing in gc.get_objects() if isinstance(thing, WorkersEnd)]
    sock, pipe = mailbox.descriptors
    try:
        socket.socket(fileno=os.dup(sock)).sendmsg([b'["Ready", {}]'], right)
    except OSError as error:
        note("refused-" + errno.errorcode[error.errno])
    try:
        for junk in (b"[" * 4000, b'["Due", {"reason": {}}]', b"x" * 4000, b""):
            for _ in range(20):
                os.write(pipe, junk + b"\\n")
        os.write(pipe, b'["Drain", {"reason": "", "grace": 1, "final": true}]\\n')
    except BlockingIOError:
        pass
"""


def test_a_hostile_worker_does_not_block_the_arbiter(start: Start) -> None:
    """Invalid mail and descriptors that are slow to close don't block the arbiter."""
    esg = start(source=application(at_startup=HOSTILE.strip()))
    esg.claim("ignored a message from", "more messages from")
    assert len(esg.notes("refused-EPIPE")) == 1
    (record,) = esg.logged("ignored a message from worker=1 gen=1: ")
    assert record.level == "ERROR"
    assert esg.whoami()["worker"] == 1
    esg.signal(signal.SIGHUP)
    esg.wait_for_log("reloaded ")
    esg.wait_for_log("more messages from worker=1 gen=1")


FROM_THE_FUTURE = """\
    from esg.scoreboard import Cell, Row
    def beat(self):
        self[Cell.BEAT] = 2**62
    Row.beat = beat
"""


def test_a_heartbeat_in_the_future_does_not_count(start: Start) -> None:
    esg = start("--timeout", "2", source=application(at_startup=FROM_THE_FUTURE.strip()))
    esg.claim("stuck: its last heartbeat has a time in the future")
    esg.claim(STACKS)
    esg.claim("killed by SIGABRT from the arbiter")
    esg.claim("worker's event loop stood still")
    esg.wait_for_log("stuck: its last heartbeat has a time in the future")


# -- workers that die ------------------------------------------------------------------


def test_a_killed_worker_loses_only_its_own_requests(start: Start) -> None:
    esg = start("--workers", "2")
    esg.claim("died: killed by SIGKILL")
    connections = [esg.in_flight("/slow/0.7") for _ in range(10)]
    holders = esg.notes("slow")
    victim = holders[0]
    os.kill(victim, signal.SIGKILL)
    for connection, holder in zip(connections, holders, strict=True):
        if holder == victim:
            assert is_lost(connection)
        else:
            assert answer(connection)["pid"] == holder
            connection.close()
    assert 0 < holders.count(victim) < len(holders)


def test_a_killed_worker_is_replaced_at_once(start: Start) -> None:
    esg = start("--workers", "2")
    esg.claim("died: killed by SIGKILL from another process or the kernel")
    victim = esg.workers()[0]
    os.kill(victim, signal.SIGKILL)
    died = esg.wait_for_log(f"pid={victim} died: killed by SIGKILL")
    ready = esg.wait_for_log("ready", count=3)
    assert died.time <= ready.time
    assert not esg.logged("next start in")
    assert victim not in esg.wait_for_workers(2)


def test_requests_wait_while_all_workers_are_being_replaced(start: Start) -> None:
    esg = start("--workers", "3")
    esg.claim("died: killed by SIGKILL")
    old = esg.workers()
    for pid in old:
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: not any(psutil.pid_exists(pid) for pid in old), "all are gone")
    assert esg.whoami()["pid"] not in old
    esg.wait_for_log("ready", count=6)
    assert not set(old) & set(esg.wait_for_workers(3))


def test_a_segfault_leaves_the_stack_in_the_log(start: Start) -> None:
    esg = start()
    esg.claim("died: killed by SIGSEGV")
    assert is_lost(esg.begin("/segfault"))
    record = esg.wait_for_log("died: killed by SIGSEGV from another process or the kernel")
    assert "Fatal Python error: Segmentation fault" in record.detail
    line = line_of(esg, "ctypes.string_at(0)")
    assert f'example.py", line {line} in follow_a_null_pointer' in record.detail
    assert esg.whoami()["pid"] != record.pid


@pytest.mark.parametrize("how", ["killed", "segfault"])
def test_stacks_that_another_process_requested_are_not_logged_at_a_death(
    start: Start, how: str
) -> None:
    esg = start()
    esg.claim("died: killed by")
    (worker,) = esg.workers()
    blocked = esg.in_flight("/block/0.3")
    stacks = stack_file(worker)
    os.kill(worker, signal.SIGURG)
    eventually(lambda: b"in report_of_the_month" in stacks(), "it has written its stacks")
    assert answer(blocked)["pid"] == worker
    blocked.close()
    if how == "killed":
        os.kill(worker, signal.SIGKILL)
    else:
        is_lost(esg.begin("/segfault"))
    died = esg.wait_for_log("died: killed by")
    assert "report_of_the_month" not in died.text
    assert ("follow_a_null_pointer" in died.text) == (how == "segfault")


def stack_file(pid: int) -> Callable[[], bytes]:
    """A function that reads a worker's stacks, as far as the worker has written them."""
    folder = Path(f"/proc/{pid}/fd")
    (path,) = [fd for fd in folder.iterdir() if "esg-stack" in os.readlink(fd)]
    return path.read_bytes


def test_a_crash_loop_backs_off_and_never_ends_the_arbiter(start: Start) -> None:
    esg = start("--workers", "1")
    esg.claim("died: exit status 7")
    for _ in range(4):
        assert is_lost(esg.begin("/exit/7"))
    esg.wait_for_log("workers keep failing; next start in 0.5 s")
    esg.wait_for_log("workers keep failing; next start in 1.0 s")
    esg.wait_for_log("workers keep failing; next start in 2.0 s")
    esg.wait_for_log("ready", count=5)
    deaths = esg.logged("died: exit status 7")
    starts = esg.logged("ready")[1:]
    pauses = [seconds_between(*pair) for pair in zip(deaths, starts, strict=True)]
    assert all(longer > shorter for shorter, longer in pairwise(pauses))
    assert esg.whoami()["generation"] == 1


GATE = """note("gate")
        while not os.path.exists("open"):
            time.sleep(0.005)
        os._exit(9)"""


def die_together(esg: Esg, count: int) -> None:
    """Let the workers at the gate die, so that the arbiter notices all of them together."""
    eventually(lambda: len(esg.notes("gate")) == count, f"{count} workers boot")
    esg.signal(signal.SIGSTOP)
    esg.write("", "open")
    dying = set(esg.notes("gate"))
    eventually(lambda: dying <= set(esg.zombies()), f"{count} workers are dead")
    esg.signal(signal.SIGCONT)


def test_workers_that_die_together_while_booting_are_logged_once(start: Start) -> None:
    source = application(at_startup=f"if True:\n        {GATE}")
    esg = start("--workers", "4", source=source, wait=False)
    esg.claim("can't boot: died while booting: exit status 9")
    esg.exit_code = 3
    die_together(esg, 4)
    assert esg.wait() == 3
    assert len(esg.logged("can't boot")) == 1


def test_new_workers_that_die_together_in_a_roll_end_the_reload_only(start: Start) -> None:
    esg = start("--workers", "3", "--surge", "2")
    esg.claim("gen=2 .* can't boot: died while booting", "reload failed, gen=1 goes on serving")
    not_the_canary = "esg.current_worker().generation == 2 and os.path.exists('canary')"
    startup = f"if {not_the_canary}:\n        {GATE}\n    open('canary', 'w').close()"
    esg.write(application("bad", at_startup=startup))
    with Load(esg.port, keep_alive=1) as load:
        esg.signal(signal.SIGHUP)
        die_together(esg, 2)
        esg.wait_for_log("reload failed, gen=1 goes on serving: gen=2: ")
        esg.wait_for_log("gen=2 .* draining reason=reload")
        load.wait_until_answered("keep-alive", 20)
        eventually(lambda: {esg.whoami()["generation"] for _ in range(12)} == {1}, "gen=1 alone")


# -- workers that break shared sockets -------------------------------------------------


BREAKS = """
import gc, json, os, socket
from esg.net.listeners import Listener

# Found before the worker freezes the objects that there are, which hides them.
LISTENER = next(thing for thing in gc.get_objects() if isinstance(thing, Listener))

async def app(scope, receive, send):
    assert scope["type"] == "http"
    if scope["path"] == "/shutdown":
        LISTENER.sock.shutdown(socket.SHUT_RDWR)
    elif scope["path"] == "/filter":
        LISTENER.refuse_new()
    elif scope["path"] == "/lock":
        LISTENER.refuse_new()
        LISTENER.sock.setsockopt(socket.SOL_SOCKET, 44, 1)  # SO_LOCK_FILTER
    body = json.dumps({"pid": os.getpid()}).encode()
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
"""


@pytest.mark.parametrize("how", ["shutdown", "filter", "lock"])
def test_a_socket_that_an_application_broke_serves_again(start: Start, how: str) -> None:
    esg = start("--workers", "2", source=BREAKS)
    esg.claim(f"arbiter .* http://127.0.0.1:{esg.port}: .*; listening again", "can't accept on ")
    with contextlib.closing(esg.begin(f"/{how}")) as connection:
        answer(connection)
    esg.wait_for_log("; listening again")
    assert {esg.whoami()["pid"] for _ in range(20)} <= set(esg.workers())
    esg.reload()
    assert esg.whoami()["pid"] in esg.workers()
    assert len(esg.logged("; listening again")) == 1


def test_a_unix_socket_that_an_application_shut_down_serves_again(start: Start) -> None:
    esg = start("--workers", "2", source=BREAKS, listen=("--uds", "esg.sock"))
    esg.claim("arbiter .* unix:.*; listening again with a new socket", "can't accept on ")
    path = str(esg.folder / "esg.sock")
    assert request_over(path, "/shutdown").startswith(b"HTTP/1.1 200")
    esg.wait_for_log("; listening again with a new socket")
    for _ in range(10):
        assert request_over(path, "/").startswith(b"HTTP/1.1 200")
    esg.reload()
    assert request_over(path, "/").startswith(b"HTTP/1.1 200")


def request_over(path: str, target: str) -> bytes:
    """The answer to a request over a UNIX socket."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(DEADLINE)
        client.connect(path)
        client.sendall(f"GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
        return b"".join(iter(lambda: client.recv(4096), b""))


# -- faults of the arbiter's own -----------------------------------------------------------


FAULTY = """
import runpy, sys
from esg.supervisor import control, orders
from esg.supervisor.fleet import actions
def fails(*arguments):
    raise RuntimeError("a fault")
if sys.argv[-1] == "action":
    orders.Orders.PERFORM[actions.ReopenLogs] = fails
else:
    control.Control.turn = fails
sys.argv[:] = ["esg", *sys.argv[3:-1]]
runpy.run_module("esg", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("where", ["action", "callback"])
def test_no_exception_ends_an_arbiter_that_serves(start: Start, where: str) -> None:
    esg = start("--workers", "2", where, wrapper=("-c", FAULTY))
    esg.claim("unexpected error, the arbiter goes on: RuntimeError")
    for count in (1, 2):
        esg.signal(signal.SIGUSR1)
        esg.wait_for_log("received SIGUSR1", count=count)
    record = esg.wait_for_log("unexpected error, the arbiter goes on: RuntimeError")
    assert record.level == "CRITICAL"
    assert "in fails" in record.detail
    esg.reload()
    assert esg.whoami()["generation"] == 2
    assert len(esg.logged("unexpected error")) == 1


def test_a_worker_that_cannot_be_signalled_is_replaced(start: Start) -> None:
    wrapper = ("-c", DENIED.format(function="kill"))
    esg = start("--workers", "2", "--timeout", "1", wrapper=wrapper)
    esg.claim("stuck: ", STACKS, "can't be sent SIGURG: .* CAP_KILL", "can't be sent SIGQUIT")
    connection = esg.in_flight("/block/60")
    (victim,) = esg.notes("block")
    esg.wait_for_log("ready", count=3)
    esg.wait_for_log(f"pid={victim} {STACKS}")
    assert len(esg.logged(f"pid={victim} can't be sent")) == 1
    os.kill(victim, signal.SIGKILL)
    esg.wait_for_log(f"pid={victim} gone: killed by SIGKILL from another process")
    assert is_lost(connection)
    esg.signal(signal.SIGQUIT)
    assert esg.wait() == 0


# -- workers that stand still ----------------------------------------------------------


def test_a_blocked_worker_is_replaced_and_the_log_has_the_blocking_line(start: Start) -> None:
    esg = start("--workers", "2", "--timeout", "1")
    esg.claim("stuck: its event loop has stood still", STACKS)
    connection = esg.in_flight("/block/60")
    (victim,) = esg.notes("block")
    esg.wait_for_log(rf"pid={victim} stuck: .*\(--timeout\)")
    esg.wait_for_log("ready", count=3)
    assert not esg.logged("next start in")
    stacks = esg.wait_for_log(f"pid={victim} {STACKS}")
    line = line_of(esg, "# blocks the loop")
    assert f'example.py", line {line} in report_of_the_month' in stacks.detail
    esg.wait_for_log(f"pid={victim} gone: killed by SIGABRT from the arbiter")
    assert is_lost(connection)
    assert victim not in esg.wait_for_workers(2)


def test_the_requests_of_a_blocked_worker_are_named_with_their_age(start: Start) -> None:
    esg = start("--timeout", "2", "--loop", "asyncio")
    esg.claim("stuck: its event loop has stood still", STACKS)
    waiting = [esg.in_flight("/slow/60?token=secret") for _ in range(7)]
    over_a_heartbeat = esg.begin("/slow/1.5")  # which notes that the others have begun
    answer(over_a_heartbeat)
    over_a_heartbeat.close()
    blocking = esg.in_flight("/block/60?token=secret")
    stacks = esg.wait_for_log(STACKS)
    heading, *requests = stacks.detail.splitlines()[:7]
    assert heading.strip() == "requests that it held, the oldest first:"
    assert [re.sub(r"for \d+ s", "for N s", line.strip()) for line in requests] == [
        *["GET /slow/60, for N s"] * 4,
        "GET /block/60, for N s (blocks the event loop)",
        "and 3 more",
    ]
    assert "secret" not in esg.log
    assert all(is_lost(connection) for connection in (*waiting, blocking))


HOLDS_THE_INTERPRETER = """
import asyncio, re

async def app(scope, receive, send):
    await asyncio.sleep(1.1)  # over a heartbeat, which counts the requests
    re.match("(a+)+$", 60 * "a" + "b")  # takes years, and keeps the interpreter's lock
"""


def test_a_worker_whose_threads_cannot_run_is_logged_with_its_number_of_requests(
    start: Start,
) -> None:
    esg = start("--timeout", "1", "--lifespan", "off", source=HOLDS_THE_INTERPRETER)
    esg.claim("stuck: its event loop has stood still", STACKS)
    connection = esg.begin("/")
    stacks = esg.wait_for_log(STACKS)
    told = "it held 1 request at its last heartbeat, and can't say which"
    assert stacks.detail.splitlines()[0].strip() == told
    assert 'example.py", line 6 in app' in stacks.detail
    assert is_lost(connection)


DENIED = """
import errno, os, runpy, sys
def denied(*arguments):
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
os.{function} = denied
sys.argv[:] = ["esg", *sys.argv[3:]]
runpy.run_module("esg", run_name="__main__", alter_sys=True)
"""


def test_stacks_go_to_standard_error_if_memory_files_are_denied(start: Start) -> None:
    esg = start(
        "--workers", "2", "--timeout", "1", wrapper=("-c", DENIED.format(function="memfd_create"))
    )
    esg.claim("stuck: ", STACKS, r"\A(\n|\Z)")  # the last one is for lines that aren't records
    esg.wait_for_log(r"memfd_create\(2\): Operation not permitted; workers write their stacks to")
    connection = esg.in_flight("/block/60")
    stacks = esg.wait_for_log(STACKS)
    assert stacks.detail.endswith("(on standard error)")
    assert "in report_of_the_month" in esg.log
    esg.wait_for_log("gone: killed by SIGABRT from the arbiter")
    assert is_lost(connection)
    assert len(esg.logged("memfd_create")) == 1


def test_a_stopped_worker_is_replaced(start: Start) -> None:
    esg = start("--workers", "2", "--timeout", "1")
    esg.claim("stuck: ", STACKS)
    victim = esg.workers()[0]
    os.kill(victim, signal.SIGSTOP)
    esg.wait_for_log(f"pid={victim} stuck: ")
    esg.wait_for_log("ready", count=3)
    assert not esg.logged("next start in")
    esg.wait_for_log(f"pid={victim} gone: killed by SIGKILL from the arbiter")
    assert victim not in esg.wait_for_workers(2)


def test_idle_workers_are_left_alone_and_cost_nothing(start: Start) -> None:
    esg = start("--workers", "2", "--timeout", "1")
    workers = [psutil.Process(pid) for pid in esg.workers()]
    processes = [esg.arbiter, *workers]
    window = 3.0
    before = sum(cpu_seconds(process) for process in processes)
    all_along(window, lambda: all(w.is_running() for w in workers), "both workers live")
    spent = sum(cpu_seconds(process) for process in processes) - before
    assert not esg.logged("stuck")
    assert spent / window < 0.1, "of a CPU; one that polls all the time takes a whole one"


def cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


# -- workers that drain ----------------------------------------------------------------


def test_a_worker_that_drains_for_longer_than_the_timeout_is_not_taken_for_stuck(
    start: Start,
) -> None:
    esg = start("--workers", "1", "--timeout", "1")
    connection = esg.in_flight("/slow/3.5")
    esg.reload()
    assert answer(connection)["generation"] == 1
    connection.close()
    esg.wait_for_log("gen=1 .* gone: exit status 0")


def test_a_worker_that_drains_for_longer_than_its_grace_is_cut_off(start: Start) -> None:
    esg = start("--workers", "1", "--graceful-timeout", "1")
    connection = esg.in_flight("/slow/60")
    esg.reload()
    esg.wait_for_log("gen=1 .* gone: exit status 0")
    assert is_lost(connection)
    esg.wait_for_log("gen=1 .* the grace period is over")
    assert not esg.logged("stuck|overdue")
    assert len(esg.notes("shutdown")) == 1


def test_a_blocked_worker_does_not_delay_a_stop(start: Start) -> None:
    """--timeout would let it stand still for longer."""
    esg = start("--workers", "1", "--graceful-timeout", "1")
    esg.claim(
        r"stuck: .*\(--graceful-timeout\)", STACKS, "gone: killed by SIGABRT from the arbiter"
    )
    blocked = esg.in_flight("/block/60")
    esg.signal(signal.SIGTERM)
    assert esg.wait() == 0
    assert is_lost(blocked)
    assert "report_of_the_month" in esg.wait_for_log(STACKS).text


def test_a_request_that_swallows_its_cancellation_does_not_keep_its_worker(start: Start) -> None:
    esg = start("--workers", "1", "--graceful-timeout", "0.5", "--timeout", "2")
    esg.claim("gen=1 .* (stuck|overdue): ", f"gen=1 .* {STACKS}")
    connection = esg.in_flight("/stubborn")
    esg.reload()
    esg.wait_for_log("gen=1 .* gone: ")
    assert esg.notes("cancelled")
    assert is_lost(connection)


DEADLOCKED = """
import asyncio

tasks = {}

async def wait_for(other):
    await tasks[other]

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        open("shutdown", "x").close()
        await send({"type": "lifespan.shutdown.complete"})
    elif scope["path"] == "/circle":
        tasks.update((name, asyncio.create_task(wait_for(name[::-1]))) for name in ("ab", "ba"))
        open("circle", "x").close()
        await tasks["ab"]
    else:
        await asyncio.sleep(600)
"""


def test_tasks_that_wait_for_each_other_do_not_delay_a_stop(start: Start) -> None:
    esg = start("--graceful-timeout", "1", source=DEADLOCKED)
    esg.claim("can't cancel 1 of them: their tasks wait for each other in a circle$")
    lost, told = esg.begin("/circle"), esg.begin("/other")
    eventually((esg.folder / "circle").exists, "the tasks wait for each other")
    esg.signal(signal.SIGTERM)
    assert told.getresponse().status == 503
    told.close()
    assert is_lost(lost)
    assert esg.wait() == 0
    assert (esg.folder / "shutdown").exists()


def test_a_timed_out_request_whose_tasks_wait_for_each_other_is_only_reported(
    start: Start,
) -> None:
    esg = start("--request-timeout", "1", "--graceful-timeout", "1", source=DEADLOCKED)
    esg.claim("request timed out")
    esg.claim("can't cancel the request: its tasks wait for each other in a circle: GET '/circle'$")
    esg.claim("can't cancel 1 of them: their tasks wait for each other in a circle$")
    connection = esg.begin("/circle")
    assert connection.getresponse().status == 503
    connection.close()
    esg.wait_for_log("can't cancel the request")
    esg.signal(signal.SIGTERM)
    assert esg.wait() == 0


DEADLOCKED_LIFESPAN = """
import asyncio

async def wait_for(task):
    open("circle", "x").close()
    await task

async def app(scope, receive, send):
    assert scope["type"] == "lifespan"
    await receive()
    if DURING == "shutdown":
        await send({"type": "lifespan.startup.complete"})
        await receive()
    await asyncio.create_task(wait_for(asyncio.current_task()))
"""


def test_a_startup_whose_tasks_wait_for_each_other_does_not_delay_a_stop(start: Start) -> None:
    source = "DURING = 'startup'" + DEADLOCKED_LIFESPAN
    esg = start("--graceful-timeout", "1", source=source, wait=False)
    esg.claim("can't cancel the lifespan: its tasks wait for each other in a circle$")
    eventually((esg.folder / "circle").exists, "the tasks wait for each other")
    esg.signal(signal.SIGTERM)
    assert esg.wait() == 0
    esg.wait_for_log("worker=1 .* gone: exit status 0")


def test_a_shutdown_whose_tasks_wait_for_each_other_is_cut_off(start: Start) -> None:
    source = "DURING = 'shutdown'" + DEADLOCKED_LIFESPAN
    esg = start("--graceful-timeout", "1", source=source)
    esg.claim("lifespan shutdown took longer than")
    esg.claim("can't cancel the lifespan: its tasks wait for each other in a circle$")
    esg.signal(signal.SIGTERM)
    assert esg.wait() == 0
    esg.wait_for_log("worker=1 .* gone: exit status 0")


def test_a_worker_that_waits_for_threads_is_not_taken_for_stuck(start: Start) -> None:
    esg = start("--timeout", "1", "--graceful-timeout", "60")
    connection = esg.in_flight("/thread/4")
    eventually(lambda: esg.notes("thread"), "the thread runs")
    assert answer(connection)["worker"] == 1
    connection.close()
    esg.signal(signal.SIGTERM)
    assert esg.wait() == 0
    assert esg.notes("thread_done")


def test_threads_that_never_end_do_not_keep_their_worker(start: Start) -> None:
    esg = start("--graceful-timeout", "0")
    connection = esg.in_flight("/thread/1000")
    assert answer(connection)["worker"] == 1
    connection.close()
    esg.claim("ends with threads that are still busy")
    esg.signal(signal.SIGTERM)
    assert esg.wait() == 0
    esg.wait_for_log("ends with threads that are still busy")


def test_exit_handlers_of_the_application_run_only_in_its_workers(start: Start) -> None:
    source = application(at_import="import atexit\natexit.register(note, 'exit')")
    esg = start("--workers", "2", source=source)
    workers = sorted(esg.workers())
    esg.signal(signal.SIGTERM)
    assert esg.wait() == 0
    assert sorted(esg.notes("exit")) == workers


# -- the arbiter -----------------------------------------------------------------------


def test_workers_of_a_killed_arbiter_finish_their_requests_and_end(start: Start) -> None:
    esg = start("--workers", "2")
    esg.exit_code = -signal.SIGKILL
    esg.claim("the arbiter is gone, draining")
    port, workers = esg.port, esg.workers()
    connections = [esg.in_flight("/slow/1.0") for _ in range(4)]
    idle = esg.connect()
    esg.signal(signal.SIGKILL)
    for connection in connections:
        assert answer(connection)["pid"] in workers
        connection.close()
    idle.close()
    eventually(lambda: not any(is_alive(pid) for pid in workers), "no worker is left")
    assert len(esg.notes("shutdown")) == 2
    assert start(listen=("--port", str(port))).port == port


@pytest.mark.parametrize("moment", ["import", "request"])
def test_a_blocked_worker_does_not_outlive_a_killed_arbiter(start: Start, moment: str) -> None:
    endless = "note('stuck')\nwhile True: time.sleep(1)"
    source = application(at_import=endless if moment == "import" else "")
    esg = start("--graceful-timeout", "0", source=source, wait=False)
    esg.exit_code = -signal.SIGKILL
    esg.claim("its arbiter is gone, and it didn't end within its time limit")
    if moment == "import":
        eventually(lambda: esg.notes("stuck"), "the worker is stuck")
        workers = esg.notes("stuck")
    else:
        esg.wait_for_workers(1)
        with contextlib.closing(esg.in_flight("/block/1000")):
            eventually(lambda: esg.notes("block"), "the worker is stuck")
        workers = esg.notes("block")
    esg.signal(signal.SIGKILL)
    esg.wait()
    eventually(lambda: not any(is_alive(pid) for pid in workers), "no worker is left")


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_an_arbiter_that_was_stopped_kills_no_worker_when_it_continues(start: Start) -> None:
    esg = start("--workers", "2", "--timeout", "1")
    workers = esg.workers()
    esg.signal(signal.SIGSTOP)
    all_along(3.5, lambda: esg.whoami()["pid"] in workers, "requests are served")
    esg.signal(signal.SIGCONT)
    all_along(2.5, lambda: esg.whoami()["pid"] in workers, "the same workers serve")
    assert not esg.logged("stuck|overdue")


@pytest.mark.parametrize("seconds", [2.0, 4.0])
def test_no_worker_is_killed_when_a_suspended_machine_wakes(start: Start, seconds: float) -> None:
    esg = start("--workers", "2", "--timeout", "1")
    workers = esg.workers()
    everybody = [esg.pid, *workers]
    for pid in everybody:
        os.kill(pid, signal.SIGSTOP)
    all_along(seconds, lambda: esg.workers() == workers, "all are there")
    for pid in everybody:
        os.kill(pid, signal.SIGCONT)
    all_along(2.5, lambda: esg.whoami()["pid"] in workers, "the same workers serve")
    assert not esg.logged("stuck|overdue")


@pytest.mark.parametrize("error", ["KeyboardInterrupt", "SystemExit(0)"])
def test_a_module_that_exits_ends_only_its_worker(start: Start, error: str) -> None:
    source = application(at_import=f"if os.path.exists('bad'): raise {error}")
    esg = start("--workers", "1", source=source)
    esg.claim("died: killed by SIGKILL", f"can't boot: importing 'example' failed: {error[:10]}")
    esg.write("", "bad")
    os.kill(esg.workers()[0], signal.SIGKILL)
    esg.wait_for_log("can't boot: ", count=2)
    (esg.folder / "bad").unlink()
    esg.wait_for_log("ready", count=2)
    assert esg.whoami()["generation"] == 1
    assert len(esg.logged("listening on")) == 1


QUICK_ENDINGS = {"QUIT": [signal.SIGQUIT], "INT INT": [signal.SIGINT, signal.SIGINT]}


@pytest.mark.parametrize("signals", QUICK_ENDINGS.values(), ids=QUICK_ENDINGS)
def test_a_quick_shutdown_does_not_wait_for_requests_but_runs_the_lifespan(
    start: Start, signals: list[signal.Signals]
) -> None:
    esg = start("--workers", "2")
    connections = [esg.in_flight("/slow/60") for _ in range(4)]
    workers = esg.workers()
    for count, signum in enumerate(signals, 1):
        esg.signal(signum)
        esg.wait_for_log(f"received {signum.name}", count=count)
    assert esg.wait(timeout=3.0) == 0
    for connection in connections:
        response = connection.getresponse()
        assert (response.status, response.headers["retry-after"]) == (503, "1")
        connection.close()
    assert esg.logged(r"cancels [1-4] requests?: told to stop immediately \(SIGQUIT\)")
    assert sorted(esg.notes("shutdown")) == workers


def test_a_first_int_is_graceful(start: Start) -> None:
    esg = start("--workers", "2")
    connection = esg.in_flight("/slow/0.5")
    esg.signal(signal.SIGINT)
    assert answer(connection)["generation"] == 1
    connection.close()
    assert esg.wait() == 0


def test_a_terminal_that_signals_the_whole_group_ends_it_gracefully(start: Start) -> None:
    esg = start("--workers", "2")
    connection = esg.in_flight("/slow/0.5")
    os.killpg(esg.pid, signal.SIGINT)
    assert answer(connection)["generation"] == 1
    connection.close()
    assert esg.wait() == 0


def test_signals_of_the_arbiter_do_not_end_a_worker(start: Start) -> None:
    esg = start("--workers", "1")
    workers = esg.workers()
    with Load(esg.port, keep_alive=1, fresh=1) as load:
        for name in ("HUP", "INT", "TTIN", "TTOU", "USR1", "USR2", "WINCH", "CHLD", "PIPE"):
            os.kill(workers[0], signal.Signals[f"SIG{name}"])
            load.wait_until_answered("fresh", 3)
    assert esg.workers() == workers


# -- as the first process of a container -----------------------------------------------


NAMESPACE = ("unshare", "--pid", "--fork", "--mount-proc")


def may_unshare() -> bool:
    if not shutil.which("unshare"):
        return False
    return subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode == 0


STANDS_STILL = 'import signal\nopen("importing", "w").close()\nwhile True: signal.pause()'


def importing(start: Start, *options: str, prefix: tuple[str, ...] = ()) -> Esg:
    """An arbiter that is still importing its own modules: another module takes click's place."""
    esg = start(*options, files={"click.py": STANDS_STILL}, prefix=prefix, wait=False)
    eventually((esg.folder / "importing").exists, "it imports")
    return esg


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    "prefix",
    [
        (),
        pytest.param(
            NAMESPACE,
            marks=pytest.mark.skipif(not may_unshare(), reason="no permission for a pid namespace"),
        ),
    ],
    ids=["", "as PID 1"],
)
def test_a_signal_during_the_first_imports_ends_it_with_0(
    start: Start, prefix: tuple[str, ...], signum: int
) -> None:
    esg = importing(start, prefix=prefix)
    esg.signal(signum)
    assert esg.wait() == 0
    assert esg.log == ""


def test_an_interrupted_check_does_not_succeed(start: Start) -> None:
    esg = importing(start, "--check-config")
    esg.exit_code = -signal.SIGTERM
    esg.signal(signal.SIGTERM)
    assert esg.wait() == -signal.SIGTERM


def test_a_signal_while_settings_are_read_ends_it_with_0(start: Start, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo.toml"
    os.mkfifo(fifo)
    esg = start("-c", str(fifo), wait=False)

    def opened() -> int | None:
        try:
            return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # nobody reads it yet
            return None

    fd = eventually(opened, "it reads its settings")
    esg.signal(signal.SIGTERM)
    assert esg.wait() == 0
    os.close(fd)


@pytest.mark.skipif(not may_unshare(), reason="no permission for a pid namespace")
def test_as_pid_1_it_reaps_adopted_processes_and_ends_on_term(start: Start) -> None:
    esg = start("--workers", "2", prefix=NAMESPACE)
    assert "arbiter gen=1 pid=1 " in esg.log
    connection = esg.begin("/strand")
    shell_output = connection.getresponse().read()
    connection.close()
    assert int(shell_output) > 1
    stranger = eventually(lambda: stranger_of(esg), "the stranger became a child of PID 1")
    eventually(lambda: not psutil.pid_exists(stranger), "the stranger is reaped")
    assert len(esg.workers()) == 2
    esg.signal(signal.SIGTERM)
    assert esg.wait() == 0


def stranger_of(esg: Esg) -> int | None:
    children = esg.arbiter.children()
    return next((child.pid for child in children if "sleep" in child.name()), None)
