"""Whether a tower's maps are right: a change of one patch must come out at that patch's place.

Each tower is shown a picture, and the picture with one patch changed, once for each patch, in one
pass. In every level of the view of each changed picture the token that differs most from the
unchanged picture's must be that patch's, in a map read row by row. Unlike a tower whose weights
carry coordinates (``tests/test_packed_hosts.py``), this one computes as its library made it, blocks
and norms of all kinds included; its weights are small, so that each token stays mostly its own.

Axes: B views, N = h * w patch tokens, D width, H W pixels.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import transformers
from einops import rearrange
from host_sweep_hosts import DEPTH, FRAMES, PATCH, SIDE
from torch import Tensor, nn
from transformers.models.auto import image_processing_auto

from clipdepth_plugin import DepthHead, TowerFeatures, attach
from clipdepth_plugin.adapters.families.hf_qwen import QwenRule
from clipdepth_plugin.adapters.towers import Tower
from clipdepth_plugin.errors import ClipDepthError

if TYPE_CHECKING:
    from tests.tiny.case import HostCase
    from tests.tiny.packed_case import PackedCase

Inputs = dict[str, Any]
_PICTURES = (
    *("pixel_values_images", "pixel_values_videos", "hidden_states", "images", "pixels", "x"),
    *("patches", "flattened_patches"),
)
_OPTIONS: dict[str, dict[str, Any]] = {
    "MllamaImageProcessor": {"size": dict.fromkeys(("height", "width"), PATCH * SIDE)},
    "Gemma4ImageProcessor": {"max_soft_tokens": 70, "pooling_kernel_size": 2},
    "NemotronH_Omni_Reasoning_V3ImageProcessor": {"min_num_patches": 1},
}
_PROCESSORS = {
    "hf_qwen": ["Qwen2VLImageProcessor"],
    "hf_siglip": ["Siglip2ImageProcessor"],
    "hf_given_places": ["Gemma4ImageProcessor"],
}
"""Of towers whose folders have none of their own in the library's table."""
_PACKING_ALONE = {
    "do_rescale": False,
    "do_normalize": False,
    "do_resize": False,
    "do_center_crop": False,
    "do_convert_rgb": False,
    "do_image_splitting": False,
    "crop_to_patches": False,
    "patch_size": PATCH,
    "encoder_patch_size": PATCH,
}


@dataclass(frozen=True)
class Verdict:
    """What became of one tower: works, refused on reading, not run or wrong; why, and by what."""

    verdict: str
    why: str = ""
    through: str = ""


def pictures(grid: tuple[int, int]) -> list[Tensor]:
    """A random picture (3, H, W) of that many patches, and it with each of them changed."""
    h, w = grid
    noise = torch.Generator().manual_seed(1)
    first = torch.rand(3, h * PATCH, w * PATCH, generator=noise)
    changed = []
    for y in range(h):
        for x in range(w):
            one = first.clone()
            rows, columns = slice(y * PATCH, (y + 1) * PATCH), slice(x * PATCH, (x + 1) * PATCH)
            one[:, rows, columns] = torch.rand(3, PATCH, PATCH, generator=noise) * 4 - 1.5
            changed.append(one)
    return [first, *changed]


def prove(host: nn.Module, tower: Tower, case: HostCase | PackedCase | None = None) -> Verdict:
    """Runs a host on such pictures and looks where they come out; by its tests' way, if given."""
    square = _square(tower) or getattr(case, "tile", None) is not None
    grids = [(SIDE, SIDE)] if square else [(SIDE, SIDE), (SIDE, SIDE + 2)]
    options: dict[str, Any] = {"context": "mean", "channels": (8, 8, 8, 8)}
    if tower.depth >= DEPTH:
        options |= {"semantic_levels": (tower.depth, 3, 2, 1), "structural_levels": (2, 1, 0)}
    head = DepthHead.for_host(host, tower=tower.path, **options).eval()
    why: list[str] = []
    shown_by = ""
    for grid in grids:
        shown = pictures(grid)
        with attach(host, head, tower=tower.path) as plugin, torch.no_grad():
            for through, run in _tested(host, shown, case) if case else _ways(host, tower, shown):
                with plugin.capture() as seen:
                    try:
                        run()
                    except Exception as error:  # noqa: BLE001 - whatever the host makes of it
                        why.append(f"{through}: {type(error).__name__}: {str(error)[:200]}")
                        continue
                if not seen:
                    why.append(f"{through}: ran without a tower pass")
                    continue
                try:
                    views = [v for one in seen for v in _views(one.batches)]
                    _ = seen[-1].depths
                except ClipDepthError as error:
                    return Verdict("refused on reading", str(error), through)
                if "patches" in tower.rule.takes and views[0][0] != grid:
                    why.append(f"{through}: its image processor resized the pictures")
                    continue
                if problem := _misplaced(views, grid, len(shown)):
                    return Verdict("wrong", problem, through)
                shown_by = through
                break
            else:
                if grid == grids[0]:
                    return Verdict("not run", "; ".join(dict.fromkeys(why)))
    return Verdict("works", "", shown_by)


def _square(tower: Tower) -> bool:
    return tower.rule.takes == ("images", 3, "H", "W")


def _views(batches: list[TowerFeatures]) -> Iterator[tuple[tuple[int, int], dict[int, Tensor]]]:
    """The grid and the tokens (N, D) by level of each view, in order."""
    for one in batches:
        for index in range(one.batch):
            yield one.grid, {level: x_BND[index] for level, x_BND in one.levels.items()}


def _misplaced(views: list[Any], grid: tuple[int, int], count: int) -> str:
    """What is wrong with the views' places; nothing where all are right."""
    if len(views) % count:
        return f"{len(views)} views of {count} pictures"
    each = len(views) // count
    for view in range(each):
        base_grid, base = views[view]
        if base_grid != grid:
            return f"a map of {base_grid} patches for a picture of {grid}"
        for patch in range(count - 1):
            _, levels = views[(patch + 1) * each + view]
            for level, tokens_ND in levels.items():
                moved_N = (tokens_ND - base[level]).float().norm(dim=1)
                place = int(moved_N.argmax())
                if place != patch or not float(moved_N[patch]) > 0:
                    return (
                        f"level {level}: a change of patch {divmod(patch, grid[1])} came out at "
                        f"{divmod(place, grid[1])} of {grid}"
                    )
    return ""


def _tested(
    host: nn.Module, shown: list[Tensor], case: HostCase | PackedCase
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """The way that its row of the tests' tables shows a host pictures."""
    from tests.tiny.case import HostCase

    inputs: Any = torch.stack(shown) if isinstance(case, HostCase) else case.pack(shown)
    yield f"tests/tiny: {case.name}", lambda: case.run(host, inputs)


def _ways(
    host: nn.Module, tower: Tower, shown: list[Tensor]
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Ways to show a host pictures: by its own image features, its forward, its tower alone."""
    names = ("get_image_features", "get_video_features")
    own: list[tuple[str, Any]] = [(one, getattr(host, one)) for one in names if hasattr(host, one)]
    own.append(("forward", host))
    if tower.path:
        own.append((f"{tower.path} alone", tower.module))
    for through, call in own:
        parameters = inspect.signature(call.forward if isinstance(call, nn.Module) else call)
        for inputs in _inputs(host, tower, shown):
            if given := _given(inputs, [*parameters.parameters]):
                yield through, functools.partial(call, **given)


def _given(inputs: Inputs, parameters: list[str]) -> Inputs:
    """The inputs by the names that a function has for them; none where it takes no pictures."""
    more = "kwargs" in parameters and "pixel_values" in parameters
    given = {name: x for name, x in inputs.items() if name in parameters or more}
    if not given.keys() & {"pixel_values", *_PICTURES}:
        if "pixel_values" not in inputs:
            return {}
        name = next((name for name in _PICTURES if name in parameters), None)
        if name is None:
            return {}
        given[name] = inputs["pixel_values"]
    for name in ("grid_thw", "spatial_shapes"):
        other = "image_grid_thw"
        if name in parameters and other in inputs:
            given[name] = inputs[other]
    return given


def _inputs(host: nn.Module, tower: Tower, shown: list[Tensor]) -> Iterator[Inputs]:
    """What pictures become: a batch, or what the library's own image processor makes of them."""
    batch_B3HW = torch.stack(shown) if len({x.shape for x in shown}) == 1 else None
    if batch_B3HW is not None and "patches" not in tower.rule.takes:
        yield {"pixel_values": batch_B3HW}
        yield {"pixel_values": batch_B3HW[:, None].repeat(1, FRAMES, 1, 1, 1)}
        prompt = torch.ones(len(shown), 4, dtype=torch.long)
        yield {"pixel_values": batch_B3HW, "input_ids": prompt, "attention_mask": prompt}
        yield _one_tile(batch_B3HW)
        yield _in_a_row(batch_B3HW)
    auto: Any = image_processing_auto
    known = auto.IMAGE_PROCESSOR_MAPPING_NAMES
    types = [
        getattr(getattr(one, "config", None), "model_type", "") for one in (host, tower.module)
    ]
    folder = type(host).__module__.split(".")[-2:-1]  # a tower alone has its host's processor
    own = [_named(known[one]) for one in [*types, *folder] if one in known]
    for name in dict.fromkeys(own or _PROCESSORS.get(tower.family, [])):
        with contextlib.suppress(Exception):  # whatever one makes of options that it has not
            options = {**_PACKING_ALONE, **_OPTIONS.get(name, {})}
            if isinstance(tower.rule, QwenRule):
                options["temporal_patch_size"] = tower.rule.frames
            processor = getattr(transformers, name)(**options)
            yield dict(processor(images=shown, return_tensors="pt"))


def _one_tile(batch_B3HW: Tensor) -> Inputs:
    """As Mllama's processor packs pictures that are one tile each."""
    ones = torch.ones(len(batch_B3HW), 1, 1, dtype=torch.long)
    tiles = {"pixel_values": batch_B3HW[:, None, None], "aspect_ratio_ids": ones[..., 0]}
    return {**tiles, "aspect_ratio_mask": ones}


def _in_a_row(batch_B3HW: Tensor) -> Inputs:
    """As MiniCPM-V's processor packs pictures: all patches in one picture that is a patch high."""
    pattern = "b c (h p) (w q) -> 1 c p (b h w q)"
    row = rearrange(batch_B3HW, pattern, p=PATCH, q=PATCH)
    size = [side // PATCH for side in batch_B3HW.shape[2:]]
    return {"pixel_values": row, "target_sizes": torch.tensor([size] * len(batch_B3HW))}


def _named(names: Any) -> str:
    """The name of a processor in transformers' own table."""
    return str(names.get("torchvision") if isinstance(names, dict) else names[-1])
