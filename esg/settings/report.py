"""Settings as text: `--print-config`, and docs/settings.md (`python -m esg.settings.report`)."""

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
    """A value as one would write it on the command line; empty if there is none."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return ",".join(value)
    if isinstance(value, float):
        return f"{value:.15g}"
    return "" if value is None else str(value)


def lines(config: Config) -> Iterator[str]:
    """A configuration file, by groups, with the origin of every value beside it.

    What has no effect, since something else says where to listen, is commented out.
    """
    group = ""
    for declared in SETTINGS.values():
        if declared.group != group:
            yield from ([""] if group else [])
            group = declared.group
            yield f"# {group}"
        text = _assignment(declared, getattr(config, declared.name))
        if config.ways and declared.name in ("host", "port"):
            text = f"# {text}"
        yield f"{text:<{ORIGIN_COLUMN}}  # {_origin(config, declared)}"


def _assignment(declared: Setting, value: Any) -> str:
    """`name = value`; commented out where TOML has no way to say it."""
    if isinstance(value, LogDefinition):
        value = value.content if isinstance(value.content, dict) else None
    if value is None:
        return f"# {declared.name} ="
    shown = MASK if declared.secret and value else value
    return f"{declared.name} = {_toml(shown)}"


def _toml(value: Any) -> str:
    """A value in TOML: its strings, numbers, words and lists are a superset of JSON's."""
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

Made from the declarations in `esg/settings`, by `make docs`; don't edit it.

Each setting can be given, from the weakest source to the strongest,

- in a file: `esg.toml`, or `[tool.esg]` of `pyproject.toml`, in the folder of the start, or the one
  named with `-c`. The key is the option without its dashes in front; the others may be `_` or `-`.
- in the environment, and below it in the file that `--env-file` names;
- on the command line, or by keyword to `esg.run()` ([Python interface](api.md)).

A stronger source that says where to listen (`bind`, `uds`, `fd`, or `host` and `port`) replaces all
that a weaker one says of it; `PORT` gives way to all but a weaker `port`, and brings the host
0.0.0.0 where there is none. `esg --print-config` shows each setting's value and where it comes
from, `esg --check-config` also imports the application.

A switch is turned off with `--no-` in front of its name. An option that is repeatable is a list in
a file, and in the environment a text with commas (`ESG_HEADER`: with ends of line). In a file,
numbers and `true` or `false` stand without quotes. A variable `ESG_*` that is no setting is warned
of at the start. *Restart*: a reload can't change it. *Not yet*: known, and refused by this version.

A *DURATION* is a number of seconds, or has a unit: `500ms`, `30s`, `5m`, `1h`, `1d`, `1h30m`. A
*SIZE* is a number of bytes, or has a unit: `64k`, `16MiB`, `1g`; `k`, `kB` and `KiB` are all 1024
bytes, and so on. In a file a value with a unit is a string: `timeout = "5m"`.

An option that has several names has a key and a variable by each of them, which mean the same
(`limit_max_requests`, `ESG_LIMIT_MAX_REQUESTS`). The column has the variable that is the strongest,
and those without `ESG_` in their names, which are weaker.

Options that are no settings, and stand on the command line alone:

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
    """The page of the documentation that has every setting."""
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
