"""Starting ESG with an arbiter: `serve` for the command, and the public `run` for Python programs.

The public `Config` is in `esg.keywords`. `Server`, which runs on a program's own event loop, is in
`esg.server.embedded`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from esg import keywords
from esg.log.setup import captured_warnings
from esg.payload import Settings
from esg.server.prepare import prepare
from esg.server.worker import run_worker
from esg.settings import folders, secret_variables, sources
from esg.settings.objects import NO_OBJECTS, Objects
from esg.settings.schema import Config
from esg.supervisor.arbiter import Arbiter
from esg.supervisor.signals import HANDLED
from esg.supervisor.watcher.watch import check


def serve(read_config: Callable[[], Config], objects: Objects = NO_OBJECTS) -> int:
    """Read the settings and run the arbiter until it is told to stop; returns the exit code.

    `read_config` is called again at each reload; `objects` come from a Python program.
    Raises ConfigError or ListenError.
    """

    def read() -> Settings:
        return _ready(read_config(), objects)

    settings = read()
    with captured_warnings(), _frozen_heap():
        return Arbiter(settings, run_worker, read).run()


@contextlib.contextmanager
def _frozen_heap() -> Iterator[None]:
    """Exempt all objects from garbage collection, which would write to memory that forks share.

    https://docs.python.org/3/library/gc.html#gc.freeze
    """
    if gc.get_freeze_count():
        yield  # the program has frozen its heap itself
        return
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _ready(config: Config, objects: Objects) -> Settings:
    """Check the settings against the installed packages and the disk; return them completed.

    Changes this process's folder to the one in the settings. Raises ConfigError.
    """
    config = enter_folder(config)
    check(config)
    return prepare(config, objects)


def enter_folder(config: Config) -> Config:
    """Change to the `--chdir` folder; return the settings with its path. Raises ConfigError."""
    return folders.enter(config)


def run(app: Any, *, config: str | None = None, **settings: Any) -> None:
    """Serve `app` with an arbiter and its workers until told to stop, as the `esg` command does.

    `app` is `MODULE:ATTRIBUTE` or the application itself; workers get the object by forking, and a
    reload keeps the same object. `settings` have the names in docs/settings.md, or those of the
    options and keywords of uvicorn and gunicorn. None is the same as leaving a setting out, except
    for a few that give it another meaning (docs/api.md). They override the environment, which
    overrides the file: `config`, or else `esg.toml` or `pyproject.toml` in the current folder.

    Returns when the service has been stopped in an orderly way. Raises ConfigError or ListenError
    if it can't be started with these settings, RuntimeError outside the main thread or in an event
    loop, and SystemExit with the exit code of the `esg` command if it fails later
    (docs/signals.md).
    """
    _check_place()
    given, objects = keywords.read(app, settings)
    folder = Path(folders.current())
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
                objects=objects,
            ),
            objects,
        )
    finally:
        os.environ.update(hidden)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for signum, handler in before.items():
            if handler is not None:  # a handler that wasn't set from Python can't be set again
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
