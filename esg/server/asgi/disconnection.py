"""The error by which an application learns that its client has left."""

from __future__ import annotations


class ClientDisconnected(OSError):
    """The client has left, so nothing can be sent to it."""


def is_disconnect(error: BaseException) -> bool:
    """Whether an error only means that the client has left, perhaps inside a group.

    Starlette turns ClientDisconnected, and an unexpected `http.disconnect`, into an
    exception of its own.
    """
    if isinstance(error, BaseExceptionGroup):
        return all(is_disconnect(inner) for inner in error.exceptions)
    causes = (error, error.__cause__, error.__context__)
    if any(isinstance(cause, ClientDisconnected) for cause in causes):
        return True
    return type(error).__name__ == "ClientDisconnect"
