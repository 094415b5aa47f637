"""Which event loop a worker runs."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Callable

from esg.errors import BootError


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    """The maker of the loop that `--loop` names; `auto` is uvloop where it is installed.

    Raises BootError if the loop isn't installed.
    """
    installed = importlib.util.find_spec("uvloop") is not None
    if name == "asyncio" or (name == "auto" and not installed):
        return asyncio.new_event_loop
    if not installed:
        raise BootError("--loop uvloop: uvloop is not installed; try: pip install uvloop")
    import uvloop

    return uvloop.new_event_loop
