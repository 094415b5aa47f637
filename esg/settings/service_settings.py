"""Declarations of the settings of the service: application, sockets, processes, logs, reload."""

from __future__ import annotations

import dataclasses

from esg.settings.declaration import APPLICATION, DEVELOPMENT, LOGGING, PROCESSES, SOCKETS, setting
from esg.settings.kinds import (
    ACCOUNT,
    APP,
    LOG_CONFIG,
    LOG_FORMAT,
    LOG_LEVEL,
    OCTAL,
    OPTIONAL_OCTAL,
    SWITCH,
    TEXT,
    TEXTS,
    WORKER_CLASS,
    WORKERS,
    LogDefinition,
    choice,
    seconds,
    size,
    whole_number,
)


@dataclasses.dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class ApplicationSettings:
    """The application, and how it is loaded."""

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
        "Run the application's ASGI startup and shutdown events; auto: if it supports them.",
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
        "Change to this folder at startup. If it is a symbolic link, each reload follows it again. "
        "Other relative paths are relative to it, except those of -c and --env-file.",
        reloadable=False,
    )
    reset_contextvars: bool = setting(
        False, SWITCH, APPLICATION, "Run each request in an empty contextvars.Context."
    )


@dataclasses.dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class SocketSettings:
    """Where ESG listens."""

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


@dataclasses.dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class ProcessSettings:
    """The arbiter and its workers."""

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
    max_lifetime: float = setting(
        0.0,
        seconds(),
        PROCESSES,
        "Replace a worker this long after its start; 0: never.",
        flags=("--max-lifetime", "--workers-lifetime"),
    )
    max_lifetime_jitter: float = setting(
        0.0,
        seconds(),
        PROCESSES,
        "Add up to this to --max-lifetime, a different time for each worker.",
    )
    max_memory: int = setting(
        0,
        size(0),
        PROCESSES,
        "Replace a worker that has more memory than this, in bytes; 0: never.",
    )
    max_memory_hard: int = setting(
        0,
        size(0),
        PROCESSES,
        "Kill a worker that has more memory than this, in bytes; 0: never.",
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
        "A gunicorn or hypercorn worker class; selects the matching interface, parser and event "
        "loop.",
        flags=("-k", "--worker-class"),
    )
    preload: bool = setting(
        False,
        SWITCH,
        PROCESSES,
        "Import APP once, in a process that forks the workers.",
        pending=True,
    )
    malloc_trim: int = setting(
        4 << 20,
        size(0),
        PROCESSES,
        "Keep up to this much free memory in a worker, in bytes, for its next requests (with "
        "glibc; see mallopt(3)); 0: glibc's default.",
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
        "UNIX socket through which esgctl controls the arbiter; default: none.",
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


@dataclasses.dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class LoggingSettings:
    """What is logged, in which format, and where."""

    log_level: str = setting(
        "info",
        LOG_LEVEL,
        LOGGING,
        "Log messages of this level and above. warning and above also turn the access log off, "
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
        "uvicorn, plus time and duration on a terminal.",
    )
    log_format: str = setting(
        "text", choice("text", "json"), LOGGING, "Format of both logs; json: one object per line."
    )
    log_config: str | LogDefinition = setting(  # noqa: RUF009 - a field, as the others are
        "",
        LOG_CONFIG,
        LOGGING,
        "Configure Python's logging from this .ini, .json or .yaml file, in place of "
        "--access-logfile, --error-logfile and --log-format.",
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


@dataclasses.dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class DevelopmentSettings:
    """Conveniences for working on an application."""

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
        "How to notice changes; poll: for file systems on which inotify doesn't work.",
    )
    reload_dir: tuple[str, ...] = setting(
        (),
        TEXTS,
        DEVELOPMENT,
        "Folder to watch; default: the current one and --app-dir; repeatable.",
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
        0.25, seconds(), DEVELOPMENT, "Wait this long between two checks of the files."
    )
