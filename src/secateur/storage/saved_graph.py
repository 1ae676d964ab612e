"""A cut graph on disk: not the graph, but what it takes to make it again from the dense model.

The dense model is traced anew, on zeros of the shapes that it was traced with, and the plan is cut out of its
program; so a saved graph holds no data of the caller's, and does not depend on a release's operators.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from secateur.errors import SavedModelError, SecateurError
from secateur.graph.trace import canonical_names, named_state, trace
from secateur.surgery.plan import Plan
from secateur.surgery.program import GraphInputs, cut_program
from secateur.surgery.tensors import replace_state

PLAIN = (bool, int, float, str, type(None))


def describe_graph(inputs: GraphInputs, original: nn.Module, graph: nn.Module) -> dict[str, Any]:
    """How a graph is called, and what of the dense model's state it lacks, in what JSON can hold.

    Args:
        inputs: of the graph.
        original: the dense model.
        graph: the graph; branches that went took their tensors with them.

    Raises:
        SavedModelError: an argument is of a kind that JSON cannot hold.
    """
    try:
        layout = pytree.treespec_dumps(inputs.layout)
    except Exception as error:
        raise SavedModelError(f"the arguments of the graph cannot be written down: {error}") from error
    left = named_state(graph)
    gone = {name: tensor for name, tensor in named_state(original).items() if name not in left}
    return {
        "layout": layout,
        "dropped": {name: _written(tensor.dtype) for name, tensor in gone.items()},
        "leaves": [_described(leaf) for leaf in inputs.leaves],
        "free": sorted(list(place) for place in inputs.free),
    }


def rebuild_graph(
    dense: nn.Module, tensors: Mapping[str, Tensor], plan: Plan, described: Mapping[str, Any]
) -> fx.GraphModule:
    """The graph that `describe_graph` described.

    Args:
        dense: from the factory; it is changed.
        tensors: canonical name -> cut tensor.
        plan: what was cut.
        described: from the manifest.

    Raises:
        SavedModelError: the dense model's program is another one than that which was cut.
    """
    layout = pytree.treespec_loads(described["layout"])
    args, kwargs = pytree.tree_unflatten([_made(leaf) for leaf in described["leaves"]], layout)
    # The graph was cut from a model of the types that were saved.
    state, dropped = named_state(dense), described.get("dropped", {})
    types = {name: tensor.dtype for name, tensor in tensors.items()}
    types |= {name: _read(dtype) for name, dtype in dropped.items() if name in canonical_names(dense).values()}
    replace_state(dense, {name: state[name].detach().to(dtype) for name, dtype in types.items()})
    try:
        program = trace(dense, args, kwargs)
        replace_state(dense, tensors)
        return cut_program(program, plan, dense, free=frozenset((leaf, dim) for leaf, dim in described["free"]))
    except SecateurError as error:
        raise SavedModelError(f"the graph cannot be cut again from the factory's model: {error}") from error


def _described(leaf: Any) -> dict[str, Any]:
    if isinstance(leaf, Tensor):
        return {"shape": list(leaf.shape), "dtype": _written(leaf.dtype)}
    if not isinstance(leaf, PLAIN):
        raise SavedModelError(
            f"the graph was made for an argument of type {type(leaf).__name__}, which cannot be written down; pass "
            "tensors, numbers, strings and None"
        )
    return {"value": leaf}


def _made(described: Mapping[str, Any]) -> Any:
    if "shape" not in described:
        return described["value"]
    return torch.zeros(described["shape"], dtype=_read(described["dtype"]))


def _written(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _read(dtype: str) -> torch.dtype:
    found = getattr(torch, dtype)
    assert isinstance(found, torch.dtype)
    return found
