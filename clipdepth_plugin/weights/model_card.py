"""The model card that is saved with a head."""

from __future__ import annotations

import hashlib
import html
import json
import math
import re

from clipdepth_plugin.config import HeadConfig
from clipdepth_plugin.metric_calibration import interval

_TEMPLATE = """---
library_name: clipdepth-plugin
pipeline_tag: depth-estimation
{license_line}tags:
- depth-estimation
- clipdepth-plugin
- model_hub_mixin
---

# Depth head for {tower}

A {film}dual-path depth head (preset `{preset}`, after SPACE-CLIP, arXiv 2601.17657) that reads the
intermediate layers of a frozen vision tower{pixels} and gives {kind} depth beside the host's own
outputs.{relative}

| | |
|---|---|
| Tower | {tower}, width {width} |
| Levels | semantic {semantic}, structural {structural} (k leaves block k, 0 enters the first) |
| Input | {input} |
| Context | {context} |
| Output | (B, 1, H, W) float32, {output} |
| Confidence | {confidence} |
| Camera | {camera} |
| Activation, range | `{activation}`, {low:g} to {high:g}{range_note} |
| Calibration | {calibration} |
| Training data | {data} |
| Tower weights recorded | {hashes} |

```python
from clipdepth_plugin import DepthHead, attach

head = DepthHead.from_pretrained("path-or-hub-id")
with attach(host, head) as plugin:
    out = host(**inputs)
    {variable} = plugin.depth
```
{notes}"""
_CONFIDENCE = "`plugin.confidence`: the probability that the true depth is within a factor of 1.25"
_RELATIVE = (
    "**Not metres**: 1 / depth is known up to a\nscale and a shift of each view's own "
    "(`metric: false`)."
)
_CAMERA = (
    "canonical: metres are those of a focal length of {focal:g} pixels at {size}, unless "
    "`plugin.predict(focal_px=...)` or `intrinsics=` says another"
)
# SPDX names of letters alone, in small letters; another word may be a YAML value ("no", "null").
_LICENSES = frozenset({"mit", "other", "unknown", "unlicense", "wtfpl", "isc"})
_MARK = re.compile(r"\n<!-- written by save_pretrained, sha256 ([0-9a-f]{64}) -->\n")


def model_card_text(config: HeadConfig) -> str:
    """Markdown with the hub's YAML front matter, from a head's config.

    A comment at its end holds its own hash, for ``is_unedited``.
    """
    origin = config.provenance
    text = _TEMPLATE.format(
        license_line=f"license: {_yaml(origin.license.lower())}\n" if origin.license else "",
        tower=_line(origin.tower or "a tower that was not recorded"),
        preset=_line(config.preset),
        film="FiLM " if config.film else "",
        pixels=" and its input pixels" if config.reads_pixels else "",
        width=config.width,
        semantic=list(config.semantic_levels),
        structural=list(config.structural_levels) if config.structural else "off",
        input=_input(config),
        context=f"`{config.context}`" if config.film else "none (FiLM off)",
        confidence=_CONFIDENCE if config.confidence else "not predicted",
        camera="not taken into account"
        if config.canonical_focal is None
        else _CAMERA.format(focal=config.canonical_focal, size=_size(config)),
        activation=config.activation,
        low=config.depth_range[0],
        high=config.depth_range[1],
        range_note=f"{' m' if config.metric else ', without unit'}"
        f"{'' if config.activation in ('log', 'bins') else ' (not enforced)'}",
        kind="metric" if config.metric else "relative",
        relative="" if config.metric else f" {_RELATIVE}",
        output="metres (planar z-depth)" if config.metric else "relative depth, larger is farther",
        variable="metres" if config.metric else "relative",
        calibration=_calibration(config),
        data=", ".join(map(_line, origin.data)) or "not recorded",
        hashes=", ".join(map(_line, sorted(origin.tower_hashes)))
        or "no hash; any tower of this width is taken",
        notes=f"\n{_markdown(origin.notes)}\n" if origin.notes else "",
    )
    return f"{text}\n<!-- written by save_pretrained, sha256 {_hash(text)} -->\n"


def _yaml(text: str) -> str:
    """A YAML scalar that is read back as this text, whatever it holds."""
    plain = re.fullmatch(r"[a-z][a-z0-9.-]*[0-9.-][a-z0-9.-]*", text)
    return text if plain or text in _LICENSES else json.dumps(text)


def _line(text: str) -> str:
    """A text that a config supplies, for one cell or line: no markup of it takes effect."""
    one_line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return re.sub(r"([\\*|\[\]!#~])", r"\\\1", _without_html(one_line))


def _markdown(text: str) -> str:
    """Notes: Markdown, without HTML, pictures, and links that are no web addresses."""
    plain = "".join(c for c in text if c.isprintable() or c in "\n\t")
    shown = re.sub(r"!(?=\[)", r"\\!", _without_html(plain))
    shown = re.sub(r"\](?=\((?!https?://))|\](?=:)", r"\\]", shown)
    return re.sub(r"^(\s*)(?=(---|\.\.\.)\s*$)", r"\1\\", shown, flags=re.MULTILINE)


def _without_html(text: str) -> str:
    return re.sub(r"<(?=[a-zA-Z/!?])|&(?=[#\w]+;)", lambda found: html.escape(found[0]), text)


def _size(config: HeadConfig) -> str:
    size = config.input_size
    return "the tower's input" if size is None else f"{size[0]} x {size[1]}"


def _input(config: HeadConfig) -> str:
    how = {"whole": "whole pictures squashed", "host": "pictures resized by the host's own rule"}
    return "not recorded" if config.resize is None else f"{how[config.resize]} to {_size(config)}"


def _calibration(config: HeadConfig) -> str:
    fitted = config.calibration
    if fitted is None:
        return "none: metres as trained"
    ends = [fitted.metres(max(end, 1e-6)) for end in config.depth_range]
    near, far = fitted.measured
    data = _line(fitted.data) or "data that was not recorded"
    count = f"{fitted.points} points of {near:.3g} to {far:.3g} m, {fitted.left_out} left out"
    parts = [
        f"{fitted.said}, of the metres above (range now {ends[0]:.3g} to {ends[1]:.3g} m)",
        f"fitted to {data}: {count}; {fitted.pictures} pictures in {fitted.groups} groups",
    ]
    if fitted.abs_rel is not None:
        before, after = fitted.abs_rel
        parts.append(f"AbsRel on groups left out of the fit {before:.4f} before, {after:.4f} after")
    if (reach := interval(fitted.confidence_error, fitted.groups)) is not None:
        low, high = (config.confidence_scale * math.exp(sign * reach) for sign in (-1, 1))
        parts.append(
            f"confidence: predicted error times {config.confidence_scale:.4g} (95%: {low:.4g} to "
            f"{high:.4g})"
        )
    return "; ".join(parts)


def is_unedited(card: str) -> bool:
    """Whether a card is exactly as ``model_card_text`` wrote it, for any head."""
    marks = list(_MARK.finditer(card))
    return bool(marks) and _hash(_MARK.sub("", card)) == marks[-1][1]


def _hash(text: str) -> str:
    """Without line ends and surrounding space, which a transfer may change."""
    plain = "\n".join(line.rstrip() for line in text.strip().splitlines())
    return hashlib.sha256(plain.encode()).hexdigest()
