"""The verdict's words for figures that are given here, round by round."""

from __future__ import annotations

import numpy as np
import pytest

from clipdepth_plugin.latency.schema import Audit
from clipdepth_plugin.latency.verdict import make_verdict
from tests.tiny.audits import ROUNDS, an_audit


def _last(audit: Audit) -> str:
    return make_verdict(audit)[-1]


def test_a_separate_network_is_over_the_cheapest_heads_median() -> None:
    steady = np.full(ROUNDS, 0.010)
    line = _last(an_audit({"dear": 3 * steady, "cheap": steady}))
    assert line.endswith(": 5.0 times [5.0, 5.0] what depth by cheap (eager) adds to the tower.")


def test_rounds_in_which_the_head_took_no_time_do_not_lower_the_ratio() -> None:
    """A quarter of the rounds has a negative difference: the median of ratios would be 4.8."""
    added = np.array([0.010, 0.010, 0.011, -0.001] * (ROUNDS // 4))
    line = _last(an_audit({"cheap": added}))
    assert ": 5.0 times [" in line


@pytest.mark.parametrize("some", [0.0, -0.002], ids=["zero", "negative"])
def test_where_the_difference_reaches_zero_there_is_only_a_bound(some: float) -> None:
    added = np.array([0.010, some] * (ROUNDS // 2))
    line = _last(an_audit({"cheap": added, "dear": np.full(ROUNDS, 0.030)}))
    assert line.endswith(
        ": at least 5.0 times what depth by cheap (eager) adds to the tower, which is lost in "
        "noise."
    )


def test_a_head_that_seems_to_save_time_gives_no_bound() -> None:
    line = _last(an_audit({"cheap": np.full(ROUNDS, -0.010)}))
    assert line.endswith("; what depth by cheap (eager) adds to the tower is lost in noise.")


def test_a_busy_process_is_seen_however_many_processors_there_are() -> None:
    """Of 64, one is 1.6% of all; what an idle machine of two does beside is as much."""
    quiet = an_audit({}).model_copy(update={"others_percent": 1.6, "processors": 2})
    assert make_verdict(quiet)[1] == "Others took 1.6% of the processors' time meanwhile."
    busy = quiet.model_copy(update={"processors": 64})
    assert make_verdict(busy)[1] == (
        "Others took 1.6% of the processors' time meanwhile, 1 of 64: NOT an idle machine, "
        "measure again."
    )


def test_an_older_file_is_judged_by_the_cores_of_its_circumstances() -> None:
    audit = an_audit({}).model_copy(update={"others_percent": 1.6})
    many = audit.environment.model_copy(update={"cores": 64})
    assert "NOT an idle" in make_verdict(audit.model_copy(update={"environment": many}))[1]
