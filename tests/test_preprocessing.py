"""Preprocessing is read from the configs of timm and open_clip as those libraries mean it."""

from __future__ import annotations

from dataclasses import replace

from clipdepth_plugin.adapters.library_configs import from_open_clip, from_timm
from clipdepth_plugin.adapters.preprocessing import HALF_NORMALISATION, Preprocessing


def test_at_another_size() -> None:
    crops = Preprocessing(*HALF_NORMALISATION, (224, 224), "shortest", 256)
    assert crops.at_size((112, 112)) == replace(crops, size=(112, 112), resize_to=128)
    squashes = Preprocessing(*HALF_NORMALISATION, (224, 224), "squash")
    assert squashes.at_size((112, 56)) == replace(squashes, size=(112, 56))


def test_timm_and_open_clip() -> None:
    base = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    centre = from_timm({**base, "input_size": (3, 224, 224), "crop_pct": 0.9})
    assert centre == Preprocessing(*HALF_NORMALISATION, (224, 224), "shortest", 248)
    squash = from_timm({**base, "input_size": (3, 8, 4), "crop_mode": "squash"})
    assert squash is not None
    assert (squash.size, squash.resize) == ((8, 4), "squash")
    assert from_timm({}) is None
    longest = from_open_clip({**base, "size": 32, "resize_mode": "longest"})
    assert longest == Preprocessing(*HALF_NORMALISATION, (32, 32), "fit")
    oblong = from_open_clip({**base, "size": (32, 16), "resize_mode": "shortest"})
    assert oblong is not None
    assert (oblong.resize, oblong.unknown) == (
        None,
        "open_clip's resize_mode 'shortest' to 32 x 16",
    )
    assert from_open_clip({"size": 3}) is None
