"""Which changes of files count, and which bytecode is deleted."""

from __future__ import annotations

import importlib.util
import itertools
import os
import py_compile
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import uvicorn
from uvicorn.supervisors.watchfilesreload import FileFilter

from esg.errors import ConfigError
from esg.settings.schema import Config
from esg.supervisor.watcher import watch as watcher
from esg.supervisor.watcher.watch import (
    Glances,
    Selection,
    Watch,
    check,
    forget_bytecode,
    shown,
    stamp,
)
from tests.support.waiting import eventually

NAMES = [
    "app.py", "app.pyc", "app.pyo", "app.txt", ".app.py", "~app.py", "app.py~", ".app.py.swp",
    ".env", "page.html", "pkg/app.py", "pkg/.hidden.py", ".hidden/app.py", "migrations/0001.py",
    "migrations/deep/0002.py", "test_app.py", "logs/app.log",
]  # fmt: skip

PATTERNS = [
    (), ("*.html",), ("*.py",), (".env",), (".*",), ("app.*",), ("test_*",), ("~*", "*.txt"),
    ("app.py",), (".hidden.py",), ("pkg/*.py",), ("*.log", "*.html"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    for name in NAMES:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text("")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def made(**settings):
    return Config(app="example:app", reload=True, **settings)


def selected(folder, **settings):
    selection = Selection(made(**settings))
    return {name for name in NAMES if selection.has(folder / name)}


@pytest.mark.parametrize(("include", "exclude"), [*itertools.product(PATTERNS, PATTERNS)])
def test_patterns_have_the_same_meaning_as_in_uvicorn(folder, include, exclude):
    theirs = FileFilter(
        uvicorn.Config(
            "example:app",
            log_config=None,
            reload=True,
            reload_includes=list(include),
            reload_excludes=list(exclude),
        )
    )
    theirs.includes.sort(key=lambda pattern: "*" in pattern)  # it was a set, which has no order
    assert selected(folder, reload_include=include, reload_exclude=exclude) == {
        name for name in NAMES if theirs(folder / name)
    }


def test_by_default_python_files_count_except_hidden_ones(folder):
    assert selected(folder) == {
        "app.py", "pkg/app.py", ".hidden/app.py", "migrations/0001.py", "migrations/deep/0002.py",
        "test_app.py",
    }  # fmt: skip


@pytest.mark.parametrize("absolute", [False, True])
def test_a_folder_can_be_left_out(folder, absolute):
    name = str(folder / "migrations") if absolute else "migrations"
    assert not {n for n in selected(folder, reload_exclude=(name,)) if n.startswith("migrations")}


def folders(**settings):
    return [str(f.relative_to(Path.cwd())) for f in Selection(made(**settings)).folders]


def test_by_default_the_current_folder_is_watched():
    assert folders() == ["."]


@pytest.mark.parametrize(
    ("settings", "watched"),
    [
        ({"reload_dir": ("pkg", "logs")}, ["logs", "pkg"]),
        ({"reload_dir": ("migrations", "migrations/deep")}, ["migrations"]),
        ({"reload_include": ("pkg",)}, ["pkg"]),
        ({"reload_include": ("mig*",)}, ["migrations"]),
        ({"reload_dir": ("pkg", "logs"), "reload_exclude": ("logs",)}, ["pkg"]),
        ({"reload_include": ("*.html",)}, ["."]),
        ({"app_dir": "pkg"}, ["."]),
    ],
)
def test_folders_can_be_named(settings, watched):
    assert folders(**settings) == watched


def test_the_folder_of_the_application_is_watched_too(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("elsewhere")
    assert set(Selection(made(app_dir=str(other))).folders) == {folder, other}


def test_a_folder_behind_a_link_is_watched_where_it_is(folder):
    (folder / "link").symlink_to("pkg")
    assert folders(reload_dir=("link",)) == ["pkg"]


# -- links -----------------------------------------------------------------------------


def test_the_target_of_a_link_is_checked(folder, tmp_path_factory):
    target = tmp_path_factory.mktemp("elsewhere") / "target.py"
    target.write_text("1")
    link = folder / "pkg" / "link.py"
    link.symlink_to(target)
    glances = Glances([])
    glances.look_for_links(Selection(made()))
    assert glances.changed() == set()
    target.write_text("22")
    assert glances.changed() == {link}
    assert glances.changed() == set()
    replacement = target.with_name("new")
    replacement.write_text("33")
    os.utime(replacement, ns=(target.stat().st_atime_ns, target.stat().st_mtime_ns))
    replacement.replace(target)
    assert glances.changed() == {link}
    target.unlink()
    assert glances.changed() == {link}


def test_settings_files_are_checked_whether_or_not_they_exist(folder):
    file = folder / "esg.toml"
    glances = Glances([str(file)])
    glances.look_for_links(Selection(made()))
    file.write_text("workers = 2")
    assert glances.changed() == {file}


# -- watching --------------------------------------------------------------------------


class Enough(Exception):
    """Ends a watch, which would run forever."""


class Post:
    """Receives the watcher's messages, and takes the next step after each of them."""

    def __init__(self, *steps):
        self.steps = list(steps)
        self.told = []

    def send(self, message):
        self.told.append((type(message).__name__, message.what))
        if not self.steps:
            raise Enough
        self.steps.pop(0)()


def told(*steps, since=None, **settings):
    """The messages of a watcher that starts now, up to the one after the last step."""
    pytest.importorskip("watchfiles")
    post = Post(*steps)
    with pytest.raises(Enough):
        Watch(made(reload_delay=0.01, **settings), post, since or latest_change() + 1).run()
    return post.told


def latest_change():
    return max(path.stat().st_ctime_ns for path in Path.cwd().rglob("*"))


def nothing():
    pass


def test_a_file_saved_before_the_watching_begins_is_reported(folder):
    since = latest_change() + 1
    eventually(lambda: stamp() > since, "the files are older than what is to come")
    (folder / "app.py").write_text("new")
    (folder / "app.txt").write_text("doesn't count")
    assert told(nothing, since=since) == [("Watching", str(folder)), ("Changed", "app.py")]


def test_a_settings_file_saved_before_the_watching_begins_is_reported(folder, tmp_path_factory):
    settings = tmp_path_factory.mktemp("elsewhere") / "esg.toml"
    since = latest_change() + 1
    eventually(lambda: stamp() > since, "the files are older than what is to come")
    settings.write_text("")
    assert told(nothing, since=since, files=(str(settings),))[1:] == [("Changed", str(settings))]


def test_files_that_did_not_change_are_not_reported(folder):
    os.utime(folder / "app.py", (2e9, 2e9))  # unpacked from an archive with times in the future
    save = (folder / "pkg" / "app.py").write_text
    assert told(lambda: save("new")) == [("Watching", str(folder)), ("Changed", "pkg/app.py")]


def test_a_file_saved_while_its_folder_is_moved_away_is_reported(folder, monkeypatch):
    def edit_and_bring_back(seconds):
        if (folder / "away").exists():
            (folder / "away" / "app.py").write_text("new")
            (folder / "away").rename(folder / "pkg")

    monkeypatch.setattr(watcher.time, "sleep", edit_and_bring_back)
    messages = told(lambda: (folder / "pkg").rename(folder / "away"), reload_dir=("pkg",))
    assert messages == [("Watching", str(folder / "pkg")), ("Changed", "pkg/app.py")]


def test_a_folder_to_watch_may_be_a_link_that_is_switched(folder):
    def switch():
        (folder / "new").symlink_to("migrations")
        (folder / "new").replace(folder / "current")

    (folder / "current").symlink_to("pkg")
    save = (folder / "migrations" / "0001.py").write_text
    assert told(switch, nothing, lambda: save("new"), reload_dir=("current",)) == [
        ("Watching", str(folder / "pkg")),
        ("Changed", "current"),
        ("Watching", str(folder / "migrations")),
        ("Changed", "migrations/0001.py"),
    ]


def test_changes_next_to_a_name_that_is_not_utf_8_are_reported(folder):
    def save():
        with open(os.fsencode(folder) + b"/r\xe9sum\xe9.log", "a") as file:
            file.write("x")
        (folder / "app.py").write_text("new")

    assert told(save, save, save) == [("Watching", str(folder)), *[("Changed", "app.py")] * 3]


def test_a_startup_folder_that_is_made_again_is_still_watched(tmp_path_factory, monkeypatch):
    current = tmp_path_factory.mktemp("current")
    (current / "app.py").write_text("")
    monkeypatch.chdir(current)

    def make_again():
        shutil.rmtree(current)
        current.mkdir()

    def save():
        (current / "app.py").write_text("new")

    folder = ("Watching", str(current))
    told_of = told(make_again, save, nothing, folder=str(current))
    assert told_of[:3] == [folder, ("Changed", str(current)), folder]
    assert told_of[3] == ("Changed", "app.py")
    assert Path.cwd() == current


def test_a_link_that_is_switched_is_a_change(folder):
    link = folder / "current"
    link.symlink_to("pkg")

    def switch():
        link.unlink()
        link.symlink_to(".")

    assert told(switch, folder=str(link))[1] == ("Changed", "current")


# -- bytecode --------------------------------------------------------------------------


def value_of(module):
    command = [sys.executable, "-c", f"import {module}; print({module}.VALUE)"]
    return int(subprocess.run(command, capture_output=True, check=True).stdout)


def test_after_two_saves_within_a_second_the_second_one_is_imported(folder):
    file = folder / "module.py"
    file.write_text("VALUE = 1")
    os.utime(file, (1e9, 1e9))
    py_compile.compile(str(file))
    file.write_text("VALUE = 2")
    os.utime(file, (1e9, 1e9))
    assert value_of("module") == 1, "this is the trouble"
    forget_bytecode([file])
    assert value_of("module") == 2


def test_a_cache_that_python_would_not_use_is_left_alone(folder):
    file = folder / "module.py"
    file.write_text("VALUE = 1")
    cached = Path(py_compile.compile(str(file)))
    os.utime(file, (1e9, 1e9))
    forget_bytecode([file])
    assert cached.exists()


def test_bytecode_that_is_checked_by_its_hash_is_left_alone(folder):
    file = folder / "module.py"
    file.write_text("VALUE = 1")
    mode = py_compile.PycInvalidationMode.CHECKED_HASH
    cached = Path(py_compile.compile(str(file), invalidation_mode=mode))
    forget_bytecode([file])
    assert cached.exists()


def test_a_file_without_bytecode_does_no_harm(folder):
    forget_bytecode([folder / "page.html", folder / "app.py", folder / "gone.py", folder])


# -- messages --------------------------------------------------------------------------


def test_few_names_are_shown_relative_to_the_current_folder(folder):
    assert shown([folder / "b.py", folder / "pkg" / "a.py"]) == "b.py, pkg/a.py"
    many = [folder / f"{number}.py" for number in range(9)]
    assert shown(many) == "0.py, 1.py, 2.py and 6 more"
    assert shown([Path("/elsewhere/a.py")]) == "/elsewhere/a.py"


def test_without_watchfiles_the_error_says_what_to_do(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"^--reload: .* try: pip install watchfiles$"):
        check(Config(app="example:app", reload=True, origins={"reload": "--reload"}))


def test_a_folder_that_is_not_there_is_named(folder):
    with pytest.raises(ConfigError, match=r"^ESG_RELOAD_DIR: there is no folder 'app\.py'"):
        check(made(reload_dir=("app.py",), origins={"reload_dir": "ESG_RELOAD_DIR"}))


def test_an_application_that_is_an_object_cannot_be_reloaded():
    with pytest.raises(ConfigError, match=r"given as an object.*MODULE:ATTRIBUTE"):
        check(made(app_is_object=True))


def test_nothing_is_checked_without_reload():
    check(Config(app="example:app", reload_dir=("no such folder",)))


def test_watchfiles_stays_out_of_the_arbiter():
    assert watcher.__name__ in sys.modules
    command = "import sys, esg.cli; print('watchfiles' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", command], capture_output=True, check=True).stdout
    assert out.strip() == b"False"


@pytest.mark.parametrize(("engine", "polls"), [("auto", None), ("poll", True), ("inotify", False)])
def test_the_engine_decides_whether_files_are_polled(monkeypatch, folder, engine, polls):
    watchfiles = pytest.importorskip("watchfiles")
    seen = []

    def watch(*folders, force_polling, **_):
        seen.append(force_polling)
        yield from ()

    monkeypatch.setattr(watchfiles, "watch", watch)
    watcher.Watch(made(reload_engine=engine), None, 0)._report_changes()
    assert seen == [polls]
