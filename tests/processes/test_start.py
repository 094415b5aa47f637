"""Startup: errors are one line, with the right exit code."""

from __future__ import annotations

import contextlib
import http.client
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from esg import __version__ as version
from tests.support.app import application
from tests.support.runner import Esg, Finished, environment, run_to_its_end
from tests.support.waiting import eventually

Start = Callable[..., Esg]

IS_ROOT = os.geteuid() == 0

_LOWEST_FREE = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
EVERYBODY_MAY_TAKE_PORT_80 = _LOWEST_FREE.exists() and int(_LOWEST_FREE.read_text()) <= 80


def complaint(finished: Finished) -> str:
    """The one-line error for a wrong command line or setting."""
    assert "Traceback" not in finished.log
    (line,) = finished.log.splitlines()
    assert line.startswith("esg: error: ")
    assert finished.output == ""
    return line


# -- exit code 2: the command line and settings ----------------------------------------

WRONG_USAGE = {
    "unknown option": (["example:app", "--wokers", "4"], r"--wokers.*--workers"),
    "value of the wrong type": (
        ["example:app", "--workers", "many"],
        r"--workers: invalid value 'many': expected a whole number",
    ),
    "value out of range": (["example:app", "--port", "70000"], r"--port: .*65535"),
    "word that isn't one of the choices": (
        ["example:app", "--log-level", "infos"],
        r"--log-level: .*did you mean 'info'\?",
    ),
    "option without its value": (["example:app", "--workers"], r"--workers"),
    "no application": ([], r"no application given"),
    "two applications": (["example:app", "other:app"], r"other:app"),
    "file name instead of a module": (["example.py"], r"write example:app"),
    "config file that isn't there": (["example:app", "-c", "no.toml"], r"no file 'no\.toml'"),
    "two places to listen": (
        ["example:app", "--port", "1", "--bind", "127.0.0.1:2"],
        r"--bind and --port both say where to listen",
    ),
}


@pytest.mark.parametrize(("arguments", "pattern"), WRONG_USAGE.values(), ids=WRONG_USAGE)
def test_wrong_usage_is_explained_in_a_line_and_ends_with_2(
    tmp_path: Path, arguments: list[str], pattern: str
) -> None:
    finished = run_to_its_end(tmp_path, *arguments)
    assert_matches(pattern, complaint(finished))
    assert finished.code == 2


@pytest.mark.parametrize(
    ("name", "text", "pattern"),
    [
        ("esg.toml", "wrokers = 4", r"esg\.toml: unknown key 'wrokers'; did you mean workers\?"),
        ("esg.toml", "workers = 0", r"esg\.toml: workers: invalid value 0"),
        ("pyproject.toml", "[tool.esg]\nwrokers = 4", r"pyproject\.toml \[tool\.esg\]: unknown"),
        ("esg.toml", "workers =", r"esg\.toml: not valid TOML"),
    ],
    ids=["unknown key", "bad value", "unknown key in pyproject", "not TOML"],
)
def test_a_wrong_setting_in_a_file_is_named_with_its_file_and_ends_with_2(
    tmp_path: Path, name: str, text: str, pattern: str
) -> None:
    (tmp_path / name).write_text(text)
    finished = run_to_its_end(tmp_path, "example:app")
    assert_matches(pattern, complaint(finished))
    assert finished.code == 2


def assert_matches(pattern: str, text: str) -> None:
    __tracebackhide__ = True
    assert re.search(pattern, text), f"{pattern!r} is not in {text!r}"


# -- exit code 1: sockets --------------------------------------------------------------


def test_a_port_in_use_is_named_and_ends_with_1(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        finished = run_to_its_end(tmp_path, "example:app", "--port", port)
    line = complaint(finished)
    assert f"can't listen on 127.0.0.1:{port} (--port): the address is in use" in line
    assert finished.code == 1


@pytest.mark.skipif(EVERYBODY_MAY_TAKE_PORT_80, reason="port 80 needs no permission here")
@pytest.mark.skipif(IS_ROOT and not shutil.which("setpriv"), reason="root, and there's no setpriv")
def test_a_privileged_port_without_permission_is_explained_and_ends_with_1(tmp_path: Path) -> None:
    without = ("setpriv", "--bounding-set", "-net_bind_service") if IS_ROOT else ()
    finished = run_to_its_end(tmp_path, "example:app", "--port", "80", prefix=without)
    assert "no permission for port 80" in complaint(finished)
    assert finished.code == 1


def test_an_address_of_another_machine_is_explained_and_ends_with_1(tmp_path: Path) -> None:
    finished = run_to_its_end(tmp_path, "example:app", "--bind", "192.0.2.1:8000")
    assert "can't listen on 192.0.2.1:8000 (--bind): " in complaint(finished)
    assert finished.code == 1


# -- exit codes 3 and 4: the application -----------------------------------------------

NO_APPLICATION = {
    "module that isn't there": ("nosuch:app", "", r"there is no module 'nosuch' in /"),
    "package that isn't there": ("nosuch.inner:app", "", r"there is no module 'nosuch' in /"),
    "module that a package lacks": ("example.inner:app", "", r"no module 'example.inner'"),
    "attribute with a typo": (
        "example:apple",
        application(),
        r"module 'example' has no attribute 'apple'; did you mean app\?",
    ),
    "module without an application": ("example", "", r"has neither 'application' nor 'app'"),
    "something that can't be called": (
        "example:app",
        "app = 42",
        r"'example:app' is an int, which can't be called",
    ),
    "function that is called otherwise": (
        "example:app",
        "def app(a, b, c, d): return []",
        r"'example:app' is a function with other parameters than an application has",
    ),
    "factory that wasn't declared as one": (
        "example:make",
        "def make(): pass",
        r"'example:make' is a function without parameters; add --factory",
    ),
}


@pytest.mark.parametrize(("app", "source", "pattern"), NO_APPLICATION.values(), ids=NO_APPLICATION)
def test_a_name_without_an_application_is_explained_once_and_ends_with_4(
    tmp_path: Path, app: str, source: str, pattern: str
) -> None:
    (tmp_path / "example.py").write_text(source)
    finished = run_to_its_end(tmp_path, app, "--workers", "4", "--port", "0")
    (error,) = finished.errors
    assert_matches(f"can't boot: .*{pattern}", error.message)
    assert "Traceback" not in finished.log
    assert finished.code == 4


def test_an_import_error_of_the_application_shows_its_own_traceback_once(tmp_path: Path) -> None:
    (tmp_path / "example.py").write_text("from inner import thing\n")
    (tmp_path / "inner.py").write_text("def work():\n    return 1 / 0\n\n\nthing = work()\n")
    finished = run_to_its_end(tmp_path, "example:app", "--workers", "4", "--port", "0")
    (error,) = finished.errors
    assert "can't boot: importing 'example' failed: ZeroDivisionError" in error.message
    lines = error.detail.splitlines()
    files = [line.split('"')[1] for line in lines if line.startswith("  File ")]
    example, inner = str(tmp_path / "example.py"), str(tmp_path / "inner.py")
    assert files == [example, inner, inner]
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1] == "ZeroDivisionError: division by zero"
    assert finished.log.count("Traceback") == 1
    assert finished.code == 4


def test_a_syntax_error_shows_the_line_once(tmp_path: Path) -> None:
    (tmp_path / "example.py").write_text("async def app(scope, receive, send:\n    pass\n")
    finished = run_to_its_end(tmp_path, "example:app", "--workers", "4", "--port", "0")
    (error,) = finished.errors
    assert f'File "{tmp_path}/example.py", line 1' in error.detail
    reason = error.message.partition("can't boot: ")[2]
    assert finished.log.splitlines()[-1].endswith(f" stopped, exit status 4: {reason}")
    assert "esg/" not in error.detail
    # In the event, in its traceback, and in the last line, which repeats the reason.
    assert finished.log.count("SyntaxError: ") == 3
    assert finished.code == 4


@pytest.mark.parametrize("error", ["KeyboardInterrupt", "SystemExit(0)"])
def test_a_module_that_ends_the_interpreter_is_an_import_error(tmp_path: Path, error: str) -> None:
    (tmp_path / "example.py").write_text(f"raise {error}")
    finished = run_to_its_end(tmp_path, "example:app", "--workers", "4", "--port", "0")
    (record,) = finished.errors
    assert f"can't boot: importing 'example' failed: {error.partition('(')[0]}" in record.message
    assert finished.log.count(" stopped, exit status 4") == 1
    assert finished.code == 4


LIFESPAN_FAILURES = {
    "failed": (
        """
async def app(scope, receive, send):
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "the database is away"})
""",
        "lifespan startup failed: the database is away",
    ),
    "raised": (
        application(at_startup="raise RuntimeError('no such bucket')"),
        "RuntimeError: no such bucket",
    ),
}


@pytest.mark.parametrize(("source", "text"), LIFESPAN_FAILURES.values(), ids=LIFESPAN_FAILURES)
def test_a_failed_lifespan_startup_is_logged_once_and_ends_with_3(
    tmp_path: Path, source: str, text: str
) -> None:
    (tmp_path / "example.py").write_text(source)
    options = ["--lifespan", "on", "--workers", "4", "--port", "0"]
    finished = run_to_its_end(tmp_path, "example:app", *options)
    (error,) = finished.errors
    assert text in error.message
    assert "esg/" not in error.detail
    assert finished.code == 3


def test_a_startup_that_hangs_ends_with_3_and_the_stack(tmp_path: Path) -> None:
    source = application(at_import="def connect():\n    time.sleep(60)\n\nconnect()")
    (tmp_path / "example.py").write_text(source)
    options = ["--timeout-boot", "1", "--workers", "2", "--port", "0"]
    finished = run_to_its_end(tmp_path, "example:app", *options)
    assert "can't boot: not ready after 1 s (--timeout-boot)" in finished.log
    assert " in connect" in finished.log
    assert finished.code == 3


def test_a_lifespan_startup_that_never_ends_exits_with_3_and_the_line_where_it_waits(
    tmp_path: Path,
) -> None:
    source = application(at_startup="await asyncio.sleep(60)")
    (tmp_path / "example.py").write_text(source)
    finished = run_to_its_end(tmp_path, "example:app", "--timeout-boot", "3", "--port", "0")
    assert "can't boot: not ready after 3 s (--timeout-boot)" in finished.log
    line = source.splitlines().index("    await asyncio.sleep(60)") + 1
    assert f"  its lifespan startup waited at example.py:{line}\n" in finished.log
    assert finished.code == 3


def test_a_worker_that_dies_while_booting_ends_with_3(tmp_path: Path) -> None:
    (tmp_path / "example.py").write_text("import os\nos._exit(9)\n")
    finished = run_to_its_end(tmp_path, "example:app", "--workers", "4", "--port", "0")
    (error,) = finished.errors
    assert "can't boot: died while booting: exit status 9" in error.message
    assert finished.code == 3


def test_signals_during_a_failed_startup_do_not_change_the_exit_code(tmp_path: Path) -> None:
    (tmp_path / "example.py").write_text("import time; time.sleep(0.3); raise RuntimeError")
    arguments = [sys.executable, "-m", "esg", "example:app", "--port", "0", "--workers", "2"]
    log = tmp_path / "log"
    for _ in range(3):
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                arguments, cwd=tmp_path, env=environment(), stderr=stderr, start_new_session=True
            )
        eventually(lambda: "listening" in log.read_text(), "it listens")
        while process.poll() is None:
            process.send_signal(signal.SIGHUP)
        assert process.returncode == 4, log.read_text()
        assert log.read_text().count("stopped, exit status") == 1


def test_workers_that_cannot_be_forked_are_explained_and_end_with_3(tmp_path: Path) -> None:
    (tmp_path / "example.py").write_text(application())
    limited = ("sh", "-c", 'ulimit -n 9; exec "$@"', "sh")
    run = run_to_its_end(tmp_path, "example:app", "--port", "0", "--workers", "3", prefix=limited)
    assert run.code == 3
    last = run.log.splitlines()[-1]
    assert "stopped, exit status 3: can't be forked: too many open files" in last
    assert "LimitNOFILE=" in last
    assert "Traceback" not in run.log


# -- a successful startup --------------------------------------------------------------


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_do_no_harm(start: Start, closed: str) -> None:
    esg = start("--workers", "1", prefix=("sh", "-c", f'"$@" {closed} & wait', "sh"), wait=False)
    port = eventually(lambda: listening_port(esg), "it listens")
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as client:
        client.request("GET", "/whoami")
        assert client.getresponse().status == 200


def listening_port(esg: Esg) -> int:
    """The port of a server whose log doesn't show it."""
    try:
        connections = esg.arbiter.net_connections("tcp")
    except (psutil.Error, IndexError):
        return 0
    return next((c.laddr.port for c in connections if c.status == psutil.CONN_LISTEN), 0)


def test_process_titles_distinguish_arbiter_and_workers(start: Start) -> None:
    esg = start("--workers", "2")
    assert title(esg.pid) == "esg: arbiter [example:app] gen 1"
    titles = [title(pid) for pid in esg.workers()]
    assert titles == [f"esg: worker {number} gen 1 [example:app]" for number in (1, 2)]
    esg.reload()
    esg.wait_for_workers(2)
    assert title(esg.pid) == "esg: arbiter [example:app] gen 2"
    assert {title(pid).split()[3:5] == ["gen", "2"] for pid in esg.workers()} == {True}


def title(pid: int) -> str:
    return " ".join(psutil.Process(pid).cmdline()).rstrip()


def test_a_name_replaces_the_application_in_titles(start: Start) -> None:
    esg = start("--name", "shop")
    assert title(esg.pid) == "esg: arbiter [shop] gen 1"


def test_the_log_says_when_each_worker_is_ready_and_when_all_are(start: Start) -> None:
    esg = start("--workers", "3")
    listening, introduction, *events = [record.event for record in esg.records]
    assert listening == f"listening on {esg.url}"
    assert introduction.startswith(f"esg {version} serves example:app ")
    assert events == ["ready", "ready", "ready", "serving workers=3"]
    assert sorted(record.worker for record in esg.logged("ready")) == [1, 2, 3]
    assert sorted(record.pid for record in esg.logged("ready")) == esg.workers()


def test_the_log_says_what_is_served_and_with_what(start: Start) -> None:
    esg = start("--loop", "asyncio", "--http", "h11", files={"esg.toml": "workers = 2\n"})
    (line,) = esg.logged(" serves ")
    told = "serves example:app (ASGI, asyncio, h11), settings from esg.toml"
    assert line.event == f"esg {version} {told}"


def test_standard_output_has_only_the_access_log(start: Start) -> None:
    esg = start()
    esg.whoami()
    esg.stop()
    (line,) = (esg.folder / "stdout").read_text().splitlines()
    assert_matches(r'^INFO:     127\.0\.0\.1:\d+ - "GET /whoami HTTP/1\.1" 200 OK$', line)


# -- an application without a lifespan ---------------------------------------------------


@pytest.mark.parametrize(
    ("error", "level"),
    [
        ("ValueError('Django can only handle ASGI/HTTP connections, not lifespan.')", "INFO"),
        ("ConnectionError('no database')", "WARNING"),
    ],
)
def test_the_log_says_once_per_generation_that_there_is_no_lifespan(
    start: Start, error: str, level: str
) -> None:
    source = (
        application() + "\nserve = app\nasync def app(scope, receive, send):\n"
        f"    if scope['type'] == 'lifespan': raise {error}\n"
        "    await serve(scope, receive, send)\n"
    )
    esg = start("--workers", "3", source=source)
    esg.reload()
    told = esg.logged("lifespan")
    assert [(record.level, record.generation) for record in told] == [(level, 1), (level, 2)]


def test_signals_that_the_parent_had_blocked_are_handled(start: Start) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        esg = start("--workers", "2")
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    for pid in (esg.pid, *esg.workers()):
        assert "SigBlk:\t0000000000000000\n" in Path(f"/proc/{pid}/status").read_text()
    esg.reload()
    esg.signal(signal.SIGTERM)
    assert esg.wait() == 0


def test_a_long_import_is_reported_with_where_it_is(start: Start) -> None:
    source = """
    import os, time
    while not os.path.exists("gate"):
        time.sleep(0.01)
    from esg.demo import app
    """
    esg = start(source=textwrap.dedent(source), wait=False)
    esg.wait_for_log(r"worker=1 gen=1 .* has been importing for \d+ s: example\.py:[34]$")
    esg.write("", "gate")
    esg.wait_for_log("serving workers=1")


@pytest.mark.parametrize("wait", ["await asyncio.sleep(0.01)", "time.sleep(0.01)"])
def test_a_long_lifespan_startup_is_reported_with_where_it_is(start: Start, wait: str) -> None:
    startup = f"""
    while not os.path.exists("gate"):
        {wait}
    """
    source = application(at_startup=startup.strip())
    esg = start(source=source, wait=False)
    number = source.splitlines().index(f"        {wait}") + 1
    line = r"has been in the lifespan startup of example:app for \d+ s: example\.py"
    esg.wait_for_log(rf"worker=1 gen=1 .* {line}:({number - 1}|{number})$")
    esg.write("", "gate")
    esg.wait_for_log("serving workers=1")


def test_a_long_stop_is_reported_with_what_it_waits_for(start: Start) -> None:
    source = """
    import asyncio, os

    async def app(scope, receive, send):
        while not os.path.exists("gate"):
            await asyncio.sleep(0.01)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})
    """
    esg = start("--lifespan", "off", source=textwrap.dedent(source))
    client = esg.connect()
    client.request("GET", "/")
    esg.wait_for_log("serving workers=1")
    esg.signal(signal.SIGTERM)
    esg.wait_for_log("waiting for 1 request in worker 1; SIGQUIT to cut it$")
    esg.write("", "gate")
    assert client.getresponse().read() == b"ok"
    client.close()


MAPPED = """\
import ctypes

class Info(ctypes.Structure):  # struct mallinfo2, mallinfo(3)
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks rest".split()]
    _fields_.append(("more", ctypes.c_size_t * 5))

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Info
before = libc.mallinfo2().hblks
block = bytes(1_500_000)
VERSION = "mapped" if libc.mallinfo2().hblks > before else "heap"
del block
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
@pytest.mark.parametrize(
    ("options", "place"), [([], "heap"), (["--malloc-trim", "1MiB"], "mapped")]
)
def test_a_worker_keeps_free_memory_as_malloc_trim_says(start, options, place):
    assert start(*options, source=application(at_import=MAPPED)).whoami()["version"] == place
