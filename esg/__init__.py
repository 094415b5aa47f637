"""ESG: a process manager and an ASGI server in one program."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from esg.version import __version__

if TYPE_CHECKING:
    from esg.api import run
    from esg.keywords import Config
    from esg.payload import WorkerInfo, current_worker
    from esg.server.embedded import Server

__all__ = ["Config", "Server", "WorkerInfo", "__version__", "current_worker", "run"]

_HOMES = {
    "Config": "esg.keywords",
    "Server": "esg.server.embedded",
    "WorkerInfo": "esg.payload",
    "current_worker": "esg.payload",
    "run": "esg.api",
}


def __getattr__(name: str) -> Any:
    """Import a name when it is used, because applications that are only served don't need it."""
    if name not in _HOMES:
        raise AttributeError(f"module 'esg' has no attribute {name!r}")
    import_module("esg.platforms").check()
    found = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return found
