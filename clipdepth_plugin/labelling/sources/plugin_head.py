"""``head:HEAD@HOST``: a host with one of our heads, by the path of ``predict`` and ``eval``.

Axes: C metres and confidence, H W a picture's size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor

from clipdepth_plugin.adapters.identity import tower_hashes
from clipdepth_plugin.adapters.loading import load_host
from clipdepth_plugin.errors import SourceError
from clipdepth_plugin.head import DepthHead
from clipdepth_plugin.labelling.checked import CheckedSource, Estimate
from clipdepth_plugin.labelling.source import DepthSource, Picture, SourceCard, register_source
from clipdepth_plugin.labelling.versions import bytes_version
from clipdepth_plugin.maps.alignment import inverse_of
from clipdepth_plugin.plugin.depth_plugin import DepthPlugin
from clipdepth_plugin.plugin.pictures import PictureDepth
from clipdepth_plugin.shipped import load_head


@register_source("head")
def open_head(text: str, *, device: str, dtype: str | None) -> DepthSource:
    """Head and host by the names that ``--head`` and ``--host`` take."""
    head_name, _, host_name = text.rpartition("@")
    if not head_name or not host_name:
        raise SourceError(f"head:{text}: expected head:HEAD@HOST, e.g. head:demo@demo")
    head, host = load_head(head_name), load_host(host_name)
    plugin = DepthPlugin(host.model, head, processor=host.preprocessing)
    card = head_card(text, head, plugin)  # before the tower moves, in the dtype it came in
    host.model.to(device, getattr(torch, dtype or "float32"))
    head.to(device)
    return HeadSource(card, PictureDepth(plugin))


def head_card(text: str, head: DepthHead, plugin: DepthPlugin) -> SourceCard:
    """What ``head:HEAD@HOST`` says of itself; ``text`` is HEAD@HOST."""
    config = head.config
    state = {name: x.contiguous() for name, x in head.state_dict().items()}
    tower = tower_hashes(plugin.tower)["float32"]
    metric = config.metric
    return SourceCard(
        source=f"head:{text}",
        units="metres" if metric else "inverse depth",
        version=bytes_version((save(state), config.model_dump_json().encode(), tower.encode())),
        licence=config.provenance.license,
        max_depth=config.saturates_at,
        reads_focal=metric and config.canonical_focal is not None,
    )


class HeadSource(CheckedSource):
    """A plug-in as a source; NaN where the tower did not see the picture, or saw one colour."""

    mixed_sizes = True

    def __init__(self, card: SourceCard, depth_of: PictureDepth) -> None:
        """Keeps both."""
        self.card, self._depth_of = card, depth_of

    def run(self, pictures: Sequence[Picture]) -> list[Estimate]:
        """See ``CheckedSource.run``."""
        images = [Image.fromarray(picture.image_HW3) for picture in pictures]
        cameras = [one.intrinsics for one in pictures] if self.card.reads_focal else None
        return [self._estimate(map_CHW) for map_CHW in self._depth_of(images, cameras)]

    def _estimate(self, map_CHW: Tensor) -> Estimate:
        depth_HW = map_CHW[0]
        if self.card.units == "inverse depth":
            depth_HW = inverse_of(depth_HW)
        return Estimate(depth_HW, depth_HW.isfinite() & (depth_HW > 0), *map_CHW[1:])
