"""What runtimes make of zeros here: torch's own sparse tensors, timed beside the dense model. Nothing is promised."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import SurgeryError
from secateur.graph.copies import copy_of
from secateur.measures.latency import Latency, time_models, verdict
from secateur.types import Note


class CSRLinear(nn.Module):
    """A linear layer whose weight is stored by rows, without its zeros.

    Args:
        linear: what it computes.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*[Cc][Ss][Rr].*beta")
            self.register_buffer("weight", linear.weight.detach().to_sparse_csr())
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())

    def forward(self, inputs: Tensor) -> Tensor:
        """The product over the last dimension."""
        flat = inputs.reshape(-1, inputs.shape[-1])
        outputs: Tensor = torch.sparse.mm(self.weight, flat.T.contiguous()).T
        outputs = outputs if self.bias is None else outputs + self.bias
        return outputs.reshape(*inputs.shape[:-1], -1)


def in_csr(model: nn.Module, least: float = 0.5) -> nn.Module:
    """A copy whose linear layers with at least so many zeros store them by rows (CSR).

    Args:
        model: sparse.
        least: fraction of zeros.

    >>> layer = nn.Linear(2, 1, bias=False)
    >>> _ = nn.init.constant_(layer.weight, 0.0)
    >>> in_csr(nn.Sequential(layer))(torch.ones(1, 2)).tolist()
    [[0.0]]
    """
    copy = copy_of(model)
    for parent in list(copy.modules()):
        for name, child in list(parent.named_children()):
            # Attention of torch's own reads the weight of its last layer rather than calling it.
            if type(child) is not nn.Linear or isinstance(parent, nn.MultiheadAttention):
                continue
            if 1 - int(child.weight.count_nonzero()) / child.weight.numel() >= least:
                setattr(parent, name, CSRLinear(child))
    return copy


def semi_structured(model: nn.Module) -> tuple[nn.Module, tuple[Note, ...]]:
    """A copy whose 2:4 linear layers use torch's semi-structured tensors, and notes on those that cannot.

    Args:
        model: sparse in the pattern 2:4, on a CUDA device of compute capability 8.0 or more, in half precision.

    Raises:
        SurgeryError: the model's device has no kernels for 2:4.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        raise SurgeryError(
            f"the model is on {device}, which has no kernels for 2:4 sparse products; move it to a CUDA device of "
            "compute capability 8.0 (Ampere) or more, in float16 or bfloat16, or use the model as it is: its zeros "
            "are plain numbers"
        )
    copy = copy_of(model)
    notes = []
    for name, module in copy.named_modules():
        if type(module) is nn.Linear and _is_two_of_four(module.weight):
            try:
                packed = torch.sparse.to_sparse_semi_structured(module.weight.detach())
            except (RuntimeError, NotImplementedError) as error:
                notes.append(Note(name, f"left as it was: {error}"))
            else:
                module.weight = nn.Parameter(packed, requires_grad=False)
    return copy, tuple(notes)


def _is_two_of_four(weight: Tensor) -> bool:
    return weight.shape[1] % 4 == 0 and int((weight != 0).reshape(-1, 4).sum(1).max()) <= 2


@dataclass(frozen=True)
class SparseSpeed:
    """Timings of one call, interleaved.

    Attributes:
        dense: the model before.
        zeros: the sparse model with plain tensors.
        csr: with the linear layers stored by rows.
    """

    dense: Latency
    zeros: Latency
    csr: Latency

    def __str__(self) -> str:
        lines = [f"dense           {self.dense.median_s * 1e3:8.3f} ms"]
        for name, found in (("zeros, as is", self.zeros), ("linear in CSR", self.csr)):
            lines.append(f"{name:15} {found.median_s * 1e3:8.3f} ms  {verdict(self.dense, found)}")
        return "\n".join(lines)


def sparse_speed(
    dense: nn.Module, sparse: nn.Module, *, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None
) -> SparseSpeed:
    """Time the dense model, the sparse one, and the sparse one with its linear layers in CSR, on this device.

    Args:
        dense: the model before.
        sparse: `Sparsified.model`.
        args: positional inputs.
        kwargs: inputs by keyword.
    """
    return SparseSpeed(*time_models([dense, sparse, in_csr(sparse)], tuple(args), kwargs))
