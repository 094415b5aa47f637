"""Which event loop a worker runs."""

from __future__ import annotations

import asyncio
import logging
import threading

import pytest
import uvloop

from esg.errors import BootError
from esg.server.loops import loop_factory, loop_in_place_of


@pytest.fixture
def patched(monkeypatch) -> None:
    """The main thread as after gevent's monkey.patch_all(): another object."""
    monkeypatch.setattr(threading.main_thread(), "_ident", 1)


def test_without_patches_the_loop_is_not_changed(caplog) -> None:
    assert loop_in_place_of(uvloop.new_event_loop, "auto", "worker") is uvloop.new_event_loop
    assert caplog.text == ""


@pytest.mark.usefixtures("patched")
def test_if_threads_are_patched_auto_means_asyncio(caplog) -> None:
    caplog.set_level(logging.INFO, "esg")
    assert loop_in_place_of(loop_factory("auto"), "auto", "worker") is asyncio.new_event_loop
    assert "patches threads" in caplog.text


@pytest.mark.usefixtures("patched")
def test_if_threads_are_patched_uvloop_is_refused() -> None:
    with pytest.raises(BootError, match="--loop asyncio"):
        loop_in_place_of(uvloop.new_event_loop, "uvloop", "worker")
    assert loop_in_place_of(asyncio.new_event_loop, "asyncio", "worker") is asyncio.new_event_loop
