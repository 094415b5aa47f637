"""The parts of responses that don't depend on the protocol: statuses, and the server's answers."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

REASONS = {status.value: status.phrase for status in HTTPStatus} | {
    # the phrases of RFC 9110: Python's depend on its version
    413: "Content Too Large",
    414: "URI Too Long",
    416: "Range Not Satisfiable",
    422: "Unprocessable Content",
}


class InvalidHeader(ValueError):
    """The application gave a response field that can't be sent."""


Content = tuple[bytes, bytes]
"""A media type and a body."""


def plain_content(status: int) -> Content:
    """The body of one of the server's own responses, and its media type."""
    return b"text/plain", REASONS.get(status, "Error").encode("ascii")


def check_status(status: Any) -> int:
    """The status code of `http.response.start`. Raises InvalidHeader if it isn't valid."""
    code = int(status)
    if not 200 <= code <= 999:
        raise InvalidHeader(f"{status!r} isn't a final status code")
    return code
