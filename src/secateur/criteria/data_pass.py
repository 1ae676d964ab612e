"""A pass over calibration data: sums of what every sample says, taken apart from whole batches and checked."""

import functools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from secateur.capture.gram import single
from secateur.criteria.agreement import differing_sample, differing_totals
from secateur.criteria.backward import Derived, Layout, Recorder, derive, gates_of, requiring, share_of
from secateur.criteria.hessian import diagonal_of_sum
from secateur.criteria.labels import sampled_targets
from secateur.criteria.per_sample import parameters_of, plain_gates
from secateur.criteria.statistics import (
    GATE_GRADIENTS,
    HESSIAN_DIAGONAL,
    OUTPUT_GRADIENTS,
    WEIGHT_GRADIENTS,
    Derivatives,
    Statistics,
)
from secateur.criteria.tally import Tally
from secateur.data import Batch
from secateur.errors import NumericalError
from secateur.graph.trace import canonical_names
from secateur.measures.metrics import PerSample, cross_entropy, per_sample
from secateur.types import Group

Labels = Literal["true", "sampled"]


@dataclass(eq=False)
class DataPass:
    """The sums so far, and what of the model cannot be taken apart by sample."""

    model: nn.Module
    groups: Sequence[Group]
    needs: frozenset[str]
    loss: PerSample
    labels: Labels
    hessian_vectors: int | None
    seed: int
    tally: Tally
    samples: int = 0
    batches: int = 0
    has_compared: bool = False
    gates: dict[str, Derivatives] = field(default_factory=dict)
    gradients: dict[str, Derivatives] = field(default_factory=dict)
    hessian: dict[str, Tensor] = field(default_factory=dict)
    slow_groups: set[str] = field(default_factory=set)
    slow_parameters: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        names = canonical_names(self.model)
        every = {names[name]: p for name, p in self.model.named_parameters()}
        floating = {name: p for name, p in every.items() if p.is_floating_point()}
        masked = parameters_of(self.groups)
        has_all = WEIGHT_GRADIENTS in self.needs
        self.floating = floating
        self.wanted = {name: p for name, p in floating.items() if has_all or name in masked}
        self.apart = frozenset(self.wanted) if has_all else frozenset()
        self.layout = Layout(self.groups, {name: tuple(p.shape) for name, p in every.items()})
        self.generator = torch.Generator().manual_seed(self.seed)

    def read(self, batch: Batch) -> None:
        """Add up one batch."""
        has_losses = bool({GATE_GRADIENTS, WEIGHT_GRADIENTS} & self.needs)
        has_outputs = OUTPUT_GRADIENTS in self.needs
        self.tally.start()
        with requiring(self.model, self.wanted):
            recorder = Recorder(self.layout, self.tally.add, has_losses or has_outputs, has_outputs)
            outputs = recorder.run(self.model, batch)
            is_sampled = has_outputs and self.labels == "sampled"
            if has_losses or (has_outputs and not is_sampled):
                total = self._losses(outputs, batch, self.samples).sum()
                derived = derive(
                    recorder,
                    total,
                    self.wanted,
                    batch.size,
                    taken_apart=self.apart - self.slow_parameters,
                    all_outputs=has_outputs and not is_sampled,
                    keep=is_sampled,
                )
                self._add(derived, batch)
            if is_sampled:
                targets = sampled_targets(outputs, batch.targets, self.generator)
                total = per_sample(cross_entropy, outputs, targets, batch.size, "loss").sum()
                self._add_outputs(derive(recorder, total, {}, batch.size, taken_apart=(), all_outputs=True))
        del recorder, outputs
        if HESSIAN_DIAGONAL in self.needs:
            self._add_hessian(batch)
        self.samples += batch.size
        self.batches += 1

    def _losses(self, outputs: Any, batch: Batch, first: int) -> Tensor:
        """One for each sample; each must be finite."""
        values = per_sample(self.loss, outputs, batch.targets, batch.size, "loss")
        bad = (~values.detach().isfinite()).nonzero().flatten().tolist()
        if bad:
            raise NumericalError(
                f"the loss of calibration sample {first + bad[0]} is {values[bad[0]].item()}; "
                "check the data and the loss"
            )
        return values

    @torch.no_grad()
    def _add(self, derived: Derived, batch: Batch) -> None:
        if not derived.is_finite():
            self._name_the_sample(batch)
        self._add_outputs(derived)
        shares, weights = self._taken_apart(derived)
        gates = {group.name: gates_of(group, derived, self.layout, shares) for group in self.groups}
        self.slow_groups |= {name for name, found in gates.items() if found is None}
        if WEIGHT_GRADIENTS in self.needs:
            self.slow_parameters |= self.wanted.keys() - weights.keys()
        groups, names = differing_totals(self.groups, self.wanted, derived, gates, weights)
        self.slow_groups |= groups
        self.slow_parameters |= names
        for row in self._rows_to_compare(batch.size):
            self._compare(derived, gates, batch, row)
        for name, values in gates.items():
            if values is not None and name not in self.slow_groups:
                self._add_gates(name, values)
        for name, found in weights.items():
            if name not in self.slow_parameters:
                exact = Derivatives(derived.totals[name].double(), found.absolute, found.squares)
                self.gradients[name] = self.gradients[name] + exact if name in self.gradients else exact
        if self.slow_groups or self.slow_parameters:
            self._add_one_by_one(batch)

    def _add_gates(self, name: str, values: Tensor) -> None:
        found = Derivatives(values.sum(0), values.abs().sum(0), values.square().sum(0))
        self.gates[name] = self.gates[name] + found if name in self.gates else found

    def _add_outputs(self, derived: Derived) -> None:
        found = defaultdict(list)
        for product, g in derived.outputs:
            found[product.place, product.form].append(g)
        for (place, form), outputs in found.items():
            self.tally.add_gradients(place, form, outputs)

    def _taken_apart(self, derived: Derived) -> tuple[dict[tuple[str, str], Tensor], dict[str, Derivatives]]:
        """Shares of parameters in gates, and sums of the parameters' gradients; each gradient is computed once."""
        shares: dict[tuple[str, str], Tensor] = {}
        sums: dict[str, Derivatives] = {}
        for name, uses in derived.uses.items():
            readers = [] if name in derived.reads else [g for g in self.groups if name in parameters_of([g])]
            if name not in self.apart and not readers:
                continue
            parts: dict[str, list[Tensor]] = {group.name: [] for group in readers}
            for rows in uses.chunks():
                gradients = uses.of(rows)
                for group in readers:
                    parts[group.name].append(share_of(group, name, self.wanted[name], gradients))
                if name in self.apart:
                    found = _sums(gradients)
                    sums[name] = sums[name] + found if name in sums else found
            shares.update({(group, name): torch.cat(found) for group, found in parts.items()})
        return shares, sums

    def _rows_to_compare(self, size: int) -> list[int]:
        """Samples of this batch that will be run alone."""
        if not self.wanted:
            return []
        is_first = not self.has_compared
        number = self.batches
        if size > 1:
            self.has_compared = True
        if is_first:
            return sorted({0, size - 1})
        return [number * 7919 % size] if number & (number - 1) == 0 else []

    def _compare(self, derived: Derived, gates: Mapping[str, Tensor | None], batch: Batch, row: int) -> None:
        """What was told of one sample must be what a run of it alone gives; else it is of another one.

        Rounding may put an activation on the other side of a kink in that run. Where the losses agree, the
        gradient of this sample's loss in a run of the whole batch decides.
        """
        differ = functools.partial(differing_sample, self.groups, self.wanted, self.apart, derived, gates, row)
        alone, gradients = self._plain(batch.take(torch.tensor([row])), 0, self.wanted)
        groups, names = differ(gradients)
        if groups or names:
            together, gradients = self._plain(batch, row, self.wanted)
            if math.isclose(alone, together, rel_tol=math.sqrt(self._eps())):
                groups, names = differ(gradients)
        self.slow_groups |= groups
        self.slow_parameters |= names

    def _eps(self) -> float:
        return max((torch.finfo(p.dtype).eps for p in self.wanted.values()), default=0.0)

    def _add_one_by_one(self, batch: Batch) -> None:
        """Run every sample alone, for what cannot be taken apart."""
        groups = [group for group in self.groups if group.name in self.slow_groups]
        names = self.slow_parameters | parameters_of(groups)
        parameters = {name: p for name, p in self.wanted.items() if name in names}
        for row in range(batch.size):
            gradients = self._alone(batch, row, parameters)
            products = {name: g * parameters[name] for name, g in gradients.items()}
            for name, values in plain_gates(groups, products).items():
                self._add_gates(name, values.unsqueeze(0))
            for name in self.slow_parameters:
                found = _sums(gradients[name].unsqueeze(0))
                self.gradients[name] = self.gradients[name] + found if name in self.gradients else found

    def _alone(self, batch: Batch, row: int, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Gradients of the loss of one sample, which is run by itself as the model is."""
        return self._plain(batch.take(torch.tensor([row])), 0, parameters, self.samples + row)[1]

    def _plain(
        self, batch: Batch, row: int, parameters: Mapping[str, Tensor], first: int | None = None
    ) -> tuple[float, dict[str, Tensor]]:
        """The loss of one sample, and its gradients, in a plain run of these samples."""
        # The recurrent kernels of cuDNN have no gradients in eval mode.
        with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
            outputs = self.model(*batch.args, **batch.kwargs)
            loss = self._losses(outputs, batch, self.samples if first is None else first)[row]
            found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        gradients = {
            name: torch.zeros_like(p) if g is None else g.detach()
            for (name, p), g in zip(parameters.items(), found, strict=True)
        }
        return float(loss.detach()), gradients

    def _name_the_sample(self, batch: Batch) -> None:
        with requiring(self.model, self.floating):
            for row in range(batch.size):
                for name, g in self._alone(batch, row, self.floating).items():
                    if not bool(g.isfinite().all()):
                        raise NumericalError(
                            f"the gradient of parameter {name!r} for calibration sample {self.samples + row} is not "
                            "finite; check the data and the loss"
                        )
        raise NumericalError(
            f"a gradient of the batch of calibration samples {self.samples} to {self.samples + batch.size - 1} is not "
            "finite, though each sample's is; give smaller batches or a wider number format"
        )

    def _add_hessian(self, batch: Batch) -> None:
        with requiring(self.model, self.floating), torch.enable_grad():
            found = diagonal_of_sum(self.model, self.floating, batch, self.loss, self.hessian_vectors, self.seed)
        for name, values in found.items():
            self.hessian[name] = self.hessian[name] + values if name in self.hessian else values

    def statistics(self, weights: Mapping[str, Tensor]) -> Statistics:
        """All sums."""
        return Statistics(
            weights,
            self.samples,
            self.gates,
            self.gradients,
            self.tally.consumers(),
            {name: values / self.samples for name, values in self.hessian.items()},
            tuple(self.tally.notes.values()),
        )


def _sums(gradients: Tensor) -> Derivatives:
    """Of (samples, ...), over the samples."""
    flat = single(gradients)
    return Derivatives(flat.sum(0).double(), flat.abs().sum(0).double(), flat.square().sum(0).double())
