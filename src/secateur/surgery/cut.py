"""Cutting: a smaller copy of the user's own module, or where it cannot follow a graph; verified."""

import contextlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from torch import Tensor, fx, nn

from secateur.errors import PlanError, SurgeryError
from secateur.graph.attention import bind_heads, release_heads
from secateur.graph.axes import leaves
from secateur.graph.branches import Branch
from secateur.graph.copies import copy_of
from secateur.graph.groups import Structure, structure, structure_for
from secateur.graph.settle import count
from secateur.graph.sources import Literal as Written
from secateur.graph.stacks import fit_stacks
from secateur.graph.trace import Program, named_state
from secateur.graph.typing import Remark
from secateur.surgery.attributes import (
    REMEDY,
    Demand,
    apply,
    demands,
    kept_units,
    module_stack,
    proposals,
    revert,
    rewrite_known,
    solved,
    trials,
)
from secateur.surgery.depth import remove_branches
from secateur.surgery.mask import masked_tensors
from secateur.surgery.plan import Plan, check_plan, kept_widths
from secateur.surgery.program import Places, doubled, gone_branches, program_module, size_classes
from secateur.surgery.tensors import copy_without, removed_marks, replace_state
from secateur.surgery.verify import Outputs, all_outputs, difference, disagreement, output_leaves, outputs
from secateur.types import Fallback, Group, Note, Rewrite

MOST_TRIALS = 64
HEADWISE = "computes headwise: nn.MultiheadAttention asserts that its heads fill its width, which they no longer do"

LAYERWISE = "computes layer by layer: torch's class has all layers equally wide, which they no longer are"


@dataclass(frozen=True, eq=False)
class CutModel:
    """A cut model and what was done to it.

    Attributes:
        model: the smaller copy, or the graph.
        rewrites: attributes of modules that were changed; none in a graph.
        verified: its outputs were compared with those of another network that computes the same, and are equal:
            the masked model, or where groups are not exact the cut program.
        way: "module" for an instance of the user's own class, "graph" for an `fx.GraphModule`.
        free: dimensions of a graph's inputs that may have any size: (leaf of the arguments, dimension).
        replaced: modules of torch's that are of another class now, since theirs asserts what no longer holds.
    """

    model: nn.Module
    rewrites: tuple[Rewrite, ...]
    verified: bool
    way: Literal["module", "graph"] = "module"
    free: Places = frozenset()
    replaced: tuple[Note, ...] = ()


def cut(
    model: nn.Module, plan: Plan, *, program: Program, verify: bool = True, fallback: Fallback | None = None
) -> nn.Module:
    """Return a smaller copy of `model`, of the same class; `model` itself stays as it is.

    With `fallback="graph"`, a model whose own forward pass cannot follow becomes a `torch.fx.GraphModule`: called
    in the same way, with the same names in its state. It is as the model was when traced: in eval mode, and for
    the values of arguments that are no tensors and the shapes of tensors of then, except for dimensions that
    proved free, as a rule the batch. Without verification none is.

    Args:
        model: the module that `program` was traced from.
        plan: which units of each group stay.
        program: from `trace(model, ...)`.
        verify: compare the cut model with the masked one on the example inputs, in float64 where the
            model allows it. Where groups are not exact, an independent computation of the cut network takes the
            place of the masked one; where there is none, the cut model is only run. Without, it is run only where
            some size could not be followed to its source.
        fallback: what is done when no rewriting of attributes makes the forward pass fit; None = that which the
            groups of the plan were found with, which the plan remembers.

    Raises:
        PlanError: the plan or the program is for another model.
        SurgeryError: no rewriting of attributes makes the forward pass fit, or the outputs differ.
    """
    return cut_model(model, plan, program=program, verify=verify, fallback=fallback).model


def cut_model(
    model: nn.Module, plan: Plan, *, program: Program, verify: bool = True, fallback: Fallback | None = None
) -> CutModel:
    """Like `cut`, with a record of what was done."""
    fallback = fallback or plan.fallback
    found = structure_for(program, plan.sizes, fallback)
    if not found.has(plan.sizes):
        # Either a plan for another model, or for a graph: then what stands in the way can be told.
        found = structure_for(program, plan.sizes, "graph")
    check_plan(plan, found.units)
    _check_program(model, program)
    small = copy_without(model, removed_marks(found.groups, plan, program.shapes))
    release_heads(small)
    job = _Job(model, plan, program, found, verify)
    try:
        return _cut_module(job, small)
    except SurgeryError as refusal:
        if fallback == "error":
            raise
        return _cut_graph(job, small, refusal)


@dataclass(frozen=True, eq=False)
class _Job:
    """What is to be cut, and how it is checked."""

    model: nn.Module
    plan: Plan
    program: Program
    found: Structure
    verify: bool

    @property
    def widths(self) -> dict[str, int]:
        """Units kept in a row of each group that is cut."""
        return kept_widths(self.touched, self.plan)

    @property
    def kept(self) -> dict[int, int]:
        """Units kept of each axis that is cut."""
        return kept_units(self.found, self.widths)

    @property
    def touched(self) -> tuple[Group, ...]:
        """The groups that the plan cuts."""
        return tuple(group for group in self.found.units if group.name in self.plan.keep)

    @property
    def gone(self) -> tuple[Branch, ...]:
        """The branches that go."""
        return gone_branches(self.found, self.plan)

    @property
    def is_exact(self) -> bool:
        """Whether masking says what the cut network must give."""
        return all(group.exact for group in self.touched)

    def masked(self) -> nn.Module:
        """The masked model."""
        masked = copy_of(self.model)
        replace_state(masked, masked_tensors(masked, self.touched, self.plan))
        return masked

    def remarks(self) -> list[Remark]:
        """Why removal is not exact here, or not exact in the user's own module."""
        resolve, kept = self.found.typing.unifier.resolve, self.kept
        return [r for r in self.found.typing.remarks if any(axis.id in kept for axis in leaves(resolve(r.dim)))]


def _cut_module(job: _Job, small: nn.Module) -> CutModel:
    """Fit the attributes of `small` to its tensors, which are cut."""
    found, widths = job.found, job.widths
    if found.fallback == "graph":
        _check_followable(job)
    rewrites = solved(found, widths)
    apply(small, tuple(rewrites))
    rewrites += rewrite_known(small, demands(found, widths))
    remove_branches(small, job.gone, job.model, job.program)
    stacks = fit_stacks(small)
    replaced = tuple(Note(path, HEADWISE) for path in bind_heads(small)) + tuple(Note(p, LAYERWISE) for p in stacks)
    expected = _reference(job, small) if job.verify else None
    wanted = demands(found, widths, with_source=False)
    # Where every size was followed to its source, there is nothing that a run could find out; but how the forward
    # pass reads the final states of a stack is not known.
    if job.verify or wanted or job.gone or stacks:
        rewrites += _rewrite_rest(small, wanted, job, expected)
    return CutModel(small, tuple(rewrites), expected is not None, replaced=replaced)


def _check_followable(job: _Job) -> None:
    """Refuse what only a graph can do: the groups were found for one."""
    if not job.verify:
        _check_known_to_follow(job)
    resolve, kept = job.found.typing.unifier.resolve, job.kept
    for constant in job.found.typing.constants:
        after = count(resolve(constant.dim), kept)
        if isinstance(constant.source, Written) and after != constant.dim.size:
            path = next(iter(module_stack(constant.node)), "")
            raise SurgeryError(
                f"module {path!r}, operator {constant.node.target}: its forward pass writes the number "
                f"{constant.dim.size} where {after} is needed, and no attribute holds it; {REMEDY}"
            )
    for remark in job.remarks():
        if remark.pinned:
            nodes = [node for node, (_, remarks) in job.found.typing.facts.items() if remark in remarks]
            where = "".join(f"module {next(iter(module_stack(n)), '')!r}, operator {n.target}: " for n in nodes)
            raise SurgeryError(f"{where}removal is not exact in the model itself: {remark.text}; {REMEDY}")


def _check_known_to_follow(job: _Job) -> None:
    """Unverified, a module is trusted only with groups that it has by itself: what ties more together was not asked."""
    own = {group.name: group for group in structure(job.program, split_stacks=job.found.split_stacks).groups}
    for group in job.touched:
        other = own.get(group.name)
        if other is None or (other.size, other.rows, other.exact) != (group.size, group.rows, group.exact):
            raise SurgeryError(f"the model itself does not have the group {group.name!r} like this; {REMEDY}")


def _reference(job: _Job, small: nn.Module) -> Outputs | None:
    """What the cut model must give, from a network that is made in another way; None if there is none."""
    if job.is_exact:
        return all_outputs(job.masked(), job.program.args, job.program.kwargs)
    if any(remark.pinned == "python" for remark in job.remarks()):
        return None
    try:
        graph = program_module(job.program, job.found, job.kept, small, gone=job.gone, pin=False)
        with _held_back():
            return all_outputs(graph, job.program.args, job.program.kwargs)
    except Exception:
        return None


def _cut_graph(job: _Job, small: nn.Module, refusal: SurgeryError) -> CutModel:
    """The graph of the cut network, which takes any size of input that it proves to be right at."""
    build = partial(program_module, job.program, job.found, job.kept, small, gone=job.gone)
    graph = build()
    reason = _unsound(graph, job)
    if reason is not None:
        raise SurgeryError(f"{refusal}; nor does the cut graph fit: {reason}") from refusal
    if not job.verify:
        return CutModel(graph, (), verified=False, way="graph")
    free = _free_places(job, build)
    return CutModel(build(free=free), (), verified=job.is_exact, way="graph", free=free)


def _unsound(graph: fx.GraphModule, job: _Job) -> str | None:
    args, kwargs = job.program.args, job.program.kwargs
    try:
        with _held_back():
            if not (job.verify and job.is_exact):
                outputs(graph, args, kwargs)
                return None
            return disagreement(all_outputs(graph, args, kwargs), all_outputs(job.masked(), args, kwargs))
    except Exception as error:
        return _first_line(error)


def _free_places(job: _Job, build: Callable[..., fx.GraphModule]) -> Places:
    """Dimensions of the inputs at which the graph gives what the model does when they are doubled."""
    model = job.masked() if job.is_exact else job.model
    if not job.is_exact:
        build = partial(program_module, job.program, job.found, {}, job.model)
    free: Places = frozenset()
    for places in size_classes(job.program):
        args, kwargs = doubled(job.program, free | places)
        try:
            expected = output_leaves(model, args, kwargs)
            with _held_back():
                given = output_leaves(build(free=free | places), args, kwargs)
        except Exception:
            continue
        if _is_same(given, expected):
            free |= places
    return free


def _is_same(given: list[Any], expected: list[Any]) -> bool:
    a, b = ([leaf for leaf in leaves if isinstance(leaf, Tensor)] for leaves in (given, expected))
    others = [[leaf for leaf in leaves if not isinstance(leaf, Tensor)] for leaves in (given, expected)]
    return difference(a, b) is None and others[0] == others[1]


@contextlib.contextmanager
def _held_back() -> Iterator[None]:
    """Drop what torch prints to stderr of the code of a graph that fails."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield


def _check_program(model: nn.Module, program: Program) -> None:
    state = named_state(model)
    for name, shape in program.shapes.items():
        if name not in state or tuple(state[name].shape) != shape:
            has = tuple(state[name].shape) if name in state else "none such"
            raise PlanError(
                f"the program was traced from another model: it has {name!r} of shape {shape}, "
                f"this model has {has}; trace this model"
            )


def _failure(small: nn.Module, job: _Job, expected: Outputs | None) -> str | None:
    """Why `small` is not right; None if it is."""
    args, kwargs = job.program.args, job.program.kwargs
    try:
        if expected is None:
            outputs(small, args, kwargs)
            return None
        return disagreement(all_outputs(small, args, kwargs), expected)
    except Exception as error:
        return _first_line(error)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _rewrite_rest(small: nn.Module, wanted: list[Demand], job: _Job, expected: Outputs | None) -> list[Rewrite]:
    """Find the attributes of the user's own modules that must change, by trial."""
    proposed = proposals(small, wanted)
    reason = None
    for number, trial in enumerate(trials(proposed)):
        if number == MOST_TRIALS:
            break
        apply(small, trial)
        failure = _failure(small, job, expected)
        if failure is None:
            return list(trial)
        # The trial of all proposals tells more than the one of none, which comes first.
        reason = failure if number < 2 else reason
        revert(small, trial)
    raise SurgeryError(_explain(small, wanted, proposed, reason))


def _explain(small: nn.Module, wanted: list[Demand], proposed: list[Rewrite], reason: str | None) -> str:
    tried = sorted({f"{p.module or type(small).__name__}.{p.attribute}" for p in proposed})
    place = next((d for d in wanted if d.modules), None)
    where = (
        f"module {place.modules[0] or type(small).__name__!r}, operator {place.operator}: it names the size "
        f"{place.before} where {place.after} is needed; "
        if place
        else ""
    )
    return (
        f"the cut model does not compute what the masked one does ({reason}); {where}"
        f"attributes tried: {', '.join(tried) if tried else 'none fits'}; {REMEDY}"
    )
