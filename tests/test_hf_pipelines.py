"""transformers' pipelines around a host with an attached plug-in: the same output, and depth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    CLIPForImageClassification,
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    pipeline,
)

from clipdepth_plugin import attach
from tests.test_original_sizes import red_head
from tests.tiny.case import TEXT, VISION

SIZE = 32
PIXELS = CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
WORDS = ["<unk>", "<pad>", "<image>", "a", "cube"]
Ask = Callable[[Any, Any], Any]


def _vision() -> CLIPVisionConfig:
    return CLIPVisionConfig(**{**VISION, "image_size": SIZE})


def _features() -> tuple[Any, Ask]:
    model = CLIPVisionModel(_vision()).eval()
    made = pipeline("image-feature-extraction", model=model, image_processor=PIXELS)
    return made, lambda pipe, pictures: pipe(pictures)


def _classes() -> tuple[Any, Ask]:
    from transformers import CLIPConfig

    model = CLIPForImageClassification(CLIPConfig(vision_config=_vision().to_dict())).eval()
    made = pipeline("image-classification", model=model, image_processor=PIXELS)
    return made, lambda pipe, pictures: pipe(pictures, batch_size=2)


def _text() -> tuple[Any, Ask]:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="<unk>",  # noqa: S106
        pad_token="<pad>",  # noqa: S106
        extra_special_tokens={"image_token": "<image>"},
    )
    patch = _vision().patch_size
    processor = LlavaProcessor(
        PIXELS, tokenizer, patch_size=patch, vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=_vision(), text_config=LlamaConfig(**TEXT), image_token_index=2
    )
    model = LlavaForConditionalGeneration(config).eval()
    made = pipeline("image-text-to-text", model=model, processor=processor)

    def ask(pipe: Any, pictures: Any) -> Any:
        texts = ["<image> a cube"] * len(pictures)
        return [pipe(images=[one], text=text, max_new_tokens=3, do_sample=False)
                for one, text in zip(pictures, texts, strict=True)]  # fmt: skip

    return made, ask


def pictures() -> list[Image.Image]:
    noise = np.random.default_rng(0)
    sizes = ((48, 80), (64, 40))
    return [Image.fromarray(noise.integers(0, 255, (*size, 3), dtype=np.uint8)) for size in sizes]


@pytest.mark.parametrize("make", [_features, _classes, _text])
def test_the_output_is_the_same_and_depth_is_there(make: Callable[[], tuple[Any, Ask]]) -> None:
    torch.manual_seed(0)
    pipe, ask = make()
    shown = pictures()
    alone = ask(pipe, shown)
    with attach(pipe.model, red_head(pipe.model), processor=PIXELS) as plugin:
        with plugin.capture() as seen:
            assert ask(pipe, shown) == alone
        maps = [map_1HW for one in seen for map_1HW in one.depths]
        assert len(maps) == len(shown)
        pixels = PIXELS(shown, return_tensors="pt")["pixel_values"]
        for map_1HW, x_3HW in zip(maps, pixels, strict=True):
            torch.testing.assert_close(map_1HW, x_3HW[:1] + 1, atol=1e-5, rtol=0)
        last = [shown[-1].size[::-1]] * len(seen[-1].depths)
        assert plugin.predict(original_sizes=last)[-1].shape == (1, *shown[-1].size[::-1])
    assert ask(pipe, shown) == alone
