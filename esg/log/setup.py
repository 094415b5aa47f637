"""The log: one grammar for every record, as text or JSON, and where it goes.

A record is a line `TIME LEVEL SUBJECT EVENT`, where SUBJECT says which process it is about:
`worker=3 gen=2 pid=4711 ready`, `arbiter gen=2 pid=4700 serving workers=4`. What else belongs to
it, such as a traceback, follows in lines that begin with two spaces. Nothing that an application
or a client sends can begin a line otherwise, or hide in one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import os
import re
import stat
import sys
import time
import warnings
from collections.abc import Iterator
from typing import IO, Any, TextIO, TypeVar

from esg.errors import ConfigError
from esg.log import dictconfig
from esg.log import files as logfiles
from esg.log.files import LineStream, LogFile, LogFiles
from esg.seldom import Seldom
from esg.settings.kinds import LogDefinition
from esg.settings.schema import Config

TRACE = 5
"""The level below DEBUG, with uvicorn's number: connections as they come and go."""

logging.addLevelName(TRACE, "TRACE")

logger = logging.getLogger("esg")
access_logger = logging.getLogger("esg.access")
"""What access lines go through where `--log-config` says how they are logged."""

PEERS_LOGGERS = ("uvicorn", "gunicorn.error", "hypercorn.error")
"""Loggers of other servers. Applications written for those servers log through them."""

H = TypeVar("H", bound=logging.Handler)

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
BOLD = "\033[1m"

LISTENING = "listening on "
"""How the line begins that says where clients connect; on a terminal the address stands out."""

_ADDRESS = re.compile(rf"({LISTENING})(\S+)")


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


_failures = Seldom()


def write(level: int, subject: Subject, event: str, detail: str = "") -> None:
    """Log an event about `subject`. `detail` is a traceback or the like that belongs to it.

    Raises nothing: what `--log-config` brings along may, and the caller has more to do than log.
    """
    if not logger.isEnabledFor(level):
        return
    record = logger.makeRecord(
        logger.name, level, __file__, 0, "%s %s", (subject, event), None, "write"
    )
    record.exc_text = detail or None
    try:
        logger.handle(record)
    except Exception as error:  # noqa: BLE001 - filters and handlers may be anybody's
        more = _failures.now(time.monotonic())
        if more is not None:
            count = f" ({more} more before it)" if more else ""
            logfiles.complain_on_stderr(f"a line can't be logged: {error!r}{count}")


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
        text = text_of(line)
        if self._colors and event.startswith(LISTENING):
            text = _ADDRESS.sub(rf"\1{BOLD}\2{RESET}", text, count=1)
        return f"{moment}.{int(record.msecs):03d} {level} {text}"


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
    """Whether to colour what goes to `fd`: as the setting says, else if it is a terminal.

    The variable NO_COLOR turns that default off (https://no-color.org).
    """
    if setting is not None:
        return setting
    return os.isatty(fd) and not os.environ.get("NO_COLOR")


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
    definition: dictconfig.Definition | None
    """The parsed `--log-config`; None without one, or if the application configures logging."""

    @classmethod
    def open(cls, config: Config, files: LogFiles) -> LogSetup:
        """Open what the settings name. Raises LogFileError or ConfigError."""
        error = files.open(config.error_logfile, 2, config.origin("error_logfile"))
        path = config.access_logfile if config.access_log else "-"
        access = files.open(path, 1, config.origin("access_logfile"))
        error.complain, error.report = logfiles.complain_on_stderr, _report_in_log
        if access is not error:
            access.complain = access.report = _complain_in_log
        definition = None
        if isinstance(config.log_config, LogDefinition):
            definition = config.log_config.content
        elif config.log_config:
            definition = dictconfig.read(config.log_config, config.origin("log_config"))
        return cls(config, files, error, access, definition)

    def apply(self, subject: Subject) -> None:
        """Have this process, which is `subject`, log in this way from now on.

        Raises ConfigError if the file of `--log-config` can't be used; the log is on standard
        error then.
        """
        self._apply_options(subject)
        config = self.config
        if config.leaves_logging:
            self._leave_to_application()
        if self.definition is None:
            return
        logger.handlers[:] = []
        logger.setLevel(logging.NOTSET)
        logger.propagate = True
        for log in _peers_loggers():
            log.handlers[:] = _of_others(log)
            log.setLevel(logging.NOTSET)
            log.propagate = True
        where = config.origin("log_config")
        if isinstance(config.log_config, str):
            where += f": {config.log_config}"
        try:
            in_arbiter = subject.worker is None
            application = dictconfig.Application(config.app_dir, config.variables, in_arbiter)
            with _files_opened_as_logs():
                dictconfig.apply(self.definition, where, application, colors=config.use_colors)
        except ConfigError:
            self._apply_options(subject)
            raise
        self._write_streams_without_waiting()
        stay_enabled()
        logging.lastResort = _PYTHONS_LAST_RESORT
        if "log_level" in config.origins:
            logger.setLevel(config.log_level.upper())

    def _leave_to_application(self) -> None:
        """Log through the root logger's handlers as soon as it has some."""
        for log in (logger, *_peers_loggers()):
            for handler in log.handlers:
                if type(handler) is LineHandler:
                    handler.addFilter(_nobody_else_does)
            log.propagate = True
            if logging.root.handlers and "log_level" not in self.config.origins:
                log.setLevel(logging.NOTSET)

    def _write_streams_without_waiting(self) -> None:
        """Keep `--log-config`'s handlers from blocking if nobody reads a standard stream."""
        for _, handler in _handlers_of(logging.StreamHandler):
            for fd, streams in (
                (1, (sys.stdout, sys.__stdout__)),
                (2, (sys.stderr, sys.__stderr__)),
            ):
                if handler.stream in streams:
                    handler.setStream(LineStream(self.files.open("-", fd, "")))

    def _apply_options(self, subject: Subject) -> None:
        """What there is to do without a `--log-config`."""
        config = self.config
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
        for log in _peers_loggers():
            log.handlers[:] = [LineHandler(self.error, formatter), *_of_others(log)]
            log.setLevel(config.log_level.upper())
            log.propagate = log.disabled = False
        # For records that nobody else takes, as of "asyncio" where the application sets up no
        # logging of its own. The root logger is the application's, and left alone.
        logging.lastResort = LineHandler(self.error, formatter, logging.WARNING)
        if config.log_format == "json" or _captures_warnings:
            _take_warnings(LineHandler(self.error, formatter))

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


def check(config: Config) -> None:
    """Find what would be wrong with logging as these settings say, and write to no file.

    What `--log-config` says is applied to this process, without handlers that are files. Raises
    LogFileError or ConfigError.
    """
    files = LogFiles(logfiles.probe)
    try:
        setup = LogSetup.open(config, files)
        if setup.definition is not None:
            with _without_files():
                setup.apply(arbiter_subject(1, os.getpid()))
    finally:
        files.keep(())


@contextlib.contextmanager
def _without_files() -> Iterator[None]:
    """Have handlers that are files only look whether they can be; then they are taken away."""
    streams: list[TextIO] = []

    def probe(handler: logging.FileHandler) -> TextIO:
        streams.append(os.fdopen(logfiles.probe(handler.baseFilename), "w", encoding="utf-8"))
        return streams[-1]

    real = logging.FileHandler._open
    logging.FileHandler._open = probe  # type: ignore[method-assign,assignment] # for both forms
    try:
        yield
    finally:
        logging.FileHandler._open = real  # type: ignore[method-assign]
        for log, handler in _file_handlers():
            log.removeHandler(handler)
            handler.close()
        for stream in streams:
            stream.close()


@contextlib.contextmanager
def _files_opened_as_logs() -> Iterator[None]:
    """Make root open handlers' files as safely as ESG's own: see `logfiles.open_log`."""
    if os.geteuid() != 0 or logging.FileHandler._open is not _PYTHONS_OPEN:
        yield
        return

    def opened(handler: logging.FileHandler) -> IO[Any]:
        return open(
            handler.baseFilename,
            handler.mode,
            encoding=handler.encoding,
            errors=handler.errors,
            opener=_opened_by_root,
        )

    logging.FileHandler._open = opened  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        logging.FileHandler._open = _PYTHONS_OPEN  # type: ignore[method-assign]


_PYTHONS_OPEN = logging.FileHandler._open


def _opened_by_root(path: str, flags: int) -> int:
    fd = logfiles.open_log(path, 0o666)
    os.set_blocking(fd, True)
    if flags & os.O_TRUNC and stat.S_ISREG(os.fstat(fd).st_mode):
        os.ftruncate(fd, 0)
    return fd


# -- Python's warnings -------------------------------------------------------------------

_captures_warnings = False


@contextlib.contextmanager
def captured_warnings() -> Iterator[None]:
    """Have Python's warnings logged, which it would print, in a process that is ESG's own."""
    global _captures_warnings
    log, printed = logging.getLogger("py.warnings"), warnings.showwarning
    handlers = log.handlers[:]
    _take_warnings(LineHandler(LogFile(2), TextFormatter()))  # until a LogSetup is applied
    changed = warnings.showwarning is not printed
    _captures_warnings = True
    try:
        yield
    finally:
        _captures_warnings = False
        log.handlers[:] = handlers
        if changed:
            logging.captureWarnings(False)


def _take_warnings(handler: LineHandler) -> None:
    """Log Python's warnings, unless the root logger has handlers: then they are the application's.

    Or those of `--log-config`.
    """
    handler.addFilter(_nobody_else_does)
    log = logging.getLogger("py.warnings")
    log.handlers[:] = [handler]
    log.propagate, log.disabled = True, False
    log.setLevel(logging.NOTSET)
    logging.captureWarnings(True)


def _nobody_else_does(record: logging.LogRecord) -> bool:
    """A filter: true if the root logger has no handlers, so that nothing else logs the record."""
    return not logging.root.handlers


_PYTHONS_LAST_RESORT = logging.lastResort


def _peers_loggers() -> list[logging.Logger]:
    """The PEERS_LOGGERS without handlers, or with one that ESG gave them earlier."""
    loggers = [logging.getLogger(name) for name in PEERS_LOGGERS]
    return [log for log in loggers if not log.handlers or len(_of_others(log)) < len(log.handlers)]


def _of_others(log: logging.Logger) -> list[logging.Handler]:
    """The handlers of a logger that aren't ESG's."""
    return [handler for handler in log.handlers if type(handler) is not LineHandler]


class State:
    """What a LogSetup changes in this process, to be put back."""

    def __init__(self) -> None:
        loggers = logger, access_logger, logging.getLogger("py.warnings"), *_peers_loggers()
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


def _report_in_log(line: str) -> None:
    logger.error("log: %s", line)


def stay_enabled() -> None:
    """Undo what an application did to ESG's loggers, and that of warnings, without meaning to.

    `logging.config` disables every logger that it isn't told of, unless it is told not to.
    """
    logger.disabled = access_logger.disabled = False
    logging.getLogger("py.warnings").disabled = False


def reopen_handlers() -> None:
    """Reopen the files of handlers that `--log-config` or the application have made."""
    for _, handler in _file_handlers():
        _reopen(handler)


def _file_handlers() -> list[tuple[logging.Logger, logging.FileHandler]]:
    """Every handler that is a file, with its logger."""
    return _handlers_of(logging.FileHandler)


def _handlers_of(kind: type[H]) -> list[tuple[logging.Logger, H]]:
    """Every handler of a kind, with its logger."""
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    return [
        (log, handler)
        for log in loggers
        if isinstance(log, logging.Logger)
        for handler in log.handlers
        if isinstance(handler, kind)
    ]


def _reopen(handler: logging.FileHandler) -> None:
    """Open a handler's file anew; it keeps the old one if that fails."""
    handler.acquire()
    try:
        if handler.stream is not None:
            with _files_opened_as_logs():
                stream = handler._open()
            previous = handler.setStream(stream)
            if previous is not None:
                previous.close()
    except OSError as error:
        logger.error("can't reopen the log file %r: %s", handler.baseFilename, error.strerror)
    finally:
        handler.release()
