"""The log's lines."""

from __future__ import annotations

import io
import json
import logging
import logging.config
import os
import pty
import re
import sys
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esg.log.records import (
    TRACE,
    JSONFormatter,
    TextFormatter,
    arbiter_subject,
    log_event,
    wants_colors,
    worker_subject,
)
from esg.log.setup import captured_warnings, stay_enabled
from esg.seldom import Seldom
from tests.support.log import records
from tests.support.logsetup import SUBJECT, setup


def record(message="ready", level=logging.INFO, args=(), exc_info=None):
    return logging.LogRecord("esg", level, __file__, 1, message, args, exc_info)


def formatted(*, colors=False, **fields):
    return TextFormatter(colors).format(record(**fields))


def test_a_line_has_the_time_the_level_and_the_message():
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


def test_the_level_is_coloured():
    line = formatted(colors=True, level=logging.ERROR)
    assert "\033[31mERROR   \033[0m ready" in line
    assert "\033" not in formatted(level=logging.ERROR)


@pytest.mark.parametrize("setting", [True, False])
def test_the_setting_turns_colours_on_or_off(setting):
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


def test_the_setting_overrides_no_color(terminal, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    assert wants_colors(True, terminal) is True


def test_the_address_stands_out_on_a_terminal():
    line = formatted(colors=True, message="listening on http://127.0.0.1:8000")
    assert line.endswith("listening on \033[1mhttp://127.0.0.1:8000\033[0m")
    assert formatted(message="listening on unix:/run/x").endswith(" listening on unix:/run/x")


def test_an_address_in_another_line_does_not_stand_out():
    assert "\033[1m" not in formatted(colors=True, message="no longer listening on http://h:80")


def test_the_log_goes_to_standard_error(configured, capfd):
    setup().apply(SUBJECT)
    configured.info("hello")
    captured = capfd.readouterr()
    assert captured.err.endswith(f"INFO     {SUBJECT} hello\n")
    assert captured.out == ""


@pytest.mark.parametrize(
    ("level", "shown"), [("trace", 4), ("debug", 3), ("info", 2), ("warning", 1), ("critical", 0)]
)
def test_the_level_decides_which_records_are_shown(configured, capfd, level, shown):
    setup(log_level=level).apply(SUBJECT)
    for each in (TRACE, logging.DEBUG, logging.INFO, logging.WARNING):
        configured.log(each, "x")
    assert len(capfd.readouterr().err.splitlines()) == shown


def test_configuring_again_does_not_double_lines(configured, capfd):
    for level in ("debug", "info"):
        setup(log_level=level).apply(SUBJECT)
    configured.info("once")
    assert capfd.readouterr().err.count("once") == 1


def test_a_record_with_a_subject_of_its_own_gets_no_other(configured, capfd):
    setup().apply(SUBJECT)
    other = arbiter_subject(2, 4700)
    log_event(logging.WARNING, other, "hello")
    configured.warning("%s %s", other, "again")
    lines = capfd.readouterr().err.splitlines()
    assert [line[24:] for line in lines] == [
        "WARNING  arbiter gen=2 pid=4700 hello",
        "WARNING  arbiter gen=2 pid=4700 again",
    ]


def test_a_filter_that_raises_does_not_raise_in_the_caller(configured, monkeypatch, capfd):
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


def test_a_json_line_has_every_field():
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


def test_a_json_line_has_the_subject_of_its_record():
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


def test_esg_does_not_log_the_records_of_an_application_that_configures_logging(
    configured, capfd, bare_root
):
    setup().apply(SUBJECT)
    handler = logging.StreamHandler(io.StringIO())
    bare_root().addHandler(handler)
    logging.getLogger("shop").warning("mine")
    assert handler.stream.getvalue() == "mine\n"
    assert capfd.readouterr().err == ""


def test_python_warnings_are_json_in_a_json_log(configured, capfd, bare_root):
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


def test_python_warnings_go_to_the_applications_log_if_there_is_one(configured, capfd, bare_root):
    handler = logging.StreamHandler(io.StringIO())
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with captured_warnings():
            setup().apply(SUBJECT)
            bare_root().addHandler(handler)
            warnings.warn("mine", UserWarning, stacklevel=1)
    assert "UserWarning: mine" in handler.stream.getvalue()
    assert capfd.readouterr().err == ""


def test_python_prints_warnings_itself_afterwards(configured, capfd, bare_root):
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


def test_handlers_copied_from_gunicorns_logger_work(configured, capfd):
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


def test_a_subject_has_the_worker_the_generation_and_the_pid():
    assert worker_subject(3, 2, 4711) == "worker=3 gen=2 pid=4711"
    assert arbiter_subject(2, 4700) == "arbiter gen=2 pid=4700"
