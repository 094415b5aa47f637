"""Log lines about booting and stuck workers, from their mail and their stacks."""

from __future__ import annotations

import math

from esg import stacktext
from esg.mailbox import HeldRequests, InStartup
from esg.settings.schema import Config
from esg.stacktext import LONGEST_PLACE
from esg.supervisor.progress import MOST_SHOWN, Progress

CONFIG = Config(app="shop:app", real_folder="/srv/app")
PACKAGE = stacktext.__file__.removesuffix("stacktext.py")

SERVER = f"""\
  File "{PACKAGE}server/worker.py", line 75 in run_worker
  File "{PACKAGE}supervisor/processes.py", line 233 in fork
"""

IMPORTING = f"""\
Current thread 0x1 (most recent call first):
  File "/srv/app/shop/models.py", line 12 in <module>
  File "{PACKAGE}loader.py", line 53 in _imported
{SERVER}"""

BLOCKED = f"""\
Current thread 0x1 (most recent call first):
  File "/srv/app/shop/db.py", line 12 in connect
  File "{PACKAGE}server/asgi/lifespan.py", line 90 in _run
{SERVER}"""

WAITING = f"Current thread 0x1 (most recent call first):\n{SERVER}"


def line(progress: Progress, stacks: str = WAITING, now: float = 107.0) -> str:
    return progress.of_boot(CONFIG, 9.2, stacks, now)


def in_startup(*places: str) -> Progress:
    """The report of a worker whose startup began at 102."""
    progress = Progress()
    for number, place in enumerate(places):
        progress.take(InStartup(place), 102.0 + number)
    return progress


def test_an_import_is_named_with_its_place() -> None:
    assert line(Progress(), IMPORTING) == "has been importing for 9 s: shop/models.py:12"


def test_a_boot_without_a_known_place_is_called_starting() -> None:
    assert line(Progress(), "") == "has been starting for 9 s"


def test_a_waiting_startup_has_the_place_that_the_worker_reported() -> None:
    progress = in_startup("", "shop/db.py:12")
    assert line(progress) == "has been in the lifespan startup of shop:app for 5 s: shop/db.py:12"
    assert line(progress, "") == line(progress)


def test_a_startup_that_blocks_the_loop_has_the_place_from_its_stack() -> None:
    progress = in_startup("", "shop/cache.py:3")
    told = "has been in the lifespan startup of shop:app for 5 s: shop/db.py:12"
    assert line(progress, BLOCKED) == told


def test_a_startup_without_a_place_is_named() -> None:
    progress = in_startup("")
    assert line(progress) == "has been in the lifespan startup of shop:app for 5 s"
    assert line(progress, now=102.2).endswith(" for 1 s")


def test_an_invented_place_is_shortened() -> None:
    assert len(line(in_startup("x" * 10_000))) < LONGEST_PLACE + 100


# -- the requests of a stuck worker ----------------------------------------------------------


def requests(message: HeldRequests | None, in_flight: int = 2, since_beat: float = 31.0) -> str:
    """The lines about a worker that is killed at 130 and sent this at 101.5."""
    progress = Progress()
    progress.boot_is_over()
    if message is not None:
        progress.take(message, 101.5)
    return progress.of_stuck(in_flight, since_beat, 130.0)


def test_requests_are_listed_with_their_age_at_the_end() -> None:
    message = HeldRequests(["GET /old", "GET /report"], [100.0, 2.5], 14, 1)
    assert requests(message) == (
        "requests that it held, the oldest first:\n"
        "  GET /old, for 128 s\n"
        "  GET /report, for 31 s (blocks the event loop)\n"
        "  and 12 more"
    )


def test_a_request_of_unknown_age_has_none() -> None:
    assert requests(HeldRequests(["GET /"], [math.nan], 1, -1)).endswith("\n  GET /")


def test_a_loop_that_stood_still_without_a_request_held_none() -> None:
    assert requests(HeldRequests([], [], 0, -1)) == "it held no request"


def test_without_a_report_only_the_number_of_requests_is_logged() -> None:
    told = "at its last heartbeat"
    assert requests(None) == f"it held 2 requests {told}, and can't say which"
    assert requests(None, 1) == f"it held 1 request {told}, and can't say which"
    assert requests(None, 0) == f"it held no request {told}"


def test_a_booting_worker_says_where_its_startup_waits() -> None:
    waiting = in_startup("", "shop/db.py:12")
    assert waiting.of_stuck(0, 0.5, 130.0) == "its lifespan startup waited at shop/db.py:12"
    assert waiting.of_stuck(0, 5.0, 130.0) == ""  # the stack has it, and this may be outdated
    assert in_startup("").of_stuck(0, 0.5, 130.0) == ""
    assert Progress().of_stuck(0, 0.0, 130.0) == ""


def test_a_report_from_an_earlier_standstill_is_ignored() -> None:
    message = HeldRequests(["GET /"], [2.0], 1, 0)
    assert requests(message, 2, 20.0) == requests(None)


def test_a_worker_that_beats_is_not_stuck() -> None:
    assert requests(HeldRequests(["GET /"], [2.0], 1, 0), 2, 0.9) == ""


def test_invented_requests_are_shortened_and_forge_no_line() -> None:
    names = ["GET /\nworker=1 ready\x1b[31m" + "x" * 10_000] * 1000
    text = requests(HeldRequests(names, [1e308, -1e308] * 500, 10**30, 7))
    assert len(text.splitlines()) <= MOST_SHOWN + 2
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) < 300
    assert requests(HeldRequests(["a", "b"], [], 2, 99)) == "it held no request"
