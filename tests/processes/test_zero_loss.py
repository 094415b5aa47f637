"""No request is lost by a reload, a recycle, a resize or a shutdown, under any load."""

from __future__ import annotations

import contextlib
import os
import random
import signal
from collections.abc import Callable

import pytest

from tests.support.load import Load
from tests.support.runner import Esg

Start = Callable[..., Esg]

WORKERS = 3
MIX = {"keep_alive": 6, "fresh": 6, "slow": 4, "downloads": 2}


def test_a_reload_loses_nothing(start: Start) -> None:
    esg = start("--workers", str(WORKERS))
    with Load(esg.port, **MIX) as load:
        for generation in (2, 3):
            esg.signal(signal.SIGHUP)
            esg.wait_for_log(rf"arbiter gen={generation} .* reloaded workers={WORKERS}")
        load.wait_until_answered("download", 2)
        load.wait_until_answered("fresh", 100)
    assert esg.whoami()["generation"] == 3


def test_max_requests_loses_nothing(start: Start) -> None:
    esg = start("--workers", str(WORKERS), "--max-requests", "150", "--max-requests-jitter", "100")
    with Load(esg.port, **MIX) as load:
        esg.wait_for_log("draining reason=max-requests", count=8)
        esg.wait_for_log("gone: exit status 0", count=4)
        load.wait_until_answered("download", 1)


def test_adding_and_removing_workers_loses_nothing(start: Start) -> None:
    esg = start("--workers", "2")
    with Load(esg.port, **MIX) as load:
        for wanted in (3, 4):
            esg.signal(signal.SIGTTIN)
            esg.wait_for_log(f"resized workers={wanted}")
        esg.wait_for_workers(4)
        load.wait_until_answered("fresh", 200)
        for wanted in (3, 2, 1):
            esg.signal(signal.SIGTTOU)
            esg.wait_for_log(f"resized workers={wanted}", count=2 if wanted == 3 else 1)
        esg.wait_for_workers(1)
        load.wait_until_answered("download", 1)
        load.wait_until_answered("fresh", 100)


def test_a_shutdown_loses_nothing(start: Start) -> None:
    esg = start("--workers", str(WORKERS))
    with Load(esg.port, **MIX) as load:
        load.wait_until_answered("slow", 2)
        load.wait_until_answered("fresh", 100)
        load.shutdown_begins()
        esg.signal(signal.SIGTERM)
        assert esg.wait() == 0


@pytest.mark.parametrize("round_", range(4))
def test_a_shutdown_under_many_new_connections_loses_none(start: Start, round_: int) -> None:
    esg = start("--workers", str(1 + round_ % 3))
    with Load(esg.port, fresh=40) as load:
        load.wait_until_answered("fresh", 200)
        load.shutdown_begins()
        esg.signal(signal.SIGTERM)
        assert esg.wait() == 0


def test_workers_that_are_terminated_are_replaced_and_lose_nothing(start: Start) -> None:
    esg = start("--workers", str(WORKERS))
    first = esg.workers()
    with Load(esg.port, **MIX) as load:
        load.wait_until_answered("fresh", 100)
        for pid in first:
            os.kill(pid, signal.SIGTERM)
        for pid in first:
            esg.wait_for_log(rf"pid={pid} gone: exit status 0")
        load.wait_until_answered("fresh", 100)
    assert not set(first) & set(esg.wait_for_workers(WORKERS))


def test_signals_in_any_order_lose_nothing(start: Start) -> None:
    esg = start("--workers", "2", "--max-requests", "400", "--max-requests-jitter", "200")
    # The terminated worker may have been booting.
    esg.claim("can't boot: died while booting: exit status 0", "reload failed")
    seed = random.randrange(1000)
    print(f"seed {seed}")  # noqa: T201 - to repeat a failure
    chosen = random.Random(seed)
    with Load(esg.port, **MIX) as load:
        for _ in range(25):
            signum = chosen.choice([signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGTERM])
            if signum == signal.SIGTERM:
                terminate(chosen.choice(esg.workers()))
            else:
                esg.signal(signum)
            load.wait_until_answered("fresh", chosen.choice([1, 20, 200]))
        load.wait_until_answered("download", 1)
        load.shutdown_begins()
        esg.signal(signal.SIGTERM)
        assert esg.wait() == 0


def terminate(pid: int) -> None:
    """Send SIGTERM to a worker that may have ended by now."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
