"""Convolutional networks: detectors' blocks, shortcuts, attention over channels, shuffles, decoders."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class ConvUnit(nn.Module):
    """Convolution, batch norm, SiLU: the unit of the YOLO networks."""

    def __init__(self, into: int, out: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(into, out, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out)
        self.act = nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    def __init__(self, width: int, *, shortcut: bool = True) -> None:
        super().__init__()
        self.cv1, self.cv2 = ConvUnit(width, width, 3), ConvUnit(width, width, 3)
        self.add = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.cv2(self.cv1(x))
        return x + y if self.add else y


class C2f(nn.Module):
    """YOLOv8's block: chunk, a chain of bottlenecks, every stage concatenated."""

    def __init__(self, into: int, out: int, n: int = 2, *, by_split: bool = False) -> None:
        super().__init__()
        self.c, self.by_split = out // 2, by_split
        self.cv1 = ConvUnit(into, 2 * self.c)
        self.cv2 = ConvUnit((2 + n) * self.c, out)
        self.m = nn.ModuleList(Bottleneck(self.c) for _ in range(n))

    def forward(self, x: Tensor) -> Tensor:
        x = self.cv1(x)
        y = list(x.split((self.c, self.c), 1)) if self.by_split else list(x.chunk(2, 1))
        y.extend(m(y[-1]) for m in self.m)
        return self.cv2(torch.cat(y, 1))


class C3(nn.Module):
    """YOLOv5's cross-stage block."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        half = out // 2
        self.cv1, self.cv2, self.cv3 = ConvUnit(into, half), ConvUnit(into, half), ConvUnit(2 * half, out)
        self.m = nn.Sequential(Bottleneck(half), Bottleneck(half))

    def forward(self, x: Tensor) -> Tensor:
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), dim=1))


class SPPF(nn.Module):
    """Pooling three times over, all four stages concatenated."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cv1, self.cv2 = ConvUnit(width, width // 2), ConvUnit(width * 2, width)
        self.m = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.cv1(x)
        y1 = self.m(x)
        y2 = self.m(y1)
        return self.cv2(torch.cat([x, y1, y2, self.m(y2)], 1))


class Detect(nn.Module):
    """A decoupled head: boxes as distributions (DFL), and classes, for each level."""

    def __init__(self, widths: tuple[int, ...], classes: int = 3, bins: int = 4) -> None:
        super().__init__()
        self.nc, self.reg_max, self.no = classes, bins, classes + bins * 4
        self.box = nn.ModuleList(nn.Sequential(ConvUnit(w, 12, 3), nn.Conv2d(12, 4 * bins, 1)) for w in widths)
        self.cls = nn.ModuleList(nn.Sequential(ConvUnit(w, 14, 3), nn.Conv2d(14, classes, 1)) for w in widths)
        self.dfl = nn.Conv2d(bins, 1, 1, bias=False).requires_grad_(False)
        self.dfl.weight.data[:] = torch.arange(bins, dtype=torch.float).view(1, bins, 1, 1)

    def forward(self, levels: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        maps = [torch.cat((b(x), c(x)), 1) for b, c, x in zip(self.box, self.cls, levels, strict=True)]
        flat = torch.cat([m.view(m.shape[0], self.no, -1) for m in maps], 2)
        box, cls = flat.split((self.reg_max * 4, self.nc), 1)
        b, _, a = box.shape
        distances = self.dfl(box.view(b, 4, self.reg_max, a).transpose(2, 1).softmax(1)).view(b, 4, a)
        return torch.cat((distances, cls.sigmoid()), 1), maps


class Yolo(nn.Module):
    """Backbone, top-down and bottom-up neck, three levels of heads."""

    def __init__(self, *, by_split: bool = False) -> None:
        super().__init__()
        self.stem = nn.Sequential(ConvUnit(3, 8, 3, 2), ConvUnit(8, 16, 3, 2), C2f(16, 16, by_split=by_split))
        self.p4 = nn.Sequential(ConvUnit(16, 24, 3, 2), C3(24, 24))
        self.p5 = nn.Sequential(ConvUnit(24, 32, 3, 2), SPPF(32))
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.n4, self.n3 = C2f(56, 24, 1, by_split=by_split), C2f(40, 16, 1, by_split=by_split)
        self.down3, self.o4 = ConvUnit(16, 16, 3, 2), C2f(40, 24, 1, by_split=by_split)
        self.head = Detect((16, 24, 32))

    def forward(self, x: Tensor) -> Any:
        p3 = self.stem(x)
        p4 = self.p4(p3)
        p5 = self.p5(p4)
        n4 = self.n4(torch.cat([self.up(p5), p4], 1))
        n3 = self.n3(torch.cat([self.up(n4), p3], 1))
        o4 = self.o4(torch.cat([self.down3(n3), n4], 1))
        return self.head([n3, o4, p5])


class YoloV3Head(nn.Module):
    """Anchors: the map is viewed as (anchor, output), the anchors lie in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.na, self.no = 3, 7
        self.body = nn.Sequential(ConvUnit(3, 12, 3, 2), ConvUnit(12, 16, 3, 2), C3(16, 16))
        self.detect = nn.Conv2d(16, self.na * self.no, 1)
        self.register_buffer("anchors", torch.rand(1, self.na, 1, 1, 2))

    def forward(self, x: Tensor) -> Tensor:
        y = self.detect(self.body(x))
        b, _, h, w = y.shape
        y = y.view(b, self.na, self.no, h, w).permute(0, 1, 3, 4, 2).contiguous()
        rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        grid = torch.stack((columns, rows), 2).view(1, 1, h, w, 2).to(y.dtype)
        xy = (y[..., 0:2].sigmoid() * 2 - 0.5 + grid) * 8
        wh = (y[..., 2:4].sigmoid() * 2) ** 2 * self.anchors
        return torch.cat((xy, wh, y[..., 4:].sigmoid()), -1).view(b, -1, self.no)


class SqueezeExcite(nn.Module):
    def __init__(self, width: int, ratio: int = 4) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, width // ratio), nn.Linear(width // ratio, width)

    def forward(self, x: Tensor) -> Tensor:
        b, c, _, _ = x.size()
        y = functional.adaptive_avg_pool2d(x, 1).view(b, c)
        y = torch.sigmoid(self.fc2(torch.relu(self.fc1(y)))).view(b, c, 1, 1)
        return x * y.expand_as(x)


class SEResidual(nn.Module):
    """Inverted residuals with squeeze and excitation, and a dropped path."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvUnit(3, 12, 3)
        self.expand, self.depthwise = ConvUnit(12, 24), ConvUnit(24, 24, 3, groups=24)
        self.se, self.project = SqueezeExcite(24), nn.Conv2d(24, 12, 1)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + functional.dropout(self.project(self.se(self.depthwise(self.expand(x)))), 0.1, self.training)
        return self.head(x.mean(dim=[-2, -1]))


class ChannelShuffle(nn.Module):
    """Grouped convolutions with their channels shuffled between, by view and transpose."""

    def __init__(self, *, functionally: bool = False) -> None:
        super().__init__()
        self.groups, self.functionally = 3, functionally
        self.c1 = nn.Conv2d(3, 12, 3, padding=1)
        self.g1 = nn.Conv2d(12, 18, 1, groups=3)
        self.depthwise = nn.Conv2d(18, 18, 3, padding=1, groups=18)
        self.g2 = nn.Conv2d(18, 12, 1, groups=3)
        self.head = nn.Linear(12, 5)

    def shuffle(self, x: Tensor) -> Tensor:
        if self.functionally:
            return functional.channel_shuffle(x, self.groups)
        b, c, h, w = x.size()
        return x.view(b, self.groups, c // self.groups, h, w).transpose(1, 2).contiguous().view(b, -1, h, w)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c1(x).relu()
        x = x + self.g2(self.depthwise(self.shuffle(self.g1(x).relu())))
        return self.head(x.amax((2, 3)))


class PixelShuffle(nn.Module):
    """Super-resolution: features, then sub-pixel convolution, also the inverse at the start."""

    def __init__(self) -> None:
        super().__init__()
        self.fold = nn.PixelUnshuffle(2)
        self.c1, self.c2 = nn.Conv2d(12, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.up, self.unfold = nn.Conv2d(16, 6 * 4, 3, padding=1), nn.PixelShuffle(2)
        self.last = nn.Conv2d(6, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.c1(self.fold(x))
        y = y + self.c2(functional.leaky_relu(y, 0.1))
        y = self.last(self.unfold(self.up(y)))
        return y + functional.interpolate(x, size=y.shape[-2:], mode="bilinear", align_corners=False)


class UNet(nn.Module):
    """Down, up by transposed convolution, skips by concatenation."""

    def __init__(self, *, bilinear: bool = False) -> None:
        super().__init__()
        self.d1, self.d2, self.mid = self.pair(3, 8), self.pair(8, 12), self.pair(12, 16)
        self.up2 = nn.Upsample(scale_factor=2, mode="bilinear") if bilinear else nn.ConvTranspose2d(16, 12, 2, 2)
        self.up1 = nn.Upsample(scale_factor=2, mode="bilinear") if bilinear else nn.ConvTranspose2d(12, 8, 2, 2)
        self.u2, self.u1 = self.pair(28 if bilinear else 24, 12), self.pair(20 if bilinear else 16, 8)
        self.head = nn.Conv2d(8, 2, 1)

    @staticmethod
    def pair(into: int, out: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(into, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU(inplace=True), nn.Conv2d(out, out, 3, 1, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        a = self.d1(x)
        b = self.d2(functional.max_pool2d(a, 2))
        y = self.up2(self.mid(functional.avg_pool2d(b, 2)))
        y = self.u2(torch.cat([b, y], dim=1))
        return self.head(self.u1(torch.cat([self.up1(y), a], dim=1)))


class DenseBlock(nn.Module):
    """Each layer reads all before it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(8 + 6 * k), nn.ReLU(), nn.Conv2d(8 + 6 * k, 6, 3, padding=1)) for k in range(3)
        )
        self.transition = nn.Conv2d(26, 10, 1)
        self.head = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return self.head(functional.adaptive_avg_pool2d(self.transition(torch.cat(features, 1)), (1, 1)).flatten(1))


class OptionA(nn.Module):
    """A shortcut without weights: a strided slice, padded with zeros by a lambda that was given the width."""

    def __init__(self) -> None:
        super().__init__()
        self.c0, self.c1, self.c2 = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, 1, 1)
        self.n1, self.n2 = nn.BatchNorm2d(16), nn.BatchNorm2d(16)
        self.shortcut = lambda x: functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4), "constant", 0)
        self.inner = nn.Conv2d(16, 10, 1)
        self.head = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.c0(x))
        x = functional.relu(self.n2(self.c2(functional.relu(self.n1(self.c1(x))))) + self.shortcut(x))
        y = self.inner(x)
        return self.head(functional.avg_pool2d(y, y.size()[3]).view(y.size(0), -1))


class ShuffledHalves(nn.Module):
    """Blocks of a ShuffleNet: half of the channels pass, half are computed anew, then both are shuffled."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(3, 16, 3, padding=1)
        self.blocks = nn.ModuleList([nn.Conv2d(16, 16, 1) for _ in range(2)])
        self.depthwise, self.head = nn.Conv2d(32, 32, 3, 2, groups=32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shuffled(self.left(x).relu(), self.right(x).relu())
        for block in self.blocks:
            kept, changed = x.chunk(2, dim=1)
            x = self.shuffled(kept, block(changed).relu())
        return self.head(self.depthwise(x).mean((2, 3)))

    @staticmethod
    def shuffled(a: Tensor, b: Tensor) -> Tensor:
        x = torch.cat([a, b], dim=1)
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


class UnevenChunks(nn.Module):
    """Channels in three pieces, the last one narrower, each with a layer of its own; then split by an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.piece = nn.Conv2d(3, 22, 3, padding=1), 9
        self.layers = nn.ModuleList([nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 9, 1)])
        self.mix = nn.Conv2d(23, 23, 1)
        self.ends = nn.ModuleList([nn.Conv2d(9, 7, 1), nn.Conv2d(9, 7, 1), nn.Conv2d(5, 7, 1)])
        self.head = nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        pieces = self.stem(x).relu().chunk(3, dim=1)
        x = torch.cat([layer(piece) for layer, piece in zip(self.layers, pieces, strict=True)], dim=1)
        pieces = self.mix(x).relu().split(self.piece, dim=1)
        y = sum(end(piece) for end, piece in zip(self.ends, pieces, strict=True))
        return self.head(y.relu().mean((2, 3)))


class WeighedDepths(nn.Module):
    """Features of three depths, weighed by a convolution that has the depths for channels and features for places."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, 12), nn.Linear(12, 12), nn.Linear(12, 12)])
        self.weigh, self.head = nn.Conv1d(3, 1, 1), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        depths = []
        for layer in self.layers:
            x = layer(x).tanh()
            depths.append(x)
        return self.head(self.weigh(torch.stack(depths, dim=1)).squeeze(1))


class Autoencoder(nn.Module):
    """Strided convolutions down to a vector and transposed ones back, by view of an attribute's size."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 12
        self.down = nn.Sequential(nn.Conv2d(3, 8, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(8, 12, 4, 2, 1), nn.ReLU())
        self.code = nn.Linear(12 * 4 * 4, 9)
        self.decode = nn.Linear(9, 12 * 4 * 4)
        self.up = nn.Sequential(nn.ConvTranspose2d(12, 8, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(8, 3, 4, 2, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        code = self.code(self.down(x).flatten(1))
        return self.up(self.decode(code).view(-1, self.width, 4, 4)).tanh(), code


class GroupedTransposed(nn.Module):
    """Grouped and depthwise transposed convolutions, dilation, and 3D."""

    def __init__(self) -> None:
        super().__init__()
        self.c1 = nn.Conv3d(2, 12, 3, padding=1)
        self.grouped = nn.Conv3d(12, 12, 3, padding=2, dilation=2, groups=2)
        self.up = nn.ConvTranspose3d(12, 18, 2, stride=2, groups=3)
        self.depthwise = nn.ConvTranspose3d(18, 18, 2, stride=2, groups=18)
        self.last = nn.Conv3d(18, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.max_pool3d(self.grouped(functional.elu(self.c1(x))), 2)
        return self.last(functional.avg_pool3d(self.depthwise(self.up(y).relu_()), 2))


class WaveNet(nn.Module):
    """Causal dilated convolutions with gates, residual and skip paths."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(3, 8, 1)
        self.filters = nn.ModuleList(nn.Conv1d(8, 12, 2, dilation=2**k) for k in range(3))
        self.gates = nn.ModuleList(nn.Conv1d(8, 12, 2, dilation=2**k) for k in range(3))
        self.residuals = nn.ModuleList(nn.Conv1d(12, 8, 1) for _ in range(3))
        self.skips = nn.ModuleList(nn.Conv1d(12, 10, 1) for _ in range(3))
        self.head = nn.Conv1d(10, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        total = 0
        for k, (f, g, r, s) in enumerate(zip(self.filters, self.gates, self.residuals, self.skips, strict=True)):
            padded = functional.pad(x, (2**k, 0))
            y = torch.tanh(f(padded)) * torch.sigmoid(g(padded))
            total = total + s(y)
            x = x + r(y)
        return self.head(functional.relu(total))


class ChannelsLast(nn.Module):
    """Weights and activations in channels_last memory."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(ConvUnit(3, 12, 3), ConvUnit(12, 16, 3, 2), nn.Conv2d(16, 8, 1, bias=False))
        self.head = nn.Linear(8, 5)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x.to(memory_format=torch.channels_last))
        return self.head(y.permute(0, 2, 3, 1).reshape(len(x), -1, y.shape[1]).mean(1))


class ChannelAttention(nn.Module):
    """CBAM: average and maximum through one shared MLP, then a map over space; and ECA's 1D convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.c0, self.c1, self.c2 = (nn.Conv2d(i, o, 3, padding=1) for i, o in ((3, 9), (9, 16), (16, 12)))
        self.shared = nn.Sequential(nn.Conv2d(16, 4, 1, bias=False), nn.ReLU(), nn.Conv2d(4, 16, 1, bias=False))
        self.space = nn.Conv2d(2, 1, 7, padding=3)
        self.eca = nn.Conv1d(1, 1, 3, padding=1, bias=False)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c1(self.c0(x).relu())
        x = x * torch.sigmoid(self.shared(x.mean((2, 3), keepdim=True)) + self.shared(x.amax((2, 3), keepdim=True)))
        y = self.c2(x * torch.sigmoid(self.space(torch.cat([x.mean(1, True), x.max(1, True)[0]], 1))))
        weights = self.eca(y.mean((2, 3)).unsqueeze(1)).transpose(1, 2).unsqueeze(-1)
        return self.head((y * weights.sigmoid()).flatten(2).sum(-1))


class Blurred(nn.Module):
    """Anti-aliased pooling: a fixed kernel in a buffer, expanded to as many channels as there are."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 8, 3, padding=1)
        kernel = torch.tensor([1.0, 2.0, 1.0])
        self.register_buffer("kernel", (kernel[:, None] * kernel[None]) / 16, persistent=False)
        self.head = nn.Linear(8, 5)

    def blur(self, x: Tensor) -> Tensor:
        c = x.shape[1]
        padded = functional.pad(x, (1, 1, 1, 1), mode="reflect")
        return functional.conv2d(padded, self.kernel[None, None].expand(c, 1, 3, 3), stride=2, groups=c)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blur(self.c2(self.blur(self.c1(x).relu())).relu()).mean((2, 3)))


class Norms(nn.Module):
    """Group, instance, layer (over channels and space) and local response norm, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2, self.c3, self.c4 = (nn.Conv2d(n, 12, 3, padding=1) for n in (3, 12, 12, 12))
        self.group, self.instance = nn.GroupNorm(4, 12), nn.InstanceNorm2d(12, affine=True)
        self.layer, self.local = nn.LayerNorm([12, 8, 8]), nn.LocalResponseNorm(3)
        self.last, self.head = nn.Conv2d(12, 10, 1), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.instance(self.c2(self.group(self.c1(x)).relu())).relu()
        x = self.local(self.c4(self.layer(self.c3(x)).relu()))
        return self.head(self.last(x).relu().mean((2, 3)))


class ASPP(nn.Module):
    """Atrous pyramid with an image-level branch that is resized back."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvUnit(3, 12, 3, 2)
        self.branches = nn.ModuleList(nn.Conv2d(12, 7, 3, padding=d, dilation=d) for d in (1, 2, 4))
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(12, 7, 1), nn.ReLU())
        self.project, self.head = ConvUnit(28, 10), nn.Conv2d(10, 4, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.stem(x)
        size = y.shape[-2:]
        maps = [branch(y) for branch in self.branches]
        maps.append(functional.interpolate(self.pool(y), size=size, mode="bilinear", align_corners=False))
        y = self.head(self.project(torch.cat(maps, dim=1)))
        return {"out": functional.interpolate(y, size=x.shape[-2:], mode="bilinear", align_corners=False)}


class SelectiveKernel(nn.Module):
    """Two branches, mixed channel by channel with weights that a small network gives (softmax over branches)."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 12
        self.a, self.b = ConvUnit(3, 12, 3), ConvUnit(3, 12, 5)
        self.fc1, self.fc2 = nn.Linear(12, 8), nn.Linear(8, 24)
        self.head = nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.stack([self.a(x), self.b(x)], dim=1)
        pooled = both.sum(1).mean((-2, -1))
        weights = self.fc2(self.fc1(pooled).relu()).view(-1, 2, self.width, 1, 1).softmax(dim=1)
        return self.head((both * weights).sum(dim=1))


class RepVGG(nn.Module):
    """Three parallel branches: 3x3, 1x1 and a bare batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvUnit(3, 12, 3)
        self.dense = nn.Sequential(nn.Conv2d(12, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12))
        self.point = nn.Sequential(nn.Conv2d(12, 12, 1, bias=False), nn.BatchNorm2d(12))
        self.identity = nn.BatchNorm2d(12)
        self.last, self.head = nn.Conv2d(12, 9, 1), nn.Linear(9, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(self.dense(x) + self.point(x) + self.identity(x))
        return self.head(torch.logsumexp(self.last(x).flatten(2), dim=2) - math.log(64))


class Ghost(nn.Module):
    """Half the channels computed, half made from them by cheap depthwise filters, the surplus cut off."""

    def __init__(self) -> None:
        super().__init__()
        self.out = 14
        self.primary = ConvUnit(3, 8)
        self.cheap = ConvUnit(8, 8, 3, groups=8)
        self.head = nn.Conv2d(14, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.primary(x)
        return self.head(torch.cat([a, self.cheap(a)], dim=1)[:, : self.out, :, :])


class Involution(nn.Module):
    """A kernel for each place and group, generated from the features; applied through unfold."""

    def __init__(self) -> None:
        super().__init__()
        self.groups, self.kernel = 4, 3
        self.stem, self.reduce = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 6, 1)
        self.span = nn.Conv2d(6, 9 * 4, 1)
        self.head = nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        b, c, h, w = x.shape
        weights = self.span(self.reduce(x).relu()).view(b, self.groups, self.kernel**2, h, w).unsqueeze(2)
        patches = functional.unfold(x, self.kernel, padding=1)
        patches = patches.view(b, self.groups, c // self.groups, self.kernel**2, h, w)
        return self.head((weights * patches).sum(dim=3).view(b, c, h, w))
