"""Heads by name: the one that ships with the package, folders and hub ids."""

from __future__ import annotations

from pathlib import Path

from clipdepth_plugin.head import DepthHead

DEMO_HEAD = Path(__file__).parent / "heads" / "demo"
"""Trained on the demo host; its model card says on what and how good it is."""


def load_head(source: str) -> DepthHead:
    """What ``--head`` takes.

    Args:
        source: ``demo`` for the shipped head (``./demo`` for a folder of that name), a folder
            that ``save_pretrained`` wrote, or a hub id.

    Raises:
        HeadFileError: There is no such head, or it is damaged.
    """
    return DepthHead.from_pretrained(DEMO_HEAD if source == "demo" else source)
