"""Tracing needs the weights' memory once: what it adds to the resident memory of a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import re, sys
from pathlib import Path
import torch
from torch import nn
import secateur as sc

def peak():
    # Not getrusage: its peak is that of the process which started this one, if that was greater.
    return 1024 * int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])

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


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read off Linux's /proc")
@pytest.mark.parametrize(("device", "width", "most"), [("cpu", 2048, 0.25), ("meta", 32768, 0.001)])
def test_tracing_does_not_copy_the_weights(device: str, width: int, most: float) -> None:
    """400 MB of weights on the CPU; 100 GB of them on the meta device, where they are nowhere."""
    command = [sys.executable, "-c", SCRIPT, device, str(width)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert float(done.stdout) < most
