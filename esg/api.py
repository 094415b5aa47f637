"""Starting ESG, for the command and for Python programs: `serve`, and the public `run`, `Config`.

`Server`, for those who own the event loop, is in `esg.server.embedded`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from esg.errors import ConfigError
from esg.log.setup import captured_warnings
from esg.server.prepare import prepare
from esg.server.worker import run_worker
from esg.settings import folders, secret_variables, sources
from esg.settings import schema as internal
from esg.settings.aliases import PLURALS
from esg.settings.build import Raw, build
from esg.settings.kinds import LogDefinition
from esg.settings.schema import setting_named
from esg.supervisor.arbiter import Arbiter
from esg.supervisor.signals import HANDLED
from esg.supervisor.watcher.watch import check


def serve(read_config: Callable[[], internal.Config]) -> int:
    """Read the settings and be the arbiter until told to stop; returns the exit code.

    `read_config` is called again at each reload. Raises ConfigError, ListenError.
    """
    config = _ready(read_config())
    with captured_warnings():
        return Arbiter(config, run_worker, lambda: _ready(read_config())).run()


def _ready(config: internal.Config) -> internal.Config:
    """Check the settings against the installed packages and the disk; return them completed.

    Changes this process's folder to the one in the settings. Raises ConfigError.
    """
    config = enter_folder(config)
    check(config)
    return prepare(config)


def enter_folder(config: internal.Config) -> internal.Config:
    """Change to the `--chdir` folder; return the settings with its path. Raises ConfigError."""
    return folders.enter(config)


def run(app: Any, *, config: str | None = None, **settings: Any) -> None:
    """Serve `app` with an arbiter and its workers until told to stop, as the `esg` command does.

    `app` is `MODULE:ATTRIBUTE` or the application itself; workers get the object by forking, and a
    reload goes on with the same one. `settings` are named as in docs/settings.md, or as the
    options and keywords of uvicorn and gunicorn. None is the same as leaving a setting out, except
    for a few that give it another meaning (docs/api.md). They override the environment, which
    overrides the file: `config`, or else `esg.toml` or `pyproject.toml` in the current folder.

    Returns when the service has been stopped in an orderly way. Raises ConfigError or ListenError
    if it can't be started with these settings, RuntimeError outside the main thread or in an event
    loop, and SystemExit with the exit code of the `esg` command if it fails later
    (docs/signals.md).
    """
    _check_place()
    factory = _ssl_context_factory(settings)
    given = _given(app, settings)
    folder = Path(folders.current())
    target = None if isinstance(app, str) else app
    before = {signum: signal.getsignal(signum) for signum in HANDLED}
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    hidden = secret_variables.take()
    try:
        code = serve(
            lambda: sources.load(
                given,
                {**os.environ, **hidden},
                file=config,
                folder=folder,
                target=target,
                ssl_context_factory=factory,
            )
        )
    finally:
        os.environ.update(hidden)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for signum, handler in before.items():
            if handler is not None:  # one that wasn't set from Python can't be set again
                signal.signal(signum, handler)
    if code:
        raise SystemExit(code)


def _check_place() -> None:
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("esg.run() needs the main thread; elsewhere use esg.Server(...).run()")
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError("esg.run() can't run in an event loop; await esg.Server(...).serve()")


class Config(internal.Config):
    """Settings for `esg.Server`, checked: the application, and what was given by keyword.

    Neither files nor the environment are looked at. Raises ConfigError.
    """

    def __init__(self, app: Any, **settings: Any) -> None:
        target = None if isinstance(app, str) else app
        factory = _ssl_context_factory(settings)
        raw = _given(app, settings)
        variables = sources.from_env_file(raw.get("env_file"), Path())
        variables = {name: text for name, text in variables.items() if name not in os.environ}
        for name in secret_variables.NAMES:
            variables.pop(name, None)
        built = build(raw, variables=variables, target=target, ssl_context_factory=factory)
        super().__init__(**vars(built))


def _ssl_context_factory(settings: Mapping[str, Any]) -> Any:
    """The function given as that keyword, or None. Raises ConfigError if it isn't callable."""
    factory = settings.get("ssl_context_factory")
    if factory is not None and not callable(factory):
        raise ConfigError(
            "argument ssl_context_factory: expected a function of a Config and of a function that "
            f"makes the usual context, not {factory!r}"
        )
    return factory


def _given(app: Any, settings: Mapping[str, Any]) -> dict[str, Raw]:
    """Keywords as a source of settings. Raises ConfigError for one that isn't known."""
    name = app if isinstance(app, str) else _name_of(app)
    given = {"app": Raw(name, "argument app")}
    for keyword, value in settings.items():
        if keyword == "ssl_context_factory":
            continue
        if keyword in REFUSED:
            if value is None:
                continue
            raise ConfigError(f"argument {keyword}: {REFUSED[keyword]}")
        declared = setting_named(PLURALS.get(keyword, keyword), "arguments")
        if declared.name in given:
            raise ConfigError(
                f"{given[declared.name].origin} and {keyword} are the same; give one of them"
            )
        if value is None:
            value = NONE_MEANS.get(declared.name)
        if value is not None:
            given[declared.name] = Raw(_text_of(value), f"argument {keyword}")
    return given


REFUSED: Mapping[str, str] = {
    "callback_notify": "ESG calls no function of the application's from time to time; "
    "start a task in its lifespan",
}
"""Keywords of uvicorn that aren't options, and why they are refused; None is accepted."""

NONE_MEANS: Mapping[str, object] = {
    "log_config": LogDefinition(None),
    "ws_ping_interval": 0,
    "ws_ping_timeout": 0,
}
"""The values that None stands for in uvicorn, for keywords where it isn't the default."""


def _text_of(value: Any) -> Any:
    """Convert paths to text, also those in a list; leave anything else as it is."""
    if isinstance(value, list | tuple):
        return [_text_of(item) for item in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _name_of(app: Any) -> str:
    """What process titles and the log call an application that was given as an object."""
    named = app if hasattr(app, "__qualname__") else type(app)
    words = f"{named.__module__}:{named.__qualname__}".replace("<locals>.", "")
    return words.replace("<lambda>", "app")
