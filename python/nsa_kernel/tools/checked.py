"""Arrays of the selftest: inputs of every kind, and outputs of which all memory is compared."""

import math
import random
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any

from .devices import Device

MAX_STORED = 2**31 - 1
POISON = -77  # what an output holds before, and what stays where nothing may be written
GUARD = 4

Run = tuple[str, str]
"""What ran, and what is wrong with it; the latter is empty where nothing is."""


class Output:
    """An int32 output between guard words, which may start at any alignment."""

    def __init__(self, device: Device, shape: Sequence[int], shift: int) -> None:
        self.start, self.size = GUARD + shift, math.prod(shape)
        self.memory = device.full([self.start + self.size + GUARD], POISON)
        self.array = device.reshape(self.memory[self.start : self.start + self.size], shape)

    def wrong(self, name: str, expected: list[int]) -> str:
        """Compares all of the memory."""
        wanted = [POISON] * self.start + expected + [POISON] * GUARD
        found = self.memory.tolist()
        if found == wanted:
            return ""
        at = next(at for at, (value, want) in enumerate(zip(found, wanted, strict=True)) if value != want)
        return f"{name}[{at - self.start}] is {found[at]}, must be {wanted[at]}"


def cumulative_sum(values: Iterable[int]) -> list[int]:
    """0, then the sums so far, as an int32 output stores them."""
    return [min(total, MAX_STORED) for total in accumulate(values, initial=0)]


def lengths(device: Device, draw: random.Random, values: list[int]) -> Any:
    """An input: int32 or int64, dense or strided."""
    dtype, stride = draw.choice(("int32", "int64")), draw.choice((1, 2))
    return device.array([value for value in values for _ in range(stride)], dtype)[::stride]
