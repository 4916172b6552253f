"""TrainConfig: a whole training run in one tree, checked before anything is loaded."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from clipdepth_plugin.arguments import Size
from clipdepth_plugin.config import HeadConfig, ResizeRule
from clipdepth_plugin.data import AugmentConfig
from clipdepth_plugin.errors import ConfigError
from clipdepth_plugin.settings import Count, CountOrZero, Idle, Seed, Settings, Side
from clipdepth_plugin.training.losses import LossConfig
from clipdepth_plugin.training.settings import (
    CacheSettings,
    DataSettings,
    HeadSettings,
    LoggingSettings,
    OptimiserSettings,
    ProvenanceSettings,
    ScheduleSettings,
)

Precision = Literal["auto", "no", "bf16", "fp16", "bf16-emulated"]
_BATCH = Annotated[int, Field(ge=1, le=2**20)]


class TrainConfig(Settings):
    """A training run. The defaults are the published recipe (SPACE-CLIP, arXiv 2601.17657)."""

    IDLE: ClassVar[tuple[Idle, ...]] = (
        Idle("validate_every", lambda run: not run.data.validation, "data.validation: []"),
        Idle("select", lambda run: not run.data.validation, "data.validation: []"),
        Idle("calibrate_confidence", lambda run: not run.data.validation, "data.validation: []"),
        Idle(
            "calibrate_confidence",
            lambda run: (head := run.head.config()) is not None and not head.confidence,
            "head.options.confidence: false",
        ),
        Idle(
            "logging.pictures",
            lambda run: run.logging.pictures and not run.data.validation,
            "data.validation: []",
        ),
        Idle("sync_batch_norm", lambda run: run.norm not in ("batch", None), "a head without it"),
    )

    run: str = Field(min_length=1)
    """The run's folder: config, log, checkpoints, pictures and the best head."""

    host: str = Field(min_length=1)
    """The host, as ``clipdepth inspect`` takes it."""

    tower: str | None = None
    """Module path of the tower, where the host has several."""

    input_size: tuple[Side, Side] | None = None
    """(H, W) of the tower's input in place of the host's own, for towers that take any size; the
    head is then made for that size."""

    resize: ResizeRule = "host"
    """``host``: as the host's own preprocessing does, with its centre crop or padding, so that the
    head sees the same in the host's own forward; what is cropped is never trained on. ``whole``:
    pictures are squashed to the tower's input, as in the published recipe. The head's config
    records it, and ``clipdepth eval`` and ``clipdepth predict`` do the same."""

    head: HeadSettings = HeadSettings()
    data: DataSettings

    augment: AugmentConfig | None = AugmentConfig()
    """Augmentation of the training images; null for none."""

    loss: LossConfig = LossConfig()
    optimiser: OptimiserSettings = OptimiserSettings()
    schedule: ScheduleSettings = ScheduleSettings()

    epochs: Count | None = None
    """Passes over the data; this or ``steps``. 20 where neither is given."""

    steps: Count | None = None
    """Optimiser steps."""

    batch_size: _BATCH = 32
    """Samples in one optimiser step, over all processes and accumulated batches together."""

    gradient_accumulation: _BATCH = 1
    """Batches in one optimiser step. Each has its own SILog: no substitute for a large batch."""

    clip: Annotated[float, Field(gt=0.0, le=1e9)] | None = 1.0
    """Largest norm of the gradient; null for no clipping."""

    ema: Annotated[float, Field(ge=0.0, lt=1.0)] | None = 0.996
    """Decay of the weights' moving average, which warms up to it; null for none."""

    precision: Precision = "auto"
    """Mixed precision: ``auto`` (``bf16`` where the device computes fast in it, else ``no``),
    ``no`` (float32), ``bf16``, or ``fp16`` (GPU only). ``bf16`` is refused on a processor that only
    emulates it, eight times slower; ``bf16-emulated`` trains there all the same."""

    output_size: tuple[Side, Side] | None = None
    """(H, W) at which loss and metrics are taken; null for the tower's input size, or, where each
    picture has one of its own, for that of a picture of 480 x 640."""

    seed: Seed = 0
    """Of the head's weights, the order of the data and its augmentation."""

    workers: Annotated[int, Field(ge=0, le=1024)] = 0
    """Processes that read data, for each training process."""

    validate_every: Count | None = None
    """Steps between validations; null for each epoch (``steps`` given: a tenth of them)."""

    select: Literal["abs_rel", "abs_rel_aligned"] = "abs_rel"
    """What the best weights have least, as the mean over the validation sets, each weighing the
    same: AbsRel in metres, or with each picture's median depth told. Heads with ``metric: false``
    have neither: theirs is ``inverse_error``, aligned by scale and shift in inverse depth."""

    calibrate_confidence: bool = True
    """Fit the saved head's ``confidence_scale`` on the validation sets, each weighing the same, by
    the likelihood of what its confidence predicts; for heads with confidence."""

    checkpoint_every: Count = 500
    """Steps between checkpoints."""

    keep: Count = 3
    """Checkpoints kept."""

    cache: CacheSettings | None = None
    """Train from cached tower tokens."""

    bad_file_limit: CountOrZero = 0
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
        if self.data.are_streams and self.cache is not None:
            raise ValueError(
                "cache: a stream's samples have no fixed place, so their tokens can't be kept; "
                "train without a cache"
            )
        if self.data.train[0].is_stream and self.steps is None:
            raise ValueError("steps: a stream has no length: say how long the run is with steps")
        if self.cache is not None and self.augment is None and self.cache.views not in ("flip", 1):
            raise ValueError("cache.views: more than one view needs augment")
        self._check_views()
        for i, one in enumerate(self.data.train):
            if self.augment is None and one.augment is not None:
                raise ValueError(
                    f"data.train.{i}.augment: augment is null, so nothing is augmented; leave one "
                    "out"
                )
        head = self.head.config()
        if head is not None:
            self.loss_for(head, self.output_size)
        return self

    def _check_views(self) -> None:
        """Refuses what an ``augment`` asks for and the cached views do not have."""
        if self.cache is None or self.cache.augmented:
            return
        for name, augment in self.augments().items():
            if augment is None:
                continue
            lost = [*augment.parts, *(["probability"] if augment.parts else [])]
            if self.cache.views != "flip":
                lost.append("flip")
            for field in lost:
                if augment.given(field):
                    raise ValueError(
                        f"{name}.{field}: does nothing with cache.views: {self.cache.views}, whose "
                        "views are the image and its mirror image at the most; give cache.views "
                        "a number from 3 on, or leave one of the two out"
                    )

    def augments(self) -> dict[str, AugmentConfig | None]:
        """Field -> the augmentation that it gives: the run's, and each set's own."""
        own = {f"data.train.{i}.augment": one.augment for i, one in enumerate(self.data.train)}
        return {"augment": self.augment, **own}

    @property
    def norm(self) -> str | None:
        """The norm of a new head; None where the head is a saved one."""
        head = self.head.config()
        return None if head is None else head.norm

    def loss_for(self, head: HeadConfig, size: Size | None) -> LossConfig:
        """The loss for a head and size (H, W); a ConfigError where they contradict each other."""
        for name, augment in self.augments().items():
            zooms = augment is not None and augment.zoom != (1.0, 1.0)
            if zooms and head.metric and head.canonical_focal is None:
                raise ConfigError(
                    f"{name}.zoom: changes the focal length, which this head does not take into "
                    "account: leave zoom out, or train one with head.options.canonical_focal"
                )
        shares = [f"data.train.{i}.scale_share" for i, _ in enumerate(self.data.train)]
        given = [one.given("scale_share") for one in self.data.train]
        idle = [name for name, one in zip(shares, given, strict=True) if one]
        idle += ["select"] if self.given("select") else []
        if idle and not head.metric:
            raise ConfigError(
                f"{idle[0]}: does nothing with head.options.metric: false, whose depth is relative "
                "in every set, and selected by inverse_error; leave it out"
            )
        try:
            return self.loss.for_head(head, size)
        except ValueError as error:
            raise ConfigError(str(error)) from error

    @property
    def micro_batch(self) -> int:
        """Samples in one forward pass, over all processes."""
        return self.batch_size // self.gradient_accumulation
