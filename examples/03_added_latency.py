"""Use 3: what depth adds to a host's own time, with an interval.

    python examples/03_added_latency.py

The command line does the same for any host, beside a separate depth network, with a plot:
clipdepth bench config:vit-b-16 -o report/
"""

from __future__ import annotations

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from clipdepth_plugin.latency.audit import Method, audit
from clipdepth_plugin.latency.subject import make_subject, random_heads


def main() -> None:
    """Audits a small tower; random weights take the same time as trained ones."""
    torch.manual_seed(0)
    config = CLIPVisionConfig(hidden_size=192, intermediate_size=768, num_attention_heads=3)
    subject = make_subject(CLIPVisionModel(config).eval(), label="a small ViT")
    report = audit(subject, random_heads(subject, ["fast"]), method=Method(rounds=10, warmup=1))
    print(*report.verdict, sep="\n")


if __name__ == "__main__":
    main()
