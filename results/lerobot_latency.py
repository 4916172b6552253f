"""Measures what depth adds to a LeRobot policy's select_action: about 2 minutes on two cores.

    LEROBOT_VENV/bin/python results/lerobot_latency.py    # writes lerobot_latency.md and .json

Runs in the environment of `make test-lerobot`, with everything else on the machine stopped. The
policy is LeRobot's pi0 with few and narrow layers and its own numbers of tokens: three cameras of
480 x 640, 256 patches each, 48 words, 50 actions. One interleaved run: see docs/cost.md.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))
# A package that LeRobot needs has one of that name.
importlib.import_module("tests").__path__ = [str(ROOT / "tests")]

from clipdepth_plugin.latency.audit import Method, audit  # noqa: E402
from clipdepth_plugin.latency.report import to_markdown  # noqa: E402
from clipdepth_plugin.latency.subject import random_heads, subject_from_call  # noqa: E402

policies: Any = importlib.import_module("tests.lerobot.policies")

TOWER = {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 12}
TOWER |= {"num_attention_heads": 3, "patch_size": 14}
CAMERAS = {"front": (480, 640), "wrist": (480, 640), "side": (480, 640)}
INTRODUCTION = """\
Made by `python results/lerobot_latency.py` in the environment of `make test-lerobot`: LeRobot's own
pi0 (`select_action`, 10 denoising steps, a new chunk of 50 actions each time), three cameras of
480 x 640 pixels and 256 patches each. Its layers are few and narrow (tower 12 of width 192,
language and expert 2 of width 256), so the share of depth is far above that in a real pi0 (tower 27
of 1152, language 18 of 2048): the milliseconds are what to read. "whole" is `select_action`, and
depth of all three cameras is read after it.
"""


def policy_and_batch() -> tuple[Any, dict[str, Any]]:
    """A pi0 of true numbers of tokens, and what it is given."""
    torch.manual_seed(0)
    policy = policies.pi0(
        Path(),
        vision=TOWER,
        width=256,
        **policies.features(CAMERAS),
        image_resolution=(224, 224),
        chunk_size=50,
        num_inference_steps=10,
    )
    words = torch.randint(3, 90, (1, 48))
    batch: dict[str, Any] = {
        "observation.language.tokens": words,
        "observation.language.attention_mask": torch.ones_like(words, dtype=torch.bool),
        "observation.state": torch.randn(1, policies.STATE),
    }
    for name, size in CAMERAS.items():
        batch[f"observation.images.{name}"] = torch.rand(1, 3, *size)
    return policy.eval(), batch


def main(arguments: Sequence[str]) -> int:
    """Measures, and writes both files."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--folder", type=Path, default=HERE)
    given = parser.parse_args(arguments)
    policy, batch = policy_and_batch()

    def call() -> object:
        policy.reset()
        return policy.select_action(dict(batch))

    subject = subject_from_call(policy, call, label="LeRobot's pi0, few and narrow layers")
    report = audit(
        subject,
        random_heads(subject, ["fast"]),
        method=Method(rounds=given.rounds),
        command=("python", "results/lerobot_latency.py"),
    )
    text = to_markdown(report)
    title, _, rest = text.partition("\n")
    text = f"{title}\n\n{INTRODUCTION}{rest}"
    (given.folder / "lerobot_latency.json").write_text(report.model_dump_json(indent=1) + "\n")
    (given.folder / "lerobot_latency.md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
