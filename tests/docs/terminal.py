"""A terminal that runs the commands of one page, in order, and compares what they write.

Each command runs in a new bash in a new session, which has the folder, the exported
variables and the exit status of the one before it. A server keeps running while the page
continues: ESG is recognised by the `READY=1` that it sends to a service manager (sd_notify(3)),
another server by listening and having written the lines that the page shows.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import re
import shlex
import signal
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from tests.support.runner import CHECKOUT, environment, kill_session, session
from tests.support.waiting import eventually

from .pages import Block, Command, Interrupt, steps

PROGRAM = """\
#!{python}
import sys
sys.path.insert(0, {checkout!r})
import esg.settings.sources
esg.settings.sources.EVERYWHERE = "127.0.0.1"
from {module} import {function}
sys.exit({function}())
"""
"""Like a command that pip installs, but for this checkout's package, with PORT as default port.

PORT alone would make ESG listen on the network, too.
"""

_PORTS = re.compile(r"(?:localhost|127\.0\.0\.1|0\.0\.0\.0|\[::1?\]):(\d+)|\bport\b[= ]+(\d+)")
_DEFAULT_PORT = "8000"

_NORMAL = (
    (re.compile(r"\d{4}-\d\d-\d\d([ T])\d\d:\d\d:\d\d\.\d{3}"), r"DATE\1TIME"),
    (re.compile(r"\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}"), "DATE"),
    (re.compile(r"(\bpid\b\"?[ =:]+)\d+"), r"\1PID"),
    (re.compile(r"\b127\.0\.0\.1:[3-6]\d{4}\b"), "127.0.0.1:CLIENT"),
)
"""Text that differs from run to run, and its replacement for comparisons."""

_RECORD_PREFIX = r"(?:DATE TIME [A-Z]+ +)?"
"""A page may leave out the time and the level of a record."""


def free_ports(count: int) -> list[str]:
    """Free ports on the loopback.

    The kernel doesn't give them to clients (ip(7), ip_local_port_range); otherwise a client
    could get the port while a page restarts a server.
    """
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    candidates = random.sample(range(min(10_000, lowest - 1_000), lowest), 100)
    free = (str(port) for port in candidates if _is_free(port))
    return list(itertools.islice(free, count))


def _is_free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def _install(folder: Path) -> None:
    """Create the commands of this checkout in a new folder."""
    folder.mkdir()
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    for name, target in project["scripts"].items():
        module, _, function = target.partition(":")
        text = PROGRAM.format(
            python=sys.executable, checkout=str(CHECKOUT), module=module, function=function
        )
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)


class Ports:
    """The ports that a page names, each with a free one that replaces it."""

    def __init__(self, text: str) -> None:
        found = [one or other for one, other in _PORTS.findall(text)]
        named = list(dict.fromkeys([_DEFAULT_PORT, *(port for port in found if port != "0")]))
        self._used = dict(zip(named, free_ports(len(named)), strict=True))

    @property
    def default(self) -> str:
        """The port that replaces 8000."""
        return self._used[_DEFAULT_PORT]

    def put(self, text: str) -> str:
        """A text of the page with replaced ports and addresses; nothing listens on the network."""
        return self._replaced(text, self._used).replace("0.0.0.0", "127.0.0.1")

    def take(self, text: str) -> str:
        """A program's output, with the page's ports."""
        return self._replaced(text, {used: named for named, used in self._used.items()})

    @staticmethod
    def _replaced(text: str, ports: dict[str, str]) -> str:
        names = "|".join(ports)
        return re.sub(rf"(?<![\w.])({names})(?!\w|\.\w)", lambda match: ports[match[1]], text)


def normal(text: str) -> str:
    """A text in which everything that differs from run to run is replaced."""
    for pattern, replacement in _NORMAL:
        text = pattern.sub(replacement, text)
    return text


def matched(shown: Sequence[str], written: str, *, whole: bool, anywhere: bool = False) -> int:
    """The position in `written` at which the shown lines end, or -1.

    `...` stands for any lines, or for any part of one. `whole`: nothing else may be written.
    `anywhere`: other lines may come before.
    """
    pattern = r"(?:.*\n)*?" if anywhere else ""
    for line in shown:
        if line.strip() == "...":
            pattern += r"(?:.*\n)*?"
        else:
            pieces = (re.escape(piece) for piece in normal(line.rstrip()).split("..."))
            pattern += _RECORD_PREFIX + ".*?".join(pieces) + r"[ ]*\n"
    match = re.compile(pattern + (r"\Z" if whole else "")).match(written)
    return match.end() if match else -1


class Job:
    """A started command. Its output is in a file, as a terminal would show it."""

    def __init__(self, number: int, command: Command, script: str, folder: Path, ports: Ports):
        self.command = command
        self.seen = 0
        """The part of the output that has been compared."""
        self.gone = False
        """Whether it has ended with all of its processes."""
        self.interrupted = False
        """Whether Ctrl-C was pressed, which also ends shells and make."""
        self._ports = ports
        self._output = folder.parent / f"output-{number}"
        self._ready = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._ready.setblocking(False)
        self._ready.bind("")  # an abstract name that the kernel chooses, see unix(7)
        self._serves = False
        name = self._ready.getsockname().decode().replace("\0", "@")
        with self._output.open("ab") as output:
            self.process = subprocess.Popen(
                ["bash", "-c", f"export NOTIFY_SOCKET={name}\n{script}"],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env=_environment(folder, ports),
            )

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    @property
    def serves(self) -> bool:
        """Whether it has told a service manager that it is ready."""
        self.take_messages()
        return self._serves

    def take_messages(self) -> None:
        """Read its messages to a service manager.

        A stored socket (FDSTORE=1) would keep listening inside a message that
        isn't read.
        """
        with contextlib.suppress(BlockingIOError):
            while message := self._ready.recv(4096):
                self._serves |= b"READY=1" in message.split(b"\n")

    @property
    def raw(self) -> str:
        return self._ports.take(self._output.read_text(encoding="utf-8", errors="replace"))

    @property
    def written(self) -> str:
        """The whole lines that it has written, in comparable form."""
        ended, text = self.ended, self.raw  # in this order, so that its last lines are included
        if ended and text and not text.endswith("\n"):
            text += "\n"
        return normal(text[: text.rfind("\n") + 1])

    @property
    def listens(self) -> bool:
        """Whether it is a server other than ESG and listens. ESG reports that it serves."""
        if " arbiter gen=" in self.raw:
            return False
        with contextlib.suppress(psutil.NoSuchProcess):
            connections = (psutil.Process(pid).net_connections() for pid in self.left())
            return any(each.status == psutil.CONN_LISTEN for one in connections for each in one)
        return False

    def shows(self, shown: Sequence[str], *, first: bool = False, peek: bool = False) -> bool:
        """Whether it has written the lines that the page shows, after the previous ones."""
        whole = first and self.ended
        end = matched(shown, self.written[self.seen :], whole=whole, anywhere=not first)
        if end >= 0 and not peek:
            self.seen += end
        return end >= 0

    def left(self) -> list[int]:
        """Its running processes, without its shell."""
        return [int(line.split()[0]) for line in session(self.process.pid)]

    def stop(self) -> None:
        """Send SIGTERM to the processes that it has started; all of them must end."""
        mine = self.left()
        for pid in mine:
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                if psutil.Process(pid).ppid() not in mine:
                    os.kill(pid, signal.SIGTERM)
        eventually(lambda: self.ended and not self.left(), f"the end of {self.command.text!r}")
        self.gone = True

    def close(self) -> None:
        """Kill all processes that are left."""
        self._ready.close()
        if not self.gone:
            kill_session(self.process)


def _environment(folder: Path, ports: Ports) -> dict[str, str]:
    programs = [str(folder.parent / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]
    return environment(
        PATH=os.pathsep.join(programs),
        HOME=str(folder.parent),
        PORT=ports.default,
        LC_ALL="C.UTF-8",
        no_proxy="*",
    )


class Terminal:
    """Runs the blocks of a page in `folder`; to be closed."""

    def __init__(self, folder: Path, text: str) -> None:
        """`text` is the text of the whole page; it names the ports to replace."""
        self._folder = folder
        self._ports = Ports(text)
        self._jobs: list[Job] = []
        self._left_running: list[Job] = []
        self._history: list[Job | str] = []
        self._state = folder.parent / "state"
        self._state.touch()
        self._code = 0
        self._unseen_failure = self._last_words = ""
        _install(folder.parent / "bin")
        # On a terminal, curl would erase its progress display.
        (folder.parent / ".curlrc").write_text("silent\nshow-error\n")

    def write(self, name: str, text: str) -> None:
        """Write a file that the page shows into the folder."""
        path = self._folder / name
        assert path.resolve().is_relative_to(self._folder), f"{name} is outside of the folder"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self._ports.put(text))
        self._history.append(f"[{name} as the page shows it]")

    def play(self, block: Block) -> None:
        """Run a block."""
        if block.afresh:
            self.finish()
        for step in steps(block):
            if isinstance(step, Command):
                self._run(step, block)
            elif isinstance(step, Interrupt):
                self._interrupt(step, block)
            else:
                self._go_on(self._foreground(block), step.shown, block)

    def finish(self) -> None:
        """Stop all running programs; none may have failed without the page showing it."""
        self._check_failure()
        for job in reversed(self._left_running):
            job.stop()
            job.close()
            codes = (0, -signal.SIGINT) if job.interrupted else (0,)
            assert job.process.returncode in codes, f"{job.command.text!r}: {job.raw}"
        self._left_running.clear()

    def close(self) -> None:
        for job in self._jobs:
            job.close()

    @property
    def transcript(self) -> str:
        """The commands and their output."""
        return "\n".join(
            f"$ {self._ports.take(entry.command.text)}\n{entry.raw}"
            if isinstance(entry, Job)
            else f"{entry}\n"
            for entry in self._history
        )

    def _run(self, command: Command, block: Block) -> None:
        for earlier in self._left_running:
            earlier.take_messages()
        if "$?" not in command.text:
            self._check_failure()
        self._unseen_failure = ""
        job = Job(len(self._jobs), command, self._script(command), self._folder, self._ports)
        self._jobs.append(job)
        self._history.append(job)
        background = command.text.rstrip().endswith("&")
        self._until(
            lambda: (
                job.serves
                or (job.ended and not (background and job.left()))
                or (
                    command.shown
                    and job.shows(command.shown, first=True, peek=True)
                    and job.listens
                )
            ),
            job,
            f"{block.place}: {command.text!r} neither ends nor serves",
        )
        if not job.ended or job.left():
            self._left_running.append(job)
        else:
            job.gone = True
            job.close()
            self._code = job.process.returncode
            if self._code:
                self._unseen_failure = f"{block.place}: {command.text!r} failed with {self._code}"
                self._last_words = job.raw
        if command.shown:
            complaint = f"{block.place}: {command.text!r} doesn't write what is shown"
            self._expect(job, command.shown, complaint, first=True)

    def _interrupt(self, step: Interrupt, block: Block) -> None:
        job = self._foreground(block)
        self._history.append("^C")
        job.interrupted = True
        os.killpg(job.process.pid, signal.SIGINT)
        self._until(
            lambda: job.ended and not job.left(), job, f"{block.place}: doesn't end after ^C"
        )
        self._go_on(job, step.shown, block)

    def _foreground(self, block: Block) -> Job:
        """The last program that was left running; it may have ended by now."""
        assert self._left_running, f"{block.place}: no program has been left running"
        running = [job for job in self._left_running if not job.ended]
        return (running or self._left_running)[-1]

    def _go_on(self, job: Job, shown: Sequence[str], block: Block) -> None:
        text = "\n".join(shown)
        self._expect(job, shown, f"{block.place}: {job.command.text!r} doesn't go on with\n{text}")

    def _expect(
        self, job: Job, shown: Sequence[str], complaint: str, *, first: bool = False
    ) -> None:
        """Wait until the program has written this, as its `first` lines or after the previous
        ones."""
        found = False

        def appears() -> bool:
            nonlocal found
            ended = job.ended  # its last lines are included
            found = job.shows(shown, first=first)
            return found or ended

        self._until(appears, job, complaint)
        assert found, f"{complaint}; it wrote\n{job.raw}"

    def _until(self, condition: Callable[[], object], job: Job, complaint: str) -> None:
        try:
            eventually(condition, complaint)
        except AssertionError:
            raise AssertionError(f"{complaint}; it wrote\n{job.raw}") from None

    def _check_failure(self) -> None:
        assert not self._unseen_failure, (
            f"{self._unseen_failure}, which the page doesn't show; it wrote\n{self._last_words}"
        )

    def _script(self, command: Command) -> str:
        state = shlex.quote(str(self._state))
        return (
            f". {state}\n"
            f"(exit {self._code})\n"
            f"{self._ports.put(command.text)}\n"
            "__code=$?\n"
            "unset NOTIFY_SOCKET\n"
            f"{{ declare -px; printf 'cd %q\\n' \"$PWD\"; }} > {state}\n"
            "exit $__code\n"
        )
