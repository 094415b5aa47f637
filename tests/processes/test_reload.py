"""A reload is a transaction: the new generation takes over, or nothing changes."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from tests.support.app import application
from tests.support.descriptors import open_files, wait_for_open_files
from tests.support.load import Load
from tests.support.runner import Esg
from tests.support.waiting import eventually

Start = Callable[..., Esg]

HANGS_IN_IMPORT = application("bad", at_import='note("import")\nwhile True: time.sleep(0.05)')
HANGS_IN_STARTUP = application("bad", at_startup='note("hangs"); await asyncio.sleep(3600)')

BAD_CODE = {
    "syntax error": ("def app(:\n", r"SyntaxError"),
    "missing module": (
        application("bad", at_import="import no_such_module"),
        r"ModuleNotFoundError: No module named 'no_such_module'",
    ),
    "no application": ("", r"module 'example' has no attribute 'app'"),
    "interrupt": (application("bad", at_import="raise KeyboardInterrupt"), r"KeyboardInterrupt"),
    "exit": (application("bad", at_import="raise SystemExit(0)"), r"SystemExit"),
    "sudden end": (application("bad", at_import="os._exit(0)"), r"died while booting"),
    "startup failed": (
        """
async def app(scope, receive, send):
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "the database is away"})
""",
        r"the database is away",
    ),
    "startup raised": (
        application("bad", at_startup="raise RuntimeError('no such bucket')"),
        r"RuntimeError: no such bucket",
    ),
    "startup hangs": (HANGS_IN_STARTUP, r"not ready after 3 s \(--timeout-boot\)"),
    "import hangs": (HANGS_IN_IMPORT, r"not ready after 3 s \(--timeout-boot\)"),
}

BAD_CONFIG = {
    "unknown key": ("port = 0\nwrokers = 2\n", r"unknown key 'wrokers'; did you mean workers\?"),
    "bad value": ("port = 0\nworkers = 'many'\n", r"esg\.toml: workers: invalid value 'many'"),
    "not TOML": ("port = \n", r"esg\.toml: not valid TOML"),
    "other backlog": (
        "port = 0\nbacklog = 1\n",
        r"backlog changed from 2048 to 1, which a reload can't do",
    ),
}


@pytest.mark.parametrize(("source", "reason"), BAD_CODE.values(), ids=BAD_CODE)
def test_code_that_cannot_boot_changes_nothing(start: Start, source: str, reason: str) -> None:
    limit = "3" if "--timeout-boot" in reason else "30"  # a busy machine may take its time
    esg = start("--workers", "2", "--lifespan", "on", "--timeout-boot", limit)
    esg.claim(r"can't boot: ", r"reload failed, gen=1 goes on serving", r"gen=2 .* stacks of")
    old = esg.workers()
    with Load(esg.port, keep_alive=1) as load:
        esg.write(source)
        esg.signal(signal.SIGHUP)
        esg.wait_for_log(reason)
        esg.wait_for_log("reload failed, gen=1 goes on serving: gen=2: ")
        eventually(lambda: esg.workers() == old, "the old workers alone are left")
        load.wait_until_answered("keep-alive", 20)
        assert load.connections["keep-alive"] == 1
        assert esg.whoami()["version"] == "one"

        esg.write(application("two"))
        esg.reload()
        load.wait_until_answered("keep-alive", 20)
    after = esg.whoami()
    assert (after["version"], after["generation"]) == ("two", 3)


@pytest.mark.parametrize(("text", "reason"), BAD_CONFIG.values(), ids=BAD_CONFIG)
def test_a_bad_config_file_changes_nothing(start: Start, text: str, reason: str) -> None:
    good = "port = 0\nworkers = 2\n"
    esg = start("-c", "esg.toml", listen=(), files={"esg.toml": good})
    esg.claim("reload refused, gen=1 goes on serving")
    old = esg.workers()
    with Load(esg.port, keep_alive=1) as load:
        esg.write(text, "esg.toml")
        esg.signal(signal.SIGHUP)
        record = esg.wait_for_log("reload refused, gen=1 goes on serving")
        assert esg.logged(reason) == [record]
        load.wait_until_answered("keep-alive", 20)
        assert load.connections["keep-alive"] == 1
        assert esg.workers() == old

        esg.write(good.replace("2", "3"), "esg.toml")
        assert esg.reload().event == "reloaded workers=3"
    assert esg.whoami()["generation"] == 2


def test_a_missing_config_file_changes_nothing(start: Start) -> None:
    esg = start("-c", "esg.toml", files={"esg.toml": ""})
    esg.claim("reload refused")
    old = esg.workers()
    (esg.folder / "esg.toml").unlink()
    esg.signal(signal.SIGHUP)
    esg.wait_for_log("reload refused, gen=1 goes on serving: .*no file 'esg.toml'")
    assert esg.whoami()["pid"] in old


@pytest.mark.parametrize("bad", ["", None, "workers = 2"], ids=["empty", "missing", "truncated"])
def test_a_settings_file_without_the_binds_changes_nothing(start: Start, bad: str | None) -> None:
    good = 'workers = 2\nbind = ["127.0.0.1:0"]\n'
    esg = start(listen=(), files={"esg.toml": good})
    old = esg.workers()
    esg.claim("reload refused")
    if bad is None:
        (esg.folder / "esg.toml").unlink()
    else:
        esg.write(bad, "esg.toml")
    esg.signal(signal.SIGHUP)
    esg.wait_for_log(r"reload refused, gen=1 goes on serving: .*restart")
    assert (esg.whoami()["pid"] in old, esg.workers()) == (True, old)
    esg.write(good.replace("2", "1", 1), "esg.toml")
    esg.reload()
    esg.wait_for_workers(1)


def test_a_missing_folder_changes_nothing(start: Start) -> None:
    esg = start("--workers", "2")
    esg.claim("reload refused", "lifespan ended with an exception")  # it writes there
    old = esg.workers()
    assert esg.whoami()["pid"] in old
    gone = esg.folder.rename(esg.folder.with_name("gone"))
    for file in gone.iterdir():
        file.rename(gone.parent / f"kept-{file.name}")
    gone.rmdir()
    try:
        esg.signal(signal.SIGHUP)
        log = gone.parent / "kept-stderr"
        refusal = f"reload refused, gen=1 goes on serving: the folder '{esg.folder}', which ESG was"
        eventually(lambda: refusal in log.read_text(), "the reload is refused")
        assert esg.whoami()["pid"] in old
    finally:
        gone.mkdir()
        for file in gone.parent.glob("kept-*"):
            file.rename(gone / file.name.removeprefix("kept-"))
        gone.rename(esg.folder)


def test_a_reload_loads_new_code_of_imported_modules_too(start: Start) -> None:
    source = application(at_import="from helper import VERSION")
    esg = start("--workers", "2", source=source, files={"helper.py": "VERSION = 'old'"})
    assert esg.whoami()["version"] == "old"
    esg.write("VERSION = 'new'", "helper.py")
    esg.reload()
    assert esg.whoami()["version"] == "new"


def test_every_connection_after_a_reload_reaches_the_new_code(start: Start) -> None:
    esg = start("--workers", "3")
    for number in range(6):
        esg.write(application(str(number)))
        esg.reload()
        assert {esg.whoami()["version"] for _ in range(10)} == {str(number)}


def test_a_new_generation_that_breaks_half_way_is_rolled_back(start: Start) -> None:
    esg = start("--workers", "3", "--lifespan", "on")
    esg.claim("can't boot: .*no second one", "reload failed, gen=1 goes on serving: gen=2: ")
    only_one = """
    if esg.current_worker().generation == 2:
        assert not os.path.exists("canary"), "no second one"
        open("canary", "w").close()
"""
    esg.write(application("bad", at_startup=only_one.strip()))
    with Load(esg.port, keep_alive=2, fresh=2, slow=1) as load:
        esg.signal(signal.SIGHUP)
        esg.wait_for_log("gen=2 .* ready")
        esg.wait_for_log("reload failed, gen=1 goes on serving: gen=2: ")
        esg.wait_for_log("gen=2 .* gone", count=2)
        esg.wait_for_workers(3)
        load.wait_until_answered("fresh", 20)
    assert {esg.whoami()["generation"] for _ in range(12)} == {1}


def test_a_second_hup_while_the_first_worker_boots_takes_the_newest_code(start: Start) -> None:
    esg = start("--workers", "2")
    with Load(esg.port, keep_alive=1):
        esg.write(HANGS_IN_IMPORT)
        esg.signal(signal.SIGHUP)
        eventually(lambda: esg.notes("import"), "generation 2 is being imported")
        esg.write(application("three"))
        esg.reload()
        esg.wait_for_workers(2)
    answers = [esg.whoami() for _ in range(8)]
    assert {(answer["version"], answer["generation"]) for answer in answers} == {("three", 3)}


def test_a_hup_during_a_roll_takes_effect_after_it(start: Start) -> None:
    esg = start("--workers", "3")
    with Load(esg.port, keep_alive=1, fresh=1):
        esg.write(application("two", at_startup="await asyncio.sleep(0.2)"))
        esg.signal(signal.SIGHUP)
        esg.wait_for_log("gen=2 .* ready")
        esg.write(application("three"))
        esg.signal(signal.SIGHUP)
        esg.wait_for_log("gen=3 .* reloaded workers=3")
        esg.wait_for_workers(3)
    answers = [esg.whoami() for _ in range(12)]
    assert {(answer["version"], answer["generation"]) for answer in answers} == {("three", 3)}


@pytest.mark.parametrize(
    ("source", "sign"),
    [(HANGS_IN_IMPORT, "import"), (HANGS_IN_STARTUP, "hangs")],
    ids=["import hangs", "startup hangs"],
)
def test_a_shutdown_in_the_middle_of_a_reload_does_not_wait_for_it(
    start: Start, source: str, sign: str
) -> None:
    esg = start("--workers", "2")
    esg.write(source)
    esg.signal(signal.SIGHUP)
    eventually(lambda: esg.notes(sign), "generation 2 hangs")
    esg.signal(signal.SIGTERM)
    assert esg.wait(timeout=3.0) == 0


def test_twenty_reloads_leak_neither_descriptors_nor_zombies(start: Start) -> None:
    esg = start("--workers", "2")
    esg.reload()
    esg.wait_for_workers(2)
    before = open_files(esg.arbiter)
    with Load(esg.port, keep_alive=1):
        for _ in range(20):
            esg.reload()
        esg.wait_for_workers(2)
    wait_for_open_files(esg.arbiter, before)
    assert esg.zombies() == []
    assert esg.whoami()["generation"] == 22


def test_workers_added_by_ttin_stay_through_a_reload(start: Start) -> None:
    esg = start("--workers", "1")
    esg.signal(signal.SIGTTIN)
    esg.wait_for_workers(2)
    assert esg.reload().event == "reloaded workers=2"
