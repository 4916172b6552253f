"""Pictures to label, of every kind: one file each, which registers it."""

from clipdepth_plugin.labelling.pictures import files, lerobot, streams, videos  # registers them
from clipdepth_plugin.labelling.pictures.kinds import (
    Content,
    Pictures,
    PictureSpec,
    Unread,
    open_pictures,
    register_pictures,
)

__all__ = [
    "Content",
    "PictureSpec",
    "Pictures",
    "Unread",
    "files",
    "lerobot",
    "open_pictures",
    "register_pictures",
    "streams",
    "videos",
]
