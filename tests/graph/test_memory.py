"""Tracing needs the weights' memory once: what it adds to the resident memory of a process of its own."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
import torch
from torch import nn
import secateur as sc

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

def traced(width, layers, device):
    with torch.device(device):
        model = nn.Sequential(*(nn.Linear(width, width) for _ in range(layers))).eval()
        x = torch.zeros(2, width)
    before = peak()
    groups = sc.find_groups(sc.trace(model, (x,)))
    assert len(groups) == layers - 1
    return peak() - before

device, width = sys.argv[1], int(sys.argv[2])
traced(8, 24, device)  # what torch loads when it first exports is not the model's
print(traced(width, 24, device) / (4 * 24 * width * (width + 1)))
"""


@pytest.mark.parametrize(("device", "width", "most"), [("cpu", 2048, 0.25), ("meta", 32768, 0.001)])
def test_tracing_does_not_copy_the_weights(device: str, width: int, most: float) -> None:
    """400 MB of weights on the CPU; 100 GB of them on the meta device, where they are nowhere."""
    command = [sys.executable, "-c", SCRIPT, device, str(width)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert float(done.stdout) < most
