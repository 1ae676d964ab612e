"""Criteria of how signals and gradients flow through a network, each from a pass of its own."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from secateur.capture.calls import Call
from secateur.capture.watch import watching
from secateur.criteria.backward import requiring
from secateur.criteria.criterion import scores_of
from secateur.criteria.parts import Measured, element_parts, slices_of
from secateur.criteria.statistics import WEIGHTS, Statistics
from secateur.data import Batch, BatchFn, as_batches, to_device
from secateur.errors import ArgumentError, NumericalError
from secateur.graph.copies import copy_of
from secateur.graph.trace import canonical_names, in_eval_mode, kept_buffers
from secateur.measures.metrics import per_sample, resolve_loss
from secateur.types import Group


@dataclass(frozen=True, eq=False)
class SynFlow:
    """Flow through a weight when all weights are positive and all inputs 1: without data. Make it by `SynFlow.of`.

    Of a network whose activations keep positive values as they are (ReLU), each layer's weights share out the
    same total, and a unit gets what it gives. Elsewhere the flow is that of the activations as they are.

    Source: Tanaka et al. 2020, arXiv:2006.05467. Shuffled within each layer its masks do as well
    (Frankle et al. 2021, arXiv:2009.08576).

    Attributes:
        shares: parameter name -> weight times derivative of the summed outputs by it.
    """

    shares: Mapping[str, Tensor] = field(repr=False)

    @classmethod
    def of(cls, model: nn.Module, args: Sequence[Any]) -> "SynFlow":
        """One forward and one backward pass of a copy in float64: weights positive, no biases, norms without means.

        Args:
            model: left as it is.
            args: example inputs; of those in floating point only the shape matters.

        Raises:
            NumericalError: the flow is too large or too small for float64.

        >>> model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False))
        >>> _ = nn.init.constant_(model[0].weight, -2.0), nn.init.constant_(model[1].weight, 3.0)
        >>> SynFlow.of(model, (torch.zeros(1, 1),)).shares["0.weight"].tolist()
        [[6.0], [6.0]]
        """
        positive = copy_of(model).double().eval()
        names = canonical_names(positive)
        weights = {names[name]: p.requires_grad_(True) for name, p in positive.named_parameters()}
        inputs = [
            torch.ones_like(x, dtype=torch.float64) if isinstance(x, Tensor) and x.is_floating_point() else x
            for x in args
        ]

        def silence(call: Call) -> Tensor:
            if call.bias is not None:
                weights[call.bias.name].data[call.bias.start : call.bias.stop] = 0
            return call.run()

        with torch.no_grad():
            for p in weights.values():
                p.abs_()
            with watching(positive, silence):
                positive(*inputs)
        with torch.enable_grad(), watching(positive, lambda call: call.run(), normalise=_without_mean):
            total = _sum_of(positive(*inputs))
        flow = total.item()
        if not math.isfinite(flow) or flow == 0:
            raise NumericalError(
                f"the flow through the network is {flow}: it leaves the range of float64, or nothing gets through"
            )
        found = torch.autograd.grad(total, list(weights.values()), allow_unused=True)
        return cls(
            {
                name: torch.zeros_like(p) if g is None else (p.detach() * g)
                for (name, p), g in zip(weights.items(), found, strict=True)
            }
        )

    @property
    def needs(self) -> frozenset[str]:
        """Weights."""
        return frozenset({WEIGHTS})

    def weights(self, parameter: str, statistics: Statistics) -> Tensor:
        """Flow through each element, in the parameter's shape."""
        return _held(self, self.shares, parameter)

    def measured(self, group: Group, statistics: Statistics) -> Measured:
        """Of each consumer's slice the sum: all that the unit gives."""
        return Measured(element_parts(slices_of(group, masked_only=True), statistics, self.weights))

    def __call__(self, group: Group, statistics: Statistics) -> Tensor:
        """Scores, float64 (units,)."""
        return scores_of(self, group, statistics)


def _without_mean(
    inputs: Tensor,
    mean: Tensor | None,
    variance: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Batch norm as a positive scale."""
    scale = torch.ones_like(inputs[0, :, ...].flatten(1)[:, 0]) if variance is None else (variance + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    return inputs * scale.reshape(-1, *[1] * (inputs.ndim - 2))


def _sum_of(outputs: Any) -> Tensor:
    if isinstance(outputs, Tensor):
        return outputs.sum()
    values = outputs.values() if isinstance(outputs, Mapping) else outputs
    if not isinstance(outputs, Mapping | Sequence):
        raise ArgumentError(f"the model gave a {type(outputs).__name__}; needed a tensor, or several")
    return sum((_sum_of(value) for value in values), torch.zeros((), dtype=torch.float64))


def _held(who: object, shares: Mapping[str, Tensor], parameter: str) -> Tensor:
    if parameter not in shares:
        raise ArgumentError(
            f"{who!r} was made from a model without the parameter {parameter!r}; make it from this one, by "
            f"{type(who).__name__}.of"
        )
    return shares[parameter].double().cpu()


@dataclass(frozen=True, eq=False)
class GraSP:
    """How much of the gradient's norm a weight stands for: w · (H g). Make it by `GraSP.of`.

    A weight with a negative score holds training back. Meant for networks at initialisation.

    Source: Wang et al. 2020, arXiv:2002.07376; the score is minus that of the paper, so that higher = keep.

    Attributes:
        shares: parameter name -> weight times the product of Hessian and gradient of the mean loss.
        samples: of how many samples.
    """

    shares: Mapping[str, Tensor] = field(repr=False)
    samples: int = 0

    @classmethod
    def of(
        cls, model: nn.Module, calibration: Any, *, loss: Any = "cross_entropy", batch_fn: BatchFn | None = None
    ) -> "GraSP":
        """Two passes over the data: the gradient of the mean loss, and its product with the Hessian.

        Args:
            model: left as it is; runs in eval mode.
            calibration: any source of batches.
            loss: name or callable, per sample.
            batch_fn: takes apart batches of an unusual shape.

        Raises:
            NumericalError: a product is not finite.

        >>> model = nn.Linear(1, 1, bias=False)  # loss (2w - 1)²: gradient 4 (2w - 1), Hessian 8
        >>> _ = nn.init.constant_(model.weight, 2.0)
        >>> data = [(torch.tensor([[2.0]]), torch.tensor([[1.0]]))]
        >>> GraSP.of(model, data, loss="mse").shares["weight"].tolist()
        [[192.0]]
        """
        data = as_batches(calibration, "calibration", batch_fn)
        single = resolve_loss(loss)
        names = canonical_names(model)
        weights = {names[name]: p for name, p in model.named_parameters() if p.is_floating_point()}
        values = list(weights.values())

        def total(batch: Batch) -> Tensor:
            outputs = model(*batch.args, **batch.kwargs)
            return per_sample(single, outputs, batch.targets, batch.size, "loss").sum()

        gradient = [torch.zeros_like(p, dtype=torch.float64) for p in values]
        product = [torch.zeros_like(g) for g in gradient]
        samples = 0
        with (
            torch.enable_grad(),
            in_eval_mode(model),
            kept_buffers(model),
            requiring(model, weights),
            watching(model, lambda call: call.run()),
            # Fused attention has no second derivatives.
            sdpa_kernel(SDPBackend.MATH),
        ):
            for batch in data:
                samples += batch.size
                found = torch.autograd.grad(total(to_device(batch, values[0].device)), values, allow_unused=True)
                _add(gradient, found)
            along = [(g / samples).to(p.dtype) for g, p in zip(gradient, values, strict=True)]
            for batch in data:
                loss_ = total(to_device(batch, values[0].device))
                first = torch.autograd.grad(loss_, values, create_graph=True, allow_unused=True)
                slopes = [(g * v).sum() for g, v in zip(first, along, strict=True) if g is not None and g.requires_grad]
                if slopes:
                    _add(product, torch.autograd.grad(torch.stack(slopes).sum(), values, allow_unused=True))
        shares = {
            name: p.detach().double() * h / samples for (name, p), h in zip(weights.items(), product, strict=True)
        }
        wrong = [name for name, values_ in shares.items() if not bool(values_.isfinite().all())]
        if wrong:
            raise NumericalError(
                f"H g of parameter {wrong[0]!r} is not finite; check the calibration data and the loss"
            )
        return cls(shares, samples)

    @property
    def needs(self) -> frozenset[str]:
        """Weights."""
        return frozenset({WEIGHTS})

    def weights(self, parameter: str, statistics: Statistics) -> Tensor:
        """Scores, in the parameter's shape."""
        return _held(self, self.shares, parameter)

    def measured(self, group: Group, statistics: Statistics) -> Measured:
        """Of each slice the sum."""
        return Measured(element_parts(slices_of(group), statistics, self.weights))

    def __call__(self, group: Group, statistics: Statistics) -> Tensor:
        """Scores, float64 (units,)."""
        return scores_of(self, group, statistics)


def _add(sums: Sequence[Tensor], found: Sequence[Tensor | None]) -> None:
    for total, g in zip(sums, found, strict=True):
        if g is not None:
            total.add_(g.detach().double())
