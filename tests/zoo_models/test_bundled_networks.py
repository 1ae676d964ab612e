"""What the bundled networks compute, and the names that a checkpoint needs."""

import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from secateur.measures.macs import count_macs
from secateur.zoo.digits import digits_cnn, digits_lstm
from secateur.zoo.resnet import BasicBlock, resnet20

WEIGHTS = os.environ.get("SECATEUR_RESNET20_WEIGHTS", "")
IMAGES = os.environ.get("SECATEUR_CIFAR10_TEST", "")


def test_option_a_shortcut_is_a_strided_copy_between_zero_channels() -> None:
    block = BasicBlock(4, 8, 2).eval()
    torch.nn.init.zeros_(block.bn2.weight)
    x = torch.rand(1, 4, 6, 6)
    y = block(x)
    assert torch.equal(y[:, 2:6], x[:, :, ::2, ::2])
    assert not y[:, :2].any() and not y[:, 6:].any()


def test_state_names_are_those_of_the_common_checkpoint() -> None:
    names = {name.rsplit(".", 1)[0] for name in resnet20().state_dict()}
    blocks = {f"layer{s}.{b}.{p}" for s in (1, 2, 3) for b in (0, 1, 2) for p in ("conv1", "bn1", "conv2", "bn2")}
    assert names == {"conv1", "bn1", "linear"} | blocks


def test_digits_networks_by_hand() -> None:
    cnn, x = digits_cnn(8).eval(), torch.rand(5, 1, 8, 8)
    assert cnn(x).shape == (5, 10)
    assert count_macs(cnn, (x,)) == 5 * (64 * 9 * (8 + 6 * 8 * 8) + 80)
    lstm = digits_lstm(hidden=6).eval()
    assert lstm(x).shape == (5, 10)
    assert sum(p.numel() for p in lstm.parameters()) == 4 * 6 * (8 + 6 + 2) + 4 * 6 * (6 + 6 + 2) + 70


def test_the_lstm_reads_rows_and_decides_after_the_last() -> None:
    lstm, x = digits_lstm().eval(), torch.rand(2, 1, 8, 8)
    steps, _ = lstm.lstm(x[:, 0])
    assert torch.equal(lstm(x), lstm.head(steps[:, 7]))
    assert not torch.allclose(lstm(x), lstm(x.transpose(2, 3)))


@pytest.mark.slow
@pytest.mark.skipif(
    not (WEIGHTS and IMAGES), reason="SECATEUR_RESNET20_WEIGHTS and SECATEUR_CIFAR10_TEST name no files"
)
def test_resnet20_reaches_the_accuracy_of_its_checkpoint() -> None:
    from secateur.cli.batches import TensorBatches
    from secateur.cli.data_sources import parquet_images

    model = resnet20().eval()
    with safe_open(WEIGHTS, "pt") as file:
        model.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 - not a dict
    data = TensorBatches(
        *parquet_images(Path(IMAGES), 0, None), 500, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )
    with torch.no_grad():
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in data)
    assert right / 10_000 == pytest.approx(0.8754, abs=0.001)
