"""Settings by keyword: all of uvicorn's keywords, and the public Config."""

from __future__ import annotations

import asyncio
import inspect
import logging
import pathlib
import re
import ssl

import pytest
import uvicorn
from uvicorn.config import LOGGING_CONFIG

import esg
from esg import keywords
from esg.errors import ConfigError
from esg.settings import kinds, schema
from esg.settings.schema import SETTINGS


async def application(scope, receive, send):
    """Never called."""


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """In an empty folder and environment."""
    for declared in SETTINGS.values():
        for variable in declared.variables:
            monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)


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
def test_every_keyword_of_uvicorn_is_accepted_or_refused(keyword):
    if keyword in keywords.REFUSED:
        with pytest.raises(ConfigError, match=f"argument {keyword}: "):
            esg.Config(application, **{keyword: print})
        return
    value, name, meant = TAKEN[keyword]
    pathlib.Path("vars").touch()
    made = esg.Config(application, **{keyword: value})
    where = made.objects if keyword == keywords.FACTORY else made
    assert getattr(where, name) == meant


def test_all_of_uvicorns_defaults_are_accepted_together():
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
def test_some_values_of_uvicorn_are_refused(keyword, value):
    with pytest.raises(ConfigError, match=f"^argument {keyword}: "):
        esg.Config(application, **{keyword: value})


def test_the_page_lists_every_keyword_once():
    page = pathlib.Path(__file__).parents[2] / "docs" / "howto" / "from-uvicorn.md"
    _, _, table = page.read_text().partition("| keyword | in ESG |\n| --- | --- |\n")
    cells = [line.split(" | ")[0] for line in table.partition("\n\n")[0].splitlines()]
    listed = re.findall(r"`(\w+)`", " ".join(cells))
    assert sorted(listed) == sorted([*KEYWORDS, "app"])


def test_log_config_none_leaves_logging_to_the_application():
    made = esg.Config(application, log_config=None)
    assert made.leaves_logging
    assert not esg.Config(application).leaves_logging


# -- Config ----------------------------------------------------------------------------


def test_a_config_only_reads_keywords(tmp_path, monkeypatch):
    (tmp_path / "esg.toml").write_text("workers = 2")
    monkeypatch.setenv("PORT", "3")
    made = esg.Config("example:app", host="::1", timeout_keep_alive=7)
    assert (made.app, made.workers, made.binds) == ("example:app", 1, ("[::1]:8000",))
    assert made.timeout_keep_alive == 7
    assert made.origin("timeout_keep_alive") == "argument timeout_keep_alive"


def test_a_public_config_is_a_config_for_the_rest_of_esg():
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
