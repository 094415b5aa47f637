"""Turns "module:attribute" into an application, and says plainly why it can't."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from types import ModuleType, TracebackType
from typing import Any

from esg.config import Config, nearest
from esg.errors import AppImportError

DEFAULT_ATTRIBUTES = ("application", "app")
"""Looked for in a module that was given without an attribute; the first as gunicorn does."""

_OWN_FRAMES = (os.path.dirname(os.path.abspath(__file__)) + os.sep, "<frozen importlib")


def load_application(config: Config) -> Any:
    """Import the application that `config.app` names, and call it if it is a factory.

    The variables of `--env-file` are put into the environment first. Raises AppImportError; if
    the application's own code failed, `detail` is its traceback.
    """
    os.environ.update(config.variables)
    found = config.target if config.target is not None else _found(config)
    if config.factory:
        found = _made(found, config.app)
    _check_interface(found, config)
    return found


def _found(config: Config) -> Any:
    try:
        folder = os.path.abspath(config.app_dir)
    except OSError as error:
        raise AppImportError(f"the working directory can't be used: {error.strerror}") from None
    if folder not in sys.path:
        sys.path.insert(0, folder)
    importlib.invalidate_caches()
    module_name, _, attribute = config.app.partition(":")
    return _attribute(_imported(module_name, folder), attribute)


def _imported(name: str, folder: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name == missing or name.startswith(missing + "."):
            raise AppImportError(
                f"there is no module {missing!r} in {folder} or on the Python path; "
                "give the folder it is in with --app-dir"
            ) from None
        raise _application_error(f"importing {name!r} failed", error) from None
    except BaseException as error:  # noqa: BLE001 - a module may raise anything, SystemExit too
        raise _application_error(f"importing {name!r} failed", error) from None


def _attribute(module: ModuleType, path: str) -> Any:
    if not path:
        for name in DEFAULT_ATTRIBUTES:
            if hasattr(module, name):
                return getattr(module, name)
        raise AppImportError(
            f"module {module.__name__!r} has neither 'application' nor 'app'; "
            f"name the attribute, as in {module.__name__}:ATTRIBUTE"
        )
    found: Any = module
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            hint = nearest(name, [other for other in dir(found) if not other.startswith("_")])
            raise AppImportError(
                f"module {module.__name__!r} has no attribute {path!r}{hint}"
            ) from None
    return found


def _made(factory: Any, name: str) -> Any:
    if not callable(factory):
        raise AppImportError(f"{name!r} can't be called, so it is no factory (--factory)")
    try:
        return factory()
    except BaseException as error:  # noqa: BLE001 - application code may raise anything
        raise _application_error(f"the factory {name!r} failed", error) from None


def _check_interface(app: Any, config: Config) -> None:
    if not callable(app):
        raise AppImportError(
            f"{config.app!r} is {_a(type(app).__name__)}, which can't be called; "
            "an ASGI application is needed"
        )
    if config.interface == "auto" and not speaks_asgi3(app):
        hint = (
            "add --factory if it is a function that makes the application"
            if inspect.isfunction(app) and not inspect.signature(app).parameters
            else "this version serves ASGI 3 applications: async def app(scope, receive, send)"
        )
        raise AppImportError(f"{config.app!r} is not an ASGI 3 application; {hint}")


def speaks_asgi3(app: Callable[..., Any]) -> bool:
    """Whether calling `app` gives a coroutine, as ASGI 3 wants (asgiref's test is the same)."""
    if inspect.isclass(app):
        return hasattr(app, "__await__")
    if inspect.iscoroutinefunction(app):
        return True
    call = getattr(app, "__call__", None)  # noqa: B004 - the method itself is looked at
    return inspect.iscoroutinefunction(call)


def _a(noun: str) -> str:
    return f"an {noun}" if noun[:1].lower() in "aeiou" else f"a {noun}"


def _application_error(what: str, error: BaseException) -> AppImportError:
    reason = traceback.format_exception_only(error)[-1].strip()
    return AppImportError(f"{what}: {reason}", application_traceback(error))


def application_traceback(error: BaseException) -> str:
    """The traceback of `error` from the application's first frame on, without ESG's own."""
    frames = error.__traceback__
    while frames is not None and _is_own(frames):
        frames = frames.tb_next
    return "".join(traceback.format_exception(type(error), error, frames)).rstrip()


def _is_own(frame: TracebackType) -> bool:
    filename = frame.tb_frame.f_code.co_filename
    importlib_file = importlib.__file__ or ""
    return filename.startswith(_OWN_FRAMES) or filename == importlib_file
