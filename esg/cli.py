"""The `esg` command: command line to Config to a running arbiter; exit codes.

Every option is made from a declaration in `config.py`. Exit codes: 0 clean, 1 failure, 2 usage or
configuration, 3 a worker can't boot, 4 the application can't be imported.
"""

from __future__ import annotations

import os
import platform
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

import click
from click.core import ParameterSource

import esg
from esg import logs, sources
from esg.config import SETTINGS, Config, Raw, Setting
from esg.errors import ESGError
from esg.server.worker import run_worker
from esg.supervisor.arbiter import Arbiter
from esg.supervisor.signals import HANDLED


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `esg` with these arguments (by default the process's own); returns the exit code."""
    _open_standard_streams()
    try:
        code = command.main(
            args=None if arguments is None else list(arguments),
            prog_name="esg",
            standalone_mode=False,
        )
    except click.ClickException as error:
        return _complain(error.format_message(), 2, "see esg --help")
    except click.Abort:
        return 1
    except ESGError as error:
        return _complain(str(error), error.exit_code)
    return int(code or 0)


def _open_standard_streams() -> None:
    """Give closed standard streams to /dev/null, lest a socket takes one's number."""
    for fd, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free, which is fd
            os.set_inheritable(fd, True)
            setattr(sys, name, open(fd, mode, closefd=False))  # noqa: SIM115


def _complain(message: str, code: int, hint: str = "") -> int:
    text = " ".join(message.split())
    click.echo(f"esg: error: {text}" + (f" ({hint})" if hint else ""), err=True)
    return code


def _serve(**values: Any) -> int:
    context = click.get_current_context()
    read_config = _config_reader(context, values)
    config = read_config()
    logs.configure(config.log_level, config.use_colors)
    code = Arbiter(config, run_worker, read_config).run()
    # Python puts the default actions of signals back at its end, and they would end it otherwise.
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
    return code


def _config_reader(context: click.Context, values: dict[str, Any]) -> Callable[[], Config]:
    """A function that reads every source, now and again at each reload."""
    file = values.pop("config")
    given = {
        name: Raw(value, _origin(SETTINGS[name]))
        for name, value in values.items()
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }
    return lambda: sources.load(given, os.environ, file=file)


def _origin(declared: Setting) -> str:
    return "APP" if declared.name == "app" else declared.flags[-1]


class Command(click.Command):
    """The command, with its options in groups."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                declared = SETTINGS.get(parameter.name or "")
                group = declared.group if declared else "Other"
                groups.setdefault(group, []).append(record)
        for group, records in groups.items():
            with formatter.section(group):
                formatter.write_dl(records)


def _option(declared: Setting) -> click.Parameter:
    if declared.name == "app":
        return click.Argument(["app"], required=False, type=str)
    kind, flags = declared.kind, list(declared.flags)
    if kind.is_flag:
        flag = declared.flags[-1]
        flags = [f"{flag}/--no-{flag.removeprefix('--')}"]
    return click.Option(
        [declared.name, *flags],
        type=None if kind.is_flag else str,
        default=None,
        multiple=declared.many,
        metavar=None if kind.is_flag else kind.metavar,
        help=_help(declared),
    )


def _help(declared: Setting) -> str:
    default = declared.default
    if default is None or default in ("", ()):
        shown = ""
    elif isinstance(default, bool):
        shown = "on" if default else ""
    else:
        shown = f"{default:g}" if isinstance(default, float) else str(default)
    notes = [declared.variables[-1] if declared.environment else declared.variables[0]]
    if shown:
        notes.append(f"default {shown}")
    text = f"{declared.help} [{', '.join(notes)}]"
    return f"{text} (not in this version)" if declared.pending else text


def _show_version(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        implementation = platform.python_implementation()
        python = f"{implementation} {platform.python_version()}"
        click.echo(f"Running esg {esg.__version__} with {python} on {platform.system()}")
        context.exit()


command = Command(
    name="esg",
    callback=_serve,
    params=[
        *(_option(declared) for declared in SETTINGS.values()),
        click.Option(
            ["config", "-c", "--config"],
            metavar="FILE",
            help="Read settings from this TOML file [default ./esg.toml, then ./pyproject.toml].",
        ),
        click.Option(
            ["version", "--version"],
            is_flag=True,
            expose_value=False,
            is_eager=True,
            callback=_show_version,
            help="Show the version and exit.",
        ),
    ],
    context_settings={"help_option_names": ["--help", "-h"], "max_content_width": 100},
    help="Serve the ASGI or WSGI application APP (MODULE:ATTRIBUTE) with any number of worker "
    "processes.",
    epilog="Signals: TERM, INT stop gracefully; QUIT stops now; HUP reloads; TTIN and TTOU add and "
    "remove a worker.",
)

if __name__ == "__main__":
    sys.exit(main())
