"""Which event loop a worker runs."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Callable, Iterable

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


def lines_writer(transport: asyncio.WriteTransport) -> Callable[[Iterable[bytes]], None]:
    """How to send several pieces on a transport, none of them empty.

    With uvloop in one system call. asyncio's `writelines` copies in Python 3.11, and in some later
    releases it doesn't pause a protocol whose client is slow (python/cpython#127655).
    """
    if type(transport).__module__.startswith("uvloop"):
        return transport.writelines

    def write_each(pieces: Iterable[bytes]) -> None:
        for piece in pieces:
            transport.write(piece)

    return write_each
