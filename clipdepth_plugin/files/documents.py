"""JSON and YAML from anywhere: read within bounds of size and depth, errors as ours.

Whatever the library reads as JSON or YAML comes through here. Refused are: more than the bytes
allowed, nesting beyond ``MAX_DEPTH``, YAML aliases that expand beyond ``YAML_BYTES``, a key given
twice, whole numbers beyond 64 bits, YAML's dates, sets and bytes, text that is not Unicode, and
what is not a regular file.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from clipdepth_plugin.arguments import StrPath
from clipdepth_plugin.errors import ClipDepthError, shortened
from clipdepth_plugin.files.paths import read_bytes

MIB = 1 << 20

MAX_DEPTH = 64
"""Mappings and lists inside each other."""

YAML_BYTES = MIB
"""Of a YAML text with its aliases written out; a node counts as ``_NODE_BYTES`` and its text."""

_NODE_BYTES = 64


def read_json(path: StrPath, error: type[ClipDepthError], *, limit: int = MIB) -> Any:
    """The content of a JSON file.

    Raises:
        ClipDepthError: ``error``; it can't be read, is larger than ``limit`` bytes, or is no JSON.
    """
    return parse_json(read_bytes(path, error, limit=limit), str(path), error, limit=limit)


def parse_json(
    text: str | bytes, where: str, error: type[ClipDepthError], *, limit: int = MIB
) -> Any:
    """What a JSON text holds; ``where`` it stands begins the message.

    Raises:
        ClipDepthError: ``error``; it is larger than ``limit`` bytes, or no JSON.
    """
    try:
        tree = json.loads(_decoded(text, limit), object_pairs_hook=_without_duplicates)
        _check_tree(tree)
    except (ValueError, RecursionError) as problem:
        raise error(f"{where} is not valid JSON ({_reason(problem)})") from problem
    return tree


def read_yaml(path: StrPath, error: type[ClipDepthError], *, stream: bool = False) -> Any:
    """The content of a YAML (or JSON) file; ``stream`` as in ``parse_yaml``.

    Raises:
        ClipDepthError: ``error``; it can't be read, is too large, or is no YAML.
    """
    return parse_yaml(read_bytes(path, error, limit=YAML_BYTES), str(path), error, stream=stream)


def parse_yaml(
    text: str | bytes, where: str, error: type[ClipDepthError], *, stream: bool = False
) -> Any:
    """What a YAML text holds, of plain values alone; ``where`` it stands begins the message.

    ``stream``: several documents may follow each other, and the first is taken.

    Raises:
        ClipDepthError: ``error``; it is too large, or no YAML.
    """
    import yaml

    try:
        decoded = _decoded(text, YAML_BYTES)
        _check_events(yaml.parse(decoded, Loader=yaml.SafeLoader))
        tree = next(yaml.safe_load_all(decoded), None) if stream else yaml.safe_load(decoded)
        _check_tree(tree)
    # A value may be no number or date (ValueError, OverflowError) or no key (TypeError).
    except (yaml.YAMLError, ValueError, OverflowError, TypeError, RecursionError) as problem:
        raise error(f"{where} is not valid YAML: {_reason(problem)}") from problem
    return tree


def _decoded(text: str | bytes, limit: int) -> str:
    """Text without a byte order mark."""
    content = text.encode() if isinstance(text, str) else text
    if len(content) > limit:
        raise ValueError(f"larger than {limit} bytes")
    return content.decode("utf-8-sig")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {shortened(twice)} is given twice")
    return made


def _check_tree(tree: Any) -> None:
    """Bounds the depth of what was read and checks its values, so that no reader of it has to."""
    level = [tree]
    for _ in range(MAX_DEPTH + 1):
        below: list[Any] = []
        for node in level:
            if isinstance(node, dict):
                below += [*node.keys(), *node.values()]
            elif isinstance(node, list):
                below += node
            else:
                _check_value(node)
        if not below:
            return
        level = below
    raise ValueError(f"nested deeper than {MAX_DEPTH}")


def _check_value(value: Any) -> None:
    if isinstance(value, str):
        value.encode()  # half of a surrogate pair is no text
    elif isinstance(value, int):
        if value.bit_length() > 64:
            raise ValueError("a whole number has more than 64 bits")
    elif not isinstance(value, float | None):
        raise ValueError(f"{shortened(value)} is a {type(value).__name__}; put text in quotes")


class _Extent(NamedTuple):
    """What a node takes with its aliases written out."""

    size: int
    height: int


class _Open:
    """A mapping or list whose end is still to come."""

    def __init__(self, event: Any, *, is_mapping: bool) -> None:
        self.anchor: str | None = event.anchor
        self.is_mapping = is_mapping
        self.children = 0
        self.keys: set[str] = set()
        self.size, self.height = _NODE_BYTES, 0

    def add(self, child: _Extent, text: str | None) -> None:
        """Adds a node inside, a scalar with its text."""
        if self.is_mapping and self.children % 2 == 0 and text is not None:
            if text in self.keys:
                raise ValueError(f"the key {shortened(text)} is given twice")
            self.keys.add(text)
        self.children += 1
        self.size += child.size
        self.height = max(self.height, child.height + 1)


def _check_events(events: Iterator[Any]) -> None:
    """Bounds what a YAML text expands to, before any of it is built."""
    import yaml

    anchors: dict[str, _Extent] = {}
    stack: list[_Open] = []
    for event in events:
        text = None
        if isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            stack.append(_Open(event, is_mapping=isinstance(event, yaml.MappingStartEvent)))
            _check_extent(_Extent(sum(one.size for one in stack), len(stack)))
            continue
        if isinstance(event, yaml.ScalarEvent):
            done, anchor = _Extent(_NODE_BYTES + len(event.value), 0), event.anchor
            text = event.value
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in anchors:
                raise ValueError(f"the alias *{shortened(event.anchor)} stands for nothing before")
            done, anchor = anchors[event.anchor], None
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            ended = stack.pop()
            done, anchor = _Extent(ended.size, ended.height), ended.anchor
        else:
            continue
        if anchor is not None:
            anchors[anchor] = done
        if stack:
            stack[-1].add(done, text)
        _check_extent(
            _Extent(sum(one.size for one in stack) or done.size, len(stack) + done.height)
        )


def _check_extent(extent: _Extent) -> None:
    if extent.size > YAML_BYTES:
        raise ValueError(f"larger than {YAML_BYTES} bytes with its aliases written out")
    if extent.height > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH}")


def _reason(problem: Exception) -> str:
    if isinstance(problem, RecursionError):
        return f"nested deeper than {MAX_DEPTH}"
    if isinstance(problem, UnicodeError):
        return f"not UTF-8: {problem.reason if hasattr(problem, 'reason') else problem}"
    return shortened(problem, 400)
