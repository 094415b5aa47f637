"""The log's lines."""

from __future__ import annotations

import copy
import io
import json
import logging
import logging.config
import os
import pty
import re
import sys
import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from uvicorn.config import LOGGING_CONFIG

from esg.errors import ConfigError
from esg.log.files import LineStream, LogFiles
from esg.log.records import (
    TRACE,
    JSONFormatter,
    TextFormatter,
    access_logger,
    arbiter_subject,
    log_event,
    logger,
    wants_colors,
    worker_subject,
)
from esg.log.setup import PEERS_LOGGERS, LogSetup, captured_warnings, reopen_handlers, stay_enabled
from esg.seldom import Seldom
from esg.settings.kinds import LogDefinition
from esg.settings.schema import Config
from tests.support.log import records


@pytest.fixture
def configured():
    """Restores ESG's loggers, and Python's logging of records without handlers."""
    names = ("esg", "esg.access", "py.warnings", "uvicorn.error", *PEERS_LOGGERS)
    mine = [logging.getLogger(name) for name in names]
    for log in mine:
        log.disabled = False  # the dictConfig of another test may have changed it
    before = [(log, log.handlers[:], log.propagate, log.level, log.parent) for log in mine]
    for name in PEERS_LOGGERS:
        log = logging.getLogger(name)
        log.handlers[:], log.propagate = [], True  # otherwise pytest adds its own handler
    last_resort = logging.lastResort
    yield logger
    for log, handlers, propagate, level, parent in before:
        log.handlers[:], log.propagate, log.parent = handlers, propagate, parent
        log.setLevel(level)
    logging.lastResort = last_resort
    logging.captureWarnings(False)


@pytest.fixture
def bare_root():
    """The root logger, without pytest's handlers."""
    root = logging.getLogger()
    before = root.handlers[:]

    def take():
        root.handlers[:] = []
        return root

    yield take
    root.handlers[:] = before


def record(message="ready", level=logging.INFO, args=(), exc_info=None):
    return logging.LogRecord("esg", level, __file__, 1, message, args, exc_info)


def formatted(*, colors=False, **fields):
    return TextFormatter(colors).format(record(**fields))


def test_a_line():
    line = formatted(message="worker=%d ready", args=(3,))
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} INFO     worker=3 ready", line)


@pytest.mark.parametrize("level", ["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"])
def test_levels_are_columns_of_one_width(level):
    line = formatted(level=getattr(logging, level))
    assert line[24:33] == f"{level:<8} "


def test_milliseconds_have_three_digits():
    made = record()
    made.created, made.msecs = 1_700_000_000.007, 7.9
    assert ".007 " in TextFormatter(False).format(made)


def test_a_traceback_is_below_its_line():
    try:
        raise ValueError("why")
    except ValueError:
        text = formatted(exc_info=sys.exc_info())
    first, second, *_, last = text.splitlines()
    assert first.endswith("ready")
    assert second.startswith("  Traceback")
    assert last == "  ValueError: why"


def test_colours():
    line = formatted(colors=True, level=logging.ERROR)
    assert "\033[31mERROR   \033[0m ready" in line
    assert "\033" not in formatted(level=logging.ERROR)


@pytest.mark.parametrize("setting", [True, False])
def test_a_setting_decides_on_colours(setting):
    assert wants_colors(setting, 0) is setting


def test_a_file_gets_no_colours_by_default(tmp_path):
    with open(tmp_path / "log", "w") as file:
        assert wants_colors(None, file.fileno()) is False


@pytest.fixture
def terminal():
    """The descriptor of a terminal."""
    main, terminal = pty.openpty()
    yield terminal
    os.close(main)
    os.close(terminal)


def test_a_terminal_gets_colours_by_default(terminal, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert wants_colors(None, terminal) is True


@pytest.mark.parametrize(("value", "colours"), [("1", False), ("0", False), ("", True)])
def test_no_color_turns_colours_off(terminal, monkeypatch, value, colours):
    monkeypatch.setenv("NO_COLOR", value)
    assert wants_colors(None, terminal) is colours


def test_a_setting_is_stronger_than_no_color(terminal, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    assert wants_colors(True, terminal) is True


def test_the_address_stands_out_on_a_terminal():
    line = formatted(colors=True, message="listening on http://127.0.0.1:8000")
    assert line.endswith("listening on \033[1mhttp://127.0.0.1:8000\033[0m")
    assert formatted(message="listening on unix:/run/x").endswith(" listening on unix:/run/x")


def test_an_address_in_another_line_does_not_stand_out():
    assert "\033[1m" not in formatted(colors=True, message="no longer listening on http://h:80")


def setup(**settings):
    """The set-up for these settings, with only the standard streams open."""
    config = Config(app="example:app", **settings, origins=dict.fromkeys(settings, "test"))
    return LogSetup.open(config, LogFiles())


SUBJECT = worker_subject(3, 2, 4711)


def test_the_log_goes_to_standard_error(configured, capfd):
    setup().apply(SUBJECT)
    configured.info("hello")
    captured = capfd.readouterr()
    assert captured.err.endswith(f"INFO     {SUBJECT} hello\n")
    assert captured.out == ""


@pytest.mark.parametrize(
    ("level", "shown"), [("trace", 4), ("debug", 3), ("info", 2), ("warning", 1), ("critical", 0)]
)
def test_levels(configured, capfd, level, shown):
    setup(log_level=level).apply(SUBJECT)
    for each in (TRACE, logging.DEBUG, logging.INFO, logging.WARNING):
        configured.log(each, "x")
    assert len(capfd.readouterr().err.splitlines()) == shown


def test_configuring_again_does_not_double_lines(configured, capfd):
    for level in ("debug", "info"):
        setup(log_level=level).apply(SUBJECT)
    configured.info("once")
    assert capfd.readouterr().err.count("once") == 1


def test_a_record_that_names_its_subject_is_not_about_this_process(configured, capfd):
    setup().apply(SUBJECT)
    other = arbiter_subject(2, 4700)
    log_event(logging.WARNING, other, "hello")
    configured.warning("%s %s", other, "again")
    lines = capfd.readouterr().err.splitlines()
    assert [line[24:] for line in lines] == [
        "WARNING  arbiter gen=2 pid=4700 hello",
        "WARNING  arbiter gen=2 pid=4700 again",
    ]


def test_a_filter_that_raises_keeps_nobody_from_going_on(configured, monkeypatch, capfd):
    def fails(record):
        raise RuntimeError("faulty")

    monkeypatch.setattr("esg.log.records._failures", Seldom())
    monkeypatch.setattr(configured, "filters", [fails])
    for _ in range(2):
        log_event(logging.WARNING, SUBJECT, "hello")
    assert capfd.readouterr().err.count("can't be logged: RuntimeError('faulty')") == 1


# -- what could forge a line -------------------------------------------------------------

FORGERY = "x\n2026-11-21 05:40:01.123 ERROR    arbiter gen=1 pid=1 forged"


@pytest.mark.parametrize("char", ["\r", "\x0b", "\x0c", "\x1b", "\x85", "\u2028", "\0", "\x7f"])
def test_a_control_character_is_made_visible(char):
    text = formatted(message="a%sb", args=(char,))
    assert text.isprintable()
    assert text.endswith(f"a{ascii(char)[1:-1]}b")


@given(st.text(st.characters()))
def test_each_further_line_of_a_record_is_marked_as_such(text):
    formatter = TextFormatter(subject=SUBJECT)
    first, *others = formatter.format(record("%s", args=(text,))).split("\n")
    assert first[:4].isdigit()
    assert all(line.startswith("  ") for line in others)
    assert all(char.isprintable() or char in "\n\t" for char in first + "".join(others))


def test_no_message_and_no_exception_can_forge_a_record(configured, capfd):
    setup().apply(SUBJECT)
    configured.warning(FORGERY)
    try:
        raise ValueError(FORGERY)
    except ValueError:
        configured.exception(FORGERY)
    log_event(logging.ERROR, SUBJECT, FORGERY, detail=FORGERY)
    found = records(capfd.readouterr().err)
    assert [(r.level, r.worker) for r in found] == [("WARNING", 3), ("ERROR", 3), ("ERROR", 3)]


def test_printable_text_in_any_script_is_shown_as_it_is():
    assert formatted(message="naïve 日本 🐍").endswith("naïve 日本 🐍")


# -- JSON --------------------------------------------------------------------------------


def as_json(made, subject=SUBJECT):
    text = JSONFormatter(subject).format(made)
    assert text.isascii()
    assert text.isprintable()
    return json.loads(text)


def test_fields_of_a_json_line():
    made = record(args=())
    made.created = 1_700_000_000.0071
    assert as_json(made) == {
        "time": "2023-11-14T22:13:20.007Z",
        "level": "INFO",
        "logger": "esg",
        "message": "ready",
        "worker": 3,
        "generation": 2,
        "pid": 4711,
    }


def test_a_json_line_is_about_whom_its_record_names():
    fields = as_json(record("%s %s", args=(arbiter_subject(5, 4700), "stopping")))
    assert (fields["worker"], fields["generation"], fields["pid"]) == (None, 5, 4700)
    assert fields["message"] == "stopping"


def test_a_traceback_has_a_json_field_of_its_own():
    try:
        raise ValueError("why")
    except ValueError:
        fields = as_json(record(exc_info=sys.exc_info()))
    assert fields["message"] == "ready"
    assert fields["exception"].splitlines()[0].startswith("Traceback")
    assert fields["exception"].endswith("ValueError: why")


@given(st.text(st.characters()))
def test_any_message_is_one_line_of_json(text):
    assert as_json(record("%s", args=(text,)))["message"] == text


# -- other loggers -----------------------------------------------------------------------


def test_a_logger_that_nobody_configured_logs_warnings_here(configured, capfd, bare_root):
    setup().apply(SUBJECT)
    bare_root()
    logging.getLogger("asyncio").warning("slow callback")
    logging.getLogger("shop").info("not shown")
    (line,) = capfd.readouterr().err.splitlines()
    assert line.endswith(f"WARNING  {SUBJECT} asyncio: slow callback")


def test_an_application_that_configures_logging_has_its_records_for_itself(
    configured, capfd, bare_root
):
    setup().apply(SUBJECT)
    handler = logging.StreamHandler(io.StringIO())
    bare_root().addHandler(handler)
    logging.getLogger("shop").warning("mine")
    assert handler.stream.getvalue() == "mine\n"
    assert capfd.readouterr().err == ""


def test_python_warnings_are_json_in_a_log_that_is(configured, capfd, bare_root):
    bare_root()
    setup(log_format="json").apply(SUBJECT)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    fields = json.loads(capfd.readouterr().err)
    assert fields["logger"] == "py.warnings"
    assert "DeprecationWarning: old" in fields["message"]


@pytest.fixture
def warn(bare_root):
    """Makes Python warn with a text that would forge a record, and restores Python's state."""

    def warn_now():
        bare_root()
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            with captured_warnings():
                setup().apply(SUBJECT)
                logging.config.dictConfig({"version": 1})  # disables every existing logger
                stay_enabled()
                warnings.warn(FORGERY, UserWarning, stacklevel=1)

    return warn_now


def test_python_warnings_forge_no_line(configured, capfd, warn):
    warn()
    (record,) = records(capfd.readouterr().err)
    assert record.level == "WARNING"
    assert record.message.startswith(f"{SUBJECT} py.warnings: ")
    assert "UserWarning: " in record.message


def test_python_warnings_are_the_applications_where_it_has_a_log(configured, capfd, bare_root):
    handler = logging.StreamHandler(io.StringIO())
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with captured_warnings():
            setup().apply(SUBJECT)
            bare_root().addHandler(handler)
            warnings.warn("mine", UserWarning, stacklevel=1)
    assert "UserWarning: mine" in handler.stream.getvalue()
    assert capfd.readouterr().err == ""


def test_python_prints_warnings_again_in_the_end(configured, capfd, bare_root):
    bare_root()
    before = logging.getLogger("py.warnings").handlers[:]
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        printing = warnings.showwarning
        with captured_warnings():
            setup().apply(SUBJECT)
            assert warnings.showwarning is not printing
        assert warnings.showwarning is printing
    assert logging.getLogger("py.warnings").handlers == before


def test_a_server_in_another_program_leaves_warnings_to_it(configured):
    with warnings.catch_warnings():
        printing = warnings.showwarning
        setup().apply(SUBJECT)
        assert warnings.showwarning is printing


def test_a_message_that_cannot_be_formatted_is_reported_and_not_raised(configured, capfd):
    setup().apply(SUBJECT)
    configured.info("%d of them", "many")
    (line,) = capfd.readouterr().err.splitlines()
    assert "can't be formatted" in line
    assert "test_setup.py" in line


# -- --log-config ------------------------------------------------------------------------


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
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers[:] = []


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_stream_of_a_log_config_makes_nobody_wait(log_config, capfd, stream):
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
def test_which_loggers_of_a_file_are_esgs(log_config, bare_root, capfd, names, error, access):
    bare_root()
    log_config(dictionary(*names))
    logger.info("hello")
    found = capfd.readouterr().err.splitlines()
    access_logger.info("got")
    found += capfd.readouterr().err.splitlines()
    assert found == [line for line in (error, access) if line]


def test_the_level_of_a_file_holds_unless_one_was_given(log_config, capfd):
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
def test_forms_of_a_file(log_config, capfd, suffix, text, mark):
    log_config(mark + text, suffix)
    logger.warning("hello")
    assert capfd.readouterr().err == "hello!\n"


@pytest.mark.parametrize(
    ("suffix", "text", "told"),
    [
        (".json", "{", "log.json"),
        (".json", "[]", "dictionary"),
        (".json", "{}", "version"),
        (".json", json.dumps(dictionary("esg") | {"handlers": {}}), "h"),
        (".json", json.dumps(dictionary("esg", stream="ext://no.such")), "no"),
        (".yaml", "a: [", "log.yaml"),
        (".ini", "nonsense", "log.ini"),
        (".ini", "[loggers]\nkeys=root", "[formatters]"),
        (".ini", INI.replace("StreamHandler", "NoSuch"), "NoSuch"),
    ],
)
def test_a_bad_file_is_told_in_one_line(log_config, suffix, text, told):
    with pytest.raises(ConfigError) as caught:
        log_config(text, suffix)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("test")
    assert f"log{suffix}" in str(caught.value)


def test_yaml_without_its_library(log_config, monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(ConfigError, match="pip install pyyaml"):
        log_config(YAML, ".yaml")


def test_a_file_that_is_not_there(configured, tmp_path):
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
def test_formatters_of_uvicorns_work_with_and_without_it(log_config, capfd, monkeypatch, installed):
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


def test_a_log_config_that_cannot_be_applied_any_more_leaves_a_log(log_config, capfd):
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


# -- what Python programs give in place of a file ----------------------------------------


@pytest.mark.parametrize("colors", [None, True, False])
def test_uvicorns_own_dictionary(configured, capfd, colors):
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
def test_what_is_wrong_with_a_dictionary_and_where(configured, malformed, told):
    made = setup(log_config=LogDefinition({"version": 1} | malformed))
    with pytest.raises(ConfigError) as caught:
        made.apply(SUBJECT)
    assert f"can't configure logging: {told}" in str(caught.value)


def test_the_text_of_an_ini_file(configured, capfd):
    setup(log_config=LogDefinition(INI)).apply(SUBJECT)
    logger.warning("hello")
    assert capfd.readouterr().err == "hello!\n"


@pytest.mark.parametrize(("content", "suffix"), [(INI, ".ini"), (dictionary("esg"), ".json")])
def test_colours_that_nothing_shows_are_refused(log_config, content, suffix):
    with pytest.raises(ConfigError, match="needs one of uvicorn's formatters"):
        log_config(content, suffix, use_colors=True)


def test_json_by_its_content(log_config, capfd):
    log_config(json.dumps(dictionary("esg")), ".conf")
    logger.warning("hello")
    assert capfd.readouterr().err == "esg|hello\n"


@pytest.mark.parametrize("level", [None, "error"])
def test_logging_that_is_left_to_the_application(configured, capfd, bare_root, level):
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


# -- classes of the application's ----------------------------------------------------------

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
def test_a_formatter_of_the_applications(configured, capfd, package, in_worker):
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


def test_a_formatter_is_what_is_on_the_disk_at_a_reload(configured, capfd, package):
    content = dictionary("esg", **{"()": "shoplog.log.Formatter"})
    made = setup(log_config=LogDefinition(content), app_dir=str(package))
    made.apply(arbiter_subject(1, 4700))
    (package / "shoplog" / "log.py").write_text(SHOUTING.replace("V1", "V2"))
    made.apply(arbiter_subject(2, 4700))
    logger.info("hello")
    assert capfd.readouterr().err == "outer hello V2\n"


def test_the_folder_of_another_release_takes_the_place_of_the_first(configured, package, tmp_path):
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


# -- loggers of other servers ------------------------------------------------------------


@pytest.mark.parametrize("name", ["uvicorn", "uvicorn.error", "gunicorn.error", "hypercorn.error"])
@pytest.mark.parametrize(("level", "shown"), [("info", ["info"]), ("warning", []), ("debug", 2)])
def test_other_servers_loggers_log_at_the_level(configured, capfd, name, level, shown):
    setup(log_level=level).apply(SUBJECT)
    logging.getLogger(name).info("info")
    logging.getLogger(name).debug("debug")
    lines = capfd.readouterr().err.splitlines()
    wanted = ["info", "debug"] if shown == 2 else shown
    assert [line.partition(f"{SUBJECT} ")[2] for line in lines] == [
        f"{name}: {text}" for text in wanted
    ]


def test_what_an_application_copies_from_gunicorns_logger_works(configured, capfd):
    setup().apply(SUBJECT)
    theirs, own = logging.getLogger("gunicorn.error"), logging.getLogger("shop.own")
    own.handlers, own.level, own.propagate = theirs.handlers, theirs.level, False
    own.info("hello")
    own.handlers = []
    assert capfd.readouterr().err.endswith(f"INFO     {SUBJECT} shop.own: hello\n")


def test_other_servers_loggers_with_handlers_are_left_alone(configured, capfd):
    log, stream = logging.getLogger("uvicorn"), io.StringIO()
    log.handlers[:] = [logging.StreamHandler(stream)]
    setup(log_level="debug").apply(SUBJECT)
    log.warning("hello")
    assert (stream.getvalue(), capfd.readouterr().err) == ("hello\n", "")


def test_a_handler_that_is_added_to_another_servers_logger_stays(configured, capfd):
    log, stream = logging.getLogger("uvicorn"), io.StringIO()
    setup().apply(SUBJECT)
    log.addHandler(logging.StreamHandler(stream))
    setup(log_level="debug").apply(SUBJECT)
    log.debug("hello")
    assert stream.getvalue() == "hello\n"
    assert capfd.readouterr().err.endswith(f"DEBUG    {SUBJECT} uvicorn: hello\n")


# -- subjects ----------------------------------------------------------------------------


def test_subjects():
    assert worker_subject(3, 2, 4711) == "worker=3 gen=2 pid=4711"
    assert arbiter_subject(2, 4700) == "arbiter gen=2 pid=4700"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_file_handlers_of_root_follow_no_links_of_others(log_config, tmp_path):
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
