"""The ASGI lifespan protocol, with applications that support, refuse or break it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os

import pytest

from esg.errors import BootError
from esg.log.records import worker_subject
from esg.mailbox import PIPE_ATOMIC, encode
from esg.server.asgi.lifespan import Lifespan
from tests.support.waiting import DEADLINE

SUBJECT = worker_subject(3, 2, 4711)


@pytest.fixture
def log(caplog, monkeypatch):
    """The log's records; each must name its worker."""
    monkeypatch.setattr(logging.getLogger("esg"), "propagate", True)
    caplog.set_level(logging.DEBUG, "esg")
    yield caplog
    assert [record for record in caplog.records if record.args[:1] != (SUBJECT,)] == []


def levels(log):
    return {record.levelno for record in log.records}


def run(app, mode="auto", limit=5.0):
    """Start and shut down an application; returns its lifespan."""

    async def both():
        lifespan = Lifespan(app, mode, SUBJECT)
        await lifespan.startup()
        await lifespan.shutdown(limit)
        return lifespan

    return asyncio.run(both())


def started(app, mode="auto"):
    """Start an application and forget it."""

    async def start():
        lifespan = Lifespan(app, mode, SUBJECT)
        try:
            await lifespan.startup()
        finally:
            await lifespan.cancel()
        return lifespan

    return asyncio.run(start())


class App:
    """Supports the protocol and remembers the received messages."""

    def __init__(self):
        self.scope = None
        self.heard = []

    async def __call__(self, scope, receive, send):
        self.scope = scope
        for _ in range(2):
            message = await receive()
            self.heard.append(message["type"])
            await send({"type": message["type"] + ".complete"})


# -- an application that supports it ---------------------------------------------------


@pytest.mark.parametrize("mode", ["auto", "on"])
def test_the_application_gets_startup_and_shutdown(log, mode):
    app = App()
    run(app, mode)
    assert app.heard == ["lifespan.startup", "lifespan.shutdown"]
    assert levels(log) <= {logging.DEBUG}


def test_the_scope_has_every_field_and_no_other():
    app = App()
    lifespan = run(app)
    assert app.scope == {
        "type": "lifespan",
        "asgi": {"version": "3.0", "spec_version": "2.0"},
        "state": {},
    }
    assert app.scope["state"] is lifespan.state


def test_state_is_what_the_application_puts_there():
    async def app(scope, receive, send):
        scope["state"]["pool"] = 1
        await App()(scope, receive, send)

    assert run(app).state == {"pool": 1}


def test_with_off_the_application_is_not_called():
    async def app(scope, receive, send):
        raise AssertionError

    assert run(app, "off").state == {}


def test_startup_waits_for_the_application():
    async def check():
        release = asyncio.Event()

        async def app(scope, receive, send):
            await release.wait()
            await App()(scope, receive, send)

        lifespan = Lifespan(app, "auto", SUBJECT)
        starting = asyncio.ensure_future(lifespan.startup())
        for _ in range(10):
            await asyncio.sleep(0)
        assert not starting.done()
        release.set()
        await starting
        await lifespan.shutdown(5)

    asyncio.run(check())


def test_shutdown_waits_for_the_application():
    async def check():
        release, heard = asyncio.Event(), []

        async def app(scope, receive, send):
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await release.wait()
            heard.append("done")
            await send({"type": "lifespan.shutdown.complete"})

        lifespan = Lifespan(app, "auto", SUBJECT)
        await lifespan.startup()
        stopping = asyncio.ensure_future(lifespan.shutdown(5))
        for _ in range(10):
            await asyncio.sleep(0)
        assert not stopping.done()
        release.set()
        await stopping
        assert heard == ["done"]

    asyncio.run(check())


def test_no_task_is_left_running():
    async def check():
        lifespan = Lifespan(App(), "auto", SUBJECT)
        await lifespan.startup()
        await lifespan.shutdown(5)
        return asyncio.all_tasks() - {asyncio.current_task()}

    assert asyncio.run(check()) == set()


# -- an application that doesn't -------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "Django can only handle ASGI/HTTP connections, not lifespan.",
        "WSGI wrapper received a non-HTTP scope",
        "No application configured for scope type 'lifespan'",
    ],
)
def test_with_auto_a_frameworks_refusal_means_no_support(log, text):
    async def app(scope, receive, send):
        raise ValueError(text)

    refusal = run(app).refusal
    assert refusal.usual
    assert refusal.line == f"the application has no lifespan: ValueError: {text}"
    assert levels(log) == {logging.DEBUG}


@pytest.mark.parametrize("error", [AssertionError(), KeyError("method"), NotImplementedError()])
def test_with_auto_an_early_exception_means_no_support(log, error):
    async def app(scope, receive, send):
        raise error

    assert run(app).refusal is None
    assert levels(log) == {logging.DEBUG}
    assert any(record.exc_info for record in log.records)


def test_auto_warns_of_an_unusual_exception(log):
    async def app(scope, receive, send):
        raise ConnectionError("no database")

    refusal = run(app).refusal
    assert not refusal.usual
    assert "failed before it began: ConnectionError: no database; " in refusal.line
    assert "no database" in log.text


def test_the_reason_fits_into_one_write_whatever_it_is(log):
    async def app(scope, receive, send):
        raise ValueError("\N{ROCKET} \n" * 10_000)

    assert len(encode(run(app).refusal)) < PIPE_ATOMIC


def test_with_auto_an_early_return_means_no_support(log):
    async def app(scope, receive, send):
        return

    assert run(app).refusal is None
    assert levels(log) <= {logging.DEBUG}


def test_on_fails_with_an_early_exception():
    async def app(scope, receive, send):
        raise ValueError("no database")

    with pytest.raises(BootError, match="no database") as caught:
        started(app, "on")
    assert caught.value.exit_code == 3
    assert "in app" in caught.value.detail
    assert "lifespan.py" not in caught.value.detail.replace("test_lifespan.py", "")


def test_on_fails_with_an_early_return():
    async def app(scope, receive, send):
        return

    with pytest.raises(BootError, match="lifespan"):
        started(app, "on")


# -- an application that fails ---------------------------------------------------------


@pytest.mark.parametrize("mode", ["auto", "on"])
@pytest.mark.parametrize(
    ("message", "told", "detail"),
    [
        ("no database", "no database", ""),
        ("Traceback:\n  in x\nValueError: y\n", "ValueError: y", "in x"),
        ("", "no reason", ""),
        (None, "no reason", ""),
    ],
)
def test_a_startup_that_the_application_reports_as_failed_is_a_boot_error(
    mode, message, told, detail
):
    async def app(scope, receive, send):
        await receive()
        failed = {"type": "lifespan.startup.failed"}
        await send(failed if message is None else failed | {"message": message})

    with pytest.raises(BootError, match=told) as caught:
        started(app, mode)
    assert "\n" not in str(caught.value)
    assert detail in caught.value.detail


def test_a_startup_that_reports_a_failure_and_raises_is_a_boot_error():
    """Like Starlette."""

    async def app(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})
        raise ValueError("no database")

    with pytest.raises(BootError, match="no database"):
        started(app)


def test_an_exception_while_serving_is_an_error(log):
    async def app(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.complete"})
        raise ValueError("later")

    async def check():
        lifespan = Lifespan(app, "auto", SUBJECT)
        await lifespan.startup()
        for _ in range(5):
            await asyncio.sleep(0)
        await lifespan.shutdown(5)

    asyncio.run(check())
    assert "later" in log.text
    assert max(levels(log)) == logging.ERROR


def test_a_shutdown_that_the_application_reports_as_failed_is_logged(log):
    async def app(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.failed", "message": "pool busy"})

    run(app)
    assert "pool busy" in log.text


def test_an_exception_in_shutdown_is_an_error(log):
    async def app(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        raise ValueError("at the end")

    run(app)
    assert "at the end" in log.text
    assert max(levels(log)) == logging.ERROR


def test_a_return_in_place_of_an_answer_ends_the_shutdown():
    async def app(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()

    run(app)


def test_a_shutdown_is_bounded(log):
    cancelled = []

    async def app(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.complete"})
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append(True)

    run(app, limit=0.01)
    assert cancelled == [True]
    assert "lifespan shutdown" in log.text


def test_a_shutdown_that_catches_its_cancellation_is_not_waited_for(log, monkeypatch):
    monkeypatch.setattr("esg.server.asgi.lifespan.CANCEL_LIMIT", 0.01)

    async def check():
        released = asyncio.Event()

        async def app(scope, receive, send):
            await receive()
            await send({"type": "lifespan.startup.complete"})
            while not released.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await released.wait()

        lifespan = Lifespan(app, "on", SUBJECT)
        await lifespan.startup()
        async with asyncio.timeout(DEADLINE):
            await lifespan.shutdown(0.01)
        assert lifespan._task is not None
        assert not lifespan._task.done()
        released.set()
        await lifespan._task

    asyncio.run(check())
    assert "can't cancel the lifespan: it caught the cancellation" in log.text


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
def test_an_application_that_wants_to_exit_does_not_end_the_worker(error):
    async def app(scope, receive, send):
        await receive()
        raise error

    with pytest.raises(BootError):
        started(app, "on")


def test_an_unknown_message_is_the_applications_error():
    raised = []

    async def app(scope, receive, send):
        await receive()
        try:
            await send({"type": "http.response.start"})
        except RuntimeError as error:
            raised.append(error)
        await send({"type": "lifespan.startup.complete"})
        await receive()

    run(app)
    assert len(raised) == 1


def test_a_startup_can_be_cancelled():
    cancelled = []

    async def app(scope, receive, send):
        await receive()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append(True)

    async def check():
        lifespan = Lifespan(app, "on", SUBJECT)
        starting = asyncio.ensure_future(lifespan.startup())
        for _ in range(5):
            await asyncio.sleep(0)
        starting.cancel()
        await lifespan.cancel()
        await asyncio.wait([starting])

    asyncio.run(check())
    assert cancelled == [True]


def test_shutdown_without_a_startup_does_nothing():
    asyncio.run(Lifespan(App(), "auto", SUBJECT).shutdown(5))


# -- an application that ends the interpreter ------------------------------------------


@pytest.mark.parametrize("mode", ["auto", "on"])
@pytest.mark.parametrize("error", [SystemExit("no database"), asyncio.CancelledError("no")])
def test_a_startup_that_raises_system_exit_is_a_failure(mode, error):
    async def app(scope, receive, send):
        raise error

    with pytest.raises(BootError, match="lifespan did not start"):
        run(app, mode)


def test_a_startup_that_is_cancelled_from_outside_is_not_a_failure():
    async def check():
        async def app(scope, receive, send):
            await asyncio.Event().wait()

        lifespan = Lifespan(app, "auto", SUBJECT)
        starting = asyncio.ensure_future(lifespan.startup())
        for _ in range(3):
            await asyncio.sleep(0)
        await lifespan.cancel()
        await starting

    asyncio.run(check())


# -- where a startup waits -------------------------------------------------------------------


def test_a_startup_says_where_it_waits():
    entered = asyncio.Event()

    async def connect():
        entered.set()
        await asyncio.Event().wait()

    async def app(scope, receive, send):
        await asyncio.create_task(connect())

    async def place():
        lifespan = Lifespan(app, "auto", SUBJECT)
        startup = asyncio.create_task(lifespan.startup())
        before = lifespan.place("")
        await entered.wait()
        waits = lifespan.place(os.path.dirname(__file__))
        await lifespan.cancel()
        await startup
        return before, waits, lifespan.place("")

    line = connect.__code__.co_firstlineno + 2
    assert asyncio.run(place()) == ("", f"{os.path.basename(__file__)}:{line}", "")
