"""Depth of an engine whose layers are split over two workers, on the CPU."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from clipdepth_plugin.serving.general_plugin import register
from clipdepth_plugin.serving.vllm import generate_with_depth
from tests.vllm.engines import engine, picture, prompt
from tests.vllm.models import BY_NAME
from tests.vllm.servers import ROOT, installed
from tests.vllm.test_start import save_head

MODEL = BY_NAME["idefics3"]


def save_maps(folder: Path, workers: int) -> None:
    """Serves three prompts, and writes the maps of their pictures in order."""
    from vllm import SamplingParams

    options = {"additional_config": {"clipdepth": {"heads": [str(folder / "head")]}}}
    split = {"tensor_parallel_size": workers} if workers > 1 else {}
    sampling = SamplingParams(max_tokens=2, temperature=0, ignore_eos=True)
    prompts = [
        prompt(MODEL, picture(1, (64, 40)), picture(2, (40, 64))),
        prompt(MODEL),
        prompt(MODEL, picture(3)),
    ]
    with engine(MODEL, folder, fill=False, load_format="auto", **options, **split) as llm:
        found = generate_with_depth(llm, prompts, sampling, use_tqdm=False)
    assert [len(one.pictures) for one in found] == [2, 0, 1]
    maps = [one.depth for each in found for one in each.pictures]
    np.savez(folder / f"{workers}.npz", *maps)


def test_tensor_parallel(tmp_path: Path) -> None:
    """Two workers, in processes of their own with the entry point, give the maps that one gives."""
    save_head(tmp_path / "head")
    MODEL.save_weights(tmp_path / "model")
    script = tmp_path / "serve.py"
    script.write_text(
        "import tests.vllm.conftest\n"
        "if __name__ == '__main__':\n"
        "    from pathlib import Path; from tests.vllm.test_parallel import save_maps\n"
        f"    save_maps(Path({str(tmp_path)!r}), 2)\n"
    )
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{installed(tmp_path)}"}
    run = subprocess.run(
        [sys.executable, str(script)], env=env, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]
    importlib.import_module("vllm.engine.arg_utils")  # which calls the entry point
    register()
    save_maps(tmp_path, 1)
    with np.load(tmp_path / "1.npz") as one, np.load(tmp_path / "2.npz") as two:
        assert len(one.files) == len(two.files) == 3
        for file in one.files:
            assert np.isfinite(one[file]).all()
            np.testing.assert_allclose(one[file], two[file], rtol=1e-3)
        assert not np.allclose(one["arr_0"], one["arr_1"], rtol=1e-3)
