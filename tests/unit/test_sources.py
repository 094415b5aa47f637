"""Where settings come from, and which source wins."""

from __future__ import annotations

import pytest

from esg.config import Raw
from esg.errors import ConfigError
from esg.sources import from_environment, from_file, load

APP = {"app": Raw("example:app", "APP")}


def write(folder, name, text):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def loaded(folder, environment=(), command_line=(), file=None):
    return load(APP | dict(command_line), dict(environment), file=file, folder=folder)


# -- which source wins -----------------------------------------------------------------


def test_defaults(tmp_path):
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


# -- environment -----------------------------------------------------------------------


def test_an_empty_variable_counts_as_unset():
    assert from_environment({"ESG_PORT": "", "ESG_WORKERS": "2"}).keys() == {"workers"}


def test_other_variables_are_not_looked_at():
    assert from_environment({"ESG": "x", "PATH": "/bin", "ESG_UNKNOWN": "x", "esg_port": "1"}) == {}


def test_web_concurrency_is_a_name_for_workers():
    found = from_environment({"WEB_CONCURRENCY": "4"})
    assert found["workers"].value == "4"
    assert "WEB_CONCURRENCY" in found["workers"].origin


def test_esgs_own_name_is_the_stronger_one():
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


def test_pyproject_has_a_table_for_it(tmp_path):
    write(tmp_path, "pyproject.toml", "[project]\nname = 'x'\n[tool.esg]\nport = 5")
    config = loaded(tmp_path)
    assert config.port == 5
    assert config.origin("port") == "pyproject.toml [tool.esg]: port"


@pytest.mark.parametrize("text", ["", "[tool.other]\nport = 1", "[project]\nname = 'x'"])
def test_a_pyproject_without_the_table_says_nothing(tmp_path, text):
    write(tmp_path, "pyproject.toml", text)
    assert loaded(tmp_path).port == 8000


def test_esg_toml_is_looked_at_first(tmp_path):
    write(tmp_path, "esg.toml", "port = 1")
    write(tmp_path, "pyproject.toml", "[tool.esg]\nport = 2\nworkers = 2")
    config = loaded(tmp_path)
    assert (config.port, config.workers) == (1, 1)


def test_a_file_that_is_named_replaces_both(tmp_path):
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


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(ConfigError, match="can't be read"):
        loaded(tmp_path, file=str(tmp_path))


@pytest.mark.parametrize("content", [b"port = ", b"port = 1\nport = 2", b"\xff\xfe", b"= 1"])
def test_a_file_that_is_not_toml(tmp_path, content):
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
def test_a_table_that_is_none(tmp_path, text):
    write(tmp_path, "pyproject.toml", text)
    with pytest.raises(ConfigError, match="table"):
        loaded(tmp_path)


def test_a_nested_table_is_no_setting(tmp_path):
    write(tmp_path, "esg.toml", "[server]\nport = 1")
    with pytest.raises(ConfigError, match="'server'"):
        loaded(tmp_path)


def test_a_folder_without_files_gives_nothing(tmp_path):
    assert from_file(None, tmp_path) == {}


def test_the_current_folder_is_the_default(tmp_path, monkeypatch):
    write(tmp_path, "esg.toml", "port = 7")
    monkeypatch.chdir(tmp_path)
    assert load(APP, {}).port == 7
