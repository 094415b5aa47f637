"""The errors that ESG raises on purpose, each with its exit code or HTTP status."""

from __future__ import annotations


class ESGError(Exception):
    """Base of the errors that ESG raises on purpose.

    The message is one line for the operator: what is wrong, where it comes from, what would work.
    """

    exit_code = 1


class ConfigError(ESGError):
    """A setting, from any source, has a value that can't be used."""

    exit_code = 2


class ListenError(ESGError):
    """An address can't be listened on."""

    exit_code = 1


class LogFileError(ESGError):
    """A log file can't be opened."""

    exit_code = 1


class PidFileError(ESGError):
    """The pid file can't be written, or a running process has it."""

    exit_code = 1


class BootError(ESGError):
    """A worker can't boot; `detail` is the traceback to show, if there is one."""

    exit_code = 3

    def __init__(self, message: str, detail: str = "") -> None:
        super().__init__(message)
        self.detail = detail


class AppImportError(BootError):
    """The application can't be imported, or the imported object isn't an application."""

    exit_code = 4


class HTTPError(ESGError):
    """A request that the server answers itself with an error status before it disconnects."""

    status = 400


class BadRequest(HTTPError):
    """The request breaks HTTP's grammar or framing rules (RFC 9112)."""

    status = 400


class RequestTimeout(HTTPError):
    """The client took too long to send the request (RFC 9110, section 15.5.9)."""

    status = 408


class ContentTooLarge(HTTPError):
    """The request's content is larger than the limit (RFC 9110, section 15.5.14)."""

    status = 413


class URITooLong(HTTPError):
    """The request line is longer than the limit (RFC 9110, section 15.5.15)."""

    status = 414


class HeaderFieldsTooLarge(HTTPError):
    """The request's header section is larger than the limit (RFC 6585, section 5)."""

    status = 431


class VersionNotSupported(HTTPError):
    """A version of HTTP other than 1.0 and 1.1 (RFC 9110, section 15.6.6)."""

    status = 505


class NotImplementedByServer(HTTPError):
    """A method or transfer coding that this server doesn't implement (RFC 9110, 15.6.2)."""

    status = 501
