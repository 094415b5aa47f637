"""The rules of RFC 6455 and RFC 7692, case by case, and random frames."""

from __future__ import annotations

import itertools
import random
import zlib

import pytest

from .conftest import UvloopLoop
from .test_websocket import Echo
from .wire import Truncated
from .ws_cases import Case, cases
from .ws_client import BINARY, CLOSE, CONT, PING, PONG, TEXT, WebSocket, close_payload, frame

pytestmark = pytest.mark.parametrize("runner", [UvloopLoop], ids=["uvloop"], indirect=True)


@pytest.fixture(params=["websockets", "wsproto"])
def parser_settings(request):
    """With each library."""
    return {"ws": request.param}


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
async def test_the_server_obeys_the_rule(serve, case: Case):
    socket = await WebSocket.open(serve(Echo()))
    await socket.client.send_pieces(list(case.pieces))
    for opcode, payload in case.echoes:
        await socket.expect(opcode, payload)
    if case.code is None:
        await socket.closes()
        return
    code, reason = await socket.closing()
    assert code == case.code, reason
    if case.reason is not None:
        assert reason == case.reason
    await socket.client.closed()


async def test_frames_in_pieces_of_any_size_get_the_same_echoes(serve):
    """The result doesn't depend on how the network splits the bytes."""
    server = serve(Echo())
    dice = random.Random(6455)
    for _ in range(30):
        sent, echoes, pongs = _conversation(dice)
        pieces, at = [], 0
        while at < len(sent):
            size = dice.choice((1, 2, 5, 6, 7, 100, 5000))
            pieces.append(sent[at : at + size])
            at += size
        socket = await WebSocket.open(server)
        await socket.client.send_pieces([*pieces[:400], b"".join(pieces[400:])])
        # Pongs don't wait for the application, so they may come before or after the echoes.
        found = [await socket.frame() for _ in range(len(echoes) + len(pongs))]
        assert [f for f in found if f[0] != 0x80 | PONG] == echoes
        assert [content for first, content in found if first == 0x80 | PONG] == pongs
        await socket.closes()


def _conversation(dice):
    """Messages, whole and in fragments, with pings in between; their echoes, and the pongs."""
    sent, pongs, echoes = b"", [], []
    for _ in range(dice.randrange(1, 8)):
        kind = dice.choice((TEXT, BINARY))
        size = dice.choice((0, 1, 125, 126, 1000, 70000))
        data = b"a\xc3\xa9b" * (size // 4) if kind is TEXT else dice.randbytes(size)
        parts = sorted(dice.randrange(len(data) + 1) for _ in range(dice.randrange(4)))
        edges = [0, *parts, len(data)]
        for number, (begin, end) in enumerate(itertools.pairwise(edges)):
            opcode = CONT if number else kind
            sent += frame(opcode, data[begin:end], fin=end == len(data) and number == len(parts))
            if dice.random() < 0.3:
                ping = dice.randbytes(dice.randrange(126))
                sent += frame(PING, ping)
                pongs.append(ping)
        echoes.append((0x80 | kind, data))
    return sent, echoes, pongs


@pytest.mark.parametrize("seed", range(8))
async def test_random_frames_get_a_proper_close(serve, seed):
    """For any frames, the server says why it closes, and neither logs an error nor hangs."""
    server = serve(Echo())
    dice = random.Random(seed)
    for _ in range(15):
        socket = await WebSocket.open(server)
        data = bytearray()
        for _ in range(dice.randrange(1, 5)):
            opcode = dice.choice((CONT, TEXT, BINARY, CLOSE, PING, PONG, dice.randrange(16)))
            payload = dice.randbytes(dice.randrange(200))
            data += frame(opcode, payload, fin=dice.random() < 0.8)
        for _ in range(dice.randrange(3)):
            data[dice.randrange(len(data))] = dice.randrange(256)
        await socket.client.push(bytes(data))
        socket.client.shutdown()
        codes = []
        try:
            while True:
                first, content = await socket.frame()
                if first == 0x80 | CLOSE:
                    codes.append(int.from_bytes(content[:2], "big"))
        except (Truncated, ConnectionResetError):
            pass
        assert len(codes) <= 1
    await server.connections(0)


# -- RFC 7692 ----------------------------------------------------------------------------


def deflated(data: bytes, compress: zlib._Compress) -> bytes:
    return (compress.compress(data) + compress.flush(zlib.Z_SYNC_FLUSH))[:-4]


@pytest.mark.parametrize(
    "parameters",
    [
        "",
        "; client_max_window_bits",
        "; client_max_window_bits=10",
        "; server_max_window_bits=10",
        "; server_no_context_takeover",
        "; client_no_context_takeover",
        "; server_no_context_takeover; client_no_context_takeover; client_max_window_bits",
    ],
)
async def test_compression_works_with_each_parameter(serve, parameters):
    field = f"Sec-WebSocket-Extensions: permessage-deflate{parameters}".encode()
    socket = await WebSocket.open(serve(Echo()), b"/", field)
    agreed = socket.response[b"sec-websocket-extensions"].decode().replace(" ", "").split(";")
    assert agreed[0] == "permessage-deflate"
    values = dict(part.partition("=")[::2] for part in agreed[1:])
    if "client_max_window_bits" in values:
        assert "client_max_window_bits" in parameters
    if "server_max_window_bits=10" in parameters:
        assert int(values["server_max_window_bits"]) <= 10
    if "server_no" in parameters:
        assert "server_no_context_takeover" in values
    ours = int(values.get("client_max_window_bits", 15))
    theirs = int(values.get("server_max_window_bits", 15))
    compress, expand = zlib.compressobj(wbits=-ours), zlib.decompressobj(wbits=-theirs)
    for size in (0, 1, 100, 5000, 70000, 5000):
        if "client_no_context_takeover" in values:
            compress = zlib.compressobj(wbits=-ours)
        if "server_no_context_takeover" in values:
            expand = zlib.decompressobj(wbits=-theirs)
        data = random.Random(size).randbytes(size // 2) * 2
        await socket.send(BINARY, deflated(data, compress), rsv=4)
        first, content = await socket.frame()
        assert first == 0xC0 | BINARY
        assert expand.decompress(content + b"\x00\x00\xff\xff") == data
    await socket.closes()


DEFLATE = b"Sec-WebSocket-Extensions: permessage-deflate"


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (frame(TEXT, b"no deflate", rsv=4), (1002, 1007)),
        (frame(TEXT, b"", rsv=2), (1002,)),
        (frame(PING, b"", rsv=4), (1002,)),
        (frame(CLOSE, close_payload(1000), rsv=4), (1002,)),
        (frame(CONT, b"", rsv=4), (1002,)),
        (frame(TEXT, b"", rsv=4, fin=False) + frame(CONT, b"", rsv=4), (1002,)),
        (frame(TEXT, deflated(b"\xff\xfe", zlib.compressobj(wbits=-9)), rsv=4), (1007,)),
    ],
)
async def test_invalid_compression_closes_the_websocket(serve, sent, code):
    socket = await WebSocket.open(serve(Echo()), b"/", DEFLATE)
    await socket.client.send(sent)
    assert (await socket.closing())[0] in code
    await socket.client.closed()


async def test_a_compressed_message_may_come_in_fragments(serve):
    socket = await WebSocket.open(serve(Echo()), b"/", DEFLATE)
    data = deflated(b"hello" * 100, zlib.compressobj(wbits=-9))
    await socket.send(TEXT, data[:5], rsv=4, fin=False)
    await socket.send(PING, b"!")
    await socket.expect(PONG, b"!")
    await socket.send(CONT, data[5:9], fin=False)
    await socket.send(CONT, data[9:])
    first, content = await socket.frame()
    assert first == 0xC0 | TEXT
    expand = zlib.decompressobj(wbits=-15)
    assert expand.decompress(content + b"\x00\x00\xff\xff") == b"hello" * 100
