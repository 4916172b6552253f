"""Audits of given figures, round by round."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from clipdepth_plugin.environment import describe_environment
from clipdepth_plugin.latency.intervals import Values, compare
from clipdepth_plugin.latency.schema import Audit

ROUNDS = 16
TOWER: Values = np.array([0.1001, 0.0999] * (ROUNDS // 2))


def an_audit(heads: Mapping[str, Values], *, memory_mib: float | None = None) -> Audit:
    """A tower of 0.1 s, and heads that add these seconds in each round and so much memory."""
    again = TOWER[::-1]
    figures = [_figure("tower alone", "alone", TOWER), _figure("tower again", "control", again)]
    for head, seconds in heads.items():
        found = compare(TOWER + seconds, TOWER, again)
        added = {
            "baseline": "tower",
            "milliseconds": found.difference.scaled(1e3),
            "percent": found.ratio.scaled(100.0, shift=-1.0),
            "significant": found.significant,
            "memory_mib": memory_mib,
        }
        beside = _figure(f"tower + {head}, eager", "depth", TOWER + seconds)
        figures.append(beside | {"head": head, "form": "eager", "added": (added,)})
    host = {
        "label": "a tower", "model": "Tower", "parameters": 1, "tower_parameters": 1,
        "prompt_tokens": None,
    }  # fmt: skip
    return Audit.model_validate(
        {
            "environment": describe_environment(["clipdepth", "bench"]),
            "host": host,
            "settings": {"batch": 1, "size": (32, 32), "rounds": ROUNDS, "warmup": 0, "seed": 0},
            "heads": {},
            "noise_percent": {},
            "figures": figures,
        }
    )


def _figure(name: str, what: str, seconds: Values) -> dict[str, Any]:
    median_ms = 1e3 * float(np.median(seconds))
    return {
        "name": name, "scope": "tower", "what": what, "p50_ms": median_ms, "p95_ms": median_ms,
        "peak_mib": None, "gflops": None, "seconds": tuple(seconds),
    }  # fmt: skip
