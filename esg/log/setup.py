"""Sets up a generation's log: its files, the handlers in this process, and `--log-config`."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import sys
import warnings
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any, TextIO, TypeVar

from esg.errors import ConfigError
from esg.frozen import frozen
from esg.log.files import LineStream, LogFile, LogFiles, complain_on_stderr, open_log, probe
from esg.log.records import (
    JSONFormatter,
    LineHandler,
    Subject,
    TextFormatter,
    access_logger,
    arbiter_subject,
    logger,
    wants_colors,
)
from esg.settings.kinds import LogDefinition
from esg.settings.objects import NO_OBJECTS, Objects, put_back
from esg.settings.schema import Config

if TYPE_CHECKING:
    from esg.log import dictconfig

PEERS_LOGGERS = ("uvicorn", "gunicorn.error", "hypercorn.error")
"""Loggers of other servers. Applications written for those servers log through them."""

H = TypeVar("H", bound=logging.Handler)


@frozen
class LogSetup:
    """How one generation logs, with its files open. Made by the arbiter, inherited by workers."""

    config: Config
    files: LogFiles
    error: LogFile
    access: LogFile
    definition: dictconfig.Definition | None
    """The parsed `--log-config`; None without one, or if the application configures logging."""

    @classmethod
    def open(cls, config: Config, files: LogFiles, objects: Objects = NO_OBJECTS) -> LogSetup:
        """Open the files that the settings name. Raises LogFileError or ConfigError."""
        error = files.open(config.error_logfile, 2, config.origin("error_logfile"))
        path = config.access_logfile if config.access_log else "-"
        access = files.open(path, 1, config.origin("access_logfile"))
        error.complain, error.report = complain_on_stderr, _report_in_log
        if access is not error:
            access.complain = access.report = _complain_in_log
        definition: dictconfig.Definition | None = None
        if isinstance(config.log_config, LogDefinition):
            definition = put_back(config.log_config.content, objects.log_config)
        elif config.log_config:
            from esg.log import dictconfig  # seldom needed, and slow to import

            definition = dictconfig.read(config.log_config, config.origin("log_config"))
        return cls(config, files, error, access, definition)

    def apply(self, subject: Subject) -> None:
        """Make this process log in this way from now on; `subject` is the process.

        Raises ConfigError if the file of `--log-config` can't be used; the log then goes to
        standard error.
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
        from esg.log import dictconfig

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
                    handler.addFilter(_root_has_no_handlers)
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
        """Configure logging by the options other than `--log-config`."""
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
        # For records without a handler, for example of "asyncio" if the application doesn't set up
        # logging. The root logger belongs to the application, so it isn't changed.
        logging.lastResort = LineHandler(self.error, formatter, logging.WARNING)
        if config.log_format == "json" or _captures_warnings:
            _take_warnings(LineHandler(self.error, formatter))

    def keep_only(self) -> None:
        """Close the log files of other generations, in a process that writes only to its own."""
        self.files.keep((self.access, self.error))

    def check(self, subject: Subject, current: LogSetup) -> None:
        """Raise ConfigError if this set-up can't be applied. Afterwards `current` applies again."""
        if self.definition is None:
            return
        try:
            self.apply(subject)
        finally:
            current.apply(subject)


def check_logging(config: Config) -> None:
    """Check the logging settings without writing to a file. Raises LogFileError or ConfigError.

    A `--log-config` is applied to this process, but its files are only probed.
    """
    files = LogFiles(probe)
    try:
        setup = LogSetup.open(config, files)
        if setup.definition is not None:
            with _without_files():
                setup.apply(arbiter_subject(1, os.getpid()))
    finally:
        files.keep(())


@contextlib.contextmanager
def _without_files() -> Iterator[None]:
    """Make file handlers only probe their files, and remove these handlers at the end."""
    streams: list[TextIO] = []

    def probed(handler: logging.FileHandler) -> TextIO:
        streams.append(os.fdopen(probe(handler.baseFilename), "w", encoding="utf-8"))
        return streams[-1]

    real = logging.FileHandler._open
    logging.FileHandler._open = probed  # type: ignore[method-assign,assignment] # for both forms
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
    """Make root open handlers' files as safely as ESG's own: see `files.open_log`."""
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
    fd = open_log(path, 0o666)
    os.set_blocking(fd, True)
    if flags & os.O_TRUNC and stat.S_ISREG(os.fstat(fd).st_mode):
        os.ftruncate(fd, 0)
    return fd


# -- Python's warnings -------------------------------------------------------------------

_captures_warnings = False


@contextlib.contextmanager
def captured_warnings() -> Iterator[None]:
    """Log Python's warnings instead of printing them, in a process that belongs to ESG."""
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
    """Log Python's warnings, unless the root logger has handlers.

    In that case the application or `--log-config` handles them.
    """
    handler.addFilter(_root_has_no_handlers)
    log = logging.getLogger("py.warnings")
    log.handlers[:] = [handler]
    log.propagate, log.disabled = True, False
    log.setLevel(logging.NOTSET)
    logging.captureWarnings(True)


def _root_has_no_handlers(record: logging.LogRecord) -> bool:
    """A filter: true if the root logger has no handlers, so that nothing else logs the record."""
    return not logging.root.handlers


_PYTHONS_LAST_RESORT = logging.lastResort


def _peers_loggers() -> list[logging.Logger]:
    """Those of PEERS_LOGGERS that have no handlers, or a handler that ESG added earlier."""
    loggers = [logging.getLogger(name) for name in PEERS_LOGGERS]
    return [log for log in loggers if not log.handlers or len(_of_others(log)) < len(log.handlers)]


def _of_others(log: logging.Logger) -> list[logging.Handler]:
    """The handlers of a logger that aren't ESG's."""
    return [handler for handler in log.handlers if type(handler) is not LineHandler]


class SavedLogging:
    """The state that a LogSetup changes in this process, so that it can be restored."""

    def __init__(self) -> None:
        loggers = logger, access_logger, logging.getLogger("py.warnings"), *_peers_loggers()
        self._loggers = [
            (log, log.handlers[:], log.level, log.propagate, log.disabled, log.parent)
            for log in loggers
        ]
        self._last_resort = logging.lastResort
        self._captures_warnings = getattr(logging, "_warnings_showwarning", None) is not None

    def restore(self) -> None:
        """Restore the state at the creation of this object. Other loggers that a `--log-config` set
        up aren't changed."""
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
    """Enable ESG's loggers and the logger of warnings again.

    An application may have disabled them unintentionally: by default, `logging.config` disables
    every logger that a configuration doesn't name.
    """
    logger.disabled = access_logger.disabled = False
    logging.getLogger("py.warnings").disabled = False


def reopen_handlers() -> None:
    """Reopen the files of handlers that `--log-config` or the application has made."""
    for _, handler in _file_handlers():
        _reopen(handler)


def _file_handlers() -> list[tuple[logging.Logger, logging.FileHandler]]:
    """Every file handler, with its logger."""
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
    """Reopen a handler's file; if that fails, it keeps the old one."""
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
