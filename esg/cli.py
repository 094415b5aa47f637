"""The `esg` command: command line to Config to a running arbiter; exit codes.

Every option is made from the declaration of a setting, in `esg/settings`. Exit codes: 0 clean,
1 failure, 2 usage or configuration, 3 a worker can't boot, 4 the application can't be imported.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

import esg
from esg import api
from esg.errors import BootError, ESGError
from esg.loader import load_application
from esg.log.files import secure_standard_streams
from esg.log.setup import check_logging
from esg.net.binds import parse_bind
from esg.net.unixsocket import access
from esg.server.http1.parsers import parser_class
from esg.server.loops import loop_factory
from esg.server.prepare import prepare
from esg.server.websocket.libraries import library
from esg.settings import folders, report, secret_variables, sources
from esg.settings.build import Raw
from esg.settings.declaration import Setting
from esg.settings.schema import SETTINGS, Config
from esg.supervisor.privileges import identity
from esg.supervisor.signals import HANDLED
from esg.supervisor.watcher.watch import check
from esg.usage import Command, can_be_negated, sentence

WIDTH = 80
"""The most columns of `--help`."""


def run() -> None:
    """Run `esg` as this process's command, and exit with its exit code."""
    code = main()
    # At exit, Python restores the signals' default actions: a late signal would end the process.
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
    sys.exit(code)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `esg` with these arguments (by default the process's own); returns the exit code."""
    secure_standard_streams()
    try:
        code = command.main(
            args=None if arguments is None else list(arguments),
            prog_name="esg",
            standalone_mode=False,
        )
    except click.ClickException as error:
        return _complain(sentence(error, "esg"), 2)
    except click.Abort:
        return 1
    except ESGError as error:
        return _complain(str(error), error.exit_code)
    return int(code or 0)


def _complain(message: str, code: int) -> int:
    click.echo(f"esg: error: {' '.join(message.split())}", err=True)
    return code


def _serve(*, print_config: bool, check_config: bool, **values: Any) -> int:
    read_config = _config_reader(click.get_current_context(), values)
    if print_config:
        click.echo("\n".join(report.lines(read_config())))
        return 0
    if check_config:
        return _check(read_config())
    return api.serve(read_config)


def _check(config: Config) -> int:
    """Check everything that can be checked without serving.

    Raises ESGError; returns the exit code.
    """
    config = api.enter_folder(config)
    for bind in config.binds:
        parse_bind(bind, config.binds_origin)
    access(config)
    identity(config)
    check(config)
    config = prepare(config).config
    loop_factory(config.loop)  # this and the next two calls import the packages of the settings
    parser_class(config.http)
    library(config)
    check_logging(config)
    try:
        load_application(config)
    except BootError as error:
        if error.detail:
            click.echo(error.detail, err=True)
        raise
    click.echo(f"esg: configuration OK: {config.app}, workers={config.workers}")
    return 0


def _config_reader(context: click.Context, values: dict[str, Any]) -> Callable[[], Config]:
    """A function that reads every source of settings, for the startup and each reload."""
    file, folder = values.pop("config"), Path(folders.current())
    given = {
        name: Raw(value, _origin(SETTINGS[name]))
        for name, value in values.items()
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }
    hidden = secret_variables.take()
    return lambda: sources.load(given, {**os.environ, **hidden}, file=file, folder=folder)


def _origin(declared: Setting) -> str:
    return "APP" if declared.name == "app" else declared.option


def _option(declared: Setting) -> click.Parameter:
    if declared.name == "app":
        return click.Argument(["app"], required=False, type=str)
    kind, flags = declared.kind, list(declared.flags)
    if can_be_negated(declared):
        flags[flags.index(declared.option)] += f"/--no-{declared.option.removeprefix('--')}"
    return click.Option(
        [declared.name, *flags],
        is_flag=kind.is_flag,
        type=None if kind.is_flag else str,
        default=None,
        multiple=declared.many,
        metavar=None if kind.is_flag else kind.metavar,
        help=declared.help,
    )


def _show_version(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        import platform  # seldom needed, and slow to import

        implementation = platform.python_implementation()
        python = f"{implementation} {platform.python_version()}"
        click.echo(f"Running esg {esg.__version__} with {python} on {platform.system()}")
        context.exit()


def _show_whole_help(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        assert isinstance(context.command, Command)
        click.echo(context.command.get_whole_help(context))
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
            ["print_config", "--print-config"],
            is_flag=True,
            help="Print every setting with its origin, as TOML, and exit.",
        ),
        click.Option(
            ["check_config", "--check-config"],
            is_flag=True,
            help="Check the settings, import APP, and exit.",
        ),
        click.Option(
            ["version", "--version"],
            is_flag=True,
            expose_value=False,
            is_eager=True,
            callback=_show_version,
            help="Show the version and exit.",
        ),
        click.Option(
            ["help_all", "--help-all"],
            is_flag=True,
            expose_value=False,
            is_eager=True,
            callback=_show_whole_help,
            help="Show every option, with its other names and environment variables, and exit.",
        ),
    ],
    context_settings={
        "help_option_names": ["--help", "-h"],
        "terminal_width": WIDTH,
        "max_content_width": WIDTH,
    },
    help="Serve the ASGI or WSGI application APP (MODULE:ATTRIBUTE) with any number of worker "
    "processes.",
)

if __name__ == "__main__":
    run()
