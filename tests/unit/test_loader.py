"""Loads an application from "module:attribute", or says why it can't."""

from __future__ import annotations

import functools
import importlib
import itertools
import sys
from wsgiref.validate import validator

import pytest
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from fastapi import FastAPI
from flask import Flask
from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from werkzeug.middleware.proxy_fix import ProxyFix

from esg.errors import AppImportError, BootError
from esg.loader import application_traceback, detect, interface_of, load_application
from esg.settings.build import Raw, build
from esg.settings.schema import Config

NUMBERS = itertools.count()

ASGI = "async def app(scope, receive, send): pass\n"


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module with a unique name; returns the name."""
    monkeypatch.setattr(sys, "path", sys.path[:])
    before = set(sys.modules)

    def write(source):
        name = f"loaded_{next(NUMBERS)}"
        (tmp_path / f"{name}.py").write_text(source)
        return name

    write.folder = str(tmp_path)
    yield write
    for name in set(sys.modules) - before:
        if name.startswith(("loaded_", "package_")):
            del sys.modules[name]
    importlib.invalidate_caches()


def load(module, app, **settings):
    return load_application(Config(app=app, app_dir=module.folder, **settings))


def failure(module, app, **settings):
    with pytest.raises(AppImportError) as caught:
        load(module, app, **settings)
    assert caught.value.exit_code == 4
    return caught.value


# -- applications that are found -------------------------------------------------------


def test_a_named_attribute_is_loaded(module):
    name = module(ASGI + "other = app\n")
    assert load(module, f"{name}:other") is sys.modules[name].other


def test_a_nested_attribute_is_loaded(module):
    name = module("class box:\n    class inner:\n        async def app(s, r, d): pass\n")
    assert load(module, f"{name}:box.inner.app") is sys.modules[name].box.inner.app


@pytest.mark.parametrize("attribute", ["app", "application"])
def test_a_module_alone_means_its_application_or_app(module, attribute):
    name = module(f"async def {attribute}(scope, receive, send): pass\n")
    assert load(module, name) is getattr(sys.modules[name], attribute)


def test_application_is_preferred_to_app(module):
    name = module(ASGI + "async def application(scope, receive, send): pass\n")
    assert load(module, name).__name__ == "application"


def test_a_module_in_a_package_is_loaded(module, tmp_path):
    (tmp_path / "package_a").mkdir()
    (tmp_path / "package_a" / "sub.py").write_text(ASGI)
    assert load(module, "package_a.sub:app").__name__ == "app"


def test_the_current_folder_is_searched_by_default(module, monkeypatch):
    name = module(ASGI)
    monkeypatch.chdir(module.folder)
    assert load_application(Config(app=name)).__name__ == "app"


def test_the_folder_is_put_on_the_path_once(module):
    for _ in range(2):
        load(module, module(ASGI))
    assert sys.path.count(module.folder) == 1


def test_an_instance_with_an_async_call_is_loaded(module):
    name = module("class A:\n    async def __call__(self, s, r, d): pass\napp = A()\n")
    assert load(module, name)


def test_a_factory_is_called(module):
    name = module(ASGI + "def make():\n    return app\n")
    assert load(module, f"{name}:make", factory=True).__name__ == "app"


# -- applications that are refused -----------------------------------------------------


@pytest.mark.parametrize("app", ["no_such_module:app", "no_such_package.sub:app"])
def test_a_missing_module_is_named_with_the_searched_folder(module, app):
    error = failure(module, app)
    assert app.partition(".")[0].partition(":")[0] in str(error)
    assert module.folder in str(error)
    assert error.detail == ""


def test_a_missing_module_in_a_package_is_named(module, tmp_path):
    (tmp_path / "package_b").mkdir()
    (tmp_path / "package_b" / "__init__.py").write_text("")
    assert "'package_b.missing'" in str(failure(module, "package_b.missing:app"))


def test_an_import_that_fails_in_the_module_is_shown(module):
    """This must not be mistaken for a missing application module."""
    error = failure(module, module("import no_such_dependency\n"))
    assert "no_such_dependency" in str(error)
    assert "import no_such_dependency" in error.detail


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise ValueError('broken')", "ValueError: broken"),
        ("1/0", "ZeroDivisionError"),
        ("def (", "SyntaxError"),
        ("import sys; sys.exit(3)", "SystemExit"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("from os import nothing", "ImportError"),
    ],
)
def test_an_exception_in_the_module_is_explained_in_one_line(module, source, reason):
    name = module(source + "\n")
    error = failure(module, name)
    assert name in str(error)
    assert reason in str(error)
    assert reason.partition(":")[0] in error.detail
    assert "\n" not in str(error)


def test_the_traceback_begins_in_the_application(module):
    name = module("def deep():\n    raise ValueError('x')\ndeep()\n")
    detail = failure(module, name).detail
    assert "in deep" in detail
    assert "importlib" not in detail
    assert "loader.py" not in detail


def test_a_missing_attribute_is_named_with_a_suggestion(module):
    error = failure(module, module(ASGI) + ":ap")
    assert "'ap'" in str(error)
    assert "did you mean app" in str(error)


def test_a_module_without_a_default_attribute_is_refused(module):
    assert "neither 'application' nor 'app'" in str(failure(module, module("x = 1\n")))


def test_an_attribute_that_is_not_callable_is_refused(module):
    assert "int" in str(failure(module, module("app = 5\n")))


def test_a_factory_without_its_option_is_refused_with_a_hint(module):
    error = failure(module, module("def app():\n    pass\n"))
    assert "--factory" in str(error)


def test_an_exception_in_a_factory_is_explained(module):
    name = module("def make():\n    raise RuntimeError('no database')\n")
    error = failure(module, f"{name}:make", factory=True)
    assert "no database" in str(error)
    assert "in make" in error.detail


def test_a_factory_that_is_not_callable_is_refused(module):
    assert "--factory" in str(failure(module, module("app = 5\n"), factory=True))


def test_a_factory_that_makes_no_application_is_refused(module):
    name = module("def make():\n    return 5\n")
    assert "int" in str(failure(module, f"{name}:make", factory=True))


# -- which interface -------------------------------------------------------------------


async def asgi3(scope, receive, send):
    pass


async def with_a_tag(tag, scope, receive, send):
    pass


def passing_on(scope, receive, send):
    return asgi3(scope, receive, send)


def asgi2(scope):
    pass


def wsgi(environ, start_response):
    return []


def with_a_default(environ, start_response, options=None):
    return []


def anything(*arguments):
    pass


def decorated(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


class ASGI3:
    async def __call__(self, scope, receive, send):
        pass

    async def method(self, scope, receive, send):
        pass


class Awaitable:
    def __init__(self, scope, receive, send):
        pass

    def __await__(self):
        yield


class ASGI2:
    def __init__(self, scope):
        pass

    async def __call__(self, receive, send):
        pass


class ASGI2Instance:
    def __call__(self, scope):
        pass


class WSGI:
    def __call__(self, environ, start_response):
        return []

    def method(self, environ, start_response):
        return []

    @staticmethod
    def static(environ, start_response):
        return []


class IterableWSGI:
    def __init__(self, environ, start_response):
        pass

    def __iter__(self):
        return iter(())


SPEAKERS = [
    pytest.param("asgi3", asgi3, id="coroutine function"),
    pytest.param("asgi3", decorated(asgi3), id="decorated coroutine function"),
    pytest.param("asgi3", functools.partial(with_a_tag, "tag"), id="partial"),
    pytest.param("asgi3", functools.partial(ASGI3()), id="partial of an instance"),
    pytest.param("asgi3", passing_on, id="function that passes a coroutine on"),
    pytest.param("asgi3", ASGI3(), id="instance"),
    pytest.param("asgi3", ASGI3().__call__, id="call of an instance"),
    pytest.param("asgi3", ASGI3().method, id="async method"),
    pytest.param("asgi3", Awaitable, id="class of awaitables"),
    pytest.param("asgi3", FastAPI(), id="FastAPI"),
    pytest.param("asgi3", Starlette(), id="Starlette"),
    pytest.param("asgi3", CORSMiddleware(FastAPI()), id="Starlette middleware"),
    pytest.param("asgi3", ASGIHandler.__new__(ASGIHandler), id="Django, ASGI"),
    pytest.param("asgi2", asgi2, id="function of a scope"),
    pytest.param("asgi2", lambda scope, receive=None: None, id="function of a scope and more"),
    pytest.param("asgi2", ASGI2, id="class with an async call"),
    pytest.param("asgi2", ASGI2Instance(), id="instance that is called with a scope"),
    pytest.param("wsgi", wsgi, id="function"),
    pytest.param("wsgi", lambda environ, start_response: [], id="lambda"),
    pytest.param("wsgi", with_a_default, id="function with an option"),
    pytest.param("wsgi", lambda environ, start_response=None: [], id="default start_response"),
    pytest.param("wsgi", decorated(wsgi), id="decorated function"),
    pytest.param("wsgi", functools.partial(with_a_default, options=1), id="WSGI partial"),
    pytest.param("wsgi", WSGI(), id="WSGI instance"),
    pytest.param("wsgi", WSGI().method, id="WSGI method"),
    pytest.param("wsgi", WSGI.static, id="WSGI static method"),
    pytest.param("wsgi", IterableWSGI, id="class of iterables"),
    pytest.param("wsgi", Flask("test"), id="Flask"),
    pytest.param("wsgi", Flask("test").wsgi_app, id="Flask's wsgi_app"),
    pytest.param("wsgi", ProxyFix(Flask("test")), id="Werkzeug middleware"),
    pytest.param("wsgi", WSGIHandler.__new__(WSGIHandler), id="Django, WSGI"),
]


@pytest.mark.parametrize(("interface", "app"), SPEAKERS)
def test_an_interface_is_recognised_by_the_applications_signature(interface, app):
    assert detect(app) == interface
    assert interface_of(app, Config(app="m:app")) == interface


@pytest.mark.parametrize(("interface", "app"), SPEAKERS)
def test_a_named_interface_may_be_the_detected_one(interface, app):
    assert interface_of(app, Config(app="m:app", interface=interface)) == interface


@pytest.mark.parametrize(
    ("app", "hint"),
    [
        (lambda: None, "--factory"),
        (ASGI3, "--factory"),
        (Flask, "name an instance"),
        (WSGI, "--factory"),
        (anything, "--interface asgi3, asgi2 or wsgi"),
        (validator(wsgi), "--interface asgi3, asgi2 or wsgi"),
        (print, "--interface asgi3, asgi2 or wsgi"),
        (lambda a, b, c, d: None, "other parameters"),
        (functools.partial(asgi3, None, None, None), "without parameters"),
    ],
)
def test_an_unclear_interface_is_refused_with_a_hint(app, hint):
    assert detect(app) == ""
    with pytest.raises(AppImportError, match=hint) as caught:
        interface_of(app, Config(app="m:app"))
    assert str(caught.value).startswith("'m:app' is ")


def test_an_async_function_without_parameters_is_not_a_factory(module):
    error = failure(module, module("async def app():\n    pass\n"))
    assert "--factory" not in str(error)
    assert "async def app(scope, receive, send)" in str(error)


@pytest.mark.parametrize("interface", ["asgi3", "asgi2", "wsgi"])
@pytest.mark.parametrize("app", [anything, validator(wsgi)])
def test_a_named_interface_that_may_work_is_used(interface, app):
    assert interface_of(app, Config(app="m:app", interface=interface)) == interface


@pytest.mark.parametrize(("looks", "app"), [("asgi3", asgi3), ("asgi2", asgi2), ("wsgi", wsgi)])
@pytest.mark.parametrize("named", ["asgi3", "asgi2", "wsgi"])
def test_a_named_interface_that_cannot_work_is_refused(looks, app, named):
    if named == looks:
        return
    config = Config(app="m:app", interface=named, origins={"interface": "--interface"})
    with pytest.raises(AppImportError, match=f"use --interface {looks}"):
        interface_of(app, config)


def test_the_interface_of_a_factory_is_that_of_its_application(module):
    source = "def make():\n    def app(environ, start_response): pass\n    return app\n"
    app = load(module, f"{module(source)}:make", factory=True)
    assert detect(app) == "wsgi"
    assert "other parameters" in str(
        failure(
            module, module("def make():\n    return lambda a, b, c, d: 0\n") + ":make", factory=True
        )
    )


def test_the_option_wsgi_means_interface_wsgi():
    raw = {"app": Raw("m:app", "APP"), "wsgi": Raw(True, "--wsgi")}
    assert interface_of(anything, build(raw)) == "wsgi"
    with pytest.raises(AppImportError, match=r"\(--wsgi\); it looks like async def app"):
        interface_of(asgi3, build(raw))


def test_a_wsgi_application_has_no_lifespan(module):
    name = module("def app(environ, start_response): pass\n")
    assert load(module, name)
    with pytest.raises(BootError, match="no lifespan; leave out --lifespan") as caught:
        load(module, name, lifespan="on", origins={"lifespan": "--lifespan"})
    assert caught.value.exit_code == 3


def test_an_error_without_frames_has_a_traceback_of_one_line():
    assert application_traceback(ValueError("x")) == "ValueError: x"
