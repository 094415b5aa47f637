"""Applications of every interface under the arbiter: detection, reloads, the end of threads."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.load import Load
from tests.support.runner import Esg, answer, run_to_its_end
from tests.support.waiting import eventually
from tests.support.wsgi_app import wsgi_application

Start = Callable[..., Esg]

WSGI = wsgi_application()
MIX = {"keep_alive": 6, "fresh": 6, "slow": 4, "downloads": 2}

ASGI2 = """\
import json
import os


class app:
    def __init__(self, scope):
        self.scope = scope

    async def __call__(self, receive, send):
        if self.scope["type"] != "http":
            raise NotImplementedError
        body = json.dumps({"version": self.scope["asgi"]["version"]}).encode()
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})
"""


# -- which interface -------------------------------------------------------------------


@pytest.mark.parametrize("flags", [[], ["--interface", "wsgi"], ["--wsgi"]])
def test_wsgi_is_served(start: Start, flags: list[str]) -> None:
    esg = start("--workers", "2", *flags, source=WSGI)
    facts = esg.whoami()
    assert facts["thread"] == "wsgi-1"
    assert facts["multiprocess"] is True
    assert not esg.logged("lifespan")


@pytest.mark.parametrize("flags", [[], ["--interface", "asgi2"]])
def test_asgi2_is_served(start: Start, flags: list[str]) -> None:
    esg = start(*flags, source=ASGI2)
    connection = esg.begin("/")
    assert answer(connection) == {"version": "2.0"}
    connection.close()


@pytest.mark.parametrize(
    ("flags", "source", "code", "text"),
    [
        (
            ["--wsgi", "--interface", "asgi3"],
            WSGI,
            2,
            "--interface asgi3 say different things; use one",
        ),
        (["--wsgi", "--lifespan", "on"], WSGI, 2, "--lifespan: a WSGI application has no lifespan"),
        (["--lifespan", "on"], WSGI, 3, "no lifespan; leave out --lifespan"),
        (["--interface", "asgi3"], WSGI, 4, "use --interface wsgi"),
        (["--wsgi"], ASGI2, 4, "use --interface asgi2"),
        (["--threads", "-1"], WSGI, 2, "--threads: invalid value"),
        ([], "def app(*args): pass\n", 4, "say with --interface"),
        ([], "def app(): pass\n", 4, "add --factory"),
    ],
)
def test_an_application_that_cannot_be_served_is_refused(
    tmp_path: Path, flags: list[str], source: str, code: int, text: str
) -> None:
    (tmp_path / "example.py").write_text(source)
    finished = run_to_its_end(tmp_path, "example:app", "--port", "0", *flags)
    assert finished.code == code
    assert text in finished.log


def test_a_factory_may_make_a_wsgi_application(start: Start) -> None:
    source = WSGI.replace("def app(", "def served(") + "\n\ndef app():\n    return served\n"
    esg = start("--factory", source=source)
    assert esg.whoami()["multiprocess"] is True


# -- threads ---------------------------------------------------------------------------


def test_a_reload_of_wsgi_workers_loses_nothing(start: Start) -> None:
    esg = start("--interface", "wsgi", "--workers", "2", source=WSGI)
    with Load(esg.port, **MIX) as load:
        for generation in (2, 3):
            esg.signal(signal.SIGHUP)
            esg.wait_for_log(rf"arbiter gen={generation} .* reloaded workers=2")
        load.wait_until_answered("download", 2)
        load.wait_until_answered("fresh", 100)
    assert esg.whoami()["generation"] == 3


def test_a_shutdown_waits_for_wsgi_requests(start: Start) -> None:
    esg = start("--threads", "1", source=WSGI)
    running = esg.in_flight("/slow/0.5")
    waiting = esg.begin("/whoami/queued")
    esg.signal(signal.SIGTERM)
    assert json.loads(running.getresponse().read())["path"] == "/slow/0.5"
    assert answer(waiting)["thread"] == "wsgi-1"
    for connection in (running, waiting):
        connection.close()
    assert esg.wait() == 0


def test_a_thread_that_hangs_does_not_keep_a_worker_alive(start: Start) -> None:
    esg = start("--graceful-timeout", "0.5", source=WSGI)
    hanging = esg.in_flight("/hang")
    esg.signal(signal.SIGTERM)
    assert esg.wait(5.0) == 0
    response = hanging.getresponse()
    assert (response.status, response.headers["retry-after"]) == (503, "1")
    hanging.close()
    assert esg.logged("cancels 1 request: the grace period is over")
    assert esg.logged("gone: exit status 0")


def test_the_loop_sends_heartbeats_while_every_thread_is_busy(start: Start) -> None:
    esg = start("--timeout", "1", "--threads", "2", source=WSGI)
    busy = [esg.in_flight("/slow/2.5") for _ in range(2)]
    pids = {answer(connection)["pid"] for connection in busy}
    assert pids == set(esg.workers())
    for connection in busy:
        connection.close()


def test_an_exception_is_in_the_log_with_its_traceback(start: Start) -> None:
    esg = start(source=WSGI)
    esg.claim("exception in the application: GET '/fail'")
    connection = esg.begin("/fail")
    assert connection.getresponse().status == 500
    connection.close()
    record = esg.wait_for_log("exception in the application")
    assert record.worker == 1
    assert "ValueError: what went wrong" in record.detail
    eventually(lambda: esg.whoami()["worker"] == 1, "it goes on")
