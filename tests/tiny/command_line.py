"""The command line run as a user runs it, and a tiny host and pictures in folders for it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModel
from typer.testing import CliRunner, Result

from clipdepth_plugin.cli.app import app

PROCESSOR = {
    "image_processor_type": "CLIPImageProcessor",
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "size": {"height": 32, "width": 32},
}


def tiny_host(made: pytest.TempPathFactory) -> Path:
    """The folder of a CLIP tower of four blocks and its processor."""
    folder = made.mktemp("host")
    save_tiny_host(folder)
    return folder


def save_tiny_host(folder: Path) -> CLIPVisionModel:
    """Writes that folder, which exists."""
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
    )
    host = CLIPVisionModel(config)
    host.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return host


def save_pictures(folder: Path, sizes: Mapping[str, tuple[int, int]]) -> None:
    """Random ones; ``sizes``: file name -> (height, width)."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for name, size in sizes.items():
        Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / name)


def run(*arguments: str | Path) -> Result:
    """One command."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def words(text: str) -> str:
    """Its text however it was wrapped."""
    return re.sub(r"\s+", " ", text)
