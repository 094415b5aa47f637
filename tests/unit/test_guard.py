"""The guard against a request that takes more instructions than it did."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.support.runner import CHECKOUT, environment

BENCH = CHECKOUT / "bench"


@pytest.fixture
def guard(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """`bench/guard.py`, which is no module of a package, with stored counts for this interpreter.

    It finds valgrind; what valgrind counts is up to the test.
    """
    spec = importlib.util.spec_from_file_location("guard", BENCH / "guard.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    stored = tmp_path / "guard.json"
    stored.write_text(json.dumps({"this one": {"hello": 50_000, "stream-50": 400_000}}))
    monkeypatch.setattr(module, "STORED", stored)
    monkeypatch.setattr(module, "combination", lambda: "this one")
    monkeypatch.setattr(module.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(module.shutil, "which", lambda name: f"/usr/bin/{name}")
    return module


def test_a_count_that_grows_by_6_percent_is_a_failure(
    guard: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(guard, "count", lambda: {"hello": 53_000, "stream-50": 400_000})
    assert guard.main([]) == 1
    output = capsys.readouterr().out
    assert "hello: 53,000, stored 50,000 (1.060): FAILED" in output
    assert "stream-50: 400,000, stored 400,000 (1.000)\n" in output


def test_a_count_that_grows_by_4_percent_is_not_a_failure(
    guard: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "count", lambda: {"hello": 52_000, "stream-50": 400_000})
    assert guard.main([]) == 0


def test_a_scenario_that_is_no_longer_counted_is_a_failure(
    guard: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(guard, "count", lambda: {"hello": 50_000})
    assert guard.main([]) == 1
    assert "stream-50: not counted: FAILED" in capsys.readouterr().out


def test_another_interpreter_is_compared_with_nothing_and_a_line_says_so(
    guard: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(guard, "combination", lambda: "another one")
    monkeypatch.setattr(guard, "count", lambda: pytest.fail("it counted"))
    assert guard.main([]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line == "guard: compares nothing: guard.json has no counts for another one"


def test_store_replaces_the_counts_of_this_interpreter_only(
    guard: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "combination", lambda: "another one")
    monkeypatch.setattr(guard, "count", lambda: {"hello": 70_000})
    assert guard.main(["--store"]) == 0
    assert json.loads(guard.STORED.read_text()) == {
        "another one": {"hello": 70_000},
        "this one": {"hello": 50_000, "stream-50": 400_000},
    }


def test_every_stored_count_is_in_the_results() -> None:
    results = (BENCH / "RESULTS.md").read_text(encoding="utf-8")
    stored = json.loads((BENCH / "guard.json").read_text())
    counts = {f"{count:,}" for counts in stored.values() for count in counts.values()}
    assert counts
    assert [count for count in counts if f" {count} " not in results] == []


def test_every_scenario_is_stored_and_runs_without_valgrind() -> None:
    scenarios = {"hello", "access-log", "post-64k", "stream-50", "websocket-128", "wsgi-hello"}
    for counts in json.loads((BENCH / "guard.json").read_text()).values():
        assert set(counts) == scenarios
    argv = [sys.executable, str(BENCH / "hotpath.py"), "1"]
    run = subprocess.run(argv, env=environment(), capture_output=True, text=True, check=False)
    assert (run.stdout, run.returncode) == ("8\n", 0), run.stderr
