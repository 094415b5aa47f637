"""What the log says of a worker's boot, going by the worker's mail and its stacks."""

from __future__ import annotations

from esg import stacktext
from esg.mailbox import InStartup
from esg.settings.schema import Config
from esg.stacktext import LONGEST_PLACE
from esg.supervisor.progress import Progress

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
    """Of a worker whose startup began at 102."""
    progress = Progress()
    for number, place in enumerate(places):
        progress.take(InStartup(place), 102.0 + number)
    return progress


def test_an_import_is_named_with_its_place() -> None:
    assert line(Progress(), IMPORTING) == "has been importing for 9 s: shop/models.py:12"


def test_a_boot_of_which_nothing_is_known_is_starting() -> None:
    assert line(Progress(), "") == "has been starting for 9 s"


def test_a_startup_that_waits_is_named_with_the_place_that_the_worker_told() -> None:
    progress = in_startup("", "shop/db.py:12")
    assert line(progress) == "has been in the lifespan startup of shop:app for 5 s: shop/db.py:12"
    assert line(progress, "") == line(progress)


def test_a_startup_that_blocks_the_loop_is_named_with_the_place_in_its_stack() -> None:
    progress = in_startup("", "shop/cache.py:3")
    told = "has been in the lifespan startup of shop:app for 5 s: shop/db.py:12"
    assert line(progress, BLOCKED) == told


def test_a_startup_without_a_place_is_named() -> None:
    progress = in_startup("")
    assert line(progress) == "has been in the lifespan startup of shop:app for 5 s"
    assert line(progress, now=102.2).endswith(" for 1 s")


def test_a_place_that_a_worker_makes_up_is_cut() -> None:
    assert len(line(in_startup("x" * 10_000))) < LONGEST_PLACE + 100
