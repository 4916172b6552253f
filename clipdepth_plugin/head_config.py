"""HeadConfig: everything that defines a depth head's function, checked on construction."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal, Protocol

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from clipdepth_plugin.lenses import LensCheck, centred
from clipdepth_plugin.metric_calibration import MetricCalibration
from clipdepth_plugin.presets import PRESETS, Preset
from clipdepth_plugin.settings import (
    Channels,
    GivenFocal,
    GivenMetres,
    GivenNearest,
    Idle,
    Level,
    Settings,
    Side,
)

ContextKind = Literal["pooled", "cls", "mean"]
Activation = Literal["relu", "softplus", "log", "bins"]
NormKind = Literal["batch", "group", "none"]
ResizeRule = Literal["whole", "host"]


class _DecoderClass(Protocol):
    """What is asked of a decoder's class; see ``decoders.decoder.Decoder``."""

    def __call__(self, config: HeadConfig) -> Any: ...

    def check(self, config: HeadConfig) -> None: ...

    def upsampling(self, config: HeadConfig) -> int: ...

    def reads_pixels(self, config: HeadConfig) -> bool: ...


DECODERS: dict[str, _DecoderClass] = {}
"""Name -> class of every decoder; ``decoders.decoder.register_decoder`` adds to it."""


def _known_decoder(name: str) -> str:
    if name not in DECODERS:
        raise ValueError(
            f"no decoder is called {name!r}: there are {', '.join(DECODERS)}; import the file that "
            "registers it first"
        )
    return name


class Provenance(BaseModel):
    """Where a trained head comes from; goes into config.json and the model card."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    tower: str | None = None
    """Name of the tower the head was trained on, e.g. ``open_clip:ViT-B-16/openai``."""

    tower_hashes: dict[str, str] = Field(default_factory=dict)
    """dtype name -> hash of that tower's weights in it (``adapters/identity.py``); a host whose
    tower hashes differently is refused. Empty: not recorded, not checked."""

    data: tuple[str, ...] = ()
    """The data sets the head was trained on, with their licences."""

    license: str | None = None
    """SPDX identifier of the weights' licence."""

    notes: str = ""
    """Free text for the model card: protocol, metrics, known limits (Markdown)."""


class HeadConfig(Settings):
    """Configuration of a FiLM dual-path depth head (SPACE-CLIP, arXiv 2601.17657, section 3).

    ``preset`` fills what is not given. Level 0 enters the tower's first block, level k leaves
    block k; levels are listed deepest first.
    """

    IDLE: ClassVar[tuple[Idle, ...]] = (
        Idle("film_hidden", lambda head: not head.film, "film: false"),
        Idle("context", lambda head: not head.film, "film: false"),
        Idle("structural_levels", lambda head: not head.structural, "structural: false"),
        Idle("confidence_scale", lambda head: not head.confidence, "confidence: false"),
        Idle("confidence", lambda head: not head.metric, "metric: false"),
        Idle("canonical_focal", lambda head: not head.metric, "metric: false"),
    )

    width: Channels
    """D, the tower's width."""

    preset: Preset = "spaceclip"
    """``spaceclip``: the published head. ``spaceclip-middle``: the same with the structural
    levels that its authors' study found better (0.1208 against 0.1283 AbsRel on NYU). ``fast``:
    the compact decoder, both pathways at a thirtieth of the operations (ours). ``guided``: ``fast``
    with an image stem that guides its upsampling to the picture's edges (ours)."""

    decoder: Annotated[str, AfterValidator(_known_decoder)] = "dual-path"
    """``dual-path``: the published one. ``compact``: fused at the patch grid, then depth-to-space
    and convex upsampling (``decoders/compact.py``). Others that are in ``DECODERS``."""

    semantic_levels: Annotated[tuple[Level, ...], Field(max_length=256)] = (12, 9, 6, 3)
    """Levels of the semantic pathway; ``dual-path``: one for each decoder stage."""

    structural_levels: Annotated[tuple[Level, ...], Field(max_length=256)] = (2, 1, 0)
    """Levels of the structural pathway; ``dual-path``: for all stages but the last."""

    channels: Annotated[tuple[Channels, ...], Field(max_length=16)] = (256, 128, 64, 32)
    """C. ``dual-path``: of each decoder stage; stage i works at 2^(i+1) times the grid.
    ``compact``: at 1, 2 and 4 times the grid."""

    film_hidden: Channels = 256
    """Hidden width of the MLPs that predict FiLM's gamma and beta."""

    film: bool = True
    """Modulate the semantic levels by the global context."""

    structural: bool = True
    """Use the structural pathway."""

    stem_channels: Annotated[int, Field(ge=0, le=2**16)] = 0
    """C of the image stem on the tower's own input pixels (``compact`` only; ``guided.py``). 0: no
    stem, the pixels are not read."""

    likeness_channels: Annotated[int, Field(ge=0, le=2**16)] = 0
    """E of the embedding in which pixels are compared, so that each takes its depth from the
    positions around it that look like it (``guided.py``). 0: pixels are not compared."""

    join_kernel: Literal[1, 3] = 3
    """Kernel of the convolution that joins the stem's map with the decoder's (``guided.py``). 1
    takes a tenth of the operations of 3."""

    context: ContextKind = "pooled"
    """``pooled``: the tower's own pooled vector before any projection; ``cls``: the raw class
    token of the deepest tapped level; ``mean``: the mean patch token of that level."""

    activation: Activation = "relu"
    """``relu``: as published; its output can get stuck at 0. ``softplus``: positive, unbounded.
    ``log``: a sigmoid between the logarithms of ``depth_range``'s ends. ``bins``: the expected log
    depth of 64 depths between them, evenly spaced in log depth. Both are bounded."""

    depth_range: tuple[GivenNearest, GivenMetres] = (0.05, 20.0)
    """Nearest and farthest depth in metres (``metric: false``: without unit); the bounds of ``log``
    and ``bins``, which start near their geometric mean. The other activations are not clipped to
    it."""

    metric: bool = True
    """Whether depth is in metres. False: relative depth, larger is farther, whose inverse is known
    up to each view's own scale and shift; it is never called metres, cameras make no difference to
    it, and ``depth_range`` has no unit. Such a head learns from relative depth (a teacher's), too.
    """

    confidence: bool = False
    """Predict beside each depth how sure it is: the scale of a Laplace distribution of log depth,
    given as the probability that the true depth is within a factor of 1.25."""

    confidence_scale: Annotated[float, Field(gt=0.0, le=1e4)] = 1.0
    """Factor on that scale, above 1 for a head that is less sure than it learnt to be: training
    fits it on validation data."""

    calibration: MetricCalibration | None = None
    """Scale and slope that measured depths gave the metres (``clipdepth calibrate``). The metres of
    ``depth_range`` and of the activation are those before."""

    canonical_focal: GivenFocal | None = None
    """Focal length in pixels of ``input_size`` that the training depths were scaled to
    (depth times canonical over true focal length: Metric3D, arXiv 2307.10984, section 3.2).
    None: trained on depths as they are, so that the camera can't be taken into account."""

    input_size: tuple[Side, Side] | None = None
    """(H, W) of the tower's input that the head was trained with; None: not recorded."""

    resize: ResizeRule | None = None
    """How training pictures became that input. ``whole``: the whole picture squashed to it.
    ``host``: by the host's own rule, with its crop or padding. None: not recorded, taken as
    ``host``."""

    norm: NormKind = "batch"
    """``batch``: as published; folds into the convolutions in inference. ``group``: group norm, the
    same in training and inference and for any split of the batch; it removes each picture's own
    scale from every map. ``none``: the convolutions have a bias instead; training and inference
    compute the same."""

    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Dropout inside the fusion stages' residual blocks (``compact``: after the fusion, whole
    channels), in training only."""

    auxiliary: Annotated[int, Field(ge=0, le=16)] = 3
    """Auxiliary depth outputs for training, on the first so many stages. Not given: all stages
    but the last. ``compact`` has none."""

    provenance: Provenance = Provenance()
    """Where the weights come from. Not part of the function."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        preset = data.get("preset", "spaceclip")
        known = isinstance(preset, str) and preset in PRESETS
        filled = {**(PRESETS[preset] if known else {}), **data}
        if "auxiliary" not in filled and isinstance(filled.get("channels"), tuple | list):
            filled["auxiliary"] = max(len(filled["channels"]) - 1, 0)
        return filled

    @model_validator(mode="after")
    def _check(self) -> HeadConfig:
        DECODERS[self.decoder].check(self)
        low, high = self.depth_range
        if not (0 < low < high < math.inf):
            raise ValueError(f"depth_range: needs 0 < low < high in metres, got {low}, {high}")
        if self.canonical_focal is not None and self.input_size is not None:
            camera = centred(self.canonical_focal, self.input_size)
            LensCheck()(camera, self.input_size, "canonical_focal")
        return self

    def given(self, field: str) -> bool:
        """Whether a field has another value than its preset gives it."""
        preset = PRESETS[self.preset]
        return getattr(self, field) != preset[field] if field in preset else super().given(field)

    @property
    def levels(self) -> tuple[int, ...]:
        """The levels that the head reads, ascending, each once."""
        structural = self.structural_levels if self.structural else ()
        return tuple(sorted({*self.semantic_levels, *structural}))

    def focal_at(self, size: tuple[int, int]) -> float | None:
        """The canonical focal length in pixels of a tower input of another (H, W).

        That of the same field of view, so that metres do not depend on the input size. Where
        ``input_size`` is not recorded, ``canonical_focal`` is taken to belong to any size.
        """
        if self.canonical_focal is None or self.input_size is None:
            return self.canonical_focal
        return self.canonical_focal * math.sqrt(math.prod(size) / math.prod(self.input_size))

    @property
    def saturates_at(self) -> float | None:
        """Metres that no depth exceeds; None: there are none, or they follow from the camera."""
        bounded = self.metric and self.activation in ("log", "bins")
        return self.depth_range[1] if bounded and self.canonical_focal is None else None

    def trained_on(self, size: tuple[int, int] | None, resize: ResizeRule) -> HeadConfig:
        """The same with a record of how its training makes pictures the tower's input.

        ``size``: (H, W) of every view; None where each has its own.
        """
        focal = self.canonical_focal if size is None else self.focal_at(size)
        record = {"input_size": size, "resize": resize, "canonical_focal": focal}
        return self.model_copy(update=record)

    @property
    def reads_pixels(self) -> bool:
        """Whether the tower's input pixels are read beside its tokens."""
        return DECODERS[self.decoder].reads_pixels(self)

    @property
    def upsampling(self) -> int:
        """Native output size over patch grid."""
        return DECODERS[self.decoder].upsampling(self)
