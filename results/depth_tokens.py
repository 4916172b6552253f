"""Do depth tokens help a small policy head? Four arms on the frozen demo host; about an hour.

    python results/depth_tokens.py RENDERED CACHE   # everything: depth_tokens.json and .md
    python results/depth_tokens.py RENDERED CACHE --seeds 1 --output FOLDER  # a part of it
    python results/depth_tokens.py --join FOLDER/depth_tokens.json ...       # of such parts
    python results/depth_tokens.py --page           # depth_tokens.md from depth_tokens.json

CLIPDEPTH_DATA has the sets rooms and libero. RENDERED is a split folder of rooms as theirs, with
scenes of its own (val, sequences 200 to 215). CACHE keeps the tower's tokens.

Axes: F frames, N patches, P pairs of patches.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from depth_tokens_data import Answers, Frames, Pairs, answers_of, batches, draw_pairs, frames_of
from depth_tokens_page import Measured, Row, Scale, page
from depth_tokens_readout import ARMS, BATCH, PAIRS, STEPS, Arm, Readout, at_depth
from torch import Tensor, nn

from clipdepth_plugin.environment import describe_environment

HERE = Path(__file__).resolve().parent
STORED = HERE / "depth_tokens.json"
SEEDS = (0, 1, 2)
TEST_PAIRS = 32
LEARNING_RATE = 2e-3
APART = 0.0953
"""Log 1.1: which of two is nearer is asked of pairs whose distances differ by 10%."""


def loss_of(given: Answers, truth: Answers) -> Tensor:
    """The four questions count alike."""
    apart_FP = truth.nearer_FP.abs() > APART
    logits, labels = given.nearer_FP[apart_FP], (truth.nearer_FP[apart_FP] > 0).float()
    return (
        F.l1_loss(given.distance_FP, truth.distance_FP)
        + F.l1_loss(given.gap_FP, truth.gap_FP)
        + F.binary_cross_entropy_with_logits(logits, labels)
        + (1 - (given.step_FP3 * truth.step_FP3).sum(-1)).mean()
    )


def train(arm: Arm, seed: int, frames: Frames) -> Readout:
    """A readout, trained on pairs that are drawn anew at each step."""
    torch.manual_seed(seed)
    readout = Readout(arm, frames.host_FND.shape[-1])
    optimiser = torch.optim.AdamW(readout.parameters(), LEARNING_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, STEPS, pct_start=0.05)
    drawn = torch.Generator().manual_seed(seed)
    order = batches(len(frames.host_FND), BATCH, seed)
    for _, chosen in zip(range(STEPS), order, strict=False):
        batch = Frames(*(one[chosen] for one in frames))
        pairs = draw_pairs(batch, PAIRS, drawn)
        loss = loss_of(readout(batch, pairs.marks_FP2), pairs.truth)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(readout.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    return readout.eval()


def figures(
    arm: str, seed: int | None, data: str, pairs: Pairs, answer: Callable[[Tensor], Answers]
) -> Row:
    """The errors of one test set."""
    with torch.no_grad():
        given = answer(pairs.marks_FP2)
    truth = pairs.truth
    apart_FP = truth.nearer_FP.abs() > APART
    right_FP = (given.nearer_FP > 0) == (truth.nearer_FP > 0)
    cosine_FP = (given.step_FP3 * truth.step_FP3).sum(-1).clamp(-1, 1)
    return Row(
        arm=arm,
        seed=seed,
        data=data,
        distance=(given.distance_FP - truth.distance_FP).exp().sub(1).abs().mean().item(),
        gap=(given.gap_FP - truth.gap_FP).exp().sub(1).abs().mean().item(),
        nearer=right_FP[apart_FP].float().mean().item(),
        step=cosine_FP.acos().rad2deg().mean().item(),
    )


def read_as_they_are(data: str, frames: Frames, pairs: Pairs, usual: float) -> list[Row]:
    """What points say without anything trained: of one depth everywhere, and of depth tokens."""
    tokens = {"one depth": at_depth(frames, usual), "tokens as they are": frames.read_FN5}
    return [
        figures(name, None, data, pairs, partial(answers_of, five)) for name, five in tokens.items()
    ]


def scale_of(frames: Frames, pairs: Pairs) -> Scale:
    """Of one test set."""
    read_FP = answers_of(frames.read_FN5, pairs.marks_FP2).distance_FP
    wrong_FP = read_FP - pairs.truth.distance_FP
    scale_F1 = wrong_FP.median(1, keepdim=True).values
    left = (wrong_FP - scale_F1).exp().sub(1).abs().mean()
    return Scale(spread=scale_F1.std().item(), left=left.item())


def measure(rendered: Path, cache: Path, seeds: Sequence[int], output: Path) -> None:
    """Trains and tests all arms; depth_tokens.json grows by a seed at a time."""
    data = Path(os.environ["CLIPDEPTH_DATA"])
    frames = Frames.join(
        [
            frames_of(rendered, "val", cache, depth_scale=3000.0),
            frames_of(data / "rooms", "val", cache),
            frames_of(data / "libero", "val", cache),
        ]
    )
    tests = {name: frames_of(data / name, "test", cache) for name in ("rooms", "libero")}
    asked = {
        name: draw_pairs(one, TEST_PAIRS, torch.Generator().manual_seed(0))
        for name, one in tests.items()
    }
    usual = frames.true_FN5[..., 0][frames.clear_FN].median().item()
    rows: list[Row] = []
    for name, one in tests.items():
        rows += read_as_they_are(name, one, asked[name], usual)
    command = ("python", "results/depth_tokens.py", "RENDERED", "CACHE")
    for seed in seeds:
        for arm in ARMS:
            readout = train(arm, seed, frames)
            for name, one in tests.items():
                rows.append(figures(arm, seed, name, asked[name], partial(readout, one)))
        measured = Measured(
            rows=tuple(rows),
            frames={"training": len(frames.host_FND)}
            | {name: len(one.host_FND) for name, one in tests.items()},
            scales={name: scale_of(one, asked[name]) for name, one in tests.items()},
            parameters=sum(one.numel() for one in readout.parameters()),
            environment=describe_environment(command, "cpu", "float32"),
        )
        write(measured, output)


def main() -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rendered", nargs="?", type=Path)
    parser.add_argument("cache", nargs="?", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--output", type=Path, default=HERE)
    parser.add_argument("--join", type=Path, nargs="+")
    parser.add_argument("--page", action="store_true")
    given = parser.parse_args()
    if given.page or given.join:
        write(
            joined(
                [
                    Measured.model_validate_json(one.read_text("utf-8"))
                    for one in given.join or [STORED]
                ]
            ),
            HERE,
        )
    else:
        measure(given.rendered, given.cache, given.seeds, given.output)


def joined(parts: Sequence[Measured]) -> Measured:
    """The rows of all; what was not trained is in each."""
    rows = [row for row in parts[0].rows if row.seed is None]
    rows += [row for one in parts for row in one.rows if row.seed is not None]
    return parts[0].model_copy(update={"rows": tuple(rows)})


def write(measured: Measured, folder: Path) -> None:
    """The figures and their page."""
    folder.mkdir(parents=True, exist_ok=True)
    stored = folder / STORED.name
    stored.write_text(measured.model_dump_json(indent=1) + "\n", "utf-8")
    stored.with_suffix(".md").write_text(page(measured), "utf-8")


if __name__ == "__main__":
    main()
