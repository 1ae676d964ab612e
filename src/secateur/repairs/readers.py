"""Who reads a parameter, as the traced program tells."""

import torch

from secateur.graph.trace import Program
from secateur.graph.typing import operator_name

_LINEAR = ("linear", "conv", "matmul", "mm", "addmm", "bmm", "lstm", "gru", "rnn_tanh", "rnn_relu")
_MOVING = {
    "t",
    "numpy_T",
    "mT",
    "transpose",
    "swapaxes",
    "swapdims",
    "permute",
    "movedim",
    "moveaxis",
    "view",
    "reshape",
    "slice",
    "chunk",
    "split",
    "split_with_sizes",
    "unbind",
    "select",
    "detach",
    "alias",
}
"""Operators that give entries of what they read, and nothing else."""


def is_read_otherwise(program: Program, name: str) -> bool:
    """Whether anything but a linear map reads the parameter: a table of embeddings that decodes, too."""
    return not all(_operator(reader).startswith(_LINEAR) for reader in _readers(program, name))


def linear_reads(program: Program, name: str) -> int:
    """How many linear maps read the parameter, or entries of it."""
    return sum(_operator(reader).startswith(_LINEAR) for reader in _readers(program, name))


def is_own_bias(program: Program, weight: str, bias: str) -> bool:
    """Whether the bias is read only where the weight is: another layer's fit would change it too."""
    return _readers(program, bias) <= _readers(program, weight)


def feeds_batch_norm(program: Program, name: str) -> bool:
    """Whether every reader of the layer with this weight is a batch norm, which removes any constant."""
    for node in _placeholders(program, name):
        readers = [reader for layer in node.users for reader in layer.users]
        return bool(readers) and all(operator_name(r) == "aten.batch_norm" for r in readers)
    return False


def _placeholders(program: Program, name: str) -> list[torch.fx.Node]:
    return [n for n in program.nodes if n.op == "placeholder" and program.names.get(str(n.target)) == name]


def _readers(program: Program, name: str) -> frozenset[torch.fx.Node]:
    """The operators that read a parameter, through views of it or as it is."""
    waiting = _placeholders(program, name)
    found: set[torch.fx.Node] = set()
    while waiting:
        for user in waiting.pop().users:
            (waiting.append if _operator(user) in _MOVING else found.add)(user)
    return frozenset(found)


def _operator(node: torch.fx.Node) -> str:
    return operator_name(node).removeprefix("aten.").rstrip("_")
