"""Runs a policy once more, and leaves it as it was."""

from __future__ import annotations

import contextlib
import random
import sys
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

_MODULES_OWN = frozenset(vars(nn.Module()))


@contextlib.contextmanager
def unchanged(policy: nn.Module) -> Iterator[None]:
    """Whatever runs inside, without a graph: modes, queues and random states are as before."""
    modes = [(module, module.training) for module in policy.modules()]
    own = dict(vars(policy))
    vars(policy).update(
        {name: _copied(value) for name, value in own.items() if name not in _MODULES_OWN}
    )
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    devices = {p.device.index for p in policy.parameters() if p.is_cuda}
    eager: Any = contextlib.nullcontext()
    if "torch._dynamo" in sys.modules:
        eager = torch.compiler.set_stance("force_eager")
    try:
        with torch.random.fork_rng(devices=[*devices]), torch.no_grad(), eager:
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        for name in vars(policy).keys() - own:
            del vars(policy)[name]
        vars(policy).update(own)
        for module, mode in modes:
            module.training = mode


def _copied(value: Any) -> Any:
    """A container of its own; what lies in the innermost is shared."""
    if type(value) is dict:
        return {key: _copied(one) for key, one in value.items()}
    if type(value) is deque:
        return deque(map(_copied, value), value.maxlen)
    return list(map(_copied, value)) if type(value) is list else value
