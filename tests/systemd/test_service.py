"""The units of deploy/systemd under a real systemd: start, reload, crashes, watchdog, stop."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.app import application
from tests.support.load import Load
from tests.support.runner import CHECKOUT
from tests.support.unprivileged import as_nobody
from tests.support.waiting import eventually

from .machine import CODE, PACKAGES, UNITS, Machine, Unavailable, deployed

APP = "/srv/app"


class Service:
    """A machine with ESG's units, and an application in `/srv/app`."""

    def __init__(self, machine: Machine, python: str) -> None:
        self.machine = machine
        self.python = python
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.port = sock.getsockname()[1]
        self.machine.run("install", "-d", "-m", "777", APP)
        self.deploy(application())

    def deploy(self, source: str) -> None:
        """Put a version of the application there."""
        self.machine.write(f"{APP}/new", source)
        self.machine.run("mv", f"{APP}/new", f"{APP}/example.py")

    def install(self, *options: str, lines: str = "", with_socket: bool = False) -> None:
        """Install esg.service, with more options and lines of its own."""
        text = deployed("esg.service", {**self.commands("/srv/app/.venv/bin"), "auto": "2"})
        if not with_socket:
            options = (f"--bind=127.0.0.1:{self.port}", *options)
        text = text.replace(
            "example:app --workers 2", f"example:app --workers 2 {' '.join(options)}"
        )
        self.machine.write(UNITS / "esg.service", text)
        if with_socket:
            self.machine.write(
                UNITS / "esg.socket",
                deployed("esg.socket", {"127.0.0.1:8000": f"127.0.0.1:{self.port}"}),
            )
        self.drop_in("esg.service", lines)

    def commands(self, folder: str) -> dict[str, str]:
        """The programs that a unit names, and the commands that replace them here."""
        return {f"{folder}/esgctl": f"{self.python} -m esg.ctl"} | {
            f"{folder}/esg": f"{self.python} -m esg"
        }

    def drop_in(self, unit: str, lines: str = "") -> None:
        """The settings for tests: this checkout's code, and permission to write the application's
        notes."""
        self.machine.write(
            UNITS / f"{unit}.d/test.conf",
            f"[Service]\nReadWritePaths={APP}\nEnvironment=PYTHONDONTWRITEBYTECODE=1 "
            f"PYTHONPATH={CODE}:{PACKAGES}\n{lines}",
        )
        self.machine.systemctl("daemon-reload")

    def start(self, *options: str, lines: str = "") -> None:
        """Install and start; systemctl waits until it is ready."""
        self.install(*options, lines=lines)
        self.machine.systemctl("start", "esg.service")

    def whoami(self) -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request("GET", "/whoami")
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()

    def show(self, name: str) -> str:
        return self.machine.show("esg.service", name)

    @property
    def main_pid(self) -> int:
        return self.machine.main_pid("esg.service")

    def kill(self, signum: int, who: str = "main") -> None:
        self.machine.systemctl("kill", f"--kill-who={who}", f"--signal={signum}", "esg.service")

    def wait_for_status(self, part: str) -> None:
        eventually(lambda: part in self.show("StatusText"), f"{part!r} in the status")

    def wait_for_restart(self, before: int) -> None:
        eventually(lambda: self.main_pid not in (0, before), "it is started again")
        eventually(lambda: self.show("ActiveState") == "active", "it is active again")


@contextlib.contextmanager
def running(over: Path | None = None) -> Iterator[Service]:
    python, _ = as_nobody()
    try:
        machine = Machine(over)
    except Unavailable as reason:
        pytest.skip(str(reason))
    try:
        yield Service(machine, python)
        print(machine.journal("esg.service"))  # noqa: T201 - for a test that fails
    finally:
        machine.close()


@pytest.fixture
def service() -> Iterator[Service]:
    with running() as service:
        yield service


NEWER = CHECKOUT / "build" / "systemd"
"""The folder in which `tests/systemd/fetch` may have put a newer systemd."""


@pytest.fixture
def newer_service() -> Iterator[Service]:
    """Under a systemd that has Type=notify-reload."""
    done = subprocess.run(["systemctl", "--version"], capture_output=True, text=True)
    is_new = int(done.stdout.split()[1]) >= 253
    if not is_new and not NEWER.exists():
        pytest.skip("needs systemd 253 or newer; run: tests/systemd/fetch build/systemd")
    with running(None if is_new else NEWER) as service:
        yield service


def test_it_serves_as_soon_as_it_is_started_and_stops_cleanly(service: Service) -> None:
    service.start()
    assert service.whoami()["generation"] == 1
    assert service.show("StatusText") == "gen 1: 2 of 2 workers ready"
    assert service.machine.run("stat", "-c", "%u", f"/proc/{service.main_pid}").strip() != "0"
    service.machine.systemctl("stop", "esg.service")
    assert service.show("Result") == "success"
    assert service.show("ExecMainStatus") == "0"
    journal = service.machine.journal("esg.service")
    for line in ("serving workers=2", "received SIGTERM", "stopped, exit status 0"):
        assert line in journal
    assert "ERROR" not in journal


def test_a_failed_startup_fails_the_unit(service: Service) -> None:
    service.deploy("import no_such_module")
    service.install(lines="Restart=no\n")
    assert "failed" in service.machine.try_run("systemctl", "start", "esg.service")
    assert service.show("ExecMainStatus") == "4"
    assert "No module named 'no_such_module'" in service.machine.journal("esg.service")


def test_a_start_with_bad_settings_is_not_tried_again(service: Service) -> None:
    service.install("--umask=9")
    service.machine.try_run("systemctl", "start", "esg.service")
    eventually(lambda: service.show("ActiveState") == "failed", "it has failed for good")
    assert (service.show("ExecMainStatus"), service.show("NRestarts")) == ("2", "0")


def test_a_reload_loses_nothing(service: Service) -> None:
    service.start()
    pid, fds = service.main_pid, service.machine.fds(service.main_pid)
    service.deploy(application("two"))
    with Load(service.port, keep_alive=2, fresh=2, slow=1):
        service.machine.systemctl("reload", "esg.service")
        # It has waited for the end.
        assert service.show("ActiveState") == "active"
        assert service.show("StatusText").startswith("gen 2: 2 of 2 workers ready")
        assert {service.whoami()["version"] for _ in range(10)} == {"two"}
    assert service.main_pid == pid
    eventually(lambda: service.machine.fds(pid) == fds, "no descriptor is left open")


def test_a_failed_reload_is_a_failure_for_systemd(service: Service) -> None:
    service.start()
    service.deploy("import no_such_module")
    said = service.machine.try_run("systemctl", "reload", "esg.service")
    assert "Job for esg.service failed" in said
    assert "ModuleNotFoundError: No module named 'no_such_module'" in service.machine.journal(
        "esg.service"
    )
    assert service.show("ActiveState") == "active"
    said = "gen 1: 2 of 2 workers ready; last reload failed: a worker could not boot"
    service.wait_for_status(said)  # until the worker that failed has ended
    assert service.whoami()["version"] == "one"
    service.deploy(application("two"))
    service.machine.systemctl("reload", "esg.service")
    assert service.show("StatusText").startswith("gen 3: 2 of 2 workers ready")
    assert service.whoami()["version"] == "two"


def test_a_reload_that_reaches_no_arbiter_fails_and_the_service_goes_on(service: Service) -> None:
    service.start()
    service.machine.run("rm", "/run/esg/control")
    said = service.machine.try_run("systemctl", "reload", "esg.service")
    assert "Job for esg.service failed" in said
    assert "can't reach an arbiter at '/run/esg/control'" in service.machine.journal("esg.service")
    assert (service.show("ActiveState"), service.show("Result")) == ("active", "success")
    assert service.whoami()["version"] == "one"


def test_a_reload_that_fails_late_fails_too(service: Service) -> None:
    service.start("--lifespan", "on")
    service.deploy(application("two", at_startup="raise RuntimeError('no database')"))
    said = service.machine.try_run("systemctl", "reload", "esg.service")
    assert "Job for esg.service failed" in said
    assert "RuntimeError: no database" in service.machine.journal("esg.service")
    said = "gen 1: 2 of 2 workers ready; last reload failed: a worker could not boot"
    service.wait_for_status(said)
    assert service.show("ActiveState") == "active"
    assert service.whoami()["version"] == "one"


@pytest.mark.parametrize("who", ["esgctl", "the arbiter"])
def test_a_stop_during_a_reload_is_no_failure(service: Service, who: str) -> None:
    """The reload's process may be ended by SIGTERM, or learn first that the arbiter is stopping."""
    lines = "SuccessExitStatus=\n"  # only needed before Python runs, so not here
    if who == "the arbiter":
        command = f"{service.python} -m esg.ctl --control-socket /run/esg/control reload"
        lines += f"ExecReload=\nExecReload=/bin/sh -c 'trap : TERM; {command} || exit 1'\n"
    service.start(lines=lines)
    service.deploy(application("bad", at_startup='note("hangs"); await asyncio.sleep(3600)'))
    service.machine.systemctl("reload", "--no-block", "esg.service")
    hangs = ("grep", "hangs", f"{APP}/notes")
    eventually(lambda: "hangs" in service.machine.try_run(*hangs), "the new code hangs")
    service.machine.systemctl("stop", "esg.service")
    assert service.show("Result") == "success"
    assert service.show("ActiveState") == "inactive"
    said = "reload given up: stopping|ended by SIGTERM before"
    assert re.search(said, service.machine.journal("esg.service"))


def test_systemd_reloads_with_type_notify_reload(newer_service: Service) -> None:
    """With Type=notify-reload, whose signal is HUP; it waits for the end."""
    service = newer_service
    service.start("--lifespan", "on", lines="Type=notify-reload\nExecReload=\n")
    pid = service.main_pid
    service.deploy(application("two"))
    with Load(service.port, keep_alive=2, fresh=2):
        service.machine.systemctl("reload", "esg.service")
        assert service.show("ActiveState") == "active"
        assert service.show("StatusText").startswith("gen 2: 2 of 2 workers ready")
        assert {service.whoami()["version"] for _ in range(10)} == {"two"}
    service.deploy(application("three", at_startup="raise RuntimeError('no database')"))
    service.machine.systemctl("reload", "esg.service")  # systemd can't be told that a reload failed
    said = "gen 2: 2 of 2 workers ready; last reload failed: a worker could not boot"
    service.wait_for_status(said)
    assert service.whoami()["version"] == "two"
    assert service.main_pid == pid
    service.machine.systemctl("stop", "esg.service")
    assert service.show("Result") == "success"


def test_a_worker_that_is_killed_is_replaced(service: Service) -> None:
    service.start()
    pid = service.main_pid
    workers = service.machine.run("pgrep", "--parent", str(pid)).split()
    service.machine.run("kill", "-KILL", workers[0])
    eventually(
        lambda: "died: killed by SIGKILL" in service.machine.journal("esg.service"), "it is noted"
    )
    service.wait_for_status("gen 1: 2 of 2 workers ready")
    assert (service.main_pid, service.show("NRestarts")) == (pid, "0")


def test_no_client_is_refused_when_the_arbiter_crashes(service: Service) -> None:
    service.start()
    pid = service.main_pid
    eventually(lambda: service.show("NFileDescriptorStore") == "1", "systemd has the socket")
    service.kill(signal.SIGKILL)
    answers = []

    def answered() -> bool:
        """Clients that connect meanwhile wait; only clients of killed workers fail."""
        try:
            answers.append(service.whoami()["pid"])
        except (ConnectionResetError, http.client.RemoteDisconnected):
            return False
        return service.main_pid not in (0, pid)

    eventually(answered, "the next one answers")
    eventually(lambda: service.show("ActiveState") == "active", "it is active again")
    assert service.whoami()["generation"] == 1
    service.machine.systemctl("stop", "esg.service")
    assert service.show("NFileDescriptorStore") == "0"
    with pytest.raises(ConnectionRefusedError):
        service.whoami()


def test_an_arbiter_that_stands_still_is_replaced(service: Service) -> None:
    service.start(lines="WatchdogSec=1\nTimeoutAbortSec=1\n")
    pid = service.main_pid
    service.kill(signal.SIGSTOP)
    service.wait_for_restart(pid)
    assert "Watchdog timeout" in service.machine.journal("esg.service")
    assert service.whoami()["generation"] == 1


def test_a_restart_with_a_socket_unit_loses_nothing(service: Service) -> None:
    service.install(with_socket=True)
    service.machine.systemctl("start", "esg.socket")
    assert service.whoami()["generation"] == 1  # the first connection starts it
    eventually(lambda: service.show("ActiveState") == "active", "it is active")
    pid, fds = service.main_pid, service.machine.fds(service.main_pid)
    with Load(service.port, keep_alive=2, fresh=4, slow=1) as load:
        for _ in range(2):
            service.machine.systemctl("restart", "esg.service")
            load.wait_until_answered("fresh", 20)
    assert service.main_pid != pid
    assert service.machine.fds(service.main_pid) == fds


def test_one_of_several_sockets_is_chosen_by_its_name(service: Service) -> None:
    service.install("--bind=fd://web", with_socket=True)
    admin = "[Socket]\nListenStream=/run/admin\nFileDescriptorName=admin\nService=esg.service\n"
    service.machine.write(UNITS / "admin.socket", admin)
    service.machine.systemctl("daemon-reload")
    service.machine.systemctl("start", "esg.socket", "admin.socket", "esg.service")
    assert service.whoami()["generation"] == 1
    journal = service.machine.journal("esg.service")
    assert journal.count("listening on") == 1
    assert "admin (fd://" in journal
    assert "was handed over, and no --bind uses it" in journal


def test_the_template_unit_serves_and_survives_a_crash(service: Service) -> None:
    text = deployed("esg@.service", service.commands("/usr/local/bin"))
    service.machine.write(UNITS / "esg@.service", text)
    service.machine.write(
        "/etc/esg/shop.toml",
        f'app = "example:app"\napp_dir = "{APP}"\nbind = ["unix:/run/esg-shop/web"]\n',
    )
    service.drop_in("esg@.service", f"WorkingDirectory={APP}\n")
    unit = "esg@shop.service"
    service.machine.systemctl("start", unit)

    def ask() -> str:
        return service.machine.try_run(
            "curl", "--silent", "--unix-socket", "/run/esg-shop/web", "http://localhost/whoami"
        )

    assert json.loads(ask())["generation"] == 1
    service.machine.systemctl("reload", unit)
    assert json.loads(ask())["generation"] == 2
    assert "ERROR" not in service.machine.journal(unit)
    # After a crash the socket and its file are still there, and clients wait meanwhile.
    pid, before = service.machine.main_pid(unit), service.machine.run("ls", "-i", "/run/esg-shop")
    service.machine.run("kill", "-KILL", str(pid))
    eventually(
        lambda: (
            service.machine.main_pid(unit) not in (0, pid)
            and service.machine.show(unit, "ActiveState") == "active"
        ),
        "it is started again",
    )
    assert json.loads(ask())["generation"] == 1
    web = [line for line in before.splitlines() if line.endswith(" web")]
    assert web[0] in service.machine.run("ls", "-i", "/run/esg-shop")
    service.machine.systemctl("stop", unit)
    assert service.machine.show(unit, "NFileDescriptorStore") == "0"


# -- the files themselves --------------------------------------------------------------


needs_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="needs systemd-analyze"
)
EXECUTABLE = {"/srv/app/.venv/bin/esgctl": "/bin/true", "/srv/app/.venv/bin/esg": "/bin/true"}


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units, with a program that exists."""
    (tmp_path / "esg.service").write_text(deployed("esg.service", EXECUTABLE))
    (tmp_path / "esg.socket").write_text(deployed("esg.socket", {}))
    template = deployed(
        "esg@.service", {"/usr/local/bin/esgctl": "/bin/true", "/usr/local/bin/esg": "/bin/true"}
    )
    (tmp_path / "esg@.service").write_text(template)
    return tmp_path


@needs_analyze
def test_systemd_analyze_verify_finds_no_fault(units: Path) -> None:
    files = [str(file) for file in sorted(units.iterdir())]
    done = subprocess.run(["systemd-analyze", "verify", *files], capture_output=True, text=True)
    ours = [line for line in done.stderr.splitlines() if line.startswith(("esg", str(units)))]
    assert (ours, done.returncode) == ([], 0)


@needs_analyze
@pytest.mark.parametrize("name", ["esg.service", "esg@.service"])
def test_systemd_analyze_security_finds_the_units_hardened(units: Path, name: str) -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=15", str(units / name)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-300:]
