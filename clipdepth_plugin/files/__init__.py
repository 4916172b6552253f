"""Pictures and depth maps on disk; public: ``save_ply``, ``save_glb`` and ``colourise``."""

from clipdepth_plugin.files.clouds import save_glb, save_ply
from clipdepth_plugin.files.turbo import colourise

__all__ = ["colourise", "save_glb", "save_ply"]
