"""Inception v3: large filters factorised into small and one-dimensional ones.

Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016,
arXiv:1512.00567. State-dict keys are those of torchvision's ``inception_v3``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from edgecv.models.googlenet import ConvNormReLU
from edgecv.models.layers import AdaptivePool, AuxiliaryClassifier, Sizes, initialise


class Conv(NamedTuple):
    name: str  # of the convolution in its block; the part before "_" is the branch
    channels: int
    kernel: int | tuple[int, int]
    stride: int = 1
    padding: int | tuple[int, int] = 0


ROW, COLUMN = (1, 7), (7, 1)
ROW_PAD, COLUMN_PAD = (0, 3), (3, 0)


def block_a(pool: int) -> tuple[Conv, ...]:
    """Figure 5 of the paper: 5x5 and double 3x3."""
    return (
        # name, c, k, s, p
        Conv("branch1x1", 64, 1),
        Conv("branch5x5_1", 48, 1),
        Conv("branch5x5_2", 64, 5, 1, 2),
        Conv("branch3x3dbl_1", 64, 1),
        Conv("branch3x3dbl_2", 96, 3, 1, 1),
        Conv("branch3x3dbl_3", 96, 3, 1, 1),
        Conv("branch_pool", pool, 1),
    )


BLOCK_B = (  # Figure 10: halves the size
    # name, c, k, s, p
    Conv("branch3x3", 384, 3, 2),
    Conv("branch3x3dbl_1", 64, 1),
    Conv("branch3x3dbl_2", 96, 3, 1, 1),
    Conv("branch3x3dbl_3", 96, 3, 2),
)


def block_c(width: int) -> tuple[Conv, ...]:
    """Figure 6: 7x7 as 1x7 and 7x1."""
    return (
        # name, c, k, s, p
        Conv("branch1x1", 192, 1),
        Conv("branch7x7_1", width, 1),
        Conv("branch7x7_2", width, ROW, 1, ROW_PAD),
        Conv("branch7x7_3", 192, COLUMN, 1, COLUMN_PAD),
        Conv("branch7x7dbl_1", width, 1),
        Conv("branch7x7dbl_2", width, COLUMN, 1, COLUMN_PAD),
        Conv("branch7x7dbl_3", width, ROW, 1, ROW_PAD),
        Conv("branch7x7dbl_4", width, COLUMN, 1, COLUMN_PAD),
        Conv("branch7x7dbl_5", 192, ROW, 1, ROW_PAD),
        Conv("branch_pool", 192, 1),
    )


BLOCK_D = (  # halves the size
    # name, c, k, s, p
    Conv("branch3x3_1", 192, 1),
    Conv("branch3x3_2", 320, 3, 2),
    Conv("branch7x7x3_1", 192, 1),
    Conv("branch7x7x3_2", 192, ROW, 1, ROW_PAD),
    Conv("branch7x7x3_3", 192, COLUMN, 1, COLUMN_PAD),
    Conv("branch7x7x3_4", 192, 3, 2),
)
BLOCK_E = (  # Figure 7: the last convolutions of two branches stand side by side (a and b)
    # name, c, k, s, p
    Conv("branch1x1", 320, 1),
    Conv("branch3x3_1", 384, 1),
    Conv("branch3x3_2a", 384, (1, 3), 1, (0, 1)),
    Conv("branch3x3_2b", 384, (3, 1), 1, (1, 0)),
    Conv("branch3x3dbl_1", 448, 1),
    Conv("branch3x3dbl_2", 384, 3, 1, 1),
    Conv("branch3x3dbl_3a", 384, (1, 3), 1, (0, 1)),
    Conv("branch3x3dbl_3b", 384, (3, 1), 1, (1, 0)),
    Conv("branch_pool", 192, 1),
)
BLOCKS = (  # Table 1 of the paper, in torchvision's (TensorFlow's) names
    ("Mixed_5b", block_a(32)),
    ("Mixed_5c", block_a(64)),
    ("Mixed_5d", block_a(64)),
    ("Mixed_6a", BLOCK_B),
    ("Mixed_6b", block_c(128)),
    ("Mixed_6c", block_c(160)),
    ("Mixed_6d", block_c(160)),
    ("Mixed_6e", block_c(192)),
    ("Mixed_7a", BLOCK_D),
    ("Mixed_7b", BLOCK_E),
    ("Mixed_7c", BLOCK_E),
)
STEM_CHANNELS = 192
AUXILIARY_AFTER = "Mixed_6e"


class Mixed(nn.Module):
    """Branches side by side, joined by channel in the table's order; the pooled one comes last.

    A branch named in the table runs its convolutions one after the other; those that end in a
    letter all read the one before and are joined. The pooled branch averages 3x3 and projects,
    or, in a block that halves the size, is the 3x3 maximum of stride 2 itself.
    """

    def __init__(self, in_channels: int, table: tuple[Conv, ...]) -> None:
        super().__init__()
        self.branches: dict[str, list[str]] = {}
        self.halves = any(conv.stride == 2 for conv in table)
        self.out_channels = in_channels if self.halves else 0
        for conv in table:
            branch = _branch_of(conv.name)
            before = [name for name in self.branches.get(branch, []) if not name[-1].isalpha()]
            source = self.get_submodule(before[-1]) if before else None
            width = source.conv.out_channels if isinstance(source, ConvNormReLU) else in_channels
            self.add_module(conv.name, ConvNormReLU(width, *conv[1:]))
            self.branches.setdefault(branch, []).append(conv.name)
        self.ends = {
            branch: [n for n in names if n[-1].isalpha()] if len(names) > 1 else []
            for branch, names in self.branches.items()
        }
        for branch, names in self.branches.items():
            for name in self.ends[branch] or names[-1:]:
                end = self.get_submodule(name)
                assert isinstance(end, ConvNormReLU)
                self.out_channels += end.conv.out_channels

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for branch, names in self.branches.items():
            y = x
            if branch == "branch_pool":
                y = nn.functional.avg_pool2d(x, 3, 1, padding=1)
            for name in names:
                if name not in self.ends[branch]:
                    y = self.get_submodule(name)(y)
            ends = self.ends[branch]
            outputs += [self.get_submodule(name)(y) for name in ends] if ends else [y]
        if self.halves:
            outputs.append(nn.functional.max_pool2d(x, 3, 2))
        return torch.cat(outputs, 1)


def _branch_of(name: str) -> str:
    head, _, tail = name.rpartition("_")
    return head if tail[:1].isdigit() else name


class AuxiliaryHead(nn.Module):
    """A small classifier on an inner map; its loss helps the gradient in training."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv0 = ConvNormReLU(in_channels, 128, 1)
        self.conv1 = ConvNormReLU(128, 768, 5)
        self.fc = nn.Linear(768, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.avg_pool2d(x, 5, 3)  # [N, 768, 5, 5] of a picture of 299
        x = AdaptivePool(1)(self.conv1(self.conv0(x)))
        logits: Tensor = self.fc(torch.flatten(x, 1))
        return logits


class InceptionV3(AuxiliaryClassifier):
    """See :func:`inception_v3`."""

    inner_heads = ("AuxLogits",)
    inner_sizes = Sizes(minimum=299)  # its 5x5 filter sees a map of 5x5 pixels then
    sizes = Sizes(minimum=75)  # smaller ones leave nothing after the poolings

    def __init__(self, num_classes: int, auxiliary: bool, dropout: float) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = ConvNormReLU(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = ConvNormReLU(32, 32, 3)
        self.Conv2d_2b_3x3 = ConvNormReLU(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = ConvNormReLU(64, 80, 1)
        self.Conv2d_4a_3x3 = ConvNormReLU(80, STEM_CHANNELS, 3)
        self.pool = nn.MaxPool2d(3, 2)
        self.auxiliary = auxiliary
        channels = STEM_CHANNELS
        for name, table in BLOCKS:
            block = Mixed(channels, table)
            self.add_module(name, block)
            channels = block.out_channels
            if auxiliary and name == AUXILIARY_AFTER:
                self.AuxLogits = AuxiliaryHead(channels, num_classes)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, num_classes)

    def with_inner(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))  # [N, 64, 147, 147]
        x = self.pool(x)
        x = self.pool(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)))  # [N, 192, 35, 35]
        auxiliary = []
        for name, _ in BLOCKS:
            x = self.get_submodule(name)(x)
            if self.training and self.auxiliary and name == AUXILIARY_AFTER:
                auxiliary.append(self.AuxLogits(x))
        return x, auxiliary  # [N, 2048, 8, 8]

    def dense(self) -> Sequence[nn.Module]:
        return [self.dropout, self.fc]


def inception_v3(
    num_classes: int = 1000, *, auxiliary: bool = True, dropout: float = 0.5
) -> InceptionV3:
    """Inception v3 (arXiv:1512.00567), input ``[N, 3, H, W]``, logits ``[N, num_classes]``.

    ``auxiliary`` adds the head that only training uses (``training_logits``); it is in the
    published checkpoint and never in an exported file. H and W are at least 75 pixels, and 299 as
    published where that head learns.
    """
    model = InceptionV3(num_classes, auxiliary, dropout)
    initialise(model)
    return model
