"""Fixtures for tests of whole, real `python -m esg` processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.runner import Esg


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Esg]]:
    """Starts servers: `start("--workers", "2", source=...)`, each in a folder of its own.

    Gives one that serves, or with `wait=False` one that was just started. When the test is over
    each is stopped, and must have left no process and no error that the test hasn't claimed.
    """
    started: list[Esg] = []

    def start(*arguments: str, wait: bool = True, files: Any = None, **options: Any) -> Esg:
        folder = tmp_path / str(len(started) + 1)
        folder.mkdir()
        for name, text in (files or {}).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        esg = Esg(folder, *arguments, **options)
        started.append(esg)
        if wait:
            esg.wait_for_log(r"serving workers=\d+")
        return esg

    try:
        yield start
        for esg in started:
            esg.stop()
    finally:
        for esg in started:
            esg.kill()
            print(f"--- the log of {esg.folder}:\n{esg.log}")  # noqa: T201 - for a test that fails
