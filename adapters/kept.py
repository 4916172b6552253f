"""What is kept of a tensor that was tapped, and whether it was written into since."""

from __future__ import annotations

import torch
from torch import Tensor

Kept = tuple[Tensor, int | None]
"""A tensor as tapped, and its version then, as hosts may write into it later; None where they can't
or where it is a copy."""


def keep(x: Tensor, compiles: bool) -> Kept:
    """A reference; a copy where writes could not be noticed (inference mode)."""
    if compiles:
        return x.detach(), None
    try:
        version = x._version
    except RuntimeError:  # an inference tensor; ``is_inference`` would be a call more for each
        return x.clone(), None
    return (x.detach() if x.requires_grad else x), version


def unwritten(kept: Kept | None) -> Kept | None:
    """The same; None where nothing is kept, or the host has written into it."""
    if kept is None:
        return None
    x, version = kept
    return kept if version is None or x._version == version else None


def usable(x: Tensor) -> Tensor:
    """What autograd may save: inference tensors are cloned; code that is compiled has none."""
    return x.clone() if not torch.compiler.is_dynamo_compiling() and x.is_inference() else x
