"""Reads, sorts and shortens the stacks that a worker writes."""

from __future__ import annotations

import asyncio
import os

from esg import stacktext
from esg.stacktext import LONGEST_PLACE, Frame, of_stuck_worker, place, threads, where_boot_stands

ESG = os.path.dirname(stacktext.__file__)
STANDARD = os.path.dirname(os.__file__)

SERVER = f"""\
  File "{STANDARD}/asyncio/runners.py", line 118 in run
  File "{ESG}/server/worker.py", line 75 in run_worker
  File "{ESG}/supervisor/processes.py", line 233 in fork
  File "/venv/lib/python3/site-packages/click/core.py", line 911 in invoke
  File "{ESG}/cli.py", line 55 in main
  File "/venv/bin/esg", line 8 in <module>
"""

STUCK = f"""\
Thread 0x00007f0000000001 (most recent call first):
  File "{ESG}/lifeline.py", line 61 in _wait
  File "{STANDARD}/threading.py", line 1038 in run
  File "{STANDARD}/threading.py", line 995 in _bootstrap

Thread 0x00007f0000000002 (most recent call first):
  File "/srv/app/jobs.py", line 4 in work
  File "{STANDARD}/threading.py", line 1038 in run

Current thread 0x00007f0000000003 (most recent call first):
  File "/srv/app/db.py", line 7 in query
  File "/srv/app/views.py", line 20 in report
  File "{ESG}/server/http1/exchange.py", line 170 in run
{SERVER}"""


def test_threads_are_read():
    found = threads(STUCK)
    assert [len(thread.frames) for thread in found] == [3, 2, 9]
    frame = found[2].frames[1]
    assert (frame.file, frame.line, frame.function) == ("/srv/app/views.py", 20, "report")


def test_the_stuck_thread_comes_first_without_the_server_below_it():
    assert of_stuck_worker(STUCK) == (
        "Current thread 0x00007f0000000003 (most recent call first):\n"
        '  File "/srv/app/db.py", line 7 in query\n'
        '  File "/srv/app/views.py", line 20 in report\n'
        "Thread 0x00007f0000000002 (most recent call first):\n"
        '  File "/srv/app/jobs.py", line 4 in work\n'
        "(1 more thread of the server's own)"
    )


def test_calls_of_the_server_above_the_application_stay():
    text = STUCK.replace(
        '  File "/srv/app/db.py"',
        f'  File "{ESG}/server/http1/exchange.py", line 9 in receive\n  File "/srv/app/db.py"',
    )
    assert "line 9 in receive" in of_stuck_worker(text)


def test_a_server_that_is_stuck_by_itself_is_shown_whole():
    text = "Current thread 0x00007f0000000003 (most recent call first):\n" + SERVER
    assert of_stuck_worker(text) == text.rstrip("\n")


def test_text_that_is_not_a_stack_is_unchanged():
    assert of_stuck_worker("(on standard error)") == "(on standard error)"
    assert of_stuck_worker("") == ""


IMPORTING = f"""\
Current thread 0x00007f0000000003 (most recent call first):
  File "/venv/lib/python3/site-packages/orm/engine.py", line 88 in connect
  File "/srv/app/shop/models.py", line 12 in <module>
  File "<frozen importlib._bootstrap>", line 241 in _call_with_frames_removed
  File "/srv/app/example.py", line 3 in <module>
  File "<frozen importlib._bootstrap>", line 241 in _call_with_frames_removed
  File "{STANDARD}/importlib/__init__.py", line 126 in import_module
  File "{ESG}/loader.py", line 53 in _imported
{SERVER}"""


def test_the_place_of_an_import_is_the_innermost_line_of_the_application():
    assert where_boot_stands(IMPORTING, "/srv/app") == (True, "shop/models.py:12")


def test_outside_the_applications_folder_the_place_of_an_import_is_the_innermost_line():
    line = "/venv/lib/python3/site-packages/orm/engine.py:88"
    assert where_boot_stands(IMPORTING, "/elsewhere") == (True, line)
    assert where_boot_stands(IMPORTING, "") == (True, line)


def test_the_place_of_a_startup_that_blocks_the_loop_is_the_innermost_line():
    assert where_boot_stands(STUCK, "/srv/app") == (False, "db.py:7")


def test_an_event_loop_that_waits_has_no_place():
    idle = f"""\
Current thread 0x00007f0000000003 (most recent call first):
  File "{STANDARD}/selectors.py", line 468 in select
  File "{STANDARD}/asyncio/base_events.py", line 1871 in _run_once
{SERVER}"""
    assert where_boot_stands(idle, "/srv/app") == (False, "")
    assert where_boot_stands("", "/srv/app") == (False, "")


def test_only_the_end_of_a_long_place_is_shown():
    line = place([Frame("/" + "x" * 4000 + "/models.py", 12, "f")], "")
    assert len(line) == LONGEST_PLACE
    assert line.endswith("/models.py:12")


def test_the_event_loops_files_are_the_servers():
    frame = threads(
        "Thread 0x1 (most recent call first):\n"
        f'  File "{asyncio.base_events.__file__}", line 1 in run_forever'
    )[0].frames[0]
    assert frame.is_internal
