"""Every config field has a row: it always acts, or is refused where it cannot.

A new one fails here until it has a row in `tests/tiny/setting_rows.py`. Numbers are tried at values
that nobody can mean.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import ValidationError

from clipdepth_plugin.config import HeadConfig
from clipdepth_plugin.settings import STORED, Settings, _kinds
from tests.tiny.setting_rows import FIELDS


@pytest.mark.parametrize("model", FIELDS, ids=lambda model: model.__name__)
def test_every_field_has_a_row(model: type[Settings]) -> None:
    assert set(model.model_fields) == set(FIELDS[model][1])


@pytest.mark.parametrize(
    ("model", "given", "message"),
    [
        pytest.param(model, {**base, **row[0]}, row[1], id=f"{model.__name__}.{name}")
        for model, (base, rows) in FIELDS.items()
        for name, row in rows.items()
        if isinstance(row, tuple)
    ],
)
def test_what_another_setting_switches_off_is_refused(
    model: type[Settings], given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        model.model_validate(given)


NUMBERS = [
    pytest.param(model, name, id=f"{model.__name__}.{name}")
    for model in FIELDS
    for name, field in model.model_fields.items()
    # Cameras have checks of their own: tests/test_arguments.py.
    if {int, float} & set(_kinds(field.annotation)) and name != "intrinsics"
]


@pytest.mark.parametrize(("model", "name"), NUMBERS)
def test_numbers_that_nobody_means_are_refused(model: type[Settings], name: str) -> None:
    base = FIELDS[model][0]
    old = model.model_validate(base)
    default, kinds = getattr(old, name), list(_kinds(model.model_fields[name].annotation))
    count = len(default) if isinstance(default, tuple) else 2
    row = tuple in {getattr(kind, "__origin__", kind) for kind in kinds} or isinstance(
        default, tuple
    )
    row = row or name in ("input_size", "output_size")
    for value in (math.nan, math.inf, -math.inf, -1e30, 10**30, 10**400, True):
        given = (value,) * max(count, 1) if row else value
        with pytest.raises((ValidationError, ValueError)):
            model.model_validate({**base, name: given})


def test_a_config_that_a_program_wrote_may_have_fields_that_do_nothing() -> None:
    given = {"width": 8, "film": False, "film_hidden": 8}
    assert HeadConfig.model_validate(given, context=STORED).film_hidden == 8
