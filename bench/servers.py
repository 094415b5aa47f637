"""The servers compared, as command lines: one worker each, on uvloop, with nothing else tuned."""

import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Callable

# command(app, port, access_log) -> argv
Command = Callable[[str, int, bool], list[str]]

# A setting left in the caller's environment would change what is compared.
_CONFIGURING_PREFIXES = ("ESG_", "UVICORN_", "GRANIAN_", "GUNICORN_", "WEB_CONCURRENCY")


def esg(app: str, port: int, access_log: bool, workers: int = 1) -> list[str]:
    return [
        sys.executable,
        "-m",
        "esg",
        app,
        *_listen(port),
        "--workers",
        str(workers),
        *_log(access_log),
    ]


def uvicorn(app: str, port: int, access_log: bool) -> list[str]:
    protocol = ["--http", "httptools", "--loop", "uvloop"]
    return [sys.executable, "-m", "uvicorn", app, *_listen(port), *protocol, *_log(access_log)]


def granian(app: str, port: int, access_log: bool) -> list[str]:
    protocol = ["--interface", "asgi", "--loop", "uvloop", "--no-ws"]
    common = [*_listen(port), "--workers", "1", *_log(access_log)]
    return [sys.executable, "-m", "granian", *common, *protocol, app]


def gunicorn(app: str, port: int, access_log: bool) -> list[str]:
    # No access log is gunicorn's default; "-" is stdout.
    log = ["--access-logfile", "-"] if access_log else ["--log-level", "warning"]
    protocol = ["-k", "asgi", "--asgi-loop", "uvloop", "--no-control-socket"]
    listen = ["--bind", f"127.0.0.1:{port}"]
    return [sys.executable, "-m", "gunicorn", *listen, *protocol, "--workers", "1", *log, app]


def _listen(port: int) -> list[str]:
    return ["--host", "127.0.0.1", "--port", str(port)]


def _log(access_log: bool) -> list[str]:
    if access_log:
        return ["--access-log", "--log-level", "info"]
    return ["--no-access-log", "--log-level", "warning"]


SERVERS: dict[str, Command] = {
    "esg": esg,
    "uvicorn": uvicorn,
    "granian": granian,
    "gunicorn": gunicorn,
}


def environment() -> dict[str, str]:
    """The caller's environment without the variables that configure one of the servers."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_CONFIGURING_PREFIXES)
    }


def version(server: str) -> str:
    """The installed version of `server`, and its parser if that depends on what is installed."""
    if server == "esg":
        return "this checkout"  # it runs from the root of the repository, installed or not
    try:
        number = importlib.metadata.version(server)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
    if server != "gunicorn":
        return number
    fast = importlib.util.find_spec("gunicorn_h1c")
    return f"{number} ({'gunicorn_h1c' if fast else 'pure Python'} parser)"
