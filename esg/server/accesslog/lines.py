"""Makes access log lines in uvicorn's format, and lines for a terminal, with time and duration."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

from esg.server.accesslog.entries import Entry, SocketRecord

_GREEN, _BRIGHT, _RED, _YELLOW, _BOLD, _RESET = (
    "\033[32m", "\033[91m", "\033[31m", "\033[33m", "\033[1m", "\033[0m"
)  # fmt: skip
_STATUS_COLORS = {2: _GREEN, 3: _YELLOW, 4: _RED, 5: _BRIGHT}

Line = Callable[[Any], str]
"""Makes the line of a finished exchange, without the line end."""


# -- uvicorn's line ----------------------------------------------------------------------


def _status_text(status: int, phrase: str, colors: bool) -> str:
    text = f"{status} {phrase}".rstrip()
    color = _STATUS_COLORS.get(status // 100, "") if colors else ""
    return f"{color}{text}{_RESET}" if color else text


def _status_texts(colors: bool) -> dict[int, str]:
    return {status.value: _status_text(status, status.phrase, colors) for status in HTTPStatus}


def uvicorn_line(colors: bool, prefix: str | None = None) -> Line:
    """`INFO:     127.0.0.1:52034 - "GET / HTTP/1.1" 200 OK`; `prefix` replaces `INFO:     `."""
    statuses = _status_texts(colors)
    prefix = _uvicorn_prefix(colors) if prefix is None else prefix
    quote, unquote = (f'"{_BOLD}', f'{_RESET}"') if colors else ('"', '"')

    def line(exchange: Entry) -> str:
        scope, status = exchange.scope, exchange.status
        client = scope["client"]
        peer = f"{client[0]}:{client[1]}" if client else ""
        shown = statuses.get(status) or _status_text(status, "", colors)
        return (
            f"{prefix}{peer} - {quote}{scope['method']} {printable(exchange.target)} "
            f"HTTP/{scope['http_version']}{unquote} {shown}"
        )

    return line


def uvicorn_refusal_line(colors: bool, prefix: str | None = None) -> Line:
    """The line of a request that ESG answered itself; `"-"` if its request line isn't known."""
    statuses = _status_texts(colors)
    prefix = _uvicorn_prefix(colors) if prefix is None else prefix
    quote, unquote = (f'"{_BOLD}', f'{_RESET}"') if colors else ('"', '"')
    return lambda refused: (
        f"{prefix}{peer(refused.scope)} - {quote}{request_line(refused)}{unquote} "
        f"{statuses[refused.status]}"
    )


def uvicorn_socket_line(colors: bool) -> Line:
    """`INFO:     127.0.0.1:52034 - "WebSocket /ws" [accepted]`; the line at the end is similar."""
    prefix = _uvicorn_prefix(colors)
    return lambda record: prefix + socket_message(record)


def _uvicorn_prefix(colors: bool) -> str:
    return f"{_GREEN}INFO{_RESET}:     " if colors else "INFO:     "


# -- on a terminal -------------------------------------------------------------------------


def terminal_line(colors: bool) -> Line:
    """`2026-11-21 05:40:01.123 INFO     127.0.0.1:52034 - "GET / HTTP/1.1" 200 OK in 3.2 ms`.

    It begins like the lines of the log, which appear on the same terminal. The exchange has to be
    observed, because an ordinary one doesn't record how long it took.
    """
    request, level = uvicorn_line(colors, ""), _terminal_level(colors)
    return lambda exchange: (
        f"{local_time(time.time())} {level}{request(exchange)} in {duration(exchange.seconds)}"
    )


def terminal_refusal_line(colors: bool) -> Line:
    """The same for a request that ESG answered itself; it has no duration."""
    request, level = uvicorn_refusal_line(colors, ""), _terminal_level(colors)
    return lambda refused: f"{local_time(time.time())} {level}{request(refused)}"


def terminal_socket_line(colors: bool) -> Line:
    """The same for a WebSocket, when it is accepted and when it is closed."""
    level = _terminal_level(colors)
    return lambda record: f"{local_time(time.time())} {level}{socket_message(record)}"


def _terminal_level(colors: bool) -> str:
    return f"{_GREEN}{'INFO':<8}{_RESET} " if colors else f"{'INFO':<8} "


def local_time(moment: float) -> str:
    """Seconds since the epoch as `2026-11-21 05:40:01.123`, in local time."""
    whole, thousandths = divmod(int(moment * 1000), 1000)
    return f"{_local_second(whole)}.{thousandths:03d}"


@functools.lru_cache(maxsize=4)
def _local_second(second: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))


def duration(seconds: float) -> str:
    """A duration for people: `0.4 ms`, `52 ms`, `1.24 s`, `75 s`."""
    if seconds < 0.9995:
        milliseconds = seconds * 1000
        return f"{milliseconds:.1f} ms" if milliseconds < 9.95 else f"{milliseconds:.0f} ms"
    return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.0f} s"


# -- parts of lines ------------------------------------------------------------------------


def socket_message(record: SocketRecord) -> str:
    """The message of a WebSocket that was accepted or closed, in uvicorn's format, no prefix."""
    text = f'{peer(record.scope)} - "WebSocket {printable(record.target)}" [{record.event}]'
    return text if record.event == "accepted" else f"{text} {record.status} {record.seconds:.3f}s"


def message(exchange: Entry) -> str:
    """A request and its status, without a level."""
    return f'{peer(exchange.scope)} - "{request_line(exchange)}" {exchange.status}'


def peer(scope: Mapping[str, Any]) -> str:
    """The client's address and port; empty if it has none."""
    client = scope["client"]
    return f"{client[0]}:{client[1]}" if client else ""


def printable(target: bytes) -> str:
    """A request target, made safe to log: characters that could end the line are escaped.

    Quotes and backslashes are escaped as well, as in nginx's log, because parsers honour `\\"`.
    """
    text = target.decode("latin-1")
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return text
    return "".join(
        char if " " < char < "\x7f" and char not in _BREAKING else f"\\x{ord(char):02x}"
        for char in text
    )


def shown(value: bytes | str) -> str:
    """The value of a field, made safe to log: like `printable`, but spaces aren't escaped."""
    text = value if isinstance(value, str) else value.decode("latin-1")
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return text
    return "".join(
        char if " " <= char < "\x7f" and char not in _BREAKING else _escaped(char) for char in text
    )


_BREAKING = '"\\'
"""The character that ends a quoted field of a log line, and the one that could escape it."""


def _escaped(char: str) -> str:
    return f"\\x{ord(char):02x}" if char < "\u0100" else ascii(char)[1:-1]


def path_and_query(target: bytes) -> tuple[bytes, bytes]:
    """Path and query of a request target, also in absolute form (RFC 9112, section 3.2.2)."""
    if target[:1] != b"/":
        scheme, separator, rest = target.partition(b"://")
        if separator and scheme:
            begin = min((rest.find(mark) for mark in b"/?" if mark in rest), default=len(rest))
            target = rest[begin:] if rest[begin : begin + 1] == b"/" else b"/" + rest[begin:]
    path, _, query = target.partition(b"?")
    return path, query


def request_line(exchange: Entry) -> str:
    """The request line, safe to log; `-` if it isn't known."""
    if not exchange.target:
        return "-"
    scope = exchange.scope
    return f"{scope['method']} {printable(exchange.target)} HTTP/{scope['http_version']}"
