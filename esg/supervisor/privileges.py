"""The user, groups and umask of workers: looked up by the arbiter, assumed in the forked child.

The arbiter keeps its own privileges, because it opens sockets, log files, keys and the pid file.
See credentials(7), setgroups(2), initgroups(3).
"""

from __future__ import annotations

import os
from typing import Literal

from esg.errors import BootError, ConfigError
from esg.frozen import frozen
from esg.net.accounts import find_group, find_user
from esg.settings.schema import Config

WHAT_SIGNALS_NEED = (
    "to signal workers of another user, root needs the capability CAP_KILL "
    "(docker: --cap-add KILL; compose: cap_add: [KILL]; systemd: CapabilityBoundingSet=)"
)

_CAP_KILL = 5  # <linux/capability.h>


@frozen
class Identity:
    """User, groups and umask that a worker assumes; None keeps what the arbiter has."""

    uid: int | None = None
    gid: int | None = None
    groups: tuple[int, ...] | None = None
    """All groups, including the supplementary ones."""
    umask: int | None = None

    def assume(self) -> None:
        """Change this process to this identity, for good. Raises BootError if that fails.

        The order matters: changing the user comes last, because it gives up root's privileges.
        """
        try:
            if self.groups is not None:
                os.setgroups(self.groups)
            if self.gid is not None:
                os.setresgid(self.gid, self.gid, self.gid)
            if self.uid is not None:
                os.setresuid(self.uid, self.uid, self.uid)
        except OSError as error:
            raise BootError(
                f"workers can't change to {self}: {error.strerror}; even root needs the "
                "capabilities CAP_SETUID and CAP_SETGID for that, see capabilities(7)"
            ) from None
        self._verify()
        if self.umask is not None:
            os.umask(self.umask)

    def _verify(self) -> None:
        """Check the result: the calls may have succeeded without effect, for example in a sandbox.

        Raises BootError if the process has another identity.
        """
        uids, gids, groups = os.getresuid(), os.getresgid(), os.getgroups()
        if (
            (self.uid is not None and set(uids) != {self.uid})
            or (self.gid is not None and set(gids) != {self.gid})
            or (self.groups is not None and set(groups) != set(self.groups))
        ):
            raise BootError(
                f"workers should run as {self}, but they run as {Identity(uids[1], gids[1])}"
            )

    def __str__(self) -> str:
        return " ".join(
            f"{name}={number}"
            for name, number in (("uid", self.uid), ("gid", self.gid))
            if number is not None
        )


def identity(config: Config) -> Identity:
    """The identity that the workers of a configuration assume. Raises ConfigError."""
    umask = int(config.umask, 8) if config.umask else None
    uid, gid, groups = _user(config)
    if config.group:
        gid = find_group(config.group, config.origin("group"))
        groups = tuple(dict.fromkeys((gid, *groups))) if uid is not None else (gid,)
    if uid is None and gid is None:
        return Identity(umask=umask)
    if os.geteuid() != 0:
        _check_unprivileged(config, uid, gid)
        return Identity(umask=umask)
    return Identity(uid, gid, groups, umask)


def notices(config: Config) -> list[tuple[Literal["warning"], str]]:
    """What the operator should know about the privileges of this process. Raises ConfigError.

    Root without CAP_KILL starts workers of another user, but can't signal them (kill(2)).
    """
    uid = identity(config).uid
    if uid is None or uid in (os.getuid(), os.geteuid()) or has_capability(_CAP_KILL):
        return []
    text = f"stuck workers can't be killed, nor can workers be stopped quickly: {WHAT_SIGNALS_NEED}"
    return [("warning", text)]


def has_capability(number: int) -> bool:
    """Whether this process has a capability; True if /proc can't be read."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            (mask,) = [line.split()[1] for line in status if line.startswith("CapEff:")]
    except (OSError, ValueError):
        return True
    return bool(int(mask, 16) >> number & 1)


def _user(config: Config) -> tuple[int | None, int | None, tuple[int, ...]]:
    """Uid, gid and groups of `--user` from the user database; all empty without `--user`."""
    if not config.user:
        return None, None, ()
    uid, entry = find_user(config.user, config.origin("user"))
    if entry is None and not config.group:
        raise ConfigError(
            f"{config.origin('user')}: the user database has no group for {config.user}; "
            "set one with --group"
        )
    if entry is None:
        return uid, None, ()
    group = find_group(config.group, config.origin("group")) if config.group else entry.pw_gid
    return uid, entry.pw_gid, tuple(os.getgrouplist(entry.pw_name, group))


def _check_unprivileged(config: Config, uid: int | None, gid: int | None) -> None:
    """Without root, `--user` and `--group` may only name the current user and groups."""
    if uid not in (None, os.geteuid()):
        raise ConfigError(
            f"{config.origin('user')}: only root can run workers as {config.user}; start esg as "
            "root, or start it as that user and leave this out"
        )
    if config.group and gid not in (os.getegid(), *os.getgroups()):
        raise ConfigError(
            f"{config.origin('group')}: only root can run workers as group {config.group}; start "
            "esg as root, or leave this out"
        )
