"""The message about too many open files."""

from __future__ import annotations

import errno
import resource

from esg.openfiles import explained


def test_the_error_about_too_many_files_in_the_process_names_its_limit():
    text = explained(OSError(errno.EMFILE, "Too many open files"))
    assert f"this process may have {resource.getrlimit(resource.RLIMIT_NOFILE)[0]};" in text
    assert "LimitNOFILE=" in text
    assert "ulimit -n" in text


def test_the_error_about_too_many_files_in_the_system_names_the_sysctl():
    text = explained(OSError(errno.ENFILE, "Too many open files in system"))
    assert "fs.file-max" in text


def test_any_other_error_is_unchanged():
    error = OSError(errno.EPERM, "Operation not permitted")
    assert explained(error) == str(error)
