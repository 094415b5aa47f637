"""The log: one grammar for every record, as text or JSON, and where it goes.

A record is a line `TIME LEVEL SUBJECT EVENT`, where SUBJECT says which process it is about:
`worker=3 gen=2 pid=4711 ready`, `arbiter gen=2 pid=4700 serving workers=4`. What else belongs to
it, such as a traceback, follows in lines that begin with two spaces. Nothing that an application
or a client sends can begin a line otherwise, or hide in one.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import os
import time
from typing import Any

from esg import logconfig
from esg.config import Config
from esg.errors import ConfigError
from esg.logfiles import LogFile, LogFiles

TRACE = 5
"""The level below DEBUG, with uvicorn's number: connections as they come and go."""

logging.addLevelName(TRACE, "TRACE")

logger = logging.getLogger("esg")
access_logger = logging.getLogger("esg.access")
"""What access lines go through where `--log-config` says how they are logged."""

CONTINUATION = "  "
"""How the further lines of a record begin."""

_COLORS = {
    TRACE: "\033[34m",
    logging.DEBUG: "\033[36m",
    logging.INFO: "\033[32m",
    logging.WARNING: "\033[33m",
    logging.ERROR: "\033[31m",
    logging.CRITICAL: "\033[91m",
}
RESET = "\033[0m"


class Subject(str):
    """Whom a record is about, as text that knows its parts. `worker` is None for the arbiter."""

    __slots__ = ("generation", "pid", "worker")

    def __new__(cls, worker: int | None, generation: int, pid: int, text: str = "") -> Subject:
        """`text` is what it says, if not the usual."""
        who = "arbiter" if worker is None else f"worker={worker}"
        subject = super().__new__(cls, text or f"{who} gen={generation} pid={pid}")
        subject.worker, subject.generation, subject.pid = worker, generation, pid
        return subject

    worker: int | None
    generation: int
    pid: int


def worker_subject(number: int, generation: int, pid: int) -> Subject:
    """How a line about a worker begins."""
    return Subject(number, generation, pid)


def arbiter_subject(generation: int, pid: int) -> Subject:
    """How a line about the arbiter begins."""
    return Subject(None, generation, pid)


def write(level: int, subject: Subject, event: str, detail: str = "") -> None:
    """Log an event about `subject`. `detail` is a traceback or the like that belongs to it."""
    if not logger.isEnabledFor(level):
        return
    record = logger.makeRecord(
        logger.name, level, __file__, 0, "%s %s", (subject, event), None, "write"
    )
    record.exc_text = detail or None
    logger.handle(record)


# -- formats -----------------------------------------------------------------------------


class _Formatter(logging.Formatter):
    """Takes a record apart: whom it is about, what happened, and the traceback if there is one."""

    def __init__(self, subject: Subject | None = None) -> None:
        """`subject` is this process, whom records are about that don't say it."""
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
        return f"{moment}.{int(record.msecs):03d} {level} {text_of(line)}"


class JSONFormatter(_Formatter):
    """One JSON object a line: who, when, what. See docs/logging.md for the fields."""

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
    """Text as a log may show it: further lines marked as such, control characters escaped.

    A tab stays one, since it can't move what it stands in to another line.
    """
    if text.isprintable():
        return text
    first, *others = text.rstrip("\n").split("\n")
    return "\n".join([visible(first), *(CONTINUATION + visible(line) for line in others)])


def visible(line: str) -> str:
    """A line with all that a terminal wouldn't just print made visible, as in `\\x1b`."""
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
    """Whether to colour what goes to `fd`: as the setting says, else if it is a terminal."""
    if setting is not None:
        return setting
    return os.isatty(fd)


# -- where it goes -----------------------------------------------------------------------


class LineHandler(logging.Handler):
    """Writes each record with one write(2), which keeps records of several processes apart.

    On a pipe that holds for records of up to 4096 bytes, and for longer ones as long as the pipe
    has room (pipe(7), PIPE_BUF).
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


@dataclasses.dataclass(frozen=True, slots=True)
class LogSetup:
    """How one generation logs, with its files open. Made by the arbiter, inherited by workers."""

    config: Config
    files: LogFiles
    error: LogFile
    access: LogFile
    definition: logconfig.Definition | None
    """What the file of `--log-config` says."""

    @classmethod
    def open(cls, config: Config, files: LogFiles) -> LogSetup:
        """Open what the settings name. Raises LogFileError or ConfigError."""
        error = files.open(config.error_logfile, 2, config.origin("error_logfile"))
        path = config.access_logfile if config.access_log else "-"
        access = files.open(path, 1, config.origin("access_logfile"))
        access.complain = error.complain if access is error else _complain_in_log
        definition = None
        if config.log_config:
            definition = logconfig.read(config.log_config, config.origin("log_config"))
        return cls(config, files, error, access, definition)

    def apply(self, subject: Subject) -> None:
        """Have this process, which is `subject`, log in this way from now on.

        Raises ConfigError if the file of `--log-config` can't be used; the log is on standard
        error then.
        """
        self._apply_options(subject)
        if self.definition is None:
            return
        config = self.config
        logger.handlers[:] = []
        logger.setLevel(logging.NOTSET)
        logger.propagate = True
        where = f"{config.origin('log_config')}: {config.log_config}"
        try:
            logconfig.apply(self.definition, where)
        except ConfigError:
            self._apply_options(subject)
            raise
        logging.lastResort = _PYTHONS_LAST_RESORT
        if "log_level" in config.origins:
            logger.setLevel(config.log_level.upper())

    def _apply_options(self, subject: Subject) -> None:
        """What there is to do without a `--log-config`."""
        config = self.config
        logging.captureWarnings(False)
        formatter: logging.Formatter
        if config.log_format == "json":
            formatter = JSONFormatter(subject)
        else:
            formatter = TextFormatter(wants_colors(config.use_colors, self.error.fd), subject)
        logger.handlers[:] = [LineHandler(self.error, formatter)]
        logger.propagate = logger.disabled = False
        logger.setLevel(config.log_level.upper())
        access_logger.handlers[:] = []
        access_logger.setLevel(logging.NOTSET)
        access_logger.propagate, access_logger.disabled = True, False
        logger.parent, access_logger.parent = logging.root, logger
        # For records that nobody else takes, as of "asyncio" where the application sets up no
        # logging of its own. The root logger is the application's, and left alone.
        logging.lastResort = LineHandler(self.error, formatter, logging.WARNING)
        if config.log_format == "json":
            self._take_warnings(formatter)

    def _take_warnings(self, formatter: logging.Formatter) -> None:
        """Log Python's warnings, which it would print, unless the application logs them itself."""
        handler = LineHandler(self.error, formatter)
        handler.addFilter(lambda record: not logging.root.handlers)
        logging.getLogger("py.warnings").handlers[:] = [handler]
        logging.captureWarnings(True)

    def keep_only(self) -> None:
        """Close the log files of other generations, in a process that writes to these alone."""
        self.files.keep((self.access, self.error))

    def check(self, subject: Subject, current: LogSetup) -> None:
        """Raise ConfigError if this can't be applied; `current` is what is in force, and stays."""
        if self.definition is None:
            return
        try:
            self.apply(subject)
        finally:
            current.apply(subject)


_PYTHONS_LAST_RESORT = logging.lastResort


class State:
    """What a LogSetup changes in this process, to be put back."""

    def __init__(self) -> None:
        loggers = logger, access_logger, logging.getLogger("py.warnings")
        self._loggers = [
            (log, log.handlers[:], log.level, log.propagate, log.disabled, log.parent)
            for log in loggers
        ]
        self._last_resort = logging.lastResort
        self._captures_warnings = getattr(logging, "_warnings_showwarning", None) is not None

    def restore(self) -> None:
        """Log as at the time this was made; what a `--log-config` set up elsewhere stays."""
        for log, handlers, level, propagate, disabled, parent in self._loggers:
            log.handlers[:] = handlers
            log.setLevel(level)
            log.propagate, log.disabled, log.parent = propagate, disabled, parent
        logging.lastResort = self._last_resort
        logging.captureWarnings(self._captures_warnings)


def _complain_in_log(line: str) -> None:
    logger.error("access log: %s", line)


def stay_enabled() -> None:
    """Undo what an application did to ESG's loggers without meaning to.

    `logging.config` disables every logger that it isn't told of, unless it is told not to.
    """
    logger.disabled = access_logger.disabled = False


def reopen_handlers() -> None:
    """Reopen the files of handlers that `--log-config` or the application have made."""
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    for log in loggers:
        for handler in log.handlers if isinstance(log, logging.Logger) else ():
            if isinstance(handler, logging.FileHandler):
                _reopen(handler)


def _reopen(handler: logging.FileHandler) -> None:
    """Open a handler's file anew; it keeps the old one if that fails."""
    handler.acquire()
    try:
        if handler.stream is not None:
            stream = handler._open()
            previous = handler.setStream(stream)
            if previous is not None:
                previous.close()
    except OSError as error:
        logger.error("can't reopen the log file %r: %s", handler.baseFilename, error.strerror)
    finally:
        handler.release()
