"""Test data are known again, and spent once."""

import itertools
import math
from pathlib import Path

import pytest
import torch

from secateur.data import Batch
from secateur.errors import StoreError
from secateur.storage.data_uses import USES, DataMark, mark, spend


def data(rows: slice, *, batch: int = 7, seed: int = 0, flip: bool = False) -> DataMark:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1000, 3, generator=generator)[rows]
    y = torch.arange(1000)[rows]
    if flip:
        order = torch.randperm(len(x), generator=generator)
        x, y = x[order], y[order]
    return mark(Batch((a,), {}, b) for a, b in zip(x.split(batch), y.split(batch), strict=True))


WHOLE = data(slice(None))


def use(path: Path, claim: str = "first", mark: DataMark = WHOLE, **more):
    return spend(path, mark, claim=claim, about=f"model {claim}", allowed=0.05, **more)


def test_order_and_batches_do_not_matter_but_content_does() -> None:
    assert data(slice(None), batch=64, flip=True) == WHOLE
    assert data(slice(None), seed=1).digest != WHOLE.digest
    assert WHOLE.samples == 1000


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (data(slice(0, 500)), True),
        (data(slice(0, 30)), True),
        (data(slice(None), seed=1), False),
    ],
)
def test_shared_samples_are_found(other: DataMark, expected: bool) -> None:
    assert other.shares(WHOLE) == WHOLE.shares(other) == expected


def test_a_small_part_of_many_samples_is_found() -> None:
    """A share of the smaller set, not of both together: 40 samples of 20,000 are all used."""
    x = torch.randn(20_000, 2, generator=torch.Generator().manual_seed(0))
    whole = mark([Batch((x,), {}, torch.zeros(len(x)))])
    fresh = torch.randn(20_000, 2, generator=torch.Generator().manual_seed(1))
    for start in range(0, 2_000, 40):
        part, other = (mark([Batch((rows[start : start + 40],), {}, torch.zeros(40))]) for rows in (x, fresh))
        assert part.shares(whole) and whole.shares(part)
        assert not other.shares(whole)
    # Both sketches are cut off: what lies beyond the end of one says nothing.
    half = mark([Batch((x[:10_000],), {}, torch.zeros(10_000))])
    assert half.shares(whole) and not half.shares(mark([Batch((x[10_000:],), {}, torch.zeros(10_000))]))


def test_what_lies_beyond_the_end_of_a_sketch_is_unknown_not_new() -> None:
    """One in a hundred of the small set lies where the sketch of the large one reaches, and is in it."""
    large = DataMark(1_000_000, "", tuple(f"{k:016x}" for k in range(4096)))
    small = DataMark(300, "", tuple(f"{k:016x}" for k in [1, 2, 3, *range(5000, 5297)]))
    assert small.shares(large) and large.shares(small)


def test_disjoint_halves_share_nothing() -> None:
    assert not data(slice(0, 500)).shares(data(slice(500, 1000)))


def test_a_second_use_names_the_first_and_the_remedy(tmp_path: Path) -> None:
    assert use(tmp_path).level == 0.05
    with pytest.raises(StoreError, match=r"for model first, at level 0.05.*nothing is left.*use fresh test data"):
        use(tmp_path, "second")
    with pytest.raises(StoreError, match=r"on 20\d\d-\d\d-\d\dT"):
        use(tmp_path, "second", data(slice(0, 500)))
    # Fresh data are not concerned, and a refused test is not written down.
    assert use(tmp_path, "second", data(slice(None), seed=1)).number == 1


def test_the_same_test_again_is_no_second_use(tmp_path: Path) -> None:
    assert use(tmp_path) == use(tmp_path)
    assert use(tmp_path, mark=data(slice(None), batch=100, flip=True)).level == 0.05


def test_levels_add_up_to_what_is_allowed(tmp_path: Path) -> None:
    assert use(tmp_path, "a", level=0.02).number == 1
    assert use(tmp_path, "b", level=0.02).number == 2
    with pytest.raises(StoreError, match=r"sum to 0.06, above 1 - confidence = 0.05: pass spend=0.01,"):
        use(tmp_path, "c", level=0.02)
    assert use(tmp_path, "c", level=0.01).number == 3
    # A lower confidence leaves more.
    assert spend(tmp_path, WHOLE, claim="d", about="d", allowed=0.1, level=0.05).number == 4


def test_a_sequence_of_levels_never_runs_out(tmp_path: Path) -> None:
    levels = [use(tmp_path, str(k), level="sequence").level for k in range(1, 30)]
    assert levels == pytest.approx([6 * 0.05 / (math.pi * k) ** 2 for k in range(1, 30)])
    assert all(a > b for a, b in itertools.pairwise(levels)) and sum(levels) < 0.05
    assert use(tmp_path, "3", level="sequence").level == levels[2]


def test_the_steps_of_a_sequence_are_one_use(tmp_path: Path) -> None:
    first = use(tmp_path, "one", level=0.03)
    assert use(tmp_path, "two", after="one") == use(tmp_path, "three", after="two") == first
    assert use(tmp_path, "two", after="one") == first
    with pytest.raises(StoreError, match="after this step of the sequence, model two was tested"):
        use(tmp_path, "other", after="one")
    assert use(tmp_path, "second", level=0.02).number == 2


def test_damage_is_named(tmp_path: Path) -> None:
    use(tmp_path)
    (tmp_path / USES).write_text('{"uses": [{"claim": 3')
    with pytest.raises(StoreError, match="is damaged"):
        use(tmp_path, "second")
