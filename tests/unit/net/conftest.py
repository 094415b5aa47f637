"""Listeners for the tests of this folder."""

from __future__ import annotations

import pytest

from esg.net.opening import open_listeners


@pytest.fixture
def listen():
    """Opens listeners, and closes them at the end."""
    opened = []

    def start(*binds, backlog=16):
        listeners = open_listeners(binds, backlog, "--bind")
        opened.extend(listeners)
        return listeners

    yield start
    for listener in opened:
        listener.close()
