"""The access log: a line a request, made once and written in batches.

Lines of one turn of the event loop go out in one write. That keeps the cost of a line below a
logging call's by an order of magnitude, and a crash loses at most one turn's lines.
"""

from __future__ import annotations

import asyncio
import logging
import os
from http import HTTPStatus

from esg.server.asgi import Endpoint

logger = logging.getLogger("esg")

PIPE_ATOMIC = 4096
"""Bytes that a write to a pipe keeps together: pipe(7), PIPE_BUF."""

_GREEN, _BRIGHT, _RED, _YELLOW, _BOLD, _RESET = (
    "\033[32m", "\033[91m", "\033[31m", "\033[33m", "\033[1m", "\033[0m"
)  # fmt: skip
_STATUS_COLORS = {2: _GREEN, 3: _YELLOW, 4: _RED, 5: _BRIGHT}


class AccessLog:
    """Writes `INFO:     127.0.0.1:52034 - "GET / HTTP/1.1" 200 OK` lines to a descriptor."""

    def __init__(self, loop: asyncio.AbstractEventLoop, fd: int, colors: bool) -> None:
        self._loop = loop
        self._fd = fd
        self._colors = colors
        self._pending: list[str] = []
        self._complained = False
        self._statuses = {
            status.value: self._status_text(status.value, status.phrase) for status in HTTPStatus
        }
        level = f"{_GREEN}INFO{_RESET}" if colors else "INFO"
        self._prefix = f"{level}:     "
        self._quote, self._unquote = (f'"{_BOLD}', f'{_RESET}"') if colors else ('"', '"')

    def _status_text(self, status: int, phrase: str) -> str:
        text = f"{status} {phrase}".rstrip()
        color = _STATUS_COLORS.get(status // 100, "") if self._colors else ""
        return f"{color}{text}{_RESET}" if color else text

    def record(
        self, client: Endpoint | None, method: str, target: bytes, http_version: str, status: int
    ) -> None:
        """Note a finished request; the line is written when the loop's turn ends."""
        if not self._pending:
            self._loop.call_soon(self.flush)
        peer = f"{client[0]}:{client[1]}" if client else ""
        shown = self._statuses.get(status) or self._status_text(status, "")
        self._pending.append(
            f"{self._prefix}{peer} - {self._quote}{method} {printable(target)} "
            f"HTTP/{http_version}{self._unquote} {shown}\n"
        )

    def flush(self) -> None:
        """Write what is pending. A log that can't be written is reported once."""
        lines, self._pending = self._pending, []
        try:
            for batch in _batches(lines):
                _write_all(self._fd, batch)
        except OSError as error:
            if not self._complained:
                self._complained = True
                logger.error("access log: can't be written: %s", error)


def printable(target: bytes) -> str:
    """A request target as a log may show it: whatever could break out of its line is escaped."""
    text = target.decode("latin-1")
    if text.isascii() and text.isprintable() and '"' not in text:
        return text
    return "".join(
        char if " " < char < "\x7f" and char != '"' else f"\\x{ord(char):02x}" for char in text
    )


def _batches(lines: list[str]) -> list[bytes]:
    """Join lines to pieces that a pipe keeps together, so that workers' lines don't mix."""
    batches: list[bytes] = []
    size, begin = 0, 0
    for index, line in enumerate(lines):
        if size + len(line) > PIPE_ATOMIC and size:
            batches.append("".join(lines[begin:index]).encode())
            size, begin = 0, index
        size += len(line)
    batches.append("".join(lines[begin:]).encode())
    return batches


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
