"""The command line: options to settings, texts and exit codes. Nothing is served here."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import sys

import pytest
from uvicorn.main import main as uvicorn_command

import esg
from esg import api, cli, usage
from esg.payload import Settings
from esg.server.http1 import parsers
from esg.settings import build
from esg.settings.schema import NO_EFFECT, SETTINGS


class Spy:
    """Replaces the arbiter: remembers its Config and returns an exit code."""

    made: Spy | None = None

    def __init__(self, settings, payload, read_settings):
        self.config, self.read_settings = settings.config, read_settings
        Spy.made = self

    def run(self):
        return 0


@pytest.fixture(autouse=True)
def command(monkeypatch, tmp_path):
    """In an empty folder and environment, with a spy for the arbiter."""
    for declared in SETTINGS.values():
        for variable in declared.variables:
            monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(api, "Arbiter", Spy)
    Spy.made = None


def config_of(*arguments):
    assert cli.main(["example:app", *arguments]) == 0
    return Spy.made.config


# -- options ---------------------------------------------------------------------------


def test_an_application_is_enough():
    assert config_of().app == "example:app"


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        (["--host", "0.0.0.0"], "host", "0.0.0.0"),
        (["--port", "9000"], "port", 9000),
        (["--port=9000"], "port", 9000),
        (["-w", "3"], "workers", 3),
        (["--workers", "3"], "workers", 3),
        (["-b", "a:1", "-b", "b:2"], "bind", ("a:1", "b:2")),
        (["--bind", "a:1"], "bind", ("a:1",)),
        (["-t", "5"], "timeout", 5.0),
        (["--graceful-timeout", "5"], "graceful_timeout", 5.0),
        (["--timeout-graceful-shutdown", "5"], "graceful_timeout", 5.0),
        (["--keep-alive", "7"], "timeout_keep_alive", 7.0),
        (["--timeout-keep-alive", "7"], "timeout_keep_alive", 7.0),
        (["--max-requests", "7"], "max_requests", 7),
        (["--limit-max-requests", "7"], "max_requests", 7),
        (["-n", "shop"], "name", "shop"),
        (["--no-access-log"], "access_log", False),
        (["--access-log"], "access_log", True),
        (["--use-colors"], "use_colors", True),
        (["--no-use-colors"], "use_colors", False),
        (["--no-server-header"], "server_header", False),
        (["--no-proxy-headers"], "proxy_headers", False),
        (["--proxy-protocol"], "proxy_protocol", True),
        (["--forwarded-allow-ips", "*"], "forwarded_allow_ips", ("*",)),
        (["--forwarded-allow-ips", "10.0.0.1, ::1"], "forwarded_allow_ips", ("10.0.0.1", "::1")),
        (["--ssl-handshake-timeout", "3"], "ssl_handshake_timeout", 3.0),
        (["--factory"], "factory", True),
        (["--loop", "ASYNCIO"], "loop", "asyncio"),
        (["--http", "h11"], "http", "h11"),
        (["--root-path", "/api"], "root_path", "/api"),
        (["--app-dir", "/srv"], "app_dir", "/srv"),
        (["--lifespan", "off"], "lifespan", "off"),
        (["--log-level", "debug"], "log_level", "debug"),
    ],
)
def test_an_option_sets_its_setting(arguments, name, value):
    config = config_of(*arguments)
    assert getattr(config, name) == value
    assert config.origin(name).startswith("--")


@pytest.mark.parametrize("declared", SETTINGS.values(), ids=SETTINGS)
def test_every_setting_can_be_given(declared):
    names = {name for parameter in cli.command.params for name in parameter.opts}
    if declared.name == "app":
        assert "app" in names
    else:
        assert set(declared.flags) <= names


def test_only_given_settings_have_the_command_line_as_their_origin():
    config = config_of("--port", "1")
    assert set(config.origins) == {"app", "port"}


def test_options_may_come_before_the_application():
    assert cli.main(["--port", "1", "example:app"]) == 0
    assert Spy.made.config.port == 1


@pytest.fixture
def everything_built(monkeypatch):
    """As if no option were pending, and all files and folders existed."""
    built = {
        name: dataclasses.replace(declared, pending=False) for name, declared in SETTINGS.items()
    }
    monkeypatch.setattr(build, "SETTINGS", built)
    # The files and folders don't exist.
    monkeypatch.setattr(api, "prepare", Settings)
    monkeypatch.setattr(api, "enter_folder", lambda made: made)
    monkeypatch.setattr(api, "check", lambda made: None)


PROGRAMS = {
    "uvicorn example:app --host 0.0.0.0 --port 80 --workers 4 --log-level warning": {
        "host": "0.0.0.0",
        "port": 80,
        "workers": 4,
        "log_level": "warning",
    },
    "uvicorn --factory example:make --loop uvloop --http h11 --ws none --lifespan on "
    "--interface asgi3 --root-path /api --app-dir /srv --reset-contextvars": {
        "factory": True,
        "loop": "uvloop",
        "http": "h11",
        "ws": "none",
        "lifespan": "on",
        "interface": "asgi3",
        "root_path": "/api",
        "app_dir": "/srv",
        "reset_contextvars": True,
    },
    "uvicorn example:app --no-access-log --no-use-colors --no-server-header --no-date-header "
    "--header X-A:1 --header X-B:2 --backlog 64": {
        "access_log": False,
        "use_colors": False,
        "server_header": False,
        "date_header": False,
        "header": ("X-A: 1", "X-B: 2"),
        "backlog": 64,
    },
    "uvicorn example:app --proxy-headers --forwarded-allow-ips=* --limit-concurrency 99": {
        "proxy_headers": True,
        "forwarded_allow_ips": ("*",),
        "limit_concurrency": 99,
    },
    "uvicorn example:app --limit-max-requests 9 --limit-max-requests-jitter 3 "
    "--timeout-keep-alive 7 --timeout-graceful-shutdown 8 --timeout-worker-healthcheck 6 "
    "--h11-max-incomplete-event-size 4096": {
        "max_requests": 9,
        "max_requests_jitter": 3,
        "timeout_keep_alive": 7,
        "graceful_timeout": 8,
        "timeout": 6,
        "limit_request_header_size": 4096,
    },
    "uvicorn example:app --ssl-keyfile k --ssl-certfile c --ssl-keyfile-password p "
    "--ssl-ca-certs a --ssl-ciphers HIGH": {
        "ssl_keyfile": "k",
        "ssl_certfile": "c",
        "ssl_keyfile_password": "p",
        "ssl_ca_certs": "a",
        "ssl_ciphers": "HIGH",
    },
    "uvicorn example:app --ws-max-size 1 --ws-max-queue 2 --ws-ping-interval 3.5 "
    "--ws-ping-timeout 4.5 --ws-per-message-deflate false --ws wsproto": {
        "ws_max_size": 1,
        "ws_max_queue": 2,
        "ws_ping_interval": 3.5,
        "ws_ping_timeout": 4.5,
        "ws_per_message_deflate": False,
        "ws": "wsproto",
    },
    "uvicorn example:app --reload --reload-dir a --reload-dir b --reload-include *.html "
    "--reload-exclude x --reload-delay 2": {
        "reload": True,
        "reload_dir": ("a", "b"),
        "reload_include": ("*.html",),
        "reload_exclude": ("x",),
        "reload_delay": 2,
    },
    "uvicorn example:app --uds /run/x --port 80": {"uds": "/run/x", "binds": ("unix:/run/x",)},
    "gunicorn example:app --log-config-json log --timeout 2m": {
        "log_config": "log",
        "timeout": 120,
    },
    "hypercorn asgi:example:app -k uvloop --log-level warn": {
        "app": "example:app",
        "interface": "asgi3",
        "loop": "uvloop",
        "log_level": "warning",
        "access_log": False,
    },
    "uvicorn example:app --fd 3": {"fd": 3},
    "uvicorn example:app --log-config log.ini --http2": {"log_config": "log.ini", "http2": True},
    "gunicorn -w 4 -k uvicorn.workers.UvicornWorker -b 0.0.0.0:80 example:app": {
        "workers": 4,
        "bind": ("0.0.0.0:80",),
        "worker_class": "uvicorn.workers.UvicornWorker",
        "interface": "auto",
    },
    "gunicorn example:app --workers=2 --threads=4 --worker-class=gthread": {
        "workers": 2,
        "threads": 4,
        "interface": "wsgi",
    },
    "gunicorn example:app --worker-class uvicorn.workers.UvicornH11Worker": {"http": "h11"},
    "gunicorn example:app -b 127.0.0.1:1 --bind [::1]:2 -t 90 --graceful-timeout 20 "
    "--keep-alive 2 --backlog 512": {
        "bind": ("127.0.0.1:1", "[::1]:2"),
        "timeout": 90,
        "graceful_timeout": 20,
        "timeout_keep_alive": 2,
        "backlog": 512,
    },
    "gunicorn example:app --max-requests 1000 --max-requests-jitter 50 --preload": {
        "max_requests": 1000,
        "max_requests_jitter": 50,
        "preload": True,
    },
    "gunicorn example:app -n shop -p /run/x.pid -u www -g www -m 022 --chdir /usr -D": {
        "name": "shop",
        "pid": "/run/x.pid",
        "user": "www",
        "group": "www",
        "umask": "022",
        "chdir": "/usr",
        "daemon": True,
    },
    "gunicorn example:app --name shop --pid x --user www --group www --umask 7 --daemon": {
        "name": "shop",
        "pid": "x",
        "umask": "007",
        "daemon": True,
    },
    "gunicorn example:app --access-logfile - --error-logfile e --access-logformat %(h)s": {
        "access_logfile": "-",
        "error_logfile": "e",
        "access_logformat": "%(h)s",
    },
    "gunicorn example:app --log-file e --log-level debug --worker-tmp-dir /dev/shm": {
        "error_logfile": "e",
        "log_level": "debug",
        "worker_tmp_dir": "/dev/shm",
    },
    "gunicorn example:create_app() -b tcp://0.0.0.0:8000 --reuse-port --no-sendfile --initgroups "
    "--reload --reload-engine poll --no-control-socket -R": {
        "app": "example:create_app",
        "factory": True,
        "bind": ("tcp://0.0.0.0:8000",),
        "reuse_port": True,
        "sendfile": False,
        "initgroups": True,
        "reload_engine": "poll",
        "control_socket_disable": True,
        "enable_stdio_inheritance": True,
    },
    "gunicorn example:app --enable-stdio-inheritance": {"enable_stdio_inheritance": True},
    "gunicorn example:app --certfile c --keyfile k --ca-certs a --ciphers HIGH": {
        "ssl_certfile": "c",
        "ssl_keyfile": "k",
        "ssl_ca_certs": "a",
        "ssl_ciphers": "HIGH",
    },
    "gunicorn example:app -k asgi --asgi-loop asyncio --asgi-lifespan off --worker-connections 500 "
    "--websocket-max-message-size 1024": {
        "loop": "asyncio",
        "lifespan": "off",
        "limit_connections": 500,
        "ws_max_size": 1024,
    },
    "gunicorn example:app --limit-request-line 4094 --limit-request-fields 50 --root-path /a": {
        "limit_request_line": 4094,
        "limit_request_fields": 50,
        "root_path": "/a",
    },
}


@pytest.mark.usefixtures("everything_built")
@pytest.mark.parametrize(("line", "values"), PROGRAMS.items(), ids=PROGRAMS)
def test_command_lines_of_other_servers_are_accepted(line, values):
    assert cli.main(line.split()[1:]) == 0
    made = Spy.made.config
    assert {name: getattr(made, name) for name in values} == values


def uvicorns_options():
    names = [name for p in uvicorn_command.params for name in (*p.opts, *p.secondary_opts)]
    return [name for name in names if name.startswith("-")]


@pytest.mark.parametrize("flag", uvicorns_options())
def test_every_option_of_uvicorn_is_known(flag):
    ours = {name for p in cli.command.params for name in (*p.opts, *p.secondary_opts)}
    assert flag in ours


def test_defaults_are_the_same_as_in_uvicorn():
    ours = {name: declared.default for name, declared in SETTINGS.items()}
    theirs = {p.name: p.default for p in uvicorn_command.params}
    same = ("host", "port", "backlog", "loop", "http", "ws", "lifespan", "interface", "app_dir")
    same += ("ws_max_size", "ws_max_queue", "ws_ping_interval", "ws_ping_timeout")
    same += ("ws_per_message_deflate", "access_log", "proxy_headers", "server_header")
    same += ("date_header", "reload", "reload_delay", "timeout_keep_alive", "factory", "http2")
    same += ("reset_contextvars", "root_path", "use_colors", "fd")
    assert {n: ours[n] for n in same} == {n: theirs.get(n, ours[n]) for n in same}


# -- what is printed and checked -------------------------------------------------------


def test_the_settings_are_printed_with_their_origins(tmp_path, monkeypatch, capsys):
    (tmp_path / "esg.toml").write_text("timeout = 9\nworkers = 3")
    monkeypatch.setenv("WEB_CONCURRENCY", "5")
    assert cli.main(["example:app", "--port", "1", "--print-config"]) == 0
    assert Spy.made is None
    lines = capsys.readouterr().out.splitlines()
    shown = {line.split(" =")[0]: line.split("  # ")[1] for line in lines if " = " in line}
    assert shown["app"] == "command line APP"
    assert shown["port"] == "command line --port"
    assert shown["workers"] == "environment WEB_CONCURRENCY"
    assert shown["timeout"] == "esg.toml: timeout"
    assert shown["host"] == "default"


def test_a_password_is_not_printed(capsys):
    assert cli.main(["example:app", "--ssl-keyfile-password", "hunter2", "--print-config"]) == 0
    assert "hunter2" not in capsys.readouterr().out


def test_settings_that_cannot_be_used_are_not_printed(capsys):
    assert cli.main(["example:app", "--port", "x", "--print-config"]) == 2
    assert capsys.readouterr().out == ""


@pytest.fixture
def modules(monkeypatch, tmp_path):
    """Forget the test's modules that a check has imported."""
    monkeypatch.setattr(sys, "path", sys.path[:])
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.usefixtures("modules")
def test_a_check_imports_the_application(tmp_path, capsys):
    (tmp_path / "checked_1.py").write_text("async def app(scope, receive, send): pass")
    assert cli.main(["checked_1:app", "-w", "2", "--check-config"]) == 0
    assert capsys.readouterr().out == "esg: configuration OK: checked_1:app, workers=2\n"
    assert Spy.made is None
    assert "checked_1" in sys.modules


@pytest.mark.usefixtures("modules")
def test_any_module_name_that_can_be_imported_is_accepted(tmp_path, capsys):
    (tmp_path / "checked-1.py").write_text("async def app(scope, receive, send): pass")
    assert cli.main(["checked-1:app", "--check-config"]) == 0


@pytest.mark.usefixtures("modules")
def test_a_check_finds_an_application_that_fails(tmp_path, capsys):
    (tmp_path / "checked_2.py").write_text("import os\n1 / 0")
    assert cli.main(["checked_2:app", "--check-config"]) == 4
    captured = capsys.readouterr()
    assert "checked_2.py" in captured.err
    *_, last = captured.err.splitlines()
    assert last.startswith("esg: error: importing 'checked_2' failed: ZeroDivisionError")
    assert captured.out == ""


@pytest.mark.usefixtures("modules")
def test_a_check_is_made_where_the_server_would_run(tmp_path, capsys):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "checked_3.py").write_text("async def app(scope, receive, send): pass")
    assert cli.main(["checked_3:app", "--check-config"]) == 4
    assert cli.main(["checked_3:app", "--check-config", "--chdir", "sub"]) == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--bind", "nowhere:x"], "--bind: 'nowhere:x': expected HOST:PORT"),
        (["--bind", "a..b:80"], "--bind: 'a..b:80': 'a..b' can't be the name of a host"),
        (["--host", 64 * "x"], "can't be the name of a host"),
        (["--bind", "fd://99999999999"], "the number is too high for a descriptor"),
        (
            ["--fd", "99999999999"],
            "--fd: 'fd://99999999999': the number is too high for a descriptor",
        ),
        (["--chdir", "missing"], "--chdir: can't change to 'missing': No such file"),
        (["--workers", "0"], "--workers: invalid value '0'"),
    ],
)
def test_a_check_finds_settings_that_cannot_be_used(capsys, arguments, told):
    assert cli.main(["example:app", "--check-config", *arguments]) == 2
    assert told in capsys.readouterr().err


HANDLERS = """
[loggers]
keys=root
[handlers]
keys=h
[formatters]
keys=
[logger_root]
handlers=h
[handler_h]
class=FileHandler
args=('%s', 'w')
"""


@pytest.fixture
def logging_as_it_was():
    root, log = logging.getLogger(), logging.getLogger("esg")
    before = [(each, each.handlers[:], each.level, each.propagate) for each in (root, log)]
    last_resort = logging.lastResort
    yield
    for each, handlers, level, propagate in before:
        each.handlers[:], each.propagate = handlers, propagate
        each.setLevel(level)
    logging.lastResort = last_resort


@pytest.mark.usefixtures("logging_as_it_was")
@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--log-config", "missing.ini"], 2, "--log-config: missing.ini: can't be read: No such"),
        (["--log-config", "bad.json"], 2, "--log-config: bad.json: can't configure logging: "),
        (["--log-config", "nowhere.ini"], 2, "can't configure logging: .*missing/log"),
        (["--error-logfile", "missing/x"], 1, "--error-logfile: can't open the log file '.*/x'"),
        (["--access-logfile", "."], 1, "--access-logfile: can't open the log file .*directory"),
        (["--http", "httptools"], 2, "--http: httptools is not installed; try: pip install httpt"),
    ],
)
def test_a_check_finds_errors_that_would_prevent_the_start(
    tmp_path, capsys, monkeypatch, arguments, code, told
):
    monkeypatch.setattr(parsers.importlib.util, "find_spec", lambda name: None)
    (tmp_path / "bad.json").write_text('{"version": 1, "handlers": {"h": {"class": "nope"}}}')
    (tmp_path / "nowhere.ini").write_text(HANDLERS % "missing/log")
    assert cli.main(["example:app", "--check-config", *arguments]) == code
    assert re.search(told, capsys.readouterr().err)


@pytest.mark.usefixtures("modules", "logging_as_it_was")
def test_a_check_makes_no_log_files_and_empties_none(tmp_path, capsys):
    (tmp_path / "checked_4.py").write_text(
        "import logging\nlogging.getLogger().error('one')\n"
        "async def app(scope, receive, send): pass"
    )
    (tmp_path / "old.log").write_text("lines\n")
    (tmp_path / "old.ini").write_text(HANDLERS % "old.log")
    (tmp_path / "new.ini").write_text(HANDLERS % "new.log")
    check = ["checked_4:app", "--check-config"]
    assert cli.main([*check, "--log-config", "old.ini"]) == 0
    assert cli.main([*check, "--log-config", "new.ini"]) == 0
    assert cli.main([*check, "--error-logfile", "a.log", "--access-logfile", "b.log"]) == 0
    assert (tmp_path / "old.log").read_text() == "lines\n"
    assert [path.name for path in tmp_path.glob("*.log")] == ["old.log"]


# -- other sources ---------------------------------------------------------------------


def test_the_application_may_be_in_the_environment(monkeypatch):
    monkeypatch.setenv("ESG_APP", "from_env:app")
    assert cli.main([]) == 0
    assert Spy.made.config.app == "from_env:app"


def test_a_file_in_the_folder_is_read(tmp_path):
    (tmp_path / "esg.toml").write_text("port = 5")
    assert config_of().port == 5


@pytest.mark.parametrize("flag", ["-c", "--config"])
def test_a_file_can_be_named(tmp_path, flag):
    (tmp_path / "other.toml").write_text("port = 5")
    assert config_of(flag, "other.toml").port == 5


def test_a_reload_finds_the_file_after_a_chdir(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "other.toml").write_text("workers = 2")
    config_of("-c", "other.toml", "--chdir", "sub")
    assert os.getcwd() == str(tmp_path / "sub")
    (tmp_path / "other.toml").write_text("workers = 3")
    assert Spy.made.read_settings().config.workers == 3


def test_a_reload_reads_every_source_again(tmp_path, monkeypatch):
    (tmp_path / "esg.toml").write_text("workers = 1")
    config_of("--timeout", "9")
    (tmp_path / "esg.toml").write_text("workers = 2")
    monkeypatch.setenv("ESG_NAME", "again")
    config = Spy.made.read_settings().config
    assert (config.workers, config.name, config.timeout) == (2, "again", 9.0)


# -- errors ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "no application"),
        (["example.py"], "example:app"),
        (["example:app", "--port", "x"], "--port"),
        (["example:app", "--workers", "0"], "--workers"),
        (["example:app", "--worker", "1"], "--worker"),
        (["example:app", "--loop", "uvlop"], "uvloop"),
        (["example:app", "more"], "more"),
        (["example:app", "--port"], "--port"),
        (["example:app", "-c", "missing.toml"], "missing.toml"),
        (["example:app", "--bind", "a:1", "--port", "2"], "--port"),
        (["example:app", "--root-path", "api"], "--root-path"),
        (["example:app", "--chdir", "missing"], "--chdir: can't change to 'missing'"),
        (["example:app", "--header", "x"], "--header: invalid value 'x': expected NAME:VALUE"),
        (["example:app", "-k", "gevent"], "--worker-class"),
        (["example:make(1)"], "expected MODULE:ATTRIBUTE"),
        (["example:make()", "--no-factory"], "say different things"),
        (["example:app", "--no-control-socket", "--control-socket", "x"], "say different things"),
        (["example:app", "--reload-engine", "notify"], "inotify"),
        (["example:app", "--env-file", "missing"], "--env-file: 'missing' can't be read"),
        (["example:app", "-c", "gunicorn.conf.py"], "write esg.toml"),
        (["example:app", "--graceful-timout", "3"], "--graceful-timeout"),
    ],
)
def test_a_usage_error_is_one_line_and_exit_code_2(capsys, arguments, told):
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("esg: error: ")
    assert told in captured.err
    assert Spy.made is None


@pytest.mark.parametrize("flag", ["--ssl-certfile", "--certfile"])
def test_certificates_are_read_with_the_settings(capsys, flag):
    assert cli.main(["example:app", flag, "missing.pem"]) == 2
    told = "--ssl-certfile: 'missing.pem' can't be read: No such file or directory"
    assert capsys.readouterr().err == f"esg: error: {told}\n"
    assert Spy.made is None


def test_a_bad_environment_is_exit_code_2(capsys, monkeypatch):
    monkeypatch.setenv("ESG_PORT", "x")
    assert cli.main(["example:app"]) == 2
    assert "ESG_PORT" in capsys.readouterr().err


@pytest.mark.parametrize("code", [0, 1, 3, 4])
def test_the_command_exits_with_the_arbiters_exit_code(monkeypatch, code):
    monkeypatch.setattr(Spy, "run", lambda self: code)
    assert cli.main(["example:app"]) == code


def test_an_error_of_the_arbiter_is_printed_and_has_its_exit_code(monkeypatch, capsys):
    def run(self):
        raise esg.errors.ListenError("can't listen on 127.0.0.1:80")

    monkeypatch.setattr(Spy, "run", run)
    assert cli.main(["example:app"]) == 1
    assert capsys.readouterr().err == "esg: error: can't listen on 127.0.0.1:80\n"


# -- texts -----------------------------------------------------------------------------


@pytest.fixture
def help_of(capsys):
    """The text that an option such as `--help` prints."""

    def help_of(flag: str) -> str:
        assert cli.main([flag]) == 0
        return capsys.readouterr().out

    return help_of


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_fits_on_two_screens(help_of, flag):
    text = help_of(flag)
    assert len(text.splitlines()) < 150
    assert "--help-all" in text


def test_help_shows_the_common_options(help_of):
    text = help_of("--help")
    common = [declared for name, declared in SETTINGS.items() if name in usage.COMMON]
    assert len(common) > 30
    for declared in common:
        shown = "APP" if declared.name == "app" else declared.option.removeprefix("--")
        assert shown in text
        assert f"\n{declared.group}:\n" in text
    for option in ("-c, --config", "--print-config", "--check-config", "--version", "-h, --help"):
        assert option in text


def test_common_options_exist():
    assert {p.name for p in cli.command.params} >= usage.COMMON


def test_help_leaves_out_options_without_effect(help_of):
    text = help_of("--help")
    for name in NO_EFFECT:
        assert SETTINGS[name].option not in text


def test_help_ends_with_examples_that_are_accepted(help_of):
    lines = help_of("--help").partition("\nExamples:\n")[2].splitlines()
    assert len(lines) >= 3
    for line in lines:
        words = re.split(r"\s{3,}", line.strip())[0].split()
        assert words[0] == "esg"
        cli.command.make_context("esg", words[1:])


def test_help_all_names_every_flag_of_a_setting(help_of):
    text = help_of("--help-all")
    for declared in SETTINGS.values():
        if declared.name != "app":
            assert all(name.removeprefix("--") in text for name in declared.flags)
            assert f"[{declared.variables[0]}" in " ".join(text.split())


def test_help_all_has_options_without_effect_in_their_own_group(help_of):
    text = help_of("--help-all")
    ignored = text.partition("\nIgnored (")[2].partition("\n\n")[0]
    for name in NO_EFFECT:
        assert SETTINGS[name].option.removeprefix("--") in ignored
    pending = text.partition("\nNot in this version:")[2].partition("\n\n")[0]
    listed = set(re.findall(r"--(?:\[no-\])?([a-z0-9-]+)", pending))
    assert listed == {s.option.removeprefix("--") for s in SETTINGS.values() if s.pending}


@pytest.mark.parametrize("flag", ["--help", "--help-all"])
def test_help_fits_80_columns(help_of, monkeypatch, flag):
    monkeypatch.setenv("COLUMNS", "200")
    assert [line for line in help_of(flag).splitlines() if len(line) > 80] == []


@pytest.mark.parametrize("flag", ["--help", "--help-all"])
def test_help_breaks_no_name_of_an_option(help_of, flag):
    assert [line for line in help_of(flag).splitlines() if line.endswith("-")] == []


def test_help_all_shows_defaults_variables_and_units(help_of):
    text = " ".join(help_of("--help-all").split())
    assert "[ESG_PORT or PORT, default 8000]" in text
    assert "[ESG_FACTORY, default off]" in text
    assert "--graceful-timeout, --timeout-graceful-shutdown DURATION" in text
    assert "A DURATION is a number of seconds, or has a unit: 500ms, 30s, 5m, 1h, 1d." in text
    assert "A SIZE is a number of bytes, or has a unit: 64k, 16MiB, 1g." in text


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--wrokers", "3"], "there is no option --wrokers; did you mean --workers"),
        (["--no-such-thing"], "there is no option --no-such-thing (see esg --help)"),
        (["--port"], "--port needs a value (see esg --help)"),
        (["--reload=3"], "--reload takes no value (see esg --help)"),
        (["a:b", "c"], "unexpected extra argument (c) (see esg --help)"),
    ],
)
def test_a_wrong_command_line_is_one_sentence(capsys, arguments, error):
    assert cli.main(arguments) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"esg: error: {error}")
    assert line.endswith(" (see esg --help)\n")
    assert ". " not in line


def test_the_version_is_printed(capsys):
    assert cli.main(["--version"]) == 0
    assert esg.__version__ in capsys.readouterr().out
