"""Loads the application from "module:attribute", and finds out which interface it has."""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from types import ModuleType, TracebackType
from typing import Any

from esg.errors import AppImportError, BootError
from esg.settings.schema import Config, nearest

DEFAULT_ATTRIBUTES = ("application", "app")
"""Names to look for in a module without an attribute; gunicorn uses the first one."""

_OWN_FRAMES = (os.path.dirname(os.path.abspath(__file__)) + os.sep, "<frozen importlib")


def load_application(config: Config, given: Any = None) -> Any:
    """Import the application that `config.app` names, and call it if it is a factory.

    `given` is the application or the factory itself, if a Python program gave it as an object.

    The variables of `--env-file` are put into the environment first. Raises AppImportError, and
    what `interface_of` raises for it; if the application's own code failed, `detail` is its
    traceback.
    """
    os.environ.update(config.variables)
    found = given if config.app_is_object else _found(config)
    if config.factory:
        found = _made(found, config.app)
    interface_of(found, config)
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


def interface_of(app: Any, config: Config) -> str:
    """Which interface to call `app` with: `asgi3`, `asgi2` or `wsgi`.

    An interface that the operator has named is used unless a call in that form can't work. Raises
    AppImportError if it can't, or if the interface can't be found out from the signature;
    BootError if `--lifespan on` is set for a WSGI application.
    """
    if not callable(app):
        raise AppImportError(
            f"{config.app!r} is {_a(type(app).__name__)}, which can't be called; "
            "an ASGI or WSGI application is needed"
        )
    interface = config.interface
    if interface == "auto":
        interface = detect(app)
        if not interface:
            raise AppImportError(f"{config.app!r} {_misfit(app)}")
    elif not _could_be(app, interface):
        raise AppImportError(_contradiction(app, config))
    if interface == "wsgi" and config.lifespan == "on":
        raise BootError(
            f"{config.app!r} is a WSGI application, which has no lifespan; "
            f"leave out {config.origin('lifespan')}"
        )
    return interface


ARGUMENTS = {"asgi3": 3, "asgi2": 1, "wsgi": 2}
"""The number of arguments of an application's first call: scope, receive, send; scope; or
environ, start_response (ASGI specification, "Applications" and "Legacy Applications"; PEP 3333)."""

CALLS = {
    "asgi3": "async def app(scope, receive, send)",
    "asgi2": "app(scope)(receive, send)",
    "wsgi": "app(environ, start_response)",
}


def detect(app: Callable[..., Any]) -> str:
    """The interface of a callable, from its signature; "" if unclear."""
    if inspect.isclass(app):
        return _class_interface(app)
    if _is_async(app):
        return "asgi3" if _takes(app, 3) else ""
    taken = {count for count in (1, 2, 3) if _takes(app, count)}
    if len(taken) == 3:
        return ""  # *args, or a callable without a known signature
    if 2 in taken:
        return "asgi2" if 1 in taken and _first_parameter(app) == "scope" else "wsgi"
    if 1 in taken:
        return "asgi2"
    # A plain function of three arguments returns another function's coroutine.
    return "asgi3" if 3 in taken else ""


def _class_interface(app: type) -> str:
    """A class is called to make an instance, so its constructor is examined."""
    if hasattr(app, "__await__"):
        return "asgi3"
    if _takes(app, 1) and not _takes(app, 0) and _has_async_call(app):
        return "asgi2"
    return "wsgi" if _takes(app, 2) and hasattr(app, "__iter__") else ""


def _could_be(app: Any, interface: str) -> bool:
    """Whether a call in the form of this interface may work, judging by the signature."""
    if _is_async(app) and interface != "asgi3":
        return False
    return _takes(app, ARGUMENTS[interface])


def _is_async(app: Any) -> bool:
    """Whether calling `app` gives a coroutine; looks through decorators and partials."""
    while isinstance(app, functools.partial):
        app = app.func
    if inspect.iscoroutinefunction(app) or inspect.isclass(app):
        return inspect.iscoroutinefunction(app)
    if hasattr(app, "__wrapped__") and inspect.isfunction(app):
        return _is_async(inspect.unwrap(app))
    return _has_async_call(app)


def _has_async_call(app: Any) -> bool:
    call = getattr(app, "__call__", None)  # noqa: B004 - the method itself is looked at
    return inspect.iscoroutinefunction(call)


def _takes(app: Any, count: int) -> bool:
    """Whether `app` can be called with this many positional arguments; True if it isn't known."""
    try:
        signature = inspect.signature(app)
    except (TypeError, ValueError):
        return True  # not written in Python
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True


def _first_parameter(app: Any) -> str:
    return next(iter(inspect.signature(app).parameters), "")


def _misfit(app: Any) -> str:
    """The error for a callable that fits no interface, with advice."""
    what = _described(app)
    if not inspect.isclass(app) and _takes(app, 0) and not _takes(app, 1):
        if _is_async(app):
            return f"is {what} without parameters; an application is {CALLS['asgi3']}"
        return f"is {what} without parameters; add --factory if it makes the application"
    if inspect.isclass(app):
        if _takes(app, 0):
            return f"is {what}; add --factory to serve an instance of it, or name an instance"
        return f"is {what}; name an instance of it, or say with --interface how to call it"
    if all(_takes(app, count) for count in ARGUMENTS.values()):
        return f"is {what} that takes any arguments; say with --interface asgi3, asgi2 or wsgi"
    calls = " or ".join(CALLS.values())
    return f"is {what} with other parameters than an application has: {calls}"


def _contradiction(app: Any, config: Config) -> str:
    looks = detect(app)
    call, origin = CALLS[config.interface], config.origin("interface")
    wanted = f"{config.app!r} can't be called as {call} ({origin})"
    if looks:
        return f"{wanted}; it looks like {CALLS[looks]}: use --interface {looks}"
    return f"{wanted}; it is {_described(app)}"


def _described(app: Any) -> str:
    if inspect.isclass(app):
        return f"the class {app.__name__}"
    if inspect.isroutine(app):
        return "an async function" if _is_async(app) else "a function"
    return _a(type(app).__name__)


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
