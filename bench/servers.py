"""The servers compared, as command lines: one worker each; ASGI servers on uvloop if they can."""

import functools
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path

from scenarios import Scenario

# command(app, port, access_log) -> argv
Command = Callable[[str, int, bool], list[str]]

# A setting left in the caller's environment would change what is compared.
_CONFIGURING_PREFIXES = (
    "ESG_",
    "UVICORN_",
    "GRANIAN_",
    "GUNICORN_",
    "H2CORN_",
    "SALTARE_",
    "WEB_CONCURRENCY",
)


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


def peregrine(app: str, port: int, access_log: bool, interface: str = "asgi") -> list[str]:
    log = ["--access-log"] if access_log else ["--log-level", "error"]
    listen = [*_listen(port), "--python-path", os.getcwd(), "--venv", sys.prefix]
    return [_script("peregrine"), *listen, "--protocol", interface, *log, app]


def h2corn(app: str, port: int, access_log: bool) -> list[str]:
    log = ["--access-log"] if access_log else ["--no-access-log"]
    return [_script("h2corn"), *_listen(port), "--loop", "uvloop", *log, app]


def saltare(app: str, port: int, access_log: bool) -> list[str]:
    return [_script("saltare"), *_listen(port), *(["--access-log"] if access_log else []), app]


def freastal(app: str, port: int, access_log: bool, interface: str = "asgi") -> list[str]:
    return [sys.executable, LAUNCHER, "freastal", interface, app, str(port)]


def fastpysgi(app: str, port: int, access_log: bool, interface: str = "asgi") -> list[str]:
    return [sys.executable, LAUNCHER, "fastpysgi", interface, app, str(port)]


def esg_wsgi(app: str, port: int, access_log: bool) -> list[str]:
    return [*esg(app, port, access_log), "--interface", "wsgi"]


def granian_wsgi(app: str, port: int, access_log: bool) -> list[str]:
    common = [*_listen(port), "--workers", "1", *_log(access_log)]
    return [sys.executable, "-m", "granian", *common, "--interface", "wsgi", app]


def gunicorn_wsgi(app: str, port: int, access_log: bool) -> list[str]:
    threads = ["-k", "gthread", "--threads", "10", "--no-control-socket"]
    listen = ["--bind", f"127.0.0.1:{port}", "--log-level", "warning"]
    return [sys.executable, "-m", "gunicorn", *listen, *threads, "--workers", "1", app]


def _script(name: str) -> str:
    """A program that was installed next to this Python."""
    return str(Path(sys.executable).with_name(name))


def _listen(port: int) -> list[str]:
    return ["--host", "127.0.0.1", "--port", str(port)]


def _log(access_log: bool) -> list[str]:
    if access_log:
        return ["--access-log", "--log-level", "info"]
    return ["--no-access-log", "--log-level", "warning"]


LAUNCHER = "bench/launch.py"

SERVERS: dict[str, Command] = {
    "esg": esg,
    "uvicorn": uvicorn,
    "granian": granian,
    "gunicorn": gunicorn,
    "peregrine": peregrine,
    "h2corn": h2corn,
    "freastal": freastal,
    "fastpysgi": fastpysgi,
    "saltare": saltare,
}

WSGI_SERVERS: dict[str, Command] = {
    "esg": esg_wsgi,
    "granian": granian_wsgi,
    "gunicorn": gunicorn_wsgi,
    "peregrine": functools.partial(peregrine, interface="wsgi"),
    "freastal": functools.partial(freastal, interface="wsgi"),
    "fastpysgi": functools.partial(fastpysgi, interface="wsgi"),
}

WITHOUT_ACCESS_LOG = ("freastal", "fastpysgi")

DISTRIBUTIONS = {"peregrine": "peregrine-server"}
"""The names on PyPI, where they differ."""


def command_for(server: str, scenario: Scenario) -> Command | None:
    """How to start a server for a scenario; None if the server can't serve that."""
    if scenario.access_log and server in WITHOUT_ACCESS_LOG:
        return None
    return (WSGI_SERVERS if scenario.wsgi else SERVERS).get(server)


def with_options(command: Command, *options: str) -> Command:
    """The same server with more options; a value replaces that of the same option."""

    def extended(app: str, port: int, access_log: bool) -> list[str]:
        argv = command(app, port, access_log)
        for option in options:
            name, _, value = option.partition("=")
            if name in argv:
                argv[argv.index(name) + 1] = value
            else:
                first = 3 if argv[1] == "-m" else 1
                argv[first:first] = option.split("=", 1)
        return argv

    return extended


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
        number = importlib.metadata.version(DISTRIBUTIONS.get(server, server))
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
    if server != "gunicorn":
        return number
    fast = importlib.util.find_spec("gunicorn_h1c")
    return f"{number} ({'gunicorn_h1c' if fast else 'pure Python'} parser)"
