"""The sources of settings, and their precedence."""

from __future__ import annotations

import tomllib

import pytest

from esg.errors import ConfigError
from esg.settings import report, sources
from esg.settings.build import Raw, build, check_reload
from esg.settings.kinds import WORKERS, LogDefinition
from esg.settings.objects import Objects
from esg.settings.schema import SETTINGS
from esg.settings.sources import from_environment, from_file, load, strays_in

APP = {"app": Raw("example:app", "APP")}


def write(folder, name, text):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def loaded(folder, environment=(), command_line=(), file=None):
    return load(APP | dict(command_line), dict(environment), file=file, folder=folder)


# -- --debug reloads -------------------------------------------------------------------


def installed(monkeypatch, answer):
    found = sources.importlib.util.find_spec
    monkeypatch.setattr(
        sources.importlib.util,
        "find_spec",
        lambda name: (object() if answer else None) if name == "watchfiles" else found(name),
    )


def test_debug_turns_reload_on_unless_it_is_off_explicitly(tmp_path, monkeypatch):
    installed(monkeypatch, True)
    config = loaded(tmp_path, command_line={"debug": Raw(True, "--debug")})
    assert config.reload
    assert config.origin("reload") == "--debug"
    assert config.strays == ()
    for where in ({"ESG_RELOAD": "no"}, ()):
        write(tmp_path, "esg.toml", "debug = true" + ("" if where else "\nreload = false"))
        assert not loaded(tmp_path, where).reload


def test_debug_without_watchfiles_serves_with_a_notice(tmp_path, monkeypatch):
    installed(monkeypatch, False)
    config = loaded(tmp_path, {"ESG_DEBUG": "1"})
    assert config.debug
    assert not config.reload
    (stray,) = config.strays
    assert stray.startswith("environment ESG_DEBUG: ")
    assert "pip install watchfiles (or --no-reload)" in stray


def test_debug_leaves_an_object_as_it_is(tmp_path, monkeypatch):
    installed(monkeypatch, True)
    given = APP | {"debug": Raw(True, "argument debug")}
    config = load(given, {}, folder=tmp_path, objects=Objects(app=object()))
    assert (config.reload, config.strays) == (False, ())


# -- units -----------------------------------------------------------------------------


def test_units_are_accepted_from_every_source(tmp_path):
    write(tmp_path, "esg.toml", 'timeout = "1m"\nlimit_request_body = "16MiB"\nws_max_size = 1024')
    environment = {"ESG_GRACEFUL_TIMEOUT": "90s", "ESG_LIMIT_REQUEST_LINE": "4k"}
    option = {"timeout_keep_alive": Raw("500ms", "--timeout-keep-alive")}
    config = loaded(tmp_path, environment, option)
    assert (config.timeout, config.graceful_timeout, config.timeout_keep_alive) == (60, 90, 0.5)
    assert (config.limit_request_body, config.limit_request_line) == (2**24, 4096)
    assert config.ws_max_size == 1024


def test_a_bad_unit_is_blamed_on_its_source(tmp_path):
    with pytest.raises(ConfigError, match=r"^environment ESG_TIMEOUT: .*'5 minutes'.*30s, 5m, 1h"):
        loaded(tmp_path, {"ESG_TIMEOUT": "5 minutes"})


def test_logging_may_be_a_table_of_the_file(tmp_path):
    write(tmp_path, "esg.toml", "[log_config]\nversion = 1\n[log_config.root]\nlevel = 'INFO'")
    config = loaded(tmp_path)
    assert config.log_config == LogDefinition({"version": 1, "root": {"level": "INFO"}})
    shown = "\n".join(report.lines(config))
    assert tomllib.loads(shown)["log_config"] == config.log_config.content


# -- which source wins -----------------------------------------------------------------


def test_without_sources_the_defaults_apply(tmp_path):
    config = loaded(tmp_path)
    assert config.port == 8000
    assert "default" in config.origin("port")


def test_the_file_beats_the_default(tmp_path):
    write(tmp_path, "esg.toml", "port = 1")
    config = loaded(tmp_path)
    assert config.port == 1
    assert config.origin("port") == "esg.toml: port"


def test_the_environment_beats_the_file(tmp_path):
    write(tmp_path, "esg.toml", "port = 1\nworkers = 3")
    config = loaded(tmp_path, {"ESG_PORT": "2"})
    assert (config.port, config.workers) == (2, 3)
    assert "ESG_PORT" in config.origin("port")


def test_the_command_line_beats_the_environment(tmp_path):
    write(tmp_path, "esg.toml", "port = 1")
    config = loaded(tmp_path, {"ESG_PORT": "2"}, {"port": Raw("3", "--port")})
    assert config.port == 3
    assert config.origin("port") == "--port"


def test_the_application_may_come_from_anywhere(tmp_path):
    write(tmp_path, "esg.toml", "app = 'from_file:app'")
    assert load({}, {}, folder=tmp_path).app == "from_file:app"
    assert load({}, {"ESG_APP": "from_env:app"}, folder=tmp_path).app == "from_env:app"


def test_an_esg_toml_without_settings_still_has_precedence(tmp_path):
    write(tmp_path, "esg.toml", "# port = 1\n")
    write(tmp_path, "pyproject.toml", "[tool.esg]\nport = 2")
    assert loaded(tmp_path).port == 8000


# -- environment -----------------------------------------------------------------------


def test_an_empty_variable_counts_as_unset():
    assert from_environment({"ESG_PORT": "", "ESG_WORKERS": "2"}).keys() == {"workers"}


def test_other_variables_are_ignored():
    assert from_environment({"ESG": "x", "PATH": "/bin", "ESG_UNKNOWN": "x", "esg_port": "1"}) == {}


def warnings_of(config):
    return [text for level, text in config.notices() if level == "warning"]


def test_a_misspelt_variable_causes_a_warning(tmp_path):
    environment = {"ESG_WROKERS": "s3cret", "ESG_SEAGULL": "x", "ESG_PORT": "1", "ESGISH": "1"}
    assert warnings_of(loaded(tmp_path, environment)) == [
        "environment: no setting is called ESG_SEAGULL, ESG_WROKERS (did you mean ESG_WORKERS?)"
    ]


def test_a_misspelt_variable_of_an_env_file_causes_a_warning(tmp_path):
    write(tmp_path, "env", "ESG_TIME_OUT=3\nCOLOR=red")
    config = loaded(tmp_path, {}, {"env_file": Raw("env", "--env-file")})
    assert warnings_of(config) == [
        "env file: no setting is called ESG_TIME_OUT (did you mean ESG_TIMEOUT?)"
    ]


def test_variables_that_uvicorn_reads_cause_a_warning(tmp_path):
    environment = {"UVICORN_PORT": "1", "UVICORN_HEADERS": "a:b", "UVICORN_HOME": "/x"}
    assert warnings_of(loaded(tmp_path, environment)) == [
        "environment: UVICORN_HEADERS, UVICORN_PORT not read; use ESG_HEADER, ESG_PORT"
    ]


def test_arguments_in_gunicorns_variable_cause_a_warning(tmp_path):
    assert warnings_of(loaded(tmp_path, {"GUNICORN_CMD_ARGS": "-w 4"})) == [
        "environment: GUNICORN_CMD_ARGS not read; put it on the command line"
    ]


def test_gunicorns_file_causes_a_warning_if_esg_has_no_file(tmp_path):
    write(tmp_path, "gunicorn.conf.py", "workers = 4\nkeepalive = 3\n")
    assert warnings_of(loaded(tmp_path, {})) == [
        "not read: 'gunicorn.conf.py' is Python, and settings are TOML here; write esg.toml "
        "with workers, keepalive as timeout_keep_alive"
    ]
    write(tmp_path, "esg.toml", "workers = 4\n")
    assert warnings_of(loaded(tmp_path, {})) == []


def test_no_variable_of_a_setting_causes_a_warning():
    known = {variable: "" for each in SETTINGS.values() for variable in each.variables}
    assert list(strays_in(known)) == []


def test_web_concurrency_sets_the_number_of_workers():
    found = from_environment({"WEB_CONCURRENCY": "4"})
    assert found["workers"].value == "4"
    assert "WEB_CONCURRENCY" in found["workers"].origin


def test_esgs_own_variable_overrides_another_name():
    found = from_environment({"WEB_CONCURRENCY": "4", "ESG_WORKERS": "5"})
    assert found["workers"].value == "5"
    assert from_environment({"WEB_CONCURRENCY": "4", "ESG_WORKERS": ""})["workers"].value == "4"


def test_a_bad_value_names_its_variable(tmp_path):
    with pytest.raises(ConfigError, match=r"ESG_PORT.*'many'"):
        loaded(tmp_path, {"ESG_PORT": "many"})


# -- file ------------------------------------------------------------------------------


def test_keys_may_be_written_with_dashes(tmp_path):
    write(tmp_path, "esg.toml", "root-path = '/a'\nmax_requests = 5")
    config = loaded(tmp_path)
    assert (config.root_path, config.max_requests) == ("/a", 5)


def test_values_have_tomls_types(tmp_path):
    text = "access_log = false\ntimeout = 2.5\nbind = ['a:1', 'b:2']\nworkers = 3"
    write(tmp_path, "esg.toml", text)
    config = loaded(tmp_path)
    assert (config.access_log, config.timeout, config.workers) == (False, 2.5, 3)
    assert config.bind == ("a:1", "b:2")


def test_the_table_of_pyproject_is_read(tmp_path):
    write(tmp_path, "pyproject.toml", "[project]\nname = 'x'\n[tool.esg]\nport = 5")
    config = loaded(tmp_path)
    assert config.port == 5
    assert config.origin("port") == "pyproject.toml [tool.esg]: port"


@pytest.mark.parametrize("text", ["", "[tool.other]\nport = 1", "[project]\nname = 'x'"])
def test_a_pyproject_without_the_table_has_no_settings(tmp_path, text):
    write(tmp_path, "pyproject.toml", text)
    assert loaded(tmp_path).port == 8000


def test_esg_toml_takes_precedence_over_pyproject(tmp_path):
    write(tmp_path, "esg.toml", "port = 1")
    write(tmp_path, "pyproject.toml", "[tool.esg]\nport = 2\nworkers = 2")
    config = loaded(tmp_path)
    assert (config.port, config.workers) == (1, 1)


def test_a_named_file_replaces_both(tmp_path):
    write(tmp_path, "esg.toml", "port = 1")
    path = write(tmp_path, "other.toml", "workers = 2")
    config = loaded(tmp_path, file=path)
    assert (config.port, config.workers) == (8000, 2)
    assert path in config.origin("workers")


def test_a_named_pyproject_is_read_as_one(tmp_path):
    path = write(tmp_path, "pyproject.toml", "[tool.esg]\nport = 5")
    assert loaded(tmp_path, file=path).port == 5


def test_a_named_file_must_exist(tmp_path):
    path = str(tmp_path / "missing.toml")
    with pytest.raises(ConfigError, match=r"missing\.toml"):
        loaded(tmp_path, file=path)


def test_a_folder_is_refused_as_a_settings_file(tmp_path):
    with pytest.raises(ConfigError, match="can't be read"):
        loaded(tmp_path, file=str(tmp_path))


@pytest.mark.parametrize("content", [b"port = ", b"port = 1\nport = 2", b"\xff\xfe", b"= 1"])
def test_a_file_that_is_not_toml_is_refused(tmp_path, content):
    (tmp_path / "esg.toml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"esg\.toml.*TOML") as caught:
        loaded(tmp_path)
    assert caught.value.exit_code == 2


def test_an_unknown_key_gets_a_hint(tmp_path):
    write(tmp_path, "esg.toml", "worker = 3")
    with pytest.raises(ConfigError, match=r"esg\.toml.*'worker'.*workers"):
        loaded(tmp_path)


def test_a_bad_value_names_its_key(tmp_path):
    write(tmp_path, "esg.toml", "port = 'x'")
    with pytest.raises(ConfigError, match=r"esg\.toml: port.*'x'"):
        loaded(tmp_path)


@pytest.mark.parametrize("text", ["[tool]\nesg = 1", "[tool]\nesg = [1]"])
def test_a_value_in_place_of_a_table_is_refused(tmp_path, text):
    write(tmp_path, "pyproject.toml", text)
    with pytest.raises(ConfigError, match="table"):
        loaded(tmp_path)


def test_an_unknown_table_is_refused(tmp_path):
    write(tmp_path, "esg.toml", "[server]\nport = 1")
    with pytest.raises(ConfigError, match="'server'"):
        loaded(tmp_path)


def test_a_folder_without_files_gives_no_settings(tmp_path):
    assert from_file(None, tmp_path) == {}


def test_chdir_is_relative_to_the_startup_folder(tmp_path):
    write(tmp_path, "esg.toml", "chdir = 'sub'")
    assert loaded(tmp_path).folder == str(tmp_path / "sub")
    assert loaded(tmp_path, {"ESG_CHDIR": "/srv"}).folder == "/srv"
    assert loaded(tmp_path, {"ESG_CHDIR": ""}, {"chdir": Raw("", "--chdir")}).folder == str(
        tmp_path
    )


def test_every_name_of_an_option_is_a_key(tmp_path):
    write(tmp_path, "esg.toml", "limit-max-requests = 5\ntimeout_graceful_shutdown = 2")
    config = loaded(tmp_path)
    assert (config.max_requests, config.graceful_timeout) == (5, 2)
    assert config.origin("max_requests") == "esg.toml: limit-max-requests"


@pytest.mark.parametrize(
    "text", ["root-path = '/a'\nroot_path = '/b'", "max_requests = 1\nlimit_max_requests = 2"]
)
def test_a_setting_that_occurs_twice_in_a_file_is_refused(tmp_path, text):
    write(tmp_path, "esg.toml", text)
    with pytest.raises(ConfigError, match=r"esg\.toml: [\w-]+ and [\w-]+ are the same"):
        loaded(tmp_path)


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("workers = [1]", r"workers: invalid value \[1\]: expected a whole number"),
        ("workers = 2.0", r"workers: invalid value 2\.0: expected a whole number"),
        ("workers = true", r"workers: invalid value True"),
        ("workers = 2026-01-01", r"workers: invalid value .*whole number"),
        ("workers = 1000", r"workers: invalid value 1000: expected .* from 1 to 512"),
        ("timeout = inf", r"timeout: invalid value inf: expected a number of seconds"),
        ("timeout = [5]", r"timeout: invalid value \[5\]"),
        ("access_log = 'maybe'", r"access_log: invalid value 'maybe': expected true or false"),
        ("access_log = [true]", r"access_log: invalid value \[True\]"),
        ("root_path = 5", r"root_path: invalid value 5: expected a string"),
        ("bind = [1]", r"bind: invalid value 1: expected a string"),
        ("bind = [['a:1']]", r"bind: invalid value"),
        ("log_level = 'infos'", r"log_level: invalid value 'infos': .*did you mean 'info'"),
        ("bind = 1", r"bind: invalid value 1: expected a string or a list, not a whole number"),
        ("port = '8000'", r"port: invalid value '8000': expected a whole number, not a string"),
        ("workers = '4'", r"workers: invalid value '4': expected a whole number or 'auto'"),
        ("timeout = '5 parsecs'", r"timeout: invalid value '5 parsecs': .* 30s, 5m, 1h"),
        ("limit_request_body = '1x'", r"limit_request_body: invalid value '1x': .*16MiB"),
        ("access_log = 1", r"access_log: invalid value 1: expected true or false, not a whole"),
        ("access_log = 'on'", r"access_log: invalid value 'on': expected true or false"),
        ("name = 2026-01-01", r"name: invalid value .*: expected a string, not a date or time"),
        ("ssl_version = true", r"ssl_version: invalid value True: expected a string or a number"),
        ("ssl_keyfile_password = 5", r"ssl_keyfile_password: invalid value: expected a string"),
        ("env_file = 5", r"env_file: invalid value 5: expected a string"),
        ('env_file = "a\\u0000b"', r"env_file: invalid value .*one line of text"),
        ('bind = "unix:a\\u0000b"', r"bind: invalid value .*: expected one line of text"),
        pytest.param("port = " + "1" * 5000, "a number .* too many digits", id="digits"),
        pytest.param("port = " + "[" * 5000, "its values are nested too deeply", id="nested"),
        ("[workers]\ncount = 1", r"workers: invalid value \{'count': 1\}"),
        ("[[bind]]\na = 1", r"bind: invalid value"),
        ("[tool.esg]\nport = 1", r"unknown key 'tool': no setting is a table; .* without \[tool\]"),
        ("[sockets]\nport = 1", r"unknown key 'sockets': no setting is a table"),
        ("Workers = 1", r"unknown key 'Workers'; did you mean workers\?"),
    ],
)
def test_the_error_about_a_bad_file_names_the_file_the_key_and_valid_values(
    tmp_path, text, pattern
):
    write(tmp_path, "esg.toml", text)
    with pytest.raises(ConfigError, match=rf"^esg\.toml: {pattern}") as caught:
        loaded(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("timeout = 5", "timeout", 5.0),
        ("timeout = 0.5", "timeout", 0.5),
        ("workers = 'auto'", "workers", WORKERS.parse("auto")),
        ("access_log = false", "access_log", False),
        ("ssl_version = 1.3", "ssl_version", "1.3"),
        ("ssl_version = 17", "ssl_version", "1.2"),
        ("ssl_cert_reqs = 2", "ssl_cert_reqs", "required"),
        ("bind = 'a:1'", "bind", ("a:1",)),
        ("bind = ['a:1', 'b:2']", "bind", ("a:1", "b:2")),
        ("header = 'X-A: 1'", "header", ("X-A: 1",)),
        ("header = ['X-A: 1', ['X-B', '2']]", "header", ("X-A: 1", "X-B: 2")),
        (
            "forwarded_allow_ips = ['::1', '10.0.0.0/8']",
            "forwarded_allow_ips",
            ("::1", "10.0.0.0/8"),
        ),
    ],
)
def test_settings_accept_the_types_of_a_file(tmp_path, text, name, value):
    write(tmp_path, "esg.toml", text)
    assert getattr(loaded(tmp_path), name) == value


@pytest.mark.parametrize("name", sorted(set(SETTINGS) - {"app"}))
def test_every_default_has_a_type_that_a_file_may_have(name):
    declared = SETTINGS[name]
    default = list(declared.default) if declared.many else declared.default
    if default is not None:
        build(APP | {name: Raw(default, name, typed=True)})


def test_the_error_about_a_nested_table_of_pyproject_gives_advice(tmp_path):
    write(tmp_path, "pyproject.toml", "[tool.esg.sockets]\nport = 1")
    with pytest.raises(ConfigError, match=r"no setting is a table; .* into \[tool\.esg\] itself"):
        loaded(tmp_path)


def test_the_error_about_gunicorns_python_file_says_what_to_write(tmp_path):
    write(tmp_path, "gunicorn.conf.py", "bind = 'a:1'\nkeepalive = 5\ndef post_fork(a, b): 1 / 0")
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, file="gunicorn.conf.py")
    assert "write esg.toml with bind, keepalive as timeout_keep_alive" in str(caught.value)
    assert "ESG has no setting called post_fork" in str(caught.value)


@pytest.mark.parametrize("file", ["missing.py", "python:my.config"])
def test_a_python_file_is_refused_whether_or_not_it_exists(tmp_path, file):
    with pytest.raises(ConfigError, match=f"'{file}' is Python.*write esg.toml$"):
        loaded(tmp_path, file=file)


def test_paths_of_files_are_relative_to_the_startup_folder(tmp_path, monkeypatch):
    (tmp_path / "conf").mkdir()
    write(tmp_path, "conf/a.toml", "port = 5\nenv_file = 'conf/vars'")
    write(tmp_path, "conf/vars", "ESG_NAME=shop")
    monkeypatch.chdir("/")
    config = loaded(tmp_path, file="conf/a.toml")
    assert (config.port, config.name) == (5, "shop")
    assert config.origin("port") == "conf/a.toml: port"


# -- where to listen -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["host", "port"])
def test_host_or_port_replaces_a_weaker_bind(tmp_path, name):
    write(tmp_path, "esg.toml", "bind = ['a:1', 'b:2']")
    config = loaded(tmp_path, command_line={name: Raw("5", f"--{name}")})
    assert config.bind == ()
    assert config.binds == (("5:8000",) if name == "host" else ("127.0.0.1:5",))


def test_bind_replaces_a_weaker_host_and_port(tmp_path):
    write(tmp_path, "esg.toml", "host = 'a'\nport = 1")
    assert loaded(tmp_path, {"ESG_BIND": "b:2"}).binds == ("b:2",)
    assert loaded(tmp_path, {"ESG_PORT": "7"}, {"bind": Raw("b:2", "--bind")}).binds == ("b:2",)


def test_two_ways_to_say_where_to_listen_in_one_source_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="both say where to listen"):
        loaded(tmp_path, {"ESG_BIND": "b:2", "ESG_PORT": "1"})


def test_the_platforms_port_overrides_the_file(tmp_path):
    write(tmp_path, "esg.toml", "host = '0.0.0.0'\nport = 1\nbind = []")
    config = loaded(tmp_path, {"PORT": "5000"})
    assert config.binds == ("0.0.0.0:5000",)
    assert config.origin("port") == "environment PORT"
    assert loaded(tmp_path, {"PORT": "5000", "ESG_PORT": "6000"}).port == 6000


def test_the_platforms_port_implies_the_ipv4_wildcard(tmp_path):
    config = loaded(tmp_path, {"PORT": "5000"})
    assert config.binds == ("0.0.0.0:5000",)
    assert config.origin("host") == config.origin("port") == "environment PORT"
    assert config.binds_origin == "environment PORT"
    assert not config.has_explicit_address
    assert loaded(tmp_path, {"ESG_PORT": "5000"}).host == "127.0.0.1"
    assert loaded(tmp_path, {"ESG_PORT": "5000", "PORT": "6000"}).binds == ("127.0.0.1:5000",)
    assert loaded(tmp_path, {"PORT": "5000"}, {"port": Raw("7", "--port")}).host == "127.0.0.1"


@pytest.mark.parametrize("source", ["file", "environment", "command line"])
def test_a_host_from_any_source_goes_with_the_platforms_port(tmp_path, source):
    if source == "file":
        write(tmp_path, "esg.toml", "host = '127.0.0.1'")
    environment = {"ESG_HOST": "127.0.0.1"} if source == "environment" else {}
    command_line = {"host": Raw("127.0.0.1", "--host")} if source == "command line" else {}
    config = loaded(tmp_path, environment | {"PORT": "5000"}, command_line)
    assert config.binds == ("127.0.0.1:5000",)
    assert config.has_explicit_address


@pytest.mark.parametrize("source", ["file", "environment", "command line"])
def test_the_platforms_port_is_ignored_if_there_is_a_bind(tmp_path, source):
    if source == "file":
        write(tmp_path, "esg.toml", "bind = 'a:1'")
    environment = {"ESG_BIND": "a:1"} if source == "environment" else {}
    command_line = {"bind": Raw("a:1", "--bind")} if source == "command line" else {}
    assert loaded(tmp_path, environment | {"PORT": "5000"}, command_line).binds == ("a:1",)


# -- env file --------------------------------------------------------------------------


def with_env_file(folder, text, environment=()):
    write(folder, "vars", text)
    return loaded(folder, environment, {"env_file": Raw("vars", "--env-file")})


def test_variables_of_the_env_file_are_settings_and_for_the_application(tmp_path):
    config = with_env_file(tmp_path, "# note\nESG_PORT=5\nexport COLOR='dark red'\nEMPTY=\nNONE\n")
    assert config.port == 5
    assert config.origin("port") == "env file ESG_PORT"
    assert config.variables == {"ESG_PORT": "5", "COLOR": "dark red", "EMPTY": ""}


def test_the_environment_overrides_the_env_file(tmp_path):
    config = with_env_file(tmp_path, "ESG_PORT=5\nCOLOR=red", {"ESG_PORT": "6", "COLOR": ""})
    assert config.port == 6
    assert config.variables == {}


def test_the_env_file_overrides_the_file(tmp_path):
    write(tmp_path, "esg.toml", "port = 1\nworkers = 2")
    config = with_env_file(tmp_path, "ESG_PORT=5")
    assert (config.port, config.workers) == (5, 2)


def test_the_platforms_port_in_an_env_file_counts_like_the_environments(tmp_path):
    assert with_env_file(tmp_path, "PORT=5").binds == ("0.0.0.0:5",)
    assert with_env_file(tmp_path, "PORT=5", {"ESG_BIND": "a:1"}).binds == ("a:1",)
    write(tmp_path, "esg.toml", "bind = 'a:1'")
    assert with_env_file(tmp_path, "PORT=5").binds == ("a:1",)


def test_the_env_file_may_be_named_in_the_environment(tmp_path):
    write(tmp_path, "vars", "ESG_PORT=5")
    assert loaded(tmp_path, {"ESG_ENV_FILE": "vars"}).port == 5


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "No such file"), (b"\xff\xfe=", "it is not UTF-8")]
)
def test_an_env_file_that_cannot_be_read_is_refused(tmp_path, content, reason):
    if content is not None:
        (tmp_path / "vars").write_bytes(content)
    with pytest.raises(ConfigError, match=f"^--env-file: 'vars' can't be read: {reason}"):
        loaded(tmp_path, command_line={"env_file": Raw("vars", "--env-file")})


def test_an_env_file_needs_its_library(tmp_path, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(sources.importlib, "import_module", missing)
    with pytest.raises(ConfigError, match=r"^--env-file: .*pip install python-dotenv"):
        with_env_file(tmp_path, "A=1")


@pytest.mark.parametrize(
    ("named", "files"),
    [
        ({}, ["esg.toml", "pyproject.toml"]),
        ({"file": "other.toml"}, ["other.toml"]),
    ],
)
def test_a_config_knows_the_files_that_it_came_from(tmp_path, named, files):
    (tmp_path / "other.toml").write_text("")
    config = sources.load({"app": Raw("a:b", "APP")}, {}, folder=tmp_path, **named)
    assert config.files == tuple(str(tmp_path / name) for name in files)


def test_the_env_file_is_among_the_files_of_a_config(tmp_path):
    pytest.importorskip("dotenv")
    (tmp_path / "env").write_text("")
    given = {"app": Raw("a:b", "APP"), "env_file": Raw("env", "--env-file")}
    assert sources.load(given, {}, folder=tmp_path).files[-1] == str(tmp_path / "env")


# -- files that vanish -----------------------------------------------------------------

FILES = {
    "esg.toml": ("workers = 2", "", "# nothing"),
    "pyproject.toml": ("[tool.esg]\nworkers = 2", "", "[tool.esg]", "[tool.other]\nworkers = 2"),
}


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize(
    ("name", "bad"), [(name, bad) for name, texts in FILES.items() for bad in (*texts[1:], None)]
)
def test_a_reload_without_the_file_of_the_serving_generation_is_refused(tmp_path, name, bad, named):
    file = name if named else None
    write(tmp_path, name, FILES[name][0])
    before = loaded(tmp_path, file=file)
    reason = r"is missing|is empty|has no settings in \[tool.esg\]|there is no file"
    if bad is None:
        (tmp_path / name).unlink()
    else:
        write(tmp_path, name, bad)
    with pytest.raises(ConfigError, match=f"{name}.* ({reason})|({reason}) .*{name}"):
        check_reload(before, loaded(tmp_path, file=file))


def test_a_reload_does_not_fall_back_to_a_weaker_file(tmp_path):
    write(tmp_path, "pyproject.toml", "[tool.esg]\nworkers = 2")
    write(tmp_path, "esg.toml", "workers = 3")
    before = loaded(tmp_path)
    (tmp_path / "esg.toml").unlink()
    with pytest.raises(ConfigError, match=r"/esg\.toml is missing, .*came from it; put it back"):
        check_reload(before, loaded(tmp_path))


def test_a_reload_may_use_a_new_file_that_overrides_the_old_one(tmp_path):
    nothing = loaded(tmp_path)
    write(tmp_path, "pyproject.toml", "[tool.esg]\nworkers = 2")
    before = loaded(tmp_path)
    check_reload(nothing, before)
    check_reload(before, before)
    write(tmp_path, "esg.toml", "workers = 3")
    check_reload(before, loaded(tmp_path))


def test_a_reload_with_an_empty_env_file_is_refused(tmp_path):
    pytest.importorskip("dotenv")
    before = with_env_file(tmp_path, "COLOUR=red")
    with pytest.raises(ConfigError, match=r"/vars is empty, .*restart to do without it"):
        check_reload(before, with_env_file(tmp_path, ""))
    other = loaded(tmp_path, {}, {"env_file": Raw("", "--env-file")})
    check_reload(before, other)  # the option was removed


def test_a_half_written_file_does_not_change_where_the_server_listens(tmp_path):
    write(tmp_path, "esg.toml", "workers = 2\nbind = '0.0.0.0:80'\n")
    before = loaded(tmp_path)
    write(tmp_path, "esg.toml", "workers = 2\n")
    with pytest.raises(ConfigError, match=r"where to listen any more, as esg\.toml: bind did"):
        check_reload(before, loaded(tmp_path))
    write(tmp_path, "esg.toml", "workers = 2\nbin")
    with pytest.raises(ConfigError, match=r"esg\.toml: not valid TOML"):
        loaded(tmp_path)
    write(tmp_path, "esg.toml", "workers = 2\nport = 80")
    check_reload(before, loaded(tmp_path))


def test_a_link_to_a_missing_file_is_refused(tmp_path):
    (tmp_path / "esg.toml").symlink_to("missing")
    with pytest.raises(ConfigError, match=r"^esg\.toml: is a symbolic link to a missing file"):
        loaded(tmp_path)


# -- what editors put in front ---------------------------------------------------------


@pytest.mark.parametrize("name", ["esg.toml", "pyproject.toml"])
def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path, name):
    (tmp_path / name).write_text(FILES[name][0], encoding="utf-8-sig")
    assert loaded(tmp_path).workers == 2


def test_a_byte_order_mark_is_no_part_of_a_variable(tmp_path):
    pytest.importorskip("dotenv")
    (tmp_path / "vars").write_text("ESG_WORKERS=2", encoding="utf-8-sig")
    config = loaded(tmp_path, {}, {"env_file": Raw("vars", "--env-file")})
    assert config.workers == 2
    assert config.variables == {"ESG_WORKERS": "2"}


def test_a_gunicorn_file_is_read_after_a_byte_order_mark(tmp_path):
    (tmp_path / "gunicorn.conf.py").write_text("workers = 2", encoding="utf-8-sig")
    (stray,) = loaded(tmp_path).strays
    assert stray.endswith("write esg.toml with workers")


def test_a_file_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / "esg.toml").write_text("workers = 2", encoding="utf-16")
    with pytest.raises(ConfigError, match=r"^esg\.toml: not valid TOML: it is not UTF-8"):
        loaded(tmp_path)


def test_a_secret_of_an_env_file_is_a_setting_but_not_a_variable(tmp_path):
    pytest.importorskip("dotenv")
    config = with_env_file(tmp_path, "ESG_SSL_KEYFILE_PASSWORD=hush\nCOLOUR=red")
    assert config.ssl_keyfile_password == "hush"
    assert config.variables == {"COLOUR": "red"}
