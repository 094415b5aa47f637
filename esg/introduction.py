"""The line at startup that says what is served, with what, and how to stop it."""

from __future__ import annotations

import os

from esg.mailbox import Serves
from esg.settings.schema import Config
from esg.version import __version__


def introduction(
    config: Config, serves: Serves, *, on_terminal: bool, reads_files: bool = True
) -> str:
    """One line about the first worker that serves.

    `esg 0.1.0 serves shop.asgi:app (ASGI, uvloop, httptools), settings from esg.toml`

    `on_terminal`: Ctrl-C stops it. `reads_files`: settings files are read if there are any.
    """
    means = f"{serves.interface}, {serves.loop}, {serves.parser}"
    text = f"esg {__version__} serves {_application(config)} ({means})"
    if reads_files:
        text += f", {_files(config)}"
    return f"{text}; press Ctrl-C to stop" if on_terminal else text


def _application(config: Config) -> str:
    app = config.app or "an application"
    return f"{app} as {config.name}" if config.name else app


def _files(config: Config) -> str:
    """The files with settings or variables, relative to the folder that ESG runs in."""
    used = [path for path in config.files if config.gaps.get(path) == ""]
    return f"settings from {' and '.join(map(_shown, used))}" if used else "no settings file"


def _shown(path: str) -> str:
    relative = os.path.relpath(path)
    return path if relative.startswith(os.pardir) else relative
