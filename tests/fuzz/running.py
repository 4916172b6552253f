"""How long a fuzz runs: rounds of fixed seeds until its share of the time is over.

``CLIPDEPTH_FUZZ_SECONDS`` is the time of all fuzzes together; ``make test`` takes a minute, ``make
fuzz`` ten.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

T = TypeVar("T")

FUZZES = 6
"""The tests in this folder, which share the time."""

_SECONDS = float(os.environ.get("CLIPDEPTH_FUZZ_SECONDS", "60"))


def fuzz(inputs: st.SearchStrategy[T], check: Callable[[T], object]) -> None:
    """Calls ``check`` on drawn inputs; the first round is the same in every run."""
    end = time.monotonic() + _SECONDS / FUZZES
    for number in itertools.count():

        def one(value: T) -> None:
            if number == 0 or time.monotonic() < end:  # noqa: B023 (called in this round)
                check(value)

        case = settings(
            max_examples=20, database=None, deadline=None, suppress_health_check=list(HealthCheck)
        )(given(inputs)(one))
        seed(number)(case)()
        if time.monotonic() >= end:
            return


def damaged(content: bytes) -> st.SearchStrategy[bytes]:
    """A file's content with bytes changed, cut, doubled or put in."""
    places = st.integers(0, max(len(content) - 1, 0))
    edits = st.lists(
        st.one_of(
            st.tuples(st.just("set"), places, st.binary(min_size=1, max_size=8)),
            st.tuples(st.just("put"), places, st.binary(min_size=1, max_size=16)),
            st.tuples(st.just("cut"), places, st.integers(1, 64)),
            st.tuples(st.just("end"), places, st.just(0)),
        ),
        min_size=1,
        max_size=6,
    )
    return edits.map(lambda chosen: _edited(content, chosen))


def _edited(content: bytes, edits: Sequence[tuple[str, int, bytes | int]]) -> bytes:
    for kind, place, what in edits:
        before, after = content[:place], content[place:]
        if isinstance(what, bytes):
            content = before + what + (after[len(what) :] if kind == "set" else after)
        else:
            content = before + (after[what:] if kind == "cut" else b"")
    return content


NUMBERS = st.one_of(
    st.integers(-3, 40),
    st.sampled_from([2**31, -(2**63), 2**64, 10**30, 10**400, -1, 0]),
    st.floats(),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=6)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=5), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
"""Whatever a file or a caller may hold."""
