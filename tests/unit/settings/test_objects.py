"""Objects given next to the settings, and the StandIns that replace them in a Config."""

from __future__ import annotations

import datetime
import enum
import io
import logging
import pickle

import pytest

from esg.settings.objects import StandIn, put_back, take_out


class Level(enum.IntEnum):
    LOUD = 40


DATA = {
    "version": 1,
    "since": datetime.date(2026, 1, 1),
    "handlers": {"h": {"level": "INFO", "args": ("a", 2.5, [True, None, b"x"])}},
}


def test_data_is_copied():
    objects = []
    data = take_out(DATA, objects)
    assert data == DATA
    assert data["handlers"]["h"] is not DATA["handlers"]["h"]
    assert objects == []


THINGS = {
    "stream": io.StringIO(),
    "class": logging.Formatter,
    "function": print,
    "object": object(),
    "enumeration": Level.LOUD,
    "set": {1},
}


@pytest.mark.parametrize("thing", THINGS.values(), ids=THINGS)
@pytest.mark.parametrize("wrap", [lambda x: {"x": x}, lambda x: [x], lambda x: (x,)])
def test_an_object_is_taken_out_and_put_back(thing, wrap):
    whole = {"first": wrap(thing)}
    objects = []
    data = take_out(whole, objects)
    assert pickle.loads(pickle.dumps(data)) == data
    assert objects == [thing]
    assert "StandIn" in repr(data)
    back = put_back(data, objects)
    assert back == whole
    assert type(back["first"]) is type(whole["first"])


def test_an_object_may_be_a_key():
    objects = []
    data = take_out({print: 1}, objects)
    assert data == {StandIn(0, "builtins:print"): 1}
    assert put_back(data, objects) == {print: 1}


def test_a_stand_in_names_its_object():
    objects = []
    taken = take_out([logging.Formatter, io.StringIO()], objects)
    assert taken == [StandIn(0, "logging:Formatter"), StandIn(1, "_io:StringIO")]


def test_stand_ins_stay_when_data_is_copied_again():
    data = take_out({"stream": io.StringIO()}, [])
    assert take_out(data, []) == data
