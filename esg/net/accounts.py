"""Users and groups of this machine by name or number. See getpwnam(3), getgrnam(3)."""

from __future__ import annotations

import grp
import pwd

from esg.errors import ConfigError

HIGHEST_ID = 2**32 - 2
"""The next number is (uid_t) -1, which means "don't change it" in setresuid(2) and chown(2)."""


def find_user(text: str, origin: str) -> tuple[int, pwd.struct_passwd | None]:
    """The uid of a user, and its entry; a number needs no entry. Raises ConfigError."""
    try:
        if _is_number(text):
            uid = _number(text)
            return uid, _entry_of(uid)
        entry = pwd.getpwnam(text)
    except (KeyError, ValueError):
        raise ConfigError(f"{origin}: this machine has no user {text!r}") from None
    return entry.pw_uid, entry


def find_group(text: str, origin: str) -> int:
    """The gid of a group. Raises ConfigError."""
    try:
        if _is_number(text):
            return _number(text)
        return grp.getgrnam(text).gr_gid
    except (KeyError, ValueError):
        raise ConfigError(f"{origin}: this machine has no group {text!r}") from None


def find_owner(text: str, origin: str) -> tuple[int, int]:
    """Uid and gid of `USER`, `USER:GROUP` or `:GROUP`, as in chown(1); -1 for a missing part.

    `USER` doesn't imply the user's group. Raises ConfigError.
    """
    user, _, group = text.partition(":")
    uid = find_user(user, origin)[0] if user else -1
    return uid, find_group(group, origin) if group else -1


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _number(text: str) -> int:
    """A uid or gid. Raises ValueError for a number that can't be one."""
    number = int(text)
    if number > HIGHEST_ID:
        raise ValueError
    return number


def _entry_of(uid: int) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwuid(uid)
    except KeyError:
        return None
