"""Explains errors that mean that there are too many open files."""

from __future__ import annotations

import errno
import resource


def explained(error: OSError) -> str:
    """The text of an error; for too many open files, with the limit and advice on how to raise
    it."""
    if error.errno == errno.EMFILE:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return (
            f"too many open files: this process may have {limit}; raise LimitNOFILE= in the "
            "systemd unit, or ulimit -n in the shell, or accept fewer (--limit-connections)"
        )
    if error.errno == errno.ENFILE:
        return "too many open files in the whole system; raise the sysctl fs.file-max"
    return str(error)
