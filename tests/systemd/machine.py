"""A real systemd, booted in namespaces, that can run units; its end leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Mapping
from pathlib import Path

import psutil

from tests.support.runner import CHECKOUT
from tests.support.waiting import eventually

CODE, PACKAGES = "/srv/checkout", "/srv/packages"
UNITS = Path("/run/systemd/system")


class Unavailable(Exception):
    """A machine can't be booted here; the text says why."""


class Machine:
    """The machine; it must be closed."""

    def __init__(self, over: Path | None = None) -> None:
        """`over` is a folder with files that replace this machine's."""
        if os.geteuid() != 0:
            raise Unavailable("only root can boot a machine")
        for tool in ("/lib/systemd/systemd", "/usr/bin/systemctl", "/usr/bin/nsenter"):
            if not os.path.exists(tool):
                raise Unavailable(f"{tool} is missing; install the packages systemd, util-linux")
        self._folder = Path(tempfile.mkdtemp(prefix="esg-machine-", dir="/var/tmp"))
        self._group = _new_cgroup(self._folder.name)
        with (self._folder / "console").open("wb") as console:
            self._process = subprocess.Popen(
                [
                    *("sh", "-c", f'echo $$ >{self._group}/cgroup.procs; exec "$@"', "-"),
                    *("unshare", "--pid", "--fork", "--kill-child", "--mount", "--cgroup"),
                    *("--uts", "--ipc", str(Path(__file__).with_name("boot")), str(self._folder)),
                    str(over or ""),
                    *(str(CHECKOUT), CODE, sysconfig.get_paths()["purelib"], PACKAGES),
                ],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
            )
        try:
            eventually(self._is_up, "the machine is up", 30.0)
        except AssertionError:
            reason = (self._folder / "console").read_text(errors="replace")[-500:]
            self.close()
            raise Unavailable(f"systemd doesn't boot here: {reason}") from None

    def _is_up(self) -> bool:
        assert self._process.poll() is None, "it has ended"
        return "\nactive\n" in f"\n{self.try_run('systemctl', 'is-active', 'test.target')}"

    @property
    def _init(self) -> int:
        children = psutil.Process(self._process.pid).children()
        return children[0].pid if children else 0

    # -- commands --------------------------------------------------------------------------

    def _enter(self, *command: str) -> list[str]:
        spaces = ("--mount", "--pid", "--uts", "--ipc", "--cgroup")
        return ["nsenter", f"--target={self._init}", *spaces, "--wd=/", *command]

    def try_run(self, *command: str) -> str:
        """The output of a command, whatever its status."""
        if not self._init:
            return ""
        done = subprocess.run(self._enter(*command), capture_output=True, text=True, timeout=60)
        return done.stdout + done.stderr

    def run(self, *command: str) -> str:
        """The output of a command, which must succeed."""
        done = subprocess.run(self._enter(*command), capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout

    def systemctl(self, *arguments: str) -> str:
        return self.run("systemctl", *arguments)

    def write(self, path: str | Path, text: str) -> None:
        """Write a file in the machine."""
        done = subprocess.run(
            self._enter("sh", "-c", 'mkdir -p "$(dirname "$1")"; cat >"$1"', "-", str(path)),
            input=text,
            text=True,
            capture_output=True,
        )
        assert done.returncode == 0, done.stderr

    # -- units -----------------------------------------------------------------------------

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.systemctl("show", unit, f"--property={name}", "--value").strip()

    def main_pid(self, unit: str) -> int:
        """The pid of its main process in the machine; 0 if there is none."""
        return int(self.show(unit, "MainPID"))

    def journal(self, unit: str) -> str:
        self.run("journalctl", "--sync")
        return self.run("journalctl", f"--unit={unit}", "--output=cat", "--no-pager")

    def fds(self, pid: int) -> int:
        """How many descriptors a process in the machine has open."""
        return len(self.run("ls", f"/proc/{pid}/fd").split())

    # -- the end ---------------------------------------------------------------------------

    def close(self) -> None:
        """Power it off, and remove everything."""
        self._process.kill()
        self._process.wait()
        eventually(lambda: _removed(self._group), "its processes are gone")
        shutil.rmtree(self._folder, ignore_errors=True)


def _new_cgroup(name: str) -> Path:
    """A cgroup for the machine, in the unified hierarchy."""
    for mount in (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup")):
        if (mount / "cgroup.procs").exists():
            with contextlib.suppress(OSError):
                (mount / name).mkdir()
                return mount / name
    raise Unavailable("no cgroup of version 2 can be made here")


def _removed(group: Path) -> bool:
    """Whether a cgroup could be removed, because it and its children are empty."""
    try:
        for path in sorted((path for path in group.rglob("*") if path.is_dir()), reverse=True):
            path.rmdir()
        group.rmdir()
    except OSError:
        return False
    return True


def deployed(name: str, values: Mapping[str, str]) -> str:
    """A file of deploy/systemd with values replaced for a test; each of them must be in it."""
    text = (CHECKOUT / "deploy/systemd" / name).read_text()
    for written, meant in values.items():
        assert written in text
        text = text.replace(written, meant)
    return text
