"""TLS at startup, through reloads and at the end, with common clients."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.app import application
from tests.support.certificates import Authority, encrypted, serial_number
from tests.support.load import Load
from tests.support.runner import Esg, is_lost, run_to_its_end
from tests.support.waiting import DEADLINE, eventually

IS_ROOT = os.geteuid() == 0
Start = Callable[..., Esg]

MIX = {"keep_alive": 4, "fresh": 4, "slow": 2, "downloads": 1}


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def options(authority: Authority) -> list[str]:
    """The options that turn TLS on."""
    certificate, key = authority.issue()
    return ["--ssl-certfile", certificate, "--ssl-keyfile", key]


@pytest.fixture
def serving(start: Start, authority: Authority, options: list[str]) -> Esg:
    esg = start("--workers", "2", *options)
    esg.tls = authority.client_context()
    return esg


def served_serial(esg: Esg) -> int:
    """The serial number of the certificate on a new connection."""
    with esg_socket(esg) as connection:
        certificate = connection.getpeercert(binary_form=True)
        assert certificate is not None
        return serial_number(certificate)


def esg_socket(esg: Esg) -> ssl.SSLSocket:
    assert esg.tls is not None
    sock = socket.create_connection(("127.0.0.1", esg.port), DEADLINE)
    return esg.tls.wrap_socket(sock, server_hostname="127.0.0.1")


# -- startup ---------------------------------------------------------------------------------


def test_the_log_says_https(serving: Esg) -> None:
    assert serving.logged(rf"listening on https://127\.0\.0\.1:{serving.port}$")
    assert serving.whoami()["version"] == "one"


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda ca, folder: ["--ssl-certfile", "none.pem"], "--ssl-certfile: 'none.pem' can't be"),
        (lambda ca, folder: ["--ssl-keyfile", ca.issue()[1]], "give --ssl-certfile"),
        (
            lambda ca, folder: ["--certfile", ca.issue()[0], "--keyfile", ca.issue("other")[1]],
            "doesn't belong to the certificate",
        ),
        (
            lambda ca, folder: [
                *("--ssl-certfile", ca.issue()[0]),
                *("--ssl-keyfile", encrypted(ca.issue()[1], "sesame")),
            ],
            "has a password; give --ssl-keyfile-password",
        ),
        (lambda ca, folder: ["--ssl-version", "1.1"], "expected 1.2 or 1.3"),
        (lambda ca, folder: ["--forwarded-allow-ips", "127.0.0.1,10.0.0.256"], "'10.0.0.256'"),
    ],
)
def test_settings_that_cannot_work_prevent_startup(
    authority: Authority,
    tmp_path: Path,
    make: Callable[[Authority, Path], list[str]],
    told: str,
) -> None:
    """With one line, and without asking for a password on the terminal."""
    (tmp_path / "example.py").write_text(application())
    finished = run_to_its_end(tmp_path, "example:app", "--port", "0", *make(authority, tmp_path))
    assert finished.code == 2
    assert finished.log.count("\n") == 1
    assert told in finished.log
    assert finished.output == ""


@pytest.mark.skipif(IS_ROOT and not shutil.which("setpriv"), reason="root, and there's no setpriv")
def test_an_unreadable_key_prevents_startup(
    authority: Authority, options: list[str], tmp_path: Path
) -> None:
    os.chmod(options[-1], 0)
    without = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search") if IS_ROOT else ()
    (tmp_path / "example.py").write_text(application())
    finished = run_to_its_end(tmp_path, "example:app", "--port", "0", *options, prefix=without)
    assert finished.code == 2
    assert "Permission denied" in finished.log


# -- reloads ---------------------------------------------------------------------------------


def test_only_the_arbiter_keeps_the_password_from_the_environment(
    start: Start, authority: Authority
) -> None:
    certificate, key = authority.issue()
    esg = start(
        *("--ssl-certfile", certificate, "--ssl-keyfile", encrypted(key, "sesame")),
        source=application(at_import='assert "ESG_SSL_KEYFILE_PASSWORD" not in os.environ'),
        extra={"ESG_SSL_KEYFILE_PASSWORD": "sesame"},
    )
    esg.reload()  # the arbiter still has it
    for pid in (esg.pid, *esg.wait_for_workers(1)):
        assert b"sesame" not in Path(f"/proc/{pid}/environ").read_bytes()


def test_a_reload_serves_the_renewed_certificate(serving: Esg, authority: Authority) -> None:
    before = served_serial(serving)
    certificate, _ = authority.issue()
    renewed = serial_number(certificate)
    assert served_serial(serving) == before != renewed
    serving.reload()
    eventually(lambda: served_serial(serving) == renewed, "the new certificate is shown")


def test_a_bad_certificate_leaves_the_old_one_serving(
    serving: Esg, authority: Authority, options: list[str]
) -> None:
    serving.claim("reload refused")
    before, workers = served_serial(serving), serving.workers()
    Path(options[1]).write_text("no certificate")
    serving.signal(signal.SIGHUP)
    record = serving.wait_for_log("--ssl-certfile: no certificate in")
    assert record.level == "ERROR"
    assert serving.workers() == workers
    assert served_serial(serving) == before
    # A worker that is replaced now has the certificate that was read, not the file.
    os.kill(workers[0], signal.SIGTERM)
    eventually(lambda: workers[0] not in serving.workers(), "the worker is replaced")
    serving.wait_for_workers(2)
    for _ in range(10):
        assert served_serial(serving) == before


def test_reloads_lose_nothing(serving: Esg) -> None:
    with Load(serving.port, tls=serving.tls, **MIX) as load:
        for _ in range(2):
            serving.reload()
        load.wait_until_answered("download", 1)
        load.wait_until_answered("fresh", 50)


def test_a_shutdown_loses_nothing(serving: Esg) -> None:
    with Load(serving.port, tls=serving.tls, **MIX) as load:
        load.wait_until_answered("slow", 1)
        load.shutdown_begins()
        serving.signal(signal.SIGTERM)
        serving.wait()


def test_a_session_is_resumed_by_another_worker(serving: Esg) -> None:
    assert serving.tls is not None
    workers, session = set(), None
    for _ in range(50):
        sock = socket.create_connection(("127.0.0.1", serving.port), DEADLINE)
        with serving.tls.wrap_socket(sock, server_hostname="127.0.0.1", session=session) as client:
            client.sendall(b"GET /whoami HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            text = b"".join(iter(lambda c=client: c.recv(65536), b"")).decode()
            assert client.session_reused is (session is not None)
            session = client.session
            workers.add(text.partition('"pid": ')[2])
        if len(workers) == 2:
            return
    pytest.fail("only one worker was met")


# -- handshakes ------------------------------------------------------------------------------


def test_a_stalled_handshake_is_cut_off(
    start: Start, authority: Authority, options: list[str]
) -> None:
    esg = start(*options, "--ssl-handshake-timeout", "0.2")
    esg.tls = authority.client_context()
    with socket.create_connection(("127.0.0.1", esg.port), DEADLINE) as stalled:
        stalled.sendall(b"\x16\x03\x01")
        assert stalled.recv(100) == b""
    assert esg.whoami()["version"] == "one"


def test_clients_without_a_certificate_are_refused(
    start: Start, authority: Authority, options: list[str]
) -> None:
    esg = start(*options, "--ssl-ca-certs", authority.file, "--ssl-cert-reqs", "2")
    esg.tls = authority.client_context(authority.issue("client"))
    assert esg.whoami()["version"] == "one"
    esg.tls = authority.client_context()
    assert is_lost(esg.begin("/whoami"))


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl")
@pytest.mark.parametrize(
    ("flags", "spoken"), [(["-tls1_1"], False), (["-tls1_2"], True), (["-tls1_3"], True)]
)
def test_openssl_connects_with_tls_1_2_and_1_3(
    serving: Esg, flags: list[str], spoken: bool
) -> None:
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{serving.port}", *flags]
    request = b"GET /whoami HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    done = subprocess.run(
        [*command, "-ign_eof", "-cipher", "DEFAULT:@SECLEVEL=0"],
        input=request,
        capture_output=True,
        timeout=DEADLINE,
    )
    assert (b"HTTP/1.1 200 OK" in done.stdout) is spoken
    assert (b"Compression: NONE" in done.stdout) or not spoken


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
@pytest.mark.parametrize("flags", [[], ["--http1.0"], ["-H", "Connection: close"]])
def test_curl_gets_responses(serving: Esg, authority: Authority, flags: list[str]) -> None:
    url = f"https://127.0.0.1:{serving.port}/whoami"
    command = ["curl", "--silent", "--show-error", "--cacert", authority.file, *flags, url, url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count('"version": "one"') == 2


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
def test_curl_speaks_the_proxy_protocol(
    start: Start, authority: Authority, options: list[str]
) -> None:
    esg = start(*options, "--proxy-protocol")
    url = f"https://127.0.0.1:{esg.port}/whoami"
    command = ["curl", "--silent", "--show-error", "--cacert", authority.file, url]
    command.append("--haproxy-protocol")
    client = "127.0.0.1:"
    if "--haproxy-clientip" in run_curl("curl", "--help", "all"):  # from curl 8.2 on
        command += ["--haproxy-clientip", "203.0.113.7"]
        client = "203.0.113.7:"
    assert '"version": "one"' in run_curl(*command)
    log = esg.folder / "stdout"
    eventually(lambda: client in log.read_text(), "the client is in the access log")


def run_curl(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout
