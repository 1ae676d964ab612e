"""Solvers against brute force: numpy's least squares, sequential elimination, enumeration."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from secateur.errors import ArgumentError, NumericalError
from secateur.sparsity import alps, obc
from secateur.sparsity.alps import ALPS
from secateur.sparsity.curvature import Curvature, curvature_of
from secateur.sparsity.method import Masked, Method
from secateur.sparsity.obc import OBC, elimination_order
from secateur.sparsity.patterns import NM, Blocks, Pattern, Unstructured
from secateur.sparsity.refit import refitted
from secateur.sparsity.seen import seen_rows
from secateur.sparsity.sparsegpt import SparseGPT

GROUPS, ROWS, COLUMNS, SAMPLES = 2, 3, 9, 60


@pytest.fixture
def inputs() -> Tensor:
    torch.manual_seed(0)
    mixed = torch.randn(GROUPS, SAMPLES, COLUMNS, dtype=torch.float64)
    return mixed @ torch.randn(GROUPS, COLUMNS, COLUMNS, dtype=torch.float64)


@pytest.fixture
def weight(inputs: Tensor) -> Tensor:
    return torch.randn(GROUPS, ROWS, COLUMNS, dtype=torch.float64)


def curvature(inputs: Tensor) -> Curvature:
    moments = inputs.transpose(1, 2) @ inputs / inputs.shape[1]
    return Curvature(moments, torch.zeros(moments.shape[:2], dtype=torch.bool), inputs.shape[1], "fc")


def error(inputs: Tensor, change: Tensor) -> float:
    return float((inputs @ change.transpose(1, 2)).square().sum() / inputs.shape[1])


def lstsq(inputs: Tensor, weight: Tensor, keep: Tensor) -> Tensor:
    """numpy's fit of the kept inputs to what all inputs give, row by row."""
    found = torch.zeros_like(weight)
    for g, r in itertools.product(range(weight.shape[0]), range(weight.shape[1])):
        columns = keep[g, r].nonzero()[:, 0]
        x, y = inputs[g][:, columns].numpy(), (inputs[g] @ weight[g, r]).numpy()
        found[g, r, columns] = torch.from_numpy(np.linalg.lstsq(x, y, rcond=None)[0])
    return found


def test_the_refit_is_least_squares_and_stationary(inputs: Tensor, weight: Tensor) -> None:
    keep = torch.rand(weight.shape) > 0.5
    keep[0, 0], keep[0, 1] = False, True
    found = refitted(weight, curvature(inputs).moments, keep)
    assert torch.allclose(found, lstsq(inputs, weight, keep))
    assert (found[~keep] == 0).all()
    gradient = (found - weight) @ curvature(inputs).moments
    assert gradient[keep].abs().max() < 1e-9


@pytest.mark.parametrize("delay", [1, 2, 64])
@pytest.mark.parametrize("chunk", [1, 2**25])
def test_obc_is_the_greedy_least_squares_of_every_step(
    inputs: Tensor, weight: Tensor, delay: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(obc, "DELAY", delay)
    monkeypatch.setattr(obc, "CHUNK", chunk)
    order = elimination_order(weight, torch.linalg.inv(curvature(inputs).moments))
    columns, losses = (t.reshape(GROUPS, ROWS, COLUMNS) for t in (order.columns, order.losses))
    for g, r in itertools.product(range(GROUPS), range(ROWS)):
        keep, so_far = torch.ones(COLUMNS, dtype=torch.bool), 0.0
        for step in range(COLUMNS):
            tried = {}
            for c in keep.nonzero()[:, 0].tolist():
                without = keep.clone()
                without[c] = False
                fit = lstsq(inputs[g : g + 1], weight[g : g + 1, r : r + 1], without[None, None])
                tried[c] = error(inputs[g : g + 1], fit - weight[g : g + 1, r : r + 1])
            best = min(tried, key=lambda c: tried[c])
            assert int(columns[g, r, step]) == best
            assert float(losses[g, r, : step + 1].sum()) == pytest.approx(tried[best], rel=1e-6)
            assert float(losses[g, r, step]) == pytest.approx(tried[best] - so_far, rel=1e-5, abs=1e-9)
            keep[best], so_far = False, tried[best]


def test_one_sweep_of_obc_serves_all_sparsities(inputs: Tensor, weight: Tensor) -> None:
    h = curvature(inputs)
    order = elimination_order(weight, torch.linalg.inv(h.moments))
    curve = order.curve()
    at = OBC(damping=0).prepared(weight, h, Unstructured())
    for count in range(weight.numel() + 1):
        found = at(count / weight.numel())
        assert int((~found.keep).sum()) == count
        assert float(curve[count]) == pytest.approx(error(inputs, found.matrix - weight), rel=1e-6, abs=1e-9)
        assert torch.allclose(found.matrix, lstsq(inputs, weight, found.keep), atol=1e-7)


@pytest.mark.parametrize("delay", [1, 3, 64])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 2), (3, 4), (4, 8)])
def test_obc_in_runs_removes_what_the_run_allows(
    inputs: Tensor, weight: Tensor, n: int, m: int, delay: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    h = curvature(inputs)
    expected = OBC(damping=0).prepared(weight, h, NM(n, m))(1 - n / m)
    monkeypatch.setattr(obc, "DELAY", delay)
    found = OBC(damping=0).prepared(weight, h, NM(n, m))(1 - n / m)
    assert torch.equal(found.keep, expected.keep)
    for start in range(0, COLUMNS, m):
        run = found.keep[..., start : start + m]
        assert (run.sum(2) == min(n, run.shape[2])).all()
    order = elimination_order(weight, torch.linalg.inv(h.moments), NM(n, m))
    assert float(order.losses.sum()) == pytest.approx(error(inputs, found.matrix - weight), rel=1e-6)
    # The first to go is the best of all.
    scores = weight.square() / torch.linalg.inv(h.moments).diagonal(dim1=1, dim2=2).unsqueeze(1)
    full = COLUMNS // m * m + (COLUMNS % m if COLUMNS % m > n else 0)
    assert torch.equal(order.columns[:, 0], scores[..., :full].reshape(-1, full).argmin(1))


def test_the_factor_of_sparsegpt_is_sequential_elimination(inputs: Tensor) -> None:
    inverse = torch.linalg.inv(curvature(inputs).moments)
    upper = torch.linalg.cholesky(inverse, upper=True)
    left = inverse.clone()
    for j in range(COLUMNS):
        row = left[:, j, j:] / left[:, j, j].sqrt().unsqueeze(1)
        assert torch.allclose(upper[:, j, j:], row)
        left = left - left[:, :, j : j + 1] * left[:, j : j + 1, :] / left[:, j, j][:, None, None]


def test_sparsegpt_with_a_mask_is_elimination_from_left_to_right(inputs: Tensor, weight: Tensor) -> None:
    h, keep = curvature(inputs), torch.rand(weight.shape) > 0.5
    upper = torch.linalg.cholesky(torch.linalg.inv(h.moments), upper=True)
    for block in (1, 4, 128):
        found, kept = SparseGPT(block=block).swept(weight, upper, Unstructured(), 0.5, keep)
        assert torch.equal(kept, keep)
        expected = weight.clone()
        for g, r, j in itertools.product(range(GROUPS), range(ROWS), range(COLUMNS)):
            if not bool(keep[g, r, j]):
                # Only what lies to the right may still change.
                inverse = torch.linalg.inv(h.moments[g, j:, j:])
                expected[g, r, j:] -= expected[g, r, j] / inverse[0, 0] * inverse[:, 0]
                expected[g, r, j] = 0
        assert torch.allclose(found, expected)


@pytest.mark.parametrize("pattern", [Unstructured(), Unstructured(per_row=True), NM(2, 4), Blocks(1, 3)])
@pytest.mark.parametrize(
    "method", [ALPS(), Masked(), Masked(refit=True), Masked("wanda"), Masked("wanda", refit=True), SparseGPT(block=4)]
)
def test_every_method_makes_every_pattern_exactly(
    method: Method, pattern: Pattern, inputs: Tensor, weight: Tensor
) -> None:
    found = method.prepared(weight, curvature(inputs), pattern)(0.5)
    assert int(found.keep.sum()) == int(pattern.keep(torch.rand(weight.shape), 0.5).sum())
    assert (found.matrix[~found.keep] == 0).all()
    assert (found.matrix[found.keep] != 0).all()
    masked = torch.where(found.keep, weight, torch.zeros_like(weight))
    assert error(inputs, found.matrix - weight) <= error(inputs, masked - weight) * (1 + 1e-9)
    assert torch.equal(method.prepared(weight, curvature(inputs), pattern)(0.0).keep, torch.ones_like(found.keep))


@pytest.mark.parametrize("method", [Masked(), Masked("wanda"), OBC(), ALPS(), Masked(refit=True)])
def test_order_of_rows_and_columns_does_not_matter(method: Method, inputs: Tensor, weight: Tensor) -> None:
    rows, columns = torch.randperm(ROWS), torch.randperm(COLUMNS)
    found = method.prepared(weight, curvature(inputs), Unstructured())(0.6)
    permuted = method.prepared(weight[:, rows][..., columns], curvature(inputs[..., columns]), Unstructured())(0.6)
    assert torch.equal(permuted.keep, found.keep[:, rows][..., columns])
    assert torch.allclose(permuted.matrix, found.matrix[:, rows][..., columns])


def test_wanda_is_obs_where_inputs_do_not_correlate(inputs: Tensor, weight: Tensor) -> None:
    diagonal = torch.diag_embed(curvature(inputs).moments.diagonal(dim1=1, dim2=2))
    h = Curvature(diagonal, torch.zeros(GROUPS, COLUMNS, dtype=torch.bool), SAMPLES, "fc")
    for pattern in (Unstructured(), Unstructured(per_row=True), NM(2, 4)):
        wanda = Masked("wanda").prepared(weight, h, pattern)(0.5)
        exact = OBC(damping=0).prepared(weight, h, pattern)(0.5)
        assert torch.equal(wanda.keep, exact.keep)
        assert torch.allclose(wanda.matrix, exact.matrix)


def test_ria_is_its_definition(inputs: Tensor, weight: Tensor) -> None:
    found = Masked("ria").scores(weight, curvature(inputs))
    for g, r, c in itertools.product(range(GROUPS), range(ROWS), range(COLUMNS)):
        size = weight[g].abs()
        norm = inputs[g, :, c].square().mean().sqrt()
        expected = (size[r, c] / size[r].sum() + size[r, c] / size[:, c].sum()) * norm.sqrt()
        assert float(found[g, r, c]) == pytest.approx(float(expected))
    with pytest.raises(ArgumentError, match="'taylor'"):
        Masked("taylor").prepared(weight, curvature(inputs), Unstructured())  # type: ignore[arg-type]


def test_obc_beats_what_looks_at_each_weight_once(inputs: Tensor, weight: Tensor) -> None:
    h = curvature(inputs)
    least = error(inputs, OBC(damping=0).prepared(weight, h, Unstructured())(0.6).matrix - weight)
    for method in (Masked(refit=True, damping=0), Masked("wanda", refit=True, damping=0), SparseGPT(damping=0)):
        assert least < error(inputs, method.prepared(weight, h, Unstructured())(0.6).matrix - weight)


@pytest.mark.parametrize("pattern", [Unstructured(), NM(1, 3), Blocks(1, 3)])
def test_alps_lies_between_the_best_of_all_masks_and_the_largest_weights(pattern: Pattern) -> None:
    generator = torch.Generator().manual_seed(0)
    columns, shares = 6, []
    masks = torch.tensor(list(itertools.product([False, True], repeat=columns)))
    for _ in range(20):
        x = torch.randn(1, 40, columns, generator=generator).double()
        x = x @ torch.randn(columns, columns, generator=generator).double()
        w = torch.randn(1, 1, columns, generator=generator).double()
        h, sparsity = curvature(x), 2 / 3 if isinstance(pattern, NM) else 0.5
        found = ALPS(damping=0).prepared(w, h, pattern)(sparsity)
        largest = Masked(refit=True, damping=0).prepared(w, h, pattern)(sparsity)
        # A mask is the pattern's own if the pattern, asked by it, gives it back.
        own = [m for m in masks if torch.equal(pattern.keep(m[None, None].double(), sparsity)[0, 0], m)]
        best = min(error(x, lstsq(x, w, m[None, None]) - w) for m in own)
        now, start = error(x, found.matrix - w), error(x, largest.matrix - w)
        assert best * (1 - 1e-9) <= now <= start * (1 + 1e-9)
        assert torch.allclose(found.matrix, lstsq(x, w, found.keep), atol=1e-7)
        shares.append((start - now) / (start - best) if start > best * (1 + 1e-9) else 1.0)
    assert np.mean(shares) > 0.6


def test_a_step_of_alps_is_the_papers(inputs: Tensor, weight: Tensor) -> None:
    """W = (H + rI)^-1 (H W0 - V + r D), D the largest of W + V / r, V += r (W - D): solved, not diagonalised."""
    h = curvature(inputs)
    scale = h.moments.diagonal(dim1=1, dim2=2).sqrt()
    moments = h.moments / scale.unsqueeze(1) / scale.unsqueeze(2)
    dense = (weight * scale.unsqueeze(1)).mT
    sparse, dual, rho = dense, torch.zeros_like(dense), 0.1
    seen = torch.ones_like(dense, dtype=torch.bool)
    for step in range(1, 10):
        system = moments + rho * torch.eye(COLUMNS).double()
        free = torch.linalg.solve(system, moments @ dense - dual + rho * sparse)
        aim = free + dual / rho
        keep = aim.abs() >= aim.abs().flatten().sort().values[-int(0.4 * aim.numel() + 0.5)]
        sparse = torch.where(keep, aim, 0.0)
        dual = dual + rho * (free - sparse)
        found = ALPS(damping=0, steps=step).prepared(weight, h, Unstructured())(0.6)
        largest = Masked(refit=True, damping=0).prepared(weight, h, Unstructured())(0.6)
        fitted = lstsq(inputs, weight, keep.mT)
        if error(inputs, fitted - weight) < error(inputs, largest.matrix - weight):
            assert torch.equal(found.keep, keep.mT)
        else:
            assert torch.equal(found.keep, largest.keep)
        if step % 3 == 0:
            changed = int((keep != seen).sum()) / int(keep.sum())
            rho *= 1.3 if changed >= 0.1 else 1.2 if changed >= 0.005 else 1.1
            seen = keep


@pytest.mark.parametrize(("changed", "rise"), [(0.1, 1.3), (0.0999, 1.2), (0.005, 1.2), (0.0049, 1.1)])
def test_the_penalty_of_alps_rises_as_the_paper_says(changed: float, rise: float) -> None:
    assert alps._rise(changed) == rise


def test_alps_refuses_no_steps() -> None:
    with pytest.raises(ArgumentError, match="steps=0"):
        ALPS(steps=0)


def test_obc_refuses_blocks(inputs: Tensor, weight: Tensor) -> None:
    with pytest.raises(ArgumentError, match="blocks 2x2"):
        OBC().prepared(weight, curvature(inputs), Blocks(2, 2))


@pytest.mark.parametrize("method", [OBC(), ALPS(), SparseGPT(), Masked(refit=True)])
def test_dead_inputs_lose_their_weights_and_singular_moments_are_damped(method: Method, weight: Tensor) -> None:
    x = torch.randn(SAMPLES, 1, GROUPS, COLUMNS, dtype=torch.float64)
    x[..., 2] = 0
    x[..., 4] = x[..., 3]
    h = curvature_of(seen_rows(x, 0).fit.gram, "fc", centred=False)
    assert h.dead.nonzero()[:, 1].unique().tolist() == [2]
    found = method.prepared(weight, h, Unstructured())(0.5)
    assert (found.matrix[..., 2] == 0).all()
    assert found.matrix.isfinite().all()
    bare = OBC(damping=0).prepared(weight, h, Unstructured())(0.5)
    assert "damping raised from 0 to 1e-08" in bare.note
    assert bare.matrix.isfinite().all()


def test_constant_inputs_are_dead_where_constants_do_not_matter() -> None:
    x = torch.randn(40, 1, 1, 3)
    x[..., 1] = 5.0
    gram = seen_rows(x, 0).fit.gram
    assert not curvature_of(gram, "fc", centred=False).dead.any()
    assert curvature_of(gram, "fc", centred=True).dead[0].tolist() == [False, True, False]


def test_hopeless_moments_name_layer_samples_and_damping() -> None:
    h = Curvature(
        torch.tensor([[[1.0, 3.0], [3.0, 1.0]]]).double(), torch.zeros(1, 2, dtype=torch.bool), 17, "block.fc"
    )
    with pytest.raises(NumericalError, match=r"'block.fc' \(2 columns, 17 positions\).*damping of 1 of"):
        h.damped(0.01)
    infinite = Curvature(torch.full((1, 2, 2), torch.inf).double(), h.dead, 17, "block.fc")
    with pytest.raises(NumericalError, match="not finite"):
        infinite.damped(0.01)
