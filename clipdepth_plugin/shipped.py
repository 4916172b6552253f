"""Public door: heads by name."""

from clipdepth_plugin.weights.shipped import load_head

__all__ = ["load_head"]
