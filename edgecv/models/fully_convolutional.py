"""A classifier's dense layers as convolutions: all sliding windows in one pass.

Sermanet et al., "OverFeat", ICLR 2014, arXiv:1312.6229; Long et al., "Fully Convolutional Networks
for Semantic Segmentation", CVPR 2015, arXiv:1411.4038.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgecv.errors import RecipeError
from edgecv.models.layers import Classifier, Sizes


class FullyConvolutional(nn.Module):
    """See :func:`to_fully_convolutional`."""

    def __init__(self, net: Classifier, image_size: int) -> None:
        super().__init__()
        if not isinstance(net, Classifier):
            raise RecipeError(
                f"{type(net).__name__} is not a classifier of the zoo: it has no dense layers to "
                f"turn into convolutions"
            )
        if net.is_trunk:
            raise RecipeError(
                f"this {type(net).__name__} has given its dense layers away already: to a fully "
                f"convolutional net, or to one that has it as its trunk; create another"
            )
        net.sizes.check(type(net).__name__, image_size, image_size)
        with torch.inference_mode():
            device = next(net.parameters()).device
            example = torch.zeros((1, net.in_channels, image_size, image_size), device=device)
            was_training = net.training
            side = net.eval().maps(example).shape[-1]
            net.train(was_training)
        if net.side not in (1, side):
            raise RecipeError(
                f"{type(net).__name__}: the last map of a window of {image_size} pixels is "
                f"{side} x {side}, and the dense layers were made for {net.side} x {net.side}; "
                f"choose the image_size that the net was trained with"
            )
        self.net = net
        self.sizes = Sizes(minimum=image_size)
        self.pool = nn.AvgPool2d(side, 1) if net.side == 1 else nn.Identity()
        layers: list[nn.Module] = []
        kernel = net.side
        for layer in net.dense():
            if isinstance(layer, nn.Linear):
                layers.append(_convolution(layer, kernel))
                kernel = 1
            else:
                layers.append(layer)
        self.dense = nn.Sequential(*layers)
        net.drop_dense()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.dense(self.pool(self.net.maps(x)))
        return out  # [N, num_classes, rows, columns]


def to_fully_convolutional(net: Classifier, image_size: int = 224) -> FullyConvolutional:
    """``net`` for pictures of any size of at least ``image_size``; its weights are taken over.

    Input ``[N, 3, H, W]``, logits ``[N, num_classes, rows, columns]``: element (i, j) is the
    answer to the window of ``image_size`` pixels whose corner is at (i s, j s), s the net's
    stride (32 for most). Dense layers become convolutions of the same numbers, and pooling over
    the whole map becomes pooling over the part of one window. It equals running the windows
    one by one wherever a window's features see the same pixels: everywhere for nets without
    padding, and elsewhere but for the border, where a single window would have seen zeros in
    place of its neighbours. The gates of squeeze and excitation (MobileNetV3, EfficientNet) see the
    whole picture: on a larger one than a window, the numbers of those nets are others. ``net``
    itself loses its dense layers. Raises :class:`~edgecv.errors.RecipeError` where it has none, or
    they do not fit that size.
    """
    return FullyConvolutional(net, image_size)


def _convolution(layer: nn.Linear, kernel: int) -> nn.Conv2d:
    """The same numbers: row o of the matrix is filter o, in the order of flattening (C, h, w)."""
    channels = layer.in_features // kernel**2
    conv = nn.Conv2d(channels, layer.out_features, kernel, bias=layer.bias is not None)
    with torch.no_grad():
        conv.weight.copy_(layer.weight.reshape(conv.weight.shape))
        if layer.bias is not None and conv.bias is not None:
            conv.bias.copy_(layer.bias)
    return conv.to(layer.weight.device).train(layer.training)
