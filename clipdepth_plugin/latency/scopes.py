"""What of a host is measured: the names that options, baselines and reports share."""

from __future__ import annotations

from typing import Literal

BaselineScope = Literal["tower", "prefill", "whole"]
"""``tower``: the vision tower alone. ``prefill``: picture and prompt through a multimodal model,
before its first token. ``whole``: any other forward of the host, for callers of ``audit``."""

ScopeChoice = Literal["auto", "tower", "prefill"]
"""``auto``: the tower, and the prefill where the host has a language model that takes a prompt made
of picture tokens."""
