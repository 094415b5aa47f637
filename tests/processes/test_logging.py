"""Log files of whole servers: rotation, reloads, files that can't be used, and formats."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.support.app import application
from tests.support.load import Load
from tests.support.runner import Esg, run_to_its_end
from tests.support.waiting import eventually

Start = Callable[..., Esg]

LINE = re.compile(r'INFO:     127\.0\.0\.1:\d+ - "(GET|POST) /\S+ HTTP/1\.1" 200 OK')


def lines_of(folder: Path, pattern: str) -> list[str]:
    """The lines in all files of a pattern."""
    files = sorted(folder.glob(pattern))
    return [line for file in files for line in file.read_text().splitlines()]


def rotate(esg: Esg, name: str, number: int) -> None:
    """Like logrotate: move the file away, and make ESG reopen it."""
    before = len(esg.logged("log files reopened"))
    (esg.folder / name).rename(esg.folder / f"{name}.{number}")
    esg.signal(signal.SIGUSR1)
    esg.wait_for_log("log files reopened", count=before + 1)


def listening_port(pid: int) -> int:
    """The port of a process whose log can't be read."""
    connections = psutil.Process(pid).net_connections("tcp")
    return next((c.laddr.port for c in connections if c.status == psutil.CONN_LISTEN), 0)


def open_logs(pid: int) -> set[str]:
    """The names of the log files that a process has open."""
    found = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # a descriptor that was closed meanwhile
            target = os.readlink(f"/proc/{pid}/fd/{name}")
            if ".log" in target:
                found.add(os.path.basename(target))
    return found


# -- rotation --------------------------------------------------------------------------


def test_rotation_under_load_loses_no_line_and_no_request(start: Start) -> None:
    esg = start("--workers", "3", "--access-logfile", "access.log")
    with Load(esg.port, keep_alive=6, fresh=6, slow=1) as load:
        for number in range(1, 8):
            load.wait_until_answered("fresh", 60)
            rotate(esg, "access.log", number)
    esg.stop()
    lines = lines_of(esg.folder, "access.log*")
    assert len(lines) == sum(load.answered.values())
    assert [line for line in lines if not LINE.fullmatch(line)] == []


def test_rotation_while_reloading_loses_no_line_and_no_request(start: Start) -> None:
    esg = start("--workers", "2", "--access-logfile", "access.log")
    with Load(esg.port, keep_alive=4, fresh=4) as load:
        for number in range(1, 5):
            esg.signal(signal.SIGHUP)
            rotate(esg, "access.log", number)
            esg.wait_for_log(" reloaded workers=2", count=number)
        eventually(
            lambda: all(open_logs(pid) == {"access.log"} for pid in esg.workers()), "new files"
        )
        load.wait_until_answered("fresh", 50)
    esg.stop()
    assert len(lines_of(esg.folder, "access.log*")) == sum(load.answered.values())


def test_both_logs_are_reopened_by_the_arbiter_and_by_workers(start: Start) -> None:
    options = ["--access-logfile", "access.log", "--error-logfile", "error.log"]
    esg = start("--workers", "2", *options, log="error.log")
    assert esg.port
    for name in ("access.log", "error.log"):
        (esg.folder / name).rename(esg.folder / f"{name}.1")
    esg.signal(signal.SIGUSR1)
    processes = [esg.pid, *esg.workers()]
    eventually(
        lambda: all(open_logs(pid) == {"access.log", "error.log"} for pid in processes),
        "new files everywhere",
    )
    esg.whoami()
    esg.stop()
    assert " stopped, exit status 0" in (esg.folder / "error.log").read_text()
    assert " received SIGUSR1" in (esg.folder / "error.log.1").read_text()
    assert len(lines_of(esg.folder, "access.log")) == 1
    assert (esg.folder / "stderr").read_text() == ""


def test_a_booting_worker_gets_the_new_file_too(start: Start) -> None:
    esg = start("--workers", "1", "--access-logfile", "access.log")
    waits = 'note("booting")\nwhile not os.path.exists("go"): time.sleep(0.01)'
    esg.write(application("two", at_import=waits))
    esg.signal(signal.SIGHUP)
    eventually(lambda: esg.notes("booting"), "a worker boots")
    rotate(esg, "access.log", 1)
    esg.write("", "go")
    esg.wait_for_log(" reloaded workers=1")
    (worker,) = esg.wait_for_workers(1)
    eventually(lambda: open_logs(worker) == {"access.log"}, "the new file is open")
    esg.whoami()
    eventually(lambda: len(lines_of(esg.folder, "access.log")) == 1, "a line in the new file")


def test_a_signal_to_one_worker_reopens_only_its_files(start: Start) -> None:
    esg = start("--workers", "2", "--access-logfile", "access.log")
    first, second = esg.workers()
    (esg.folder / "access.log").rename(esg.folder / "access.log.1")
    os.kill(first, signal.SIGUSR1)
    eventually(lambda: open_logs(first) == {"access.log"}, "it has the new file")
    assert open_logs(second) == open_logs(esg.pid) == {"access.log.1"}


def test_a_file_that_cannot_be_reopened_is_kept_and_reported(start: Start, tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    esg = start("--access-logfile", str(tmp_path / "logs" / "access.log"))
    esg.claim("can't reopen the log file")
    (tmp_path / "logs").rename(esg.folder / "moved")
    esg.signal(signal.SIGUSR1)
    record = esg.wait_for_log("can't reopen the log file .*/logs/access.log.: No such file")
    assert record.level == "ERROR"
    assert record.worker is None
    os.kill(esg.workers()[0], signal.SIGUSR1)
    esg.wait_for_log("worker=1 .* can't reopen the log file")
    esg.whoami()
    eventually(lambda: len(lines_of(esg.folder, "moved/access.log")) == 1, "the old file has it")


# -- files that can't be opened or written -----------------------------------------------


@pytest.mark.parametrize("option", ["--access-logfile", "--error-logfile", "--log-file"])
def test_a_file_that_cannot_be_opened_prevents_startup_with_one_line(
    tmp_path: Path, option: str
) -> None:
    (tmp_path / "example.py").write_text(application())
    finished = run_to_its_end(tmp_path, "example:app", "--port", "0", option, "no/log")
    (line,) = finished.log.splitlines()
    named = option.replace("--log-file", "--error-logfile")
    assert line.startswith(f"esg: error: {named}: ")
    assert line.endswith(f"can't open the log file '{tmp_path}/no/log': No such file or directory")
    assert finished.code == 1


@pytest.mark.parametrize("which", ["--access-logfile", "--error-logfile"])
def test_a_full_disk_is_reported_once_and_requests_are_served(start: Start, which: str) -> None:
    esg = start("--workers", "1", which, "/dev/full", wait=False)
    esg.claim("can't be written", "STRAY")
    esg._port = eventually(lambda: listening_port(esg.pid), "it listens")
    with Load(esg.port, keep_alive=2, fresh=2) as load:
        load.wait_until_answered("fresh", 50)
        esg.signal(signal.SIGUSR2)  # the arbiter logs a line, too
        load.wait_until_answered("fresh", 50)
    complaints = re.findall("/dev/full: can't be written, lines are lost: .*No space left", esg.log)
    assert len(complaints) == 1


def test_output_whose_reader_has_gone_does_not_stop_requests(start: Start) -> None:
    reader, writer = os.pipe()
    esg = start("--workers", "1", stdout=writer)
    esg.claim("standard output: can't be written")
    os.close(writer)
    os.close(reader)
    with Load(esg.port, keep_alive=2, fresh=2) as load:
        load.wait_until_answered("fresh", 50)
    assert len(esg.logged("standard output: can't be written.*Broken pipe")) == 1


FLOOD = """
    import logging
    for number in range(1000):
        logging.getLogger("esg").warning("flood %s", "x" * 900)
"""


def test_output_that_nobody_reads_for_a_while_does_not_stop_requests(start: Start) -> None:
    """Both logs go into one full pipe: lines are lost and counted, everything else continues."""
    reader, writer = os.pipe()
    source = application(at_startup=FLOOD.strip())
    options = ("--workers", "2", "--error-logfile", "/dev/stdout")
    esg = start(*options, stdout=writer, wait=False, source=source)
    esg.claim("can't be written", "STRAY")
    os.close(writer)
    esg._port = eventually(lambda: listening_port(esg.pid), "it listens")
    eventually(lambda: len(esg.notes("startup")) == 2, "the pipe is full")
    with Load(esg.port, keep_alive=2, fresh=2) as load:
        load.wait_until_answered("fresh", 100)
        esg.signal(signal.SIGHUP)
        eventually(lambda: len(esg.notes("startup")) == 4, "the arbiter reloads")
        eventually(lambda: len(esg.notes("shutdown")) == 2, "and the old workers go")
        load.wait_until_answered("fresh", 100)
    pieces: list[bytes] = []

    def read() -> None:
        while piece := os.read(reader, 65536):
            pieces.append(piece)

    thread = threading.Thread(target=read)
    thread.start()
    eventually(lambda: b"lines; it can be written again" in b"".join(pieces), "the loss is logged")
    esg.stop()
    thread.join()
    os.close(reader)
    lines = b"".join(pieces).decode().splitlines()
    record = re.compile(r"\d{4}-\d\d-\d\d \S+ [A-Z]+ +(arbiter|worker=\d) gen=\d pid=\d+ .+")
    assert [line for line in lines if not (LINE.fullmatch(line) or record.fullmatch(line))] == []
    assert "stopped, exit status 0" in lines[-1]


def test_output_that_nobody_reads_does_not_delay_a_stop(start: Start) -> None:
    """Neither ESG's lines nor the application's output may delay it."""
    reader, writer = os.pipe()
    source = application(at_startup=f"{FLOOD.strip()}\n    print('x' * 5000)")
    options = ("--error-logfile", "/dev/stdout", "--graceful-timeout", "1")
    buffered = {"PYTHONUNBUFFERED": ""}
    esg = start(*options, stdout=writer, wait=False, source=source, extra=buffered)
    esg.claim("can't be written", "STRAY")
    os.close(writer)
    eventually(lambda: esg.notes("startup"), "the pipe is full")
    esg.stop()  # asserts that it exits by itself with 0
    assert len(esg.notes("shutdown")) == 1
    os.close(reader)


@pytest.mark.parametrize("redirection", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_requests_are_served_with_closed_standard_streams(start: Start, redirection: str) -> None:
    esg = start(
        "--error-logfile",
        "error.log",
        log="error.log",
        prefix=["sh", "-c", f'"$@" {redirection} & wait', "sh"],
        wait=False,
    )
    esg.wait_for_log("serving workers=1")
    with Load(esg.port, keep_alive=2, fresh=2) as load:
        load.wait_until_answered("fresh", 20)
    os.kill(esg.pid, signal.SIGTERM)


# -- reloads ---------------------------------------------------------------------------


def configure(esg_or_folder: Esg | Path, text: str) -> None:
    folder = esg_or_folder if isinstance(esg_or_folder, Path) else esg_or_folder.folder
    (folder / "esg.toml").write_text(text)


def test_a_reload_may_change_the_files_and_closes_the_old_ones(start: Start) -> None:
    esg = start(files={"esg.toml": 'access-logfile = "one.log"'}, listen=("--port", "0"))
    esg.whoami()
    for name in ("two.log", "one.log", "three.log"):
        configure(esg, f'access-logfile = "{name}"\naccess-logformat = "%(s)s {name}"')
        esg.reload()
        (worker,) = esg.wait_for_workers(1)
        assert open_logs(worker) == {name}
        eventually(lambda n=name: open_logs(esg.pid) == {n}, "the arbiter has closed the old one")
        esg.whoami()
        expected = f"200 {name}"
        eventually(lambda n=name, e=expected: e in lines_of(esg.folder, n), "a line in it")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('access-logfile = "no/log"', "access-logfile: can't open the log file"),
        ('error-logfile = "no/log"', "error-logfile: can't open the log file"),
        ('access-logformat = "%(nope)s"', "access-logformat: .*unknown atom '%.nope.s'"),
        ('log-config = "none.json"', "log-config: none.json: can't be read: No such file"),
        ('log-config = "bad.json"', "log-config: bad.json: "),
        ('log-config = "worse.json"', "log-config: worse.json: can't configure logging: .*version"),
    ],
)
def test_a_reload_with_a_bad_log_is_refused(start: Start, text: str, reason: str) -> None:
    files = {"esg.toml": "", "bad.json": "{", "worse.json": "{}"}
    esg = start(files=files, listen=("--port", "0"))
    esg.claim("reload refused")
    before = open_logs(esg.pid)
    configure(esg, text)
    esg.signal(signal.SIGHUP)
    esg.wait_for_log(f"reload refused, gen=1 goes on serving: .*{reason}")
    assert open_logs(esg.pid) == before
    assert esg.whoami()["generation"] == 1


def test_a_failed_reload_keeps_the_old_files(start: Start) -> None:
    esg = start(files={"esg.toml": 'access-logfile = "one.log"'}, listen=("--port", "0"))
    esg.claim("can't boot", "reload failed")
    configure(esg, 'access-logfile = "two.log"')
    esg.write("def app(:")
    esg.signal(signal.SIGHUP)
    esg.wait_for_log("reload failed, gen=1 goes on serving")
    eventually(lambda: open_logs(esg.pid) == {"one.log"}, "the new file is closed again")
    esg.whoami()
    eventually(lambda: lines_of(esg.folder, "one.log"), "a line in the old file")
    assert lines_of(esg.folder, "two.log") == []


# -- --log-config ------------------------------------------------------------------------

YAML = """
version: 1
disable_existing_loggers: false
formatters:
  plain: {format: "mine %(levelname)s %(name)s %(message)s"}
handlers:
  file: {class: logging.FileHandler, filename: mine.log, formatter: plain}
loggers:
  LOGGER: {handlers: [file], level: INFO, propagate: false}
"""

JSON = json.dumps(
    {
        "version": 1,
        "formatters": {"plain": {"format": "mine %(levelname)s %(name)s %(message)s"}},
        "handlers": {
            "file": {
                "class": "logging.FileHandler",
                "filename": "mine.log",
                "formatter": "plain",
            }
        },
        "loggers": {"LOGGER": {"handlers": ["file"], "level": "INFO"}},
    }
)

INI = """
[loggers]
keys=root,mine
[handlers]
keys=file
[formatters]
keys=plain
[logger_root]
handlers=
[logger_mine]
qualname=LOGGER
level=INFO
handlers=file
propagate=0
[handler_file]
class=FileHandler
formatter=plain
args=("mine.log",)
[formatter_plain]
format=mine %(levelname)s %(name)s %(message)s
"""


@pytest.mark.parametrize("logger", ["esg", "uvicorn"])
@pytest.mark.parametrize(
    ("name", "text"), [("log.yaml", YAML), ("log.json", JSON), ("log.ini", INI)]
)
def test_a_log_config_configures_both_logs(start: Start, name: str, text: str, logger: str) -> None:
    files = {name: text.replace("LOGGER", logger)}
    esg = start("--log-config", name, files=files, wait=False)
    log = esg.folder / "mine.log"
    eventually(lambda: log.exists() and "serving workers=1" in log.read_text(), "it serves")
    port = int(re.search(r"http://127\.0\.0\.1:(\d+)", log.read_text())[1])
    subprocess.run(
        ["curl", "-s", f"http://127.0.0.1:{port}/whoami"], capture_output=True, check=True
    )
    wanted = r'mine INFO esg\.access 127\.0\.0\.1:\d+ - "GET /whoami HTTP/1\.1" 200\n'
    eventually(lambda: re.search(wanted, log.read_text()), "a line for the request")
    log.rename(esg.folder / "mine.log.1")
    esg.signal(signal.SIGUSR1)
    processes = [esg.pid, *esg.workers()]
    eventually(lambda: all(open_logs(pid) == {"mine.log"} for pid in processes), "new files")
    esg.stop()
    assert "mine INFO esg arbiter gen=1" in log.read_text()
    assert (esg.folder / "stderr").read_text() == (esg.folder / "stdout").read_text() == ""


FORMATTER = """
import os
from esg.log.records import TextFormatter

SHOP = os.environ["SHOP"]

class Formatter(TextFormatter):
    def format(self, record):
        return f"{super().format(record)} [{SHOP} V1]"
"""

SHOP = json.dumps(
    {
        "version": 1,
        "formatters": {"shop": {"()": "shop.log.Formatter"}},
        "handlers": {"h": {"class": "logging.StreamHandler", "formatter": "shop"}},
        "loggers": {"esg": {"handlers": ["h"], "level": "INFO"}},
    }
)


@pytest.mark.parametrize("app_dir", ["", "src"])
@pytest.mark.parametrize("command", [(), ("-P",)], ids=["python -m esg", "esg"])
def test_a_log_config_may_use_a_formatter_of_the_application(
    start: Start, command: tuple[str, ...], app_dir: str
) -> None:
    """With -P the current folder isn't on Python's path, as for the `esg` command."""
    inside = f"{app_dir}/" if app_dir else ""
    files = {
        f"{inside}shop/__init__.py": "",
        f"{inside}shop/log.py": FORMATTER,
        f"{inside}example.py": application(),
        "log.json": SHOP,
        "vars": "SHOP=books\n",
    }
    options = ["--log-config", "log.json", "--env-file", "vars"]
    options += ["--app-dir", app_dir] if app_dir else []
    esg = start(*options, wrapper=command, files=files)
    assert all(record.message.endswith(" [books V1]") for record in esg.logged(""))
    assert esg.logged(r"worker=1 .* ready")
    (esg.folder / inside / "shop" / "log.py").write_text(FORMATTER.replace("V1", "second"))
    assert esg.reload().message.endswith(" [books second]")


def test_a_bad_log_config_prevents_startup_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "example.py").write_text(application())
    (tmp_path / "log.json").write_text('{"version": 1, "handlers": {"h": {"class": "No.Such"}}}')
    options = ["--port", "0", "--log-config", "log.json"]
    finished = run_to_its_end(tmp_path, "example:app", *options)
    (line,) = finished.log.splitlines()
    assert line.startswith("esg: error: --log-config: log.json: can't configure logging: ")
    assert finished.code == 2


# -- warnings --------------------------------------------------------------------------


def test_python_warnings_cannot_forge_records(start: Start) -> None:
    at_import = 'import warnings\nwarnings.warn("w\\nforged", UserWarning)\n'
    esg = start("--port", "0", source=application(at_import=at_import))
    warning = esg.wait_for_log("py.warnings")
    assert (warning.level, warning.worker) == ("WARNING", 1)
    esg.claim("py.warnings")
    assert "  forged" in (esg.folder / "stderr").read_text().splitlines()
    assert "forged" not in (esg.folder / "stderr").read_text().splitlines()


# -- JSON ------------------------------------------------------------------------------

TROUBLE = """
import logging, warnings

async def fail(exchange):
    warnings.warn("old\\nnews", UserWarning)
    logging.getLogger("shop").warning("forged\\n{}")
    asyncio.get_running_loop().call_soon(lambda: 1 / 0)
    raise ValueError("forged\\n{}")
"""


def with_route_fail(at_import: str) -> str:
    """The application with a route `/fail`, which these statements define."""
    return application(at_import=at_import).replace("(whoami,", "(fail, whoami,", 1)


def test_every_line_of_both_logs_is_json(start: Start) -> None:
    options = ["--workers", "2", "--log-format", "json"]
    esg = start(*options, source=with_route_fail(TROUBLE), wait=False)
    esg.claim("")  # no line is a text record

    def entries(name: str = "stderr") -> list[dict[str, object]]:
        return [json.loads(line) for line in (esg.folder / name).read_text().splitlines()]

    def entry(text: str) -> dict[str, object]:
        found = [each for each in entries() if text in json.dumps(each)]
        return found[0] if found else {}

    eventually(lambda: entry("serving workers=2"), "it serves")
    url = str(entry("listening on")["message"])
    connection = http.client.HTTPConnection("127.0.0.1", int(url.rpartition(":")[2]), timeout=15)
    connection.request("GET", "/fail")
    assert connection.getresponse().status == 500
    connection.close()
    connection.request("GET", "/segfault")
    with pytest.raises(ConnectionError):
        connection.getresponse()
    connection.close()
    death = eventually(lambda: entry("SIGSEGV"), "a worker died")
    assert "Segmentation fault" in str(death["exception"])
    assert {"time", "level", "worker", "generation", "pid"} <= death.keys()
    eventually(lambda: entry("division by zero"), "what the loop was told")
    assert entry("exception in the app")["exception"].endswith("ValueError: forged\n{}")
    assert {each["logger"] for each in entries()} == {"esg", "shop", "py.warnings"}
    (access,) = entries("stdout")
    assert (access["path"], access["status"], access["generation"]) == ("/fail", 500, 1)
    esg.stop()
    entries()


# -- lines -----------------------------------------------------------------------------

FORGERY = "x\\n2026-11-21 05:40:01.123 CRITICAL arbiter gen=1 pid=1 forged\\rmore"


def test_an_application_cannot_forge_a_record(start: Start) -> None:
    source = with_route_fail(f"""
import logging

async def fail(exchange):
    logging.getLogger("shop").error("{FORGERY}")
    raise ValueError("{FORGERY}")
""")
    esg = start(source=source)
    connection = esg.begin("/fail")
    assert connection.getresponse().status == 500
    connection.close()
    esg.claim("forged")
    levels = {record.level for record in esg.records}
    assert levels == {"INFO", "ERROR"}
    assert "\r" not in (esg.folder / "stderr").read_bytes().decode()


DISABLES = """
import logging.config

def configure():
    logging.config.dictConfig({"version": 1, "root": {"level": "INFO"}})

async def fail(exchange):
    raise ValueError("why")
"""


@pytest.mark.parametrize("where", ["import", "start-up"])
def test_an_application_that_configures_its_own_logging_leaves_esgs_alone(
    start: Start, where: str
) -> None:
    source = with_route_fail(DISABLES + ("configure()\n" if where == "import" else ""))
    if where == "start-up":
        source = source.replace("await asyncio.sleep(0)\n    note", "configure()\n    note")
        assert "    configure()\n" in source
    esg = start(source=source)
    esg.claim("exception in the application")
    connection = esg.begin("/fail")
    assert connection.getresponse().status == 500
    connection.close()
    esg.wait_for_log("exception in the application(?s:.)*ValueError: why")


def test_a_reload_that_fails_with_a_forged_message_is_one_record(start: Start) -> None:
    esg = start("--lifespan", "on")
    esg.claim("can't boot", "reload failed")
    esg.write(application(at_startup=f'raise RuntimeError("{FORGERY}")'))
    esg.signal(signal.SIGHUP)
    esg.wait_for_log("reload failed")
    assert "CRITICAL" not in {record.level for record in esg.records}
    assert "STRAY" not in {record.level for record in esg.records}


def test_lines_of_several_workers_do_not_mix_in_a_pipe(start: Start) -> None:
    reader, writer = os.pipe()
    pieces: list[bytes] = []

    def read() -> None:
        while piece := os.read(reader, 65536):
            pieces.append(piece)

    thread = threading.Thread(target=read)
    thread.start()
    esg = start("--workers", "3", stdout=writer)
    os.close(writer)
    with Load(esg.port, keep_alive=8, fresh=8) as load:
        load.wait_until_answered("fresh", 300)
    esg.stop()
    thread.join()
    os.close(reader)
    lines = b"".join(pieces).decode().splitlines()
    assert [line for line in lines if not LINE.fullmatch(line)] == []
    assert len(lines) == sum(load.answered.values())
