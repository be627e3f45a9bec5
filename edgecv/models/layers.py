"""Arithmetic that several architectures share."""

from __future__ import annotations


def make_divisible(value: float, divisor: int = 8) -> int:
    """Round a channel count to a multiple of ``divisor``, never down by more than 10%.

    The rule of the TensorFlow reference implementation of MobileNet (slim's
    ``conv_blocks._make_divisible``), which published checkpoints follow.
    """
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded
