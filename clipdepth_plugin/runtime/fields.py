"""From plain values to frozen dataclasses, with the standard library alone.

Each field of such a dataclass is annotated with its reader, ``Annotated[Size, by(parse_size)]``: a
function from a value and its name, for messages, to what the field holds. Where the default is
None, null is taken, too.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, get_type_hints

from clipdepth_plugin.errors import ClipDepthError, ExportError, quoted, shortened

T = TypeVar("T")
Reader = Callable[[Any, str], Any]

_MOST_ITEMS = 10_000
_LONGEST = 100_000
_HASH = re.compile(r"[0-9a-f]{64}")


def read_fields(kind: type[T], tree: Any, name: str) -> T:
    """A dataclass from what a JSON file holds.

    Raises:
        ClipDepthError: A field is unknown, missing or wrong; the message begins with its name.
    """
    if not isinstance(tree, dict):
        raise ExportError(f"{name or 'it'}: got {quoted(tree)}, expected a mapping")
    dot = f"{name}." if name else ""
    known = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key in tree.keys() - known.keys():
        close = difflib.get_close_matches(str(key)[:100], known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
        raise ExportError(f"{dot}{shortened(key)}: no such field; {hint}")
    readers = get_type_hints(kind, include_extras=True)
    values = {}
    for key, field in known.items():
        if key not in tree:
            if field.default is field.default_factory is dataclasses.MISSING:
                raise ExportError(f"{dot}{key}: must be given")
        elif not (tree[key] is None and field.default is None):
            (read,) = readers[key].__metadata__
            values[key] = read(tree[key], f"{dot}{key}")
    return kind(**values)


def nested(kind: type[Any]) -> Reader:
    """A dataclass inside."""
    return lambda value, name: read_fields(kind, value, name)


def one_of(known: Iterable[str]) -> Reader:
    """One of some words."""
    words = tuple(known)

    def read(value: Any, name: str) -> str:
        if not isinstance(value, str) or value not in words:
            raise ExportError(f"{name}: got {quoted(value)}, expected {' or '.join(words)}")
        return value

    return read


def text(value: Any, name: str) -> str:
    """A text."""
    if not isinstance(value, str) or len(value) > _LONGEST:
        raise ExportError(f"{name}: got {quoted(value)}, expected a text")
    return value


def hash_text(value: Any, name: str) -> str:
    """A hash as 64 hexadecimal digits."""
    if not isinstance(value, str) or not _HASH.fullmatch(value):
        raise ExportError(f"{name}: got {quoted(value)}, expected 64 hexadecimal digits")
    return value


def file_name(value: Any, name: str) -> str:
    """A file of the same folder: a name without folders."""
    if not isinstance(value, str) or value in ("", ".", "..") or re.search(r"[/\\:\0]", value):
        raise ExportError(f"{name}: got {quoted(value)}, expected the name of a file beside it")
    return value


def truth(value: Any, name: str) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise ExportError(f"{name}: got {quoted(value)}, expected true or false")
    return value


def number(value: Any, name: str) -> float:
    """A finite number from 0 on."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e300:
        raise ExportError(f"{name}: got {quoted(value)}, expected a finite number from 0 on")
    return float(value)


def signed_share(value: Any, name: str) -> float:
    """A number in -1..1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1 <= value <= 1.0001:
        raise ExportError(f"{name}: got {quoted(value)}, expected a number in -1..1")
    return float(value)


def whole(value: Any, name: str) -> int:
    """A whole number from 0 on."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
        raise ExportError(f"{name}: got {quoted(value)}, expected a whole number from 0 on")
    return value


def axis(value: Any, name: str) -> int | str:
    """A length, or the name of an axis of any length."""
    return value if isinstance(value, str) and len(value) <= 200 else whole(value, name)


def tuple_of(read: Reader) -> Reader:
    """A list, each item read so."""

    def read_all(value: Any, name: str) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple) or len(value) > _MOST_ITEMS:
            raise ExportError(f"{name}: got {quoted(value)}, expected a list")
        return tuple(read(item, f"{name}[{index}]") for index, item in enumerate(value))

    return read_all


def mapping_of(read: Reader, key: Reader = text) -> Reader:
    """A mapping, each key and value read so."""

    def read_all(value: Any, name: str) -> dict[str, Any]:
        if not isinstance(value, dict) or len(value) > _MOST_ITEMS:
            raise ExportError(f"{name}: got {quoted(value)}, expected a mapping")
        return {
            key(one, f"{name}, a key"): read(item, f"{name}.{shortened(one)}")
            for one, item in value.items()
        }

    return read_all


def by(parse: Callable[..., Any], *arguments: Any, **keywords: Any) -> Reader:
    """What a function of ``arguments`` takes: ``parse(value, *arguments, name, **keywords)``."""

    def read_so(value: Any, name: str) -> Any:
        try:
            parsed = parse(value, *arguments, name, **keywords)
            return tuple(parsed) if isinstance(parsed, list) else parsed
        except ClipDepthError as problem:
            raise ExportError(str(problem)) from problem

    return read_so
