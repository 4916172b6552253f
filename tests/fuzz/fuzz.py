"""Fuzz: a property of one entrance, its hostile inputs, and how it is run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from clipdepth_plugin import ClipDepthError
from clipdepth_plugin.errors import MAX_MESSAGE


@dataclass(frozen=True)
class Fuzz:
    """An entrance under hostile input.

    Attributes:
        name: For reports.
        inputs: What is drawn for each call.
        check: Calls the entrance inside ``clear_errors`` and asserts what a right answer is.
        examples: Calls in ``make test``, some seconds' worth.
    """

    name: str
    inputs: st.SearchStrategy[Any]
    check: Callable[[Any], None]
    examples: int

    def run(self, number: int, examples: int) -> None:
        """``examples`` calls with the inputs of one seed; raises for the smallest that fails."""

        @seed(number)
        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        )
        @given(self.inputs)
        def fuzzed(drawn: Any) -> None:
            self.check(drawn)

        fuzzed()


@contextmanager
def clear_errors(*others: type[Exception]) -> Iterator[None]:
    """Lets a ClipDepthError pass if its message is of readable length, ``others``, nothing else."""
    try:
        yield
    except ClipDepthError as error:
        if not 0 < len(str(error)) <= MAX_MESSAGE + 100:
            pytest.fail(f"a message of {len(str(error))} characters: {error!s:.300}")
    except others:
        pass
