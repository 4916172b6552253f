"""The fused ops, each with a PyTorch reference and a Triton kernel; tensors in, tensors out.

Every op takes ``triton``: None chooses (the kernel where the tensors are on an NVIDIA GPU and it
can take them, else the reference), False is the reference, True must work or raise a
``KernelError`` that says why it can't; so do shapes that do not fit. What was chosen is logged once
for each op and reason (``logging``, level INFO); there is no silent fallback.

The kernels are ``torch.library`` ops of the namespace ``clipdepth``: torch.compile and torch.export
see through them. Maps are channels last, (B, C, H, W) with the strides of (B, H, W, C).
"""

from clipdepth_plugin.kernels.convex_depth import convex_depth
from clipdepth_plugin.kernels.depth_readout import depth_readout
from clipdepth_plugin.kernels.dispatch import use_triton
from clipdepth_plugin.kernels.film_mlp import film_mlp
from clipdepth_plugin.kernels.film_project import film_project
from clipdepth_plugin.kernels.gated_skips import gated_skips
from clipdepth_plugin.kernels.join_conv import join_conv
from clipdepth_plugin.kernels.normed_project import normed_project
from clipdepth_plugin.kernels.up_conv import up_conv

__all__ = [
    "convex_depth",
    "depth_readout",
    "film_mlp",
    "film_project",
    "gated_skips",
    "join_conv",
    "normed_project",
    "up_conv",
    "use_triton",
]
