"""Runs a host under DDP, then FSDP, in two gloo processes, alone and with a plug-in; compares.

Arguments: rank, the folder that the processes meet in. Prints each way that went well.
"""

from __future__ import annotations

import sys

import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from clipdepth_plugin import DepthHead, attach


def run(how: str, rank: int, folder: str) -> None:
    """One way in one process; an assertion ends it."""
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
    )
    host: nn.Module = CLIPVisionModel(config).eval()
    head = DepthHead.for_host(host, channels=(16, 8, 8, 8), film_hidden=16).eval()
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(rank))
    with attach(host, head) as plugin, torch.no_grad():
        host(pixels)
        bare = plugin.depth
    meeting = f"file://{folder}/{how}"
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    if how == "ddp":
        host = nn.parallel.DistributedDataParallel(host)
    else:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (2,))
        for block in host.get_submodule("encoder.layers").children():
            fully_shard(block, mesh=mesh)
        fully_shard(host, mesh=mesh)
    with torch.no_grad():
        alone = host(pixels).last_hidden_state
        with attach(host, head) as plugin:
            assert torch.equal(alone, host(pixels).last_hidden_state)
            torch.testing.assert_close(plugin.depth, bare, rtol=0, atol=1e-6)
            torch.testing.assert_close(plugin(pixels), bare, rtol=0, atol=1e-6)
        assert torch.equal(alone, host(pixels).last_hidden_state)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    for way in ("ddp", "fsdp"):
        run(way, int(sys.argv[1]), sys.argv[2])
        print(way, flush=True)  # noqa: T201
