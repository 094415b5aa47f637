"""The `esgctl` command: sends a command to the arbiter over its control socket.

Exit codes: 0 if the arbiter did what it was told, 1 if it failed to or can't be reached, 2 for
wrong usage.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

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


class Terminated(ESGError):
    """This process got SIGTERM while it waited, for example because systemd stops the unit."""


class ControlError(ESGError):
    """The arbiter can't be reached, or didn't answer."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `esgctl` with these arguments (by default the process's own); returns the exit code."""
    secure_standard_streams()
    try:
        signal.signal(signal.SIGTERM, _on_terminate)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM,))
        platforms.check()
        code = group.main(
            args=None if arguments is None else list(arguments),
            prog_name="esgctl",
            standalone_mode=False,
        )
    except click.ClickException as error:
        return _complain(sentence(error, "esgctl"), 2)
    except click.Abort:
        return 1
    except Terminated:
        click.echo("esgctl: ended by SIGTERM before there was an answer", err=True)
        return _code_of_stop(128 + signal.SIGTERM)
    except ESGError as error:
        return _complain(str(error), error.exit_code)
    return int(code or 0)


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
    context.obj = lambda: control_socket or _configured_path(config)


@group.command(
    help="Load the application and the settings again, and wait until new workers have replaced "
    "all old ones. If that fails, the old workers go on serving, the reason is printed, and the "
    "exit code is 1."
)
@click.pass_context
def reload(context: click.Context) -> int:
    """Ask for a reload; returns the exit code."""
    answer = ask(context.obj(), "reload")
    if answer.ok:
        click.echo(answer.text)
        return 0
    if answer.detail:
        click.echo(answer.detail.rstrip("\n"), err=True)
    code = _complain(answer.text, 1)
    return _code_of_stop(code) if answer.stopping else code


def _on_terminate(signum: int, frame: FrameType | None) -> None:
    raise Terminated


def _code_of_stop(code: int) -> int:
    """The exit code if the service was stopped before the answer: `code`, or 0 under systemd.

    systemd marks a unit as failed if its ExecReload= process fails, even if systemd itself is
    stopping the unit and has sent that process SIGTERM. The process runs under systemd if
    MAINPID is set: see systemd.exec(5).
    """
    return 0 if "MAINPID" in os.environ else code


def ask(path: str, command: str) -> Answer:
    """Send a command to the arbiter at `path`, and wait for the outcome. Raises ControlError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            sock.connect(path)
            sock.sendall(commands.encode_request(command))
            line = sock.makefile("rb").readline(ANSWER_LIMIT)
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
