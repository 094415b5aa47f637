"""A server under slowhttptest, which holds connections by sending or reading almost nothing."""

from __future__ import annotations

import contextlib
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path

import pytest

from tests.support.runner import Esg
from tests.support.waiting import eventually

Start = Callable[..., Esg]

CONNECTIONS = 400
FILES = CONNECTIONS + 200
PAUSE = 0.05
"""Seconds between two requests of the clients that behave; without it, they would be an attack."""

LOOK = 0.3
"""Seconds between two counts of the connections; counting itself takes a lot of time."""

LASTS = 60
"""Seconds after which slowhttptest gives up by itself; the server should end the attack earlier."""

APP = """\
async def app(scope, receive, send):
    assert scope["type"] == "http"
    start = {"type": "http.response.start", "status": 200, "headers": []}
    if scope["path"] == "/large":
        await send(start)
        for _ in range(64):
            await send({"type": "http.response.body", "body": bytes(65536), "more_body": True})
    else:
        while (await receive()).get("more_body"):
            pass
        await send(start)
    await send({"type": "http.response.body", "body": b"ok"})
"""

pytestmark = pytest.mark.skipif(
    shutil.which("slowhttptest") is None, reason="slowhttptest is not installed"
)


@pytest.fixture(autouse=True)
def _many_files() -> Iterator[None]:
    """Raise the limit of open files, so that child processes can have all connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < FILES:
        pytest.skip(f"no more than {hard} open files are allowed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, FILES), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    ("mode", "limit"),
    [
        (["-H", "-i", "1"], "--timeout-request-header"),
        (["-B", "-i", "10", "-s", "100000", "-x", "3"], "--timeout-request-body"),
        (["-X", "-w", "10", "-y", "20", "-n", "1", "-z", "5"], "--timeout-send"),
    ],
    ids=["header", "body", "read"],
)
def test_slow_clients_are_cut_and_others_served(
    start: Start, tmp_path: Path, mode: list[str], limit: str
) -> None:
    esg = start("--workers", "2", "--lifespan", "off", limit, "3", source=APP)
    path = "/large" if mode[0] == "-X" else "/"
    output = tmp_path / "output"
    with output.open("wb") as file:
        url = f"http://127.0.0.1:{esg.port}{path}"
        size = ["-c", str(CONNECTIONS), "-r", str(CONNECTIONS), "-l", str(LASTS), "-p", "5"]
        attack = subprocess.Popen(
            ["slowhttptest", *mode, *size, "-u", url],
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stdout=file,
        )
    try:
        eventually(
            lambda: esg.connections() > CONNECTIONS / 10, "the attack has begun", LASTS, LOOK
        )
        with futures.ThreadPoolExecutor(1) as pool:
            cut = pool.submit(
                eventually, lambda: esg.connections() == 0, "no connection is left", LASTS, LOOK
            )
            served = serve_others(esg, cut)
        cut.result()
        assert served > 0
        # It ends when it has no connections left. A slow reader may still read what it received.
        if mode[0] != "-X":
            attack.wait()
            assert "No open connections left" in output.read_text()
    finally:
        attack.kill()
        attack.wait()


def serve_others(esg: Esg, attack: futures.Future[bool]) -> int:
    """Send requests until the attack is over, each on a new connection; returns their number."""
    served = 0
    while not futures.wait([attack], PAUSE).done:
        with contextlib.closing(esg.connect(timeout=LASTS)) as client:
            client.request("GET", "/", headers={"Connection": "close"})
            response = client.getresponse()
            assert (response.status, response.read()) == (200, b"ok")
        served += 1
    return served
