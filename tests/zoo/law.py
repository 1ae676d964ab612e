"""The law of surgery, on one network: the cut model is the masked model, smaller, in the user's own class."""

import copy
import importlib.util
import io
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateur.graph.groups import BY_MEANING, Structure, extent, structure
from secateur.graph.infer import BROKEN
from secateur.graph.trace import Program, kept_buffers, trace
from secateur.measures.cost import measure
from secateur.storage.saved_model import load_model, save_model
from secateur.surgery.attributes import kept_units
from secateur.surgery.cut import cut, cut_model
from secateur.surgery.mask import mask
from secateur.surgery.plan import Plan, plan, plan_widths
from secateur.surgery.program import program_module, size_classes
from secateur.surgery.verify import NARROWED_TOLERANCE, Narrowing
from secateur.types import Group
from zoo.entry import Entry, prepared


@dataclass
class Verdict:
    """What became of one network.

    Attributes:
        exact: every plan was cut, and equals the masked network.
        failure: the first thing that broke, in words.
        coverage: share of the weight dimensions that could be pruned which lie in a group.
        flagged: groups that are not exact, and say so.
        removable: positions of weight dimensions that lie in a group.
        fixed: positions that do not, though the meaning of the model would let them.
        causes: reason -> positions that it fixed.
        graph_coverage: likewise, where a graph may take the place of the module.
        renormalised: how groups that are not exact were cut.
    """

    name: str
    exact: bool = False
    failure: str = ""
    groups: int = 0
    flagged: int = 0
    removable: int = 0
    fixed: int = 0
    granularities: dict[str, int] = field(default_factory=dict)
    coverage: float = 0.0
    causes: dict[str, int] = field(default_factory=dict)
    macs_left: float = 1.0
    params_m: float = 0.0
    trace_s: float = 0.0
    structure_s: float = 0.0
    total_s: float = 0.0
    recorded: bool = False
    worst_error: float = 0.0
    graph_coverage: float = 0.0
    graph: str = ""
    renormalised: str = ""


def examine(entry: Entry, *, every_plan: bool = True) -> Verdict:
    """Hold one network to the law."""
    verdict = Verdict(entry.name)
    begun = time.perf_counter()
    try:
        _examine(entry, verdict, every_plan=every_plan)
        verdict.exact = True
    except Exception as error:
        text = str(error).strip() or type(error).__name__
        verdict.failure = f"{type(error).__name__}: {text[:600]}"
    verdict.total_s = round(time.perf_counter() - begun, 2)
    return verdict


def _examine(entry: Entry, verdict: Verdict, *, every_plan: bool) -> None:
    model = prepared(entry)
    before = copy.deepcopy(model.state_dict())
    verdict.params_m = round(sum(p.numel() for p in model.parameters()) / 1e6, 2)
    args, kwargs = entry.inputs(2)
    started = time.perf_counter()
    program = trace(model, args, kwargs)
    verdict.trace_s = round(time.perf_counter() - started, 2)
    started = time.perf_counter()
    found = structure(program, split_stacks=entry.split_stacks)
    verdict.structure_s = round(time.perf_counter() - started, 2)
    _describe(found, verdict)
    broken = [f.reason for f in found.fixed if f.reason.startswith(BROKEN)]
    assert not broken, broken[0]
    exact = [g for g in found.groups if g.exact]
    if not exact:
        assert found.groups, "no group"
        _renormalised(entry, model, program, found, verdict)
        return
    chosen_plans = plans(exact, every_plan=every_plan)
    if entry.split_stacks:
        chosen_plans.append(_staggered(exact))
    for number, chosen in enumerate(chosen_plans):
        small = _hold(entry, model, program, chosen, verdict)
        _same_state(model, before)
        if number == 0:
            verdict.macs_left = round(_costs(small, chosen, program, args, kwargs), 3)
            _saved(entry, model, small, chosen, entry.batches[0])
    _again(entry, small)
    if every_plan:
        _renormalised(entry, model, program, found, verdict)
        _travels(model, small, args, kwargs)
        _as_graph(entry, model, program, verdict)
    _same_state(model, before)


def plans(groups: Sequence[Group], *, every_plan: bool) -> list[Plan]:
    """Half of each group; then, with `every_plan`, widths drawn for each group, nearly all, and one unit."""
    half = plan(groups, _scores(groups, 1), sparsity=0.5)
    if not every_plan:
        return [half]
    draw = torch.Generator().manual_seed(2)
    drawn = {g.name: (0.0, 0.3, 0.5, 0.9)[int(torch.randint(4, (), generator=draw))] for g in groups}
    # Something must go, or the plan shows nothing.
    drawn[groups[0].name] = drawn[groups[0].name] or 0.3
    return [
        half,
        plan(groups, _scores(groups, 2), sparsity=drawn),
        plan(groups, _scores(groups, 3), sparsity=0.9),
        plan_widths(groups, _scores(groups, 4), {g.name: _one_less(g) for g in groups}),
    ]


def _staggered(groups: Sequence[Group]) -> Plan:
    """Half of one group, less of the next."""
    return plan(groups, _scores(groups, 8), sparsity={g.name: (0.5, 0.3)[k % 2] for k, g in enumerate(groups)})


def _one_less(group: Group) -> int:
    return max(group.width - group.multiple_of, group.minimum)


def _scores(groups: Sequence[Group], seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {g.name: torch.rand(g.size, generator=generator) for g in groups}


def _hold(entry: Entry, model: nn.Module, program: Program, chosen: Plan, verdict: Verdict) -> nn.Module:
    small = cut(model, chosen, program=program)
    assert type(small) is type(model), "the class changed"
    assert list(small.state_dict()) == list(model.state_dict()), "the keys of the state changed"
    masked = mask(model, chosen, program=program)
    for batch in entry.batches:
        args, kwargs = entry.inputs(batch)
        with Narrowing() as watch:
            expected, got, whole = (tensors(m, args, kwargs) for m in (masked, small, model))
        moved, error = distance(whole, expected), distance(got, expected)
        verdict.worst_error = max(verdict.worst_error, error)
        assert moved > 1e-6, f"masking moves the output by {moved:.0e} only: the test has no power"
        assert error <= tolerance(watch), f"the cut model differs from the masked one by {error:.1e}"
    _gradients_flow(small, *entry.inputs(2))
    return small


def tolerance(watch: Narrowing) -> float:
    """What rounding alone can do to outputs in float64."""
    return NARROWED_TOLERANCE if watch.seen else 1e-9


def distance(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest difference of two lists of outputs, relative to the largest value."""
    scale = max(float(t.abs().max()) for t in expected)
    return max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True)) / scale


def tensors(model: nn.Module, args: Any, kwargs: Any) -> list[Tensor]:
    """Every real or complex output; random draws are the same each time."""
    with torch.no_grad(), kept_buffers(model), torch.random.fork_rng():
        torch.manual_seed(0)
        leaves = pytree.tree_leaves(model(*copy.deepcopy(args), **copy.deepcopy(kwargs)))
    return [t for t in leaves if isinstance(t, Tensor) and (t.is_floating_point() or t.is_complex())]


def _gradients_flow(small: nn.Module, args: Any, kwargs: Any) -> None:
    leaves = pytree.tree_leaves(small(*args, **kwargs))
    total = sum(t.sum() for t in leaves if isinstance(t, Tensor) and t.requires_grad)
    assert isinstance(total, Tensor), "no output has a gradient"
    total.abs().backward()
    small.zero_grad()


def _same_state(model: nn.Module, before: dict[str, Tensor]) -> None:
    now = model.state_dict()
    assert all(torch.equal(now[k], v) or bool(v.isnan().any()) for k, v in before.items()), "the original changed"


def _costs(small: nn.Module, chosen: Plan, program: Program, args: Any, kwargs: Any) -> float:
    measured = measure(small, args, kwargs, latency=False)
    predicted = chosen.cost(program)
    assert predicted.params == measured.params, f"parameters: predicted {predicted.params}, got {measured.params}"
    assert predicted.macs == measured.macs, f"MACs: predicted {predicted.macs}, measured {measured.macs}"
    return measured.macs / max(Plan({}, {}).cost(program).macs, 1)


def _saved(entry: Entry, model: nn.Module, small: nn.Module, chosen: Plan, batch: int) -> None:
    """What is saved and loaded computes the same; a plan survives JSON."""
    assert Plan.from_json(chosen.to_json()) == chosen, "the plan changed on its way through JSON"
    fresh = entry.inputs(batch)
    with tempfile.TemporaryDirectory() as folder:
        save_model(small, folder, original=model, plan=chosen)
        loaded = load_model(lambda: prepared(entry), folder)
    same = zip(tensors(loaded, *fresh), tensors(small, *fresh), strict=True)
    assert all(torch.equal(a, b) for a, b in same), "the loaded model differs from the saved one"


def _again(entry: Entry, small: nn.Module) -> None:
    """A cut model can be traced and cut once more."""
    args, kwargs = entry.inputs(2)
    program = trace(small, args, kwargs)
    groups = [g for g in structure(program, split_stacks=entry.split_stacks).groups if g.exact]
    chosen = plan(groups, _scores(groups, 5), sparsity=0.3)
    fresh = entry.inputs(entry.batches[0])
    with Narrowing() as watch:
        expected = tensors(mask(small, chosen, program=program), *fresh)
        got = tensors(cut(small, chosen, program=program), *fresh)
    error = distance(got, expected)
    assert error <= tolerance(watch), f"a second cut differs by {error:.1e}"


def _renormalised(entry: Entry, model: nn.Module, program: Program, found: Structure, verdict: Verdict) -> None:
    """Groups that are not exact, when asked for, give what the cut program gives."""
    groups = [g for g in found.groups if not g.exact]
    if not groups:
        return
    chosen = plan(groups, _scores(groups, 6), sparsity={g.name: 0.3 for g in groups})
    done = cut_model(model, chosen, program=program)
    assert type(done.model) is type(model), "the class changed"
    verdict.renormalised = "equal to the cut program" if done.verified else "only run"
    if not done.verified:
        return
    leading = frozenset(place for places in size_classes(program) for place in places if place[1] == 0)
    widths = {g.name: len(chosen.keep[g.name]) // g.rows for g in groups}
    graph = program_module(program, found, kept_units(found, widths), done.model, free=leading, pin=False)
    args, kwargs = entry.inputs(entry.batches[0])
    with Narrowing() as watch:
        got = tensors(done.model, args, kwargs)
        try:
            expected = tensors(graph, args, kwargs)
        except Exception:
            return  # its numbers are those of the other batch size
    if [t.shape for t in got] == [t.shape for t in expected]:
        error = distance(got, expected)
        assert error <= tolerance(watch), f"renormalised groups: module and program differ by {error:.1e}"


def _as_graph(entry: Entry, model: nn.Module, program: Program, verdict: Verdict) -> None:
    """What only a graph can follow is cut exactly too."""
    if program.recorded:
        return
    found = structure(program, fallback="graph", split_stacks=entry.split_stacks)
    verdict.graph_coverage = round(found.coverage(), 4)
    groups = [g for g in found.groups if g.exact]
    chosen = plan(groups, _scores(groups, 7), sparsity=0.5)
    done = cut_model(model, chosen, program=program, fallback="graph")
    batch_is_free = all((leaf, dim) in done.free for leaf, dim in size_classes(program)[0])
    verdict.graph = done.way if done.way == "module" or batch_is_free else "graph of one batch size"
    assert done.verified, "the cut graph was not verified"
    assert list(done.model.state_dict()) == list(model.state_dict()), "the keys of the graph's state differ"
    batch = entry.batches[0] if verdict.graph in ("graph", "module") else 2
    args, kwargs = entry.inputs(batch)
    masked = mask(model, chosen, program=program, fallback="graph")
    with Narrowing() as watch:
        error = distance(tensors(done.model, args, kwargs), tensors(masked, args, kwargs))
    assert error <= tolerance(watch), f"the cut graph differs from the masked model by {error:.1e}"
    _saved(entry, model, done.model, chosen, batch)


def _travels(model: nn.Module, small: nn.Module, args: Any, kwargs: Any) -> None:
    """A cut model copies, compiles and exports wherever the original does."""
    expected = tensors(small, args, kwargs)
    for name, way in WAYS.items():
        try:
            got = way(small, args, kwargs)
        except Exception as error:
            try:
                way(model, args, kwargs)
            except Exception:
                continue
            raise AssertionError(f"{name} works for the original but not for the cut model: {error}") from error
        assert got is None or distance(got, expected) <= NARROWED_TOLERANCE, f"{name} changes the outputs"


def _copied(model: nn.Module, args: Any, kwargs: Any) -> list[Tensor]:
    return tensors(copy.deepcopy(model), args, kwargs)


def _compiled(model: nn.Module, args: Any, kwargs: Any) -> list[Tensor]:
    torch._dynamo.reset()
    return tensors(torch.compile(model, backend="eager"), args, kwargs)


def _exported(model: nn.Module, args: Any, kwargs: Any) -> list[Tensor]:
    return tensors(torch.export.export(model, args, kwargs, strict=False).module(), args, kwargs)


def _to_onnx(model: nn.Module, args: Any, kwargs: Any) -> None:
    if importlib.util.find_spec("onnxscript") is not None:
        torch.onnx.export(model, args, io.BytesIO(), kwargs=kwargs, dynamo=True)


WAYS: Mapping[str, Callable[[nn.Module, Any, Any], list[Tensor] | None]] = {
    "copy.deepcopy": _copied,
    "torch.compile": _compiled,
    "torch.export": _exported,
    "torch.onnx.export": _to_onnx,
}


def _describe(found: Structure, verdict: Verdict) -> None:
    verdict.groups = len(found.groups)
    verdict.granularities = dict(Counter(g.granularity for g in found.groups))
    verdict.coverage = round(found.coverage(), 4)
    verdict.flagged = sum(not g.exact for g in found.groups)
    verdict.removable = sum(extent(s) for g in found.groups for s in g.slices if s.trained)
    causes: Counter[str] = Counter()
    for axis in found.fixed:
        if not axis.reason.startswith(BY_MEANING):
            causes[axis.reason] += axis.size
    verdict.fixed = causes.total()
    verdict.causes = dict(causes.most_common(8))
