"""From plain values to a pydantic model: what is wrong with them, as our error.

The values come from a file or a command line, so that a message is bounded however much is wrong.
"""

from __future__ import annotations

import difflib
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from clipdepth_plugin.errors import ClipDepthError, quoted, shortened

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")

_MOST = 10


def checked(
    model: type[M], tree: Any, where: str, error: type[ClipDepthError], *, context: Any = None
) -> M:
    """The model of a tree of plain values; ``context`` is that of its validators.

    Raises:
        ClipDepthError: ``error``; begins with ``where`` and names the fields that are wrong.
    """
    try:
        return model.model_validate(tree, context=context)
    except ValidationError as problem:
        raise error(f"{where}: {described(problem, model)}") from problem


def checked_type(kind: TypeAdapter[T], tree: Any, where: str, error: type[ClipDepthError]) -> T:
    """As ``checked``, for a type that is no model."""
    try:
        return kind.validate_python(tree)
    except ValidationError as problem:
        raise error(f"{where}: {described(problem)}") from problem


def described(error: ValidationError, model: type[BaseModel] | None = None) -> str:
    """What is wrong, a line for each field; the fields that ``model`` has are known."""
    problems = error.errors(include_url=False)
    lines = [_describe(one, model) for one in problems[:_MOST]]
    if problems[_MOST:]:
        lines.append(f"and {len(problems) - _MOST} more")
    return lines[0] if not lines[1:] else "\n  ".join(["", *lines])


def _describe(problem: Any, model: type[BaseModel] | None) -> str:
    where = shortened(".".join(map(str, problem["loc"])))
    if problem["type"] == "extra_forbidden":
        fields = _fields_at(model, problem["loc"][:-1])
        close = difflib.get_close_matches(str(problem["loc"][-1])[:100], fields, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(fields)}"
        return f"{where}: no such field" + (f"; {hint}" if fields else "")
    if problem["type"] == "missing":
        return f"{where}: must be given"
    message = shortened(problem["msg"].removeprefix("Value error, "), 1000)
    given = problem["input"]
    shown = "" if isinstance(given, dict) else f" (got {quoted(given)})"
    return f"{where}: {message}{shown}" if where else message


def _fields_at(model: Any, location: tuple[str | int, ...]) -> list[str]:
    """Names of the fields that the model at a place of the tree has."""
    for name in location:
        if isinstance(name, str) and name in getattr(model, "model_fields", {}):
            model = _model_in(model.model_fields[name].annotation)
    return list(getattr(model, "model_fields", {}))


def _model_in(annotation: Any) -> Any:
    """The pydantic model inside ``Model | None`` or ``tuple[Model, ...]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inside = (_model_in(one) for one in getattr(annotation, "__args__", ()))
    return next((one for one in inside if one is not None), None)
