"""Statistics of small networks of linear layers and convolutions, by plain loops: what `collect` must give."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from secateur.capture.calls import Place
from secateur.capture.forms import Convolution, Dense, Form
from secateur.capture.gram import Gram
from secateur.criteria.statistics import Consumer, Derivatives, Moments, Statistics
from secateur.types import Group


def losses(outputs: Tensor, targets: Tensor) -> Tensor:
    """One loss a sample."""
    if targets.is_floating_point():
        return (outputs - targets).square().flatten(1).sum(1)
    return functional.cross_entropy(outputs, targets, reduction="none")


def statistics_of(
    model: nn.Module, groups: Sequence[Group], x: Tensor, y: Tensor, *, with_hessian: bool = True
) -> Statistics:
    """Everything, one sample after the other."""
    model = model.eval()
    names = dict(model.named_parameters())
    single = [_gradients(model, x[i : i + 1], y[i : i + 1]) for i in range(len(x))]
    gradients = {name: _sums([found[name] for found in single]) for name in names}
    gates = {}
    for group in groups:
        rows = []
        for found in single:
            row = torch.zeros(group.size, dtype=torch.float64)
            for s in group.slices:
                if s.trained and s.masked:
                    product = found[s.parameter] * names[s.parameter].detach()
                    for unit, where in enumerate(s.index):
                        row[s.first + unit] += product.index_select(s.dim, where).sum()
            rows.append(row)
        gates[group.name] = _sums(rows)
    consumers = tuple(
        _consumer(model, name, layer, x, y)
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    )
    hessian = _hessian_diagonal(model, x, y) if with_hessian else {}
    return Statistics({name: p.detach() for name, p in names.items()}, len(x), gates, gradients, consumers, hessian)


def _gradients(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    names = dict(model.named_parameters())
    found = torch.autograd.grad(losses(model(x), y).sum(), list(names.values()))
    return dict(zip(names, found, strict=True))


def _sums(rows: Sequence[Tensor]) -> Derivatives:
    table = torch.stack(list(rows))
    return Derivatives(table.sum(0), table.abs().sum(0), table.square().sum(0))


def _hessian_diagonal(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    names = {name: p.detach() for name, p in model.named_parameters()}
    found = {}
    for name, p in names.items():

        def mean_loss(values: Tensor, name: str = name) -> Tensor:
            return losses(functional_call(model, {**names, name: values}, (x,)), y).mean()

        hessian = torch.autograd.functional.hessian(mean_loss, p)
        found[name] = hessian.reshape(p.numel(), p.numel()).diagonal().reshape(p.shape)
    return found


def design_of(layer: nn.Module, inputs: Tensor) -> Tensor:
    """(positions of all samples, groups, columns), by torch's own unfold."""
    if isinstance(layer, nn.Linear):
        return inputs.reshape(-1, 1, inputs.shape[-1])
    patches = functional.unfold(inputs, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    return patches.transpose(1, 2).reshape(-1, layer.groups, patches.shape[1] // layer.groups)


def form_of(layer: nn.Module) -> Form:
    """How the layer's weight is used."""
    if isinstance(layer, nn.Linear):
        return Dense()
    return Convolution(layer.kernel_size, layer.stride, layer.padding, layer.padding, layer.dilation, layer.groups)


def inputs_and_outputs(model: nn.Module, layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What goes into a layer, what comes out of it, and what the model gives."""
    seen = []
    handle = layer.register_forward_hook(lambda _, args, out: seen.append((args[0], out)))
    try:
        given = model(x)
    finally:
        handle.remove()
    return seen[0][0].detach(), seen[0][1], given


def _consumer(model: nn.Module, name: str, layer: nn.Module, x: Tensor, y: Tensor) -> Consumer:
    inputs, outputs, given = inputs_and_outputs(model, layer, x)
    columns = design_of(layer, inputs)
    g = torch.autograd.grad(losses(given, y).sum(), outputs)[0]
    by_position = g if isinstance(layer, nn.Linear) else g.flatten(2).transpose(1, 2)
    g = by_position.reshape(len(columns), columns.shape[1], -1)
    ones = torch.cat([columns, torch.ones_like(columns[..., :1])], dim=-1)
    prefix = f"{name}." if name else ""
    rows = len(layer.weight)
    return Consumer(
        Place(f"{prefix}weight", 0, rows),
        None if layer.bias is None else Place(f"{prefix}bias", 0, rows),
        form_of(layer),
        1,
        Moments(len(columns), columns.sum(0), columns.abs().sum(0), columns.square().sum(0), (columns == 0).sum(0)),
        Gram(torch.einsum("pgi,pgj->gij", ones, ones), len(ones)),
        torch.einsum("pgi,pgj->gij", g, g),
    )
