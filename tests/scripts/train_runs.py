"""Trains the runs that a JSON file lists, one after another: [[config's fields, resume], ...]."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from clipdepth_plugin.training.config_file import check_config
from clipdepth_plugin.training.engine import train


def main() -> None:
    torch.set_num_threads(1)
    for tree, resume in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        train(check_config(tree, "test"), resume=resume)


if __name__ == "__main__":
    main()
