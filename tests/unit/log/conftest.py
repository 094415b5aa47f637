"""Loggers that are restored after each test."""

from __future__ import annotations

import logging
import logging.config

import pytest

from esg.log.records import logger
from esg.log.setup import PEERS_LOGGERS


@pytest.fixture
def configured():
    """Restores ESG's loggers, and Python's logging of records without handlers."""
    names = ("esg", "esg.access", "py.warnings", "uvicorn.error", *PEERS_LOGGERS)
    mine = [logging.getLogger(name) for name in names]
    for log in mine:
        log.disabled = False  # the dictConfig of another test may have changed it
    before = [(log, log.handlers[:], log.propagate, log.level, log.parent) for log in mine]
    for name in PEERS_LOGGERS:
        log = logging.getLogger(name)
        log.handlers[:], log.propagate = [], True  # otherwise pytest adds its own handler
    last_resort = logging.lastResort
    yield logger
    for log, handlers, propagate, level, parent in before:
        log.handlers[:], log.propagate, log.parent = handlers, propagate, parent
        log.setLevel(level)
    logging.lastResort = last_resort
    logging.captureWarnings(False)


@pytest.fixture
def bare_root():
    """The root logger, without pytest's handlers."""
    root = logging.getLogger()
    before = root.handlers[:]

    def take():
        root.handlers[:] = []
        return root

    yield take
    root.handlers[:] = before
