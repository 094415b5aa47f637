"""What ESG can be told: one frozen Config, one declaration a setting. Data only, no effects.

A declaration gives a setting its type, default, help, command-line flags and whether a reload may
change it; the command line, the configuration file, the environment and the reference
documentation are all made from these declarations.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from esg import logformat
from esg.errors import ConfigError


@dataclasses.dataclass(frozen=True, slots=True)
class Kind:
    """How one type of value is read: `parse` takes text or a TOML value, or raises ValueError."""

    metavar: str
    parse: Callable[[object], Any]
    is_flag: bool = False
    choices: tuple[str, ...] = ()


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

    return Kind("INTEGER", parse)


def seconds(least: float = 0.0) -> Kind:
    """A finite number of seconds >= `least`."""

    def parse(raw: object) -> float:
        try:
            value = math.nan if isinstance(raw, bool) else float(str(raw))
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or value < least:
            raise ValueError(f"expected a number of seconds >= {least:g}")
        return value

    return Kind("SECONDS", parse)


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
    if text:
        logformat.parse(text)
    return text


def _parse_texts(raw: object) -> tuple[str, ...]:
    if isinstance(raw, str):
        return tuple(item.strip() for item in raw.split(",") if item.strip())
    if isinstance(raw, (list, tuple)):
        return tuple(_parse_text(item) for item in raw)
    raise ValueError("expected a string or a list of strings")


def _parse_app(raw: object) -> str:
    text = _parse_text(raw).strip()
    wanted = "expected MODULE:ATTRIBUTE, for example example:app"
    module, _, attribute = text.partition(":")
    if "/" in module or module.endswith(".py"):
        dotted = module.removesuffix(".py").strip("./").replace("/", ".")
        raise ValueError(f"{wanted}; write {dotted}:{attribute or 'app'}, not a file name")
    names = module.split(".") + (attribute.split(".") if attribute else [])
    if not all(name.isidentifier() for name in names):
        raise ValueError(wanted)
    return text


SWITCH = Kind("BOOLEAN", _parse_switch, is_flag=True)
TEXT = Kind("TEXT", _parse_text)
LOG_FORMAT = Kind("FORMAT", _parse_log_format)
TEXTS = Kind("TEXT", _parse_texts)
APP = Kind("APP", _parse_app)


@dataclasses.dataclass(frozen=True, slots=True)
class Setting:
    """One setting's declaration.

    `flags` are the command line's names for it (the first is the one that ESG's own texts use),
    `environment` the names it has in the environment beside `ESG_<NAME>`. One that is `pending` is
    known, and refused until what it sets has been built.
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

    @property
    def variables(self) -> tuple[str, ...]:
        """The environment variables that give this setting, the strongest first."""
        return (f"ESG_{self.name.upper()}", *self.environment)


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
    }
    return dataclasses.field(default=default, metadata=spec)


APPLICATION = "Application"
SOCKETS = "Sockets"
PROCESSES = "Processes"
HTTP = "HTTP"
LIMITS = "Limits"
TLS = "TLS"
LOGGING = "Logging"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Every setting of one generation. Times are in seconds, sizes in bytes."""

    app: str = setting("", APP, APPLICATION, "The application, as MODULE:ATTRIBUTE.")
    app_dir: str = setting("", TEXT, APPLICATION, "Look for APP here; by default in this folder.")
    factory: bool = setting(False, SWITCH, APPLICATION, "APP is a function that returns the app.")
    interface: str = setting(
        "auto", choice("auto", "asgi3"), APPLICATION, "The interface that APP speaks."
    )
    lifespan: str = setting(
        "auto", choice("auto", "on", "off"), APPLICATION, "Run the ASGI lifespan protocol."
    )
    root_path: str = setting("", TEXT, APPLICATION, "ASGI root_path: the prefix APP is mounted at.")

    host: str = setting("127.0.0.1", TEXT, SOCKETS, "Address to listen on.", reloadable=False)
    port: int = setting(
        8000,
        whole_number(0, 65535),
        SOCKETS,
        "Port to listen on; 0 takes a free one.",
        reloadable=False,
    )
    bind: tuple[str, ...] = setting(
        (),
        TEXTS,
        SOCKETS,
        "HOST:PORT or [V6]:PORT to listen on, instead of --host and --port; repeatable.",
        flags=("-b", "--bind"),
        reloadable=False,
    )
    backlog: int = setting(
        2048,
        whole_number(1, 65535),
        SOCKETS,
        "Connections the kernel may hold until they are accepted.",
        reloadable=False,
    )

    workers: int = setting(
        1,
        whole_number(1, 512),
        PROCESSES,
        "Number of worker processes.",
        flags=("-w", "--workers"),
        environment=("WEB_CONCURRENCY",),
    )
    surge: int = setting(
        1,
        whole_number(1, 64),
        PROCESSES,
        "Workers that a reload or a recycle may start beyond --workers.",
    )
    max_requests: int = setting(
        0,
        whole_number(0),
        PROCESSES,
        "Replace a worker after this many requests; 0 never.",
        flags=("--max-requests", "--limit-max-requests"),
    )
    max_requests_jitter: int = setting(
        0,
        whole_number(0),
        PROCESSES,
        "Add a random number up to this to --max-requests, for each worker anew.",
        flags=("--max-requests-jitter", "--limit-max-requests-jitter"),
    )
    timeout: float = setting(
        30.0,
        seconds(),
        PROCESSES,
        "Replace a worker whose event loop stood still for this long; 0 never.",
        flags=("-t", "--timeout"),
    )
    timeout_boot: float = setting(
        60.0, seconds(0.1), PROCESSES, "Time a worker may take until it is ready."
    )
    graceful_timeout: float = setting(
        30.0,
        seconds(),
        PROCESSES,
        "Time a retiring worker has for the requests in flight.",
        flags=("--graceful-timeout", "--timeout-graceful-shutdown"),
    )
    name: str = setting(
        "", TEXT, PROCESSES, "Name in process titles; by default APP.", flags=("-n", "--name")
    )

    loop: str = setting(
        "auto", choice("auto", "asyncio", "uvloop"), HTTP, "Event loop implementation."
    )
    http: str = setting(
        "auto",
        choice("auto", "httptools", "h11"),
        HTTP,
        "HTTP parser; auto is httptools where it is installed.",
    )
    threads: int = setting(
        0,
        whole_number(0, 1024),
        HTTP,
        "Threads that run a WSGI application, in each worker; 0 is chosen by the number of CPUs.",
        pending=True,
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
        "Take client address, scheme and host from X-Forwarded-* and Forwarded of trusted proxies.",
        pending=True,
    )
    forwarded_allow_ips: tuple[str, ...] = setting(
        ("127.0.0.1",),
        TEXTS,
        HTTP,
        "Proxies to trust: addresses, CIDR ranges, unix: or *, separated by commas.",
        environment=("FORWARDED_ALLOW_IPS",),
        pending=True,
    )
    proxy_protocol: bool = setting(
        False,
        SWITCH,
        HTTP,
        "Expect a PROXY protocol header (v1 or v2) on connections from trusted proxies.",
        pending=True,
    )
    server_header: bool = setting(True, SWITCH, HTTP, "Add a Server field to responses.")
    date_header: bool = setting(True, SWITCH, HTTP, "Add a Date field to responses.")

    limit_request_line: int = setting(
        8190, whole_number(64), LIMITS, "Longest request target accepted, in bytes (414)."
    )
    limit_request_fields: int = setting(
        100, whole_number(1), LIMITS, "Most header fields in a request (431)."
    )
    limit_request_header_size: int = setting(
        65536, whole_number(256), LIMITS, "Largest header section of a request, in bytes (431)."
    )
    limit_request_body: int = setting(
        0, whole_number(0), LIMITS, "Largest request body, in bytes (413); 0 for no limit."
    )
    timeout_request_header: float = setting(
        10.0, seconds(0.1), LIMITS, "Time a client may take to send a request's header (408)."
    )
    timeout_request_body: float = setting(
        60.0, seconds(0.1), LIMITS, "Time a request body may stand still (408)."
    )

    limit_concurrency: int = setting(
        0,
        whole_number(0),
        LIMITS,
        "Most requests in progress in one worker (503 beyond); 0 for no limit.",
    )
    limit_connections: int = setting(
        0,
        whole_number(0),
        LIMITS,
        "Most connections one worker holds; more wait in the queue; 0 for no limit.",
    )
    request_timeout: float = setting(
        0.0,
        seconds(),
        LIMITS,
        "Cancel a request that takes longer, and log where it was; 0 never.",
    )

    ssl_keyfile: str = setting(
        "", TEXT, TLS, "Private key, in PEM.", flags=("--ssl-keyfile", "--keyfile"), pending=True
    )
    ssl_certfile: str = setting(
        "",
        TEXT,
        TLS,
        "Certificate with its chain, in PEM; turns TLS on.",
        flags=("--ssl-certfile", "--certfile"),
        pending=True,
    )
    ssl_keyfile_password: str = setting("", TEXT, TLS, "Password of the private key.", pending=True)
    ssl_version: str = setting(
        "1.2",
        TEXT,
        TLS,
        "Oldest version of TLS that is spoken: 1.2 or 1.3.",
        pending=True,
    )
    ssl_cert_reqs: str = setting(
        "none",
        TEXT,
        TLS,
        "Whether clients need a certificate: none, optional or required.",
        flags=("--ssl-cert-reqs", "--cert-reqs"),
        pending=True,
    )
    ssl_ca_certs: str = setting(
        "",
        TEXT,
        TLS,
        "Authorities that clients' certificates are checked with, in PEM.",
        flags=("--ssl-ca-certs", "--ca-certs"),
        pending=True,
    )
    ssl_ciphers: str = setting(
        "",
        TEXT,
        TLS,
        "Ciphers for TLS 1.2, in OpenSSL's notation.",
        flags=("--ssl-ciphers", "--ciphers"),
        pending=True,
    )

    log_level: str = setting(
        "info",
        choice("critical", "error", "warning", "info", "debug", "trace"),
        LOGGING,
        "The least severe level that is logged.",
    )
    access_log: bool = setting(True, SWITCH, LOGGING, "Log each request, on standard output.")
    access_logfile: str = setting(
        "-", TEXT, LOGGING, "File for the access log; - is standard output."
    )
    error_logfile: str = setting(
        "-",
        TEXT,
        LOGGING,
        "File for the log; - is standard error.",
        flags=("--log-file", "--error-logfile"),
    )
    access_logformat: str = setting(
        "",
        LOG_FORMAT,
        LOGGING,
        "Format of access log lines: common, combined, or gunicorn's atoms; by default uvicorn's.",
    )
    log_format: str = setting(
        "text", choice("text", "json"), LOGGING, "Form of both logs; json is an object a line."
    )
    log_config: str = setting(
        "", TEXT, LOGGING, "Configure logging from this .ini, .json or .yaml file instead."
    )
    use_colors: bool | None = setting(
        None, SWITCH, LOGGING, "Colour the log; by default on a terminal."
    )

    origins: Mapping[str, str] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    @property
    def title(self) -> str:
        """What process titles and the log call this application."""
        return self.name or self.app

    @property
    def binds(self) -> tuple[str, ...]:
        """The addresses to listen on, as `--bind` writes them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return self.bind or (f"{host}:{self.port}",)

    @property
    def binds_origin(self) -> str:
        """Where `binds` came from, for messages to the operator."""
        names = ("bind",) if self.bind else ("host", "port")
        given = [self.origins[name] for name in names if name in self.origins]
        return " and ".join(given) or "the default"

    def origin(self, name: str) -> str:
        """Where the value of the setting `name` came from, for messages to the operator."""
        return self.origins.get(name, "the default")


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
    )


SETTINGS: Mapping[str, Setting] = {
    field.name: _declared(field) for field in dataclasses.fields(Config) if field.metadata
}


@dataclasses.dataclass(frozen=True, slots=True)
class Raw:
    """A value as its source gave it, and where that was (`--port`, `ESG_PORT`, a file's key)."""

    value: object
    origin: str


def build(raw: Mapping[str, Raw]) -> Config:
    """Check every value and make a Config of them; what is missing takes its default.

    Raises ConfigError for the first value that can't be used.
    """
    values = {name: _checked(SETTINGS[name], given) for name, given in raw.items()}
    origins = {name: given.origin for name, given in raw.items()}
    config = Config(**values, origins=origins)
    _check_together(config)
    return config


def _checked(declared: Setting, given: Raw) -> Any:
    try:
        value = declared.kind.parse(given.value)
    except ValueError as error:
        raise ConfigError(f"{given.origin}: invalid value {given.value!r}: {error}") from None
    if declared.pending and value != declared.default:
        raise ConfigError(f"{given.origin}: this version of ESG can't do that yet; leave it out")
    return value


def _check_together(config: Config) -> None:
    if not config.app:
        raise ConfigError("no application given; expected MODULE:ATTRIBUTE, as in: esg example:app")
    clash = next((name for name in ("host", "port") if name in config.origins), None)
    if config.bind and clash:
        raise ConfigError(
            f"{config.origin('bind')} and {config.origin(clash)} both say where to listen; use one"
        )
    if config.root_path and not config.root_path.startswith("/"):
        raise ConfigError(f"{config.origin('root_path')}: {config.root_path!r} must begin with '/'")
    if config.log_config:
        _check_log_config(config)


def _check_log_config(config: Config) -> None:
    """What `--log-config` says in its file can't be said beside it."""
    for name in ("access_logfile", "error_logfile", "log_format", "use_colors"):
        if getattr(config, name) != SETTINGS[name].default:
            raise ConfigError(
                f"{config.origin(name)}: the file of {config.origin('log_config')} decides on "
                "that; say it there, or leave one of them out"
            )


def check_reload(old: Config, new: Config) -> None:
    """Raise ConfigError if `new` changes a setting that only a restart can change."""
    for declared in SETTINGS.values():
        before, after = getattr(old, declared.name), getattr(new, declared.name)
        if not declared.reloadable and before != after:
            raise ConfigError(
                f"{new.origin(declared.name)}: {declared.name} changed from {before!r} to "
                f"{after!r}, which a reload can't do; restart to change it"
            )


def nearest(name: str, names: Mapping[str, object] | list[str]) -> str:
    """A hint ", did you mean X?" for a misspelt name, or nothing."""
    close = difflib.get_close_matches(name, list(names), 1)
    return f"; did you mean {close[0]}?" if close else ""
