"""``.onnx``: written by torch's exporter, checked by onnx, run by onnxruntime."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from clipdepth_plugin.errors import ExportError, shortened
from clipdepth_plugin.exporting.format import Written, register_format
from clipdepth_plugin.exporting.graphs import Exported, Inputs, Run
from clipdepth_plugin.exporting.tensorrt import doubts

_INSTALL = 'pip install "clipdepth-plugin[export]"'
_LARGEST = 1_500_000_000
"""Bytes of weights in one file; protobuf ends at 2 GiB. Larger ones lie beside, NAME.onnx.data."""


@register_format("onnx")
class Onnx:
    """``torch.onnx.export`` by torch.export's program."""

    def check(self) -> None:
        """See ``Format.check``."""
        for package in ("onnx", "onnxscript", "onnxruntime"):
            try:
                __import__(package)
            except ImportError as error:
                raise ExportError(
                    f"--format onnx needs the package {package}: {_INSTALL}"
                ) from error

    def write(self, exported: Exported, folder: Path, opset: int) -> Written:
        """See ``Format.write``."""
        path = folder / f"{exported.graph.stem}.onnx"
        names = exported.graph.input_names
        batch = tuple({0: "batch"} for _ in names) if exported.dynamic_batch else None
        weights = sum(x.nbytes for x in exported.program.state_dict.values())
        beside = weights > _LARGEST
        try:
            with _quiet():
                program = torch.onnx.export(
                    exported.program,
                    dynamo=True,
                    verbose=False,
                    opset_version=opset,
                    input_names=list(names),
                    output_names=list(exported.graph.output_names),
                    dynamic_shapes=batch,
                )
            assert program is not None
            program.save(path, external_data=beside)
        except Exception as error:  # the exporter's own errors, and those of its converter
            raise ExportError(
                f"{path.name}: torch's exporter can't write it as ONNX of opset {opset} "
                f"({type(error).__name__}: {_first(error)})"
            ) from error
        data = (path.with_name(f"{path.name}.data"),) if beside else ()
        return Written(path, _session(path), opset, data, _checked(path, opset))


def _checked(path: Path, opset: int) -> tuple[str, ...]:
    """Whether onnx takes the file, its shapes inferred; what TensorRT may not."""
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # of the checker, of shape inference, of protobuf
        raise ExportError(f"{path.name}: onnx.checker refuses it ({_first(error)})") from error
    made = next(one.version for one in model.opset_import if one.domain == "")
    if made != opset:
        raise ExportError(
            f"{path.name}: torch's exporter wrote opset {made}, not {opset}, to which it can't "
            f"convert this graph: take --opset {made}"
        )
    return doubts(model)


def _session(path: Path) -> Run:
    """The file in onnxruntime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session: Any = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # its own errors have no common class that is public
        raise ExportError(
            f"{path.name}: onnxruntime can't run it on this machine's CPU, so that it can't be "
            f"verified ({_first(error)}); --dtype float32 and float16 run, and --format pt2 takes "
            "bfloat16"
        ) from error
    names = [one.name for one in session.get_inputs()]

    def run(inputs: Inputs) -> list[torch.Tensor]:
        given = dict(zip(names, (x.numpy() for x in inputs), strict=True))
        return [torch.from_numpy(x) for x in session.run(None, given)]

    return run


def _first(error: Exception) -> str:
    return shortened(next(iter(str(error).strip().splitlines()), type(error).__name__), 300)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on its own steps."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir", "torch.onnx")]
    before = [one.level for one in loggers]
    try:
        for one in loggers:
            one.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for one, level in zip(loggers, before, strict=True):
            one.setLevel(level)
