"""A scan that is the same in every process, for tests that end one in the middle."""

import torch
from torch import nn

from secateur.graph.groups import find_groups
from secateur.graph.trace import trace
from secateur.sensitivity.measure import PointStore
from secateur.sensitivity.result import Scan
from secateur.sensitivity.scan import scan

SAMPLES = 120


def scanned(store: PointStore | None = None, *, workers: int = 1) -> Scan:
    """Six groups at three sparsities."""
    torch.manual_seed(0)
    layers = [layer for _ in range(6) for layer in (nn.Linear(12, 12), nn.Tanh())]
    model = nn.Sequential(*layers, nn.Linear(12, 4)).eval()
    x = torch.randn(SAMPLES, 12)
    data = [(part, model(part).detach().argmax(-1)) for part in x.split(40)]
    program = trace(model, (x[:2],))
    groups = find_groups(program)
    scores = {group.name: torch.arange(float(group.size)) for group in groups}
    return scan(program, groups, scores, data, sparsities=(0.3, 0.5, 0.8), workers=workers, store=store)
