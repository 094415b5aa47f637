"""Workers without root's privileges, the pid file, and a stop that load balancers can notice."""

from __future__ import annotations

import fcntl
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.app import application
from tests.support.certificates import Authority
from tests.support.descriptors import open_files, wait_for_open_files
from tests.support.load import Load
from tests.support.runner import Esg, run_to_its_end, session
from tests.support.unprivileged import as_nobody
from tests.support.waiting import eventually

Start = Callable[..., Esg]

NOBODY = pwd.getpwnam("nobody")

IDENTITY = """
import json, os

def status():
    with open("/proc/self/status") as file:
        return dict(line.rstrip().split(":\\t", 1) for line in file)

async def app(scope, receive, send):
    assert scope["type"] == "http"
    with open(scope["path"][1:], "w"):
        pass
    try:
        os.seteuid(0)
        regained = True
    except PermissionError:
        regained = False
    said = json.dumps({**status(), "regained": regained}).encode()
    headers = [(b"content-length", b"%d" % len(said))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": said})
"""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that `nobody` may use, unlike pytest's folders."""
    path = Path(f"/tmp/esg-nobody-{os.getpid()}")
    path.mkdir()
    path.chmod(0o777)
    yield path
    shutil.rmtree(path)


def test_workers_run_as_the_configured_user(open_folder: Path) -> None:
    python, extra = as_nobody()
    log, pid_file = open_folder / "secret.log", open_folder / "esg.pid"
    authority = Authority(open_folder)
    certificate, key = authority.issue()
    os.chmod(key, 0o600)
    esg = Esg(
        open_folder,
        *("--workers", "2", "--user", "nobody", "--group", "daemon", "--umask", "027"),
        *("--error-logfile", str(log), "--pid", str(pid_file)),
        *("--ssl-certfile", certificate, "--ssl-keyfile", key),
        source=IDENTITY,
        python=python,
        extra=extra,
        log="secret.log",
    )
    esg.tls = authority.client_context()
    try:
        esg.wait_for_log("serving workers=2")
        files = open_files(esg.arbiter)
        for generation in (1, 2):
            connection = esg.begin(f"/made-{generation}")
            seen = json.loads(connection.getresponse().read())
            connection.close()
            assert seen["Uid"].split() == [str(NOBODY.pw_uid)] * 4
            assert seen["Gid"].split() == ["1"] * 4
            assert "0" not in seen["Groups"].split()
            assert seen["regained"] is False
            assert int(seen["CapEff"], 16) == 0
            made = os.stat(open_folder / f"made-{generation}")
            assert (made.st_uid, made.st_gid, made.st_mode & 0o777) == (NOBODY.pw_uid, 1, 0o640)
            esg.reload()
        assert esg.arbiter.uids().real == 0
        assert os.stat(log).st_uid == os.stat(pid_file).st_uid == os.stat(key).st_uid == 0
        esg.wait_for_workers(2)
        wait_for_open_files(esg.arbiter, files)
        esg.stop()
        assert not pid_file.exists()
    finally:
        esg.kill()


WITHOUT_CAP_KILL = """
import ctypes, os, sys
assert ctypes.CDLL(None).prctl(24, 5, 0, 0, 0) == 0  # PR_CAPBSET_DROP, CAP_KILL
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def test_root_without_cap_kill_is_warned_at_startup(open_folder: Path) -> None:
    python, extra = as_nobody()
    wrapper = ("-c", WITHOUT_CAP_KILL)
    esg = Esg(open_folder, "--user", "nobody", wrapper=wrapper, python=python, extra=extra)
    try:
        esg.wait_for_log("serving workers=1")
        (notice,) = esg.logged("CAP_KILL")
        assert notice.level == "WARNING"
        esg.claim("can't be sent SIGQUIT: Operation not permitted; .* CAP_KILL")
        esg.signal(signal.SIGQUIT)  # is sent by mail
        assert esg.wait() == 0
        esg.stop()
    finally:
        esg.kill()


OWN_GROUPS = """
import os, sys
shell = 'mount --bind "$0" /etc/group && exec "$@"'
namespace = ["unshare", "--mount", "--propagation", "private", "sh", "-c", shell]
os.execvp("unshare", [*namespace, sys.argv[1], sys.executable, *sys.argv[2:]])
"""
"""Runs Python with another /etc/group; only this process and its children see it."""


def may_mount() -> bool:
    command = (
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "mount",
        "-t",
        "tmpfs",
        "t",
        "/mnt",
    )
    return (
        bool(shutil.which("unshare"))
        and not subprocess.run(command, capture_output=True).returncode
    )


@pytest.mark.skipif(not may_mount(), reason="no permission for a mount namespace")
def test_workers_have_all_groups_of_their_user(open_folder: Path) -> None:
    python, extra = as_nobody()
    groups = open_folder / "group"
    groups.write_text(Path("/etc/group").read_text() + "one:x:54321:nobody\ntwo:x:54322:nobody\n")
    options = {"source": IDENTITY, "python": python, "extra": extra}
    esg = Esg(open_folder, "--user", "nobody", wrapper=("-c", OWN_GROUPS, str(groups)), **options)
    try:
        connection = esg.begin("/made")
        seen = json.loads(connection.getresponse().read())
        connection.close()
        assert seen["Gid"].split() == [str(NOBODY.pw_gid)] * 4
        assert {int(gid) for gid in seen["Groups"].split()} == {NOBODY.pw_gid, 54321, 54322}
        esg.stop()
    finally:
        esg.kill()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--user", "nosuch"), "--user: this machine has no user 'nosuch'"),
        (("--group", "nosuch"), "--group: this machine has no group 'nosuch'"),
        (("--umask", "9"), "--umask: invalid value '9': expected permissions in octal"),
        (("--uds-owner", "nosuch"), "--uds-owner: this machine has no user 'nosuch'"),
        (("--user", "4294967295"), "--user: this machine has no user '4294967295'"),
        (("--uds-owner", ":99999999999"), "--uds-owner: this machine has no group '99999999999'"),
    ],
)
def test_an_unknown_user_or_group_is_reported_in_one_line(
    tmp_path: Path, arguments: tuple[str, ...], reason: str
) -> None:
    finished = run_to_its_end(tmp_path, "example:app", "--port", "0", *arguments)
    assert finished.code == 2
    assert finished.log.startswith(f"esg: error: {reason}")
    assert len(finished.log.splitlines()) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.skipif(not shutil.which("setpriv"), reason="setpriv isn't installed")
@pytest.mark.parametrize("option", ["--user", "--group"])
def test_root_without_capabilities_fails_with_one_line(tmp_path: Path, option: str) -> None:
    (tmp_path / "example.py").write_text(application())
    without = ("setpriv", "--bounding-set", "-setuid,-setgid")
    finished = run_to_its_end(
        tmp_path, "example:app", "--port", "0", "--workers", "2", option, "daemon", prefix=without
    )
    assert finished.code == 3
    (error,) = finished.errors
    assert "Operation not permitted; even root needs the capabilities CAP_SETUID" in error.text
    assert "Traceback" not in finished.log


# -- the pid file ----------------------------------------------------------------------


def test_the_pid_file_names_the_arbiter_and_is_removed(start: Start) -> None:
    esg = start("--pid", "esg.pid")
    path = esg.folder / "esg.pid"
    assert path.read_text() == f"{esg.pid}\n"
    esg.reload()
    assert path.read_text() == f"{esg.pid}\n"
    esg.signal(signal.SIGTERM)
    assert esg.wait() == 0
    assert not path.exists()


def test_a_pid_file_of_a_running_arbiter_prevents_a_second_start(
    start: Start, tmp_path: Path
) -> None:
    esg = start("--pid", "esg.pid")
    path = str(esg.folder / "esg.pid")
    finished = run_to_its_end(tmp_path, "example:app", "--port", "0", "--pid", path)
    assert finished.code == 1
    assert finished.log == (
        f"esg: error: --pid: process {esg.pid} is running with the pid file {path!r}; stop it, or "
        "choose another path\n"
    )
    assert Path(path).read_text() == f"{esg.pid}\n"


def test_of_two_starts_at_once_one_has_the_pid_file(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "esg.pid"
    both = [start("--pid", str(path), wait=False) for _ in range(2)]
    loser = eventually(lambda: [e for e in both if e.process.poll() is not None], "one ends")[0]
    winner = both[1 - both.index(loser)]
    winner.wait_for_log("serving workers=1")
    assert path.read_text() == f"{winner.pid}\n"
    assert f"process {winner.pid} is running with the pid file {str(path)!r}" in loser.log
    loser.exit_code = 1
    loser.claim("is running with the pid file")


def test_a_folder_at_the_path_of_the_pid_file_is_reported_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "esg.pid").mkdir()
    finished = run_to_its_end(tmp_path, "example:app", "--port", "0", "--pid", "esg.pid")
    assert finished.code == 1
    path = str(tmp_path / "esg.pid")
    assert finished.log == f"esg: error: --pid: can't write {path!r}: Is a directory\n"
    assert (tmp_path / "esg.pid").is_dir()


def test_an_abandoned_pid_file_does_not_prevent_startup(start: Start) -> None:
    """Even if another process has its pid, and workers of the crashed arbiter are draining."""
    crashed = start("--pid", "esg.pid")
    crashed.claim("the arbiter is gone")
    crashed.exit_code = -signal.SIGKILL
    path = crashed.folder / "esg.pid"
    slow = crashed.in_flight("/slow/1.5")
    crashed.process.kill()
    crashed.process.wait()
    esg = start("--pid", str(path))
    assert path.read_text() == f"{esg.pid}\n"
    assert slow.getresponse().status == 200
    slow.close()
    eventually(lambda: not session(crashed.process.pid), "its workers are gone")


def test_a_boot_that_fails_leaves_no_pid_file(start: Start) -> None:
    esg = start("--pid", "esg.pid", source="import no_such_module", wait=False)
    esg.claim("can't boot")
    esg.exit_code = 4
    assert esg.wait() == 4
    assert not (esg.folder / "esg.pid").exists()


def test_programs_of_workers_do_not_hold_the_pid_file(start: Start) -> None:
    esg = start("--pid", "esg.pid")
    assert esg.whoami()["worker"] == 1
    assert [name for name in open_files(esg.arbiter) if "esg.pid" in name]
    for pid in esg.workers():
        # This also finds the file under its temporary name, and after it was deleted.
        assert not [name for name in open_files(psutil.Process(pid)) if "esg.pid" in name]
    with open(esg.folder / "esg.pid", "r+") as file, pytest.raises(BlockingIOError):
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


# -- containers ------------------------------------------------------------------------


def test_worker_tmp_dir_has_no_effect(start: Start) -> None:
    esg = start("--worker-tmp-dir", "/dev/shm")
    assert esg.logged("--worker-tmp-dir has no effect: heartbeats are in shared memory")


def test_the_drain_delay_keeps_accepting_connections(start: Start) -> None:
    esg = start("--workers", "2", "--drain-delay", "1")
    with Load(esg.port, fresh=2, keep_alive=2) as load:
        begin = time.monotonic()
        esg.signal(signal.SIGTERM)
        esg.wait_for_log(r"stopping in 1 s \(--drain-delay\)")
        load.wait_until_answered("fresh", 50)
        assert not esg.logged("draining reason=shutdown")
        load.shutdown_begins()
        assert esg.wait() == 0
        assert time.monotonic() - begin >= 1.0


def test_a_second_interrupt_skips_the_drain_delay(start: Start) -> None:
    esg = start("--drain-delay", "60")
    esg.signal(signal.SIGINT)
    esg.wait_for_log("stopping in 60 s")
    esg.signal(signal.SIGINT)
    assert esg.wait(timeout=5.0) == 0


def test_port_and_web_concurrency_are_obeyed(start: Start) -> None:
    with socket.create_server(("0.0.0.0", 0)) as free:
        port = free.getsockname()[1]
    esg = start(listen=(), extra={"PORT": str(port), "WEB_CONCURRENCY": "3"})
    eventually(lambda: len(esg.workers()) == 3, "three workers")
    assert esg.logged(rf"listening on http://0\.0\.0\.0:{port}$")
    esg._port = port
    assert esg.whoami()["worker"] in (1, 2, 3)
