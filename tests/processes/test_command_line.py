"""The command's checks and printed settings, the sources of settings, and names from gunicorn."""

from __future__ import annotations

import os
import shutil
import signal
import tomllib
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.support.app import application
from tests.support.runner import Esg, run_to_its_end

Start = Callable[..., Esg]

READS_COLOR = 'import os\nVERSION = os.environ.get("COLOR", "none")\n'
"""For `at_import`: responses show the environment at the time of the application's import."""


# -- --check-config and --print-config -------------------------------------------------


def test_a_good_application_passes_the_check(tmp_path: Path) -> None:
    (tmp_path / "example.py").write_text(application())
    finished = run_to_its_end(tmp_path, "example:app", "--workers", "3", "--check-config")
    assert (finished.code, finished.log) == (0, "")
    assert finished.output == "esg: configuration OK: example:app, workers=3\n"


def test_an_application_that_fails_to_import_fails_the_check(tmp_path: Path) -> None:
    (tmp_path / "example.py").write_text("def work():\n    return 1 / 0\n\n\nwork()\n")
    finished = run_to_its_end(tmp_path, "example:app", "--check-config")
    assert (finished.code, finished.output) == (4, "")
    first, *middle, last = finished.log.splitlines()
    assert first == "Traceback (most recent call last):"
    assert any("in work" in line for line in middle)
    assert last == "esg: error: importing 'example' failed: ZeroDivisionError: division by zero"


def test_a_module_that_exits_fails_the_check(tmp_path: Path) -> None:
    (tmp_path / "example.py").write_text("raise SystemExit(0)\n")
    assert run_to_its_end(tmp_path, "example:app", "--check-config").code == 4


def test_a_wrong_setting_fails_the_check_before_the_import(tmp_path: Path) -> None:
    (tmp_path / "example.py").write_text("open('imported', 'w')\n")
    (tmp_path / "esg.toml").write_text("workers = 0\n")
    finished = run_to_its_end(tmp_path, "example:app", "--check-config")
    assert finished.code == 2
    assert finished.log.startswith("esg: error: esg.toml: workers: invalid value 0")
    assert not (tmp_path / "imported").exists()


def test_printed_settings_are_a_valid_settings_file(tmp_path: Path) -> None:
    finished = run_to_its_end(tmp_path, "example:app", "--workers", "3", "--print-config")
    assert (finished.code, finished.log) == (0, "")
    assert tomllib.loads(finished.output)["workers"] == 3
    (tmp_path / "esg.toml").write_text(finished.output)
    again = run_to_its_end(tmp_path, "--print-config")
    assert tomllib.loads(again.output) == tomllib.loads(finished.output)
    assert "# esg.toml: workers" in again.output


# -- --env-file, --chdir, --workers auto -----------------------------------------------


def test_the_application_finds_the_variables_of_the_env_file(start: Start) -> None:
    esg = start(
        "--env-file",
        "vars",
        files={"vars": "COLOR=red\nESG_WORKERS=2\n"},
        source=application(at_import=READS_COLOR),
    )
    assert esg.whoami()["version"] == "red"
    esg.wait_for_workers(2)


def test_a_reload_reads_the_env_file_again(start: Start) -> None:
    esg = start(
        "--env-file",
        "vars",
        files={"vars": "COLOR=red\nSHAPE=round\n"},
        source=application(at_import=READS_COLOR + 'VERSION += os.environ.get("SHAPE", "")\n'),
    )
    assert esg.whoami()["version"] == "redround"
    esg.write("COLOR=blue\n", "vars")
    esg.reload()
    esg.wait_for_workers(1)
    assert esg.whoami()["version"] == "blue"


def test_a_reload_with_a_bad_env_file_is_refused_and_changes_nothing(start: Start) -> None:
    esg = start(
        "--env-file",
        "vars",
        files={"vars": "COLOR=red\n"},
        source=application(at_import=READS_COLOR),
    )
    (esg.folder / "vars").unlink()
    esg.claim("reload")
    esg.signal(signal.SIGHUP)
    esg.wait_for_log(r"--env-file: 'vars' can't be read: No such file")
    (worker,) = esg.workers()
    os.kill(worker, signal.SIGQUIT)
    esg.wait_for_log(r"worker=\d+ gen=1 pid=\d+ ready", count=2)
    assert esg.whoami()["version"] == "red"


def test_the_server_runs_in_the_folder_of_chdir(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "example.py").write_text(application("there"))
    esg = start("--chdir", str(folder), source="1 / 0")
    assert esg.whoami()["version"] == "there"
    assert psutil.Process(esg.pid).cwd() == str(folder)
    esg.reload()
    esg.wait_for_workers(1)
    assert esg.whoami()["version"] == "there"


@pytest.mark.skipif(not shutil.which("taskset"), reason="there's no taskset")
def test_workers_auto_starts_one_worker_per_cpu(start: Start) -> None:
    cpu = str(min(os.sched_getaffinity(0)))
    prefix = ("taskset", "-c", cpu, "sh", "-c", '"$@"; exit $?', "-")
    esg = start("--workers", "auto", prefix=prefix)
    assert len(esg.workers()) == 1


# -- names from gunicorn ---------------------------------------------------------------


def test_a_gunicorn_command_line_serves(start: Start) -> None:
    esg = start(
        *("-w", "2", "-k", "uvicorn.workers.UvicornWorker", "-t", "20", "--graceful-timeout", "5"),
        *("--max-requests", "1000", "--max-requests-jitter", "50", "--keep-alive", "2"),
        *("-n", "shop", "--access-logfile", "-", "--error-logfile", "-", "--log-level", "info"),
        listen=("-b", "127.0.0.1:0"),
    )
    (notice,) = esg.logged("worker-class")
    assert notice.event == (
        "--worker-class: uvicorn.workers.UvicornWorker means the defaults of ESG"
    )
    assert notice.level == "INFO"
    assert len(esg.workers()) == 2
    assert esg.whoami()["version"] == "one"


def test_a_python_settings_file_is_refused_with_advice(tmp_path: Path) -> None:
    (tmp_path / "gunicorn.conf.py").write_text("bind = ':80'\nkeepalive = 5\n")
    finished = run_to_its_end(tmp_path, "example:app", "-c", "gunicorn.conf.py")
    assert finished.code == 2
    (line,) = finished.log.splitlines()
    assert line.endswith("write esg.toml with bind, keepalive as timeout_keep_alive")


# -- --debug and --header --------------------------------------------------------------


def test_debug_causes_a_warning_and_shows_tracebacks(start: Start) -> None:
    esg = start("--debug", "--header", "X-Shop: open", "--no-reload")
    assert esg.watchers() == []
    (warning,) = esg.logged("--debug")
    assert warning.level == "WARNING"
    assert "must not face the internet" in warning.event
    esg.claim("exception in the application")
    connection = esg.begin("/nosuch")
    response = connection.getresponse()
    assert (response.status, response.headers["x-shop"]) == (500, "open")
    assert b"KeyError: 'nosuch'" in response.read()
    connection.close()


def test_debug_reloads_when_a_file_changes(start: Start) -> None:
    esg = start("--debug")
    esg.wait_for_log("watching ")
    esg.write(application("two"))
    esg.wait_for_log("reloaded workers=1")


def test_debug_turned_on_by_a_reload_causes_a_warning(start: Start) -> None:
    esg = start()
    assert esg.logged("tracebacks") == []
    esg.write("debug = true\n", "esg.toml")
    esg.reload()
    warning = esg.wait_for_log("tracebacks")
    assert warning.event.startswith("esg.toml: debug: ")
    assert (warning.level, warning.generation) == ("WARNING", 2)
