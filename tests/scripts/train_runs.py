"""Trains the runs that a JSON file lists, one after another: [[config's fields, resume], ...].

Arguments: the file, and ``sharded`` for FSDP on the CPU, which accelerate takes for GPUs only.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType

from clipdepth_plugin.training.config_file import check_config
from clipdepth_plugin.training.engine import train


def pretend_gpus() -> None:
    """Lets accelerate believe that its processes, which gloo joins, have a GPU each."""
    PartialState(cpu=True)._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def main() -> None:
    torch.set_num_threads(1)
    for tree, resume in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        if "sharded" in sys.argv[2:]:
            pretend_gpus()
        train(check_config(tree, "test"), resume=resume)


if __name__ == "__main__":
    main()
