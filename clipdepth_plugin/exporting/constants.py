"""Numbers that follow from a graph's weights alone, as constants in their place.

Position embeddings that are resized to the input's size, for one: done once, not in each run, and
by PyTorch, as engines have no bicubic resize.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.fx.node import map_arg

Known = dict[fx.Node, Any]


def with_constants(program: ExportedProgram) -> fx.GraphModule:
    """The program as a module in which nothing is computed that no input changes."""
    if any(_is_in_place(node.target) for node in program.graph.nodes):
        program = program.run_decompositions({})
    module = program.module()
    assert isinstance(module, fx.GraphModule)
    known = _known(module)
    for index, node in enumerate(list(known)):
        value = known[node]
        read = any(user not in known for user in node.users)
        if node.op != "get_attr" and read and isinstance(value, Tensor):
            name = f"constant_{index}"
            module.register_buffer(
                name, value.detach().clone(memory_format=torch.contiguous_format)
            )
            with module.graph.inserting_before(node):
                constant = module.graph.get_attr(name)
            node.replace_all_uses_with(constant, lambda user: user not in known)
    for node in reversed(list(known)):
        if not node.users:
            module.graph.erase_node(node)
    module.delete_all_unused_submodules()
    module.recompile()
    return module


def _known(module: fx.GraphModule) -> Known:
    known: Known = {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            known[node] = operator.attrgetter(node.target)(module)
        elif node.op == "call_function" and _is_pure(node.target):
            inputs = node.all_input_nodes
            if all(one in known for one in inputs):
                args, kwargs = map_arg((node.args, node.kwargs), known.__getitem__)
                known[node] = node.target(*args, **kwargs)
    return known


def _is_in_place(target: Any) -> bool:
    return isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable


def _is_pure(target: Any) -> bool:
    """Whether it gives the same for the same."""
    if target is operator.getitem:
        return True
    return (
        isinstance(target, torch._ops.OpOverload)
        and torch.Tag.nondeterministic_seeded not in target.tags
    )
