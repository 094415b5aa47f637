"""Workers are replaced for their age, and killed if they need too much memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from tests.support.app import application
from tests.support.load import Load
from tests.support.runner import Esg

Start = Callable[..., Esg]

WORKERS = 2

EATS = """
import os, threading, time
def wait():
    while not os.path.exists("eat"):
        time.sleep(0.05)
    try:
        os.unlink("eat")
    except FileNotFoundError:
        return  # another worker eats
    kept = []
    while True:
        kept.append(b"x" * (4 << 20))
        time.sleep(0.01)
threading.Thread(target=wait, daemon=True).start()
"""


def test_replacing_workers_for_their_age_loses_nothing(start: Start) -> None:
    esg = start("--workers", str(WORKERS), "--max-lifetime", "1s", "--max-lifetime-jitter", "1s")
    with Load(esg.port, keep_alive=4, fresh=4, slow=2) as load:
        esg.wait_for_log("due reason=max-lifetime served=[12]s", count=4)
        esg.wait_for_log("draining reason=max-lifetime", count=4)
        esg.wait_for_log("gone: exit status 0", count=3)
        load.wait_until_answered("fresh", 100)


def test_a_worker_that_needs_too_much_memory_is_killed_and_replaced(start: Start) -> None:
    esg = start(
        *("--workers", str(WORKERS), "--max-memory-hard", "150MiB"),
        source=application(at_import=EATS),
    )
    esg.claim("killed: it had ")
    before = set(esg.wait_for_workers(WORKERS))
    (esg.folder / "eat").touch()
    try:
        esg.wait_for_log(r"killed: it had \d+ MiB of memory \(--max-memory-hard\)")
        esg.wait_for_log("gone: killed by SIGKILL from the arbiter")
        esg.wait_for_log(" ready", count=WORKERS + 1)
        assert len(before & set(esg.wait_for_workers(WORKERS))) == WORKERS - 1
        assert esg.whoami()["version"] == "one"
    finally:
        with contextlib.suppress(FileNotFoundError):
            (esg.folder / "eat").unlink()


def test_a_limit_that_every_worker_exceeds_makes_no_storm_of_starts(start: Start) -> None:
    esg = start("--max-memory-hard", "1MiB")
    esg.claim("killed: it had ", "workers keep failing")
    esg.wait_for_log(r"killed: it had \d+ MiB of memory \(--max-memory-hard\)", count=2)
    esg.wait_for_log("workers keep failing; next start in")
