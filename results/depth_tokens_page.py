"""The figures of results/depth_tokens.py and their page."""

from __future__ import annotations

from statistics import mean, stdev

from depth_tokens_readout import ARMS, BATCH, PAIRS, STEPS
from pydantic import BaseModel, ConfigDict

from clipdepth_plugin.environment import Environment
from clipdepth_plugin.latency.report import describe, markdown_table

QUESTIONS = ("distance", "gap", "nearer", "step")


class Row(BaseModel):
    """One trained readout, or points read as they are, on one test set."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    arm: str
    seed: int | None
    """None: nothing was trained."""
    data: str
    distance: float
    """Mean relative error of the distance from the camera to A."""
    gap: float
    """Likewise of the distance from A to B."""
    nearer: float
    """Share of pairs, at least 10% apart, whose nearer patch was found."""
    step: float
    """Mean angle between the way from A to B and the answer, in degrees."""


class Scale(BaseModel):
    """How wrong a frame's scale is in the tokens as they are, by the median of its distances."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    spread: float
    """Standard deviation of its log over the frames."""
    left: float
    """Mean relative error of the distance, each frame's scale set right."""


class Measured(BaseModel):
    """What depth_tokens.json holds."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    rows: tuple[Row, ...]
    frames: dict[str, int]
    """Of the training set and of each test set."""
    scales: dict[str, Scale]
    """Of each test set."""
    parameters: int
    """Of each readout."""
    environment: Environment


def page(measured: Measured) -> str:
    """depth_tokens.md."""
    header = ("", "distance", "gap", "nearer", "step")
    parts = ["# Depth tokens for a small policy head", HEADING]
    for data in dict.fromkeys(row.data for row in measured.rows):
        cells = []
        for arm in dict.fromkeys(row.arm for row in measured.rows):
            rows = [row for row in measured.rows if (row.arm, row.data) == (arm, data)]
            shown = [
                _cell([getattr(row, question) for row in rows], question) for question in QUESTIONS
            ]
            cells.append([arm, *shown])
        parts += [f"## {data}", "\n".join(markdown_table(header, cells))]
    counts = ", ".join(f"{number} {name}" for name, number in measured.frames.items())
    settings = (
        f"{measured.parameters:,} parameters; {STEPS} steps of {BATCH} frames and {PAIRS} pairs of "
        f"each; frames: {counts}."
    )
    return (
        "\n\n".join(
            [
                *parts,
                _summary(measured),
                _scales(measured),
                NOTES,
                settings,
                describe(measured.environment),
            ]
        )
        + "\n"
    )


def _cell(values: list[float], question: str) -> str:
    factor, unit, digits = {"step": (1, " deg", 1)}.get(question, (100, "%", 1))
    scaled = [factor * value for value in values]
    spread = f" +- {stdev(scaled):.{digits}f}" if len(scaled) > 1 else ""
    return f"{mean(scaled):.{digits}f}{spread}{unit}"


def _summary(measured: Measured) -> str:
    """How the arms' mean errors compare with those of RGB tokens alone."""
    lines = []
    for data in dict.fromkeys(row.data for row in measured.rows):
        errors = {
            arm: [
                mean(
                    1 - row.nearer if question == "nearer" else getattr(row, question)
                    for row in measured.rows
                    if (row.arm, row.data) == (arm, data)
                )
                for question in QUESTIONS
            ]
            for arm in ARMS
        }
        for arm in ARMS[1:]:
            changes = [
                f"{question} {100 * (new / old - 1):+.0f}%"
                for question, new, old in zip(QUESTIONS, errors[arm], errors["rgb"], strict=True)
            ]
            lines.append(f"- {data}, {arm}: {', '.join(changes)}")
    return "Errors (of nearer: the share of wrong answers) against RGB tokens alone:\n\n" + (
        "\n".join(lines)
    )


def _scales(measured: Measured) -> str:
    found = [
        f"{data} {one.spread:.2f}, {100 * one.left:.1f}%" for data, one in measured.scales.items()
    ]
    return (
        "Scale of the tokens as they are, the median of a frame's distances against the truth: "
        "standard deviation of its log over the frames, and the error of the distance that is "
        f"left with each frame's scale set right: {'; '.join(found)}."
    )


HEADING = """\
Made by `python results/depth_tokens.py`. Two patches of a frame, A and B, are marked. Questions:
the distance from the camera to A, the gap from A to B (mean relative errors), which is nearer
(share of right answers, of pairs that differ by 10%), and the direction of the next step from A
towards B (mean angle in degrees). A small readout answers from the frozen demo host's final tokens.
Mean and standard deviation over three seeds.

| arm | the readout's tokens |
| --- | --- |
| one depth | nothing trained: every patch at the training set's median depth |
| tokens as they are | nothing trained: the points of `plugin.tokens()` |
| rgb | the host's |
| depth tokens | the host's, `plugin.tokens()` added by a `DepthTokens` |
| depth picture | the host's, and those of the head's map in colours through the same tower |
| true depth tokens | the host's, true depth added by a `DepthTokens`: the upper bound |"""
NOTES = """\
- Depth tokens help: on both sets all four errors are lower than with RGB tokens alone. The depth
  picture helps less (rooms' nearer: not at all), and costs a second tower pass and twice the
  tokens.
- On libero the points of `plugin.tokens()` as they are beat every readout but that with true
  depth, with nothing trained: where the question is geometry, compute with the points. The readout
  trains on 645 frames, four fifths of them rooms, where tokens are off in scale; whether that is
  why was not tried.
- The head gets each frame's scale wrong, most on rooms, whose scale it did not learn, and the
  readout mends little of that. Most of what is missing to true depth is the head's error; on libero
  some of it is the readout's, as the points as they are do better.
- True depth is not answered without error: the readout is small, the gap and the step are
  differences of near points.
- All arms have the same parameters, steps, frames and pairs. All know the lens: `DepthTokens` adds
  each patch's ray, at depth 1 where the arm has no depth. The head's map gets the camera, too.
- Training: 16 new sequences of rooms (384 frames, 128 scenes), rooms/val and libero/val. Test:
  rooms/test (40 scenes) and libero/test (3 scenes). The head was trained on rooms/train (shape
  alone) and libero/train and chosen on both val splits; neither it nor a readout saw a test scene.
  Room scenes share furniture builders, and the new ones procedural textures with rooms/test.
- The spread is over seeds. Three scenes are few: libero's figures say little of other tables.
- Patches are marked only where they show one thing (true depth within 10%, nothing invalid); A and
  B are apart by more than 5% of A's distance; 32 pairs a test frame, the same for all arms. The
  truth is the geometric mean of the patch's depth on the ray through its middle.
- Tasks and arms were fixed first. Readout, steps and rate were set on training frames, with the RGB
  and true depth arms: an earlier readout learnt too slowly. Each readout was tested once. A process
  trained each seed; `--join` made one file of them."""
