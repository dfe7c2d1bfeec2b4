"""Convolutional networks with random weights whose normalizations have measured their statistics, as in training.

With statistics drawn at random a deep network fades or grows until its output no longer depends on the input, and then
its quantization error says nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from networks import vision

BATCHES, BATCH, SIZE = 2, 8, 224


def images(count: int) -> Tensor:
    """Return random images, [count, 3, SIZE, SIZE]: noise of five sizes, the coarser the stronger."""
    layers = (F.interpolate(torch.randn(count, 3, s, s), SIZE, mode="bilinear") for s in (4, 14, 56, 112, SIZE))
    mixed = sum(noise / 2**index for index, noise in enumerate(layers))
    assert isinstance(mixed, Tensor)
    return mixed


def settle(model: nn.Module) -> nn.Module:
    """Draw scales and shifts, then let each BatchNormalization measure mean and variance of what reaches it."""
    norms = [module for module in model.eval().modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.normal_(norm.weight, 1.0, 0.1)
        nn.init.normal_(norm.bias, 0.0, 0.1)
        norm.momentum = None  # the mean over all batches
        norm.train()
    with torch.no_grad():
        for _ in range(BATCHES):
            model(images(BATCH))
    model.settled = True
    return model.eval()


def resnet50(depth: float = 1.0) -> nn.Module:
    """ResNet-50: He et al. 2015, arXiv:1512.03385."""
    return settle(vision.resnet50(depth))


class SqueezeExcite(nn.Module):
    """Hu et al. 2017, arXiv:1709.01507, as EfficientNet has it: two 1x1 layers and a sigmoid."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.expand(F.silu(self.reduce(F.adaptive_avg_pool2d(x, 1)))))


class MBConv(nn.Module):
    """Tan and Le 2019, arXiv:1905.11946: widen, depth-wise, squeeze-and-excite, narrow."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = inputs * expand
        layers = [vision.conv_norm(inputs, hidden, 1, act=nn.SiLU())] if expand != 1 else []
        layers += [vision.conv_norm(hidden, hidden, kernel, stride, hidden, nn.SiLU())]
        layers += [SqueezeExcite(hidden, max(1, inputs // 4)), vision.conv_norm(hidden, outputs, 1)]
        self.branch, self.residual = nn.Sequential(*layers), stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x) if self.residual else self.branch(x)


def efficientnet_b0(depth: float = 1.0) -> nn.Module:
    """EfficientNet-B0: Tan and Le 2019, arXiv:1905.11946, table 1."""
    layers, channels = [vision.conv_norm(3, 32, 3, 2, act=nn.SiLU())], 32
    stages = (
        (1, 3, 1, 16, 1),
        (6, 3, 2, 24, 2),
        (6, 5, 2, 40, 2),
        (6, 3, 2, 80, 3),
        (6, 5, 1, 112, 3),
        (6, 5, 2, 192, 4),
    )
    for expand, kernel, stride, outputs, count in (*stages, (6, 3, 1, 320, 1)):
        for index in range(max(1, int(count * depth))):
            layers.append(MBConv(channels, outputs, kernel, stride if index == 0 else 1, expand))
            channels = outputs
    head = [vision.conv_norm(channels, 1280, 1, act=nn.SiLU()), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return settle(nn.Sequential(*layers, *head, nn.Linear(1280, 1000)))
