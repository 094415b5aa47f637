"""Folders behind symbolic links, and folders that are deleted."""

from __future__ import annotations

import dataclasses
import os
import sys

import pytest

from esg.errors import ConfigError
from esg.settings import folders
from esg.settings.build import Raw, build


@pytest.fixture(autouse=True)
def same_folder_and_path(monkeypatch, tmp_path):
    """Each test ends in the folder in which it began."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PWD", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture
def current(tmp_path):
    """A link to the first of two releases."""
    for name in ("1", "2"):
        (tmp_path / name).mkdir()
    link = tmp_path / "current"
    link.symlink_to("1")
    return link


def switch(link):
    link.unlink()
    link.symlink_to("2")


def config(start, **settings):
    raw = {name: Raw(value, f"--{name}") for name, value in {"app": "a:b", **settings}.items()}
    return build(raw, start=str(start))


def test_the_path_in_pwd_is_used(current, monkeypatch):
    monkeypatch.chdir(current)
    assert folders.current() == os.path.realpath(current)
    monkeypatch.setenv("PWD", str(current))
    assert folders.current() == str(current)


@pytest.mark.parametrize("value", ["", "2", "/nowhere", "current", "."])
def test_a_path_in_pwd_to_another_folder_is_not_used(current, monkeypatch, value, tmp_path):
    monkeypatch.setenv("PWD", str(tmp_path / value) if value == "2" else value)
    monkeypatch.chdir(current)
    assert folders.current() == str(tmp_path / "1")


def test_a_deleted_folder_is_an_error_that_says_so(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.setenv("PWD", str(gone))
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(ConfigError, match="working directory was deleted; change to a folder"):
        folders.current()
    gone.mkdir()  # another folder with the same name
    with pytest.raises(ConfigError, match="working directory was deleted"):
        folders.current()


def test_each_generation_follows_the_link_again(current, tmp_path):
    for number in ("1", "2"):
        entered = folders.enter(config(tmp_path, chdir="current", app_dir="code"))
        assert os.getcwd() == entered.real_folder == str(tmp_path / number)
        assert entered.folder == str(current)
        assert entered.app_link == str(current / "code")
        os.chdir(tmp_path)
        switch(current)


def test_a_folder_that_cannot_be_entered_is_named_with_where_it_came_from(tmp_path):
    with pytest.raises(ConfigError, match=r"^--chdir: can't change to 'missing': No such file"):
        folders.enter(config(tmp_path, chdir="missing"))
    with pytest.raises(ConfigError, match=r"started in, can't be entered: No such.*--chdir"):
        folders.enter(config(tmp_path / "missing"))


def test_a_missing_folder_causes_a_notice_if_the_application_is_elsewhere(tmp_path):
    entered = folders.enter(config(tmp_path / "missing", app_dir=str(tmp_path)))
    assert entered.real_folder == ""
    assert [text for _, text in entered.notices() if "is gone" in text]


def test_kept_returns_even_to_a_folder_that_was_deleted(current, tmp_path):
    os.chdir(tmp_path / "1")
    was = os.stat(".")
    before = os.listdir("/proc/self/fd")
    with folders.kept():
        os.chdir(tmp_path)
        (tmp_path / "1").rmdir()
    assert os.path.samestat(os.stat("."), was)
    assert os.listdir("/proc/self/fd") == before


def test_a_worker_stays_with_the_release_of_its_generation(current, tmp_path):
    entered = folders.enter(config(tmp_path, chdir="current"))
    switch(current)
    os.chdir("/")
    again, warnings = folders.enter_in_worker(entered)
    assert (again, warnings) == (entered, [])
    assert os.getcwd() == str(tmp_path / "1")


def test_a_worker_whose_release_was_deleted_uses_the_current_release(current, tmp_path):
    (tmp_path / "1/code").mkdir()
    (tmp_path / "2/code").mkdir()
    entered = folders.enter(config(tmp_path, chdir="current", app_dir="code"))
    entered = dataclasses.replace(entered, app_dir=str(tmp_path / "1/code"))  # like `prepare`
    sys.path.insert(0, str(tmp_path / "1"))
    switch(current)
    (tmp_path / "1/code").rmdir()
    (tmp_path / "1").rmdir()
    again, warnings = folders.enter_in_worker(entered, str(tmp_path / "1"))
    assert os.getcwd() == sys.path[0] == str(tmp_path / "2")
    assert again.app_dir == str(tmp_path / "2/code")
    assert [w for w in warnings if f"uses {tmp_path}/2, where {current} leads" in w]
    assert [w for w in warnings if f"uses {tmp_path}/2/code" in w]


def test_a_worker_whose_folder_was_deleted_says_so(current, tmp_path):
    entered = folders.enter(config(tmp_path, chdir="current"))
    current.unlink()
    os.chdir(tmp_path)
    (tmp_path / "1").rmdir()
    assert folders.enter_in_worker(entered)[1] == [f"the folder {tmp_path}/1 is gone"]


def test_the_target_of_a_link_is_a_notice_and_a_path_that_does_not_follow_it_a_warning(
    current, tmp_path
):
    entered = folders.enter(config(tmp_path, chdir="current", pid="esg.pid"))
    assert list(entered.notices()) == [
        ("info", f"--chdir: running in {tmp_path}/1, where {current} leads"),
        (
            "warning",
            "--pid: 'esg.pid' is in a folder behind a symbolic link, and isn't moved when the "
            "link is switched; give an absolute path",
        ),
    ]
    assert list(folders.enter(config(tmp_path, chdir=f"../{tmp_path.name}")).notices()) == []
    assert list(folders.enter(config(tmp_path)).notices()) == []
