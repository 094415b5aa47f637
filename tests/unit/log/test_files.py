"""Log files: opening, writing, reopening, and errors."""

from __future__ import annotations

import contextlib
import errno
import os
import pty
import socket
import stat
import subprocess
import sys
import termios
import threading

import pytest

from esg.errors import LogFileError
from esg.log.files import (
    LogFile,
    LogFiles,
    _stream_fds,
    _streams,
    complain_on_stderr,
    open_log,
    probe,
)


@pytest.fixture
def files():
    files = LogFiles()
    yield files
    files.keep(())


@pytest.fixture
def file(files, tmp_path):
    return files.open(str(tmp_path / "log"), 1, "test")


def test_a_file_is_appended_to_and_not_inherited_by_programs(file, tmp_path, files):
    (tmp_path / "log").write_bytes(b"before\n")
    file.write(b"a line\n")
    assert (tmp_path / "log").read_bytes() == b"before\na line\n"
    assert not os.get_inheritable(file.fd)


def test_others_cannot_read_a_new_file(files, tmp_path):
    before = os.umask(0)
    try:
        files.open(str(tmp_path / "new"), 1, "test")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640


@pytest.mark.parametrize(
    ("path", "stream", "fd"),
    [("-", 1, 1), ("-", 2, 2), ("/dev/stdout", 2, 1), ("/dev/stderr", 1, 2)],
)
def test_standard_streams_can_be_named(files, path, stream, fd):
    assert files.open(path, stream, "test").fd == fd


def test_one_path_is_one_file(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert files.open("log", 1, "test") is files.open(str(tmp_path / "log"), 2, "test")


@pytest.mark.parametrize("path", ["no/such/folder/log", "."])
def test_the_error_of_opening_a_file_names_its_origin(files, tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LogFileError, match=r"^--access-logfile: can't open .*(No such|Is a dir)"):
        files.open(path, 1, "--access-logfile")


def test_a_named_pipe_that_nobody_reads_is_refused_and_not_waited_for(files, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(LogFileError):
        files.open(str(tmp_path / "pipe"), 1, "test")


@pytest.mark.parametrize("path", ["missing/log", ".", "file/log", "x" * 300])
def test_a_probe_fails_as_opening_does(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(OSError) as real:  # noqa: PT011 - the test compares them
        open_log(path)
    with pytest.raises(OSError) as probed:  # noqa: PT011
        probe(path)
    assert probed.value.errno == real.value.errno


def test_a_probe_needs_a_folder_that_can_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode, **how: path != str(tmp_path))
    with pytest.raises(PermissionError):
        probe(str(tmp_path / "log"))


def test_a_probe_leaves_files_alone(tmp_path):
    (tmp_path / "old").write_text("lines\n")
    (tmp_path / "link").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    before = sorted(tmp_path.iterdir())
    for name in ("old", "new", "link", "pipe"):
        fd = probe(str(tmp_path / name))
        os.write(fd, b"lost")
        os.close(fd)
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "old").read_text() == "lines\n"


def test_reopening_keeps_the_descriptor(file, files, tmp_path):
    fd = file.fd
    file.write(b"old\n")
    (tmp_path / "log").rename(tmp_path / "log.1")
    assert files.reopen() == ([file], [])
    file.write(b"new\n")
    assert file.fd == fd
    assert not os.get_inheritable(fd)
    assert (tmp_path / "log.1").read_bytes() == b"old\n"
    assert (tmp_path / "log").read_bytes() == b"new\n"


def test_a_failed_reopen_keeps_the_old_file(files, tmp_path):
    (tmp_path / "gone").mkdir()
    lost = files.open(str(tmp_path / "gone" / "log"), 1, "test")
    kept = files.open(str(tmp_path / "log"), 1, "test")
    (tmp_path / "gone").rename(tmp_path / "moved")
    reopened, (error,) = files.reopen()
    assert reopened == [kept]
    assert "gone/log" in error
    lost.write(b"still here\n")
    assert (tmp_path / "moved" / "log").read_bytes() == b"still here\n"


def test_files_opened_elsewhere_are_taken_over(file, files, tmp_path):
    before = set(os.listdir("/proc/self/fd"))
    new, stray = (open_log(str(tmp_path / name)) for name in ("new", "stray"))
    files.take_over([str(tmp_path / "log"), "/unknown"], [new, stray])
    file.write(b"a line\n")
    assert (tmp_path / "new").read_bytes() == b"a line\n"
    assert set(os.listdir("/proc/self/fd")) == before


def test_files_that_are_not_wanted_are_closed(files, tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    kept = files.open(str(tmp_path / "a"), 1, "test")
    files.open(str(tmp_path / "b"), 1, "test")
    files.keep([kept])
    kept.write(b"a line\n")
    assert len(os.listdir("/proc/self/fd")) == before + 1


def complaints_of(file):
    complaints = []
    file.complain = complaints.append
    return complaints


def test_a_full_disk_is_reported_once_a_minute(monkeypatch):
    file = LogFile(open_log("/dev/full"), "/dev/full")
    complaints = complaints_of(file)
    for now in (1000.0, 1001.0, 1059.0, 1061.0):
        monkeypatch.setattr("esg.log.files.time.monotonic", lambda now=now: now)
        file.write(b"a line\n")
    assert len(complaints) == 2
    assert "/dev/full: can't be written" in complaints[0]
    assert "No space left" in complaints[0]
    os.close(file.fd)


def test_a_line_that_was_cut_does_not_run_into_the_next(file, tmp_path, monkeypatch):
    complaints = complaints_of(file)
    write, room = os.write, 5

    def cut(fd, data):
        nonlocal room
        if not room:
            raise OSError(28, "No space left on device")
        data, room = data[:room], 0
        return write(fd, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", cut)
        file.write(b"first line\n")
        file.write(b"second line\n")
    file.write(b"third line\n")
    assert (tmp_path / "log").read_bytes() == b"first\nthird line\n"
    assert len(complaints) == 1


@pytest.mark.parametrize("closed", ["0", "1", "2", "1 2", "0 1 2"])
def test_the_next_file_does_not_become_a_closed_standard_stream(closed, tmp_path):
    code = (
        "import os, socket, sys; from esg.log.files import secure_standard_streams as s; s();"
        "assert socket.socket().fileno() > 2; print('x'); print('y', file=sys.stderr);"
        "sys.stdin.read(); open('fine', 'w').close()"
    )
    redirections = " ".join(f"{fd}>&-" for fd in closed.split())
    command = ["sh", "-c", f'exec "$0" -c "$1" {redirections}', sys.executable, code]
    subprocess.run(command, cwd=tmp_path, stdin=subprocess.DEVNULL, check=True, timeout=20)
    assert (tmp_path / "fine").exists()


# -- streams that nobody reads -----------------------------------------------------------


class Blocked:
    """A full standard stream in its usual, blocking mode."""

    def __init__(self, kind):
        if kind == "terminal":
            self.reader, self.writer = pty.openpty()
            attributes = termios.tcgetattr(self.writer)
            attributes[1] &= ~termios.OPOST
            termios.tcsetattr(self.writer, termios.TCSANOW, attributes)
        elif kind == "socket":
            ends = socket.socketpair()
            self.reader, self.writer = (end.detach() for end in ends)
        else:
            self.reader, self.writer = os.pipe()
        os.set_blocking(self.reader, False)

    def read(self):
        """All data that can be read now."""
        pieces = []
        while True:
            try:
                pieces.append(os.read(self.reader, 1 << 16))
            except BlockingIOError:
                return b"".join(pieces)

    def close(self):
        os.close(self.reader)
        os.close(self.writer)


def denied(path, *args, real=os.open):
    if str(path).startswith("/proc/self/fd/"):
        raise PermissionError(13, "Permission denied", path)
    return real(path, *args)


def unsupported(*args):
    raise OSError(errno.EOPNOTSUPP, "Operation not supported")


KINDS = ["pipe", "pipe of another user", "that in an old kernel", "socket", "terminal"]


@pytest.fixture(params=KINDS)
def blocked(request, monkeypatch):
    kind = request.param
    if kind in ("pipe of another user", "that in an old kernel"):
        monkeypatch.setattr(os, "open", denied)
    if kind == "that in an old kernel":
        monkeypatch.setattr(os, "pwritev", unsupported)
    _streams.clear()
    blocked = Blocked(kind)
    yield blocked
    blocked.close()
    for fd in _stream_fds.values():
        os.close(fd)
    _stream_fds.clear()
    _streams.clear()


def test_a_stream_that_is_not_read_does_not_block(blocked):
    """Lines are kept, then lost and counted; lines that arrive are whole and in order."""
    file = LogFile(blocked.writer)
    complaints, reports = complaints_of(file), []
    file.report = reports.append
    written = 5000
    for number in range(written):
        file.write(b"%04d %s\n" % (number, b"x" * (number % 400)))
    assert os.get_blocking(blocked.writer), "O_NONBLOCK is shared with others, and left alone"
    assert file.has_backlog
    (complaint,) = complaints
    assert complaint.endswith("can't be written, lines are lost: nobody reads it")
    output = b""
    while file.has_backlog:
        output += blocked.read()
        file.flush()
    file.write(b"9999 later\n")
    lines = (output + blocked.read()).decode().splitlines()
    numbers = [int(line[:4]) for line in lines]
    assert numbers == sorted(numbers)
    assert lines[-1] == "9999 later"
    assert all(line == f"{line[:4]} {'x' * (int(line[:4]) % 400)}" for line in lines[:-1])
    (report,) = reports
    lost = written - len(numbers) + 1
    assert lost > 0
    assert report.endswith(f": lost {lost} lines; it can be written again")


@pytest.mark.parametrize("blocked", [kind for kind in KINDS if kind != "terminal"], indirect=True)
def test_a_long_record_of_several_processes_is_not_torn(blocked):
    """In a pipe with room it is one write; in a full pipe it waits for room.

    A stopped terminal accepts any part of a line, and doesn't report how much room it has.
    """
    file, other = LogFile(blocked.writer), LogFile(blocked.writer)
    record = b"first line\n" + b"".join(b"  %03d %s\n" % (n, b"y" * 90) for n in range(200))
    file.write(record)
    file.write(record)
    output = b""
    for _ in range(5):
        file.write(record)
        other.write(b"other\n")
        other.flush()
    while file.has_backlog or other.has_backlog:
        output += blocked.read()
        file.flush()
        other.flush()
    lines = (output + blocked.read()).splitlines(keepends=True)
    assert lines.count(b"first line\n") == 7
    assert lines.count(b"other\n") == 5
    assert len(lines) == 7 * 201 + 5


def test_a_flush_waits_for_a_reader_within_its_limit(blocked):
    file = LogFile(blocked.writer)
    for _ in range(400):
        file.write(b"x" * 999 + b"\n")
    file.flush(0.02)
    assert file.has_backlog
    reading = threading.Thread(target=lambda: read_until(lambda: not file.has_backlog))

    def read_until(done):
        while not done():
            blocked.read()

    reading.start()
    file.flush(10)
    assert not file.has_backlog
    reading.join()


def test_a_child_does_not_write_what_its_parent_keeps(blocked):
    file = LogFile(blocked.writer)
    for _ in range(400):
        file.write(b"parent \n" * 125)
    assert file.has_backlog
    pid = os.fork()
    if not pid:
        file.write(b"child\n")
        os._exit(min(len(file._backlog), 100))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) <= 1, "its own line, if that"


def test_a_complaint_on_standard_error_does_not_block(blocked, monkeypatch):
    saved = os.dup(2)
    os.dup2(blocked.writer, 2)
    try:
        for _ in range(10_000):
            complain_on_stderr("x" * 100)
        complain_on_stderr("x" * 10_000)
    finally:
        os.dup2(saved, 2)
        os.close(saved)
    assert blocked.read().startswith(b"esg: xxx")


def test_a_named_pipe_does_not_wait(tmp_path, files):
    os.mkfifo(tmp_path / "log")
    reader = os.open(tmp_path / "log", os.O_RDONLY | os.O_NONBLOCK)
    file = files.open(str(tmp_path / "log"), 1, "test")
    while not file.has_backlog:
        file.write(b"x" * 999 + b"\n")
    assert files.has_backlog()
    os.read(reader, 1 << 20)
    files.flush()
    assert not files.has_backlog()
    os.close(reader)


def test_a_disk_that_is_full_for_a_while_costs_lines_that_are_counted(file, tmp_path, monkeypatch):
    complaints_of(file)
    reports = []
    file.report = reports.append

    def full(fd, data):
        raise OSError(28, "No space left on device")

    file.write(b"before\n")
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        file.write(b"one\n")
        file.write(b"two\nthree\n")
    assert not file.has_backlog
    file.write(b"after\n")
    assert (tmp_path / "log").read_bytes() == b"before\nafter\n"
    assert reports == [f"{tmp_path}/log: lost 3 lines; it can be written again"]


# -- root and links ----------------------------------------------------------------------

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

NOBODY = 65534


@pytest.fixture
def secret(tmp_path):
    """A file that only root may write to, and that users must not make root write to."""
    folder = tmp_path / "etc"
    folder.mkdir(mode=0o755)
    file = folder / "crontab"
    file.write_bytes(b"before\n")
    file.chmod(0o600)
    return file


@pytest.fixture
def theirs(tmp_path):
    """A folder that belongs to the workers' user."""
    folder = tmp_path / "theirs"
    folder.mkdir(mode=0o755)
    os.chown(folder, NOBODY, NOBODY)
    return folder


def linked(link, target, owner=NOBODY):
    link.symlink_to(target)
    os.chown(link, owner, owner, follow_symlinks=False)


@as_root
@pytest.mark.parametrize("opener", [open_log, probe])
@pytest.mark.parametrize("case", ["file", "relative", "folder", "nothing yet", "behind another"])
def test_root_does_not_follow_links_of_other_users(theirs, secret, tmp_path, case, opener):
    path = theirs / "log"
    if case == "file":
        linked(path, secret)
    elif case == "relative":
        linked(path, "../etc/crontab")
    elif case == "folder":
        linked(theirs / "sub", secret.parent)
        path = theirs / "sub" / "crontab"
    elif case == "nothing yet":
        linked(path, secret.parent / "new")
    else:
        linked(theirs / "two", secret)
        linked(path, "two", owner=0)
    with pytest.raises(OSError, match="is a symbolic link of user 65534, and as root, ESG"):
        opener(str(path))
    assert secret.read_bytes() == b"before\n"
    assert os.listdir(secret.parent) == ["crontab"]


@as_root
def test_a_link_that_appears_before_a_rotation_keeps_the_old_file(theirs, secret, files):
    file = files.open(str(theirs / "log"), 1, "test")
    file.write(b"one\n")
    (theirs / "log").rename(theirs / "log.1")
    linked(theirs / "log", secret)
    _, (error,) = files.reopen()
    assert "is a symbolic link of user 65534" in error
    file.write(b"two\n")
    assert (theirs / "log.1").read_bytes() == b"one\ntwo\n"
    assert secret.read_bytes() == b"before\n"


@as_root
def test_a_hard_link_in_a_folder_of_others_is_refused(theirs, secret):
    (theirs / "log").hardlink_to(secret)
    with pytest.raises(OSError, match=r"several names \(hard links\)"):
        open_log(str(theirs / "log"))


@as_root
@pytest.mark.parametrize("path", ["log", "current/log", "up", "new", "hard", "./a/../log"])
def test_links_of_root_are_followed(tmp_path, path):
    folder = tmp_path / "releases" / "1"
    folder.mkdir(parents=True)
    (tmp_path / "a").mkdir()
    (tmp_path / "current").symlink_to("releases/1")
    (tmp_path / "log").symlink_to(folder / "log")
    (tmp_path / "up").symlink_to("a/../current/log")
    (tmp_path / "new").symlink_to("current/log")
    (folder / "hardly").touch(0o600)
    (tmp_path / "hard").hardlink_to(folder / "hardly")
    fd = open_log(os.path.join(tmp_path, path))
    os.write(fd, b"line\n")
    os.close(fd)
    written = folder / ("hardly" if path == "hard" else "log")
    assert written.read_bytes() == b"line\n"


@as_root
def test_links_in_a_circle_are_an_error(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        open_log(str(tmp_path / "a"))


@as_root
def test_a_link_to_a_standard_stream_is_followed(tmp_path):
    """As in container images: `ln -s /dev/stdout /var/log/access.log`."""
    reader, writer = os.pipe()
    saved = os.dup(1)
    os.dup2(writer, 1)
    try:
        (tmp_path / "log").symlink_to("/dev/stdout")
        os.close(open_log(str(tmp_path / "log")))
        os.close(open_log("/dev/null"))
        os.close(open_log(f"/proc/self/fd/{writer}"))
    finally:
        os.dup2(saved, 1)
        for fd in (saved, reader, writer):
            os.close(fd)


@as_root
def test_opening_leaves_no_descriptor(theirs, secret, tmp_path):
    linked(theirs / "log", secret)
    before = os.listdir("/proc/self/fd")
    for path in (theirs / "log", tmp_path / "new", tmp_path / "no" / "folder", tmp_path):
        with contextlib.suppress(OSError):
            os.close(open_log(str(path)))
    assert os.listdir("/proc/self/fd") == before


def test_other_users_follow_all_links(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    (tmp_path / "log").symlink_to("target")
    os.close(open_log(str(tmp_path / "log")))
    assert (tmp_path / "target").exists()
