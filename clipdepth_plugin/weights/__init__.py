"""Heads on disk and on the hub: saving, loading, model card, the authors' checkpoints."""
