"""Pictures and depth maps on disk."""
