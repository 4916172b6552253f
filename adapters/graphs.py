"""Whether a host is being recorded as a CUDA graph, whose replays run no hook."""

from __future__ import annotations

import torch


def in_cuda_graph() -> bool:
    """Whether the current stream is being captured; False where CUDA was never used.

    False in compiled code, too, whose graphs are the compiler's own affair.
    """
    if torch.compiler.is_compiling() or not torch.cuda.is_initialized():
        return False
    return torch.cuda.is_current_stream_capturing()
