"""A saved model comes back the same, or not at all."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

from networks import CASES, Case, built
from secateur.errors import SavedModelError
from secateur.graph.groups import find_groups
from secateur.graph.trace import trace
from secateur.storage.saved_model import load_model, save_model
from secateur.surgery.cut import cut
from secateur.surgery.plan import Plan, plan


def saved(case: Case, directory: Path) -> tuple[nn.Module, nn.Module]:
    model = built(case)
    program = trace(model, (case.inputs(2),))
    groups = find_groups(program)
    chosen = plan(groups, {g.name: torch.rand(g.size) for g in groups}, sparsity=0.5)
    small = cut(model, chosen, program=program)
    save_model(small, directory, original=model, plan=chosen)
    return model, small


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_round_trip(case: Case, tmp_path: Path) -> None:
    _, small = saved(case, tmp_path)
    loaded = load_model(lambda: built(case, seed=9), tmp_path)
    x = case.inputs(3)
    assert torch.equal(loaded.eval()(x), small(x))
    assert [n for n, _ in loaded.named_parameters()] == [n for n, _ in small.named_parameters()]
    for a, b in zip(loaded.modules(), small.modules(), strict=True):
        sizes = [k for k, v in vars(b).items() if type(v) is int or k in {"parts", "normalized_shape"}]
        assert {k: getattr(a, k) for k in sizes} == {k: getattr(b, k) for k in sizes}


def test_no_pickle_is_written(tmp_path: Path) -> None:
    saved(CASES[0], tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["manifest.json", "weights.safetensors"]
    assert Plan.from_json(json.loads((tmp_path / "manifest.json").read_text())["plan"]).keep


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 0.999), st.integers(0, 7), st.booleans())
def test_every_flip_and_truncation_is_caught(
    tmp_path_factory: pytest.TempPathFactory, at: float, bit: int, cut_off: bool
) -> None:
    folder = tmp_path_factory.mktemp("saved")
    saved(CASES[0], folder)
    path = folder / "weights.safetensors"
    data = bytearray(path.read_bytes())
    where = int(at * len(data))
    if cut_off:
        data = data[:where]
    else:
        data[where] ^= 1 << bit
    path.write_bytes(data)
    with pytest.raises(SavedModelError, match="truncated or was changed"):
        load_model(lambda: built(CASES[0]), folder)


def test_another_architecture_is_named(tmp_path: Path) -> None:
    saved(CASES[0], tmp_path)
    with pytest.raises(SavedModelError, match=r"holds a torch.nn.*Sequential; the factory gives a torch.*Linear"):
        load_model(lambda: nn.Linear(2, 2), tmp_path)
    with pytest.raises(SavedModelError, match=r"'4.weight' is in the factory's model but not in the file|'4.bias'"):
        load_model(lambda: nn.Sequential(*built(CASES[0]), nn.ReLU(), nn.Linear(4, 4)), tmp_path)


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(SavedModelError, match="not a saved model"):
        load_model(lambda: built(CASES[0]), tmp_path)
    saved(CASES[0], tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(SavedModelError, match="damaged"):
        load_model(lambda: built(CASES[0]), tmp_path)
    saved(CASES[0], tmp_path)
    (tmp_path / "weights.safetensors").unlink()
    with pytest.raises(SavedModelError, match="missing"):
        load_model(lambda: built(CASES[0]), tmp_path)


class Settings:
    """A plain object, as configurations are."""

    def __init__(self, width: int) -> None:
        self.width, self.parts = width, [width, 4]


class Configured(nn.Module):
    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.settings = Settings(width)
        self.up, self.down = nn.Linear(3, width), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).view(-1, self.settings.parts[0]).view(-1, self.settings.width))


def test_sizes_in_settings_and_lists_come_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Configured().eval()
    program = trace(model, (torch.zeros(2, 3),))
    groups = find_groups(program)
    chosen = plan(groups, {g.name: torch.rand(g.size) for g in groups}, sparsity=0.5)
    small = cut(model, chosen, program=program)
    save_model(small, tmp_path, original=model, plan=chosen)
    loaded = load_model(Configured, tmp_path)
    assert (loaded.settings.width, loaded.settings.parts) == (3, [3, 4])
    x = torch.randn(5, 3)
    assert torch.equal(loaded(x), small(x))


def test_a_size_that_the_factory_does_not_have_is_refused(tmp_path: Path) -> None:
    saved(CASES[0], tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["rewrites"].append(["", "__class__", 3])
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(SavedModelError, match="'__class__'"):
        load_model(lambda: built(CASES[0]), tmp_path)
