"""Offloading: the same bits, in bounded memory, with everything back at the end."""

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.capture import parking as parked
from secateur.capture.parking import Parking, parking, watched
from secateur.errors import ArgumentError
from secateur.progress import Advance

WIDTH, SAMPLES = 64, 80


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


def deep(blocks: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(Block() for _ in range(blocks))).eval()


def convolutional() -> nn.Module:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3, groups=2))
    return nn.Sequential(body, nn.Flatten(), nn.Linear(4 * 4 * 4, 5)).eval()


class Stacked(nn.Module):
    """Recurrent and tied weights, views of one storage, and a read by Python."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(6, 6, 2, batch_first=True), nn.Linear(6, 6)
        self.tied = self.head.weight

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.rnn(x)[0].chunk(2, 1)
        first.mul_(1 + 0.1 * float(second.detach().numpy().mean() > 9))
        return nn.functional.linear(self.head(first + second), self.tied)


def batches_of(*shape: int) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(SAMPLES // 4, *shape) for _ in range(4)]


def state(model: nn.Module) -> list[Tensor]:
    return [t.clone() for t in model.state_dict().values()]


def bytes_alive() -> int:
    """Of all tensors that the interpreter knows, each memory once."""
    storages = {}
    for thing in gc.get_objects():
        # Not isinstance, which asks lazy objects of other libraries for their class.
        if issubclass(type(thing), Tensor) and thing.layout == torch.strided and not thing.is_meta:
            storages[thing.untyped_storage()._cdata] = thing.untyped_storage().nbytes()
    return sum(storages.values())


class Watching:
    """Looks at memory after each weight, when the threads of all batches wait in the middle of the model."""

    def __init__(self) -> None:
        self.start, self.most = bytes_alive(), 0

    def stage(self, name: str, total: int | None) -> Any:
        watching = self

        class Stage:
            def __enter__(self) -> Advance:
                return self.look

            def __exit__(self, *_: object) -> None:
                pass

            def look(self, steps: int = 1, note: str = "") -> None:
                watching.most = max(watching.most, bytes_alive() - watching.start)

        return Stage()


MODELS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "deep": (deep, (WIDTH,)),
    "convolutional": (convolutional, (3, 8, 8)),
    "stacked": (Stacked, (4, 6)),
}


@pytest.mark.parametrize("memory_bytes", [0, 20_000])
@pytest.mark.parametrize("name", MODELS)
def test_results_are_equal_bit_for_bit_and_the_model_is_as_before(name: str, memory_bytes: int, tmp_path: Path) -> None:
    make, shape = MODELS[name]
    torch.manual_seed(0)
    model, batches = make().eval(), batches_of(*shape)
    before, wanted = state(model), sc.Sparsity(0.5)
    plain = sc.sparsify(model, wanted, calibration=batches)
    lean = sc.sparsify(model, wanted, calibration=batches, offload=sc.Offload(tmp_path, memory_bytes))
    assert all(torch.equal(a, b) for a, b in zip(state(plain.model), state(lean.model), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, state(model), strict=True))
    assert all(torch.equal(plain.masks[k], lean.masks[k]) for k in plain.masks)
    assert plain.weights == lean.weights
    assert list(tmp_path.iterdir()) == []


def test_memory_does_not_grow_with_depth(tmp_path: Path) -> None:
    weight = WIDTH * WIDTH * 4

    def peak(blocks: int, offload: sc.Offload | None) -> int:
        model, batches = deep(blocks), batches_of(WIDTH)
        wanted = sc.Sparsity(0.5, method=sc.Masked())
        gc.collect()
        watching = Watching()
        sc.sparsify(model, wanted, calibration=batches, progress=watching, offload=offload)
        return watching.most + sum(t.nbytes for t in model.state_dict().values())

    shallow, lean = (peak(blocks, sc.Offload(tmp_path, weight)) for blocks in (1, 4))
    # Of six more weights there are six more masks, of one byte for four; else a dense and a sparse copy of each.
    assert lean - shallow < 6 * 1.1 * weight / 4
    assert peak(4, None) - peak(1, None) > 6 * 2 * weight
    # What is kept, all batches' activations of a few calls, and second moments of one weight's inputs in float64.
    assert shallow < weight + 3 * SAMPLES * WIDTH * 4 + 12 * 8 * (WIDTH + 1) ** 2


def test_what_is_kept_has_a_bound_and_the_oldest_goes(tmp_path: Path) -> None:
    with parking(sc.Offload(tmp_path, memory_bytes=8)) as held, watched(held):
        assert held is not None
        a, b, c = (torch.full((1,), float(k)) for k in range(3))
        sizes = [t.untyped_storage().nbytes() for t in (a, b, c)]
        b.add_(0)
        a.add_(5)
        again = [t.untyped_storage().nbytes() for t in (a, b, c)]
        b.neg_()
        row = c.view(1, 1)
        row.add_(10)
        assert (a.tolist(), b.tolist(), c.tolist()) == ([5.0], [-1.0], [12.0])
    assert (sizes, again) == ([0, 4, 4], [4, 4, 0])
    assert (a.tolist(), b.tolist(), c.tolist()) == ([5.0], [-1.0], [12.0])


def test_files_go_with_the_tensors(tmp_path: Path) -> None:
    held = Parking(tmp_path, 0)
    a = torch.ones(3)
    held.admit([a])
    assert len(list(tmp_path.iterdir())) == 1
    del a
    assert list(tmp_path.iterdir()) == []
    assert held.here == 0 and not held.slots


def test_a_disk_that_is_full_is_an_error_and_leaves_the_model_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batches = convolutional(), batches_of(3, 8, 8)
    before, left = state(model), [40]
    write = Path.write_bytes

    def fail(path: Path, data: Any) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(parked.Path, "write_bytes", fail)
    with pytest.raises(OSError, match="No space left"):
        sc.sparsify(model, sc.Sparsity(0.5), calibration=batches, offload=sc.Offload(tmp_path, 0))
    assert all(torch.equal(a, b) for a, b in zip(before, state(model), strict=True))


def test_where_to_is_checked(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="a folder that exists"):
        sc.Offload(tmp_path / "none")
    with pytest.raises(ArgumentError, match="memory_bytes=-1"):
        sc.Offload(tmp_path, -1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_part_that_runs_unseen_is_refused(tmp_path: Path) -> None:
    scripted = torch.jit.trace(nn.Linear(3, 3), torch.zeros(1, 3))
    model = nn.Sequential(nn.Linear(3, 3), scripted)
    with pytest.raises(ArgumentError, match="TorchScript"):
        sc.sparsify(model, sc.Sparsity(0.5), calibration=[torch.randn(8, 3)], offload=sc.Offload(tmp_path))
