"""ESG from Python: keywords for settings, and places where `run` can't be called."""

from __future__ import annotations

import asyncio
import functools
import inspect
import io
import logging
import pathlib
import pickle
import re
import signal
import ssl
import threading

import pytest
import uvicorn
from uvicorn.config import LOGGING_CONFIG

import esg
from esg import api, keywords
from esg.errors import ConfigError, ListenError
from esg.settings import kinds, schema
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

    def __init__(self, settings, payload, read_settings):
        self.config, self.objects = settings.config, settings.objects
        self.read_settings = read_settings
        Spy.made = self

    def run(self):
        for signum in HANDLED:
            signal.signal(signum, signal.SIG_IGN)
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
def test_an_object_has_a_name_in_titles(app, name):
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


# -- uvicorn's keywords --------------------------------------------------------------------


def context_factory(config, usual):
    """Never called."""


TAKEN = {
    "host": ("::1", "host", "::1"),
    "port": (9000, "port", 9000),
    "uds": ("/run/x", "uds", "/run/x"),
    "fd": (3, "fd", 3),
    "loop": ("asyncio", "loop", "asyncio"),
    "http": ("h11", "http", "h11"),
    "http2": (False, "http2", False),
    "ws": ("none", "ws", "none"),
    "ws_max_size": (1024, "ws_max_size", 1024),
    "ws_max_queue": (8, "ws_max_queue", 8),
    "ws_ping_interval": (None, "ws_ping_interval", 0),
    "ws_ping_timeout": (None, "ws_ping_timeout", 0),
    "ws_per_message_deflate": (False, "ws_per_message_deflate", False),
    "lifespan": ("on", "lifespan", "on"),
    "interface": ("asgi3", "interface", "asgi3"),
    "reload": (True, "reload", True),
    "reload_dirs": (["a", pathlib.Path("b")], "reload_dir", ("a", "b")),
    "reload_includes": ("*.html", "reload_include", ("*.html",)),
    "reload_excludes": (["x"], "reload_exclude", ("x",)),
    "reload_delay": (1.5, "reload_delay", 1.5),
    "workers": (3, "workers", 3),
    "env_file": (pathlib.Path("vars"), "env_file", "vars"),
    "log_config": (LOGGING_CONFIG, "log_config", kinds.LogDefinition(LOGGING_CONFIG)),
    "log_level": (logging.DEBUG, "log_level", "debug"),
    "access_log": (False, "access_log", False),
    "use_colors": (False, "use_colors", False),
    "proxy_headers": (False, "proxy_headers", False),
    "server_header": (False, "server_header", False),
    "date_header": (False, "date_header", False),
    "forwarded_allow_ips": (["10.0.0.1"], "forwarded_allow_ips", ("10.0.0.1",)),
    "root_path": ("/api", "root_path", "/api"),
    "limit_concurrency": (9, "limit_concurrency", 9),
    "backlog": (64, "backlog", 64),
    "limit_max_requests": (9, "max_requests", 9),
    "limit_max_requests_jitter": (3, "max_requests_jitter", 3),
    "timeout_keep_alive": (7, "timeout_keep_alive", 7),
    "timeout_notify": (7, "timeout_notify", 7),
    "timeout_graceful_shutdown": (7, "graceful_timeout", 7),
    "timeout_worker_healthcheck": (7, "timeout", 7),
    "ssl_keyfile": (pathlib.Path("k"), "ssl_keyfile", "k"),
    "ssl_certfile": ("c", "ssl_certfile", "c"),
    "ssl_keyfile_password": ("p", "ssl_keyfile_password", "p"),
    "ssl_version": (ssl.PROTOCOL_TLS_SERVER, "ssl_version", "1.2"),
    "ssl_cert_reqs": (ssl.CERT_REQUIRED, "ssl_cert_reqs", "required"),
    "ssl_ca_certs": ("a", "ssl_ca_certs", "a"),
    "ssl_ciphers": ("HIGH", "ssl_ciphers", "HIGH"),
    "ssl_context_factory": (context_factory, "ssl_context_factory", context_factory),
    "headers": ([("Server", "a"), ("Server", "b")], "header", ("Server: a", "Server: b")),
    "factory": (True, "factory", True),
    "app_dir": ("/srv", "app_dir", "/srv"),
    "h11_max_incomplete_event_size": (4096, "limit_request_header_size", 4096),
    "reset_contextvars": (True, "reset_contextvars", True),
}
"""A value of each keyword that isn't its default, and the setting that it becomes."""

KEYWORDS = {
    name: parameter
    for call in (uvicorn.Config, uvicorn.run)
    for name, parameter in inspect.signature(call).parameters.items()
    if name != "app"
}


@pytest.mark.parametrize("keyword", KEYWORDS)
def test_every_keyword_of_uvicorns_is_taken_or_refused(keyword):
    if keyword in keywords.REFUSED:
        with pytest.raises(ConfigError, match=f"argument {keyword}: "):
            esg.Config(application, **{keyword: print})
        return
    value, name, meant = TAKEN[keyword]
    pathlib.Path("vars").touch()
    made = esg.Config(application, **{keyword: value})
    where = made.objects if keyword == keywords.FACTORY else made
    assert getattr(where, name) == meant


def test_all_of_uvicorns_defaults_at_once():
    made = esg.Config(application, **{name: each.default for name, each in KEYWORDS.items()})
    assert made.log_config == kinds.LogDefinition(LOGGING_CONFIG)
    assert made.binds == ("127.0.0.1:8000",)


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("http2", True),
        ("http", asyncio.Protocol),
        ("ws", asyncio.Protocol),
        ("loop", "none"),
        ("loop", "uvloop:new_event_loop"),
        ("ssl_context_factory", "example:context"),
    ],
)
def test_values_of_uvicorns_that_cannot_be_had(keyword, value):
    with pytest.raises(ConfigError, match=f"^argument {keyword}: "):
        esg.Config(application, **{keyword: value})


def test_the_page_lists_every_keyword_once():
    page = pathlib.Path(__file__).parents[2] / "docs" / "howto" / "from-uvicorn.md"
    _, _, table = page.read_text().partition("| keyword | in ESG |\n| --- | --- |\n")
    cells = [line.split(" | ")[0] for line in table.partition("\n\n")[0].splitlines()]
    listed = re.findall(r"`(\w+)`", " ".join(cells))
    assert sorted(listed) == sorted([*KEYWORDS, "app"])


def test_logging_is_left_to_the_application():
    made = esg.Config(application, log_config=None)
    assert made.leaves_logging
    assert not esg.Config(application).leaves_logging


def test_a_factory_of_contexts_survives_a_reload():
    esg.run("example:app", ssl_context_factory=own_context)
    assert Spy.made.objects.ssl_context_factory is own_context
    assert Spy.made.config.scheme == "https"
    first, again = Spy.made.objects, Spy.made.read_settings().objects
    assert first.ssl_context is not None
    assert again.ssl_context is not None
    assert again.ssl_context is not first.ssl_context


def test_the_log_level_0_is_the_level_that_is_configured_elsewhere(tmp_path):
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


def test_keywords_are_stronger_than_the_other_sources(tmp_path, monkeypatch):
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
def test_keywords_that_cannot_be_used(settings, told):
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


def test_another_thread_is_the_wrong_place():
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


def test_an_event_loop_is_the_wrong_place():
    async def main():
        esg.run("example:app")

    with pytest.raises(RuntimeError, match=r"await esg\.Server"):
        asyncio.run(main())


# -- Config ----------------------------------------------------------------------------


def test_a_config_takes_keywords_alone(tmp_path, monkeypatch):
    (tmp_path / "esg.toml").write_text("workers = 2")
    monkeypatch.setenv("PORT", "3")
    made = esg.Config("example:app", host="::1", timeout_keep_alive=7)
    assert (made.app, made.workers, made.binds) == ("example:app", 1, ("[::1]:8000",))
    assert made.timeout_keep_alive == 7
    assert made.origin("timeout_keep_alive") == "argument timeout_keep_alive"


def test_a_config_is_what_the_rest_of_esg_takes():
    made = esg.Config(application, port=1)
    assert isinstance(made, schema.Config)
    assert made.objects.app is application


def test_a_config_reads_its_env_file(tmp_path, monkeypatch):
    (tmp_path / "vars").write_text("COLOR=red\nSHAPE=round")
    monkeypatch.setenv("SHAPE", "square")
    assert esg.Config("example:app", env_file="vars").variables == {"COLOR": "red"}


@pytest.mark.parametrize("settings", [{"port": 70000}, {"prot": 1}, {"log_level": "loud"}])
def test_a_config_is_checked(settings):
    with pytest.raises(ConfigError):
        esg.Config("example:app", **settings)


# -- the package -----------------------------------------------------------------------


def test_public_names_are_there():
    assert [name for name in esg.__all__ if not hasattr(esg, name)] == []


def test_other_names_are_not():
    with pytest.raises(AttributeError, match="no attribute 'sprint'"):
        esg.sprint  # noqa: B018 - looking is the test
