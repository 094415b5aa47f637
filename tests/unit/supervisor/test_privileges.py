"""The users and groups of workers."""

from __future__ import annotations

import grp
import os
import pwd

import pytest

from esg.errors import BootError, ConfigError
from esg.net.accounts import find_owner
from esg.settings.build import Raw, build
from esg.supervisor import privileges
from esg.supervisor.privileges import Identity, has_capability, identity, notices

NOBODY = pwd.getpwnam("nobody")


def config(**values):
    raw = {name: Raw(value, f"--{name}") for name, value in values.items()}
    return build({"app": Raw("example:app", "APP")} | raw)


def made(**values):
    return identity(config(**values))


@pytest.fixture
def root(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)


@pytest.fixture
def unprivileged(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: NOBODY.pw_uid)
    monkeypatch.setattr(os, "getegid", lambda: NOBODY.pw_gid)
    monkeypatch.setattr(os, "getgroups", list)


def test_nothing_is_changed_by_default():
    assert made() == Identity()


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("user", ["nobody", str(NOBODY.pw_uid)])
def test_a_user_comes_with_its_groups(user):
    groups = tuple(os.getgrouplist("nobody", NOBODY.pw_gid))
    assert made(user=user) == Identity(NOBODY.pw_uid, NOBODY.pw_gid, groups)


@pytest.mark.usefixtures("root")
def test_a_group_replaces_the_users_own():
    found = made(user="nobody", group="daemon")
    assert found.gid == grp.getgrnam("daemon").gr_gid
    assert found.gid in found.groups
    assert 0 not in found.groups


@pytest.mark.usefixtures("root")
def test_a_group_alone_leaves_the_others_behind():
    daemon = grp.getgrnam("daemon").gr_gid
    assert made(group="daemon") == Identity(None, daemon, (daemon,))


@pytest.mark.usefixtures("root")
def test_a_user_id_without_an_entry_needs_a_group():
    with pytest.raises(ConfigError, match=r"--user: .*no group for 54321.*--group"):
        made(user="54321")
    assert made(user="54321", group="54321") == Identity(54321, 54321, (54321,))


@pytest.mark.parametrize("name", ["user", "group"])
def test_an_unknown_user_or_group_is_refused(name):
    with pytest.raises(ConfigError, match=f"--{name}: this machine has no {name} 'nosuch'"):
        made(**{name: "nosuch"})


@pytest.mark.parametrize("number", [2**32 - 1, 2**32, 99999999999, "9" * 5000])
@pytest.mark.parametrize("name", ["user", "group"])
def test_numbers_that_are_not_valid_ids_are_refused(name, number):
    """For setresuid(2), 2**32 - 1 is -1, which means "don't change it"."""
    with pytest.raises(ConfigError, match=f"--{name}: this machine has no {name} '{number}'"):
        made(**{name: str(number)})
    owner = f"{number}:0" if name == "user" else f"0:{number}"
    with pytest.raises(ConfigError, match=f"--uds-owner: this machine has no {name}"):
        find_owner(owner, "--uds-owner")


def test_the_highest_valid_id_is_accepted():
    assert find_owner(f"{2**32 - 2}:{2**32 - 2}", "--uds-owner") == (2**32 - 2, 2**32 - 2)


@pytest.fixture
def calls(monkeypatch):
    """Replaces the system calls: they succeed, and change nothing."""
    called = []
    for name in ("setgroups", "setresgid", "setresuid", "umask"):
        monkeypatch.setattr(os, name, lambda *values, name=name: called.append((name, *values)))
    return called


def test_a_worker_whose_identity_is_wrong_does_not_boot(calls):
    with pytest.raises(
        BootError, match=r"workers should run as uid=54321 gid=54321, but they run as uid="
    ):
        Identity(54321, 54321, (54321,), 0o22).assume()
    assert calls == [
        ("setgroups", (54321,)),
        ("setresgid", *[54321] * 3),
        ("setresuid", *[54321] * 3),
    ]


def test_nothing_to_change_needs_no_privileges(calls):
    Identity(umask=0o27).assume()
    assert calls == [("umask", 0o27)]


@pytest.mark.usefixtures("unprivileged")
def test_without_privileges_only_the_current_identity_is_accepted():
    assert made(user="nobody", group=str(NOBODY.pw_gid), umask="027") == Identity(umask=0o027)
    with pytest.raises(ConfigError, match="only root can run workers as root"):
        made(user="root")
    with pytest.raises(ConfigError, match="only root can run workers as group root"):
        made(group="root")


@pytest.mark.parametrize(("text", "mask"), [("22", 0o22), ("0o077", 0o77), (0o27, 0o27), ("0", 0)])
def test_masks_are_octal(text, mask):
    assert made(umask=text) == Identity(umask=mask)


@pytest.mark.parametrize("text", ["8", "-1", "1000", "x", True])
def test_invalid_masks_are_refused(text):
    with pytest.raises(ConfigError, match=r"--umask: .*in octal, from 000 to 777"):
        made(umask=text)


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize(
    ("user", "may_kill", "warned"),
    [("nobody", False, True), ("nobody", True, False), ("root", False, False), ("", False, False)],
)
def test_root_without_cap_kill_is_warned_if_workers_run_as_another_user(
    monkeypatch, user, may_kill, warned
):
    monkeypatch.setattr(os, "getuid", lambda: 0)
    monkeypatch.setattr(privileges, "has_capability", lambda number: may_kill)
    found = notices(config(user=user) if user else config())
    assert ["CAP_KILL" in text for _, text in found] == [True] * warned


def test_capabilities_are_those_that_the_kernel_reports():
    with open("/proc/self/status") as status:
        (mask,) = [int(line.split()[1], 16) for line in status if line.startswith("CapEff")]
    assert [has_capability(number) for number in range(8)] == [
        bool(mask & 1 << number) for number in range(8)
    ]
