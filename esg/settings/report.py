"""The settings as text: for `--print-config`, and for docs/settings.md, which
`python -m esg.settings.report` prints."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

from esg.settings.declaration import Setting
from esg.settings.kinds import LogDefinition
from esg.settings.schema import SETTINGS, Config

MASK = "********"

ORIGIN_COLUMN = 40


def plain(value: Any) -> str:
    """A value as on the command line; empty for None."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return ",".join(value)
    if isinstance(value, float):
        return f"{value:.15g}"
    return "" if value is None else str(value)


def lines(config: Config) -> Iterator[str]:
    """The lines of a configuration file, in groups; a comment after each value names its origin.

    `host` and `port` are commented out if another setting says where to listen.
    """
    group = ""
    for declared in SETTINGS.values():
        if declared.group != group:
            yield from ([""] if group else [])
            group = declared.group
            yield f"# {group}"
        text = _assignment(declared, getattr(config, declared.name))
        if config.listen_settings and declared.name in ("host", "port"):
            text = f"# {text}"
        yield f"{text:<{ORIGIN_COLUMN}}  # {_origin(config, declared)}"


def _assignment(declared: Setting, value: Any) -> str:
    """`name = value`; commented out if the value can't be written in TOML."""
    if isinstance(value, LogDefinition):
        value = value.content if isinstance(value.content, dict) else None
    if value is None:
        return f"# {declared.name} ="
    shown = MASK if declared.secret and value else value
    return f"{declared.name} = {_toml(shown)}"


def _toml(value: Any) -> str:
    """A value in TOML, whose strings, numbers, booleans and lists include those of JSON."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_toml(key)} = {_toml(item)}' for key, item in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(_toml(item) for item in value)}]"
    if isinstance(value, float):
        return f"{value:.15g}"
    text = json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
    return text.replace("\x7f", "\\u007f")


def _origin(config: Config, declared: Setting) -> str:
    origin = config.origins.get(declared.name, "default")
    return f"command line {origin}" if origin == "APP" or origin[:1] == "-" else origin


_REFERENCE = """\
# Settings

`make docs` generates this page from the declarations in `esg/settings`; don't edit it.

A setting can be given in several sources. From the lowest precedence to the highest, they are

- a file: `esg.toml`, or `[tool.esg]` in `pyproject.toml`, in the folder where ESG is started, or
  the file that `-c` names. A key is the option's name without the leading dashes; the dashes within
  it may be written as `_` or `-`.
- the file of variables that `--env-file` names, and above it the environment;
- the command line, or keywords of `esg.run()` ([Python interface](api.md)).

`bind`, `uds`, `fd`, and `host` and `port` all say where to listen. If a source has one of them, all
of them in sources of lower precedence are ignored, but `host` and `port` may come from different
sources. The variable `PORT` is an exception: any explicit setting except a `port` of lower
precedence overrides it. If no host is set, `PORT` implies the host 0.0.0.0.

`esg --print-config` shows the value of each setting and its source; `esg --check-config` also
imports the application.

To turn a switch off, write `--no-` in front of its name. A repeatable option is a list in a file,
and comma-separated text in the environment (`ESG_HEADER` has one field per line). In a file,
numbers, `true` and `false` have no quotes. At startup, ESG warns about variables `ESG_*` that
aren't settings. *Restart*: a reload can't change this setting. *Not yet*: this version knows the
option, but refuses it.

A *DURATION* is a number of seconds, or text with units: `500ms`, `30s`, `5m`, `1h`, `1d`,
`1h30m`. A *SIZE* is a number of bytes, or text with a unit: `64k`, `16MiB`, `1g`. `k`, `kB` and
`KiB` all mean 1024 bytes; the other units work in the same way. In a file, a value with a unit is a
string: `timeout = "5m"`.

If an option has several names, each of them can be used as a key and, with the prefix `ESG_`, as a
variable (`limit_max_requests`, `ESG_LIMIT_MAX_REQUESTS`). The column *Environment* shows the
variable with the highest precedence, followed by variables without the prefix, which have the
lowest.

These options aren't settings; they exist only on the command line:

| Option | |
| --- | --- |
| `-c, --config FILE` | Read this file; by default `esg.toml`, then `pyproject.toml`. |
| `--print-config` | Print every setting with its origin, as TOML, and exit. |
| `--check-config` | Check the settings, import APP, and exit. |
| `--version` | Show the version and exit. |
| `-h, --help` | Show the common options and exit. |
| `--help-all` | Show all options, with their other names and environment variables, and exit. |
"""


def reference() -> str:
    """The documentation page with all settings."""
    parts = [_REFERENCE]
    group = ""
    for declared in SETTINGS.values():
        if declared.group != group:
            group = declared.group
            parts.append(
                f"\n## {group}\n\n| Option | Default | Environment | |\n| --- | --- | --- | --- |\n"
            )
        parts.append(_row(declared))
    return "".join(parts)


def _row(declared: Setting) -> str:
    default = plain(declared.default)
    notes = [] if declared.reloadable else ["*Restart.*"]
    notes += ["*Not yet.*"] if declared.pending else []
    metavar = "" if declared.kind.is_flag else f" {declared.kind.metavar}"
    flags = ["APP"] if declared.name == "app" else [f"{', '.join(declared.flags)}{metavar}"]
    cells = (
        _code(flags),
        _code([default] if default else []),
        _code([declared.variables[0], *declared.environment]),
        " ".join([declared.help, *notes]),
    )
    return f"| {' | '.join(cells)} |\n"


def _code(words: list[str]) -> str:
    return ", ".join(f"`{word}`".replace("|", "\\|") for word in words)


if __name__ == "__main__":
    sys.stdout.write(reference())
