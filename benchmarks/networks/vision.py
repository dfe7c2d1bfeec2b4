"""Image networks with random weights, as people write them in PyTorch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def conv_norm(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, act: Any = None) -> nn.Module:
    """Return Conv, BatchNorm and an activation."""
    layers = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, *([act] if act is not None else []))


class Bottleneck(nn.Module):
    """He et al. 2015, arXiv:1512.03385, figure 5."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            conv_norm(inputs, width, 1, act=nn.ReLU(inplace=True)),
            conv_norm(width, width, 3, stride, act=nn.ReLU(inplace=True)),
            conv_norm(width, width * 4, 1),
        )
        same = inputs == width * 4 and stride == 1
        self.shortcut = nn.Identity() if same else conv_norm(inputs, width * 4, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.branch(x) + self.shortcut(x))


def resnet50(depth: float = 1.0) -> nn.Module:
    """ResNet-50; ``depth`` scales the blocks of each stage."""
    layers: list[nn.Module] = [conv_norm(3, 64, 7, 2, act=nn.ReLU(inplace=True)), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for stage, count in enumerate((3, 4, 6, 3)):
        for index in range(max(1, int(count * depth))):
            width = 64 << stage
            layers.append(Bottleneck(channels, width, 2 if stage and index == 0 else 1))
            channels = width * 4
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000))


class InvertedResidual(nn.Module):
    """Sandler et al. 2018, arXiv:1801.04381, figure 4."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = inputs * expand
        layers = [conv_norm(inputs, hidden, 1, act=nn.ReLU6())] if expand != 1 else []
        layers += [conv_norm(hidden, hidden, 3, stride, hidden, nn.ReLU6()), conv_norm(hidden, outputs, 1)]
        self.branch = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x) if self.residual else self.branch(x)


class MobileNetV2(nn.Module):
    """MobileNetV2; ``depth`` scales the repeats."""

    def __init__(self, depth: float = 1.0) -> None:
        super().__init__()
        layers, channels = [conv_norm(3, 32, 3, 2, act=nn.ReLU6())], 32
        stages = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2))
        for expand, outputs, count, stride in (*stages, (6, 320, 1, 1)):
            for index in range(max(1, int(count * depth))):
                layers.append(InvertedResidual(channels, outputs, stride if index == 0 else 1, expand))
                channels = outputs
        self.features = nn.Sequential(*layers, conv_norm(channels, 1280, 1, act=nn.ReLU6()))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, 1000))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean([2, 3]))


class UNet(nn.Module):
    """Ronneberger et al. 2015, arXiv:1505.04597, with padding, BatchNorm and sizes met by padding the upsampled."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()

        def double(inputs: int, outputs: int) -> nn.Module:
            return nn.Sequential(
                conv_norm(inputs, outputs, 3, act=nn.ReLU(inplace=True)),
                conv_norm(outputs, outputs, 3, act=nn.ReLU(inplace=True)),
            )

        widths = [width << i for i in range(5)]
        self.down = nn.ModuleList(double(a, b) for a, b in zip([3, *widths], widths, strict=False))
        self.lift = nn.ModuleList(nn.ConvTranspose2d(w * 2, w, 2, 2) for w in reversed(widths[:-1]))
        self.up = nn.ModuleList(double(w * 2, w) for w in reversed(widths[:-1]))
        self.head = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for block in self.down:
            x = block(x if not skips else F.max_pool2d(x, 2))
            skips.append(x)
        skips.pop()
        for lift, block in zip(self.lift, self.up, strict=True):
            x, skip = lift(x), skips.pop()
            height, width = skip.size(2) - x.size(2), skip.size(3) - x.size(3)
            x = F.pad(x, [width // 2, width - width // 2, height // 2, height - height // 2])
            x = block(torch.cat([skip, x], dim=1))
        return self.head(x)


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of an image."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    """Liu et al. 2022, arXiv:2201.03545, figure 4."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.expand, self.contract = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(0.1 * torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(x).permute(0, 2, 3, 1)
        y = self.gamma * self.contract(F.gelu(self.expand(self.norm(y))))
        return x + y.permute(0, 3, 1, 2)


def convnext_tiny(depth: float = 1.0) -> nn.Module:
    """ConvNeXt-T; ``depth`` scales the blocks of each stage."""
    layers: list[nn.Module] = []
    channels = 3
    for width, count in zip((96, 192, 384, 768), (3, 3, 9, 3), strict=True):
        stem = channels == 3
        sample = nn.Conv2d(channels, width, 4, 4) if stem else nn.Conv2d(channels, width, 2, 2)
        norm = LayerNorm2d(width if stem else channels, eps=1e-6)
        layers += [sample, norm] if stem else [norm, sample]
        layers += [ConvNeXtBlock(width) for _ in range(max(1, int(count * depth)))]
        channels = width
    pool = [nn.AdaptiveAvgPool2d(1), LayerNorm2d(768, eps=1e-6), nn.Flatten(1)]
    return nn.Sequential(*layers, *pool, nn.Linear(768, 1000))


class C2f(nn.Module):
    """Split, a chain of residual 3x3 pairs, everything concatenated: the block of recent YOLO backbones."""

    def __init__(self, inputs: int, outputs: int, count: int, residual: bool) -> None:
        super().__init__()
        half = outputs // 2
        self.first = conv_norm(inputs, outputs, 1, act=nn.SiLU())
        self.chain = nn.ModuleList(
            nn.Sequential(conv_norm(half, half, 3, act=nn.SiLU()), conv_norm(half, half, 3, act=nn.SiLU()))
            for _ in range(count)
        )
        self.last = conv_norm((2 + count) * half, outputs, 1, act=nn.SiLU())
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.first(x).chunk(2, 1))
        for block in self.chain:
            parts.append(parts[-1] + block(parts[-1]) if self.residual else block(parts[-1]))
        return self.last(torch.cat(parts, 1))


class SPPF(nn.Module):
    """Three max-pools in a row, concatenated."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = conv_norm(width, width // 2, 1, act=nn.SiLU())
        self.last = conv_norm(width * 2, width, 1, act=nn.SiLU())
        self.pool = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.first(x)]
        for _ in range(3):
            parts.append(self.pool(parts[-1]))
        return self.last(torch.cat(parts, 1))


class Yolo(nn.Module):
    """A detector in the manner of YOLOv8-n: C2f backbone, feature pyramid, decoupled head with box distribution."""

    BINS = 16

    def __init__(self, classes: int = 80) -> None:
        super().__init__()
        silu = nn.SiLU()
        first = (conv_norm(3, 16, 3, 2, act=silu), conv_norm(16, 32, 3, 2, act=silu))
        self.stem = nn.Sequential(*first, C2f(32, 32, 1, True))
        self.p3 = nn.Sequential(conv_norm(32, 64, 3, 2, act=silu), C2f(64, 64, 2, True))
        self.p4 = nn.Sequential(conv_norm(64, 128, 3, 2, act=silu), C2f(128, 128, 2, True))
        self.p5 = nn.Sequential(conv_norm(128, 256, 3, 2, act=silu), C2f(256, 256, 1, True), SPPF(256))
        self.up4, self.up3 = C2f(384, 128, 1, False), C2f(192, 64, 1, False)
        self.down4, self.down5 = C2f(192, 128, 1, False), C2f(384, 256, 1, False)
        self.to4, self.to5 = conv_norm(64, 64, 3, 2, act=silu), conv_norm(128, 128, 3, 2, act=silu)
        self.box = nn.ModuleList(self.head(w, 64, 4 * self.BINS) for w in (64, 128, 256))
        self.score = nn.ModuleList(self.head(w, 80, classes) for w in (64, 128, 256))
        self.register_buffer("bins", torch.arange(self.BINS, dtype=torch.float32), persistent=False)
        self.classes = classes

    @staticmethod
    def head(inputs: int, width: int, outputs: int) -> nn.Module:
        silu = nn.SiLU()
        layers = (conv_norm(inputs, width, 3, act=silu), conv_norm(width, width, 3, act=silu))
        return nn.Sequential(*layers, nn.Conv2d(width, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        p3 = self.p3(self.stem(x))
        p4 = self.p4(p3)
        p5 = self.p5(p4)
        n4 = self.up4(torch.cat([F.interpolate(p5, scale_factor=2.0, mode="nearest"), p4], 1))
        n3 = self.up3(torch.cat([F.interpolate(n4, scale_factor=2.0, mode="nearest"), p3], 1))
        n4 = self.down4(torch.cat([self.to4(n3), n4], 1))
        n5 = self.down5(torch.cat([self.to5(n4), p5], 1))
        levels, anchors, strides = (n3, n4, n5), [], []
        outputs = []
        for level, box, score, stride in zip(levels, self.box, self.score, (8, 16, 32), strict=True):
            both = torch.cat([box(level), score(level)], 1)
            height, width = both.shape[-2:]
            outputs.append(both.view(both.shape[0], 4 * self.BINS + self.classes, -1))
            sy, sx = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
            anchors.append(torch.stack([sx, sy], 0).view(2, -1))
            strides.append(torch.full((height * width,), float(stride)))
        distribution, scores = torch.cat(outputs, 2).split((4 * self.BINS, self.classes), 1)
        batch, _, count = distribution.shape
        distance = distribution.view(batch, 4, self.BINS, count).transpose(2, 1).softmax(1)
        distance = (distance * self.bins.view(1, -1, 1, 1)).sum(1)
        anchor, stride = torch.cat(anchors, 1).unsqueeze(0), torch.cat(strides)
        near, far = distance.chunk(2, 1)
        low, high = anchor - near, anchor + far
        boxes = torch.cat([(low + high) / 2, high - low], 1) * stride
        return torch.cat([boxes, scores.sigmoid()], 1)
