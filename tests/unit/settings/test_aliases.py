"""The meaning of names from gunicorn."""

from __future__ import annotations

import pytest

from esg.settings.aliases import RENAMED, WORKER_CLASSES, assigned_names, why_not
from esg.settings.schema import SETTINGS


@pytest.mark.parametrize("meaning", WORKER_CLASSES.values(), ids=WORKER_CLASSES)
def test_a_worker_class_implies_settings_that_exist(meaning):
    assert set(meaning) <= set(SETTINGS)


@pytest.mark.parametrize("name", RENAMED.values(), ids=RENAMED)
def test_a_renamed_setting_exists(name):
    assert name in SETTINGS


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gevent", "asyncio"),
        ("gunicorn.workers.ggevent.GeventWorker", "asyncio"),
        ("eventlet", "asyncio"),
        ("tornado", "Tornado"),
        ("aiohttp.GunicornWebWorker", "aiohttp"),
        ("my.Worker", "its own"),
    ],
)
def test_the_reason_against_a_worker_class_is_given(name, reason):
    assert reason in why_not(name)


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("workers = 4\nbind: str = 'a:1'", ["workers", "bind"]),
        ("a = b = 1\na = 2", ["a", "b"]),
        ("def post_fork(server, worker): pass\nasync def x(): pass", ["post_fork", "x"]),
        ("import os\nif os.environ: workers = 1\nos.x = 2", []),
        ("workers = ", []),
        ("\0", []),
        ("", []),
    ],
)
def test_names_that_a_python_file_sets_are_found(source, names):
    assert assigned_names(source) == names


def test_the_python_file_is_not_run(tmp_path):
    mark = tmp_path / "ran"
    assert assigned_names(f"open({str(mark)!r}, 'w')\nworkers = 1") == ["workers"]
    assert not mark.exists()
