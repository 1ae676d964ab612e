"""What parameters go through before they are used: norms, ties, sharing, freezing, hooks, writing in place."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize, spectral_norm, weight_norm


class Normed(nn.Module):
    """Linear and convolution whose weights are normalised, by parametrization or by the older hooks."""

    def __init__(self, normed: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        self.c1 = normed(nn.Conv2d(3, 10, 3, padding=1))
        self.c2 = normed(nn.Conv2d(10, 12, 3, padding=1))
        self.fc1, self.fc2 = normed(nn.Linear(12, 9)), nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.leaky_relu(self.c2(functional.leaky_relu(self.c1(x), 0.1)), 0.1)
        return self.fc2(self.fc1(x.mean((2, 3))).relu())


def old_weight_norm() -> nn.Module:
    return Normed(weight_norm)


def new_weight_norm() -> nn.Module:
    return Normed(parametrizations.weight_norm)


def old_spectral_norm() -> nn.Module:
    return Normed(spectral_norm)


def new_spectral_norm() -> nn.Module:
    return Normed(parametrizations.spectral_norm)


class Symmetric(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.triu() + x.triu(1).transpose(-1, -2)


class Parametrized(nn.Module):
    """A weight that is kept symmetric, between layers that are not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(6, 10), nn.Linear(10, 10), nn.Linear(10, 8)
        self.head = nn.Linear(8, 3)
        parametrize.register_parametrization(self.middle, "weight", Symmetric())

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.middle(self.first(x).tanh())).relu())


class Raw(nn.Module):
    """No modules at all: parameters, in the class, in a list and in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(10, 6))
        self.layers = nn.ParameterList([nn.Parameter(torch.randn(10, 12)), nn.Parameter(torch.randn(12, 8))])
        self.extras = nn.ParameterDict({"scale": nn.Parameter(torch.ones(12)), "shift": nn.Parameter(torch.zeros(8))})
        self.temperature = nn.Parameter(torch.tensor(1.5))
        self.out = nn.Parameter(torch.randn(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = functional.linear(x, self.w).relu()
        x = torch.addmm(self.extras["shift"], (x @ self.layers[0]) * self.extras["scale"], self.layers[1])
        return torch.mm(x.tanh(), self.out) / self.temperature.exp()


class Tied(nn.Module):
    """An autoencoder whose decoder is the transposed encoder, and a module that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.twice = nn.Linear(6, 10), nn.Linear(10, 10)
        self.bias = nn.Parameter(torch.zeros(6))
        self.wide = nn.Linear(10, 14)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(self.twice(self.enter(x)).tanh()).tanh()
        x = x + functional.linear(torch.relu(self.wide(x)), self.wide.weight.t())
        return functional.linear(x, self.enter.weight.t(), self.bias)


class Siamese(nn.Module):
    """Two inputs through one tower; distance, product and both vectors to the head."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 9), nn.Tanh())
        self.head = nn.Sequential(nn.Linear(36, 7), nn.PReLU(7), nn.Linear(7, 2))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        a, b = self.tower(a), self.tower(b)
        return self.head(torch.cat([a, b, (a - b).abs(), a * b], dim=1))


class InPlace(nn.Module):
    """Every kind of writing in place: activations, `add_`, indexing, `copy_`, `out`-less buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 10), nn.Linear(10, 10), nn.Linear(10, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu_(self.a(x))
        y = self.b(x)
        y.mul_(0.5).add_(x)
        y = functional.hardtanh_(y, -2.0, 2.0)
        z = self.c(y)
        z[:, 0] = 0.0
        z *= 2
        return self.head(z)


class WritesSlices(nn.Module):
    """Results of two layers written side by side into a tensor made of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 7), nn.Linear(6, 5), nn.Linear(12, 3)
        self.inner = nn.Linear(3, 9)
        self.last = nn.Linear(9, 2)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.zeros(len(x), 12, dtype=x.dtype)
        both[:, :7] = self.a(x)
        both[:, 7:] = self.b(x)
        return self.last(self.inner(self.head(both.relu())).relu())


class Buffers(nn.Module):
    """Constants in buffers: a mean to take off, a mask over channels, a counter."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 12), nn.Linear(12, 8), nn.Linear(8, 3)
        self.register_buffer("mean", torch.rand(6))
        self.register_buffer("mask", (torch.arange(12) % 3 > 0).float())
        self.register_buffer("scale", torch.rand(8), persistent=False)
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.head(self.b(self.a(x - self.mean).relu() * self.mask) * self.scale)


class Frozen(nn.Module):
    """A frozen backbone run without gradients, with low-rank adapters beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 10)).requires_grad_(False)
        self.base = nn.Linear(10, 9).requires_grad_(False)
        self.lora_a, self.lora_b = nn.Linear(10, 4, bias=False), nn.Linear(4, 9, bias=False)
        self.head = nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.backbone(x)
        x = x.detach()
        return self.head((self.base(x) + self.lora_b(self.lora_a(x)) * 0.5).relu())


class Bags(nn.Module):
    """`EmbeddingBag` by offsets and by rows, their sums interacting (as in recommenders)."""

    def __init__(self) -> None:
        super().__init__()
        self.sums = nn.EmbeddingBag(40, 8, mode="sum")
        self.means = nn.EmbeddingBag(30, 8, mode="mean")
        self.dense = nn.Linear(5, 8)
        self.up, self.head = nn.Linear(11, 10), nn.Linear(10, 1)

    def forward(self, dense: Tensor, rows: Tensor, flat: Tensor, offsets: Tensor) -> Tensor:
        vectors = torch.stack([self.dense(dense), self.sums(rows), self.means(flat, offsets)], dim=1)
        pairs = torch.bmm(vectors, vectors.transpose(1, 2))
        i, j = torch.tril_indices(3, 3, -1)
        return self.head(self.up(torch.cat([vectors[:, 0], pairs[:, i, j]], dim=1)).relu()).sigmoid()


class Complex(nn.Module):
    """Complex weights, and a Fourier layer that mixes frequencies."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(5, 8)
        self.mix = nn.Parameter(torch.randn(8, 10, 4, dtype=torch.complex128))
        self.side = nn.Linear(8, 10)
        self.late = nn.Linear(10, 6, dtype=torch.complex128)
        self.down, self.head = nn.Linear(6, 7), nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        spectrum = torch.fft.rfft(x, dim=1)[:, :4]
        y = torch.fft.irfft(torch.einsum("bmi,iom->bmo", spectrum, self.mix), n=x.shape[1], dim=1)
        y = self.late((y + self.side(x)).to(torch.complex128)).abs()
        return self.head(self.down(y).relu())


class HalfInside(nn.Module):
    """A part that casts to single precision and back."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 12), nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        kind = x.dtype
        y = self.a(x)
        gate = torch.sigmoid(y.to(torch.bfloat16).to(torch.float32)).to(kind).round(decimals=1)
        return self.head(self.b(y * gate).type_as(x).relu())


class Functional(nn.Module):
    """Weights held by modules, used through `functional` with the modules' own attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.fc1, self.fc2 = nn.Linear(8 * 9, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        c, n = self.conv, self.norm
        x = functional.conv2d(x, c.weight, c.bias, c.stride, c.padding, c.dilation, c.groups)
        x = functional.batch_norm(x, n.running_mean, n.running_var, n.weight, n.bias, self.training, 0.1, n.eps)
        x = functional.adaptive_max_pool2d(functional.mish(x), 3).reshape(-1, self.conv.out_channels * 9)
        x = functional.linear(x, self.fc1.weight, self.fc1.bias).relu()
        return functional.linear(x, self.fc2.weight, self.fc2.bias)
