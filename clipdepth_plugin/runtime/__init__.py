"""Runs exported folders (``clipdepth export``) with onnxruntime, NumPy and Pillow: no torch."""
