"""TrainConfig: a whole training run in one tree, checked before anything is loaded."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from clipdepth_plugin.config import HeadConfig, Preset
from clipdepth_plugin.training.data import AugmentConfig, DataConfig
from clipdepth_plugin.training.losses import LossConfig

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Precision = Literal["no", "bf16", "fp16"]

# What the host decides when the head is made, so that options can't.
_NOT_OPTIONS = ("width", "preset", "provenance")


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class HeadSettings(_Settings):
    """The head to train: a new one from a preset, or one that was saved."""

    preset: Preset = "spaceclip"
    """Preset of a new head; its levels are scaled to the tower's number of blocks."""

    options: dict[str, Any] = Field(default_factory=dict)
    """Fields of ``HeadConfig`` for a new head, in place of the preset's."""

    init: str | None = None
    """A head's folder or hub id to go on from; then neither preset nor options may be given."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.init is not None:
            if self.model_fields_set & {"preset", "options"}:
                raise ValueError("init: a saved head has its own config; leave preset and options")
            return self
        fixed = sorted(self.options.keys() & set(_NOT_OPTIONS))
        if fixed:
            raise ValueError(f"options.{fixed[0]}: is set by the run, not by an option")
        try:
            HeadConfig(**{"width": 1, "preset": self.preset, **self.options})
        except ValidationError as error:
            problems = "; ".join(
                f"options.{'.'.join(map(str, one['loc'])) or '?'}: {one['msg']}"
                for one in error.errors()
            )
            raise ValueError(problems) from error
        return self


class DataSettings(_Settings):
    """What is trained and measured on."""

    train: tuple[DataConfig, ...] = Field(min_length=1)
    """Training sets; several are one long one."""

    validation: tuple[DataConfig, ...] = ()
    """Sets that AbsRel is measured on to choose the best weights; empty: the last ones are kept."""


class OptimiserSettings(_Settings):
    """AdamW."""

    lr: PositiveFloat = 1e-4
    """Learning rate after the warm-up."""

    weight_decay: NonNegativeFloat = 0.01
    """Weight decay."""

    betas: tuple[Share, Share] = (0.9, 0.999)
    """Decay of the two moments."""


class ScheduleSettings(_Settings):
    """The learning rate by step."""

    warmup: Share = 0.05
    """Share of the run in which it rises linearly."""

    final_lr: NonNegativeFloat = 1e-6
    """Where the cosine ends."""


class CacheSettings(_Settings):
    """The tower's tokens, computed once and kept on disk."""

    folder: str
    """Where; environment variables are expanded. Several runs may share a folder."""

    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """How tokens are kept; bfloat16 is half the size."""

    views: Literal["flip"] | PositiveInt = "flip"
    """The views of each training image. ``flip``: the image and its mirror image, taken in turn as
    ``augment`` flips. A number K: the image, its mirror image and K - 2 augmented ones, which
    are the same for every ``seed``."""

    verify: bool = True
    """Read and hash every image at the start. False trusts that images which were cached under
    their name have not changed: a faster start."""

    prefetch: PositiveInt = 4
    """Batches that are read ahead."""


class LoggingSettings(_Settings):
    """What is written beside the weights."""

    every: PositiveInt = 10
    """Steps between two lines of the log."""

    pictures: NonNegativeInt = 4
    """Validation samples shown as pictures at each validation."""

    tensorboard: bool = True
    """Write TensorBoard's event files."""


class ProvenanceSettings(_Settings):
    """What the saved head says of itself beside the tower."""

    data: tuple[str, ...] = ()
    """The data sets with their licences; empty: the roots and splits of ``data.train``."""

    license: str | None = None
    """SPDX identifier of the weights' licence."""

    notes: str = ""
    """Text for the model card (Markdown)."""


class TrainConfig(_Settings):
    """A training run. The defaults are the published recipe (SPACE-CLIP, arXiv 2601.17657)."""

    run: str = Field(min_length=1)
    """The run's folder: config, log, checkpoints, pictures and the best head."""

    host: str = Field(min_length=1)
    """The host, as ``clipdepth inspect`` takes it."""

    tower: str | None = None
    """Module path of the tower, where the host has several."""

    random_host: bool = False
    """Build the host with random weights, to try a config out without a download."""

    input_size: tuple[PositiveInt, PositiveInt] | None = None
    """(H, W) of the tower's input in place of the host's own, for towers that take any size; the
    head is then made for that size."""

    head: HeadSettings = HeadSettings()
    data: DataSettings

    augment: AugmentConfig | None = AugmentConfig()
    """Augmentation of the training images; null for none."""

    loss: LossConfig = LossConfig()
    optimiser: OptimiserSettings = OptimiserSettings()
    schedule: ScheduleSettings = ScheduleSettings()

    epochs: PositiveInt | None = None
    """Passes over the data; this or ``steps``. 20 where neither is given."""

    steps: PositiveInt | None = None
    """Optimiser steps."""

    batch_size: PositiveInt = 32
    """Samples in one optimiser step, over all processes and accumulated batches together."""

    gradient_accumulation: PositiveInt = 1
    """Batches in one optimiser step. Each has its own SILog: no substitute for a large batch."""

    clip: PositiveFloat | None = 1.0
    """Largest norm of the gradient; null for no clipping."""

    ema: Annotated[float, Field(ge=0.0, lt=1.0)] | None = 0.996
    """Decay of the weights' moving average; null for none."""

    precision: Precision = "no"
    """Mixed precision: ``no`` (float32), ``bf16`` or ``fp16`` (GPU only)."""

    output_size: tuple[PositiveInt, PositiveInt] | None = None
    """(H, W) at which loss and metrics are taken; null for the tower's input size."""

    seed: NonNegativeInt = 0
    """Of the head's weights, the order of the data and its augmentation."""

    workers: NonNegativeInt = 0
    """Processes that read data, for each training process."""

    validate_every: PositiveInt | None = None
    """Steps between validations; null for each epoch (``steps`` given: a tenth of them)."""

    checkpoint_every: PositiveInt = 500
    """Steps between checkpoints."""

    keep: PositiveInt = 3
    """Checkpoints kept."""

    cache: CacheSettings | None = None
    """Train from cached tower tokens."""

    bad_file_limit: NonNegativeInt = 0
    """Unreadable samples that are reported and skipped before the run stops."""

    sync_batch_norm: bool = False
    """Share batch norm's statistics between GPUs."""

    logging: LoggingSettings = LoggingSettings()
    provenance: ProvenanceSettings = ProvenanceSettings()

    @field_validator("precision", mode="before")
    @classmethod
    def _yaml_no(cls, value: Any) -> Any:
        return "no" if value is False else value  # YAML reads a bare no as false

    @model_validator(mode="before")
    @classmethod
    def _fill_length(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("epochs") is None and data.get("steps") is None:
            return {**data, "epochs": 20}
        return data

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("epochs, steps: both say how long the run is; set one to null")
        if self.batch_size % self.gradient_accumulation:
            raise ValueError(
                f"batch_size: {self.batch_size} can't be split into gradient_accumulation = "
                f"{self.gradient_accumulation} equal batches"
            )
        if self.cache is not None and self.augment is None and self.cache.views not in ("flip", 1):
            raise ValueError("cache.views: more than one view needs augment")
        self._check_zoom()
        return self

    def _check_zoom(self) -> None:
        if self.augment is None or self.augment.zoom == (1.0, 1.0) or self.head.init is not None:
            return
        if self.head.options.get("canonical_focal") is None:
            raise ValueError(
                "augment.zoom: changes the focal length, which only a head with "
                "head.options.canonical_focal is told"
            )

    @property
    def micro_batch(self) -> int:
        """Samples in one forward pass, over all processes."""
        return self.batch_size // self.gradient_accumulation
