"""Real engines on tiny hosts, in this process, on vLLM's CPU platform."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from tests.vllm.models import Model


def picture(seed: int, size: tuple[int, int] = (40, 48)) -> Image.Image:
    """A random picture of (height, width)."""
    pixels = np.random.RandomState(seed).rand(*size, 3) * 255
    return Image.fromarray(pixels.astype("uint8"))


def slope(size: tuple[int, int], blue: int) -> Image.Image:
    """A picture whose red grows downwards and whose green to the right, all of one blue."""
    height, width = size
    red_hw, green_hw = np.meshgrid(
        np.linspace(0, 255, height), np.linspace(0, 255, width), indexing="ij"
    )
    pixels = np.stack([red_hw, green_hw, np.full(size, blue)], axis=-1)
    return Image.fromarray(pixels.round().astype("uint8"))


@contextmanager
def engine(model: Model, folder: Path, *, fill: bool = True, **options: Any) -> Iterator[Any]:
    """VLLM's ``LLM`` of a tiny host; ``fill``: with random weights, always the same."""
    from vllm import LLM

    model.save(folder / "model")
    usual = {
        "load_format": "dummy",
        "enforce_eager": True,
        "dtype": "float32",
        "max_model_len": 256,
        "max_num_seqs": 4,
        "max_num_batched_tokens": 512,
        "seed": 0,
        "disable_log_stats": True,
        "gpu_memory_utilization": 0.1,
        "limit_mm_per_prompt": {"image": 3},
    }
    llm = LLM(model=str(folder / "model"), **{**usual, **options})
    try:
        if fill:
            llm.collective_rpc(_fill)
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()


def _fill(worker: Any) -> None:
    """Weights that show what they are given; those of ``dummy`` are next to nothing."""
    noise = torch.Generator().manual_seed(0)
    host = worker.model_runner.get_model()
    for module in host.modules():
        if type(module).__name__ == "FusedMMInputNorm":  # dummy weights fill its constants, too
            module.weight.fill_(1 / 127.5)
            module.bias.fill_(-1.0)
    for name, x in host.named_parameters():
        with torch.no_grad():
            if x.ndim == 1:
                nn.init.constant_(x, 1.0 if "weight" in name else 0.0)
            else:
                x.copy_(torch.randn(x.shape, generator=noise) * 0.1)


def host_of(llm: Any) -> nn.Module:
    """The engine's own module."""
    (worker,) = llm.collective_rpc(_worker)
    host: nn.Module = worker.model_runner.get_model()
    return host


def _worker(worker: Any) -> Any:
    return worker


def forget(llm: Any) -> None:
    """Empties the engine's caches, so that the tower runs again."""
    llm.llm_engine.reset_encoder_cache()
    llm.reset_prefix_cache()


def prompt(model: Model, *pictures: Image.Image) -> dict[str, Any]:
    """A prompt with pictures."""
    text = " ".join([model.prompt] * len(pictures)) or "what is here"
    shown = {"multi_modal_data": {"image": list(pictures)}} if pictures else {}
    return {"prompt": text, **shown}


def answers(llm: Any, prompts: list[Any], tokens: int = 4) -> list[Any]:
    """Token ids and log probabilities of each prompt."""
    from vllm import SamplingParams

    sampling = SamplingParams(max_tokens=tokens, temperature=0, logprobs=2, ignore_eos=True)
    return [said(one) for one in llm.generate(prompts, sampling, use_tqdm=False)]


def said(output: Any) -> Any:
    """All that an output says, to be compared bit for bit."""
    one = output.outputs[0]
    logs = [sorted((k, x.logprob) for k, x in step.items()) for step in one.logprobs]
    return tuple(one.token_ids), logs
