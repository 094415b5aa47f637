"""The log: one grammar for every line, plain or coloured text on standard error.

A line is `TIME LEVEL SUBJECT EVENT`, where SUBJECT says which process it is about:
`worker=3 gen=2 pid=4711 ready`, `arbiter gen=2 pid=4700 serving workers=4`.
"""

from __future__ import annotations

import logging
import os
import sys
import time

logger = logging.getLogger("esg")

_COLORS = {
    logging.DEBUG: "\033[36m",
    logging.INFO: "\033[32m",
    logging.WARNING: "\033[33m",
    logging.ERROR: "\033[31m",
    logging.CRITICAL: "\033[91m",
}
RESET = "\033[0m"


class TextFormatter(logging.Formatter):
    """`2026-11-21 05:40:01.123 INFO     message`, in the machine's local time."""

    def __init__(self, colors: bool) -> None:
        super().__init__()
        self._colors = colors

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        level = f"{record.levelname:<8}"
        if self._colors:
            level = f"{_COLORS.get(record.levelno, '')}{level}{RESET}"
        line = f"{moment}.{int(record.msecs):03d} {level} {record.getMessage()}"
        if record.exc_info:
            line = f"{line}\n{self.formatException(record.exc_info)}"
        return line


def wants_colors(setting: bool | None, fd: int) -> bool:
    """Whether to colour what goes to `fd`: as the setting says, else if it is a terminal."""
    if setting is not None:
        return setting
    return os.isatty(fd)


def configure(level: str, use_colors: bool | None) -> None:
    """Send the "esg" logger to standard error; may be called again to change the level."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(TextFormatter(wants_colors(use_colors, 2)))
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(level.upper())


def worker_subject(number: int, generation: int, pid: int) -> str:
    """How a line about a worker begins."""
    return f"worker={number} gen={generation} pid={pid}"


def arbiter_subject(generation: int, pid: int) -> str:
    """How a line about the arbiter begins."""
    return f"arbiter gen={generation} pid={pid}"
