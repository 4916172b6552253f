"""Memory beside the noise of its own measurement."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from clipdepth_plugin.latency import extents
from clipdepth_plugin.latency.bases import Base
from clipdepth_plugin.latency.extents import Extent, measure_extents, memory_noise
from clipdepth_plugin.latency.plan import Entry
from clipdepth_plugin.latency.report import rows
from clipdepth_plugin.latency.rounds import Variant
from tests.tiny.audits import TOWER, an_audit

MIB = 1 << 20
ALONE, AGAIN = (100.0, 100.0, 113.0, 100.0, 100.0), (100.0, 101.0, 100.0, 100.0, 99.0)
WITH_DEPTH = (107.0, 107.0, 120.0, 160.0, 107.0)


def test_peaks_are_medians_of_pairs_and_noise_is_the_largest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One call in five is far off: it decides neither a figure nor that of another variant."""
    peaks = {"tower alone": iter(ALONE), "tower again": iter(AGAIN), "depth": iter(WITH_DEPTH)}

    def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
        return int(MIB * next(peaks[str(call())]))

    def entry(name: str) -> Entry:
        return Entry(Variant(name, lambda: name), "tower", "control")

    monkeypatch.setattr(extents, "peak_bytes", peak_bytes)
    found = measure_extents([entry(name) for name in peaks], torch.device("cpu"))
    assert found["tower alone"].peak_mib == 100.0
    assert found["depth"].above(found["tower alone"]) == (7.0, 7.0, 7.0, 60.0, 7.0)
    assert memory_noise(found, [Base("tower", lambda: None)]) == {"tower": 13.0}


def test_where_memory_cannot_be_read_there_is_none() -> None:
    unknown = Extent(None, None)
    assert unknown.peak_mib is None
    assert unknown.above(Extent((1.0,), None)) is None
    both = {"tower alone": unknown, "tower again": unknown}
    assert memory_noise(both, [Base("tower", lambda: None)]) == {}


@pytest.mark.parametrize(
    ("noise", "cell"), [(13.0, "lost in noise (13.0)"), (7.0, "lost in noise (7.0)"), (1.0, "7.0")]
)
@pytest.mark.parametrize("old", [False, True], ids=["repeated", "a file with one pair"])
def test_memory_that_is_not_more_than_noise_is_called_that(
    noise: float, cell: str, old: bool
) -> None:
    audit = an_audit({"small": TOWER / 10})
    figures = []
    for figure in audit.figures:
        added = tuple(one.model_copy(update={"memory_mib": 7.0}) for one in figure.added)
        peak = {"tower alone": 100.0 + noise, "tower again": 100.0}.get(figure.name)
        figures.append(figure.model_copy(update={"added": added, "peak_mib": peak}))
    update = {"figures": tuple(figures), "memory_noise_mib": {} if old else {"tower": noise}}
    cells = {row[1]: row[7] for row in rows(audit.model_copy(update=update))}
    assert cells["tower + small, eager"] == cells["network"] == cell
    assert cells["tower alone"] == ""
