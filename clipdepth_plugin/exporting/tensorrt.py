"""What TensorRT 10's ONNX parser reads of a file, and the line that builds an engine of it.

From the operator matrix of onnx-tensorrt (docs/operators.md), releases 10.0 to 10.15: what all of
them read. Operators that came in between (Attention, RMSNormalization, RotaryEmbedding, STFT ...)
are not in the list.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

OPSETS = (9, 20)
"""Those of TensorRT 10.0; 10.15 reads 24, too."""

PARSED = frozenset((
    "Abs", "Acos", "Acosh", "Add", "And", "ArgMax", "ArgMin", "Asin", "Asinh", "Atan", "Atanh",
    "AveragePool", "BatchNormalization", "Cast", "CastLike", "Ceil", "Celu", "Clip", "Concat",
    "Constant", "ConstantOfShape", "Conv", "ConvTranspose", "Cos", "Cosh", "CumSum",
    "DepthToSpace", "DequantizeLinear", "Div", "Dropout", "Einsum", "Elu", "Equal", "Erf", "Exp",
    "Expand", "EyeLike", "Flatten", "Floor", "Gather", "GatherElements", "GatherND", "Gelu",
    "Gemm", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "Greater", "GreaterOrEqual",
    "GridSample", "GroupNormalization", "GRU", "HardSigmoid", "HardSwish", "Hardmax", "Identity",
    "If", "InstanceNormalization", "IsInf", "IsNaN", "LayerNormalization", "LeakyRelu", "Less",
    "LessOrEqual", "Log", "LogSoftmax", "Loop", "LRN", "LSTM", "LpNormalization", "LpPool",
    "MatMul", "Max", "MaxPool", "Mean", "MeanVarianceNormalization", "Min", "Mod", "Mul", "Neg",
    "NonMaxSuppression", "NonZero", "Not", "OneHot", "Or", "Pad", "Pow", "PRelu",
    "QuantizeLinear", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike",
    "Range", "Reciprocal", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax",
    "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Relu", "Reshape",
    "Resize", "ReverseSequence", "RNN", "RoiAlign", "Round", "Scan", "Scatter", "ScatterElements",
    "ScatterND", "Selu", "Shape", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Size", "Slice",
    "Softmax", "Softplus", "Softsign", "SpaceToDepth", "Split", "Sqrt", "Squeeze", "Sub", "Sum",
    "Tan", "Tanh", "ThresholdedRelu", "Tile", "TopK", "Transpose", "Trilu", "Unsqueeze",
    "Upsample", "Where", "Xor",
))  # fmt: skip

# Operator -> attribute -> the values that are read; an attribute that is not given is read.
_ATTRIBUTES: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    "Resize": {
        "mode": ("linear", "nearest"),
        "antialias": (0,),
        "keep_aspect_ratio_policy": ("stretch",),
    },
    "ScatterND": {"reduction": ("none",)},
}
_ONE_OUTPUT = ("LayerNormalization", "Dropout", "MaxPool")


def operators(model: ModelProto) -> Counter[str]:
    """How often a file has each operator, by ``DOMAIN::NAME`` outside of ONNX's own domain."""
    return Counter(_name(node) for node in _nodes(model.graph.node))


def doubts(model: ModelProto) -> tuple[str, ...]:
    """What TensorRT 10 may not read of a file, a sentence each."""
    from onnx.helper import get_attribute_value

    found: dict[str, None] = {}
    for node in _nodes(model.graph.node):
        name, values = _name(node), {x.name: get_attribute_value(x) for x in node.attribute}
        if name not in PARSED:
            found[f"operator {name} is not in TensorRT 10's list"] = None
        if name in _ONE_OUTPUT and sum(map(bool, node.output)) > 1:
            found[f"operator {name} has more than one output"] = None
        for attribute, read in _ATTRIBUTES.get(name, {}).items():
            value = values.get(attribute, read[0])
            value = value.decode() if isinstance(value, bytes) else value
            if value not in read:
                found[f"operator {name} has {attribute} {value}"] = None
    for entry in model.opset_import:
        if entry.domain == "" and not OPSETS[0] <= entry.version <= OPSETS[1]:
            newest = f"TensorRT 10.0 reads opsets {OPSETS[0]} to {OPSETS[1]}"
            found[f"opset {entry.version}: {newest}; later releases read newer ones"] = None
    return tuple(found)


def build_line(
    file: str, inputs: Mapping[str, Sequence[int | str]], *, most: int, usual: int = 1
) -> str:
    """The command that builds an engine of a file, in the types that were verified.

    Args:
        file: Name of the ONNX file.
        inputs: Shape of each input; a text stands for any number of pictures.
        most: Pictures at most, where their number is dynamic.
        usual: The number to optimise for.
    """
    stem = file.removesuffix(".onnx")
    line = f"trtexec --onnx={file} --saveEngine={stem}.engine --stronglyTyped"
    if any(isinstance(side, str) for shape in inputs.values() for side in shape):
        for kind, count in (("min", 1), ("opt", usual), ("max", most)):
            shapes = (f"{name}:{_sides(shape, count)}" for name, shape in inputs.items())
            line += f" --{kind}Shapes={','.join(shapes)}"
    return line


def _sides(shape: Sequence[int | str], count: int) -> str:
    return "x".join(str(count if isinstance(side, str) else side) for side in shape)


def _name(node: NodeProto) -> str:
    return f"{node.domain}::{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type


def _nodes(nodes: Iterable[NodeProto]) -> Iterable[NodeProto]:
    """All nodes, those of inner graphs, too."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _nodes(graph.node)
