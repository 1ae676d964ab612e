"""Feed-forward networks with gates, mixers, experts and branches."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class GLU(nn.Module):
    """Gated linear units: functional `glu`, over features and over the channels of a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.conv = nn.Linear(6, 20), nn.Conv1d(10, 24, 3, padding=1)
        self.depthwise, self.norm = nn.Conv1d(12, 12, 3, padding=1, groups=12), nn.BatchNorm1d(12)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.glu(self.up(x), dim=-1).transpose(1, 2)
        x = self.norm(self.depthwise(functional.glu(self.conv(x), dim=1)))
        return self.head(functional.silu(x).mean(2))


class SwiGLU(nn.Module):
    """One matrix for gate and value, split by an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = 20
        self.enter, self.both, self.down = nn.Linear(6, 12), nn.Linear(12, 40), nn.Linear(20, 12)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        both = self.both(x)
        gate, value = both[..., : self.inner], both[..., self.inner :]
        return self.head(x + self.down(functional.silu(gate) * value))


class Highway(nn.Module):
    """`t * h(x) + (1 - t) * x`, several layers deep."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(6, 12)
        self.plain = nn.ModuleList(nn.Linear(12, 12) for _ in range(3))
        self.gates = nn.ModuleList(nn.Linear(12, 12) for _ in range(3))
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for plain, gate in zip(self.plain, self.gates, strict=True):
            t = torch.sigmoid(gate(x))
            x = t * functional.relu(plain(x)) + (1 - t) * x
        return self.head(x)


class GatedResidual(nn.Module):
    """A residual block with a gate over its sum (as in temporal fusion transformers), without the norm."""

    def __init__(self) -> None:
        super().__init__()
        self.skip, self.a, self.b = nn.Linear(6, 10), nn.Linear(6, 14), nn.Linear(14, 10)
        self.context, self.gate = nn.Linear(4, 14, bias=False), nn.Linear(10, 20)
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        y = self.a(x)
        if context is not None:
            y = y + self.context(context)
        value, gate = self.gate(self.b(functional.elu(y))).split([10, 10], dim=-1)
        return self.head(self.skip(x) + value * gate.sigmoid())


class Mixer(nn.Module):
    """MLP-Mixer: an MLP over patches, then one over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 4, 4)
        self.n1, self.n2, self.n3 = nn.LayerNorm(16), nn.LayerNorm(16), nn.LayerNorm(16)
        self.tokens = nn.Sequential(nn.Linear(4, 10), nn.GELU(), nn.Linear(10, 4))
        self.channels = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16))
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).mT
        x = x + self.tokens(self.n1(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.channels(self.n2(x))
        return self.head(self.n3(x).mean(1))


class Maxout(nn.Module):
    """The largest of several linear pieces."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces, self.width = 3, 10
        self.up, self.down = nn.Linear(6, 30), nn.Linear(10, 24)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x).view(-1, self.width, self.pieces).max(dim=2)[0]
        return self.head(self.down(x).view(len(x), 3, 8).amax(1))


class FiLM(nn.Module):
    """Scale and shift of every channel, given by a condition."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2, self.norm = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 8, 3), nn.BatchNorm2d(12, affine=False)
        self.condition = nn.Sequential(nn.Linear(5, 9), nn.SiLU(), nn.Linear(9, 24))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.condition(condition)[:, :, None, None].chunk(2, dim=1)
        x = torch.relu(self.norm(self.c1(x)) * (1 + scale) + shift)
        return self.head(self.c2(x).flatten(2).mean(2))


class Diffusion(nn.Module):
    """A time embedding of sines, added inside residual blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 16
        self.time = nn.Sequential(nn.Linear(16, 20), nn.SiLU(), nn.Linear(20, 12))
        self.enter, self.a, self.b = nn.Conv2d(3, 12, 3, 1, 1), nn.Conv2d(12, 12, 3, 1, 1), nn.Conv2d(12, 12, 3, 1, 1)
        self.leave = nn.Conv2d(12, 3, 3, 1, 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        half = self.width // 2
        angles = t[:, None] * torch.exp(-math.log(1000) * torch.arange(half, dtype=x.dtype) / half)[None]
        time = self.time(torch.cat([angles.sin(), angles.cos()], dim=-1))
        x = self.enter(x)
        x = x + self.b(functional.silu(self.a(x) + time[..., None, None]))
        return self.leave(x)


class Routed(nn.Module):
    """A branch that the values of the input choose: recorded, not exported."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(6, 10)
        self.even, self.odd = nn.Linear(10, 12), nn.Linear(10, 12)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.enter(x).relu()
        y = self.even(y) if x.abs().sum() > 0 else self.odd(y)
        return self.head(y.relu())


class SparseExperts(nn.Module):
    """A loop over experts, each fed the samples that chose it (top two)."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.router = nn.Linear(6, 10), nn.Linear(10, 3)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(10, 14), nn.GELU(), nn.Linear(14, 10)) for _ in range(3))
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        weights, chosen = self.router(x).softmax(-1).topk(2, dim=-1)
        total = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            rows, places = torch.where(chosen == number)
            total.index_add_(0, rows, expert(x[rows]) * weights[rows, places, None])
        return self.head(x + total)


class DenseExperts(nn.Module):
    """Experts as one stacked parameter, all run and mixed with softmax weights."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.router = nn.Linear(6, 10), nn.Linear(6, 3)
        self.up, self.down = nn.Parameter(torch.randn(3, 10, 14)), nn.Parameter(torch.randn(3, 14, 8))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.router(x).softmax(-1)
        y = torch.einsum("bi,eio->beo", self.enter(x), self.up).relu()
        y = torch.matmul(y.transpose(0, 1), self.down).transpose(0, 1)
        return self.head((weights.unsqueeze(-1) * y).sum(1))


class Graph(nn.Module):
    """Graph convolution by an adjacency matrix, and graph attention with pairwise scores."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 12), nn.Linear(12, 10)
        self.left, self.right = nn.Linear(10, 1, bias=False), nn.Linear(10, 1, bias=False)
        self.head = nn.Linear(10, 3)

    def forward(self, nodes: Tensor, adjacency: Tensor) -> Tensor:
        x = torch.relu(adjacency @ self.a(nodes))
        x = self.b(x)
        scores = functional.leaky_relu(self.left(x) + self.right(x).transpose(1, 2), 0.2)
        weights = scores.masked_fill(adjacency == 0, -1e9).softmax(-1)
        return self.head(functional.elu(weights @ x))


class MessagePassing(nn.Module):
    """Messages along edges, gathered by index and scattered by `index_add`."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.message, self.update = nn.Linear(5, 8), nn.Linear(16, 12), nn.Linear(20, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        x = self.enter(nodes)
        source, target = edges
        messages = self.message(torch.cat([x[source], x[target]], dim=-1)).relu()
        total = x.new_zeros(len(x), messages.size(1)).index_add(0, target, messages)
        return self.head(self.update(torch.cat([x, total], dim=-1)).relu())


class DeepSets(nn.Module):
    """A function of sets: summed, and the largest, over elements."""

    def __init__(self) -> None:
        super().__init__()
        self.phi = nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 10))
        self.rho = nn.Sequential(nn.Linear(20, 9), nn.ReLU(), nn.Linear(9, 3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.phi(x)
        return self.rho(torch.cat([y.sum(1), y.max(1).values], dim=-1))


class VAE(nn.Module):
    """Mean and log variance from one layer; the mean alone in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.both = nn.Linear(6, 14), nn.Linear(14, 16)
        self.decoder = nn.Sequential(nn.Linear(8, 12), nn.Softplus(), nn.Linear(12, 6))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = torch.chunk(self.both(self.encoder(x).relu()), 2, dim=1)
        z = mean + torch.randn_like(mean) * (0.5 * log_variance).exp() if self.training else mean
        return self.decoder(z), mean, log_variance


class Radiance(nn.Module):
    """NeRF: positions as sines of powers of two, a skip in the middle, two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(15, 16), nn.Linear(16, 16), nn.Linear(31, 12)
        self.sigma, self.colour = nn.Linear(12, 1), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        coded = torch.cat([x, *(f(x * 2**k) for k in range(2) for f in (torch.sin, torch.cos))], dim=-1)
        y = torch.sin(3 * self.b(self.a(coded).relu()))
        y = self.c(torch.cat([coded, y], -1)).relu()
        return self.sigma(y).squeeze(-1), self.colour(y).sigmoid()


class StateSpace(nn.Module):
    """A selective state space written as a loop (Mamba), with its depthwise convolution and gate."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.states, self.rank = 12, 4, 3
        self.enter, self.in_proj = nn.Linear(5, 8), nn.Linear(8, 24, bias=False)
        self.conv1d = nn.Conv1d(12, 12, 3, padding=2, groups=12)
        self.x_proj, self.dt_proj = nn.Linear(12, 3 + 8, bias=False), nn.Linear(3, 12)
        self.A_log, self.D = nn.Parameter(torch.rand(12, 4)), nn.Parameter(torch.ones(12))
        self.out_proj, self.head = nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        n = x.shape[1]
        value, gate = self.in_proj(x).chunk(2, dim=-1)
        value = functional.silu(self.conv1d(value.transpose(1, 2))[..., :n]).transpose(1, 2)
        dt, b, c = self.x_proj(value).split([self.rank, self.states, self.states], dim=-1)
        dt = functional.softplus(self.dt_proj(dt))
        decay = torch.exp(dt.unsqueeze(-1) * -torch.exp(self.A_log))
        drive = dt.unsqueeze(-1) * b.unsqueeze(2) * value.unsqueeze(-1)
        h = torch.zeros_like(drive[:, 0])
        steps = []
        for t in range(n):
            h = decay[:, t] * h + drive[:, t]
            steps.append((h * c[:, t].unsqueeze(1)).sum(-1))
        y = torch.stack(steps, dim=1) + value * self.D
        return self.head(x + self.out_proj(y * functional.silu(gate)))


class Bilinear(nn.Module):
    """`nn.Bilinear`, a factorisation machine and a deep & cross layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 9), nn.Linear(5, 7)
        self.pair = nn.Bilinear(9, 7, 10)
        self.factors = nn.Parameter(torch.randn(10, 8))
        self.cross, self.head = nn.Linear(10, 10), nn.Linear(11, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        z = self.pair(self.a(x).relu(), self.b(y).relu())
        machine = 0.5 * ((z @ self.factors).pow(2) - z.pow(2) @ self.factors.pow(2)).sum(1, keepdim=True)
        return self.head(torch.cat([z * self.cross(z) + z, machine], dim=1))
