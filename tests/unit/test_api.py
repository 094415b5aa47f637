"""`esg.run`: which source wins, objects next to the settings, and where it can't be called."""

from __future__ import annotations

import asyncio
import functools
import gc
import io
import pathlib
import pickle
import signal
import ssl
import threading

import pytest

import esg
from esg import api
from esg.errors import ConfigError, ListenError
from esg.settings import kinds
from esg.settings.objects import put_back
from esg.settings.schema import SETTINGS
from esg.supervisor.signals import HANDLED


async def application(scope, receive, send):
    """Never called."""


class Instance:
    async def __call__(self, scope, receive, send):
        """Never called."""


class Spy:
    """Replaces the arbiter."""

    made: Spy | None = None
    code = 0
    frozen = 0

    def __init__(self, settings, payload, read_settings):
        self.config, self.objects = settings.config, settings.objects
        self.read_settings = read_settings
        Spy.made = self

    def run(self):
        for signum in HANDLED:
            signal.signal(signum, signal.SIG_IGN)
        Spy.frozen = gc.get_freeze_count()
        return Spy.code


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """In an empty folder and environment, with a spy for the arbiter."""
    for declared in SETTINGS.values():
        for variable in declared.variables:
            monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(api, "Arbiter", Spy)
    monkeypatch.setattr(Spy, "code", 0)
    Spy.made = None


def run(*arguments, **settings):
    esg.run(*arguments, **settings)
    return Spy.made.config


# -- run -------------------------------------------------------------------------------


def test_the_heap_is_frozen_while_the_arbiter_may_fork():
    gc.unfreeze()  # the test run freezes its own
    try:
        run(application)
        assert Spy.frozen > 1000
        assert gc.get_freeze_count() == 0
    finally:
        gc.freeze()


def test_a_heap_that_the_program_has_frozen_stays_frozen():
    gc.freeze()
    before = gc.get_freeze_count()
    run(application)
    assert gc.get_freeze_count() == before


def test_the_application_may_be_a_name_or_an_object():
    assert (run("example:app").app, Spy.made.objects.app) == ("example:app", None)
    assert not Spy.made.config.app_is_object
    assert run(application).app_is_object
    assert Spy.made.objects.app is application


@pytest.mark.parametrize(
    ("app", "name"),
    [
        (application, f"{__name__}:application"),
        (Instance(), f"{__name__}:Instance"),
        (lambda scope: None, f"{__name__}:app"),
        (functools.partial(application), "functools:partial"),
    ],
)
def test_the_title_names_an_application_object(app, name):
    assert run(app).title == name


def test_the_name_of_an_object_is_not_checked():
    odd = type("1 class", (Instance,), {"__module__": "my-app"})
    assert run(odd()).title == "my-app:1 class"


def test_a_password_is_not_in_a_repr():
    assert "hunter2" not in repr(esg.Config(application, ssl_keyfile_password="hunter2"))


def test_a_class_in_a_function_has_a_name_too():
    class Inner:
        pass

    name = "test_a_class_in_a_function_has_a_name_too.Inner"
    assert run(Inner()).title == f"{__name__}:{name}"


@pytest.mark.parametrize(
    ("settings", "name", "value"),
    [
        ({"port": 9000}, "port", 9000),
        ({"workers": "auto"}, "workers", kinds.WORKERS.parse("auto")),
        ({"bind": ["a:1", "b:2"]}, "bind", ("a:1", "b:2")),
        ({"timeout_graceful_shutdown": 3}, "graceful_timeout", 3),
        ({"limit_max_requests": 5}, "max_requests", 5),
        ({"limit_max_requests_jitter": 5}, "max_requests_jitter", 5),
        ({"h11_max_incomplete_event_size": 4096}, "limit_request_header_size", 4096),
        ({"headers": [("X-A", "1")]}, "header", ("X-A: 1",)),
        ({"reload_dirs": None, "uds": None, "limit_max_requests": None}, "max_requests", 0),
        ({"app_dir": pathlib.Path("/srv")}, "app_dir", "/srv"),
        ({"access_log": False}, "access_log", False),
        ({"factory": True}, "factory", True),
    ],
)
def test_keywords_are_settings(settings, name, value):
    made = run("example:app", **settings)
    assert getattr(made, name) == value
    keyword = next(iter(settings))
    if settings[keyword] is not None:
        assert made.origin(name) == f"argument {keyword}"


# -- objects in place of settings ------------------------------------------------------


def test_a_factory_of_contexts_survives_a_reload():
    esg.run("example:app", ssl_context_factory=own_context)
    assert Spy.made.objects.ssl_context_factory is own_context
    assert Spy.made.config.scheme == "https"
    first, again = Spy.made.objects, Spy.made.read_settings().objects
    assert first.ssl_context is not None
    assert again.ssl_context is not None
    assert again.ssl_context is not first.ssl_context


def test_log_level_0_leaves_the_level_to_the_other_sources(tmp_path):
    assert run("example:app", log_level=0).log_level == "info"
    assert "log_level" not in Spy.made.config.origins
    (tmp_path / "esg.toml").write_text("log-level = 'error'")
    assert run("example:app", log_level=0).log_level == "error"
    with pytest.raises(ConfigError, match="a number from 1 to 50"):
        esg.Config("example:app", log_level=False)


def test_objects_in_a_dictionary_for_logging_are_kept_apart():
    stream = io.StringIO()
    definition = {"version": 1, "handlers": {"h": {"class": "logging.StreamHandler"}}}
    definition["handlers"]["h"]["stream"] = stream
    for made, objects in (
        (run("example:app", log_config=definition), Spy.made.objects),
        ((config := esg.Config("example:app", log_config=definition)), config.objects),
    ):
        assert pickle.loads(pickle.dumps(made.log_config)) == made.log_config
        assert put_back(made.log_config.content, objects.log_config) == definition


def own_context(config, usual):
    return ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)


# -- which source wins -----------------------------------------------------------------


def test_keywords_override_the_other_sources(tmp_path, monkeypatch):
    (tmp_path / "esg.toml").write_text("workers = 2\ntimeout = 2\nport = 2")
    monkeypatch.setenv("ESG_WORKERS", "3")
    monkeypatch.setenv("PORT", "3")
    made = run("example:app", port=4)
    assert (made.timeout, made.workers, made.port) == (2, 3, 4)


def test_a_file_may_be_named(tmp_path):
    (tmp_path / "other.toml").write_text("workers = 2")
    assert run("example:app", config="other.toml").workers == 2


def test_a_reload_reads_the_sources_again_and_keeps_the_object(tmp_path):
    run(application)
    (tmp_path / "esg.toml").write_text("workers = 2")
    again = Spy.made.read_settings()
    assert (again.config.workers, again.objects.app) == (2, application)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"wrokers": 1}, "arguments: unknown key 'wrokers'; did you mean workers?"),
        ({"port": "x"}, "argument port: invalid value 'x': expected a whole number"),
        ({"max_requests": 1, "limit_max_requests": 2}, "are the same"),
        ({"bind": "a:1", "port": 2}, "argument bind and argument port both say"),
        ({"chdir": "missing"}, "argument chdir: can't change to 'missing'"),
    ],
)
def test_keywords_that_cannot_be_used_are_refused(settings, told):
    with pytest.raises(ConfigError) as caught:
        esg.run("example:app", **settings)
    assert told in str(caught.value)
    assert Spy.made is None


def test_a_clean_stop_returns():
    assert esg.run("example:app") is None


@pytest.mark.parametrize("code", [1, 3, 4])
def test_a_failure_exits_with_the_commands_code(monkeypatch, code):
    monkeypatch.setattr(Spy, "code", code)
    with pytest.raises(SystemExit) as caught:
        esg.run("example:app")
    assert caught.value.code == code


def test_handlers_of_signals_are_restored(monkeypatch):
    before = {signum: signal.getsignal(signum) for signum in HANDLED}
    esg.run("example:app")
    assert {signum: signal.getsignal(signum) for signum in HANDLED} == before

    def fail(self):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        raise ListenError("in use")

    monkeypatch.setattr(Spy, "run", fail)
    with pytest.raises(ListenError):
        esg.run("example:app")
    assert {signum: signal.getsignal(signum) for signum in HANDLED} == before


def test_run_in_another_thread_raises_an_error():
    caught = []

    def target():
        try:
            esg.run("example:app")
        except RuntimeError as error:
            caught.append(str(error))

    thread = threading.Thread(target=target)
    thread.start()
    thread.join()
    assert "main thread" in caught[0]
    assert Spy.made is None


def test_run_in_an_event_loop_raises_an_error_with_advice():
    async def main():
        esg.run("example:app")

    with pytest.raises(RuntimeError, match=r"await esg\.Server"):
        asyncio.run(main())


# -- the package -----------------------------------------------------------------------


def test_every_public_name_exists():
    assert [name for name in esg.__all__ if not hasattr(esg, name)] == []


def test_an_unknown_name_raises_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'sprint'"):
        esg.sprint  # noqa: B018 - looking is the test
