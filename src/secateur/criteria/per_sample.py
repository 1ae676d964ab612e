"""Gradients of parameters and gates for each sample of a batch, from one backward pass over all of it.

A product's gradient for one sample is the sum over its positions of (gradient of the outputs) times (inputs);
the derivative by a gate on inputs is (inputs) times (their gradient by this use). Contributions of all uses
are summed before anything is squared.

Source: Goodfellow 2015, arXiv:1510.01799.
"""

import functools
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from secateur.capture.calls import Place, column_units
from secateur.capture.forms import Convolution, Form
from secateur.capture.gram import single
from secateur.criteria.statistics import sum_over_unit
from secateur.criteria.uses import Part, Product, Term, part_of
from secateur.types import Group, Slice

CHUNK = 2**22
"""Elements of a table of gradients or inputs that are held at once, at least those of one sample."""


@dataclass(frozen=True, eq=False)
class Uses:
    """All seen uses of one parameter in one run of a batch, with the gradients of their outputs.

    Attributes:
        shape: of the parameter.
        samples: in the batch.
        products: with the gradient of the outputs.
        terms: likewise.
    """

    shape: tuple[int, ...]
    samples: int
    products: Sequence[tuple[Product, Tensor]] = field(default_factory=list)
    terms: Sequence[tuple[Term, Tensor]] = field(default_factory=list)

    def of(self, rows: slice) -> Tensor:
        """Gradient of the parameter for these samples: (samples, *shape)."""
        found = [*self._products(rows), *self._terms(rows)]
        if len(found) == 1 and found[0][1].shape[1:] == self.shape:
            return found[0][1]
        dtype = found[0][1].dtype if found else torch.float32
        device = found[0][1].device if found else None
        total = torch.zeros(rows.stop - rows.start, *self.shape, dtype=dtype, device=device)
        for place, values in found:
            total[:, place.start : place.stop] += values
        return total

    def _products(self, rows: slice) -> Iterator[tuple[Place, Tensor]]:
        same: dict[tuple[Place, Form], list[tuple[Product, Tensor]]] = defaultdict(list)
        for product, g in self.products:
            same[product.place, product.form].append((product, g))
        for (place, form), uses in same.items():
            inputs, outputs = [], []
            for product, g in uses:
                part = self._part(product.leading, rows)
                inputs.append(self._table(form.design(part_of(product.inputs, part)), rows))
                outputs.append(self._table(form.responses(part_of(g, part)), rows))
            matrices = _products(_joined(outputs), _joined(inputs))
            shape = (place.stop - place.start, *self.shape[1:])
            yield place, _as_weights(form, matrices, shape)

    def _terms(self, rows: slice) -> Iterator[tuple[Place, Tensor]]:
        for term, g in self.terms:
            yield term.place, term.gradients(single(g), self._part(term.leading, rows), rows.stop - rows.start)

    def _part(self, leading: int, rows: slice) -> Part:
        if rows == slice(0, self.samples):
            return None
        each = leading // self.samples
        return slice(rows.start * each, rows.stop * each)

    def _table(self, table: Tensor, rows: slice) -> Tensor:
        return single(table).reshape(rows.stop - rows.start, -1, *table.shape[2:])

    def chunks(self) -> Iterator[slice]:
        """Consecutive samples, as many at once as memory is meant to hold."""
        elements = max(1, torch.Size(self.shape).numel())
        for product, g in self.products:
            taps = torch.Size(product.form.kernel).numel() if isinstance(product.form, Convolution) else 1
            elements += (product.inputs.numel() * taps + g.numel()) // self.samples
        step = max(1, CHUNK // elements)
        for start in range(0, self.samples, step):
            yield slice(start, min(start + step, self.samples))


def _joined(tables: Sequence[Tensor]) -> Tensor:
    """Positions of all."""
    return tables[0] if len(tables) == 1 else torch.cat(list(tables), 1)


def _products(outputs: Tensor, inputs: Tensor) -> Tensor:
    """Sums over positions of (samples, positions, groups, rows) times (samples, positions, groups, columns)."""
    if outputs.shape[2] == 1:
        return torch.bmm(outputs[:, :, 0].transpose(1, 2), inputs[:, :, 0]).unsqueeze(1)
    return torch.einsum("npgr,npgc->ngrc", outputs, inputs)


def tells_samples_apart(uses: Sequence[Product | Term], samples: int) -> bool:
    """Whether the leading dimension of every use can be that of the samples, or of equally many parts of each."""
    return all(use.leading % samples == 0 for use in uses)


def _as_weights(form: Form, matrices: Tensor, shape: Sequence[int]) -> Tensor:
    found: Tensor = torch.vmap(lambda matrix: form.weight(matrix, shape))(matrices)
    return found


def feature_units(form: Form, place: Place, s: Slice, shape: tuple[int, ...]) -> Tensor | None:
    """The unit of each input feature (channel) of a use, (features,), -1 for none; None where taps or rows differ."""
    units = column_units(form, place, s, shape)
    if units is None:
        return None
    if isinstance(form, Convolution):
        taps = torch.Size(form.kernel).numel()
        table = units.reshape(units.shape[0], -1, taps)
        return table[..., 0].flatten() if bool((table == table[..., :1]).all()) else None
    return units.flatten()


def feature_products(form: Form, inputs: Tensor, gradients: Tensor, samples: int) -> Tensor:
    """Inputs times their gradients, summed over the positions of each sample: (samples, features)."""
    inputs, gradients = single(inputs), single(gradients)
    if isinstance(form, Convolution):
        rank = len(form.kernel)
        x, g = (t.reshape(-1, t.shape[-rank - 1], t.shape[-rank:].numel()) for t in (inputs, gradients))
        found: Tensor = torch.linalg.vecdot(x, g)
    else:
        # (samples, positions, groups, columns); one for all samples where they cannot be told apart.
        found = form.design(inputs * gradients).sum(1).flatten(1)
    return found.reshape(samples, -1, found.shape[-1]).sum(1)


def gates_from_inputs(
    group: Group,
    uses: Sequence[tuple[Product, Tensor]],
    units_of: Callable[[Product, Slice], Tensor | None],
    samples: int,
) -> Tensor:
    """Derivatives by the gates of a group through masked columns of products: float64 (samples, units), on the CPU.

    Args:
        group: its masked slices count.
        uses: products, with the gradients of their inputs.
        units_of: `feature_units` of a product and a slice.
        samples: in the batch.
    """
    total = torch.zeros(samples, group.size, dtype=torch.float64)
    for product, g in uses:
        found = None
        for s in masked_slices(group):
            units = units_of(product, s) if s.parameter == product.place.name else None
            if units is None or not bool((units >= 0).any()):
                continue
            if found is None:
                found = feature_products(product.form, product.inputs, g, samples).double().cpu()
            total.index_add_(1, units[units >= 0], found[:, units >= 0])
    return total


def gates_from_gradients(group: Group, name: str, products: Tensor) -> Tensor:
    """The share of one parameter in the derivatives by the gates of a group: float64 (samples, units), on the CPU.

    Args:
        group: its masked slices of the parameter count.
        name: of the parameter.
        products: gradient times parameter for each sample, (samples, *shape).
    """
    total = torch.zeros(len(products), group.size, dtype=torch.float64)
    for s in masked_slices(group):
        if s.parameter == name:
            sums: Tensor = torch.vmap(functools.partial(sum_over_unit, s))(products.double())
            total[:, s.first : s.first + len(s.index)] += sums.cpu()
    return total


def masked_slices(group: Group) -> list[Slice]:
    """Those of the parameters that masking zeroes; where it zeroes nothing (experts), all of the unit's."""
    trained = [s for s in group.slices if s.trained]
    return [s for s in trained if s.masked] or trained


def parameters_of(groups: Sequence[Group]) -> set[str]:
    """Parameters of which masking zeroes something."""
    return set(itertools.chain.from_iterable((s.parameter for s in masked_slices(group)) for group in groups))


def plain_gates(groups: Sequence[Group], products: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Derivatives by gates for one sample (or their sum over several): group name -> float64 (units,).

    Args:
        groups: all their masked slices count.
        products: parameter name -> its whole gradient times itself.
    """
    found = {}
    for group in groups:
        total = torch.zeros(group.size, dtype=torch.float64)
        for s in masked_slices(group):
            if s.parameter in products:
                total[s.first : s.first + len(s.index)] += sum_over_unit(s, products[s.parameter].double()).cpu()
        found[group.name] = total
    return found
