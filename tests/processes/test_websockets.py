"""WebSockets of real clients, through reloads and shutdowns of real servers."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import time
import urllib.request

import aiohttp
import pytest
import websockets
import websockets.sync.client

from tests.support.runner import CHECKOUT, kill_session, run_to_its_end
from tests.support.waiting import eventually

APP = """
import asyncio, json, os
import esg

def note(what):
    with open("notes", "a") as notes:
        notes.write(f"{what} {os.getpid()}\\n")

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                note("shutdown")
                return
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"hello"})
        return
    await receive()
    await send({"type": "websocket.accept"})
    worker = esg.current_worker()
    who = {"generation": worker.generation, "pid": os.getpid()}
    await send({"type": "websocket.send", "text": json.dumps(who)})
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            break
        await send({"type": "websocket.send", "text": message["text"]})
    await asyncio.sleep(float(scope["query_string"] or 0))
    note(f"left_{message['code']}")
"""


class Clients:
    """Idle clients of the `websockets` library that reconnect when the server asks for it."""

    def __init__(self, port: int) -> None:
        self.url = f"ws://127.0.0.1:{port}/"
        self.codes: collections.Counter[int] = collections.Counter()
        self.generations: collections.Counter[int] = collections.Counter()
        self.failures: list[str] = []
        self.turned_away = 0
        self.times: list[float] = []
        """The times at which the clients were asked to reconnect."""
        self._connecting = asyncio.Semaphore(50)

    async def run(self) -> None:
        """One client: it connects, and reconnects each time the server asks for it."""
        code = 1012
        while code == 1012:
            try:
                async with self._connecting:
                    socket = await websockets.connect(
                        self.url, compression=None, ping_interval=None, open_timeout=60
                    )
                self.generations[json.loads(await socket.recv())["generation"]] += 1
                await socket.wait_closed()
            except websockets.InvalidStatus as error:
                if error.response.status_code != 503:
                    self.failures.append(repr(error))
                    return
                self.turned_away += 1  # from a worker that has just begun to drain
                continue
            except (OSError, websockets.WebSocketException) as error:
                self.failures.append(repr(error))
                return
            code = socket.close_code
            self.codes[code] += 1
            if code == 1012:
                self.times.append(time.monotonic())


@pytest.fixture
def many_files():
    """Enough descriptors for 2,000 clients, also in processes that are started meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 10_000), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def reached(condition, what):
    try:
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"not within a minute: {what}") from None


WINDOW = 8
"""The grace period in seconds; WebSockets are closed in its first half."""


def test_two_thousand_clients_reconnect_during_a_reload(start, many_files):
    count = 2000
    server = start(
        "--workers", "2", "--graceful-timeout", str(WINDOW), "--no-access-log", source=APP
    )

    async def run():
        clients = Clients(server.port)
        running = [asyncio.ensure_future(clients.run()) for _ in range(count)]
        await reached(lambda: clients.generations[1] == count or clients.failures, "open")
        assert clients.failures == []
        server.signal(signal.SIGHUP)
        await reached(lambda: clients.generations[2] == count or clients.failures, "back")
        assert clients.failures == []
        # A quick client may reconnect to a worker that is about to be replaced.
        told = clients.codes[1012]
        assert count <= told < count * 1.1
        assert clients.turned_away < count * 0.1
        assert clients.codes == {1012: told}
        assert clients.generations == {1: told, 2: count}
        spread = clients.times[-1] - clients.times[0]
        assert spread > WINDOW / 4
        server.signal(signal.SIGTERM)
        await asyncio.gather(*running)
        assert clients.failures == []
        assert clients.codes == {1012: told, 1001: count}
        return told

    told = asyncio.run(run())
    server.wait()
    assert len(server.notes("left_1012")) == told
    assert len(server.notes("left_1001")) == count


@pytest.mark.parametrize("library", ["websockets", "wsproto"])
def test_a_client_of_aiohttp_is_served(start, library):
    server = start("--ws", library, source=APP)

    async def run():
        async with aiohttp.ClientSession() as session:
            for generation, signum, code in ((1, signal.SIGHUP, 1012), (2, signal.SIGTERM, 1001)):
                async with session.ws_connect(f"{server.url}/", compress=15) as socket:
                    assert json.loads(await socket.receive_str())["generation"] == generation
                    for text in ("h\u00e9llo", "x" * 100_000, ""):
                        await socket.send_str(text)
                        assert await socket.receive_str() == text
                    await socket.ping()
                    server.signal(signum)
                    message = await socket.receive(timeout=15)
                    assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, code)
                if signum == signal.SIGHUP:
                    await asyncio.to_thread(server.wait_for_log, " reloaded workers=")

    asyncio.run(run())


def connect(server, path="/", **options):
    """A client that reads only when the test asks it to."""
    return websockets.sync.client.connect(f"ws://127.0.0.1:{server.port}{path}", **options)


def test_an_application_has_time_to_finish(start):
    server = start("--graceful-timeout", "10", source=APP)
    with connect(server, "/?0.5") as socket:
        socket.recv()
        server.signal(signal.SIGTERM)
        with pytest.raises(websockets.ConnectionClosedOK):
            socket.recv()
        assert server.notes("left_1001") == []
        server.wait()
        assert len(server.notes("left_1001")) == 1


def test_an_application_that_outlasts_the_grace_period_is_cancelled(start):
    server = start("--graceful-timeout", "1", source=APP)
    with connect(server, "/?60") as socket:
        socket.recv()
        server.signal(signal.SIGTERM)
        server.wait()
    assert server.logged("cancels 1 request: the grace period is over")
    assert server.notes("left_1001") == []
    assert len(server.notes("shutdown")) == 1


def test_a_quick_shutdown_closes_with_1001(start):
    server = start("--graceful-timeout", "60", source=APP)
    with connect(server) as socket:
        socket.recv()
        server.signal(signal.SIGQUIT)
        with pytest.raises(websockets.ConnectionClosedOK) as caught:
            socket.recv()
        assert caught.value.rcvd.code == 1001
        server.wait()


def test_a_recycled_worker_closes_with_1012(start):
    server = start("--max-requests", "2", source=APP)
    with connect(server) as first, connect(server) as second:
        for socket in (first, second):
            assert json.loads(socket.recv())["generation"] == 1
        for socket in (first, second):
            with pytest.raises(websockets.ConnectionClosedError) as caught:
                socket.recv()
            assert caught.value.rcvd.code == 1012


@pytest.mark.parametrize("module", ["websockets", "wsproto"])
def test_a_missing_library_is_reported_in_one_line(tmp_path, module):
    (tmp_path / "example.py").write_text(APP)
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u\n"
        "find = u.find_spec\n"
        f"u.find_spec = lambda name, *a: None if name == {module!r} else find(name, *a)\n"
    )
    command = ["env", f"PYTHONPATH={tmp_path}:{CHECKOUT}"]
    done = run_to_its_end(tmp_path, "example:app", "--port", "0", "--ws", module, prefix=command)
    assert done.code == 2
    told = f"--ws: {module} is not installed; try: pip install {module}, or --ws none"
    assert done.log == f"esg: error: {told}\n"


# -- a browser ---------------------------------------------------------------------------

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture
def browse(tmp_path):
    """Opens a page in a headless browser; returns a function that evaluates an expression in it."""
    with contextlib.ExitStack() as left:

        def browse(url):
            # No sandbox: the test may run as root in a container.
            command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu"]
            command += ["--disable-dev-shm-usage", "--no-first-run", "--remote-debugging-port=0"]
            profile = tmp_path / "profile"
            errors = left.enter_context((tmp_path / "browser").open("wb"))
            browser = subprocess.Popen(
                [*command, f"--user-data-dir={profile}", url],
                env={"HOME": str(tmp_path), "PATH": os.environ["PATH"]},
                stdout=errors,
                stderr=errors,
                start_new_session=True,
            )
            left.callback(kill_session, browser)
            port_file = profile / "DevToolsActivePort"
            eventually(lambda: port_file.exists() and port_file.read_text(), "a browser", 60)
            port = int(port_file.read_text().split()[0])

            def page():
                targets = json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list"))
                return next((t for t in targets if t["type"] == "page" and t["url"] == url), None)

            target = eventually(page, "its page")["webSocketDebuggerUrl"]
            tools = left.enter_context(websockets.sync.client.connect(target, max_size=None))

            def evaluate(expression):
                call = {"id": 1, "method": "Runtime.evaluate", "params": {"expression": expression}}
                tools.send(json.dumps(call))
                answer = json.loads(tools.recv(timeout=30))
                return answer["result"]["result"].get("value")

            return evaluate

        yield browse


@pytest.mark.skipif(BROWSER is None, reason="chromium is not installed")
def test_a_browser_exchanges_messages(start, browse):
    """The demo's page; with `?say=` it sends a message by itself, then closes."""
    server = start(source="from esg.demo import app")
    evaluate = browse(f"{server.url}/echo?say=h%C3%A9llo")
    said = "open permessage-deflate\n> h\u00e9llo\n< h\u00e9llo\nclosed 1000 true\n"
    log = 'document.getElementById("log").textContent'
    eventually(lambda: "closed" in (evaluate(log) or ""), "the page's socket is closed")
    assert evaluate(log) == said


@pytest.mark.skipif(BROWSER is None, reason="chromium is not installed")
def test_a_browser_is_closed_with_1012_by_a_reload(start, browse):
    server = start(source="from esg.demo import app")
    evaluate = browse(f"{server.url}/echo")
    log = 'document.getElementById("log").textContent'
    eventually(lambda: "open" in (evaluate(log) or ""), "the page's socket is open")
    server.signal(signal.SIGHUP)
    eventually(lambda: "closed" in evaluate(log), "the page's socket is closed")
    assert "closed 1012 true" in evaluate(log)
