"""The parts of a training run's config, each checked on its own; TrainConfig puts them together."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, ValidationError, model_validator

from clipdepth_plugin.config import DECODERS, HeadConfig, Preset
from clipdepth_plugin.data import DataConfig
from clipdepth_plugin.data.config import check_mixture
from clipdepth_plugin.data.items import FLIPPED
from clipdepth_plugin.decoders.decoder import Decoder
from clipdepth_plugin.errors import DataError
from clipdepth_plugin.settings import Count, CountOrZero, Idle, Settings

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Decay = Annotated[float, Field(ge=0.0, lt=1.0)]

# What the host decides when the head is made, so that options can't.
_SET_BY = {
    "width": "host",
    "preset": "head.preset",
    "provenance": "provenance",
    "resize": "resize",
    "confidence_scale": "calibrate_confidence",
    "calibration": "clipdepth calibrate, afterwards",
}


class HeadSettings(Settings):
    """The head to train: a new one from a preset, or one that was saved."""

    preset: Preset = "spaceclip"
    """Preset of a new head; its levels are scaled to the tower's number of blocks."""

    options: dict[str, Any] = Field(default_factory=dict)
    """Fields of ``HeadConfig`` for a new head, in place of the preset's."""

    init: str | None = None
    """Folder or hub id of a saved head to start from; the other fields must not be given then."""

    norm_init_pictures: Annotated[int, Field(ge=0, le=100_000)] = 64
    """Training pictures whose tokens initialise the level norms of a new head (presets ``fast`` and
    ``guided``; the others do not normalise levels), rounded up to whole batches. 0: scale 1 and
    shift 0."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.init is not None:
            if self.model_fields_set & {"preset", "options", "norm_init_pictures"}:
                raise ValueError(
                    "init: a saved head has its own config and norms; leave out preset, options "
                    "and norm_init_pictures"
                )
            return self
        fixed = sorted(self.options.keys() & _SET_BY.keys())
        if fixed:
            raise ValueError(f"options.{fixed[0]}: is set by the run ({_SET_BY[fixed[0]]})")
        if "input_size" in self.options and self.options.get("canonical_focal") is None:
            raise ValueError(
                "options.input_size: is the size that options.canonical_focal is for, and does "
                "nothing without it; the run's own input_size sets the tower's input"
            )
        try:
            config = self.config()
        except ValidationError as error:
            problems = "; ".join(
                f"options.{'.'.join(map(str, one['loc'])) or '?'}: {one['msg']}"
                for one in error.errors()
            )
            raise ValueError(problems) from error
        assert config is not None
        # A decoder without level norms has the base class's method.
        plain = getattr(DECODERS[config.decoder], "level_norms", None) is Decoder.level_norms
        if plain and self.norm_init_pictures and self.given("norm_init_pictures"):
            raise ValueError(
                f"norm_init_pictures: does nothing with the decoder {config.decoder}, which does "
                "not normalise levels; leave it out"
            )
        return self

    def config(self) -> HeadConfig | None:
        """The config of a new head, but for what the host decides (width, levels, context).

        None with ``init``: it is not known before the saved head is read.
        """
        if self.init is not None:
            return None
        return HeadConfig(**{"width": 1, "preset": self.preset, **self.options})


class DataSettings(Settings):
    """Training and validation data."""

    train: tuple[DataConfig, ...] = Field(min_length=1)
    """Training sets; several are concatenated."""

    validation: tuple[DataConfig, ...] = ()
    """Sets whose error selects the best weights (``select``), each weighing the same; empty: the
    last weights are kept."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, sets in (("train", self.train), ("validation", self.validation)):
            try:
                check_mixture(sets)
            except DataError as error:
                raise ValueError(f"{name}: {error}") from error
        for field in ("share", *(["repeat"] if self.train[0].is_stream else [])):
            if len(self.train) == 1 and self.train[0].given(field):
                raise ValueError(
                    f"train.0.{field}: weighs a set against the others, and there are none; leave "
                    "it out"
                )
        if not any(one.scale_share for one in self.train):
            raise ValueError(
                "train: every set has scale_share: 0, so nothing would train the scale of metres; "
                "give one of them a share"
            )
        return self

    @model_validator(mode="after")
    def _check_validation(self) -> Self:
        for i, one in enumerate(self.validation):
            if one.augment is not None:
                raise ValueError(f"validation.{i}.augment: validation data is not augmented")
            for field in ("repeat", "share", "scale_share", "shuffle_buffer"):
                if one.given(field):
                    raise ValueError(
                        f"validation.{i}.{field}: does nothing; validation data is read once, in "
                        "order, and every set weighs the same"
                    )
        return self

    @property
    def are_streams(self) -> bool:
        """Whether any set is a stream."""
        return any(one.is_stream for one in (*self.train, *self.validation))


class OptimiserSettings(Settings):
    """AdamW."""

    lr: Annotated[float, Field(gt=0.0, le=1e12)] = 1e-4
    """Learning rate after the warm-up."""

    weight_decay: Annotated[float, Field(ge=0.0, le=1e3)] = 0.01
    """Weight decay."""

    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Decay of the two moments."""


class ScheduleSettings(Settings):
    """The learning rate by step."""

    IDLE: ClassVar[tuple[Idle, ...]] = (
        Idle("final_lr", lambda it: it.warmup == 1, "warmup: 1, the whole run"),
    )

    warmup: Share = 0.05
    """Share of the run in which it rises linearly."""

    final_lr: Annotated[float, Field(ge=0.0, le=1e3)] = 1e-6
    """Where the cosine ends."""


class CacheSettings(Settings):
    """Tower tokens, computed once and kept on disk."""

    folder: str
    """Folder; environment variables are expanded. Several runs may share it."""

    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Dtype of the stored tokens; bfloat16 takes half the space."""

    views: Literal["flip"] | Annotated[int, Field(ge=1, le=1000)] = "flip"
    """Views of each training image. ``flip``: the image and its mirror image, chosen as ``augment``
    flips. A number K: the image, its mirror image and K - 2 augmented views, which are the same for
    every ``seed``. ``flip``, 1 and 2 refuse an ``augment`` that asks for more than they have."""

    @property
    def augmented(self) -> bool:
        """Whether any view has more of the augmentation than the flip."""
        return self.views != "flip" and self.views > FLIPPED + 1


class LoggingSettings(Settings):
    """Log, pictures and TensorBoard."""

    every: Count = 10
    """Steps between two lines of the log."""

    pictures: CountOrZero = 4
    """Validation samples shown as pictures at each validation."""

    tensorboard: bool = True
    """Write TensorBoard's event files."""


class ProvenanceSettings(Settings):
    """What the saved head records beside the tower."""

    data: tuple[str, ...] = ()
    """The data sets with their licences; empty: the roots and splits of ``data.train``."""

    license: str | None = None
    """SPDX identifier of the weights' licence."""

    notes: str = ""
    """Text for the model card (Markdown)."""
