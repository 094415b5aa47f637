"""What ESG can be told: one frozen Config, one declaration a setting. Data only, no effects.

A declaration gives a setting its type, default, help, command-line flags and whether a reload may
change it; the command line, the configuration file, the environment and the reference
documentation are all made from these declarations.
"""

from __future__ import annotations

import configparser
import dataclasses
import datetime
import difflib
import io
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from fractions import Fraction
from typing import Any, Literal

from esg.errors import ConfigError
from esg.log import accessformat
from esg.settings import aliases, cpus


@dataclasses.dataclass(frozen=True, slots=True)
class Kind:
    """How one type of value is read: `parse` takes text or a TOML value, or raises ValueError.

    `types` are those that it may have in a file, which unlike the other sources has types; where
    they are numbers, `words` may stand for one.
    """

    metavar: str
    parse: Callable[[object], Any]
    is_flag: bool = False
    choices: tuple[str, ...] = ()
    types: tuple[type, ...] = (str,)
    words: tuple[str, ...] = ()


_TYPES: Mapping[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "a table",
}
"""What TOML's types are called."""


def _check_type(kind: Kind, value: object) -> None:
    """Raise ValueError if a file's value has a type that this kind doesn't have there."""
    given = type(value)
    if given in kind.types or (given is int and float in kind.types) or value in kind.words:
        return
    wanted = [_TYPES[each] for each in kind.types] + [repr(word) for word in kind.words]
    raise ValueError(f"expected {' or '.join(wanted)}, not {_TYPES.get(given, 'a date or time')}")


class BadItemError(ValueError):
    """What is wrong with one item of several; `item` is that one."""

    def __init__(self, item: object, reason: str) -> None:
        super().__init__(reason)
        self.item = item


def _each(parse: Callable[[object], str], items: Iterable[object]) -> tuple[str, ...]:
    """Parse every item. Raises BadItemError for the first one that can't be."""
    parsed = []
    for item in items:
        try:
            parsed.append(parse(item))
        except ValueError as error:
            raise BadItemError(item, str(error)) from None
    return tuple(parsed)


def whole_number(least: int, most: int | None = None) -> Kind:
    """A whole number from `least` to `most`, both included."""
    wanted = f"a whole number from {least} to {most}" if most else f"a whole number >= {least}"

    def parse(raw: object) -> int:
        if isinstance(raw, bool) or not re.fullmatch(r"-?[0-9]+", str(raw).strip()):
            raise ValueError(f"expected {wanted}")
        value = int(str(raw))
        if value < least or (most is not None and value > most):
            raise ValueError(f"expected {wanted}")
        return value

    return Kind("INTEGER", parse, types=(int,))


_DURATION_UNITS: Mapping[str, float] = {
    "ms": 0.001,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
    "d": 86400.0,
}
_SIZE_UNITS: Mapping[str, int] = {"k": 1024, "m": 1024**2, "g": 1024**3}
"""Powers of 1024, as nginx and systemd have them; `kB` and `KiB` are the same as `k`."""

_AMOUNT = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]*)")


def seconds(least: float = 0.0) -> Kind:
    """A duration of at least `least` seconds, kept in seconds.

    It is a number of seconds, a `datetime.timedelta`, or text with units: `500ms`, `30s`, `5m`,
    `1h`, `1d`, `1h30m`.
    """

    def parse(raw: object) -> float:
        value = raw.total_seconds() if isinstance(raw, datetime.timedelta) else _seconds_in(raw)
        if not math.isfinite(value) or value < least:
            raise ValueError(
                f"expected a number of seconds >= {least:g}, or a time such as {_TIMES}"
            )
        return value

    return Kind("DURATION", parse, types=(float, str))


_TIMES = "500ms, 30s, 5m, 1h or 1d"


def _seconds_in(raw: object) -> float:
    """The seconds that a number or a text stands for; not a number if it is neither."""
    if isinstance(raw, bool):
        return math.nan
    text = str(raw).strip()
    try:
        return float(text)
    except ValueError:
        pass
    if not re.fullmatch(rf"(?:{_AMOUNT.pattern} ?)+", text):
        return math.nan
    amounts = _AMOUNT.findall(text)
    return math.fsum(
        float(number) * _DURATION_UNITS.get(unit, math.nan) for number, unit in amounts
    )


def size(least: int) -> Kind:
    """A size of at least `least` bytes, kept in bytes: a whole number, or text such as `64k`.

    Units are `k`, `m` and `g`, also written `kB` or `KiB`, in either case; each is 1024 times the
    one before.
    """

    def parse(raw: object) -> int:
        value = math.nan if isinstance(raw, bool) else _bytes_in(str(raw).strip())
        if not value >= least:
            raise ValueError(
                f"expected a whole number >= {least} of bytes, or a size such as 64k or 16MiB"
            )
        return int(value)

    return Kind("SIZE", parse, types=(int, str))


def _bytes_in(text: str) -> float:
    """The bytes that a text stands for; not a number if it is no size."""
    if re.fullmatch(r"[0-9]+", text):
        return int(text)
    amount = _AMOUNT.fullmatch(text)
    unit = re.fullmatch(r"([kmg])(?:i?b)?", amount[2].lower()) if amount else None
    if amount is None or unit is None:
        return math.nan
    value = Fraction(amount[1]) * _SIZE_UNITS[unit[1]]
    return int(value) if value.denominator == 1 else math.nan


def choice(*names: str) -> Kind:
    """One of a few words."""

    def parse(raw: object) -> str:
        if isinstance(raw, str) and raw.strip().lower() in names:
            return raw.strip().lower()
        hint = difflib.get_close_matches(str(raw), names, 1)
        meant = f" (did you mean {hint[0]!r}?)" if hint else ""
        raise ValueError(f"expected one of {', '.join(names)}{meant}")

    return Kind("[" + "|".join(names) + "]", parse, choices=names)


TRUE_WORDS = frozenset(("1", "true", "yes", "on"))
FALSE_WORDS = frozenset(("0", "false", "no", "off"))


def _parse_switch(raw: object) -> bool:
    if isinstance(raw, bool):
        return raw
    word = str(raw).strip().lower()
    if word in TRUE_WORDS:
        return True
    if word in FALSE_WORDS:
        return False
    raise ValueError("expected true or false")


def _parse_text(raw: object) -> str:
    if not isinstance(raw, str):
        raise ValueError("expected a string")
    if "\0" in raw or "\n" in raw:
        raise ValueError("expected one line of text")
    return raw


def _parse_log_format(raw: object) -> str:
    text = _parse_text(raw)
    if text.strip() == accessformat.UVICORN:
        return accessformat.UVICORN
    if text:
        accessformat.parse(text)
    return text


def _parse_octal(raw: object) -> str:
    """Permission bits; a number is what it is (a file writes 0o22), a text is in octal."""
    number = raw if isinstance(raw, int) and not isinstance(raw, bool) else -1
    if isinstance(raw, str):
        digits = raw.strip().lower().removeprefix("0o")
        number = int(digits, 8) if re.fullmatch("[0-7]{1,4}", digits) else -1
    if not 0 <= number <= 0o777:
        raise ValueError("expected permissions in octal, from 000 to 777")
    return f"{number:03o}"


def _parse_account(raw: object) -> str:
    return str(raw) if isinstance(raw, int) and not isinstance(raw, bool) else _parse_text(raw)


def _parse_optional_octal(raw: object) -> str:
    return "" if raw == "" else _parse_octal(raw)


def _parse_texts(raw: object) -> tuple[str, ...]:
    if isinstance(raw, str):
        return tuple(item.strip() for item in raw.split(",") if item.strip())
    if isinstance(raw, (list, tuple)):
        return _each(_parse_text, raw)
    raise ValueError("expected a string or a list of strings")


def _parse_items(raw: object) -> tuple[str, ...]:
    return _parse_texts(",".join(_parse_texts(raw)))


SPOKEN: Mapping[str, str] = {"asgi": "asgi3", "wsgi": "wsgi"}
"""Interfaces by the names that hypercorn puts in front of an application, as in `wsgi:app:main`."""

CALL = "()"
"""Behind the name of an application this says, as gunicorn has it, that it is a factory."""


def _parse_app(raw: object) -> str:
    text = _parse_text(raw).strip()
    wanted = "expected MODULE:ATTRIBUTE, for example example:app"
    module, _, attribute = _without_interface(text)[1].partition(":")
    if "/" in module or module.endswith(".py"):
        dotted = module.removesuffix(".py").strip("./").replace("/", ".")
        raise ValueError(f"{wanted}; write {dotted}:{attribute or 'app'}, not a file name")
    # What may name a module is up to the import; an empty part would make it a relative one.
    attributes = attribute.removesuffix(CALL).split(".") if attribute else []
    if not all(module.split(".")) or not all(name.isidentifier() for name in attributes):
        raise ValueError(wanted)
    return text


def _without_interface(app: str) -> tuple[str, str]:
    """The interface in front of an application's name, if there is one, and the rest.

    It takes two colons, since a module may be called `asgi`.
    """
    interface, _, rest = app.partition(":")
    return (interface, rest) if interface in SPOKEN and ":" in rest else ("", app)


def _parse_workers(raw: object) -> int:
    if isinstance(raw, str) and raw.strip().lower() == "auto":
        return min(cpus.usable(), MOST_WORKERS)
    try:
        return int(whole_number(1, MOST_WORKERS).parse(raw))
    except ValueError as error:
        raise ValueError(f"{error}, or auto for one per CPU") from None


_FIELD_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_FRAMING_FIELDS = ("connection", "content-length", "transfer-encoding")


def _parse_headers(raw: object) -> tuple[str, ...]:
    """`Name: value`, one or a list of them, or pairs of both; the text form is kept."""
    if isinstance(raw, str):
        raw = [line for line in raw.splitlines() if line.strip()]
    if not isinstance(raw, list | tuple):
        raise ValueError("expected NAME:VALUE, or a list of such")
    return _each(_parse_header, raw)


def _parse_header(raw: object) -> str:
    pair = raw.partition(":")[::2] if isinstance(raw, str) and ":" in raw else raw
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        raise ValueError("expected NAME:VALUE")
    name, value = (_parse_text(part).strip(" \t") for part in pair)
    if not _FIELD_NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a header field")
    if name.lower() in _FRAMING_FIELDS:
        raise ValueError(f"{name} says how a message ends, which is up to the server")
    if not value.replace("\t", " ").isprintable() or not _is_latin(value):
        raise ValueError(f"the value of {name} has characters that a header field can't have")
    return f"{name}: {value}"


def _is_latin(text: str) -> bool:
    return all(ord(char) < 256 for char in text)


def _parse_worker_class(raw: object) -> str:
    name = _parse_text(raw).strip()
    if name and name not in aliases.WORKER_CLASSES:
        known = ", ".join(aliases.WORKER_CLASSES)
        raise ValueError(f"{aliases.why_not(name)}; leave it out, or use one of {known}")
    return name


MOST_WORKERS = 512
"""Workers of one generation; two of them, and some that drain, fit on the scoreboard."""


def synonyms(metavar: str, wanted: str, names: Mapping[str, tuple[str, ...]]) -> Kind:
    """One of a few values, each with the other names that programs have for it."""
    values = {name.lower(): value for value, all_ in names.items() for name in (value, *all_)}

    def parse(raw: object) -> str:
        try:
            return values[str(raw).strip().lower()]
        except KeyError:
            raise ValueError(f"expected {wanted}") from None

    return Kind(metavar, parse, types=(str, float))


# The numbers are those of the ssl module's constants, which uvicorn takes; the names are gunicorn's
# and OpenSSL's. What negotiates the version means the oldest that is spoken here.
TLS_VERSION = synonyms(
    "VERSION",
    "1.2 or 1.3 (older versions of TLS aren't safe)",
    {
        "1.2": (
            "TLSv1.2", "TLSv1_2", "PROTOCOL_TLSv1_2", "5",
            "TLS", "PROTOCOL_TLS", "SSLv23", "2", "TLS_SERVER", "PROTOCOL_TLS_SERVER", "17",
        ),
        "1.3": ("TLSv1.3", "TLSv1_3"),
    },
)  # fmt: skip
CERT_REQS = synonyms(
    "[none|optional|required]",
    "none, optional or required",
    {
        "none": ("CERT_NONE", "0"),
        "optional": ("CERT_OPTIONAL", "1"),
        "required": ("CERT_REQUIRED", "2"),
    },
)
LOG_LEVELS: Mapping[str, int] = {
    "critical": 50,
    "error": 40,
    "warning": 30,
    "info": 20,
    "debug": 10,
    "trace": 5,
}
"""The levels with the numbers that the logging module has for them; trace is uvicorn's."""


def _parse_log_level(raw: object) -> str:
    names = {str(number): name for name, number in LOG_LEVELS.items()}
    names |= {name: name for name in LOG_LEVELS} | {"warn": "warning", "fatal": "critical"}
    word = "" if isinstance(raw, bool) else str(raw).strip().lower()
    if word not in names:
        hint = difflib.get_close_matches(word, LOG_LEVELS, 1)
        meant = f" (did you mean {hint[0]!r}?)" if hint else ""
        numbers = ", ".join(str(number) for number in LOG_LEVELS.values())
        raise ValueError(
            f"expected one of {', '.join(LOG_LEVELS)}, or their numbers {numbers}{meant}"
        )
    return names[word]


@dataclasses.dataclass(frozen=True, slots=True)
class LogDefinition:
    """What a file of `--log-config` would say, given in its place.

    `content` is the dictionary for `logging.config.dictConfig`, the text of a file in the form of
    `logging.config.fileConfig`, or None to leave logging to the application.
    """

    content: dict[str, Any] | str | None


def copied(value: Any) -> Any:
    """A copy of dictionaries and lists in each other; whatever else they hold is shared.

    Unlike `copy.deepcopy` it leaves open files and other objects that can't be copied alone.
    """
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    return [copied(item) for item in value] if isinstance(value, list) else value


def _parse_log_config(raw: object) -> str | LogDefinition:
    if isinstance(raw, dict):
        return LogDefinition(copied(raw))
    if isinstance(raw, configparser.RawConfigParser):
        text = io.StringIO()
        raw.write(text)
        return LogDefinition(text.getvalue())
    if isinstance(raw, io.TextIOBase):
        return LogDefinition(raw.read())
    if isinstance(raw, LogDefinition):
        return raw
    if isinstance(raw, str):
        return _parse_text(raw)
    raise ValueError(
        "expected the name of a file, or a dictionary as for logging.config.dictConfig"
    )


SWITCH = Kind("BOOLEAN", _parse_switch, is_flag=True, types=(bool,))
BOOLEAN = Kind("BOOLEAN", _parse_switch, types=(bool,))
WORKERS = Kind("INTEGER|auto", _parse_workers, types=(int,), words=("auto",))
HEADERS = Kind("NAME:VALUE", _parse_headers, types=(str, list))
WORKER_CLASS = Kind("TEXT", _parse_worker_class)
TEXT = Kind("TEXT", _parse_text)
ACCOUNT = Kind("NAME|ID", _parse_account)
OCTAL = Kind("OCTAL", _parse_octal)
OPTIONAL_OCTAL = Kind("OCTAL", _parse_optional_octal)
LOG_FORMAT = Kind("FORMAT", _parse_log_format)
LOG_LEVEL = Kind(
    f"[{'|'.join(LOG_LEVELS)}]", _parse_log_level, choices=tuple(LOG_LEVELS), types=(str, int)
)
LOG_CONFIG = Kind("FILE", _parse_log_config, types=(str, dict))
TEXTS = Kind("TEXT", _parse_texts, types=(str, list))
ITEMS = Kind("TEXT", _parse_items, types=(str, list))
"""As TEXTS, where an item can have no comma, so that commas separate within a list, too."""
APP = Kind("APP", _parse_app)


@dataclasses.dataclass(frozen=True, slots=True)
class Setting:
    """One setting's declaration.

    `flags` are the command line's names for it, `environment` those it has in the environment
    beside `ESG_<NAME>`. One that is `pending` is known, and refused until what it sets has been
    built, but for its default and the values that are `built`; `instead` is what a refusal advises.
    The value of one that is `secret` is shown to nobody.
    """

    name: str
    kind: Kind
    default: Any
    group: str
    help: str
    flags: tuple[str, ...]
    environment: tuple[str, ...]
    reloadable: bool
    pending: bool
    many: bool
    built: tuple[Any, ...] = ()
    instead: str = ""
    secret: bool = False

    @property
    def option(self) -> str:
        """The flag that ESG's own texts use."""
        flag = "--" + self.name.replace("_", "-")
        return flag if flag in self.flags else self.flags[-1]

    @property
    def names(self) -> tuple[str, ...]:
        """What it is called in files, and by callers in Python; its own name is the first."""
        flags = [flag[2:].replace("-", "_") for flag in self.flags if flag.startswith("--")]
        return tuple(dict.fromkeys((self.name, *flags)))

    @property
    def variables(self) -> tuple[str, ...]:
        """The environment variables that give this setting, the strongest first."""
        return (*(f"ESG_{name.upper()}" for name in self.names), *self.environment)


def setting(
    default: Any,
    kind: Kind,
    group: str,
    help: str,
    *,
    flags: tuple[str, ...] = (),
    environment: tuple[str, ...] = (),
    reloadable: bool = True,
    pending: bool = False,
    built: tuple[Any, ...] = (),
    instead: str = "",
    secret: bool = False,
) -> Any:
    """Declare a setting as a field of `Config`."""
    spec = {
        "kind": kind,
        "group": group,
        "help": help,
        "flags": flags,
        "environment": environment,
        "reloadable": reloadable,
        "pending": pending,
        "built": built,
        "instead": instead,
        "secret": secret,
    }
    return dataclasses.field(default=default, metadata=spec, repr=not secret)


APPLICATION = "Application"
SOCKETS = "Sockets"
PROCESSES = "Processes"
HTTP = "HTTP"
WEBSOCKET = "WebSocket"
LIMITS = "Limits"
TLS = "TLS"
LOGGING = "Logging"
DEVELOPMENT = "Development"


ASK_FOR_ACCESS_LOG = {"access_log", "access_logfile"}
"""Settings that say of the access log whether there is one; else the level of the log does."""

WHERE = ("bind", "uds", "fd")
"""Settings that say where to listen as host and port do."""

NOTHING_TO_DO = {
    "reuse_port": "workers share the arbiter's sockets, which no other program can listen beside",
    "initgroups": "--user takes all groups of that user",
    "worker_tmp_dir": "heartbeats are in shared memory",
    "enable_stdio_inheritance": "standard output and error are always inherited",
    "control_socket_disable": "there is none without --control-socket",
    "timeout_notify": "workers give a sign of life every second (--timeout)",
}
"""Settings of others' command lines that are taken, and what makes them needless."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Every setting of one generation. Times are in seconds, sizes in bytes."""

    app: str = setting("", APP, APPLICATION, "The application, as MODULE:ATTRIBUTE.")
    app_dir: str = setting(
        "", TEXT, APPLICATION, "Import APP from this folder; default: the current one."
    )
    factory: bool = setting(
        False, SWITCH, APPLICATION, "APP is a function that returns the application."
    )
    interface: str = setting(
        "auto",
        choice("auto", "asgi3", "asgi2", "wsgi"),
        APPLICATION,
        "The interface that APP implements; auto finds out from its signature.",
    )
    wsgi: bool = setting(False, SWITCH, APPLICATION, "The same as --interface wsgi.")
    lifespan: str = setting(
        "auto",
        choice("auto", "on", "off"),
        APPLICATION,
        "Run the application's ASGI startup and shutdown; auto: if it has any.",
        flags=("--asgi-lifespan", "--lifespan"),
    )
    root_path: str = setting(
        "", TEXT, APPLICATION, "URL prefix that APP is mounted at (ASGI root_path)."
    )
    env_file: str = setting(
        "",
        TEXT,
        APPLICATION,
        "Read environment variables (also ESG_* ones) from this file; a variable that is already "
        "set wins.",
    )
    chdir: str = setting(
        "",
        TEXT,
        APPLICATION,
        "Change to this folder first. If it is a symbolic link, each reload follows it again. "
        "Other relative paths are relative to it, except those of -c and --env-file.",
        reloadable=False,
    )
    reset_contextvars: bool = setting(
        False, SWITCH, APPLICATION, "Run each request in an empty contextvars.Context."
    )

    host: str = setting("127.0.0.1", TEXT, SOCKETS, "Address to listen on.")
    port: int = setting(
        8000,
        whole_number(0, 65535),
        SOCKETS,
        "Port to listen on; 0 picks a free one.",
        environment=("PORT",),
    )
    bind: tuple[str, ...] = setting(
        (),
        TEXTS,
        SOCKETS,
        "Listen here instead of on --host and --port: HOST:PORT, [V6]:PORT, unix:PATH, unix:@NAME, "
        "fd://N or fd://NAME; repeatable.",
        flags=("-b", "--bind"),
    )
    uds: str = setting("", TEXT, SOCKETS, "Listen on a UNIX socket at this path.")
    uds_mode: str = setting(
        "666",
        OCTAL,
        SOCKETS,
        "Permissions of the UNIX sockets that ESG creates, in octal.",
        reloadable=False,
    )
    uds_owner: str = setting(
        "",
        TEXT,
        SOCKETS,
        "Owner of the UNIX sockets that ESG creates: USER, USER:GROUP or :GROUP; default: the user "
        "that starts ESG.",
        reloadable=False,
    )
    fd: int | None = setting(
        None,
        whole_number(0),
        SOCKETS,
        "Listen on the inherited socket with this file descriptor; it must be bound.",
    )
    backlog: int = setting(
        2048,
        whole_number(1, 65535),
        SOCKETS,
        "Connections that may wait in the kernel's queue until a worker accepts them.",
        reloadable=False,
    )

    reuse_port: bool = setting(
        False,
        SWITCH,
        SOCKETS,
        "Ignored; accepted so that gunicorn command lines run. Workers share the arbiter's "
        "sockets.",
    )

    workers: int = setting(
        1,
        WORKERS,
        PROCESSES,
        "Number of worker processes; auto: one per usable CPU.",
        flags=("-w", "--workers"),
        environment=("WEB_CONCURRENCY",),
    )
    surge: int = setting(
        1,
        whole_number(1, 64),
        PROCESSES,
        "Extra workers that may run while a reload replaces the others.",
    )
    max_requests: int = setting(
        0,
        whole_number(0),
        PROCESSES,
        "Replace a worker after this many requests; 0: never.",
        flags=("--max-requests", "--limit-max-requests"),
    )
    max_requests_jitter: int = setting(
        0,
        whole_number(0),
        PROCESSES,
        "Add a random number up to this to --max-requests, a different one for each worker.",
        flags=("--max-requests-jitter", "--limit-max-requests-jitter"),
    )
    timeout: float = setting(
        30.0,
        seconds(),
        PROCESSES,
        "Replace a worker whose event loop is blocked for this long; 0: never.",
        flags=("-t", "--timeout-worker-healthcheck", "--timeout"),
    )
    timeout_boot: float = setting(
        60.0, seconds(0.1), PROCESSES, "Give up on a worker that isn't ready after this long."
    )
    graceful_timeout: float = setting(
        30.0,
        seconds(),
        PROCESSES,
        "Let running requests finish for up to this long when a worker stops.",
        flags=("--graceful-timeout", "--timeout-graceful-shutdown"),
    )
    name: str = setting(
        "", TEXT, PROCESSES, "Name shown in process titles; default: APP.", flags=("-n", "--name")
    )
    worker_class: str = setting(
        "",
        WORKER_CLASS,
        PROCESSES,
        "Accept the name of a gunicorn or hypercorn worker class, and select the interface, parser "
        "and event loop that it stands for.",
        flags=("-k", "--worker-class"),
    )
    preload: bool = setting(
        False, SWITCH, PROCESSES, "Import APP once, then fork workers from that.", pending=True
    )
    drain_delay: float = setting(
        0.0,
        seconds(),
        PROCESSES,
        "After a signal to stop, accept connections for this long, so that load balancers notice.",
    )
    pid: str = setting(
        "",
        TEXT,
        PROCESSES,
        "Write the arbiter's process id to this file.",
        flags=("-p", "--pid"),
        reloadable=False,
    )
    control_socket: str = setting(
        "",
        TEXT,
        PROCESSES,
        "UNIX socket on which esgctl reaches the arbiter; default: none.",
        reloadable=False,
    )
    control_socket_disable: bool = setting(
        False,
        SWITCH,
        PROCESSES,
        "Ignored; accepted so that gunicorn command lines run. There is no control socket without "
        "--control-socket.",
        flags=("--no-control-socket",),
    )
    user: str = setting(
        "",
        ACCOUNT,
        PROCESSES,
        "Run the workers as this user, with all of its groups.",
        flags=("-u", "--user"),
    )
    group: str = setting(
        "", ACCOUNT, PROCESSES, "Run the workers as this group.", flags=("-g", "--group")
    )
    initgroups: bool = setting(
        False,
        SWITCH,
        PROCESSES,
        "Ignored; accepted so that gunicorn command lines run. --user always includes all groups "
        "of the user.",
    )
    umask: str = setting(
        "",
        OPTIONAL_OCTAL,
        PROCESSES,
        "File mode creation mask of the workers, in octal; default: inherited.",
        flags=("-m", "--umask"),
    )
    daemon: bool = setting(
        False,
        SWITCH,
        PROCESSES,
        "Go to the background.",
        flags=("-D", "--daemon"),
        reloadable=False,
        pending=True,
        instead="have a service manager run it, or: nohup esg ... &",
    )
    worker_tmp_dir: str = setting(
        "",
        TEXT,
        PROCESSES,
        "Ignored; accepted so that gunicorn command lines run. Heartbeats are in shared memory.",
    )
    timeout_notify: float = setting(
        30.0,
        seconds(),
        PROCESSES,
        "Ignored; accepted so that uvicorn command lines run. Workers send a heartbeat every "
        "second.",
    )

    loop: str = setting(
        "auto",
        choice("auto", "asyncio", "uvloop"),
        HTTP,
        "Event loop; auto: uvloop if it is installed.",
        flags=("--asgi-loop", "--loop"),
    )
    http: str = setting(
        "auto",
        choice("auto", "httptools", "h11"),
        HTTP,
        "HTTP parser; auto: httptools if it is installed.",
    )
    sendfile: bool = setting(
        False,
        SWITCH,
        HTTP,
        "Let ASGI applications have the kernel send files (http.response.pathsend, zerocopysend). "
        "Middleware that reads or changes response bodies doesn't see these files.",
    )
    threads: int = setting(
        0,
        whole_number(0, 1024),
        HTTP,
        "Threads per worker that run a WSGI application; 0: 4 per CPU, 8 to 32.",
    )
    timeout_keep_alive: float = setting(
        5.0,
        seconds(),
        HTTP,
        "Close a connection on which no request came for this long.",
        flags=("--timeout-keep-alive", "--keep-alive"),
    )
    proxy_headers: bool = setting(
        True,
        SWITCH,
        HTTP,
        "Take the client's address, scheme and host from the X-Forwarded-* or Forwarded fields of "
        "trusted proxies.",
    )
    forwarded_allow_ips: tuple[str, ...] = setting(
        ("127.0.0.1", "::1"),
        ITEMS,
        HTTP,
        "Proxies whose X-Forwarded-* fields are believed: addresses, CIDR ranges, unix: for UNIX "
        "sockets, or * for everybody.",
        environment=("FORWARDED_ALLOW_IPS",),
    )
    proxy_protocol: bool = setting(
        False,
        SWITCH,
        HTTP,
        "Expect a PROXY protocol header (v1 or v2) on each connection; only --forwarded-allow-ips "
        "may connect.",
    )
    server_header: bool = setting(True, SWITCH, HTTP, "Add a Server field to responses.")
    date_header: bool = setting(True, SWITCH, HTTP, "Add a Date field to responses.")
    header: tuple[str, ...] = setting(
        (), HEADERS, HTTP, "Add this field to every response; repeatable."
    )
    http2: bool = setting(False, SWITCH, HTTP, "Serve HTTP/2 as well.", pending=True)

    ws: str = setting(
        "auto",
        choice("auto", "none", "websockets", "websockets-sansio", "wsproto"),
        WEBSOCKET,
        "Library for WebSockets; auto: websockets if it is installed; none: no WebSockets.",
    )
    ws_max_size: int = setting(
        16777216,
        size(0),
        WEBSOCKET,
        "Largest message from a client, in bytes (else 1009); 0: no limit.",
        flags=("--websocket-max-message-size", "--ws-max-size"),
    )
    ws_max_queue: int = setting(
        32,
        whole_number(0),
        WEBSOCKET,
        "Messages of one client that may wait for APP; 0: limited by their bytes alone.",
    )
    ws_max_buffered: int = setting(
        268435456,
        size(0),
        WEBSOCKET,
        "Memory that one worker may use for WebSocket messages that are incomplete or wait for "
        "APP, in bytes (else 1013); 0: no limit.",
    )
    ws_message_timeout: float = setting(
        60.0,
        seconds(),
        WEBSOCKET,
        "Time a client may take to send one message (else 1008); 0: no limit.",
    )
    ws_ping_interval: float = setting(
        20.0, seconds(), WEBSOCKET, "Send a ping this often; 0: never."
    )
    ws_ping_timeout: float = setting(
        20.0,
        seconds(),
        WEBSOCKET,
        "Drop a client that doesn't answer a ping for this long; 0: never.",
    )
    ws_per_message_deflate: bool = setting(
        True, BOOLEAN, WEBSOCKET, "Compress messages if the client supports it."
    )
    ws_handshake_timeout: float = setting(
        20.0,
        seconds(0.1),
        WEBSOCKET,
        "Time APP may take to accept or refuse a WebSocket (else 503).",
    )

    limit_request_line: int = setting(
        8190, size(64), LIMITS, "Longest request target, in bytes (else 414)."
    )
    limit_request_fields: int = setting(
        100, whole_number(1), LIMITS, "Most header fields in a request (else 431)."
    )
    limit_request_header_size: int = setting(
        65536,
        size(256),
        LIMITS,
        "Largest header section of a request, in bytes (else 431).",
        flags=("--h11-max-incomplete-event-size", "--limit-request-header-size"),
    )
    limit_request_body: int = setting(
        0, size(0), LIMITS, "Largest request body, in bytes (else 413); 0: no limit."
    )
    timeout_request_header: float = setting(
        10.0,
        seconds(0.1),
        LIMITS,
        "Time a client may take to send a request's header section (else 408).",
    )
    timeout_request_body: float = setting(
        60.0, seconds(0.1), LIMITS, "Answer 408 if no more of a request body arrives for this long."
    )
    timeout_send: float = setting(
        60.0,
        seconds(0.1),
        LIMITS,
        "Close the connection if the client reads nothing of a response for this long.",
    )

    limit_concurrency: int = setting(
        0,
        whole_number(0),
        LIMITS,
        "Requests and WebSockets that one worker handles at the same time (else 503), background "
        "tasks included; idle connections don't count; 0: no limit.",
    )
    limit_connections: int = setting(
        0,
        whole_number(0),
        LIMITS,
        "Connections that one worker accepts at the same time; more wait in the queue; 0: no "
        "limit.",
        flags=("--worker-connections", "--limit-connections"),
    )
    request_timeout: float = setting(
        0.0,
        seconds(),
        LIMITS,
        "Cancel a request that takes longer, and log where it was; 0: never.",
    )

    ssl_keyfile: str = setting(
        "", TEXT, TLS, "Private key, in PEM.", flags=("--keyfile", "--ssl-keyfile")
    )
    ssl_certfile: str = setting(
        "",
        TEXT,
        TLS,
        "Certificate with its chain, in PEM; turns TLS on.",
        flags=("--certfile", "--ssl-certfile"),
    )
    ssl_keyfile_password: str = setting("", TEXT, TLS, "Password of the private key.", secret=True)
    ssl_version: str = setting(
        "1.2",
        TLS_VERSION,
        TLS,
        "Oldest TLS version that clients may use: 1.2 or 1.3.",
    )
    ssl_cert_reqs: str = setting(
        "none",
        CERT_REQS,
        TLS,
        "Whether clients must present a certificate.",
        flags=("--cert-reqs", "--ssl-cert-reqs"),
    )
    ssl_ca_certs: str = setting(
        "",
        TEXT,
        TLS,
        "Authorities to check clients' certificates against, in PEM.",
        flags=("--ca-certs", "--ssl-ca-certs"),
    )
    ssl_ciphers: str = setting(
        "",
        TEXT,
        TLS,
        "Ciphers for TLS 1.2, in OpenSSL's notation.",
        flags=("--ciphers", "--ssl-ciphers"),
    )

    ssl_handshake_timeout: float = setting(
        10.0, seconds(0.1), TLS, "Time a client may take for the TLS handshake."
    )

    log_level: str = setting(
        "info",
        LOG_LEVEL,
        LOGGING,
        "Log messages of this level and above. From warning on there is no access log either, "
        "unless --access-log or --access-logfile is given.",
    )
    access_log: bool = setting(True, SWITCH, LOGGING, "Log each request.")
    access_logfile: str = setting(
        "-", TEXT, LOGGING, "File for the access log; -: standard output."
    )
    error_logfile: str = setting(
        "-",
        TEXT,
        LOGGING,
        "File for the log; -: standard error.",
        flags=("--log-file", "--error-logfile"),
    )
    access_logformat: str = setting(
        "",
        LOG_FORMAT,
        LOGGING,
        "Format of access log lines: uvicorn, common, combined, or gunicorn's atoms; default: "
        "uvicorn, on a terminal with time and duration.",
    )
    log_format: str = setting(
        "text", choice("text", "json"), LOGGING, "Format of both logs; json: one object per line."
    )
    log_config: str | LogDefinition = setting(  # noqa: RUF009 - a field, as the others are
        "",
        LOG_CONFIG,
        LOGGING,
        "Configure Python's logging from this .ini, .json or .yaml file instead.",
        flags=("--log-config-json", "--log-config"),
    )
    enable_stdio_inheritance: bool = setting(
        False,
        SWITCH,
        LOGGING,
        "Ignored; accepted so that gunicorn command lines run. Workers always inherit standard "
        "output and error.",
        flags=("-R", "--enable-stdio-inheritance"),
    )
    use_colors: bool | None = setting(
        None, SWITCH, LOGGING, "Colour the log; default: on a terminal, unless NO_COLOR is set."
    )

    debug: bool = setting(
        False,
        SWITCH,
        DEVELOPMENT,
        "Show clients the tracebacks of the application's exceptions, and turn --reload on.",
    )
    reload: bool = setting(
        False,
        SWITCH,
        DEVELOPMENT,
        "Reload when a file changes; needs watchfiles.",
    )
    reload_engine: str = setting(
        "auto",
        choice("auto", "poll", "inotify"),
        DEVELOPMENT,
        "How changes are noticed; poll: for file systems on which inotify sees none.",
    )
    reload_dir: tuple[str, ...] = setting(
        (),
        TEXTS,
        DEVELOPMENT,
        "Folder to watch, default: the current one and --app-dir; repeatable.",
    )
    reload_include: tuple[str, ...] = setting(
        (), TEXTS, DEVELOPMENT, "Also watch files that match this pattern; repeatable."
    )
    reload_exclude: tuple[str, ...] = setting(
        (),
        TEXTS,
        DEVELOPMENT,
        "Don't watch this folder, or files that match this pattern; repeatable.",
    )
    reload_delay: float = setting(
        0.25, seconds(), DEVELOPMENT, "Wait this long between two looks at the files."
    )

    ssl_context: Any = dataclasses.field(default=None, compare=False, repr=False)
    """What the TLS settings came to (`esg.server.prepare`); None for plain HTTP."""
    origins: Mapping[str, str] = dataclasses.field(default_factory=dict, compare=False, repr=False)
    variables: Mapping[str, str] = dataclasses.field(
        default_factory=dict, compare=False, repr=False
    )
    """Environment variables that `env_file` adds; workers have them."""
    strays: tuple[str, ...] = dataclasses.field(default=(), compare=False, repr=False)
    """What is wrong with variables that look like settings and are none, a line for each source."""
    files: tuple[str, ...] = dataclasses.field(default=(), compare=False, repr=False)
    """The files that settings were read from, or would be if they were there; absolute paths."""
    gaps: Mapping[str, str] = dataclasses.field(default_factory=dict, compare=False, repr=False)
    """The files that were looked for, by path: why one gave nothing, "" if it did."""
    folder: str = dataclasses.field(default="", compare=False, repr=False)
    """The folder to run in, by the path that the operator gave; absolute, "" for no change."""
    real_folder: str = dataclasses.field(default="", compare=False, repr=False)
    """Where `folder` led when this generation began; "" until then."""
    app_link: str = dataclasses.field(default="", compare=False, repr=False)
    """`app_dir` by the path that the operator gave; absolute, "" until the generation begins."""
    target: Any = dataclasses.field(default=None, compare=False, repr=False)
    """The application itself, or its factory, where it was given as an object."""
    ssl_context_factory: Any = dataclasses.field(default=None, compare=False, repr=False)
    """A function that makes the SSL context: of this Config, and of a function that makes the one
    that the TLS settings describe. It can be given in Python alone."""

    @property
    def title(self) -> str:
        """What process titles and the log call this application."""
        return self.name or self.app

    @property
    def scheme(self) -> str:
        """What URLs of the listeners begin with."""
        return "https" if self.ssl_certfile or self.ssl_context_factory else "http"

    @property
    def ways(self) -> tuple[str, ...]:
        """Which of WHERE say where to listen; without any, host and port do."""
        return tuple(name for name in WHERE if getattr(self, name) not in ((), "", None))

    @property
    def leaves_logging(self) -> bool:
        """Whether logging is up to the application: `log_config=None`."""
        return isinstance(self.log_config, LogDefinition) and self.log_config.content is None

    @property
    def binds(self) -> tuple[str, ...]:
        """What to listen on, as `--bind` writes it."""
        if self.bind:
            return self.bind
        if self.uds:
            return (f"unix:{self.uds}",)
        if self.fd is not None:
            return (f"fd://{self.fd}",)
        host = f"[{self.host}]" if ":" in self.host else self.host
        return (f"{host}:{self.port}",)

    @property
    def binds_origin(self) -> str:
        """Where `binds` came from, for messages to the operator."""
        return " and ".join(self._binds_origins) or "the default"

    @property
    def _binds_origins(self) -> list[str]:
        names = self.ways or ("host", "port")
        return list(dict.fromkeys(self.origins[n] for n in names if n in self.origins))

    @property
    def says_where(self) -> bool:
        """Whether some source says where to listen; PORT is for whom it may concern."""
        return not all(origin.endswith(" PORT") for origin in self._binds_origins)

    def origin(self, name: str) -> str:
        """Where the value of the setting `name` came from, for messages to the operator."""
        return self.origins.get(name, "the default")

    def notices(self) -> Iterator[tuple[Literal["info", "warning"], str]]:
        """What the log should say at the start: level and text."""
        for stray in self.strays:
            yield "warning", stray
        if self.worker_class:
            meant = aliases.WORKER_CLASSES[self.worker_class].items()
            text = " and ".join(f"--{name} {value}" for name, value in meant)
            yield (
                "info",
                f"{self.origin('worker_class')}: {self.worker_class} means "
                f"{text or 'what ESG does anyway'}",
            )
        if "uds" in self.ways or "fd" in self.ways:
            for name in ("host", "port"):
                if name in self.origins:
                    yield (
                        "info",
                        f"{self.origin(name)} has nothing to do here: {self.binds_origin} says "
                        "where to listen",
                    )
        yield from self._folder_notices()
        for name, instead in NOTHING_TO_DO.items():
            if getattr(self, name) != SETTINGS[name].default:
                yield "info", f"{self.origin(name)} has nothing to do here: {instead}"
        if self.ssl_ca_certs and self.ssl_cert_reqs == "none":
            yield (
                "warning",
                f"{self.origin('ssl_ca_certs')}: no client is asked for a certificate; "
                "--ssl-cert-reqs required (or optional) does that",
            )
        if not self.reload:
            for name in ("reload_engine", "reload_dir", "reload_include", "reload_exclude"):
                if getattr(self, name) != SETTINGS[name].default:
                    yield "warning", f"{self.origin(name)} does nothing without --reload"
        if self.debug:
            yield (
                "warning",
                f"{self.origin('debug')}: clients see tracebacks of the application; "
                "this must not face the internet",
            )

    def _folder_notices(self) -> Iterator[tuple[Literal["info", "warning"], str]]:
        """Where links lead, and what stays behind when they are switched."""
        if self.app_link and not self.real_folder:
            yield (
                "warning",
                f"the folder {self.folder} that ESG was started in is gone, and relative paths "
                "with it; start ESG again in another folder",
            )
        if self.app_link and self.app_dir != os.path.normpath(self.app_link):
            yield "info", f"{self.origin('app_dir')}: {self.app_link} leads to {self.app_dir}"
        if not self.real_folder or self.real_folder == os.path.normpath(self.folder):
            return
        where = f"{self.origin('chdir')}: " if self.chdir else ""
        yield "info", f"{where}running in {self.real_folder}, where {self.folder} leads"
        for name in ("pid", "control_socket"):
            path = getattr(self, name)
            if path and not os.path.isabs(path):
                yield (
                    "warning",
                    f"{self.origin(name)}: {path!r} is in a folder behind a symbolic link, and "
                    "isn't moved when the link is switched; give an absolute path",
                )


def _declared(field: dataclasses.Field[Any]) -> Setting:
    spec = field.metadata
    flag = "--" + field.name.replace("_", "-")
    return Setting(
        name=field.name,
        kind=spec["kind"],
        default=field.default,
        group=spec["group"],
        help=spec["help"],
        flags=spec["flags"] or (flag,),
        environment=spec["environment"],
        reloadable=spec["reloadable"],
        pending=spec["pending"],
        many=isinstance(field.default, tuple),
        built=spec["built"],
        instead=spec["instead"],
        secret=spec["secret"],
    )


SETTINGS: Mapping[str, Setting] = {
    field.name: _declared(field) for field in dataclasses.fields(Config) if field.metadata
}


PLURALS: Mapping[str, str] = {
    "headers": "header",
    "reload_dirs": "reload_dir",
    "reload_excludes": "reload_exclude",
    "reload_includes": "reload_include",
}
"""Names that uvicorn's Python interface has for some of its options."""

NAMES: Mapping[str, str] = {
    name: declared.name for declared in SETTINGS.values() for name in declared.names
}
"""Settings by each of their names."""


def setting_named(name: str, where: str) -> Setting:
    """The setting called `name`, which came from `where`. Raises ConfigError if there is none."""
    key = name.replace("-", "_")
    if key not in NAMES:
        other = aliases.RENAMED.get(key) or PLURALS.get(key)
        hint = f"; did you mean {other}?" if other else nearest(key, NAMES)
        raise ConfigError(f"{where}: unknown key {name!r}{hint}")
    return SETTINGS[NAMES[key]]


@dataclasses.dataclass(frozen=True, slots=True)
class Raw:
    """A value as its source gave it, and where that was (`--port`, `ESG_PORT`, a file's key).

    It is `typed` where the source has types, so that a wrong one is a mistake.
    """

    value: object
    origin: str
    typed: bool = False


def build(
    raw: Mapping[str, Raw],
    *,
    variables: Mapping[str, str] | None = None,
    strays: tuple[str, ...] = (),
    files: tuple[str, ...] = (),
    gaps: Mapping[str, str] | None = None,
    start: str = "",
    target: Any = None,
    ssl_context_factory: Any = None,
) -> Config:
    """Check every value and make a Config of them; what is missing takes its default.

    `start` is the absolute path that `chdir` is relative to; the other arguments are the Config's.
    Raises ConfigError for the first value that can't be used.
    """
    values = {name: _checked(SETTINGS[name], given) for name, given in _to_check(raw, target)}
    if target is not None:
        values["app"] = raw["app"].value
    origins = {name: given.origin for name, given in raw.items()}
    for name, given in list(_implied(values, origins, target)):
        values[name] = _checked(SETTINGS[name], given)
        origins[name] = given.origin
    config = Config(
        **values,
        origins=origins,
        variables=variables or {},
        strays=strays,
        files=files,
        gaps=gaps or {},
        folder=os.path.join(start, values["chdir"]) if values.get("chdir") else start,
        target=target,
        ssl_context_factory=ssl_context_factory,
    )
    _check_together(config)
    return config


def _to_check(raw: Mapping[str, Raw], target: Any) -> Iterator[tuple[str, Raw]]:
    """All but the name of an application that is there as an object: it is only a label."""
    return ((name, given) for name, given in raw.items() if target is None or name != "app")


def _implied(
    values: Mapping[str, Any], origins: Mapping[str, str], target: Any
) -> Iterator[tuple[str, Raw]]:
    """Settings that others stand for. What is said of them outright holds, or is a clash."""
    if values.get("wsgi"):
        if values.get("interface", "auto") not in ("auto", "wsgi"):
            raise ConfigError(
                f"{origins['wsgi']} and {origins['interface']} {values['interface']} "
                "say different things; use one"
            )
        yield "interface", Raw("wsgi", origins["wsgi"])
    if target is None and "app" in values:
        yield from _implied_by_name(values, origins)
    for name, value in aliases.WORKER_CLASSES.get(values.get("worker_class", ""), {}).items():
        if name not in values:
            yield name, Raw(value, f"{origins['worker_class']} {values['worker_class']}")
    level = values.get("log_level", "info")
    if LOG_LEVELS[level] > LOG_LEVELS["info"] and not ASK_FOR_ACCESS_LOG & values.keys():
        yield "access_log", Raw(False, f"{origins['log_level']} {level}")


def _implied_by_name(
    values: Mapping[str, Any], origins: Mapping[str, str]
) -> Iterator[tuple[str, Raw]]:
    """What the name of an application says besides where it is: `wsgi:` before, `()` behind."""
    origin = f"{origins['app']} {values['app']}"
    interface, app = _without_interface(values["app"])
    meant: dict[str, object] = {}
    if interface:
        meant["interface"] = SPOKEN[interface]
    if app.endswith(CALL):
        meant["factory"] = True
    for name, value in meant.items():
        other = "wsgi" if name == "interface" and values.get("wsgi") else name
        said = "wsgi" if other == "wsgi" else values.get(name, value)
        if said not in ("auto", value):
            raise ConfigError(
                f"{origins['app']} {values['app']!r} and {origins[other]} say different things; "
                "use one"
            )
        yield name, Raw(value, origin)
    if meant:
        yield "app", Raw(app.removesuffix(CALL), origins["app"])


def _checked(declared: Setting, given: Raw) -> Any:
    try:
        if given.typed:
            _check_type(declared.kind, given.value)
        value = declared.kind.parse(given.value)
    except BadItemError as error:
        raise ConfigError(_complaint(declared, given.origin, error.item, error)) from None
    except ValueError as error:
        raise ConfigError(_complaint(declared, given.origin, given.value, error)) from None
    if declared.pending and value != declared.default and value not in declared.built:
        advice = declared.instead or "leave it out"
        raise ConfigError(f"{given.origin}: this version of ESG can't do that yet; {advice}")
    return value


def _complaint(declared: Setting, origin: str, value: object, error: ValueError) -> str:
    """What is wrong with a value; one that is secret isn't repeated."""
    shown = "" if declared.secret else f" {value!r}"
    return f"{origin}: invalid value{shown}: {error}"


def _check_together(config: Config) -> None:
    if not config.app:
        raise ConfigError("no application given; expected MODULE:ATTRIBUTE, as in: esg example:app")
    said = [*config.ways]
    if "bind" in config.ways:
        said += [name for name in ("host", "port") if name in config.origins]
    if len(said) > 1:
        raise ConfigError(
            f"{config.origin(said[0])} and {config.origin(said[1])} both say where to listen; "
            "use one, or several --bind"
        )
    if config.control_socket and config.control_socket_disable:
        raise ConfigError(
            f"{config.origin('control_socket_disable')} and {config.origin('control_socket')} "
            "say different things; use one"
        )
    if config.interface == "wsgi" and config.lifespan == "on":
        raise ConfigError(
            f"{config.origin('lifespan')}: a WSGI application has no lifespan "
            f"({config.origin('interface')}); leave it out"
        )
    if config.root_path and not config.root_path.startswith("/"):
        raise ConfigError(f"{config.origin('root_path')}: {config.root_path!r} must begin with '/'")
    if config.log_config and not config.leaves_logging:
        _check_log_config(config)


def _check_log_config(config: Config) -> None:
    """What `--log-config` says in its file can't be said beside it."""
    for name in ("access_logfile", "error_logfile", "log_format"):
        if getattr(config, name) != SETTINGS[name].default:
            what = "the file of " if isinstance(config.log_config, str) else ""
            raise ConfigError(
                f"{config.origin(name)}: {what}{config.origin('log_config')} decides on "
                "that; say it there, or leave one of them out"
            )


def check_reload(old: Config, new: Config) -> None:
    """Raise ConfigError if `new` changes a setting that only a restart can change.

    And if it lacks what `old` was made from: a file that is being replaced, or was lost, must not
    move a service to the defaults.
    """
    for path, gap in new.gaps.items():
        if gap and old.gaps.get(path) == "":
            raise ConfigError(
                f"{path} {gap}, and the settings that are in use came from it; put it back, or "
                "restart to do without it"
            )
    if _says_address(old) and not _says_address(new):
        raise ConfigError(
            f"nothing says any more where to listen, as {old.binds_origin} did; a reload doesn't "
            "go to the default address: say it again, or restart"
        )
    for declared in SETTINGS.values():
        before, after = getattr(old, declared.name), getattr(new, declared.name)
        if not declared.reloadable and before != after:
            raise ConfigError(
                f"{new.origin(declared.name)}: {declared.name} changed from {before!r} to "
                f"{after!r}, which a reload can't do; restart to change it"
            )


def _says_address(config: Config) -> bool:
    """Whether some source says where to listen, be it PORT."""
    return any(name in config.origins for name in ("host", "port", *WHERE))


def nearest(name: str, names: Mapping[str, object] | list[str]) -> str:
    """A hint ", did you mean X?" for a misspelt name, or nothing."""
    close = difflib.get_close_matches(name, list(names), 1)
    return f"; did you mean {close[0]}?" if close else ""
