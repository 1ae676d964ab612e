"""Sparsity held through training: what is zero stays zero, whatever the optimiser does."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from secateur.errors import PlanError
from secateur.graph.trace import named_state


class Held(nn.Module):
    """A parametrisation that gives a weight with zeros where `mask` is False.

    Args:
        mask: bool, in the shape of the weight.
        order: names of the module's parameters, in order.
    """

    mask: Tensor

    def __init__(self, mask: Tensor, order: tuple[str, ...]) -> None:
        super().__init__()
        self.register_buffer("mask", mask, persistent=False)
        self.order = order

    def forward(self, weight: Tensor) -> Tensor:
        """The weight, zero where the mask is False; no gradient passes there."""
        return torch.where(self.mask, weight, torch.zeros_like(weight))

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The weight that is kept below."""
        return self.forward(weight)


def hold(model: nn.Module, masks: Mapping[str, Tensor] | None = None) -> nn.Module:
    """Hold the zeros of `model` through training, in place.

    Make the optimiser afterwards. A tied weight is held under each of its names.

    Args:
        model: sparse.
        masks: parameter -> bool of its shape, False where it stays zero: `Sparsified.masks`. None: every
            parameter of two dimensions or more, at the zeros that it has.

    Returns:
        `model`.

    Raises:
        PlanError: a mask that fits no parameter.

    >>> layer = nn.Linear(2, 1)
    >>> with torch.no_grad():
    ...     _ = layer.weight.copy_(torch.tensor([[0.0, 3.0]]))
    >>> optimiser = torch.optim.SGD(hold(layer).parameters(), lr=1.0, weight_decay=0.1)
    >>> layer(torch.ones(1, 2)).sum().backward()
    >>> optimiser.step()
    >>> weight = release(layer).weight
    >>> weight[0, 0].item(), list(layer.state_dict())
    (0.0, ['weight', 'bias'])
    """
    state = dict(model.named_parameters(remove_duplicate=False))
    if masks is None:
        masks = {n: p.detach() != 0 for n, p in state.items() if p.ndim > 1 and not bool((p != 0).all())}
    for name, mask in masks.items():
        if name not in state or state[name].shape != mask.shape:
            raise PlanError(
                f"there is a mask of shape {tuple(mask.shape)} for {name!r}, "
                + (f"which has shape {tuple(state[name].shape)}" if name in state else "which the model does not have")
            )
    wanted = {id(state[name]): mask for name, mask in masks.items()}
    for module in list(model.modules()):
        order = tuple(module._parameters)
        for name in order:
            parameter = module._parameters[name]
            if parameter is not None and id(parameter) in wanted:
                mask = wanted[id(parameter)].to(parameter.device)
                parametrize.register_parametrization(module, name, Held(mask, order))
    return model


def release(model: nn.Module) -> nn.Module:
    """Make plain tensors of the weights that `hold` holds, in place; names and their order are as before.

    Returns:
        `model`.
    """
    for module in list(model.modules()):
        if not parametrize.is_parametrized(module):
            continue
        order: tuple[str, ...] = ()
        chains = module.parametrizations
        assert isinstance(chains, nn.ModuleDict)
        for name, chain in list(chains.items()):
            if isinstance(chain, parametrize.ParametrizationList) and len(chain) == 1 and isinstance(chain[0], Held):
                order = chain[0].order
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)
        left = [*(n for n in order if n in module._parameters), *(n for n in module._parameters if n not in order)]
        module._parameters.update({n: module._parameters.pop(n) for n in left})
    return model


def zeros(model: nn.Module) -> float:
    """Fraction of the entries of all parameters that is zero.

    >>> zeros(nn.LayerNorm(4))
    0.5
    """
    tensors = {id(t): t for n, t in named_state(model).items() if isinstance(t, nn.Parameter)}.values()
    return sum(int((t == 0).sum()) for t in tensors) / max(sum(t.numel() for t in tensors), 1)
