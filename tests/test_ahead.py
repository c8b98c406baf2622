"""Working one item ahead: same items, same errors, nothing left running."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from builder.building.ahead import ahead


def test_items_come_in_order():
    assert list(ahead(range(100))) == list(range(100))
    assert list(ahead([])) == []


def test_the_next_item_is_made_while_one_is_used():
    made = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        made.set()
        yield 2

    for item in ahead(items()):
        if item == 1:
            assert made.wait(5)


def test_an_error_comes_where_its_item_would():
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("no second")

    made = ahead(items())
    assert next(made) == 1
    with pytest.raises(ValueError, match="no second"):
        next(made)


def test_leaving_early_stops_the_work():
    count = 0

    def items() -> Iterator[int]:
        nonlocal count
        while True:
            count += 1
            yield count

    for item in ahead(items()):
        if item == 3:
            break
    assert count <= 6
    assert not [t for t in threading.enumerate() if t.name == "ahead"]
