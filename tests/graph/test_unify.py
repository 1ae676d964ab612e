"""Laws of unification, against a union-find on single positions that knows nothing of types."""

import itertools
import math

import torch
from hypothesis import given, settings, strategies as st

from secateur.graph.axes import Axis, Concat, Fixed, Product, leaves, normal_form, positions
from secateur.graph.unify import Unifier


def shapes(total: int) -> list[tuple[int, ...]]:
    """Every way to write `total` as an ordered product of factors above one."""
    found = [(total,)]
    for first in range(2, total):
        if total % first == 0:
            found += [(first, *rest) for rest in shapes(total // first)]
    return found


def splits(total: int) -> list[tuple[int, ...]]:
    """A few ways to cut `total` into segments."""
    return [(total,)] + [(k, total - k) for k in range(1, total)]


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([4, 6, 8, 12, 24, 36]), st.data())
def test_views_refine_to_what_both_can_say(total: int, data: st.DataObject) -> None:
    a, b = (data.draw(st.sampled_from(shapes(total))) for _ in range(2))
    unifier = Unifier()
    left, right = (Product(tuple(unifier.fresh(n) for n in shape)) for shape in (a, b))
    unifier.unify(left, right)
    found = unifier.resolve(left)
    assert found == unifier.resolve(right)
    # The finest free factors are cut at every product that both shapes, together, divide in a chain.
    cuts = {math.prod(a[:k]) for k in range(len(a) + 1)} | {math.prod(b[:k]) for k in range(len(b) + 1)}
    chain = sorted(cuts)
    if all(later % earlier == 0 for earlier, later in itertools.pairwise(chain)):
        expected = [later // earlier for earlier, later in itertools.pairwise(chain)]
        assert [axis.size for axis in leaves(found)] == expected


@settings(max_examples=200, deadline=None)
@given(st.integers(2, 12), st.data())
def test_segments_refine_at_every_boundary(total: int, data: st.DataObject) -> None:
    a, b = (data.draw(st.sampled_from(splits(total))) for _ in range(2))
    unifier = Unifier()
    left, right = (Concat(tuple(unifier.fresh(n) for n in sizes)) for sizes in (a, b))
    unifier.unify(left, right)
    bounds = sorted({sum(s[:k]) for s in (a, b) for k in range(len(s) + 1)})
    expected = [hi - lo for lo, hi in itertools.pairwise(bounds)]
    assert unifier.resolve(left) == unifier.resolve(right)
    # A segment of one position is a number, if it was made by a split.
    found = [axis.size for axis in leaves(unifier.resolve(left))]
    assert [n for n in found if n > 1] == [n for n in expected if n > 1]


def test_positions_agree_with_a_label_tensor() -> None:
    dim = Product((Fixed(2), Concat((Axis(1, 3), Axis(2, 2))), Axis(3, 2)))
    labels = torch.arange(dim.size).reshape(2, 5, 2)
    found = positions(dim)
    for unit in range(3):
        assert sorted(found[1][unit].tolist()) == sorted(labels[:, unit].flatten().tolist())
    for unit in range(2):
        assert sorted(found[2][unit].tolist()) == sorted(labels[:, 3 + unit].flatten().tolist())
        assert sorted(found[3][unit].tolist()) == sorted(labels[:, :, unit].flatten().tolist())


def test_an_axis_in_two_segments_owns_both() -> None:
    axis = Axis(1, 3)
    assert positions(Concat((axis, Fixed(2), axis)))[1].tolist() == [[0, 5], [1, 6], [2, 7]]


def test_layouts_that_do_not_align_are_fixed() -> None:
    unifier = Unifier()
    a, b = Product((unifier.fresh(4), unifier.fresh(3))), Product((unifier.fresh(6), unifier.fresh(2)))
    unifier.unify(a, b)
    assert list(leaves(unifier.resolve(a))) == [] == list(leaves(unifier.resolve(b)))


def test_fixing_reaches_everything_tied() -> None:
    unifier = Unifier()
    a, b, c = (unifier.fresh(6) for _ in range(3))
    unifier.unify(a, b)
    unifier.unify(b, Product((Fixed(2, "gates"), unifier.fresh(3))))
    unifier.unify(c, a)
    unifier.fix(c, "because")
    assert unifier.resolve(a) == Fixed(6)


def test_a_gate_product_splits_into_equal_segments() -> None:
    unifier = Unifier()
    hidden = unifier.fresh(4)
    parts = [unifier.fresh(4) for _ in range(3)]
    unifier.unify(Product((Fixed(3, "gates"), hidden)), Concat(tuple(parts)))
    assert {unifier.resolve(p) for p in parts} == {unifier.resolve(hidden)}


def test_normal_form_distributes_a_leading_concatenation() -> None:
    dim = Product((Concat((Axis(1, 2), Axis(2, 3))), Axis(3, 4)))
    expected = Concat((Product((Axis(1, 2), Axis(3, 4))), Product((Axis(2, 3), Axis(3, 4)))))
    assert normal_form(dim) == expected
    assert {k: v.tolist() for k, v in positions(dim).items()} == {k: v.tolist() for k, v in positions(expected).items()}


def test_two_halves_seen_as_two_rows_are_the_same_units() -> None:
    unifier = Unifier()
    rows, units, first, second = (unifier.fresh(n) for n in (2, 6, 6, 6))
    unifier.unify(Product((rows, units)), Concat((first, second)))
    assert unifier.resolve(first) == unifier.resolve(second) == unifier.resolve(units)
