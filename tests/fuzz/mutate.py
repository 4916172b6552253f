"""Strategies of hostile input: bytes, trees of plain values and arguments, each a little wrong."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

TOKENS = (
    b"", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"%PDF-1.7", b"%!PS", b"PK\3\4", b"GIF89a", b"NaN",
    b"-Infinity", b"1e400", b"null", b"[[[[", b'{"a":', b"\n", b",", b"\t", b" ", b"../",
    b"&a [*a]", b"!!python/object", b"\x7f\xff\xff\xff", b"\xff" * 8,
)  # fmt: skip

NUMBERS = st.one_of(
    st.integers(-3, 3000),
    st.sampled_from([0, -1, 2**31, 2**63, 10**20, 10**30, -(10**30), True, False]),
    st.floats(),
    st.sampled_from([0.0, -0.0, 1e-30, 1e40, 1e308, float("nan"), float("inf"), 518.8]),
)


def _arrays(numbers: list[Any]) -> Any:
    """Tensors and arrays of a few dtypes and shapes."""
    shapes = [(0,), (1,), (2,), (4,), (3, 3), (1, 4, 5), (2, 3, 3), (1, 1, 4, 5), (1, 3, 28, 28)]
    dtypes = [torch.float32, torch.float16, torch.int64, torch.uint8, torch.bool, torch.complex64]
    value = numbers[0]
    tensors = [torch.full(shape, 1).to(dtype) for shape in shapes for dtype in dtypes]
    return st.sampled_from([*tensors, np.zeros((3, 3)), np.array([value], dtype=object)])


LEAVES = st.one_of(
    st.none(),
    NUMBERS,
    st.text(max_size=12),
    st.sampled_from(["", "0", "none", "inf", "518.8 px", "a" * 3000, "\ud800", "\0", "../..", "gs://x"]),
    st.binary(max_size=6),
)  # fmt: skip

TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
"""Plain values: what JSON or YAML can hold, and some that they can't."""

ANYTHING = st.one_of(TREES, _arrays([1]), st.builds(object), st.just(int), st.just(np.float32(2)))
"""What a caller may put in the place of any argument."""


@st.composite
def mutated(draw: st.DrawFn, originals: list[bytes]) -> bytes:
    """One of the originals after up to four mutations: bits, cuts, copies, foreign bytes."""
    data = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(len(data), start + 64)))
        match draw(st.sampled_from(["flip", "cut", "drop", "double", "insert"])):
            case "flip" if start < len(data):
                data[start] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del data[start:]
            case "drop":
                del data[start:end]
            case "double":
                data[end:end] = data[start:end] * draw(st.sampled_from([1, 2, 50]))
            case _:
                data[start:start] = draw(st.sampled_from(TOKENS))
    return bytes(data)


def _places(tree: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value of a tree."""
    inner: list[tuple[Any, Any]] = []
    if isinstance(tree, dict):
        inner = list(tree.items())
    elif isinstance(tree, list):
        inner = list(enumerate(tree))
    return [way, *(place for key, value in inner for place in _places(value, (*way, key)))]


@st.composite
def mutated_tree(draw: st.DrawFn, originals: list[Any], values: Any = TREES) -> Any:
    """One of the originals, up to three of its values replaced, left out or joined by others."""
    tree = copy.deepcopy(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 3))):
        way = draw(st.sampled_from(_places(tree)))
        if not way:
            continue
        parent = tree
        for key in way[:-1]:
            parent = parent[key]
        match draw(st.sampled_from(["replace", "replace", "leave out", "add"])):
            case "replace":
                parent[way[-1]] = copy.deepcopy(draw(values))
            case "leave out":
                del parent[way[-1]]
            case "add" if isinstance(parent, dict):
                parent[draw(st.text(max_size=5))] = copy.deepcopy(draw(values))
            case _:
                pass
    return tree
