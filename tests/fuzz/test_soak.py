"""Random bytes from clients, for any length of time, cause no error, hang or growth.

Run with `pytest -m soak`, for ESG_SOAK_SECONDS. The log is checked as in every test of the
corpus, and `Stage` fails if the server doesn't come to rest.
"""

from __future__ import annotations

import gc
import logging
import os
import random
import time
from collections.abc import Iterator

import pytest

from tests.conformance.corpus import cases
from tests.conformance.grammar import BODIES, FIELDS, METHODS, ODD_BYTES, TARGETS, VERSIONS
from tests.support.stage import PARSERS, Stage

SECONDS = float(os.environ.get("ESG_SOAK_SECONDS", "20"))

AT_ONCE = 100
"""The number of concurrent connections."""

MOST_OBJECTS = 2000
MOST_GROWTH = 16 * 2**20
"""The growth that is allowed after the warm-up: tracked objects, and bytes of resident memory."""

STATUSES = {200, 400, 413, 414, 431, 501, 505}

CORPUS = [case.data for case in cases(lambda case: len(case.data) < 5000)]

pytestmark = [pytest.mark.soak, pytest.mark.timeout(SECONDS + 60)]


def request(rng: random.Random) -> bytes:
    """A request made of parts that needn't fit together."""
    line = b" ".join(map(rng.choice, (METHODS, TARGETS, VERSIONS)))
    fields = rng.choices(FIELDS, k=rng.randrange(5))
    return b"\r\n".join((line, FIELDS[0], *fields, b"", rng.choice(BODIES)))


def damage(rng: random.Random, data: bytearray) -> None:
    """Change, insert, remove or repeat some bytes."""
    at = rng.randrange(len(data) + 1)
    kind = rng.randrange(5)
    if kind == 0:
        data[at : at + 1] = bytes([rng.choice(ODD_BYTES)])
    elif kind == 1:
        data[at:at] = bytes([rng.choice(ODD_BYTES)])
    elif kind == 2:
        del data[at : at + rng.randrange(1, 5)]
    elif kind == 3:
        data[at:at] = data[at : at + rng.randrange(1, 60)] * rng.randrange(1, 40)
    else:
        data[at:at] = rng.choice(FIELDS + BODIES + CORPUS)


def stream(rng: random.Random) -> bytes:
    """The bytes that one client sends."""
    kind = rng.randrange(10)
    if kind == 0:
        return rng.randbytes(rng.randrange(500))
    if kind < 4:
        return b"".join(request(rng) for _ in range(rng.randrange(1, 4)))
    data = bytearray(b"".join(rng.choices(CORPUS, k=rng.randrange(1, 4))))
    for _ in range(rng.choice((0, 1, 1, 2, 5))):
        damage(rng, data)
    return bytes(data)


def pieces(rng: random.Random, data: bytes) -> list[bytes]:
    """The pieces in which the bytes arrive."""
    cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.choice((0, 0, 1, 2, 8))))
    parts = (data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True))
    return [part for part in parts if part]


def resident() -> int:
    """The resident memory of this process, in bytes."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(params=PARSERS)
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    made = Stage(request.param)
    yield made
    made.close()


def test_random_bytes_cause_no_error_hang_or_growth(stage: Stage) -> None:
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    # Refusals are logged at level DEBUG, and the fixture that checks the log keeps all records.
    logging.getLogger("esg").setLevel(logging.WARNING)
    print("seed", seed)  # noqa: T201 - shown where the test fails

    def play_for(seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            sent = [pieces(rng, stream(rng)) for _ in range(AT_ONCE)]
            for verdict, parts in zip(stage.play(sent), sent, strict=True):
                assert set(verdict.statuses) <= STATUSES, parts
                assert len(verdict.requests) == verdict.statuses.count(200), parts

    share = SECONDS / len(PARSERS)
    play_for(share / 4)
    gc.collect()
    objects, memory = len(gc.get_objects()), resident()
    play_for(share * 3 / 4)
    gc.collect()
    assert len(gc.get_objects()) - objects < MOST_OBJECTS
    assert resident() - memory < MOST_GROWTH
