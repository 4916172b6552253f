"""How a host turns a picture into its tower's input: read from the host, never guessed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Self, get_args

from clipdepth_plugin.adapters.processors.whole import (
    Fit,
    Half,
    PaddedToPatches,
    PadToSquare,
    ShortestSide,
    Squash,
)
from clipdepth_plugin.arguments import Size, parse_count, parse_numbers, parse_size
from clipdepth_plugin.errors import HostError, quoted
from clipdepth_plugin.maps.geometry import ImageViews, ViewGeometry
from clipdepth_plugin.maps.tiling import ViewRule

_SHAPES: tuple[Size, ...] = (
    *((150, 230), (260, 170), (40, 40), (24, 56), (90, 40)),
    *((480, 640), (1080, 1920), (2000, 300), (100, 900)),
)
ResizeKind = Literal["squash", "shortest", "pad", "fit", "fit_middle", "fit_end"]
# By Pillow's numbers, from 0.
Interpolation = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]
_RESIZES, _FILTERS = (*get_args(ResizeKind), None), get_args(Interpolation)
Triple = tuple[float, float, float]

# (mean, std) of the models' published preprocessing.
CLIP_NORMALISATION: tuple[Triple, Triple] = (
    (0.48145466, 0.4578275, 0.40821073),
    (0.26862954, 0.26130258, 0.27577711),
)
IMAGENET_NORMALISATION: tuple[Triple, Triple] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF_NORMALISATION: tuple[Triple, Triple] = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """From a picture to the tower's input.

    Attributes:
        mean: Subtracted from RGB in 0..1.
        std: Divided by after that.
        size: (H, W) of the tower's input.
        resize: How the host makes one view of size ``size`` of a whole image: ``squash``;
            ``shortest``: the short side to ``resize_to``, then a centre crop; ``pad``: padded to a
            square, then squashed; ``fit``: resized with its shape kept, then padded around (as
            open_clip does; ``fit_middle``, as OpenPI does, rounds down); ``fit_end``: padded at
            the left and above.
            None: not known, or it does not.
        resize_to: The short side's length before the crop; None is the crop's own short side.
        interpolation: Filter of the resize.
        crop_half: How that crop rounds half pixels; see ``ShortestSide``.
        view_rules: The host's other rules, tried before ``resize``: into tiles, or to a size that
            differs from image to image. ``size`` is then a tile's, or what a large square image
            becomes.
        unknown: Why it is not known how the host resizes; empty where it is known, or where
            nothing was said.

    Raises:
        HostError: A field is of another type, or no size, mean or filter.
    """

    mean: Triple
    std: Triple
    size: tuple[int, int]
    resize: ResizeKind | None = None
    resize_to: int | None = None
    interpolation: Interpolation = "bicubic"
    crop_half: Half = "even"
    view_rules: tuple[ViewRule, ...] = ()
    unknown: str = ""

    def __post_init__(self) -> None:
        parse_numbers(self.mean, 3, "mean")
        parse_numbers(self.std, 3, "std", positive=True)
        parse_size(self.size, "size")
        if self.resize_to is not None:
            parse_count(self.resize_to, "resize_to")
        for name, value, known in (
            ("resize", self.resize, _RESIZES),
            ("interpolation", self.interpolation, _FILTERS),
        ):
            if not isinstance(value, str | None) or value not in known:
                raise HostError(f"{name}: got {quoted(value)}, expected one of {known}")

    @property
    def rules(self) -> tuple[ViewRule, ...]:
        """All rules by which the host makes views of an image; empty where none is known."""
        if self.resize is None:
            return self.view_rules
        return (*self.view_rules, self._rule_of(self.resize))

    def known_rules(self) -> tuple[ViewRule, ...]:
        """As ``rules``.

        Raises:
            HostError: There is none.
        """
        if self.rules:
            return self.rules
        if self.unknown:
            raise HostError(
                "it is not known how this host makes views of its pictures: no rule for "
                f"{self.unknown}; use predict(size=...)"
            )
        raise HostError(
            "it is not known how this host resizes its pictures: give "
            "attach(..., processor=...) the host's image processor"
        )

    @property
    def whole_rule(self) -> ViewRule | None:
        """The host's rule that makes one view of size ``size`` of any image, or None."""
        if self.resize is not None:
            return self._rule_of(self.resize)
        return next((rule for rule in self.view_rules if self._makes_one_view(rule)), None)

    @property
    def makes_own_sizes(self) -> bool:
        """Whether all that is known are rules without one view of size ``size`` of any image.

        Such hosts cut images into tiles, or resize each to a size of its own.
        """
        return self.whole_rule is None and bool(self.view_rules)

    @property
    def fixed_size(self) -> bool:
        """Whether all views are of ``size``."""
        if not self.makes_own_sizes:
            return True
        return all(
            view.view_size == self.size for size in _SHAPES for view in self.views(size).views
        )

    @property
    def shown_rule(self) -> ViewRule:
        """The rule by which pictures are shown: that for one view, else the host's first.

        Raises:
            HostError: There is none.
        """
        return self.whole_rule or self.known_rules()[0]

    def views(self, image_size: Size) -> ImageViews:
        """The views of an image by ``shown_rule``."""
        return self.shown_rule.views(image_size)

    def _makes_one_view(self, rule: ViewRule) -> bool:
        made = (rule.views(size).views for size in _SHAPES)
        return all([view.view_size for view in views] == [self.size] for views in made)

    def whole_view(self, image_size: Size) -> ViewGeometry:
        """The one view of an image that ``whole_rule`` makes.

        Raises:
            HostError: It is not known how the host resizes.
        """
        rule = self.whole_rule
        if rule is None:
            (rule,) = replace(self, view_rules=()).known_rules()
        return rule.views(image_size).views[0]

    def _rule_of(self, kind: ResizeKind) -> ViewRule:
        match kind:
            case "squash":
                return Squash(self.size)
            case "shortest":
                return ShortestSide(self.size, self.resize_to or min(self.size), self.crop_half)
            case "pad":
                return PadToSquare(self.size)
            case "fit":
                return Fit(self.size, "middle")
            case "fit_middle":
                return Fit(self.size, "middle", round_down=True)
            case "fit_end":
                return Fit(self.size, "end", round_down=True)

    def at_size(self, size: tuple[int, int]) -> Self:
        """The same for a tower that is given pictures of another (H, W)."""
        to = self.resize_to
        if to is not None:
            to = round(to * min(size) / min(self.size))
        # The view rules' own sizes do not follow.
        return replace(self, size=size, resize_to=to, view_rules=())

    def for_patches(self, patch: Size) -> Self:
        """The same where views that the host pads behind end with a whole patch."""
        rules = (
            PaddedToPatches(rule, patch) if rule.pads_behind else rule for rule in self.view_rules
        )
        return replace(self, view_rules=tuple(rules))

    def whole(self) -> Self:
        """The same, but the whole picture squashed to ``size``, whatever the host does."""
        return replace(self, resize="squash", resize_to=None, view_rules=(), unknown="")


def triple(values: Any) -> Triple:
    """Three floats, from as many or from one for all."""
    if isinstance(values, int | float):
        values = (values,) * 3
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def pair(size: Any) -> tuple[int, int] | None:
    """(H, W) from an int, a pair or a {"height", "width"} mapping; None from anything else."""
    if isinstance(size, int):
        return size, size
    if isinstance(size, Mapping):
        size = (size.get("height"), size.get("width"))
        if None in size:
            return None
    if isinstance(size, list | tuple) and len(size) == 2:
        return int(size[0]), int(size[1])
    return None
