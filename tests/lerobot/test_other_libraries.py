"""peft, torchao, bitsandbytes, accelerate and the Trainer around an attached policy."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clipdepth_plugin import DepthHead, attach

cases: Any = importlib.import_module("tests.lerobot.cases")
plain: Any = importlib.import_module("tests.lerobot.policies")
KEYS: tuple[str, ...] = plain.KEYS
Heads = Callable[[nn.Module], DepthHead]
NAMES = ("smolvla", "pi0")

named = pytest.mark.parametrize("name", NAMES)


def maps_of(plugin: Any) -> Tensor:
    """All cameras' maps, one after another."""
    return torch.cat([plugin.depth_of(key).flatten() for key in KEYS])


def lora(policy: Any) -> Any:
    """LoRA on the tower too, with weights that change something."""
    import peft

    config = peft.LoraConfig(
        r=2, target_modules=r".*vision.*(q_proj|v_proj)", init_lora_weights=False
    )
    torch.manual_seed(5)
    return peft.PeftModel(policy, config).eval()


@named
@pytest.mark.parametrize("attached_to", ["wrapped", "policy"])
def test_lora_before_and_after(
    name: str, attached_to: str, tmp_path: Path, small_head: Heads
) -> None:
    case = cases.BY_NAME[name]
    policy = case.make(tmp_path)
    head, batch = small_head(policy), case.batch(policy)
    wrapped = lora(policy)
    alone = case.act(policy, batch)
    with attach(wrapped if attached_to == "wrapped" else policy, head) as plugin:
        assert torch.equal(case.act(policy, batch), alone)
        before = maps_of(plugin)
    other = case.make(tmp_path)
    with attach(other, head) as plugin:
        case.act(other, batch)
        plain_maps = maps_of(plugin)
        lora(other)
        assert torch.equal(case.act(other, batch), alone)
        assert torch.equal(maps_of(plugin), before)
    assert not torch.equal(before, plain_maps)


@named
def test_merged_and_saved_while_attached(name: str, tmp_path: Path, small_head: Heads) -> None:
    from safetensors.torch import load_file

    case = cases.BY_NAME[name]
    policy = case.make(tmp_path)
    head, batch = small_head(policy), case.batch(policy)
    wrapped = lora(policy)
    alone = case.act(policy, batch)
    with attach(policy, head) as plugin:
        case.act(policy, batch)
        before = maps_of(plugin)
        wrapped.save_pretrained(tmp_path / "adapter")
        merged = wrapped.merge_and_unload()
        assert merged is policy
        assert torch.allclose(case.act(merged, batch), alone, atol=1e-4)
        assert torch.allclose(maps_of(plugin), before, rtol=1e-3)
        merged.save_pretrained(tmp_path / "merged")
    saved = load_file(next((tmp_path / "merged").glob("*.safetensors")))
    assert not any("head" in key and "depth" in key for key in saved)
    assert {*saved} <= {*policy.state_dict()}
    assert load_file(tmp_path / "adapter" / "adapter_model.safetensors")


@named
def test_torchao_int8(name: str, tmp_path: Path, small_head: Heads) -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    case = cases.BY_NAME[name]
    policy = case.make(tmp_path)
    head, batch = small_head(policy), case.batch(policy)
    quantize_(policy, Int8WeightOnlyConfig())
    alone = case.act(policy, batch)
    with attach(policy, head, other_tower=True) as plugin:
        assert torch.equal(case.act(policy, batch), alone)
        assert maps_of(plugin).isfinite().all()


@named
def test_bitsandbytes_8_bit(name: str, tmp_path: Path, small_head: Heads) -> None:
    import bitsandbytes

    case = cases.BY_NAME[name]
    policy = case.make(tmp_path)
    head, batch = small_head(policy), case.batch(policy)
    tower = policy.get_submodule(case.tower)
    for module in list(tower.modules()):
        for child_name, child in list(module.named_children()):
            if type(child) is nn.Linear:
                small = bitsandbytes.nn.Linear8bitLt(
                    child.in_features, child.out_features, has_fp16_weights=False
                )
                small.load_state_dict(child.state_dict())
                setattr(module, child_name, small.to("cpu"))
    alone = case.act(policy, batch)
    with attach(policy, head, other_tower=True) as plugin:
        assert torch.equal(case.act(policy, batch), alone)
        assert maps_of(plugin).isfinite().all()


@named
@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_accelerate_offload(name: str, where: str, tmp_path: Path, small_head: Heads) -> None:
    import accelerate

    case = cases.BY_NAME[name]
    policy = case.make(tmp_path)
    head, batch = small_head(policy), case.batch(policy)
    alone = case.act(policy, batch)
    with attach(policy, head) as plugin:
        case.act(policy, batch)
        before = maps_of(plugin)
        tower = policy.get_submodule(case.tower)
        if where == "cpu":
            accelerate.cpu_offload(tower, torch.device("cpu"))
        else:
            accelerate.disk_offload(tower, tmp_path / "offloaded", torch.device("cpu"))
        assert torch.equal(case.act(policy, batch), alone)
        assert torch.equal(maps_of(plugin), before)


class _ForTrainer(nn.Module):
    """What the Trainer asks of a model, around a policy."""

    def __init__(self, policy: Any) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, **batch: Tensor) -> dict[str, Tensor]:
        torch.manual_seed(3)
        return {"loss": self.policy.forward(batch)[0]}


@named
def test_trainer(name: str, tmp_path: Path, small_head: Heads) -> None:
    import transformers

    case = cases.BY_NAME[name]

    def trained(attached: bool) -> dict[str, Tensor]:
        policy = case.make(tmp_path)
        batch = {k: v for k, v in case.batch(policy).items() if isinstance(v, Tensor)}
        rows = [{key: value[row] for key, value in batch.items()} for row in range(2)]
        model, head = _ForTrainer(policy), small_head(policy)
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path / "run"),
            max_steps=2,
            report_to=[],
            per_device_train_batch_size=2,
            use_cpu=True,
            remove_unused_columns=False,
            save_strategy="no",
            disable_tqdm=True,
            seed=4,
        )
        trainer = transformers.Trainer(model, arguments, train_dataset=rows)
        if attached:
            with attach(model, head) as plugin:
                trainer.train()
                assert maps_of(plugin).isfinite().all()
        else:
            trainer.train()
        return {key: value.clone() for key, value in policy.state_dict().items()}

    with_depth, without = trained(True), trained(False)
    assert all(torch.equal(value, without[key]) for key, value in with_depth.items())


def test_gradient_checkpointing(tmp_path: Path, small_head: Heads) -> None:
    """Whose backward runs the tower again."""
    case = cases.BY_NAME["pi0"]
    policy = case.make(tmp_path)
    batch = case.batch(policy)
    policy.train()
    loss = plain.loss_of(policy, batch)
    policy.model.gradient_checkpointing_enable()
    with attach(policy, small_head(policy)) as plugin:
        again = plain.loss_of(policy, batch)
        assert torch.equal(again, loss)
        again.backward()
        assert maps_of(plugin).isfinite().all()


@named
def test_lerobots_own_saving_and_loading(name: str, tmp_path: Path, small_head: Heads) -> None:
    case = cases.BY_NAME[name]
    policy = case.make(tmp_path)
    batch = case.batch(policy)
    with attach(policy, small_head(policy)):
        alone = case.act(policy, batch)
        policy.save_pretrained(tmp_path / "saved")
    twin = case.make(tmp_path)
    from safetensors.torch import load_model

    load_model(twin, tmp_path / "saved" / "model.safetensors")
    assert torch.equal(case.act(twin, batch), alone)


@named
def test_a_copy_of_an_attached_policy_is_plain(
    name: str, tmp_path: Path, small_head: Heads
) -> None:
    import copy
    import pickle

    case = cases.BY_NAME[name]
    policy = case.make(tmp_path)
    batch = case.batch(policy)
    with attach(policy, small_head(policy)) as plugin:
        alone = case.act(policy, batch)
        before = maps_of(plugin)
        twins = [copy.deepcopy(policy)]
        if name == "smolvla":  # pi0 cannot be pickled, attached or not
            twins.append(pickle.loads(pickle.dumps(policy)))  # noqa: S301
        for twin in twins:
            batch_2 = case.batch(policy, seed=5)
            case.act(twin, batch_2)
            assert torch.equal(maps_of(plugin), before)
            assert torch.equal(case.act(twin, batch), alone)


def test_two_heads_on_one_policy(tmp_path: Path, small_head: Heads, red_head: Heads) -> None:
    case = cases.BY_NAME["pi0"]
    policy = case.make(tmp_path)
    batch = case.batch(policy)
    first, second = attach(policy, small_head(policy)), attach(policy, red_head(policy))
    case.act(policy, batch)
    assert not torch.equal(first.depth_of(KEYS[0]), second.depth_of(KEYS[0]))
    kept = second.depth_of(KEYS[1])
    first.detach()
    case.act(policy, batch)
    assert torch.equal(second.depth_of(KEYS[1]), kept)
    second.detach()
    assert not {"select_action", "predict_action_chunk", "forward"} & {*policy.__dict__}
