"""Import torchvision where its compiled operators do not fit the installed torch (a CPU wheel, say).

Exactly two operators must exist for torchvision to import; with its own library loaded this does nothing.
"""

import functools

import torch
from torch import Tensor


@functools.cache
def allow_torchvision() -> None:
    """Define what torchvision needs at import, once and only if it is missing."""
    try:
        import torchvision
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.impl("nms", non_maximum_suppression, "CPU")
        _KEPT.append(library)
        import torchvision  # noqa: F401


_KEPT: list[torch.library.Library] = []


def non_maximum_suppression(dets: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Greedy suppression of overlapping boxes (n, 4); positions of those that stay, best first."""
    left, top, right, bottom = dets.unbind(1)
    area = (right - left) * (bottom - top)
    order, kept = scores.argsort(descending=True).tolist(), []
    while order:
        best, *rest = order
        kept.append(best)
        others = torch.tensor(rest, dtype=torch.long)
        width = (torch.minimum(right[best], right[others]) - torch.maximum(left[best], left[others])).clamp(min=0)
        height = (torch.minimum(bottom[best], bottom[others]) - torch.maximum(top[best], top[others])).clamp(min=0)
        overlap = width * height / (area[best] + area[others] - width * height)
        order = others[overlap <= iou_threshold].tolist()
    return torch.tensor(kept, dtype=torch.long)
