"""A minute of the fuzz, with one seed; ``make fuzz`` runs it for ten with new ones."""

from __future__ import annotations

import pytest

from tests.fuzz.fuzz import Fuzz
from tests.fuzz.table import FUZZES


@pytest.mark.parametrize("fuzz", FUZZES, ids=lambda fuzz: fuzz.name)
def test_only_clear_errors_or_right_answers(fuzz: Fuzz) -> None:
    """Hostile input of each entrance."""
    fuzz.run(0, fuzz.examples)
