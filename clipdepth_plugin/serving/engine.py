"""Depth inside a worker of vLLM: which tower pass shows which picture of the engine's batch.

The engine runs its tower on the pictures of a batch, whoever asked for them, and keeps what comes
of each by the picture's hash. Depth goes the same way. That the tower saw the batch's pictures in
their order is proven by the pixels, or there is no depth.

Axes: H W a map's size.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from clipdepth_plugin.adapters.forwards import before
from clipdepth_plugin.adapters.hooks import Hook
from clipdepth_plugin.errors import ClipDepthError, HostError, NoDepthError
from clipdepth_plugin.plugin.depth_plugin import DepthPlugin
from clipdepth_plugin.plugin.reading import DepthPass
from clipdepth_plugin.serving.options import ServingOptions, refuse
from clipdepth_plugin.serving.store import Kept, MapStore, Picture, RequestLog
from clipdepth_plugin.shipped import load_head

logger = logging.getLogger(__name__)

DROPPED = (
    "no depth is kept of this picture: the tower has not seen it since the head was attached (the "
    "engine had it in its cache, or the request ended before), or more pictures came since than "
    "cache_mib (CLIPDEPTH_VLLM_CACHE_MIB) holds"
)
_OTHER_PIXELS = (
    "the tower was not given the pictures of the engine's batch in their order and unchanged, so "
    "which map is whose is not known"
)
Due = tuple[Picture, Any]
"""A picture that the engine's next tower pass shows, and its processed fields."""


class EngineDepth:
    """Heads on the tower of a worker's model, and the depth of what it has seen."""

    def __init__(self, worker: Any, options: ServingOptions) -> None:
        """Attaches the heads.

        Raises:
            HostError: An engine option is on that the taps can't work with.
            ClipDepthError: As of ``load_head`` and ``attach``.
        """
        refuse(worker.vllm_config)
        runner = worker.model_runner
        host: nn.Module = runner.get_model()
        self._store = MapStore(options.cache_mib * 2**20)
        self._log = RequestLog(options.requests)
        self._due: list[Due] = []
        self._inputs: list[Tensor] = []
        self._undo: list[Callable[[], None]] = []
        self._plugins: dict[str, DepthPlugin] = {}
        try:
            with torch.inference_mode(False):
                self._attach(host, options)
            self._watch(runner)
        except BaseException:
            self.detach()
            raise

    def detach(self) -> None:
        """Leaves model and engine as they were; depth that is kept can still be asked for."""
        for plugin in self._plugins.values():
            plugin.detach()
        while self._undo:
            self._undo.pop()()

    def answer(self, request: str) -> dict[str, Any]:
        """The depth of a request's pictures, in plain types.

        ``problem``, or ``pictures`` in the prompt's order: each ``hash``, ``modality`` and a
        ``problem``, or ``maps``: by head, for each view a ``shape`` (H, W) and ``data``, float32.
        """
        found = self._log.find(request)
        if len(found) != 1:
            why = "several requests had this id" if found else self._log.unknown
            return {"problem": f"{request!r}: {why}", "pictures": []}
        return {"problem": None, "pictures": [self._of_picture(one) for one in found[0]]}

    def _of_picture(self, picture: Picture) -> dict[str, Any]:
        kept = self._store.get(picture.hash) or Kept(problem=DROPPED)
        maps = {
            head: [{"shape": [*one.shape], "data": one.numpy().tobytes()} for one in views]
            for head, views in kept.maps.items()
        }
        said = {"hash": picture.hash, "modality": picture.modality}
        return {**said, "problem": kept.problem, "maps": maps}

    def _attach(self, host: nn.Module, options: ServingOptions) -> None:
        for name in options.heads:
            head = load_head(name).eval()
            plugin = DepthPlugin(host, head, tower=options.tower, other_tower=options.other_tower)
            head.to(next(plugin.tower.module.parameters()).device)
            self._plugins[name] = plugin.attach()
        tower = plugin.tower
        if getattr(tower.module, "input_norm", None) is not None and tower.family == "hf_pixtral":
            raise HostError(
                "mm_device_do_normalize embeds Pixtral's patches past the module that the taps "
                "are on: leave it False, or serve without a head"
            )
        hook = Hook(self, self._on_tower, with_kwargs=True)
        self._undo.append(before(tower.module)(hook, with_kwargs=True).remove)

    def _watch(self, runner: Any) -> None:
        """Sees the engine's requests, its batches and its tower passes."""
        self._around(runner, "execute_model", self._on_step)
        second = getattr(getattr(runner, "model_state", None), "encoder_runner", None)
        if second is not None:
            self._around(second, "prepare_mm_inputs", self._on_batch)
            self._around(second.model, "embed_multimodal", self._on_embed)
        elif hasattr(runner, "_batch_mm_inputs_from_scheduler"):
            self._around(runner, "_batch_mm_inputs_from_scheduler", self._on_batch)
            self._around(runner.model, "embed_multimodal", self._on_embed)
        else:
            raise HostError(
                f"{type(runner).__name__}: a runner of no known kind; this release of vLLM is not "
                "supported (docs/vllm.md lists those that are)"
            )

    def _around(self, thing: Any, name: str, call: Callable[..., Any]) -> None:
        plain, own = getattr(thing, name), vars(thing)
        had = own.get(name)
        own[name] = lambda *args, **kwargs: call(plain, *args, **kwargs)

        def undo() -> None:
            del own[name]
            if had is not None:
                own[name] = had

        self._undo.append(undo)

    def _on_step(self, plain: Any, scheduled: Any, *args: Any, **kwargs: Any) -> Any:
        for new in scheduled.scheduled_new_reqs:
            shown = [Picture(one.identifier, one.modality) for one in new.mm_features or ()]
            self._log.note(new.req_id, tuple(one for one in shown if _is_seen(one)))
            for one in shown:  # asked for: a map that is kept is not the next to be dropped
                self._store.get(one.hash)
        return plain(scheduled, *args, **kwargs)

    def _on_batch(self, plain: Any, *args: Any, **kwargs: Any) -> Any:
        batch = plain(*args, **kwargs)
        pairs = zip(batch[0], batch[1], strict=True)
        due = [(Picture(hash_, modality), item) for hash_, (modality, item) in pairs]
        # The engine runs one modality after another, in this order.
        due.sort(key=lambda one: one[0].modality)
        self._due = [one for one in due if one[0].modality != "prompt_embeds"]
        return batch

    def _on_tower(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._due:
            first = next((one for one in (*args, *kwargs.values()) if list(_tensors(one))), None)
            self._inputs += _tensors(first)

    def _on_embed(self, plain: Any, **fields: Any) -> Any:
        if not self._due:  # a run to measure memory: of no request
            return plain(**fields)
        self._inputs = []
        with ExitStack() as stack:
            seen = {
                name: stack.enter_context(plugin.capture())
                for name, plugin in self._plugins.items()
            }
            output = plain(**fields)
        items, self._due = self._due[: len(output)], self._due[len(output) :]
        for picture, kept in zip(items, self._read(items, seen, fields), strict=True):
            if _is_seen(picture[0]):
                self._store.put(picture[0].hash, kept)
        self._inputs = []
        return output

    def _read(
        self, items: Sequence[Due], seen: dict[str, list[DepthPass]], fields: dict[str, Any]
    ) -> list[Kept]:
        """What is known of each picture of one call; never an error, as the host goes on."""
        try:
            counts = [_views_of(item) for _, item in items]
            self._check_order(fields)
            heads = {name: _split(passes, counts) for name, passes in seen.items()}
        except ClipDepthError as error:
            return [Kept(problem=str(error))] * len(items)
        except Exception as error:
            logger.exception("no depth of %d pictures", len(items))
            return [Kept(problem=f"{type(error).__name__}: {error}")] * len(items)
        return [
            Kept({name: pictures[index] for name, pictures in heads.items()})
            for index in range(len(items))
        ]

    def _check_order(self, fields: dict[str, Any]) -> None:
        given = [x for name, value in fields.items() if _is_pixels(name) for x in _tensors(value)]
        if not given or not self._inputs:
            raise NoDepthError(_OTHER_PIXELS)
        batch, tower = (torch.cat([x.flatten() for x in some]) for some in (given, self._inputs))
        if batch.shape != tower.shape or not torch.equal(batch.to(tower), tower):
            raise NoDepthError(_OTHER_PIXELS)


def _is_seen(picture: Picture) -> bool:
    return picture.modality in ("image", "video")


def _is_pixels(name: str) -> bool:
    return name == "images" or ("pixel_values" in name and "mask" not in name)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)


def _views_of(item: Any) -> int:
    """How many views the tower sees of a picture, by its processed fields."""
    data = {name: element.data for name, element in item.items()}
    for name, value in data.items():
        if name.endswith("grid_thw"):
            return int(torch.as_tensor(value).reshape(-1, 3)[:, 0].sum())
    for x in (x for name, value in data.items() if _is_pixels(name) for x in _tensors(value)):
        if x.ndim > 2:
            return math.prod(x.shape[:-3])
    raise NoDepthError("the engine's picture has no pixels: they were embedded before")


def _split(passes: Sequence[DepthPass], counts: Sequence[int]) -> list[list[Tensor]]:
    """The maps (H, W) of each picture."""
    maps = [map_1HW[0].cpu() for one in passes for map_1HW in one.depths]
    if len(maps) != sum(counts):
        raise NoDepthError(
            f"the tower saw {len(maps)} views of {len(counts)} pictures that have {sum(counts)}: "
            "which are whose is not known"
        )
    some = iter(maps)
    return [[next(some) for _ in range(count)] for count in counts]
