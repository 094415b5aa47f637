"""The parts of the parent's server that a forked child must not have."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest
import uvloop

from esg import forks

LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]


def in_child(work):
    """The exit status of a child that runs `work`: its result, or 99 after an exception."""
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            status = work()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.fixture
def release():
    """Registers functions for children to call, and removes them at the end of the test."""
    keep = []
    yield lambda function: keep.append(forks.release_in_children(function))
    for forget in keep:
        forget()


def test_children_only_call_releases_that_are_still_registered(release) -> None:
    released = []
    release(lambda: released.append("kept"))
    forks.release_in_children(lambda: released.append("forgotten"))()
    assert in_child(lambda: released == ["kept"]) == 1
    assert released == []


def test_a_release_that_raises_does_not_stop_the_others(release, capfd) -> None:
    released = []
    release(lambda: 1 / 0)
    release(lambda: released.append(1))
    assert in_child(lambda: len(released)) == 1
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_signals_are_as_they_were_after_a_fork_in_parent_and_child(release) -> None:
    release(lambda: None)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    try:
        wanted = before | {signal.SIGUSR2}
        assert in_child(lambda: signal.pthread_sigmask(signal.SIG_BLOCK, []) == wanted) == 1
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == wanted
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@pytest.mark.parametrize("new_loop", LOOPS)
def test_a_child_has_default_actions_except_for_the_applications_own_handlers(
    release, new_loop
) -> None:
    release(forks.default_signals)

    def own(signum, frame):
        os._exit(42)

    async def main():
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            loop.add_signal_handler(signum, lambda: None)
        before = signal.signal(signal.SIGUSR2, own)
        try:
            return (
                in_child(lambda: os.kill(os.getpid(), signal.SIGTERM)),
                in_child(lambda: os.kill(os.getpid(), signal.SIGHUP)),
                in_child(lambda: signal.getsignal(signal.SIGINT) is signal.default_int_handler),
                in_child(lambda: os.kill(os.getpid(), signal.SIGUSR2)),
                in_child(lambda: signal.set_wakeup_fd(-1) == -1),
            )
        finally:
            signal.signal(signal.SIGUSR2, before)
            for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                loop.remove_signal_handler(signum)  # uvloop doesn't remove them when it is closed

    with asyncio.Runner(loop_factory=new_loop) as runner:
        codes = runner.run(main())
    assert codes == (-signal.SIGTERM, -signal.SIGHUP, 1, 42, 1)


def test_accepted_connections_are_found_by_their_listener_and_others_left_alone(tmp_path) -> None:
    path = str(tmp_path / "socket")
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("", 0)) as other:
        unix = socket.socket(socket.AF_UNIX)
        unix.bind(path)
        unix.listen()
        pairs = []
        for listener in (one, other):
            client = socket.create_connection(("127.0.0.1", listener.getsockname()[1]))
            pairs.append((client, listener.accept()[0]))
        client = socket.socket(socket.AF_UNIX)
        client.connect(path)
        pairs.append((client, unix.accept()[0]))
        accepted = [accepted for _, accepted in pairs]
        for listener, expected in zip((one, other, unix), accepted, strict=True):
            assert forks.connections_to([listener.getsockname()]) == [expected.fileno()]
        for sock in (unix, *(sock for pair in pairs for sock in pair)):
            sock.close()


def test_abstract_names_are_compared_with_what_the_kernel_says() -> None:
    assert forks._is_at(b"\0name", "\0name")
    assert not forks._is_at("", "")
    assert not forks._is_at(("127.0.0.1", 80), "/run/socket")


def test_blank_descriptors_stay_taken_and_lead_nowhere() -> None:
    reading, writing = os.pipe()
    forks.blank([writing, -1])
    assert os.read(reading, 1) == b""
    assert os.write(writing, b"lost") == 4
    assert not os.get_inheritable(writing)
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("new_loop", LOOPS)
def test_a_child_that_comes_back_to_the_loop_ends_before_any_other_callback(new_loop, capfd):
    async def main():
        loop = asyncio.get_running_loop()
        release = forks.release_in_children(lambda: forks.abandon(loop, threading.get_ident()))
        loop.call_soon(lambda: os.write(1, f"callback in {os.getpid()}".encode()))
        pid = os.fork()  # the child continues this coroutine
        release()
        await asyncio.sleep(0)
        if pid == 0:
            os._exit(99)
        await asyncio.sleep(0.01)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    with asyncio.Runner(loop_factory=new_loop) as runner:
        assert runner.run(main()) == 0
    assert capfd.readouterr().out.split() == ["callback", "in", str(os.getpid())]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, 0),
        (SystemExit(), 0),
        (SystemExit(3), 3),
        (SystemExit("no"), 1),
        (KeyboardInterrupt(), -signal.SIGINT),
        (ValueError("bad"), 1),
    ],
)
def test_a_child_ends_as_python_would(error, status, capfd) -> None:
    def come_back():
        logging.basicConfig(force=True)  # to standard error
        forks.end(error)

    assert in_child(come_back) == status
    written = capfd.readouterr().err
    assert ("no\n" in written) == (status == 1 and isinstance(error, SystemExit))
    assert ("ValueError: bad" in written) == isinstance(error, ValueError)


def test_exit_handlers_of_the_parent_do_not_run_in_a_child_that_is_ended() -> None:
    code = (
        "import atexit, os\nfrom esg import forks\natexit.register(print, 'exit handler')\n"
        "pid = os.fork()\nif pid == 0: forks.end(SystemExit(0))\nos.waitpid(pid, 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "exit handler\n"
