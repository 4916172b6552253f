"""The learning rate of each step: linear warm-up, then a cosine."""

from __future__ import annotations

import math


def learning_rate(step: int, total: int, *, peak: float, final: float, warmup: float) -> float:
    """Learning rate of one optimiser step; a pure function, so a resumed run needs no state.

    Args:
        step: The step, from 0.
        total: Steps in the whole run.
        peak: Learning rate at the end of the warm-up.
        final: Learning rate of the last step.
        warmup: Share of the run that warms up, 0 to 1.

    Returns:
        ``peak * (step + 1) / w`` in the ``w = ceil(warmup * total)`` warm-up steps, then half a
        cosine from ``peak`` to ``final``.
    """
    rising = math.ceil(warmup * total)
    if step < rising:
        return peak * (step + 1) / rising
    progress = min((step - rising) / max(total - rising - 1, 1), 1.0)
    return final + (peak - final) * 0.5 * (1.0 + math.cos(math.pi * progress))
