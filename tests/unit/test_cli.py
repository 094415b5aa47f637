"""The command line: options to settings, texts and exit codes. Nothing is served here."""

from __future__ import annotations

import pytest

import esg
from esg import cli
from esg.config import SETTINGS


class Spy:
    """Stands in for the arbiter: remembers its Config and returns an exit code."""

    made: Spy | None = None

    def __init__(self, config, payload, read_config):
        self.config, self.read_config = config, read_config
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
    monkeypatch.setattr(cli, "Arbiter", Spy)
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
        (["--factory"], "factory", True),
        (["--loop", "ASYNCIO"], "loop", "asyncio"),
        (["--http", "h11"], "http", "h11"),
        (["--root-path", "/api"], "root_path", "/api"),
        (["--app-dir", "/srv"], "app_dir", "/srv"),
        (["--lifespan", "off"], "lifespan", "off"),
        (["--log-level", "debug"], "log_level", "debug"),
    ],
)
def test_an_option_gives_its_setting(arguments, name, value):
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


def test_settings_that_were_not_given_are_not_the_command_lines():
    config = config_of("--port", "1")
    assert set(config.origins) == {"app", "port"}


def test_options_may_come_before_the_application():
    assert cli.main(["--port", "1", "example:app"]) == 0
    assert Spy.made.config.port == 1


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


def test_a_reload_reads_every_source_again(tmp_path, monkeypatch):
    (tmp_path / "esg.toml").write_text("workers = 1")
    config_of("--timeout", "9")
    (tmp_path / "esg.toml").write_text("workers = 2")
    monkeypatch.setenv("ESG_NAME", "again")
    config = Spy.made.read_config()
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


def test_a_bad_environment_is_exit_code_2(capsys, monkeypatch):
    monkeypatch.setenv("ESG_PORT", "x")
    assert cli.main(["example:app"]) == 2
    assert "ESG_PORT" in capsys.readouterr().err


@pytest.mark.parametrize("code", [0, 1, 3, 4])
def test_the_arbiters_exit_code_is_the_commands(monkeypatch, code):
    monkeypatch.setattr(Spy, "run", lambda self: code)
    assert cli.main(["example:app"]) == code


def test_an_error_of_the_arbiters_has_its_exit_code(monkeypatch, capsys):
    def run(self):
        raise esg.errors.ListenError("can't listen on 127.0.0.1:80")

    monkeypatch.setattr(Spy, "run", run)
    assert cli.main(["example:app"]) == 1
    assert capsys.readouterr().err == "esg: error: can't listen on 127.0.0.1:80\n"


# -- texts -----------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_names_every_flag(capsys, flag):
    assert cli.main([flag]) == 0
    text = capsys.readouterr().out
    for declared in SETTINGS.values():
        if declared.name != "app":
            assert all(name in text for name in declared.flags)
        assert declared.group in text


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert esg.__version__ in capsys.readouterr().out
