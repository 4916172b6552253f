"""TowerFeatures of wrong types, and heads on what is no TowerFeatures: FeaturesErrors all."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from clipdepth_plugin import DepthHead, HeadConfig, TowerFeatures
from clipdepth_plugin.errors import ClipDepthError, FeaturesError

TOKENS = torch.zeros(2, 9, 8)
GOOD: dict[str, Any] = {
    "levels": {0: TOKENS, 1: TOKENS},
    "context": torch.zeros(2, 8),
    "grid": (3, 3),
    "pixels": torch.zeros(2, 3, 12, 12),
}


def named(fields: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}"[:40].replace("\n", "") for name, value in fields.items())


@pytest.mark.parametrize(
    "odd",
    [
        {"levels": None},
        {"levels": [TOKENS]},
        {"levels": TOKENS},
        {"levels": 3},
        {"levels": "levels"},
        {"levels": {}},
        {"levels": {"0": TOKENS}},
        {"levels": {-1: TOKENS}},
        {"levels": {0.5: TOKENS}},
        {"levels": {True: TOKENS}},
        {"levels": {0: None}},
        {"levels": {0: TOKENS.numpy()}},
        {"levels": {0: TOKENS.tolist()}},
        {"levels": {0: TOKENS.long()}},
        {"levels": {0: TOKENS.bool()}},
        {"levels": {0: TOKENS.to(torch.complex64)}},
        {"levels": {0: TOKENS.to_sparse()}},
        {"levels": {0: TOKENS[0]}},
        {"levels": {0: torch.tensor(0.0)}},
        {"levels": {0: TOKENS[:, 1:]}},
        {"levels": {0: TOKENS, 1: TOKENS[:1]}},
        {"context": [0.0]},
        {"context": 3.0},
        {"context": torch.zeros(2, 8, dtype=torch.long)},
        {"context": torch.zeros(8)},
        {"context": torch.zeros(3, 8)},
        {"grid": None},
        {"grid": 3},
        {"grid": 9.0},
        {"grid": "33"},
        {"grid": (3,)},
        {"grid": (3, 3, 1)},
        {"grid": (3.0, 3.0)},
        {"grid": ("3", "3")},
        {"grid": (-3, -3)},
        {"grid": (0, 0)},
        {"grid": (10**30, 10**30)},
        {"grid": torch.ones(2, 2)},
        {"pixels": "picture"},
        {"pixels": torch.zeros(2, 12, 12)},
        {"pixels": torch.zeros(1, 3, 12, 12)},
    ],
    ids=named,
)
def test_fields(odd: dict[str, Any]) -> None:
    TowerFeatures(**GOOD)
    with pytest.raises(FeaturesError, match=next(iter(odd)).removesuffix("s")):
        TowerFeatures(**{**GOOD, **odd})


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    "odd",
    [
        None,
        3,
        TOKENS,
        GOOD,
        [TowerFeatures(**GOOD)],
        TowerFeatures(**{**GOOD, "levels": {0: TOKENS.to("meta"), 1: TOKENS}}),
        TowerFeatures(**{**GOOD, "context": GOOD["context"].to("meta")}),
        TowerFeatures(**{**GOOD, "context": torch.zeros(2, 7)}),
        TowerFeatures(**{**GOOD, "context": None}),
        TowerFeatures(**{**GOOD, "levels": {0: TOKENS}}),
        TowerFeatures(**{**GOOD, "levels": {0: TOKENS, 1: TOKENS[..., 1:]}}),
    ],
    ids=lambda x: f"{x!r}"[:50].replace("\n", ""),
)
def test_a_head_on(odd: Any, fused: bool) -> None:
    levels: dict[str, Any] = {
        "semantic_levels": (1,),
        "structural_levels": (0,),
        "channels": (8, 4, 4),
    }
    head: Any = DepthHead(HeadConfig(width=8, preset="fast", film_hidden=4, **levels)).eval()
    head = head.fused() if fused else head
    with torch.no_grad(), pytest.raises(FeaturesError):
        head(odd)
    for size in (0, -1, (0, 4), "big", (10**30, 10**30), (1 << 20, 1 << 20), float("nan")):
        with torch.no_grad(), pytest.raises(ClipDepthError):
            head(TowerFeatures(**GOOD), size)


@pytest.mark.parametrize("activation", ["relu", "softplus", "log", "bins"])
@pytest.mark.parametrize("preset", ["spaceclip", "fast"])
def test_of_nan_a_head_makes_nan(preset: str, activation: str) -> None:
    config = HeadConfig(width=8, preset=preset, film_hidden=4, activation=activation)  # type: ignore[arg-type]
    head = DepthHead(config).eval()
    levels = {level: torch.full((1, 9, 8), torch.nan) for level in config.levels}
    features = TowerFeatures(levels, torch.zeros(1, 8), (3, 3))
    with torch.no_grad():
        assert head(features).isnan().all()
        assert head.fused()(features).isnan().all()
