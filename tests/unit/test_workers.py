"""How ESG's worker classes for gunicorn translate gunicorn's settings."""

from __future__ import annotations

import logging
import os
import ssl
import types
from typing import Any

import pytest

from esg.settings.schema import Config

config = pytest.importorskip("gunicorn.config")

from esg import workers  # noqa: E402 - it needs gunicorn

MIB = 1024 * 1024


async def application(scope: Any, receive: Any, send: Any) -> None: ...


def made(worker: type[workers.ESGWorker] = workers.ESGWorker, **given: Any) -> Config:
    """The settings of a worker under a gunicorn with these settings."""
    settings = config.Config()
    for name, value in given.items():
        settings.set(name, value)
    app = types.SimpleNamespace(app_uri="example:app")
    log = logging.getLogger("gunicorn.error")
    one = worker(1, os.getpid(), [], app, 30, settings, log)
    try:
        one.wsgi = application
        return one._settings()
    finally:
        one.tmp.close()


@pytest.mark.parametrize(
    ("theirs", "given", "ours", "meant"),
    [
        ("keepalive", 30, "timeout_keep_alive", 30.0),
        ("keepalive", 0, "timeout_keep_alive", 0.0),
        (
            "forwarded_allow_ips",
            "10.0.0.1,10.1.0.0/16",
            "forwarded_allow_ips",
            ("10.0.0.1", "10.1.0.0/16", "unix:"),
        ),
        ("forwarded_allow_ips", "", "forwarded_allow_ips", ("unix:",)),
        ("limit_request_line", 100, "limit_request_line", 100),
        ("limit_request_line", 0, "limit_request_line", MIB),
        ("limit_request_fields", 50, "limit_request_fields", 50),
        ("limit_request_fields", 0, "limit_request_fields", 32768),
        ("limit_request_field_size", 4000, "limit_request_header_size", 100 * 4004),
        ("limit_request_field_size", 0, "limit_request_header_size", 100 * (MIB + 4)),
        ("limit_request_field_size", 8190, "limit_request_header_size", 65536),
        ("certfile", __file__, "ssl_certfile", __file__),
        ("keyfile", __file__, "ssl_keyfile", __file__),
        ("ca_certs", __file__, "ssl_ca_certs", __file__),
        ("ciphers", "HIGH", "ssl_ciphers", "HIGH"),
        ("cert_reqs", ssl.CERT_REQUIRED, "ssl_cert_reqs", "required"),
        ("asgi_lifespan", "off", "lifespan", "off"),
        ("root_path", "/api", "root_path", "/api"),
        ("asgi_loop", "asyncio", "loop", "asyncio"),
        ("threads", 4, "threads", 4),
        ("threads", 1, "threads", 0),
        ("worker_connections", 500, "limit_connections", 500),
        ("worker_connections", 1000, "limit_connections", 0),
        ("proxy_protocol", "v2", "proxy_protocol", True),
        ("proxy_protocol", "off", "proxy_protocol", False),
        ("max_requests", 80, "max_requests", 80),
        ("max_requests", 0, "max_requests", 0),
        ("graceful_timeout", 4, "graceful_timeout", 3.0),
        ("graceful_timeout", 60, "graceful_timeout", 58.0),
    ],
)
def test_a_setting_of_gunicorn_is_translated(
    theirs: str, given: Any, ours: str, meant: Any
) -> None:
    assert getattr(made(**{theirs: given}), ours) == meant


def test_every_translated_setting_has_a_case() -> None:
    (mark,) = test_a_setting_of_gunicorn_is_translated.pytestmark  # type: ignore[attr-defined]
    tried = {theirs for theirs, *_ in mark.args[1]}
    assert {*workers.SAME, *workers.WHERE_GIVEN} - tried == set()


@pytest.mark.parametrize(
    ("worker", "loop", "http"),
    [(workers.ESGWorker, "auto", "auto"), (workers.ESGH11Worker, "asyncio", "h11")],
)
def test_a_worker_class_selects_the_loop_and_the_parser(
    worker: type[workers.ESGWorker], loop: str, http: str
) -> None:
    one = made(worker)
    assert (one.loop, one.http) == (loop, http)
