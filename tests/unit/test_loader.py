"""From "module:attribute" to an application, or to a reason why not."""

from __future__ import annotations

import importlib
import itertools
import sys

import pytest

from esg.config import Config
from esg.errors import AppImportError
from esg.loader import application_traceback, load_application, speaks_asgi3

NUMBERS = itertools.count()

ASGI = "async def app(scope, receive, send): pass\n"


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module under a name that no other test has; gives the name."""
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


# -- what is found ---------------------------------------------------------------------


def test_an_attribute(module):
    name = module(ASGI + "other = app\n")
    assert load(module, f"{name}:other") is sys.modules[name].other


def test_an_attribute_of_an_attribute(module):
    name = module("class box:\n    class inner:\n        async def app(s, r, d): pass\n")
    assert load(module, f"{name}:box.inner.app") is sys.modules[name].box.inner.app


@pytest.mark.parametrize("attribute", ["app", "application"])
def test_a_module_alone_has_an_attribute_by_default(module, attribute):
    name = module(f"async def {attribute}(scope, receive, send): pass\n")
    assert load(module, name) is getattr(sys.modules[name], attribute)


def test_application_is_preferred_to_app(module):
    name = module(ASGI + "async def application(scope, receive, send): pass\n")
    assert load(module, name).__name__ == "application"


def test_a_module_in_a_package(module, tmp_path):
    (tmp_path / "package_a").mkdir()
    (tmp_path / "package_a" / "sub.py").write_text(ASGI)
    assert load(module, "package_a.sub:app").__name__ == "app"


def test_the_current_folder_is_looked_in_by_default(module, monkeypatch):
    name = module(ASGI)
    monkeypatch.chdir(module.folder)
    assert load_application(Config(app=name)).__name__ == "app"


def test_the_folder_is_put_on_the_path_once(module):
    for _ in range(2):
        load(module, module(ASGI))
    assert sys.path.count(module.folder) == 1


def test_an_instance_with_an_async_call(module):
    name = module("class A:\n    async def __call__(self, s, r, d): pass\napp = A()\n")
    assert load(module, name)


def test_a_factory(module):
    name = module(ASGI + "def make():\n    return app\n")
    assert load(module, f"{name}:make", factory=True).__name__ == "app"


# -- what isn't ------------------------------------------------------------------------


@pytest.mark.parametrize("app", ["no_such_module:app", "no_such_package.sub:app"])
def test_no_such_module(module, app):
    error = failure(module, app)
    assert app.partition(".")[0].partition(":")[0] in str(error)
    assert module.folder in str(error)
    assert error.detail == ""


def test_no_such_module_in_a_package(module, tmp_path):
    (tmp_path / "package_b").mkdir()
    (tmp_path / "package_b" / "__init__.py").write_text("")
    assert "'package_b.missing'" in str(failure(module, "package_b.missing:app"))


def test_a_module_whose_own_import_fails(module):
    """Which must not be taken for a missing application module."""
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
def test_a_module_that_fails(module, source, reason):
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


def test_no_such_attribute(module):
    error = failure(module, module(ASGI) + ":ap")
    assert "'ap'" in str(error)
    assert "did you mean app" in str(error)


def test_no_attribute_to_guess(module):
    assert "neither 'application' nor 'app'" in str(failure(module, module("x = 1\n")))


def test_something_that_cannot_be_called(module):
    assert "int" in str(failure(module, module("app = 5\n")))


def test_a_factory_that_was_not_called_one(module):
    error = failure(module, module("def app():\n    pass\n"))
    assert "--factory" in str(error)


def test_a_wsgi_application(module):
    error = failure(module, module("def app(environ, start_response):\n    pass\n"))
    assert "ASGI 3" in str(error)


def test_a_factory_that_fails(module):
    name = module("def make():\n    raise RuntimeError('no database')\n")
    error = failure(module, f"{name}:make", factory=True)
    assert "no database" in str(error)
    assert "in make" in error.detail


def test_a_factory_that_is_none(module):
    assert "--factory" in str(failure(module, module("app = 5\n"), factory=True))


def test_a_factory_that_makes_no_application(module):
    name = module("def make():\n    return 5\n")
    assert "int" in str(failure(module, f"{name}:make", factory=True))


# -- which interface -------------------------------------------------------------------


async def coroutine(scope, receive, send):
    pass


def plain(scope, receive, send):
    return coroutine(scope, receive, send)


class Instance:
    async def __call__(self, scope, receive, send):
        pass


class Double:
    def __init__(self, scope):
        pass

    async def __call__(self, receive, send):
        pass


@pytest.mark.parametrize("app", [coroutine, Instance(), Instance().__call__])
def test_asgi3(app):
    assert speaks_asgi3(app)


@pytest.mark.parametrize("app", [plain, Double, Instance, lambda environ, start: []])
def test_not_asgi3(app):
    assert not speaks_asgi3(app)


def test_an_interface_that_is_named_is_believed(module):
    name = module(
        ASGI + "def wrapped(scope, receive, send):\n    return app(scope, receive, send)\n"
    )
    assert load(module, f"{name}:wrapped", interface="asgi3").__name__ == "wrapped"


def test_application_traceback_of_an_error_without_frames():
    assert application_traceback(ValueError("x")) == "ValueError: x"
