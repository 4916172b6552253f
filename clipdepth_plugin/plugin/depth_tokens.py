"""DepthTokens: depth tokens added to a host's visual tokens, through a projection that starts at 0.

The 3D position embedding is SpatialVLA's (arXiv 2501.15830): sines and cosines of a point's
coordinates, then an MLP.

Axes: B views, N visual tokens of a view, W width of a visual token.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import save
from torch import Tensor, nn

from clipdepth_plugin.arguments import Size, StrPath, check_type, parse_sizes
from clipdepth_plugin.errors import ConfigError, HeadFileError, HeadMismatchError, HostError
from clipdepth_plugin.files.atomic import new_files
from clipdepth_plugin.files.documents import read_json
from clipdepth_plugin.files.problems import checked
from clipdepth_plugin.maps.cameras import Cameras, Focals
from clipdepth_plugin.plugin.depth_plugin import DepthPlugin
from clipdepth_plugin.plugin.depth_tokens_config import DepthTokensConfig, sines_and_cosines
from clipdepth_plugin.plugin.token_adder import TokenAdder
from clipdepth_plugin.settings import STORED
from clipdepth_plugin.weights.hub import CONFIG_FILE, WEIGHTS_FILE
from clipdepth_plugin.weights.tensors import (
    build_checked,
    load_weights,
    read_safetensors,
    read_shapes,
)


class DepthTokens(nn.Module):
    """Adds what is known of each patch's place to a host's visual tokens.

    A module of its own: its parameters are never the host's, and go to an optimiser, a file and a
    device by themselves. At first it adds zero. It reads ``plugin.tokens()`` of the pass that the
    connector's tokens are of, without a gradient to the tower or the head.

    Attributes:
        config: What defines it.
    """

    def __init__(self, config: DepthTokensConfig) -> None:
        """Random but for the last projection, which is zero."""
        super().__init__()
        check_type(config, DepthTokensConfig, "the config of depth tokens", ConfigError)
        if config.longest < config.shortest:
            raise ConfigError(f"longest: {config.longest} m is below shortest, {config.shortest} m")
        self.config = config
        self.embed = nn.Sequential(
            nn.Linear(config.inputs, config.hidden),
            nn.GELU(),
            nn.Linear(config.hidden, config.hidden),
            nn.GELU(),
        )
        self.project = nn.Linear(config.hidden, config.width)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)
        self._adder: TokenAdder | None = None

    @classmethod
    def for_plugin(
        cls, plugin: DepthPlugin, *, connector: str | None = None, **options: Any
    ) -> Self:
        """New ones that fit a plug-in's host and head.

        Args:
            plugin: The plug-in.
            connector: Module path of what makes the visual tokens, where the host's structure does
                not tell.
            options: Fields of ``DepthTokensConfig``. Points are read where depth is metric,
                confidence where the head predicts it.

        Raises:
            HostError: No connector, or several.
            ConfigError: No such option.
        """
        check_type(plugin, DepthPlugin, "plugin")
        head = plugin.head.config
        given = {
            "width": plugin.connector(connector).width,
            "camera": head.metric,
            "confidence": head.confidence,
            **options,
        }
        return cls(checked(DepthTokensConfig, given, "depth tokens", ConfigError))

    def forward(self, tokens_BN5: Tensor) -> Tensor:
        """What is added to visual tokens.

        Args:
            tokens_BN5: As ``DepthPlugin.tokens`` gives them.

        Returns:
            (B, N, W) in the weights' dtype; zero where there is no depth.
        """
        config, weight = self.config, self.project.weight
        tokens_BN5 = tokens_BN5.to(weight.device, torch.float32)
        depth_BN1 = tokens_BN5[..., :1]
        waves = sines_and_cosines(tokens_BN5, config)
        added_BNW: Tensor = self.project(self.embed(waves.to(weight.dtype)))
        return added_BNW.masked_fill(~depth_BN1.isfinite(), 0.0)

    @property
    def attached(self) -> bool:
        """Whether they are added to a host's tokens now."""
        return self._adder is not None

    def attach(
        self,
        plugin: DepthPlugin,
        *,
        connector: str | None = None,
        intrinsics: Cameras | None = None,
        focal_px: Focals | None = None,
        original_sizes: Size | list[Size] | None = None,
    ) -> Self:
        """Adds them to the visual tokens of the plug-in's host in each of its forwards.

        Keep them: when they are collected they detach.

        Args:
            plugin: An attached plug-in; detach these before it.
            connector: As ``for_plugin``.
            intrinsics: The camera of every pass, as ``DepthPlugin.tokens``; ``cameras`` says those
                of several.
            focal_px: Likewise.
            original_sizes: Likewise.

        Raises:
            HostError: No connector, or several.
            HeadMismatchError: They are attached already; another width; or they read confidence or
                points, and the head predicts none.
        """
        check_type(plugin, DepthPlugin, "plugin")
        if self.attached:
            raise HeadMismatchError("these depth tokens are attached already: detach them first")
        found, head = plugin.connector(connector), plugin.head.config
        if found.width != self.config.width:
            raise HeadMismatchError(
                f"these depth tokens have width {self.config.width}, the host's visual tokens "
                f"{found.width} ({found.path}); DepthTokens.for_plugin(plugin) makes some that fit"
            )
        if self.config.confidence and not head.confidence:
            raise HeadMismatchError(
                "these depth tokens read confidence, which the head does not predict "
                "(config.confidence): take another head, or make them with confidence=False"
            )
        if self.config.camera and not head.metric:
            raise HeadMismatchError(
                "these depth tokens read points, which relative depth does not give (config.metric "
                "is False): take a metric head, or make them with camera=False"
            )
        said = {
            "intrinsics": intrinsics,
            "focal_px": focal_px,
            "original_sizes": original_sizes,
        }
        self._adder = TokenAdder(self, plugin, found, said, needs_camera=self.config.camera)
        return self

    def detach(self) -> None:
        """Takes the hook off: the host is as it was, with the plug-in's taps alone."""
        if self._adder is not None:
            self._adder.remove()
            self._adder = None

    @contextmanager
    def cameras(
        self, *intrinsics: Cameras | None, original_sizes: Size | list[Size] | None = None
    ) -> Iterator[None]:
        """Says the camera of each tower pass inside, for hosts that run their tower once a camera.

        Args:
            intrinsics: Of the first pass inside, of the second, and so on; from the first again
                after the last, in this thread.
            original_sizes: (H, W) of the user's images, one for all passes or one for each.

        Raises:
            HostError: No camera, not as many sizes, or not attached.
        """
        if self._adder is None or not intrinsics:
            raise HostError(
                "cameras: give one for each tower pass, to depth tokens that are attached"
            )
        sizes = None if original_sizes is None else parse_sizes(original_sizes, "original_sizes")
        each = sizes if isinstance(sizes, list) else [sizes] * len(intrinsics)
        if len(each) != len(intrinsics):
            raise HostError(f"cameras: {len(each)} original_sizes for {len(intrinsics)} passes")
        said = [
            {"intrinsics": camera, "focal_px": None, "original_sizes": size}
            for camera, size in zip(intrinsics, each, strict=True)
        ]
        with self._adder.saying(said):
            yield

    def save_pretrained(self, folder: StrPath) -> None:
        """Writes config.json and model.safetensors; a save that fails leaves what was there.

        Raises:
            HeadFileError: The folder can't be written.
        """
        state = {name: value.detach().contiguous() for name, value in self.state_dict().items()}
        with new_files(Path(folder), HeadFileError) as temporary:
            (temporary / WEIGHTS_FILE).write_bytes(save(state, metadata={"format": "pt"}))
            text = self.config.model_dump_json(indent=2) + "\n"
            (temporary / CONFIG_FILE).write_text(text, encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: StrPath, *, device: str = "cpu") -> Self:
        """Loads those that ``save_pretrained`` wrote; float32, in evaluation mode.

        Raises:
            HeadFileError: A file is missing, truncated, or does not fit the config.
        """
        config_file, weights = Path(folder) / CONFIG_FILE, Path(folder) / WEIGHTS_FILE
        what = f"{config_file} is not the config of depth tokens"
        tree = read_json(config_file, HeadFileError)
        config = checked(DepthTokensConfig, tree, what, HeadFileError, context=STORED)
        tokens = build_checked(lambda: cls(config), read_shapes(weights), weights)
        load_weights(tokens, read_safetensors(weights), weights)
        return tokens.to(device).eval()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.detach()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_adder": None}  # copies are not attached
