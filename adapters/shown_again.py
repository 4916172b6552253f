"""Which view of which tower pass shows a camera: told by the pixels, no order is believed.

The policy is shown the same batch again with one camera's pictures in the place of all others: all
that its tower sees is then that camera, and the view that saw these very pixels is the camera's.
Pictures of one colour, and one of coordinates, tell which row of the batch a view is of, and where
in the picture it lies. Runs end where the tower has its pixels.

Axes: B rows of the batch, V views, 3 H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipdepth_plugin.adapters.level_hook import leaving_early
from clipdepth_plugin.adapters.named_pictures import NamedPictures, Stage
from clipdepth_plugin.adapters.pass_recorder import PassRecorder
from clipdepth_plugin.adapters.passes import TowerPass
from clipdepth_plugin.adapters.probe_pictures import (
    INSTEAD,
    is_picture,
    like,
    picture_size,
    place_of,
    row_codes,
    row_of,
    rows_of,
)
from clipdepth_plugin.adapters.processors.behaviour import coordinates
from clipdepth_plugin.adapters.running import TowerState
from clipdepth_plugin.adapters.taps import Taps
from clipdepth_plugin.adapters.unchanged import unchanged
from clipdepth_plugin.errors import HostError, NoDepthError
from clipdepth_plugin.maps.geometry import ViewGeometry


@dataclass(frozen=True)
class CameraViews:
    """Where a camera's pictures are.

    Attributes:
        views: The pass and the number of its view, for each row of the batch: no two are the same.
        geometry: Where such a view lies in the picture.
        real_B: Which rows are pictures, and no padding.
    """

    views: list[tuple[TowerPass, int]]
    geometry: ViewGeometry
    real_B: Tensor


@dataclass(frozen=True)
class _Way:
    """From pictures to views: the row of each view (None: filled in), and its place."""

    rows: list[int | None]
    geometry: ViewGeometry
    early: bool


class ShownAgain:
    """Finds cameras in the passes of a tower; remembers how the policy prepares pictures."""

    def __init__(self, recorder: PassRecorder, taps: Taps) -> None:
        self._recorder = recorder
        self._taps = taps
        self._ways: dict[Any, _Way | None] = {}

    def find(self, named: NamedPictures, name: str) -> CameraViews:
        """The views that show a camera.

        Raises:
            HostError: The policy has no picture of that name; or what its tower sees of it is not
                the picture resized, cropped and padded.
            NoDepthError: It was not in the batch, or no pass saw it for certain.
        """
        if name not in named.names:
            known = ", ".join(map(repr, named.names)) or "none"
            raise HostError(f"{name!r} is no picture of this policy: it has {known}")
        stage, way = self._stage(named, name)
        picture = stage.batch[name]
        again = self._views(named, stage, picture, early=way.early)
        seen = [(one, view, x) for one in named.passes for view, x in enumerate(one.pictures())]
        found: list[tuple[TowerPass, int]] = []
        for row in range(rows_of(picture)):
            mine = [x for x, of in zip(again, way.rows, strict=True) if of == row]
            if not mine or any(not _same(x, mine[0]) for x in mine[1:]):
                raise NoDepthError(
                    f"the tower sees several views of {name!r} that differ (frames, tiles), or it "
                    f"is prepared at random: read {INSTEAD}"
                )
            view = _search(seen, mine[0], found)
            if view is None:
                raise NoDepthError(
                    f"none of the {len(named.passes)} tower passes of the policy's last run saw "
                    f"the pixels of {name!r}: the batch was written into since, or the policy "
                    f"prepares pictures at random or otherwise beside others. Read {INSTEAD}"
                )
            found.append(view)
        real = stage.batch.get(f"{name}_padding_mask")
        real_B = torch.ones(len(found), dtype=torch.bool) if real is None else real.bool()
        return CameraViews(found, way.geometry, real_B)

    def _stage(self, named: NamedPictures, name: str) -> tuple[Stage, _Way]:
        """The last place where the names still decide what the tower sees."""
        given: list[str] = []
        for stage in reversed(named.stages):
            given = [one for one in named.names if is_picture(stage.batch.get(one))]
            if not given:
                continue
            asked = name if name in given else given[0]
            way = self._way(named, stage, asked)
            if way is None:
                continue
            if name not in given:
                break
            return stage, way
        else:
            if name in given or not given:
                raise NoDepthError(_PREPARED_BEFORE)
        listed = ", ".join(map(repr, given))
        raise NoDepthError(
            f"{name!r} was not in the batch, so the tower saw nothing of it (what a policy fills "
            f"in for it has no depth): the batch had {listed}"
        )

    def _way(self, named: NamedPictures, stage: Stage, name: str) -> _Way | None:
        """How pictures become views from there on; None where they do not."""
        shapes = {one: stage.batch[one].shape for one in named.names if one in stage.batch}
        may_leave = TowerState(named.policy).may_leave_early()  # not while weights are offloaded
        key = (stage.where, name, stage.batch[name].dtype, tuple(shapes.items()), may_leave)
        if key not in self._ways:
            self._ways[key] = self._look(named, stage, stage.batch[name], may_leave=may_leave)
        return self._ways[key]

    def _look(
        self, named: NamedPictures, stage: Stage, picture: Tensor, *, may_leave: bool
    ) -> _Way | None:
        size, count = picture_size(picture), rows_of(picture)
        white_B3HW = torch.ones(count, 3, *size)

        def views(x_B3HW: Tensor, *, early: bool) -> list[Tensor]:
            shown = self._views(named, stage, like(picture, x_B3HW), early=early)
            return [x_3HW.float() for x_3HW in shown]

        for early in (True, False) if may_leave else (False,):
            black, white = (views(x, early=early) for x in (0 * white_B3HW, white_B3HW))
            if any(not _same(*pair) for pair in zip(black, white, strict=True)):
                break
        else:
            return None
        coded = views(white_B3HW * row_codes(count)[:, :, None, None], early=early)
        place_3HW = torch.from_numpy(np.array(coordinates(size))).permute(2, 0, 1) / 255
        placed = views(place_3HW.expand_as(white_B3HW), early=early)
        rows: list[int | None] = []
        geometries = set()
        for low, high, code, place in zip(black, white, coded, placed, strict=True):
            at = (high - low).abs().sum(dim=0).flatten().argmax()
            low_3, span_3 = (x.flatten(1)[:, at] for x in (low, high - low))
            if not bool(span_3.all()):  # filled in: the same whatever the picture is
                rows.append(None)
                continue
            rows.append(row_of((code.flatten(1)[:, at] - low_3) / span_3, count))
            rgb_3HW = (place - low_3[:, None, None]) / span_3[:, None, None]
            geometries.add(place_of(rgb_3HW.cpu(), size))
        if len(geometries) != 1:
            raise HostError(
                f"the tower's views of one picture lie in {len(geometries)} ways in it: read "
                f"{INSTEAD}"
            )
        return _Way(rows, geometries.pop(), early)

    def _views(
        self, named: NamedPictures, stage: Stage, picture: Tensor, *, early: bool
    ) -> list[Tensor]:
        """What the tower sees where all pictures are that one: its first pass, or all of them."""
        batch = dict(stage.batch)
        batch.update({one: picture.clone() for one in named.names if one in batch})
        recorder = self._recorder
        self._taps.install(watch=False)
        with unchanged(named.policy), recorder.privately() as seen:
            try:
                with leaving_early(recorder, allowed=early, with_pixels=True):
                    stage.go_on(batch)
            except Exception as error:
                raise NoDepthError(
                    "the policy can't be shown its batch again, to tell which view is whose "
                    f"({type(error).__name__}: {error}). Read {INSTEAD}"
                ) from error
            finally:
                self._taps.remove()
        return [x_3HW for one in seen for x_3HW in one.pictures()]


_PREPARED_BEFORE = (
    "this policy is given pixels that were prepared before it, not pictures by name: give attach "
    "the pipeline that prepares them, attach(policy, head, processor=preprocessor), and run the "
    f"preprocessor while attached. Or read {INSTEAD}"
)


def _search(
    seen: list[tuple[TowerPass, int, Tensor]], x_3HW: Tensor, taken: list[tuple[TowerPass, int]]
) -> tuple[TowerPass, int] | None:
    """The first view that saw these pixels and is no other row's: rows may show the same."""
    for one, view, other_3HW in seen:
        if (one, view) not in taken and _same(x_3HW, other_3HW):
            return one, view
    return None


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)
