"""Rows of the host table: robot policies, in transformers or laid out as their own packages do.

LeRobot's and OpenVLA's packages are not installed: their module trees, and the way they call their
towers, are built here from the same parts of transformers and timm. Cameras are views.
"""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from tests.tiny.case import IMAGE_TOKEN, TEXT, VISION, WIDTH, HostCase, hidden_states, placeholders
from tests.tiny.hf_towers import make
from tests.tiny.open_clip_timm import timm_levels, timm_vit
from tests.tiny.vlms import BY_NAME as VLM

_CAMERAS, _STEPS, _ACTIONS = 2, 3, 4


def fixed(*shape: int) -> Tensor:
    """The same random numbers each time: noise, robot states."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(8))


# --- PI0 of transformers: cameras are folded into the batch -------------------------------------


def _pi0() -> nn.Module:
    from transformers import GemmaConfig, PaliGemmaConfig, SiglipVisionConfig

    gemma = {**TEXT, "num_key_value_heads": 1, "head_dim": 8}
    vlm = PaliGemmaConfig(
        vision_config=SiglipVisionConfig(**VISION, vision_use_head=False),
        text_config=GemmaConfig(**gemma),
        image_token_index=IMAGE_TOKEN,
        projection_dim=WIDTH,
    )
    sizes = {"chunk_size": _STEPS, "max_state_dim": _ACTIONS, "max_action_dim": _ACTIONS}
    return make(
        "PI0ForConditionalGeneration", vlm_config=vlm, dit_config=GemmaConfig(**gemma), **sizes
    )


def pi0_inputs(x: Tensor) -> dict[str, Tensor]:
    """What PI0 takes for views of ``_CAMERAS`` cameras a row."""
    batch = len(x) // _CAMERAS
    return {
        "state": fixed(batch, _ACTIONS),
        "noise": fixed(batch, _STEPS, _ACTIONS),
        "pixel_values": x.reshape(batch, _CAMERAS, *x.shape[1:]),
        "pixel_attention_mask": torch.ones(batch, _CAMERAS, dtype=torch.bool),
        **placeholders([(16,) * _CAMERAS] * batch),
    }


def _run_pi0(host: Any, x: Tensor) -> list[Tensor]:
    return [host(**pi0_inputs(x), timestep=torch.full((len(x) // _CAMERAS,), 0.5)).logits]


# --- LeRobot's: the tower runs once a camera, and no root forward is made ------------------------


class _Policy(nn.Module):
    """``select_action`` calls methods all the way down, so no hook on a module around fires."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def select_action(self, cameras: list[Tensor], state: Tensor) -> Tensor:
        return cast("Tensor", cast("Any", self.model).sample_actions(cameras, state))


class _FlowMatching(nn.Module):
    """Embeds each camera, then a few denoising steps of the actions on what they show."""

    def __init__(self, name: str, experts: nn.Module) -> None:
        super().__init__()
        self.experts_name = name
        self.add_module(name, experts)
        self.state_proj = nn.Linear(_ACTIONS, WIDTH)
        self.action_out_proj = nn.Linear(WIDTH, _ACTIONS)

    def sample_actions(self, cameras: list[Tensor], state: Tensor) -> Tensor:
        experts: Any = getattr(self, self.experts_name)
        seen = torch.cat([experts.embed_image(camera) for camera in cameras], dim=1)
        actions = fixed(len(state), _ACTIONS)
        for _ in range(2):
            tokens = torch.cat([seen, self.state_proj(state + actions)[:, None]], dim=1)
            hidden = experts.language(tokens)
            actions = actions + self.action_out_proj(hidden[:, -1]) / 2
        return actions


class _PaliGemmaWithExpert(nn.Module):
    """As in LeRobot's pi0."""

    def __init__(self) -> None:
        super().__init__()
        self.paligemma = VLM["paligemma"].build()

    def embed_image(self, image: Tensor) -> Tensor:
        features = cast("Any", self.paligemma).model.get_image_features(image)
        return cast("Tensor", getattr(features, "pooler_output", features))

    def language(self, tokens: Tensor) -> Tensor:
        model = cast("Any", self.paligemma).model.language_model
        return cast("Tensor", model.forward(inputs_embeds=tokens).last_hidden_state)


class _SmolVlmWithExpert(nn.Module):
    """As in LeRobot's SmolVLA: the tower and the connector are called one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.vlm = VLM["smolvlm"].build()

    def embed_image(self, image: Tensor) -> Tensor:
        model = cast("Any", self.vlm).model
        states = model.vision_model(pixel_values=image, patch_attention_mask=None)
        return cast("Tensor", model.connector(states.last_hidden_state))

    def language(self, tokens: Tensor) -> Tensor:
        model = cast("Any", self.vlm).model.text_model
        return cast("Tensor", model.forward(inputs_embeds=tokens).last_hidden_state)


def _lerobot(name: str, experts: type[nn.Module]) -> nn.Module:
    return _Policy(_FlowMatching(name, experts()))


def _select_action(host: Any, x: Tensor) -> list[Tensor]:
    cameras = list(x.chunk(_CAMERAS))
    return [host.select_action(cameras, fixed(len(cameras[0]), _ACTIONS))]


# --- OpenVLA: two towers of timm's, second-to-last blocks, pictures of six channels --------------


class _Prismatic(nn.Module):
    """Two towers side by side; their ``forward`` is replaced on the object."""

    def __init__(self) -> None:
        super().__init__()
        self.featurizer = timm_vit(num_classes=0, reg_tokens=4)()
        self.fused_featurizer = timm_vit(num_classes=0, class_token=False, global_pool="map")()
        for tower in (self.featurizer, self.fused_featurizer):
            last_but_one = partial(cast("Any", tower).get_intermediate_layers, n={2})
            tower.forward = _First(last_but_one)

    def forward(self, pixels_B6HW: Tensor) -> Tensor:
        first, second = pixels_B6HW.split(3, dim=1)
        return torch.cat([self.featurizer(first), self.fused_featurizer(second)], dim=2)


class _First:
    """The first of what a call returns."""

    def __init__(self, call: Any) -> None:
        self.call = call

    def __call__(self, x: Tensor) -> Tensor:
        return cast("Tensor", self.call(x)[0])


class _OpenVla(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.vision_backbone = _Prismatic()
        self.projector = nn.Linear(2 * WIDTH, WIDTH)
        self.language_model = make("LlamaForCausalLM", **TEXT)

    def forward(self, input_ids: Tensor, pixel_values: Tensor) -> Tensor:
        language: Any = self.language_model
        words = language.get_input_embeddings()(input_ids)
        seen = self.projector(self.vision_backbone(pixel_values))
        logits: Tensor = language(inputs_embeds=torch.cat([seen, words], dim=1)).logits
        return logits


def _run_openvla(place: int, host: Any, x: Tensor) -> list[Tensor]:
    """``x`` is what the tower at ``place`` takes; the other's is normalised in another way."""
    six = [x * 1.2 + 0.1, x * 1.2 + 0.1]
    six[place] = x
    return [host(torch.tensor([[1, 5, 6]] * len(x)), torch.cat(six, dim=1))]


def _openvla(tower: str, place: int, prefix: int, contexts: tuple[str, ...]) -> HostCase:
    path = f"vision_backbone.{tower}"
    return HostCase(
        name=f"openvla_{tower}",
        title="OpenVLA's layout",
        build=_OpenVla,
        tower=path,
        family="timm",
        prefix=prefix,
        contexts=contexts,
        run=partial(_run_openvla, place),
        levels=lambda host, x: timm_levels(host.get_submodule(path), x),
        choose=path,
    )


def _camera_case(name: str, title: str, build: Any, tower: str, family: str) -> HostCase:
    return HostCase(
        name=name,
        title=title,
        build=build,
        tower=tower,
        family=family,
        prefix=0,
        contexts=("mean",),
        run=_select_action,
        levels=lambda host, x: hidden_states(host.get_submodule(tower), x),
        views=2 * _CAMERAS,
        passes=_CAMERAS,
        needs="SmolVLMForConditionalGeneration" if "smol" in name else None,
    )


POLICIES: tuple[HostCase, ...] = (
    HostCase(
        name="pi0",
        title="PI0 of transformers",
        build=_pi0,
        tower="model.vlm.vision_tower",
        family="hf_siglip",
        prefix=0,
        contexts=("mean",),
        run=_run_pi0,
        levels=lambda host, x: hidden_states(host.model.vlm.vision_tower, x),
        views=2 * _CAMERAS,
        needs="PI0ForConditionalGeneration",
    ),
    _camera_case(
        *("lerobot_pi0", "LeRobot's pi0, its layout"),
        partial(_lerobot, "paligemma_with_expert", _PaliGemmaWithExpert),
        *("model.paligemma_with_expert.paligemma.model.vision_tower", "hf_siglip"),
    ),
    _camera_case(
        *("lerobot_smolvla", "LeRobot's SmolVLA, its layout"),
        partial(_lerobot, "vlm_with_expert", _SmolVlmWithExpert),
        *("model.vlm_with_expert.vlm.model.vision_model", "unknown"),
    ),
    _openvla("featurizer", 0, 5, ("cls", "mean")),
    _openvla("fused_featurizer", 1, 0, ("mean",)),
)
