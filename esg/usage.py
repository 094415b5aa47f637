"""The help texts of the commands (`--help`, `--help-all`), and click's errors in one sentence."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import click

from esg.settings import report
from esg.settings.declaration import Setting
from esg.settings.schema import NO_EFFECT, SETTINGS

COMMON = frozenset(
    (
        *("app", "app_dir", "factory", "interface", "root_path", "env_file", "chdir"),
        *("host", "port", "bind", "uds"),
        *("workers", "max_requests", "timeout", "graceful_timeout", "drain_delay"),
        *("control_socket", "user", "group"),
        *("threads", "timeout_keep_alive", "forwarded_allow_ips", "header"),
        *("ws_max_size", "ws_ping_interval"),
        *("limit_request_body", "limit_concurrency", "request_timeout"),
        *("ssl_certfile", "ssl_keyfile"),
        *("log_level", "access_log", "access_logfile", "access_logformat", "error_logfile"),
        *("log_format", "log_config", "use_colors"),
        *("debug", "reload", "reload_dir"),
        *("config", "print_config", "check_config", "version", "help_all"),
    )
)
"""The options that `--help` shows. `--help-all` shows all options."""

ONLY_COMMON = "These are the common options; --help-all shows all options."

OTHER = "Other"
IGNORED = "Ignored (accepted so that command lines of other servers run)"
PENDING = "Not in this version"
"""Groups of options in the help that aren't groups of settings."""

EPILOG = """\
A DURATION is a number of seconds, or has a unit: 500ms, 30s, 5m, 1h, 1d.
A SIZE is a number of bytes, or has a unit: 64k, 16MiB, 1g.

Signals: TERM and INT stop gracefully; QUIT stops immediately; HUP reloads; TTIN
and TTOU add and remove a worker; USR1 reopens the log files.

Examples:
  esg example:app --reload                  while you develop
  esg example:app --workers 4 --host 0.0.0.0
  esg example:create_app --factory --env-file .env
  esg example:app --uds /run/example.sock --forwarded-allow-ips unix:
  esg example:app --check-config            exit with 0 if it could be served
"""

_NO_BREAK_HYPHEN = "\N{NON-BREAKING HYPHEN}"


class Formatter(click.HelpFormatter):
    """Breaks lines only at spaces, because most hyphens are in names of options."""

    def write_dl(self, rows: Iterable[tuple[str, str]], *args: Any, **kwargs: Any) -> None:
        kept = [(term, text.replace("-", _NO_BREAK_HYPHEN)) for term, text in rows]
        super().write_dl(kept, *args, **kwargs)

    def write(self, string: str) -> None:
        super().write(string.replace(_NO_BREAK_HYPHEN, "-"))


class Context(click.Context):
    """The context of the command, which formats its help."""

    formatter_class = Formatter


class Command(click.Command):
    """The `esg` command, with its options in groups."""

    context_class = Context

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(ONLY_COMMON)
        self._format_options(ctx, formatter, every=False)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write("\n" + EPILOG)

    def get_whole_help(self, ctx: click.Context) -> str:
        """The text of `--help-all`: every option, with all names, variables and defaults."""
        formatter = ctx.make_formatter()
        self.format_usage(ctx, formatter)
        self.format_help_text(ctx, formatter)
        self._format_options(ctx, formatter, every=True)
        self.format_epilog(ctx, formatter)
        return formatter.getvalue().rstrip("\n")

    def _format_options(
        self, ctx: click.Context, formatter: click.HelpFormatter, *, every: bool
    ) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            name = parameter.name or ""
            declared = SETTINGS.get(name)
            if not (every or name in COMMON or "--help" in parameter.opts):
                continue
            if declared is not None:
                group, row = _group(declared), _row(declared, every=every)
            else:
                record = parameter.get_help_record(ctx)
                assert record is not None, "no option is hidden"
                group, row = OTHER, record
            groups.setdefault(group, []).append(row)
        last = (OTHER, IGNORED, PENDING)
        for group in sorted(groups, key=lambda group: last.index(group) if group in last else -1):
            with formatter.section(group):
                formatter.write_dl(groups[group], col_max=30 if every else 36)


def _group(declared: Setting) -> str:
    if declared.pending:
        return PENDING
    return IGNORED if declared.name in NO_EFFECT else declared.group


def _row(declared: Setting, *, every: bool) -> tuple[str, str]:
    """The two columns of an option in the help: its names, and its description."""
    if declared.name == "app":
        return "APP", declared.help
    names = list(declared.flags)
    if not every:
        names = [flag for flag in names if len(flag) == 2] + [declared.option]
    if can_be_negated(declared):
        names[names.index(declared.option)] = f"--[no-]{declared.option.removeprefix('--')}"
    term = ", ".join(names)
    if not declared.kind.is_flag:
        term += f" {declared.kind.metavar}"
    notes = [" or ".join((declared.variables[0], *declared.environment))] if every else []
    default = report.plain(declared.default)
    if default and (every or not declared.kind.is_flag):
        notes.append(f"default {default}")
    return term, f"{declared.help} [{', '.join(notes)}]" if notes else declared.help


def can_be_negated(declared: Setting) -> bool:
    """Whether the option is a switch that can be turned off with `--no-`."""
    return declared.kind.is_flag and not declared.option.startswith("--no-")


def sentence(error: click.ClickException, command: str) -> str:
    """The text of a click error, as one sentence that refers to `--help`."""
    if isinstance(error, click.NoSuchOption):
        text = f"there is no option {error.option_name}" + _meant(error.possibilities)
    elif isinstance(error, click.BadOptionUsage):
        takes = "takes no value" if "not take" in error.message else "needs a value"
        text = f"{error.option_name} {takes}"
    else:
        text = " ".join(error.format_message().split()).rstrip(".").replace(". Did", "; did")
        text = text.removeprefix("Got ")
        text = text[:1].lower() + text[1:]
    return f"{text} (see {command} --help)"


def _meant(names: Iterable[str] | None) -> str:
    known = list(names or ())
    return f"; did you mean {' or '.join(known)}?" if known else ""
