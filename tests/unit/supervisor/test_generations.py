"""Generations by number: each opens its sockets and log files, and closes them when it retires."""

from __future__ import annotations

import dataclasses
import io
import json
import os

import pytest

from esg import keywords
from esg.errors import ESGError
from esg.log.files import LogFiles
from esg.log.records import arbiter_subject
from esg.payload import Settings
from esg.settings.build import Raw, build
from esg.supervisor.fleet.terms import Terms
from esg.supervisor.generations import Generations
from esg.supervisor.sockets import Sockets
from esg.supervisor.systemd import Notifier

SUBJECT = arbiter_subject(1, 4711)


def settings(tmp_path, *binds, log="log", **values):
    raw = {name: Raw(value, f"--{name}") for name, value in values.items()}
    raw["error_logfile"] = Raw(str(tmp_path / log), "--error-logfile")
    raw["bind"] = Raw(list(binds), "--bind")
    return Settings(build({"app": Raw("example:app", "APP")} | raw))


def open_files():
    """The files behind this process's descriptors."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.add(os.readlink(f"/proc/self/fd/{fd}"))
        except FileNotFoundError:  # the descriptor of the folder itself
            continue
    return found


@pytest.fixture
def generations(tmp_path):
    """A table whose first generation is open."""
    sockets, files = Sockets(Notifier(), lambda line: None, lambda: ()), LogFiles()
    generations = Generations(settings(tmp_path, f"unix:{tmp_path}/1"), sockets, files)
    generations.open_log()
    generations.listen([])
    yield generations
    sockets.close()
    files.keep(())


def test_a_new_generation_opens_nothing_until_it_is_prepared(generations, tmp_path):
    new = generations.add(settings(tmp_path, f"unix:{tmp_path}/2", log="log2"))
    assert new.number == 2
    assert not (tmp_path / "2").exists()
    assert not (tmp_path / "log2").exists()
    generations.prepare(2, SUBJECT)
    assert (tmp_path / "2").is_socket()
    assert str(tmp_path / "log2") in open_files()
    assert [str(listener.bind) for listener in new.listeners] == [f"unix:{tmp_path}/2"]


def test_sockets_and_files_of_only_a_retired_generation_are_closed(generations, tmp_path):
    generations.add(settings(tmp_path, f"unix:{tmp_path}/2", log="log2"))
    generations.prepare(2, SUBJECT)
    assert generations.adopt(2).number == 1
    generations.retire(1)
    assert not (tmp_path / "1").exists()
    assert (tmp_path / "2").is_socket()
    assert str(tmp_path / "log") not in open_files()
    assert str(tmp_path / "log2") in open_files()
    with pytest.raises(KeyError):
        generations[1]


def test_a_generation_that_cannot_be_prepared_leaves_nothing(generations, tmp_path):
    before = open_files()
    generations.add(settings(tmp_path, f"unix:{tmp_path}/none/2", log="log2"))
    with pytest.raises(ESGError, match="none"):
        generations.prepare(2, SUBJECT)
    generations.retire(2)
    assert open_files() == before


def test_the_number_of_a_generation_that_never_began_is_used_again(generations, tmp_path):
    for _ in range(2):
        assert generations.add(settings(tmp_path, f"unix:{tmp_path}/1")).number == 2
        generations.retire(2)


def test_the_number_of_a_generation_that_may_yet_begin_is_skipped(generations, tmp_path):
    generations.add(settings(tmp_path, f"unix:{tmp_path}/1"))
    assert generations.add(settings(tmp_path, f"unix:{tmp_path}/1")).number == 3


def test_the_log_of_a_generation_has_the_objects_of_its_settings(generations, tmp_path):
    stream = io.StringIO()
    definition = {"version": 1, "handlers": {"h": {"stream": stream}}}
    raw, objects = keywords.read("example:app", {"log_config": definition})
    new = generations.add(Settings(build(raw), objects))
    assert generations._open_log(new).definition == definition


def test_the_number_of_a_generation_that_had_workers_is_not_used_again(generations, tmp_path):
    generations.add(settings(tmp_path, f"unix:{tmp_path}/1"))
    generations.prepare(2, SUBJECT)
    generations.retire(2)
    assert generations.add(settings(tmp_path, f"unix:{tmp_path}/1")).number == 3


def test_terms_are_the_settings_of_the_same_names(tmp_path):
    config = settings(tmp_path, "127.0.0.1:0", workers="3", graceful_timeout="7.5").config
    terms = Terms.of(config)
    assert terms.workers == 3
    assert terms.graceful_timeout == 7.5
    for field in dataclasses.fields(Terms):
        assert getattr(terms, field.name) == getattr(config, field.name)


def test_terms_can_be_written_down_and_read_again(tmp_path):
    terms = Terms.of(settings(tmp_path, "127.0.0.1:0", drain_delay="0.1").config)
    assert Terms(**json.loads(json.dumps(dataclasses.asdict(terms)))) == terms
