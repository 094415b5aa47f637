"""Which event loop a worker runs."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Callable


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    """The maker of the loop that `--loop` names; `auto` is uvloop where it is installed.

    Whether another one is installed has been checked when the settings were read (`prepare`).
    """
    if name == "asyncio" or (name == "auto" and importlib.util.find_spec("uvloop") is None):
        return asyncio.new_event_loop
    import uvloop

    return uvloop.new_event_loop
