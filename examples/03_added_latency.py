"""Use 3: what depth adds to a host's own time, with an interval.

    python examples/03_added_latency.py

The command line does the same for any host, beside a separate depth network, with plots:
clipdepth bench config:vit-b-16 -o report/
"""

from __future__ import annotations

import sys

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from clipdepth_plugin import DepthHead, find_towers
from clipdepth_plugin.environment import describe_circumstances
from clipdepth_plugin.latency.audit import Method, Subject, audit
from clipdepth_plugin.latency.bases import make_pixels, tower_base


def main() -> None:
    """Audits a small tower; random weights take the same time as trained ones."""
    torch.manual_seed(0)
    config = CLIPVisionConfig(hidden_size=192, intermediate_size=768, num_attention_heads=3)
    host = CLIPVisionModel(config).eval()
    (tower,) = find_towers(host)
    pixels = make_pixels(tower, batch=1)
    subject = Subject("mine", "a small ViT", host, tower, pixels, [tower_base(tower, pixels)])
    heads = {"fast": DepthHead.for_host(host, preset="fast").eval()}
    report = audit(
        subject, heads, describe_circumstances(sys.argv), method=Method(rounds=10, warmup=1)
    )
    print(*report.verdict, sep="\n")


if __name__ == "__main__":
    main()
