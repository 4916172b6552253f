"""The verdict's words for figures that are given here, round by round."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from clipdepth_plugin.circumstances import describe_circumstances
from clipdepth_plugin.latency.audit import to_range
from clipdepth_plugin.latency.intervals import Values, compare, median_interval
from clipdepth_plugin.latency.schema import Added, Audit, Figure, HostSummary, Settings
from clipdepth_plugin.latency.verdict import make_verdict

ROUNDS = 16
TOWER: Values = np.array([0.1001, 0.0999] * (ROUNDS // 2))
HOST = HostSummary(
    spec="here", label="a tower", model="Tower", parameters=1, tower="", tower_parameters=1,
    family="vit", blocks=1, width=8, patch=(8, 8), random_weights=True, prompt_tokens=None,
)  # fmt: skip
SETTINGS = Settings(batch=1, size=(32, 32), rounds=ROUNDS, warmup=0, seed=0)


def an_audit(heads: Mapping[str, Values], separate: float = 0.050) -> Audit:
    """Of a tower of 0.1 s, of heads that add these seconds in each round, and a second network."""
    again = TOWER[::-1]
    figures = [_figure("tower alone", "alone", TOWER), _figure("tower again", "control", again)]
    for head, added in heads.items():
        found = compare(TOWER + added, TOWER, again)
        figures.append(
            _figure(f"tower + {head}, eager", "depth", TOWER + added).model_copy(
                update={
                    "head": head,
                    "form": "eager",
                    "added": (
                        Added(
                            base="tower",
                            milliseconds=to_range(found.difference, 1e3),
                            percent=to_range(found.ratio, 100.0, shift=-1.0),
                            told=found.told,
                            memory_mib=None,
                        ),
                    ),
                }
            )
        )
    figures.append(_separate(np.full(ROUNDS, separate)))
    return Audit(
        circumstances=describe_circumstances(["clipdepth", "bench"]),
        host=HOST,
        settings=SETTINGS,
        heads={},
        forms_not_measured={},
        noise_percent={"tower": to_range(median_interval(again / TOWER), 100.0, shift=-1.0)},
        figures=tuple(figures),
    )


def _figure(name: str, what: str, seconds: Values) -> Figure:
    p50_ms = 1e3 * float(np.median(seconds))
    return Figure.model_validate(
        {
            "name": name, "scope": "tower", "what": what, "p50_ms": p50_ms, "p95_ms": p50_ms,
            "p99_ms": p50_ms, "peak_mib": None, "gflops": None, "seconds": tuple(seconds),
        }
    )  # fmt: skip


def _separate(seconds: Values) -> Figure:
    share = Added(
        base="tower",
        milliseconds=to_range(median_interval(seconds), 1e3),
        percent=to_range(median_interval(seconds / TOWER), 100.0),
        told=True,
        memory_mib=None,
    )
    figure = _figure("network", "alone", seconds)
    return figure.model_copy(update={"scope": "separate", "added": (share,)})


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
    many = audit.circumstances.model_copy(update={"cores": 64})
    assert "NOT an idle" in make_verdict(audit.model_copy(update={"circumstances": many}))[1]
