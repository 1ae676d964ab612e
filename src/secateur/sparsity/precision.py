"""Full precision of matrix products, where a device would round."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def exact_products() -> Iterator[None]:
    """Meanwhile, no product of float32 matrices or convolution is rounded to TF32."""
    products, convolutions = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = products, convolutions
