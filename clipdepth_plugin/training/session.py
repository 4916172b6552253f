"""Session: what a run needs, made from its config: tower, head, data, optimiser.

Axes: B views, H W pixels.
"""

from __future__ import annotations

import importlib.util
import logging
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import nn

from clipdepth_plugin.adapters.wanted import wanted_by
from clipdepth_plugin.arguments import Size
from clipdepth_plugin.config import HeadConfig, Provenance
from clipdepth_plugin.data import Mixture, StreamMixture, open_mixture
from clipdepth_plugin.data.config import DataConfig, expand
from clipdepth_plugin.data.opening import check_metres
from clipdepth_plugin.errors import TrainingError
from clipdepth_plugin.head import DepthHead
from clipdepth_plugin.training.accelerator import make_accelerator
from clipdepth_plugin.training.batches import SourceContext, TowerSource
from clipdepth_plugin.training.cached import cached_source, open_cache
from clipdepth_plugin.training.ema import Ema
from clipdepth_plugin.training.level_norms import init_level_norms
from clipdepth_plugin.training.progress import Doing, silent
from clipdepth_plugin.training.step import Stepper
from clipdepth_plugin.training.tower import FrozenTower, load_tower, make_head
from clipdepth_plugin.training.trained import TrainedHead

if TYPE_CHECKING:
    from clipdepth_plugin.adapters.preprocessing import Preprocessing
    from clipdepth_plugin.training.batches import FeatureSource
    from clipdepth_plugin.training.config import TrainConfig
    from clipdepth_plugin.training.validation import Best


logger = logging.getLogger(__name__)

Data = Mixture | StreamMixture


@dataclass(frozen=True)
class Session:
    """A run that is ready to start."""

    context: SourceContext
    model: nn.Module
    optimiser: Any
    stepper: Stepper
    ema: Ema | None
    train: FeatureSource
    validation: FeatureSource | None
    validation_data: Data | None
    total_steps: int
    validation_interval: int
    samples: dict[str, list[int]] = field(default_factory=dict)
    """Of each set, as ``checkpoint.State`` has them."""
    labels: tuple[str | None, ...] = ()
    """Whose labels each training set has; None: truth."""

    def provenance(self, best: Best) -> Provenance:
        """The provenance that the saved head records."""
        config, tower = self.context.config, self.context.tower
        given = config.provenance
        data = given.data or tuple(map(_described, config.data.train, self.labels))
        measured = ", ".join(f"{name} {value:.4f}" for name, value in best.metrics.items())
        notes = [
            given.notes,
            f"Trained for {self.total_steps} steps of {config.batch_size} images, seed "
            f"{config.seed}; {best.weights} weights of step {best.step}."
            + (f" On the validation data at {self.context.size}: {measured}." if measured else ""),
        ]
        return Provenance(
            tower=tower.name,
            tower_hashes=tower.hashes,
            data=data,
            license=given.license,
            notes="\n\n".join(note for note in notes if note),
        )


def _described(config: DataConfig, labels: str | None) -> str:
    return f"{config.root} ({config.split}{f', labels of {labels}' if labels else ''})"


def check_ready(config: TrainConfig) -> None:
    """Checks that this machine can run the config; nothing is loaded."""
    if config.cache is not None and (
        Path(expand(config.cache.folder)).resolve() == Path(config.run).resolve()
    ):
        raise TrainingError(f"cache.folder: {config.run} is the run's own folder; give it another")
    wanted = {"tensorboard": config.logging.tensorboard, "matplotlib": config.logging.pictures > 0}
    for package, needed in wanted.items():
        if needed and importlib.util.find_spec(package) is None:
            raise TrainingError(
                f'training needs the package {package}: pip install "clipdepth-plugin[train]" (or '
                "set logging.tensorboard: false, logging.pictures: 0)"
            )
    if config.precision == "fp16" and not torch.cuda.is_available():
        raise TrainingError("precision: fp16 needs a GPU; bf16 and no run everywhere")


def open_session(
    config: TrainConfig,
    doing: Doing = silent,
    *,
    head_class: type[DepthHead] = DepthHead,
    accelerator: Accelerator | None = None,
) -> Session:
    """Opens the data, loads the tower, makes the head; ``head_class`` may bring its own decoder."""
    accelerator = accelerator or make_accelerator(config)
    config = config.model_copy(update={"precision": accelerator.mixed_precision})
    if config.sync_batch_norm and accelerator.device.type != "cuda":
        raise TrainingError("sync_batch_norm: is for GPUs, there is none here; leave it out")
    data, tower = _open_data(config), load_tower(config)
    head = _seeded_head(config, tower, head_class)
    head_config = head.config
    if head_config.metric:
        for configs, one in zip((config.data.train, config.data.validation), data, strict=True):
            check_metres(configs, () if one is None else one.sets)
    size = config.output_size or _usual_size(tower.preprocessing)
    config = config.model_copy(update={"loss": config.loss_for(head_config, size)})
    if accelerator.is_main_process:
        warn_of_resize(head_config, tower, size)
    wanted = wanted_by(head_config, tower.tower, pixels=head.reads_pixels)
    read = tower.reader(wanted, accelerator.autocast)
    context = SourceContext(config, accelerator, tower, head_config, read, size)
    doing = doing if accelerator.is_main_process else silent
    train, validation = _sources(context, data, doing)
    if config.head.init is None:
        batches = math.ceil(config.head.norm_init_pictures / config.micro_batch)
        init_level_norms(head, train, batches, accelerator)
    model, optimiser = _prepare(config, head, tower, accelerator)
    steps, interval = _lengths(config, train)
    return Session(
        context=context,
        model=model,
        optimiser=optimiser,
        stepper=Stepper(accelerator, model, optimiser, config, size),
        ema=None if config.ema is None else Ema(model, config.ema),
        train=train,
        validation=validation,
        validation_data=data[1],
        total_steps=steps,
        validation_interval=interval,
        samples={
            part: list(one.counts)
            for part, one in zip(("train", "validation"), data, strict=True)
            if isinstance(one, Mixture)
        },
        labels=tuple(one.labels for one in data[0].sets),
    )


def _open_data(config: TrainConfig) -> tuple[Data, Data | None]:
    sets, limit = config.data, config.bad_file_limit
    train = open_mixture(sets.train, bad_file_limit=limit, relative=True)
    if not sets.validation:
        return train, None
    return train, open_mixture(sets.validation, bad_file_limit=limit, relative=True)


def _seeded_head(config: TrainConfig, tower: FrozenTower, head_class: type[DepthHead]) -> DepthHead:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        head = make_head(config, tower, head_class)
    if config.sync_batch_norm:
        head = nn.SyncBatchNorm.convert_sync_batchnorm(head)
    return head


def _prepare(
    config: TrainConfig, head: DepthHead, tower: FrozenTower, accelerator: Accelerator
) -> tuple[nn.Module, Any]:
    """Model and optimiser, on the device and among the processes."""
    model = TrainedHead(head, config.loss, patch_size=tower.tower.patch_size)
    optimiser = torch.optim.AdamW(
        [x for x in model.parameters() if x.requires_grad],
        lr=config.optimiser.lr,
        betas=config.optimiser.betas,
        weight_decay=config.optimiser.weight_decay,
    )
    prepared: tuple[nn.Module, Any] = accelerator.prepare(model, optimiser)
    return prepared


def _sources(
    context: SourceContext, data: tuple[Data, Data | None], doing: Doing
) -> tuple[FeatureSource, FeatureSource | None]:
    """Makes the sources of batches, and fills the token cache where the run has one."""
    host = context.tower.host
    cache = None if context.config.cache is None else open_cache(context)
    if cache is None:
        host.to(context.device)

    def make(one: Data, *, training: bool) -> FeatureSource:
        if cache is None:
            return TowerSource(context, one, training=training)
        assert isinstance(one, Mixture)  # a config with streams has no cache
        return cached_source(context, cache, one, training=training, doing=doing)

    train = make(data[0], training=True)
    validation = None if data[1] is None else make(data[1], training=False)
    if cache is not None:
        host.to("cpu")
    return train, validation


def _usual_size(preprocessing: Preprocessing) -> Size:
    """(H, W) of every view; where each has its own, of a picture of 480 x 640."""
    if preprocessing.fixed_size:
        return preprocessing.size
    return preprocessing.views((480, 640)).views[0].view_size


def warn_of_resize(head: HeadConfig, tower: FrozenTower, size: Size) -> None:
    """Warns where the loss sees a ReLU's map resized, which hides dead outputs."""
    pixels, patch = _usual_size(tower.preprocessing), tower.tower.patch_size
    height, width = (head.upsampling * (side // of) for side, of in zip(pixels, patch, strict=True))
    all_seen = all(side % of == 0 for side, of in zip(pixels, patch, strict=True))
    all_seen = all_seen and tower.preprocessing.fixed_size
    if head.activation == "relu" and (size != (height, width) or not all_seen):
        # Maps with an unseen border, or of several sizes, are always resized.
        advice = f"output_size: [{height}, {width}], or " if all_seen else ""
        logger.warning(
            "output_size: the head's own maps are %d x %d, and the loss sees them resized to %d x "
            "%d, which hides a ReLU that is dead at some of their pixels: set "
            "%shead.options.activation: log",
            *(height, width, *size, advice),
        )


def _lengths(config: TrainConfig, source: FeatureSource) -> tuple[int, int]:
    """Steps of the run and between validations."""
    try:
        in_epoch: int | None = len(source) // config.gradient_accumulation
    except TypeError:
        in_epoch = None
    if in_epoch == 0:
        raise TrainingError(
            f"data.train: fewer samples than batch_size = {config.batch_size}; use smaller "
            "batches, or more data"
        )
    if config.steps is not None:
        return config.steps, config.validate_every or max(1, config.steps // 10)
    assert config.epochs is not None  # a stream needs steps
    assert in_epoch is not None
    return config.epochs * in_epoch, config.validate_every or in_epoch
