"""One batch: a forward pass in which uses are recorded, and a backward pass that is taken apart by sample."""

import contextlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from secateur.capture.calls import Call, Place
from secateur.capture.forms import Form
from secateur.capture.watch import Places, watching
from secateur.criteria.per_sample import (
    Uses,
    feature_units,
    gates_from_gradients,
    gates_from_inputs,
    masked_slices,
    tells_samples_apart,
)
from secateur.criteria.uses import Product, Term, Terms, bias_term
from secateur.data import Batch
from secateur.types import Group, Slice


@dataclass(eq=False)
class Layout:
    """Which units of which groups the inputs of products are; found once.

    Args:
        groups: with the slices in question.
        shapes: of the parameters.
    """

    groups: Sequence[Group]
    shapes: Mapping[str, tuple[int, ...]]
    known: dict[tuple[Place, Form, int], Tensor | None] = field(default_factory=dict)

    def units_of(self, place: Place, form: Form, s: Slice) -> Tensor | None:
        """`feature_units` of a slice of the parameter."""
        key = (place, form, id(s))
        if key not in self.known:
            self.known[key] = feature_units(form, place, s, self.shapes[place.name])
        return self.known[key]

    def slices_of(self, name: str) -> list[Slice]:
        """Masked slices of a parameter, of all groups."""
        return [s for group in self.groups for s in masked_slices(group) if s.parameter == name]

    def reads_units(self, place: Place, form: Form) -> bool:
        """Whether gates of all slices of the parameter can be told from the inputs of this product."""
        slices = self.slices_of(place.name)
        return bool(slices) and all(self.units_of(place, form, s) is not None for s in slices)


@dataclass(eq=False)
class Recorder:
    """Runs the model, handing every call on and keeping what a backward pass will need.

    Args:
        layout: whose gates are wanted; no groups: none.
        on_call: told of every call before it is made.
        has_gradients: whether a backward pass follows.
        has_outputs: whether gradients of all products' outputs are wanted.
    """

    layout: Layout
    on_call: Callable[[Call], None]
    has_gradients: bool
    has_outputs: bool
    products: list[Product] = field(default_factory=list)
    terms: list[Term] = field(default_factory=list)

    def run(self, model: nn.Module, batch: Batch) -> Any:
        """Outputs of the model."""
        with torch.set_grad_enabled(self.has_gradients), watching(model, self._visit), contextlib.ExitStack() as stack:
            found = stack.enter_context(Terms(Places(model))) if self.has_gradients else None
            outputs = model(*batch.args, **batch.kwargs)
        self.terms += found.found if found is not None else []
        return outputs

    def _visit(self, call: Call) -> Tensor:
        with torch.no_grad():
            self.on_call(call)
        if not (self.has_gradients and torch.is_grad_enabled()):
            return call.run()
        inputs, reads = call.inputs, None
        if self.layout.reads_units(call.weight, call.form):
            # A node of its own, at which the gradient by this use alone arrives.
            inputs = inputs.view_as(inputs) if inputs.requires_grad else inputs.detach().requires_grad_()
            reads = get_gradient_edge(inputs)
        outputs = call.run(inputs)
        if outputs.requires_grad:
            edge = get_gradient_edge(outputs)
        elif self.has_outputs:
            leaf = outputs.requires_grad_()
            # The model may change its copy in place.
            edge, outputs = get_gradient_edge(leaf), leaf.clone()
        else:
            return outputs
        self.products.append(Product(call.weight, call.form, call.inputs.detach(), edge, reads))
        term = bias_term(call, edge)
        self.terms += [term] if term is not None else []
        return outputs


@dataclass(frozen=True, eq=False)
class Derived:
    """Gradients of the sum of a batch's losses, and what they are made of.

    Attributes:
        samples: in the batch.
        totals: parameter name -> gradient; zeros where the loss does not depend on it.
        uses: parameter name -> its seen uses.
        reads: parameter name -> its products, with the gradients of their inputs, where these tell all its gates.
        outputs: products, with the gradients of their outputs.
    """

    samples: int
    totals: Mapping[str, Tensor]
    uses: Mapping[str, Uses]
    reads: Mapping[str, Sequence[tuple[Product, Tensor]]]
    outputs: Sequence[tuple[Product, Tensor]]

    def is_finite(self) -> bool:
        """Whether all gradients are."""
        return all(bool(g.isfinite().all()) for g in [*self.totals.values(), *(g for _, g in self.outputs)])


def derive(
    recorder: Recorder,
    total: Tensor,
    parameters: Mapping[str, Tensor],
    samples: int,
    *,
    taken_apart: Collection[str],
    all_outputs: bool,
    keep: bool = False,
) -> Derived:
    """One backward pass.

    Args:
        recorder: after the run that gave `total`.
        total: sum of the losses.
        parameters: whose gradients are wanted; they require gradients.
        samples: in the batch.
        taken_apart: parameters whose gradients will be asked for sample by sample. Of the others that a group
            masks, only what their inputs tell.
        all_outputs: whether gradients of the outputs of all products are wanted.
        keep: the graph is needed again.
    """
    products, terms = defaultdict(list), defaultdict(list)
    for product in recorder.products:
        products[product.place.name].append(product)
    for term in recorder.terms:
        terms[term.place.name].append(term)
    masked = {name for name in parameters if recorder.layout.slices_of(name)}
    by_inputs = {n for n in masked if not terms[n] and products[n] and all(p.reads for p in products[n])}
    apart = {n for n in {*taken_apart, *(masked - by_inputs)} if n in parameters}
    apart = {n for n in apart if tells_samples_apart([*products[n], *terms[n]], samples)}
    by_inputs = {n for n in by_inputs if tells_samples_apart(products[n], samples)}
    edges: dict[GradientEdge, Tensor | None] = {}
    for name in by_inputs:
        edges.update({p.reads: None for p in products[name] if p.reads is not None})
    for name in apart:
        edges.update({product.outputs: None for product in products[name]})
        edges.update({term.outputs: None for term in terms[name]})
    if all_outputs:
        edges.update({p.outputs: None for p in recorder.products})
    found = _gradients(total, [*parameters.values(), *edges], keep=keep)
    totals = {
        name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(parameters.items(), found, strict=False)
    }
    edges = dict(zip(edges, found[len(parameters) :], strict=True))

    def with_gradients(uses: Sequence[Any], edge: Callable[[Any], Any]) -> list[tuple[Any, Tensor]]:
        return [(use, g) for use in uses if (g := edges[edge(use)]) is not None]

    return Derived(
        samples,
        totals,
        {
            name: Uses(
                tuple(parameters[name].shape),
                samples,
                with_gradients(products[name], lambda use: use.outputs),
                with_gradients(terms[name], lambda use: use.outputs),
            )
            for name in apart
        },
        {name: with_gradients(products[name], lambda use: use.reads) for name in by_inputs},
        with_gradients(recorder.products, lambda use: use.outputs) if all_outputs else [],
    )


def _gradients(total: Tensor, of: Sequence[Any], *, keep: bool) -> list[Tensor | None]:
    if not of or not total.requires_grad:
        return [None] * len(of)
    found = torch.autograd.grad(total, of, allow_unused=True, retain_graph=keep)
    return [None if g is None else g.detach() for g in found]


def gates_of(group: Group, derived: Derived, layout: Layout, shares: Mapping[tuple[str, str], Tensor]) -> Tensor | None:
    """Derivatives by the gates of a group, float64 (samples, units); None where they cannot be told sample by sample.

    Args:
        group: the group.
        derived: of the batch.
        layout: of the groups.
        shares: (group, parameter) -> what `gates_from_gradients` gives, for the parameters that were taken apart.
    """
    names = {s.parameter for s in masked_slices(group) if s.parameter in derived.totals}
    total = torch.zeros(derived.samples, group.size, dtype=torch.float64)
    for name in sorted(names):
        if name in derived.reads:
            uses = derived.reads[name]
            total += gates_from_inputs(group, uses, lambda p, s: layout.units_of(p.place, p.form, s), derived.samples)
        elif (group.name, name) in shares:
            total += shares[group.name, name]
        else:
            return None
    return total


def share_of(group: Group, name: str, weight: Tensor, gradients: Tensor) -> Tensor:
    """What one parameter adds to the derivatives by the gates of a group: float64 (samples, units)."""
    return gates_from_gradients(group, name, gradients * weight.detach())


@contextlib.contextmanager
def requiring(model: nn.Module, parameters: Mapping[str, Tensor]) -> Iterator[None]:
    """Meanwhile, exactly these parameters of the model require gradients."""
    before = [(p, p.requires_grad) for p in model.parameters()]
    wanted = {id(p) for p in parameters.values()}
    try:
        for p, _ in before:
            p.requires_grad_(id(p) in wanted)
        yield
    finally:
        for p, flag in before:
            p.requires_grad_(flag)
