"""Formats the log's records as text or JSON, with one grammar for all of them, and writes them.

A record is a line `TIME LEVEL SUBJECT EVENT`, where SUBJECT says which process it is about:
`worker=3 gen=2 pid=4711 ready`, `arbiter gen=2 pid=4700 serving workers=4`. Details such as a
traceback follow in lines that begin with two spaces. Text from an application or a client can't
begin a record, and control characters in it are escaped.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import re
import time
from typing import Any

from esg.log.files import LogFile, complain_on_stderr
from esg.seldom import Seldom

TRACE = 5
"""The level below DEBUG, with uvicorn's number; it logs when connections begin and end."""

logging.addLevelName(TRACE, "TRACE")

logger = logging.getLogger("esg")
access_logger = logging.getLogger("esg.access")
"""The logger for access lines; only used with `--log-config`."""

CONTINUATION = "  "
"""The beginning of a record's second and further lines."""

_COLORS = {
    TRACE: "\033[34m",
    logging.DEBUG: "\033[36m",
    logging.INFO: "\033[32m",
    logging.WARNING: "\033[33m",
    logging.ERROR: "\033[31m",
    logging.CRITICAL: "\033[91m",
}
RESET = "\033[0m"
BOLD = "\033[1m"

LISTENING = "listening on "
"""The beginning of the line with an address to connect to; the address is bold on a terminal."""

_ADDRESS = re.compile(rf"({LISTENING})(\S+)")


class Subject(str):
    """The process that a record is about, as text with attributes.

    The arbiter's `worker` is None.
    """

    __slots__ = ("generation", "pid", "worker")

    def __new__(cls, worker: int | None, generation: int, pid: int, text: str = "") -> Subject:
        """`text` replaces the usual text, `worker=1 gen=1 pid=1`."""
        who = "arbiter" if worker is None else f"worker={worker}"
        subject = super().__new__(cls, text or f"{who} gen={generation} pid={pid}")
        subject.worker, subject.generation, subject.pid = worker, generation, pid
        return subject

    worker: int | None
    generation: int
    pid: int


def worker_subject(number: int, generation: int, pid: int) -> Subject:
    """The subject of records about a worker."""
    return Subject(number, generation, pid)


def arbiter_subject(generation: int, pid: int) -> Subject:
    """The subject of records about the arbiter."""
    return Subject(None, generation, pid)


_failures = Seldom()


def log_event(level: int, subject: Subject, event: str, detail: str = "") -> None:
    """Log an event about `subject`. `detail` has further lines, such as a traceback.

    It never raises, although code that `--log-config` names may: callers must be able to go on.
    """
    if not logger.isEnabledFor(level):
        return
    record = logger.makeRecord(
        logger.name, level, __file__, 0, "%s %s", (subject, event), None, "log_event"
    )
    record.exc_text = detail or None
    try:
        logger.handle(record)
    except Exception as error:  # noqa: BLE001 - filters and handlers may be the application's
        more = _failures.now(time.monotonic())
        if more is not None:
            count = f" ({more} more before it)" if more else ""
            complain_on_stderr(f"a line can't be logged: {error!r}{count}")


class _Formatter(logging.Formatter):
    """Splits a record into its subject, the event, and the traceback if there is one."""

    def __init__(self, subject: Subject | None = None) -> None:
        """`subject` is this process; it is used for records without a subject of their own."""
        super().__init__()
        self._subject = subject

    def _parts(self, record: logging.LogRecord) -> tuple[Subject | None, str, str]:
        subject, event = self._subject, record.getMessage()
        first = record.args[0] if isinstance(record.args, tuple) and record.args else None
        if isinstance(first, Subject) and event.startswith(first + " "):
            subject, event = first, event[len(first) + 1 :]
        detail = record.exc_text or ""
        if record.exc_info and not detail:
            detail = self.formatException(record.exc_info)
        if record.stack_info:
            detail = f"{detail}\n{record.stack_info}".strip("\n")
        return subject, event, detail


class TextFormatter(_Formatter):
    """`2026-11-21 05:40:01.123 INFO     worker=3 gen=2 pid=4711 ready`, in local time."""

    def __init__(self, colors: bool = False, subject: Subject | None = None) -> None:
        super().__init__(subject)
        self._colors = colors

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        level = f"{record.levelname:<8}"
        if self._colors:
            level = f"{_COLORS.get(record.levelno, '')}{level}{RESET}"
        subject, event, detail = self._parts(record)
        if record.name != logger.name:
            event = f"{record.name}: {event}"
        line = f"{subject} {event}" if subject is not None else event
        if detail:
            line = f"{line}\n{detail}"
        text = text_of(line)
        if self._colors and event.startswith(LISTENING):
            text = _ADDRESS.sub(rf"\1{BOLD}\2{RESET}", text, count=1)
        return f"{moment}.{int(record.msecs):03d} {level} {text}"


class JSONFormatter(_Formatter):
    """One JSON object per record. See docs/logging.md for the fields."""

    def format(self, record: logging.LogRecord) -> str:
        subject, event, detail = self._parts(record)
        fields: dict[str, Any] = {
            "time": rfc3339(record.created),
            "level": record.levelname,
            "logger": record.name,
            "message": event,
            "worker": subject.worker if subject else None,
            "generation": subject.generation if subject else None,
            "pid": subject.pid if subject else record.process,
        }
        if detail:
            fields["exception"] = detail
        return as_json(fields)


def text_of(text: str) -> str:
    """Text that is safe in a log: further lines are indented, control characters are escaped.

    Tabs are kept, since a tab can't begin a new line.
    """
    if text.isprintable():
        return text
    first, *others = text.rstrip("\n").split("\n")
    return "\n".join([visible(first), *(CONTINUATION + visible(line) for line in others)])


def visible(line: str) -> str:
    """A line with every character that isn't printable, except tabs, escaped as in `\\x1b`."""
    if line.isprintable():
        return line
    return "".join(
        char if char.isprintable() or char == "\t" else ascii(char)[1:-1] for char in line
    )


_encode = json.JSONEncoder(separators=(",", ":"), default=str).encode


def as_json(fields: dict[str, Any]) -> str:
    """One line of JSON in ASCII, without control characters."""
    return _encode(fields).replace("\x7f", "\\u007f")


def rfc3339(moment: float) -> str:
    """Seconds since the epoch as `2026-11-21T05:40:01.123Z` (RFC 3339, section 5.6)."""
    whole, thousandths = divmod(int(moment * 1000), 1000)
    return f"{_utc(whole)}.{thousandths:03d}Z"


@functools.lru_cache(maxsize=4)
def _utc(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


def wants_colors(setting: bool | None, fd: int) -> bool:
    """Whether to colour text for `fd`. If the setting is None, terminals get colours.

    The variable NO_COLOR turns that default off (https://no-color.org).
    """
    if setting is not None:
        return setting
    return os.isatty(fd) and not os.environ.get("NO_COLOR")


class LineHandler(logging.Handler):
    """Writes each record with one write(2), so that records of several processes don't mix.

    On a pipe this works for records of up to 4096 bytes, and for longer ones if the pipe has room
    (pipe(7), PIPE_BUF).
    """

    def __init__(self, file: LogFile, formatter: logging.Formatter, level: int = 0) -> None:
        super().__init__(level)
        self._file = file
        self.setFormatter(formatter)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
        except Exception as error:  # noqa: BLE001 - applications may log anything
            origin = f"{record.pathname}:{record.lineno}"
            record = logging.makeLogRecord(
                {
                    "name": record.name,
                    "levelno": record.levelno,
                    "levelname": record.levelname,
                    "msg": "a message that can't be formatted, from %s: %r: %r",
                    "args": (origin, record.msg, error),
                }
            )
            text = self.format(record)
        self._file.write(f"{text}\n".encode("utf-8", "backslashreplace"))
