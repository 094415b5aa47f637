"""The folders that ESG works in, whose paths may contain symbolic links.

Deployments switch a link (`current`) from one release to the next. The kernel only knows which
folder a process is in, not by which path it got there. So ESG remembers the path, and every
generation changes to it again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Iterator

from esg.errors import ConfigError
from esg.settings.schema import Config


def current() -> str:
    """The current folder of this process, by the path that the operator used if that is known.

    A shell keeps that path in PWD (POSIX, "Environment Variables"). It is used if it names the
    folder that this process is in. Raises ConfigError if the folder was deleted.
    """
    named = os.environ.get("PWD", "")
    with contextlib.suppress(OSError):
        if os.path.isabs(named) and os.path.samefile(named, "."):
            return named
    try:
        return os.getcwd()
    except FileNotFoundError:
        raise ConfigError(
            "the working directory was deleted; change to a folder that exists, and start again"
        ) from None
    except OSError as error:
        raise ConfigError(f"the working directory can't be used: {error.strerror}") from None


def enter(config: Config) -> Config:
    """Change to the folder of a new generation; return the settings with its real path.

    Raises ConfigError if the folder can't be entered. If no setting names the folder and the
    application isn't in it, it may be missing.
    """
    try:
        os.chdir(config.folder or ".")
        real = os.getcwd()
    except OSError as error:
        gone = isinstance(error, FileNotFoundError) and not config.chdir
        if not (gone and os.path.isabs(config.app_dir)):
            raise ConfigError(_refusal(config, error)) from None
        real = ""
    app_link = os.path.join(config.folder or real, config.app_dir) if config.app_dir else ""
    return dataclasses.replace(config, real_folder=real, app_link=app_link)


def _refusal(config: Config, error: OSError) -> str:
    reason = error.strerror
    if config.chdir:
        return f"{config.origin('chdir')}: can't change to {config.chdir!r}: {reason}"
    return (
        f"the folder {config.folder or '.'!r}, which ESG was started in, can't be entered: "
        f"{reason}; start ESG again in a folder that stays, or name one with --chdir, which may be "
        "a symbolic link"
    )


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """A context that returns to the current folder at its end, even if the folder was deleted.

    Raises OSError if there is no file descriptor left for it.
    """
    fd = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield
    finally:
        os.fchdir(fd)
        os.close(fd)


def enter_serving(config: Config) -> None:
    """In the arbiter: change to the folder of the generation that now serves, if it exists."""
    with contextlib.suppress(OSError):
        os.chdir(config.real_folder or ".")


def enter_in_worker(config: Config, start: str = "") -> tuple[Config, list[str]]:
    """In a worker: change to its generation's folder; return the settings to use, and warnings.

    If the release was deleted meanwhile, the worker follows the original path again: the code of
    a newer release is better than no worker. `start` is the folder of the first generation, which
    Python may have put on its module search path (as `python -m` does).
    """
    warnings = []
    if config.real_folder:
        found = _first_entered(config.real_folder, config.folder)
        if not found:
            warnings.append(f"the folder {config.real_folder} is gone")
        elif found != config.real_folder:
            warnings.append(_moved(config.real_folder, config.folder, found))
        if found and start and sys.path[:1] == [start]:
            sys.path[0] = found
    if config.app_dir and not os.path.isdir(config.app_dir) and os.path.isdir(config.app_link):
        found = os.path.realpath(config.app_link)
        warnings.append(_moved(config.app_dir, config.app_link, found))
        config = dataclasses.replace(config, app_dir=found)
    return config, warnings


def _first_entered(*folders: str) -> str:
    """The real path of the first of these folders that can be entered; "" if none can."""
    for folder in folders:
        with contextlib.suppress(OSError):
            os.chdir(folder)
            return os.getcwd()
    return ""


def _moved(before: str, path: str, now: str) -> str:
    return f"the folder {before} is gone; this worker uses {now}, where {path} leads"
