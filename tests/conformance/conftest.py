"""Stages for both parsers, and a log without errors."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.protocol.conftest import LogBook, log
from tests.support.stage import PARSERS, Stage

__all__ = ["log"]


@pytest.fixture(scope="session")
def stages() -> Iterator[dict[str, Stage]]:
    """A stage by the name of its parser."""
    made = {parser: Stage(parser) for parser in PARSERS}
    yield made
    for stage in made.values():
        stage.close()


@pytest.fixture(autouse=True)
def quiet(log: LogBook) -> None:
    """Check that no error is logged."""
