"""Imports, before the first fork, the packages that serve, so that workers share their memory.

The application may use some of these packages too, and a deployment may replace them on the disk
without a restart. A worker must not mix the modules in memory with those on the disk, so it forgets
a package whose files have changed since the arbiter imported it.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable

from esg.server.http1.parsers import parser_class
from esg.server.loops import loop_factory
from esg.server.websocket.libraries import library
from esg.settings.schema import Config

SHARED = {
    "h11": "esg.server.http1.h11_parser",
    "websockets": "esg.server.websocket.websockets_codec",
    "wsproto": "esg.server.websocket.wsproto_codec",
}
"""Packages that applications also use, each with the module of ESG that uses it.

uvloop and httptools aren't among them: no application imports more of them than is in memory
already, and extension modules can't be imported twice.
"""

_imported: dict[str, tuple[int, ...]] = {}
"""The fingerprints of the shared packages' files when they were imported."""


def import_packages(config: Config) -> None:
    """Import what the workers with these settings need. A broken package is left to them: a worker
    that can't import it reports why."""
    wanted: Iterable[Callable[[], object]] = (
        lambda: loop_factory(config.loop),
        lambda: parser_class(config.http),
        lambda: library(config),
    )
    for import_one in wanted:
        with contextlib.suppress(Exception):
            import_one()
    for name in SHARED:
        if name in sys.modules and name not in _imported:
            _imported[name] = _files(name)


def forget_replaced() -> None:
    """In a worker, before it imports the application: forget packages that have been replaced."""
    for name, files in _imported.items():
        if _files(name) != files:
            dropped = (name, SHARED[name])
            for module in list(sys.modules):
                if module in dropped or module.startswith(f"{name}."):
                    del sys.modules[module]


def _files(name: str) -> tuple[int, ...]:
    """A fingerprint of the files of an imported package, which differs for another version."""
    path = getattr(sys.modules.get(name), "__file__", None) or ""
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size
