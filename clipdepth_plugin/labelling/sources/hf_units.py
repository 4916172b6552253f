"""In which units each depth model of transformers answers, read off its config and its code.

A row for each class of AutoModelForDepthEstimation; ``docs/labelling.md`` has them as a table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, get_args

from clipdepth_plugin.arguments import Units
from clipdepth_plugin.errors import SourceError, quoted


class ModelTraits(NamedTuple):
    """What is known of a model beside its weights.

    Attributes:
        units: Of its processor's post-processed depth; None: its config does not tell.
        max_depth: Metres at which it saturates.
        stated: Whether its config or its code states the units; else they are those of the
            published checkpoints of such a config, and a user may know better.
        reads_field_of_view: Whether its metres follow from a field of view that it estimates.
        one_by_one: Whether pictures of a batch influence each other.
    """

    units: Units | None
    max_depth: float | None = None
    stated: bool = True
    reads_field_of_view: bool = False
    one_by_one: bool = False


def _depth_anything(config: Any) -> ModelTraits:
    if config.depth_estimation_type == "metric":  # a sigmoid times max_depth
        return ModelTraits("metres", config.max_depth)
    return ModelTraits("inverse depth")


def _depth_pro(_: Any) -> ModelTraits:
    # The post-processing clamps inverse depth at 1e-4.
    return ModelTraits("metres", 1e4, reads_field_of_view=True)


_MIDAS_BACKBONES = (None, "bit", "beit", "swinv2")


def _dpt(config: Any) -> ModelTraits:
    """One class for MiDaS (inverse depth) and for DINOv2's depth heads (metres).

    transformers' converter gives DINOv2's, and no other, ``add_projection``.
    """
    backbone = getattr(config.backbone_config, "model_type", None)
    if config.add_projection:
        return ModelTraits("metres" if backbone == "dinov2" else None, stated=False)
    return ModelTraits("inverse depth" if backbone in _MIDAS_BACKBONES else None, stated=False)


def _bounded(config: Any) -> ModelTraits:
    """GLPN: a sigmoid times max_depth. TIPSv2: a mean of bins up to max_depth, in metres."""
    return ModelTraits("metres", config.max_depth)


def _zoedepth(config: Any) -> ModelTraits:
    """Bins in metres. Of several heads, one is chosen by a vote of the whole batch."""
    heads = config.bin_configurations
    bounded = config.bin_centers_type == "normed"
    farthest = max(head["max_depth"] for head in heads) if bounded else None
    return ModelTraits("metres", farthest, one_by_one=len(heads) > 1)


_RULES: dict[str, Callable[[Any], ModelTraits]] = {
    "depth_anything": _depth_anything,
    "depth_pro": _depth_pro,
    "dpt": _dpt,
    "glpn": _bounded,
    "tipsv2_dpt": _bounded,
    "zoedepth": _zoedepth,
}

_CALLABLE = "a python:module:function source can call it as you know it"

_REFUSED = {
    "chmv2": "it gives the height of trees seen from above, not depth",
    "prompt_depth_anything": "it needs a depth map (its prompt) beside each picture, and answers "
    f"in that map's unit; {_CALLABLE}",
}


def model_traits(config: Any, said: str | None, name: str) -> tuple[ModelTraits, Units]:
    """What is known of a model, and its units; ``said`` are those that the user gave.

    Raises:
        SourceError: It gives no depth, its units are not known, or the user's are not its own.
    """
    kind = str(config.model_type)
    given = next((units for units in get_args(Units) if units == said), None)
    if given is None and said is not None:
        raise SourceError(f"hf:{name}: ?units={said}: expected {' or '.join(get_args(Units))}")
    if kind in _REFUSED:
        raise SourceError(f"hf:{name}: a {kind} model can't label: {_REFUSED[kind]}")
    rule = _RULES.get(kind, lambda _: ModelTraits(None, stated=False))
    traits = rule(config)
    if given not in (None, traits.units) and traits.stated:
        raise SourceError(
            f"hf:{name}: ?units={said}: the depth of this {kind} model is in {traits.units}, as "
            "its config says; leave the units out"
        )
    units: Units | None = given or traits.units
    if units is None:
        raise SourceError(
            f"hf:{name}: it is not known in which units this {kind} model answers "
            f"({quoted(config.architectures)}; its config does not tell). If you know, say "
            f"hf:{name}?units=metres or '?units=inverse depth'; or {_CALLABLE}"
        )
    return traits, units
