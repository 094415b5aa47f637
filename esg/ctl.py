"""The `esgctl` command: sends a command to the arbiter over its control socket.

Exit codes: 0 if the arbiter did what it was told, 1 if it failed or can't be reached, 2 for wrong
usage.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import click

from esg import commands, platforms
from esg.commands import Answer
from esg.errors import ConfigError, ESGError
from esg.log.files import secure_standard_streams
from esg.settings import folders, sources
from esg.settings.schema import SETTINGS
from esg.usage import sentence

ANSWER_LIMIT = 1024 * 1024
"""The most bytes of an answer that are read; an arbiter sends fewer."""

CONNECT_PAUSE = 0.05
"""Seconds between two attempts to connect while the queue of the control socket is full."""


class Terminated(ESGError):
    """This process got SIGTERM while it waited, for example because systemd stops the unit."""


class ControlError(ESGError):
    """The arbiter can't be reached, or didn't answer."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `esgctl` with these arguments (by default the process's own); returns the exit code."""
    secure_standard_streams()
    with _termination() as terminated:
        try:
            platforms.check()
            code = group.main(
                args=None if arguments is None else list(arguments),
                prog_name="esgctl",
                standalone_mode=False,
                obj=terminated,
            )
        except click.ClickException as error:
            return _complain(sentence(error, "esgctl"), 2)
        except click.Abort:
            return 1
        except ESGError as error:
            if isinstance(error, Terminated) or _is_readable(terminated):
                click.echo("esgctl: ended by SIGTERM before there was an answer", err=True)
                return _code_of_stop(128 + signal.SIGTERM)
            return _complain(str(error), error.exit_code)
        return int(code or 0)


@contextlib.contextmanager
def _termination() -> Iterator[socket.socket]:
    """A socket that becomes readable when this process gets SIGTERM; see signal.set_wakeup_fd.

    A handler that raises an exception wouldn't do: if the signal arrives right before a system call
    that waits, Python calls the handler only after the system call has returned.
    """
    reader, writer = socket.socketpair()
    with reader, writer:
        writer.setblocking(False)
        handler = signal.signal(signal.SIGTERM, lambda signum, frame: None)
        fd = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM,))
        try:
            yield reader
        finally:
            signal.set_wakeup_fd(fd)
            signal.signal(signal.SIGTERM, handler)


def _is_readable(sock: socket.socket) -> bool:
    return bool(select.select([sock], [], [], 0)[0])


def _complain(message: str, code: int) -> int:
    click.echo(f"esgctl: error: {' '.join(message.split())}", err=True)
    return code


@click.group(
    invoke_without_command=True,
    context_settings={"help_option_names": ["--help", "-h"], "max_content_width": 80},
    help="Send a command to a running arbiter, over the control socket that it was started with: "
    "esg --control-socket PATH.",
)
@click.option(
    "control_socket",
    "--control-socket",
    metavar="PATH",
    help="The arbiter's control socket [ESG_CONTROL_SOCKET, else control_socket in the "
    "configuration file].",
)
@click.option(
    "config",
    "-c",
    "--config",
    metavar="FILE",
    help="The arbiter's configuration file [default ./esg.toml, then ./pyproject.toml].",
)
@click.pass_context
def group(context: click.Context, control_socket: str | None, config: str | None) -> None:
    """Find the control socket to connect to; without a command, print the help."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
        return
    terminated: socket.socket = context.obj
    context.obj = lambda command: ask(
        control_socket or _configured_path(config), command, terminated
    )


@group.command(
    help="Load the application and the settings again, and wait until new workers have replaced "
    "all old ones. If that fails, the old workers go on serving, the reason is printed, and the "
    "exit code is 1."
)
@click.pass_obj
def reload(ask_arbiter: Callable[[str], Answer]) -> int:
    """Ask for a reload; returns the exit code."""
    answer = ask_arbiter("reload")
    if answer.ok:
        click.echo(answer.text)
        return 0
    if answer.detail:
        click.echo(answer.detail.rstrip("\n"), err=True)
    code = _complain(answer.text, 1)
    return _code_of_stop(code) if answer.stopping else code


def _code_of_stop(code: int) -> int:
    """The exit code if the service was stopped before the answer: `code`, or 0 under systemd.

    systemd marks a unit as failed if its ExecReload= process fails after the unit began to stop,
    even if systemd itself has sent that process SIGTERM. The process runs under systemd if MAINPID
    is set: see systemd.exec(5).

    All other failures have exit code 1 under systemd, too, for example if no arbiter can be reached
    or if the arbiter was killed. Then the unit isn't stopping, so its state doesn't change, and
    `systemctl reload` reports the failure.
    """
    return 0 if "MAINPID" in os.environ else code


def ask(path: str, command: str, terminated: socket.socket) -> Answer:
    """Send a command to the arbiter at `path`, and wait for the outcome.

    Raises ControlError; Terminated as soon as `terminated` is readable.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        try:
            _connect(sock, path, terminated)
            sock.sendall(commands.encode_request(command))  # it fits into an empty buffer
            line = _read_line(sock, terminated)
        except OSError as error:
            raise ControlError(
                f"can't reach an arbiter at {path!r}: {error.strerror or error}; "
                "is it running, with this --control-socket?"
            ) from None
    if not line.endswith(b"\n"):
        raise ControlError(f"the arbiter at {path!r} ended before {command} did; see its log")
    try:
        return commands.decode_answer(line)
    except ValueError as error:
        raise ControlError(str(error)) from None


def _connect(sock: socket.socket, path: str, terminated: socket.socket) -> None:
    """Connect; if the queue of the control socket is full (unix(7), EAGAIN), wait for room."""
    while True:
        try:
            return sock.connect(path)
        except BlockingIOError:
            _wait(terminated, CONNECT_PAUSE)


def _read_line(sock: socket.socket, terminated: socket.socket) -> bytes:
    """Everything up to the first newline, or to the end of what the arbiter sends."""
    found = b""
    while b"\n" not in found and len(found) < ANSWER_LIMIT:
        _wait(terminated, None, sock)
        piece = sock.recv(65536)
        if not piece:
            break
        found += piece
    line, newline, _ = found.partition(b"\n")
    return line + newline


def _wait(terminated: socket.socket, timeout: float | None, *others: socket.socket) -> None:
    """Wait until one of the others is readable. Raises Terminated if `terminated` is."""
    if terminated in select.select([terminated, *others], [], [], timeout)[0]:
        raise Terminated


def _configured_path(config: str | None) -> str:
    """The path of the control socket in the arbiter's settings. Raises ConfigError."""
    raw = sources.from_file(config, Path(folders.current())) | sources.from_environment(os.environ)
    given = raw.get("control_socket")
    if given is None or not isinstance(given.value, str) or not given.value:
        option = SETTINGS["control_socket"].option
        raise ConfigError(
            f"which arbiter? give {option} PATH, or set ESG_CONTROL_SOCKET, or control_socket in "
            "the configuration file"
        )
    chdir = raw.get("chdir")
    return os.path.join(str(chdir.value) if chdir else "", given.value)


def run() -> None:
    """Run `esgctl` with this process's arguments, and exit with its exit code."""
    sys.exit(main())


if __name__ == "__main__":
    run()
