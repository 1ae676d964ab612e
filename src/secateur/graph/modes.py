"""What a model does in training mode only: a program, traced in evaluation mode, knows nothing of it."""

from collections.abc import Sequence

import torch
from torch import nn

from secateur.graph.copies import copy_of
from secateur.graph.trace import Program


def training_only(program: Program) -> tuple[str, ...]:
    """Outermost modules with parameters that a run in training mode calls and one in evaluation mode does not.

    Such as the auxiliary heads of GoogLeNet. They stay as they are when what they read is cut. Nothing is found
    where the model does not run in training mode on the example inputs.
    """
    placeholders = program.graph.find_nodes(op="placeholder", sort=False)
    if program.trained <= {program.names.get(str(node.target)) for node in placeholders if node.users}:
        return ()
    model = copy_of(program.model)
    in_evaluation, in_training = (_called(model.train(mode), program) for mode in (False, True))
    added = [path for path in in_training if path not in in_evaluation and list(model.get_submodule(path).parameters())]
    return tuple(path for path in added if not any(path.startswith(f"{other}.") for other in added))


def _called(model: nn.Module, program: Program) -> Sequence[str]:
    """Paths of the modules that a run on the example inputs calls; none if it does not run."""
    found: dict[str, None] = {}
    handles = [
        module.register_forward_pre_hook(lambda *_, path=path: found.setdefault(path))
        for path, module in model.named_modules()
    ]
    try:
        with torch.no_grad(), torch.random.fork_rng():
            model(*program.args, **program.kwargs)
    except Exception:
        return ()
    finally:
        for handle in handles:
            handle.remove()
    return list(found)
