from __future__ import annotations

import copy
import dataclasses
import pickle

import pytest

from esg.frozen import frozen


@frozen
class Point:
    """A point."""

    x: int
    y: int = 0
    label: str = dataclasses.field(default="", compare=False)
    secret: str = dataclasses.field(default="", repr=False)


@frozen
class Other:
    """Has the same fields as a point."""

    x: int
    y: int = 0


def test_instances_compare_by_their_fields():
    assert Point(1, 2) == Point(1, y=2)
    assert Point(1, 2) != Point(1, 3)


def test_instances_of_different_classes_differ():
    assert Point(1, 2) != Other(1, 2)
    assert Point(1, 2) != (1, 2)


def test_a_field_may_be_left_out_of_comparisons():
    assert Point(1, label="a") == Point(1, label="b")
    assert hash(Point(1, label="a")) == hash(Point(1, label="b"))


def test_equal_instances_are_one_key():
    assert {Point(1, 2): "found"}[Point(1, 2)] == "found"


def test_a_field_may_be_left_out_of_the_representation():
    assert repr(Point(1, 2, "a", secret="hidden")) == "Point(x=1, y=2, label='a')"


def test_other_attributes_cannot_be_set():
    with pytest.raises(AttributeError):
        Point(1).z = 1


def test_missing_and_unknown_arguments_are_refused():
    with pytest.raises(TypeError):
        Point()
    with pytest.raises(TypeError):
        Point(1, z=1)


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))]
)
def test_a_copy_is_equal(copied):
    assert copied(Point(1, 2, "a", "b")) == Point(1, 2, "a", "b")


def test_it_works_as_a_dataclass():
    assert dataclasses.replace(Point(1, 2), y=3) == Point(1, 3)
    assert dataclasses.asdict(Other(1)) == {"x": 1, "y": 0}
    match Point(1, 2):
        case Point(x, y):
            assert (x, y) == (1, 2)
