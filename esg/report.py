"""Settings as text: values, `--print-config`, and the pages of the reference made from them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from esg.config import SETTINGS, Config, Setting

MASK = "********"

ORIGIN_COLUMN = 40


def plain(value: Any) -> str:
    """A value as one would write it on the command line; empty if there is none."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return ",".join(value)
    if isinstance(value, float):
        return f"{value:g}"
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
        if config.bind and declared.name in ("host", "port"):
            text = f"# {text}"
        yield f"{text:<{ORIGIN_COLUMN}}  # {_origin(config, declared)}"


def _assignment(declared: Setting, value: Any) -> str:
    """`name = value`; commented out where TOML has no way to say it."""
    if value is None:
        return f"# {declared.name} ="
    shown = MASK if declared.secret and value else value
    return f"{declared.name} = {_toml(shown)}"


def _toml(value: Any) -> str:
    """A value in TOML: its strings, numbers, words and lists are a superset of JSON's."""
    if isinstance(value, float):
        return f"{value:.15g}"
    text = json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
    return text.replace("\x7f", "\\u007f")


def _origin(config: Config, declared: Setting) -> str:
    origin = config.origins.get(declared.name, "default")
    return f"command line {origin}" if origin == "APP" or origin[:1] == "-" else origin
