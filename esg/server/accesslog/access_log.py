"""The access log: makes one line for each request, and writes the lines in batches.

The lines of one turn of the event loop are written together. That makes a line ten times cheaper
than a logging call, and a crash loses at most the lines of one turn. The duration, the number of
bytes and the response's fields are only recorded if the log `observes`: see `Observation` in
`entries.py`.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import math
import os
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

from esg.log import accessformat
from esg.log.files import PIPE_ATOMIC, LogFile
from esg.log.records import Subject, access_logger, as_json, rfc3339, wants_colors
from esg.log.setup import LogSetup
from esg.server.accesslog.entries import Entry, Refused, SocketRecord
from esg.server.accesslog.lines import (
    Line,
    message,
    path_and_query,
    peer,
    printable,
    request_line,
    shown,
    socket_message,
    terminal_line,
    terminal_refusal_line,
    terminal_socket_line,
    uvicorn_line,
    uvicorn_refusal_line,
    uvicorn_socket_line,
)
from esg.server.asgi.types import Headers

logger = logging.getLogger("esg")

RETRY_PAUSE = 0.05
"""Seconds until the next try to write lines that a file had no room for."""


class AccessLog:
    """Writes the lines of finished exchanges to a file."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        file: LogFile,
        line: Line,
        observes: bool = False,
        socket_line: Line | None = None,
        refusal_line: Line | None = None,
    ) -> None:
        """`observes`: lines need exchanges that have an `Observation`.

        `socket_line` makes the lines for WebSockets (`SocketRecord`), and `refusal_line` the lines
        for `Refused` requests; by default, `line` makes them.
        """
        self.observes = observes
        self._refusal_line = refusal_line or line
        self._socket_line = socket_line or line
        self._loop = loop
        self._file = file
        self._line = line
        self._pending: list[str] = []
        self._failed = False
        self._retry: asyncio.TimerHandle | None = None

    def record(self, exchange: Entry) -> None:
        """Note a finished exchange; its line is written when the loop's turn ends."""
        self._note(self._line, exchange)

    def record_socket(self, record: SocketRecord) -> None:
        """Add the line of a WebSocket that was accepted or closed."""
        self._note(self._socket_line, record)

    def record_refused(self, refused: Refused) -> None:
        """Add the line of a request that ESG answered itself."""
        self._note(self._refusal_line, refused)

    def _note(self, line: Line, subject: Entry) -> None:
        if not self._pending:
            self._loop.call_soon(self.flush)
        try:
            self._pending.append(line(subject))
        except Exception as error:  # noqa: BLE001 - the application may have changed its scope
            if not self._failed:
                self._failed = True
                logger.error("access log: can't write the line of a request: %r", error)

    def flush(self) -> None:
        """Write the pending lines."""
        lines, self._pending = self._pending, []
        for batch in _batches(lines):
            self._file.write(batch)
        if self._file.has_backlog and self._retry is None:
            self._retry = self._loop.call_later(RETRY_PAUSE, self._write_rest)

    def _write_rest(self) -> None:
        """Write the lines that the file had no room for."""
        self._retry = None
        self._file.flush()
        if self._file.has_backlog:
            self._retry = self._loop.call_later(RETRY_PAUSE, self._write_rest)


_REQUEST = '%s - "%s %s HTTP/%s" %d'
"""The message of a request; its arguments are those that formatters for uvicorn expect."""


class LoggedAccess:
    """Logs finished exchanges to the logger `esg.access`, as uvicorn does to `uvicorn.access`."""

    def __init__(self, line: Line | None = None, observes: bool = False) -> None:
        """`line` makes the message; without it, the record has the same arguments as uvicorn's."""
        self.observes = observes
        self._line = line

    def record(self, exchange: Entry) -> None:
        """Log a finished exchange."""
        if not access_logger.isEnabledFor(logging.INFO):
            return
        if self._line is not None:
            access_logger.info("%s", self._line(exchange))
            return
        text = _REQUEST
        if isinstance(exchange, SocketRecord) and exchange.event == "closed":
            text += f" {exchange.seconds:.3f}s"
        scope = exchange.scope
        access_logger.info(
            text,
            peer(scope),
            scope["method"],
            printable(exchange.target) or "-",
            scope["http_version"],
            exchange.status,
        )

    def record_refused(self, refused: Refused) -> None:
        """Log a request that ESG answered itself."""
        self.record(refused)

    def record_socket(self, record: SocketRecord) -> None:
        """Log that a WebSocket was accepted or closed, in the form of a request."""
        self.record(record)

    def flush(self) -> None:
        """Do nothing: no lines are pending here."""


def access_log(
    setup: LogSetup, loop: asyncio.AbstractEventLoop, subject: Subject
) -> AccessLog | LoggedAccess | None:
    """The access log that the settings describe, or None if it is off. `subject` is this worker."""
    config = setup.config
    if not config.access_log:
        return None
    format_ = config.access_logformat
    line = formatted(format_) if format_ and format_ != accessformat.UVICORN else None
    socket_line = refusal_line = None
    observes = line is not None
    if setup.definition is not None or (config.leaves_logging and logging.root.handlers):
        return LoggedAccess(line, observes)
    if config.log_format == "json":
        socket_line = socket_json_line(subject, line or socket_message)
        line, observes = json_line(subject, line or message), True
    elif line is None:
        colors = wants_colors(config.use_colors, setup.access.fd)
        observes = format_ != accessformat.UVICORN and os.isatty(setup.access.fd)
        if observes:
            line, socket_line = terminal_line(colors), terminal_socket_line(colors)
            refusal_line = terminal_refusal_line(colors)
        else:
            line, socket_line = uvicorn_line(colors), uvicorn_socket_line(colors)
            refusal_line = uvicorn_refusal_line(colors)
    return AccessLog(loop, setup.access, line, observes, socket_line, refusal_line)


# -- formats -----------------------------------------------------------------------------


def formatted(text: str) -> Line:
    """Lines in a format of `--access-logformat`. Raises ValueError if the format is invalid.

    The format is parsed once. A line then only computes the values that the format contains.
    """
    template, atoms = accessformat.parse(text)
    values = tuple(_value(atom) for atom in atoms)
    if len(values) == 1:
        (value,) = values
        return lambda exchange: template % (value(exchange),)
    return lambda exchange: template % tuple([value(exchange) for value in values])


def _value(atom: accessformat.Atom) -> Callable[[Any], Any]:
    if atom.name == "i":
        return _request_field(atom.field.encode("latin-1", "replace"))
    if atom.name == "o":
        return _response_field(atom.field.encode("latin-1", "replace"))
    if atom.name == "e":
        return _variable(atom.field)
    if atom.name == "p":
        pid = f"<{os.getpid()}>"
        return lambda exchange: pid
    if atom.name == "t":
        return _clock()
    return _ATOMS[atom.name]


def _field(headers: Headers, name: bytes) -> str:
    """The value of the last field with this name, as in gunicorn's log; `-` if there is none."""
    value = None
    for other, text in headers:
        if other == name:
            value = text
    return "-" if value is None else shown(value)


def _request_field(name: bytes) -> Callable[[Any], str]:
    return lambda exchange: _field(exchange.scope["headers"], name)


def _response_field(name: bytes) -> Callable[[Any], str]:
    return lambda exchange: _field([(n.lower(), v) for n, v in exchange.response_headers], name)


def _variable(name: str) -> Callable[[Any], str]:
    """A variable of the request, named as in CGI (RFC 3875), or of the process's environment."""
    if name.startswith("http_"):
        return _request_field(name[5:].replace("_", "-").encode("latin-1", "replace"))
    known = _VARIABLES.get(name)
    if known is not None:
        return known
    constant = next((text for key, text in os.environ.items() if key.lower() == name), "-")
    constant = shown(constant)
    return lambda exchange: constant


def _clock() -> Callable[[Any], str]:
    """The local time as `[21/Nov/2026:09:52:58 +0000]`, formatted once a second."""
    made, text = -1, ""

    def now(exchange: Entry) -> str:
        nonlocal made, text
        second = int(time.time())
        if second != made:
            made, text = second, time.strftime("[%d/%b/%Y:%H:%M:%S %z]")
        return text

    return now


def _host(exchange: Entry) -> str:
    client = exchange.scope["client"]
    return str(client[0]) if client and client[0] else "-"


def _user(exchange: Entry) -> str:
    """The name in Basic credentials (RFC 7617); ESG doesn't check the password."""
    for name, value in exchange.scope["headers"]:
        if name == b"authorization" and value[:6].lower() == b"basic ":
            try:
                decoded = base64.b64decode(value[6:].strip(), validate=True)
                user = decoded.decode("utf-8").partition(":")[0]
            except (binascii.Error, UnicodeDecodeError):
                return "-"
            # The usual formats don't quote it, so it mustn't contain spaces or open a quote.
            return shown(user).replace(" ", "\\x20").replace("'", "\\x27") or "-"
    return "-"


def _path(exchange: Entry) -> str:
    """The decoded path, in ASCII.

    It comes from the target, since applications may alter the scope.
    """
    return shown(unquote(path_and_query(exchange.target)[0].decode("latin-1"))) or "-"


def _query(exchange: Entry) -> str:
    return printable(path_and_query(exchange.target)[1])


def _protocol(exchange: Entry) -> str:
    return f"HTTP/{exchange.scope['http_version']}" if exchange.target else "-"


def _server(index: int) -> Callable[[Any], str]:
    def part(exchange: Entry) -> str:
        server = exchange.scope["server"]
        return str(server[index]) if server and server[index] is not None else "-"

    return part


def _client_port(exchange: Entry) -> str:
    client = exchange.scope["client"]
    return str(client[1]) if client and client[1] is not None else "-"


_ATOMS: dict[str, Callable[[Any], Any]] = {
    "h": _host,
    "l": lambda exchange: "-",
    "u": _user,
    "r": request_line,
    "m": lambda exchange: exchange.scope["method"],
    "U": _path,
    "q": _query,
    "H": _protocol,
    "s": lambda exchange: exchange.status,
    "B": lambda exchange: exchange.sent,
    "b": lambda exchange: exchange.sent,
    "f": _request_field(b"referer"),
    "a": _request_field(b"user-agent"),
    "T": lambda exchange: int(exchange.seconds),
    "M": lambda exchange: int(exchange.seconds * 1_000),
    "D": lambda exchange: int(exchange.seconds * 1_000_000),
    "L": lambda exchange: f"{exchange.seconds:.6f}",
}

_VARIABLES: dict[str, Callable[[Any], Any]] = {
    "remote_addr": _host,
    "remote_port": _client_port,
    "request_method": _ATOMS["m"],
    "raw_uri": lambda exchange: printable(exchange.target),
    "path_info": _path,
    "query_string": _query,
    "server_protocol": _ATOMS["H"],
    "server_name": _server(0),
    "server_port": _server(1),
    "script_name": lambda exchange: shown(exchange.scope["root_path"]),
    "content_type": _request_field(b"content-type"),
    "content_length": _request_field(b"content-length"),
    "wsgi.url_scheme": lambda exchange: shown(exchange.scope["scheme"]),
}


# -- JSON --------------------------------------------------------------------------------


def json_line(subject: Subject, message: Line) -> Line:
    """One JSON object for each request, as in docs/logging.md. `message` makes its message."""
    fields_of = _json_fields(subject, message)
    return lambda exchange: as_json(fields_of(exchange))


def socket_json_line(subject: Subject, message: Line) -> Line:
    """The same for WebSockets, with an `event`; a closed one has a `code` instead of a status."""
    fields_of = _json_fields(subject, message)

    def line(record: SocketRecord) -> str:
        fields = fields_of(record)
        fields["event"] = record.event
        if record.event == "closed":
            fields["method"] = "GET"
            fields["code"] = fields.pop("status")
        if math.isfinite(record.round_trip):
            fields["round_trip"] = round(record.round_trip, 6)
        return as_json(fields)

    return line


def _json_fields(subject: Subject, message: Line) -> Callable[[Any], dict[str, Any]]:
    def fields_of(exchange: Any) -> dict[str, Any]:
        target: bytes = exchange.target
        path, query = path_and_query(target)
        fields: dict[str, Any] = {
            "time": rfc3339(time.time()),
            "level": "INFO",
            "logger": "esg.access",
            "message": message(exchange),
            "worker": subject.worker,
            "generation": subject.generation,
            "pid": subject.pid,
            "client": _host(exchange),
            "method": exchange.scope["method"],
            "path": path.decode("latin-1"),
            "status": exchange.status,
            "bytes": exchange.sent,
            "duration": round(exchange.seconds, 6),
        }
        if query:
            fields["query"] = query.decode("latin-1")
        for name, value in exchange.scope["headers"]:
            if name == b"x-request-id":
                fields["request_id"] = value.decode("latin-1")
        return fields

    return fields_of


def _batches(lines: list[str]) -> list[bytes]:
    """Join lines into pieces that are atomic on a pipe, so that lines of workers don't mix."""
    batches: list[bytes] = []
    size, begin = 0, 0
    for index, line in enumerate(lines):
        length = len(line) + 1
        if size + length > PIPE_ATOMIC and size:
            batches.append(_joined(lines[begin:index]))
            size, begin = 0, index
        size += length
    if lines:
        batches.append(_joined(lines[begin:]))
    return batches


def _joined(lines: list[str]) -> bytes:
    # Lines are ASCII, except for text that the operator has put into the format.
    return ("\n".join(lines) + "\n").encode("utf-8", "backslashreplace")
