"""Audits of figures that are given, round by round."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from clipdepth_plugin.environment import describe_circumstances
from clipdepth_plugin.latency.audit import to_range
from clipdepth_plugin.latency.intervals import Values, compare, median_interval
from clipdepth_plugin.latency.schema import Added, Audit, Figure, HostSummary, Settings

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
        environment=describe_circumstances(["clipdepth", "bench"]),
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
