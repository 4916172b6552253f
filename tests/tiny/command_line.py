"""The command line run as a user runs it, and a tiny host in a folder for it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel
from typer.testing import CliRunner, Result

from clipdepth_plugin._cli_app import app

PROCESSOR = {
    "image_processor_type": "CLIPImageProcessor",
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "size": {"height": 32, "width": 32},
}


def save_tiny_host(folder: Path) -> None:
    """A CLIP tower of four blocks and its processor."""
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
    )
    CLIPVisionModel(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))


def run(*arguments: str | Path) -> Result:
    """One command."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def words(text: str) -> str:
    """Its text however it was wrapped."""
    return re.sub(r"\s+", " ", text)
