"""`--log-config`: files, configurations given in Python, and classes of the application."""

from __future__ import annotations

import copy
import io
import json
import logging
import logging.config
import os
import re
import sys
from pathlib import Path

import pytest
from uvicorn.config import LOGGING_CONFIG

from esg.errors import ConfigError
from esg.log.files import LineStream
from esg.log.records import (
    access_logger,
    arbiter_subject,
    logger,
)
from esg.log.setup import reopen_handlers
from esg.settings.kinds import LogDefinition
from tests.support.logsetup import SUBJECT, setup


def dictionary(*names, stream="ext://sys.stderr", fmt="%(name)s|%(message)s", **more):
    """A configuration of these loggers; each has a handler with its own format."""
    return {
        "version": 1,
        "formatters": {"f": {"format": fmt} | more},
        "handlers": {"h": {"class": "logging.StreamHandler", "formatter": "f", "stream": stream}},
        "loggers": {
            name: {"handlers": ["h"], "level": "INFO", "propagate": False} for name in names
        },
    }


@pytest.fixture
def log_config(configured, tmp_path):
    """Applies a configuration given as a dictionary, or as the text of a file."""

    def apply(content, suffix=".json", **settings):
        file = tmp_path / f"log{suffix}"
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        made = setup(log_config=str(file), **settings)
        made.apply(SUBJECT)
        return made

    yield apply
    logging.config.dictConfig({"version": 1, "disable_existing_loggers": False})  # closes files
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "shop"):
        log = logging.getLogger(name)
        log.handlers[:], log.propagate = [], True


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_stream_of_a_log_config_does_not_block(log_config, capfd, stream):
    log_config(dictionary("esg", stream=f"ext://sys.{stream}"))
    (handler,) = logger.handlers
    assert isinstance(handler.stream, LineStream)
    assert handler.stream.fileno() == {"stdout": 1, "stderr": 2}[stream]
    logger.info("caf\u00e9 \udc80")
    assert getattr(capfd.readouterr(), stream.removeprefix("std")) == "esg|caf\u00e9 \\udc80\n"


@pytest.mark.parametrize(
    ("names", "error", "access"),
    [
        (["esg"], "esg|hello", "esg.access|got"),
        (["uvicorn"], "esg|hello", "esg.access|got"),
        (["uvicorn.error"], "esg|hello", ""),
        (["uvicorn.access"], "", "esg.access|got"),
        (["uvicorn", "uvicorn.access"], "esg|hello", "esg.access|got"),
        (["esg", "uvicorn", "uvicorn.access"], "esg|hello", "esg.access|got"),
        ([""], "esg|hello", "esg.access|got"),
        (["shop"], "", ""),
    ],
)
def test_loggers_named_for_esg_uvicorn_or_root_apply_to_esg(
    log_config, bare_root, capfd, names, error, access
):
    bare_root()
    log_config(dictionary(*names))
    logger.info("hello")
    found = capfd.readouterr().err.splitlines()
    access_logger.info("got")
    found += capfd.readouterr().err.splitlines()
    assert found == [line for line in (error, access) if line]


def test_the_level_in_a_file_applies_unless_the_setting_is_given(log_config, capfd):
    log_config(dictionary("esg"))
    logger.debug("no")
    log_config(dictionary("esg"), log_level="debug")
    logger.debug("yes")
    assert capfd.readouterr().err == "esg|yes\n"


YAML = """
version: 1
formatters: {f: {format: "%(message)s!"}}
handlers: {h: {class: logging.StreamHandler, formatter: f}}
loggers: {esg: {handlers: [h]}}
"""

INI = """
[loggers]
keys=root,esg
[handlers]
keys=h
[formatters]
keys=f
[logger_root]
handlers=
[logger_esg]
qualname=esg
handlers=h
propagate=0
[handler_h]
class=StreamHandler
formatter=f
args=(sys.stderr,)
[formatter_f]
format=%(message)s!
"""


@pytest.mark.parametrize(
    ("suffix", "text"), [(".yaml", YAML), (".yml", YAML), (".ini", INI), (".conf", INI)]
)
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "byte order mark"])
def test_yaml_and_ini_files_are_applied(log_config, capfd, suffix, text, mark):
    log_config(mark + text, suffix)
    logger.warning("hello")
    assert capfd.readouterr().err == "hello!\n"


@pytest.mark.parametrize(
    ("suffix", "text", "told"),
    [
        (".json", "{", "log.json"),
        (".json", "[]", "dictionary"),
        (".json", "[" * 100_000, "nested too deeply"),
        (".json", "{}", "version"),
        (".json", json.dumps(dictionary("esg") | {"handlers": {}}), "h"),
        (".json", json.dumps(dictionary("esg", stream="ext://no.such")), "no"),
        (".yaml", "a: [", "log.yaml"),
        (".ini", "nonsense", "log.ini"),
        (".ini", "[loggers]\nkeys=root", "[formatters]"),
        (".ini", INI.replace("StreamHandler", "NoSuch"), "NoSuch"),
    ],
)
def test_the_error_about_a_bad_file_is_one_line(log_config, suffix, text, told):
    with pytest.raises(ConfigError) as caught:
        log_config(text, suffix)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("test")
    assert f"log{suffix}" in str(caught.value)


def test_yaml_without_pyyaml_is_refused_with_advice(log_config, monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(ConfigError, match="pip install pyyaml"):
        log_config(YAML, ".yaml")


def test_a_missing_file_is_refused(configured, tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        setup(log_config=str(tmp_path / "none.json"))


def test_a_check_leaves_the_log_as_it_is(log_config, capfd, tmp_path):
    current = log_config(dictionary("esg"))
    (tmp_path / "log.json").write_text(json.dumps(dictionary("esg", fmt="other %(message)s")))
    setup(log_config=str(tmp_path / "log.json")).check(SUBJECT, current)
    (tmp_path / "log.json").write_text("{}")
    with pytest.raises(ConfigError):
        setup(log_config=str(tmp_path / "log.json")).check(SUBJECT, current)
    logger.info("hello")
    assert capfd.readouterr().err == "esg|hello\n"


@pytest.mark.parametrize("installed", [True, False])
def test_uvicorns_formatters_work_whether_or_not_it_is_installed(
    log_config, capfd, monkeypatch, installed
):
    if not installed:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    fmt = "%(levelprefix)s %(client_addr)s <%(request_line)s> %(status_code)s"
    kind = {"()": "uvicorn.logging.AccessFormatter", "fmt": fmt, "use_colors": False}
    log_config(dictionary("uvicorn.access", **kind))
    args = ("192.0.2.1:9", "GET", "/a?b", "1.1", 404)
    access_logger.info('%s - "%s %s HTTP/%s" %d', *args)
    assert capfd.readouterr().err == "INFO:     192.0.2.1:9 <GET /a?b HTTP/1.1> 404 Not Found\n"


def test_files_of_handlers_are_reopened(log_config, tmp_path):
    file = tmp_path / "app.log"
    content = dictionary("esg")
    content["handlers"]["h"] = {"class": "logging.FileHandler", "filename": str(file)}
    log_config(content)
    logger.warning("before")
    file.rename(tmp_path / "app.log.1")
    reopen_handlers()
    logger.warning("after")
    assert (tmp_path / "app.log.1").read_text() == "before\n"
    assert file.read_text() == "after\n"


def test_a_log_config_that_cannot_be_applied_leaves_the_default_log(log_config, capfd):
    with pytest.raises(ConfigError):
        log_config({})
    logger.info("hello")
    assert capfd.readouterr().err.endswith(f"INFO     {SUBJECT} hello\n")


def test_the_example_in_the_documentation_can_be_applied(log_config, tmp_path):
    text = (Path(__file__).parents[3] / "docs" / "logging.md").read_text()
    example = re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1]
    log_config(example.replace("/var/log/shop", str(tmp_path)), ".yaml")
    logger.info("hello")
    assert (tmp_path / "all.log").read_text().endswith(" INFO esg hello\n")


# -- configurations given in Python -------------------------------------------------------


@pytest.mark.parametrize("colors", [None, True, False])
def test_uvicorns_own_dictionary_logs_as_in_uvicorn(configured, capfd, colors):
    before = copy.deepcopy(LOGGING_CONFIG)
    made = setup(log_config=LogDefinition(LOGGING_CONFIG), use_colors=colors)
    for _ in range(2):  # like an arbiter and its worker
        made.apply(SUBJECT)
    logger.info("hello")
    access_logger.info('%s - "%s %s HTTP/%s" %d', "192.0.2.1:9", "GET", "/", "1.1", 200)
    out, err = capfd.readouterr()
    assert ("\033[" in err, "\033[" in out) == (colors is True, colors is True)
    assert re.sub(r"\033\[\d+m", "", err) == "INFO:     hello\n"
    assert re.sub(r"\033\[\d+m", "", out) == 'INFO:     192.0.2.1:9 - "GET / HTTP/1.1" 200 OK\n'
    assert before == LOGGING_CONFIG


def test_objects_in_a_dictionary_are_taken_as_they_are(configured):
    stream = io.StringIO()
    content = dictionary("esg", stream=stream)
    setup(log_config=LogDefinition(content)).apply(SUBJECT)
    logger.warning("hello")
    assert stream.getvalue() == "esg|hello\n"


HANDLER = {"class": "logging.StreamHandler"}


@pytest.mark.parametrize(
    ("malformed", "told"),
    [
        ({"formatters": {"a": "x"}}, "formatters.a: expected a dictionary, not 'x'"),
        ({"formatters": ["x"]}, "formatters: expected a dictionary, not ['x']"),
        ({"formatters": {"a": {"()": 5}}}, "formatters.a.(): expected the name of a class or "),
        ({"formatters": {"a": {"class": logging.Formatter}}}, "formatters.a.class: expected the "),
        ({"formatters": {"a": {"format": 5}}}, "formatters.a.format: expected a string, not 5"),
        ({"filters": {"f": "x"}}, "filters.f: expected a dictionary, not 'x'"),
        ({"handlers": {"h": None}}, "handlers.h: expected a dictionary, not None"),
        ({"handlers": {"h": {}}}, "handlers.h: expected a key 'class' or '()'"),
        ({"handlers": {"h": HANDLER | {"filters": "f"}}}, "handlers.h.filters: expected a list"),
        ({"loggers": None}, "loggers: expected a dictionary, not None"),
        ({"loggers": {"esg": None}}, "loggers.esg: expected a dictionary, not None"),
        ({"loggers": {"esg": {"handlers": 5}}}, "loggers.esg.handlers: expected a list, not 5"),
        ({"root": "INFO"}, "root: expected a dictionary, not 'INFO'"),
        ({"root": {"handlers": "main"}}, "root.handlers: expected a list, not 'main'"),
        ({"root": {"level": "LOUD"}}, "Unable to configure root logger: Unknown level: 'LOUD'"),
    ],
)
def test_the_error_about_a_bad_dictionary_says_what_is_wrong_and_where(configured, malformed, told):
    made = setup(log_config=LogDefinition({"version": 1} | malformed))
    with pytest.raises(ConfigError) as caught:
        made.apply(SUBJECT)
    assert f"can't configure logging: {told}" in str(caught.value)


def test_the_text_of_an_ini_file_is_applied(configured, capfd):
    setup(log_config=LogDefinition(INI)).apply(SUBJECT)
    logger.warning("hello")
    assert capfd.readouterr().err == "hello!\n"


@pytest.mark.parametrize(("content", "suffix"), [(INI, ".ini"), (dictionary("esg"), ".json")])
def test_colours_that_no_formatter_supports_are_refused(log_config, content, suffix):
    with pytest.raises(ConfigError, match="needs one of uvicorn's formatters"):
        log_config(content, suffix, use_colors=True)


def test_json_is_recognised_by_its_content(log_config, capfd):
    log_config(json.dumps(dictionary("esg")), ".conf")
    logger.warning("hello")
    assert capfd.readouterr().err == "esg|hello\n"


@pytest.mark.parametrize("level", [None, "error"])
def test_logging_that_is_left_to_the_application_uses_its_handlers(
    configured, capfd, bare_root, level
):
    root = bare_root()
    made = setup(log_config=LogDefinition(None), **({"log_level": level} if level else {}))
    made.apply(SUBJECT)
    logger.error("before")
    assert capfd.readouterr().err.endswith(f"ERROR    {SUBJECT} before\n")
    stream = io.StringIO()
    root.handlers[:] = [logging.StreamHandler(stream)]
    made.apply(SUBJECT)
    for name in ("esg", "uvicorn.error"):
        logging.getLogger(name).warning("a warning of %s", name)
        logging.getLogger(name).error("an error of %s", name)
    shown = [line for line in stream.getvalue().splitlines() if "warning" in line]
    assert shown == ([] if level else ["a warning of esg", "a warning of uvicorn.error"])
    assert "an error of esg\nan error of uvicorn.error\n" in stream.getvalue().replace(
        "a warning of uvicorn.error\n", ""
    )
    assert capfd.readouterr().err == ""


# -- classes of the application -------------------------------------------------------------

SHOUTING = """
import logging, os
class Formatter(logging.Formatter):
    def format(self, record):
        return f"{os.environ['SHOP']} {record.getMessage()} V1"
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of the application with a formatter; it isn't on the path."""
    (tmp_path / "shoplog").mkdir()
    (tmp_path / "shoplog" / "__init__.py").write_text("")
    (tmp_path / "shoplog" / "log.py").write_text(SHOUTING)
    monkeypatch.setenv("SHOP", "outer")
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(tmp_path)])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield tmp_path
    for name in ("shoplog", "shoplog.log"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("in_worker", [False, True])
def test_a_formatter_of_the_application_is_used(configured, capfd, package, in_worker):
    content = dictionary("esg", **{"()": "shoplog.log.Formatter"})
    made = setup(
        log_config=LogDefinition(content), app_dir=str(package), variables={"SHOP": "books"}
    )
    subject = SUBJECT if in_worker else arbiter_subject(1, 4700)
    made.apply(subject)
    kept = {name for name in ("shoplog", "shoplog.log") if name in sys.modules}
    assert kept == ({"shoplog", "shoplog.log"} if in_worker else set())
    assert os.environ["SHOP"] == ("books" if in_worker else "outer")
    logger.info("hello")
    assert capfd.readouterr().err == f"{os.environ['SHOP']} hello V1\n"


def test_a_reload_loads_the_formatter_from_the_disk(configured, capfd, package):
    content = dictionary("esg", **{"()": "shoplog.log.Formatter"})
    made = setup(log_config=LogDefinition(content), app_dir=str(package))
    made.apply(arbiter_subject(1, 4700))
    (package / "shoplog" / "log.py").write_text(SHOUTING.replace("V1", "V2"))
    made.apply(arbiter_subject(2, 4700))
    logger.info("hello")
    assert capfd.readouterr().err == "outer hello V2\n"


def test_the_folder_of_another_release_replaces_the_first_on_the_path(
    configured, package, tmp_path
):
    other = tmp_path / "other"
    other.mkdir()
    for folder in (package, other):
        made = setup(log_config=LogDefinition(dictionary("esg")), app_dir=str(folder))
        made.apply(arbiter_subject(1, 4700))
    assert str(package) not in sys.path
    assert sys.path[0] == str(other)


def test_a_library_within_the_folder_stays_imported(configured, package, monkeypatch):
    (package / "lib").mkdir()
    (package / "shoplog").rename(package / "lib" / "shoplog")
    monkeypatch.syspath_prepend(str(package / "lib"))
    content = dictionary("esg", **{"()": "shoplog.log.Formatter"})
    setup(log_config=LogDefinition(content), app_dir=str(package)).apply(arbiter_subject(1, 4700))
    assert "shoplog.log" in sys.modules


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_file_handlers_of_root_do_not_follow_links_of_other_users(log_config, tmp_path):
    secret = tmp_path / "secret"
    secret.touch(0o600)
    definition = dictionary("esg")
    definition["handlers"]["h"] = {"class": "logging.FileHandler", "filename": f"{tmp_path}/log"}
    log_config(definition)
    logger.error("one")
    (tmp_path / "log").rename(tmp_path / "log.1")
    (tmp_path / "log").symlink_to(secret)
    os.chown(tmp_path / "log", 65534, 65534, follow_symlinks=False)
    reopen_handlers()
    logger.error("two")
    assert secret.read_bytes() == b""
    assert "two" in (tmp_path / "log.1").read_text()
    with pytest.raises(ConfigError, match="is a symbolic link of user 65534"):
        log_config(definition)
    (tmp_path / "log").unlink()
    reopen_handlers()
    logger.error("three")
    log_config({**definition, "handlers": {"h": {**definition["handlers"]["h"], "mode": "w"}}})
    logger.error("four")
    assert (tmp_path / "log").read_text() == "four\n"
