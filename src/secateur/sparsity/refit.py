"""The best values for the weights that are kept, whichever they are: exact least squares on the support."""

import torch
from torch import Tensor

CHUNK = 2**26
"""Elements of all systems that are solved at once (float64)."""


def refitted(matrix: Tensor, moments: Tensor, keep: Tensor) -> Tensor:
    """Argmin tr((V - W) H (V - W)') over all V that are zero where `keep` is False.

    The rows are independent: v_S = (WH)_S (H_SS)⁻¹.

    Args:
        matrix: W: float64 (groups, rows, columns).
        moments: H: float64 (groups, columns, columns), positive definite.
        keep: bool (groups, rows, columns).

    >>> H = torch.tensor([[[2.0, 1.0], [1.0, 2.0]]], dtype=torch.float64)
    >>> refitted(torch.ones(1, 1, 2).double(), H, torch.tensor([[[True, False]]])).round(decimals=9).tolist()
    [[[1.5, 0.0]]]
    """
    groups, rows, columns = matrix.shape
    sides = (matrix @ moments).reshape(-1, columns)
    kept = keep.reshape(-1, columns)
    width = int(kept.sum(1).max()) if kept.numel() else 0
    found = torch.zeros_like(sides)
    if width == 0:
        return found.reshape(matrix.shape)
    group = torch.arange(groups, device=matrix.device).repeat_interleave(rows)
    # Rows keep different numbers: what a row has too much is an equation of its own, v = 0.
    order = kept.int().argsort(dim=1, descending=True, stable=True)[:, :width]
    real = kept.gather(1, order)
    for part in torch.split(torch.arange(len(sides), device=matrix.device), max(1, CHUNK // width**2)):
        at, is_real = order[part], real[part]
        systems = moments[group[part, None, None], at.unsqueeze(2), at.unsqueeze(1)]
        systems = torch.where(is_real.unsqueeze(1) & is_real.unsqueeze(2), systems, torch.zeros_like(systems))
        systems += torch.diag_embed((~is_real).double())
        right = (sides[part].gather(1, at) * is_real).unsqueeze(2)
        values = torch.cholesky_solve(right, torch.linalg.cholesky(systems)).squeeze(2)
        found[part] = found[part].scatter(1, at, values * is_real)
    return found.reshape(matrix.shape)
