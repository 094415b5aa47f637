"""The log's lines."""

from __future__ import annotations

import logging
import re
import sys

import pytest

from esg import logs


@pytest.fixture
def configured(monkeypatch):
    """Leaves the "esg" logger as it was."""
    logger = logging.getLogger("esg")
    before = logger.handlers[:], logger.propagate, logger.level
    yield logger
    logger.handlers[:], logger.propagate, logger.level = before


def record(message="ready", level=logging.INFO, args=(), exc_info=None):
    return logging.LogRecord("esg", level, __file__, 1, message, args, exc_info)


def formatted(*, colors=False, **fields):
    return logs.TextFormatter(colors).format(record(**fields))


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
    assert ".007 " in logs.TextFormatter(False).format(made)


def test_a_traceback_is_below_its_line():
    try:
        raise ValueError("why")
    except ValueError:
        text = formatted(exc_info=sys.exc_info())
    first, second, *_, last = text.splitlines()
    assert first.endswith("ready")
    assert second.startswith("Traceback")
    assert last == "ValueError: why"


def test_colours():
    line = formatted(colors=True, level=logging.ERROR)
    assert "\033[31mERROR   \033[0m ready" in line
    assert "\033" not in formatted(level=logging.ERROR)


@pytest.mark.parametrize("setting", [True, False])
def test_a_setting_decides_on_colours(setting):
    assert logs.wants_colors(setting, 0) is setting


def test_a_file_gets_no_colours_by_default(tmp_path):
    with open(tmp_path / "log", "w") as file:
        assert logs.wants_colors(None, file.fileno()) is False


def test_a_terminal_gets_colours_by_default():
    import os
    import pty

    main, terminal = pty.openpty()
    assert logs.wants_colors(None, terminal) is True
    os.close(main)
    os.close(terminal)


def test_the_log_goes_to_standard_error(configured, capsys):
    logs.configure("info", use_colors=False)
    configured.info("hello")
    captured = capsys.readouterr()
    assert captured.err.endswith("INFO     hello\n")
    assert captured.out == ""


@pytest.mark.parametrize(
    ("level", "shown"), [("debug", 3), ("info", 2), ("warning", 1), ("critical", 0)]
)
def test_levels(configured, capsys, level, shown):
    logs.configure(level, use_colors=False)
    configured.debug("x")
    configured.info("x")
    configured.warning("x")
    assert len(capsys.readouterr().err.splitlines()) == shown


def test_configuring_again_does_not_double_lines(configured, capsys):
    for level in ("debug", "info"):
        logs.configure(level, use_colors=False)
    configured.info("once")
    assert capsys.readouterr().err.count("once") == 1


def test_subjects():
    assert logs.worker_subject(3, 2, 4711) == "worker=3 gen=2 pid=4711"
    assert logs.arbiter_subject(2, 4700) == "arbiter gen=2 pid=4700"
