"""What a tower is called with: random pixels, or what a call of its host's gives it.

Axes: B pictures or clips, T frames of a clip, H W pixels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from clipdepth_plugin.adapters.pass_recorder import PassRecorder
from clipdepth_plugin.adapters.passes import TowerPass
from clipdepth_plugin.adapters.running import TowerRunner
from clipdepth_plugin.adapters.taps import Taps
from clipdepth_plugin.adapters.towers import Tower
from clipdepth_plugin.adapters.traits import parameters_of, required_by
from clipdepth_plugin.adapters.wanted import Wanted
from clipdepth_plugin.arguments import Size
from clipdepth_plugin.errors import BenchError, ClipDepthError
from clipdepth_plugin.features import Views

OWN_CALL = (
    "or measure a call of your own from Python, audit(subject_from_call(host, lambda: host(...)), "
    "heads): see docs/cost.md"
)
_PICTURES = {"images", "clips", "frames", 3, "H", "W"}
_FRAMES = ("num_frames", "frames_per_clip")


@dataclass(frozen=True)
class TowerInputs:
    """Pixels as the tower takes them, and its other arguments by name."""

    pixels: Tensor
    arguments: Mapping[str, Any] = field(default_factory=dict)


def takes_pictures(tower: Tower) -> bool:
    """Whether a tower takes pictures or clips and nothing else, so that random ones will do."""
    return {*tower.rule.takes} <= _PICTURES and len(required_by(tower.module)) <= 1


def input_size(tower: Tower, size: Size | None) -> Size:
    """The (H, W) that is asked for, or else the tower's own."""
    size = size or tower.image_size
    if size is None:
        raise BenchError(f"the tower {tower} does not know its input size: give one (--size)")
    return size


def random_inputs(tower: Tower, batch: int, size: Size | None = None) -> TowerInputs:
    """(B, 3, H, W) random pixels, or (B, T, 3, H, W), on the tower's device and in its dtype.

    Raises:
        BenchError: The tower takes something else, or does not know its size.
    """
    if not takes_pictures(tower):
        axes = ", ".join(map(str, tower.rule.takes))
        needs = " and ".join((f"pixels ({axes})", *required_by(tower.module)[1:]))
        raise BenchError(
            f"the tower {tower} takes {needs}, which its host's image processor makes of pictures: "
            f"give that as make_subject(..., processor=...), {OWN_CALL}"
        )
    size = input_size(tower, size)
    lengths = {"images": batch, "clips": batch, "H": size[0], "W": size[1]}
    if "frames" in tower.rule.takes:
        lengths["frames"] = _frames_of(tower)
    shape = [axis if isinstance(axis, int) else lengths[axis] for axis in tower.rule.takes]
    weight = next(tower.patch_embed.parameters())
    draws = torch.Generator().manual_seed(0)
    arguments = {}
    resized = tower.image_size is not None and size != tower.image_size
    if resized and "interpolate_pos_encoding" in parameters_of(tower.module):
        arguments["interpolate_pos_encoding"] = True
    return TowerInputs(torch.randn(shape, generator=draws).to(weight), arguments)


def _frames_of(tower: Tower) -> int:
    config = getattr(tower.module, "config", None)
    for name in _FRAMES:
        if isinstance(frames := getattr(config, name, None), int):
            return frames
    raise BenchError(f"the tower {tower} does not know how long its clips are: {OWN_CALL[3:]}")


def seen_inputs(tower: Tower, call: Callable[[], object]) -> tuple[TowerInputs, int]:
    """What a call gives the tower in its first pass, and how many passes it makes.

    Raises:
        BenchError: It makes none, or one without a tensor of pixels.
    """
    names = parameters_of(tower.module)
    seen: list[dict[str, Any]] = []

    def look(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append({**dict(zip(names, args, strict=False)), **kwargs})

    handle = tower.module.register_forward_pre_hook(look, with_kwargs=True)
    try:
        with torch.no_grad():
            call()
    finally:
        handle.remove()
    if not seen:
        raise BenchError(
            f"the call does not run the tower {tower}, or it was compiled or graphed before: give "
            "one that shows the host a picture"
        )
    pixels = seen[0].pop(next(iter(names), ""), None)
    if not isinstance(pixels, Tensor):
        raise BenchError(
            f"the call gives the tower {tower} {type(pixels).__name__}, expected a tensor of pixels"
        )
    return TowerInputs(pixels.detach().clone(), seen[0]), len(seen)


def views_of(model: nn.Module, tower: Tower, inputs: TowerInputs) -> tuple[Views, ...]:
    """The views that the tower sees in a pass, neighbours of one size together.

    Raises:
        NoDepthError: It is not known how their tokens are laid out.
    """
    recorder = PassRecorder(Wanted(tower, (0,)), TowerPass)
    runner = TowerRunner(tower, Taps(model, tower, recorder, owner=recorder), recorder)
    return runner.run(inputs.pixels, dict(inputs.arguments)).views


@contextlib.contextmanager
def failures_as_errors(problem: str, advice: str) -> Iterator[None]:
    """Raises BenchError for any error inside: models and processors raise almost anything."""
    try:
        yield
    except ClipDepthError:
        raise
    except Exception as error:
        first = next(iter(str(error).strip().splitlines()), "no message")
        raise BenchError(f"{problem} ({type(error).__name__}: {first}); {advice}") from error
