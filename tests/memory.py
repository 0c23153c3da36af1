"""Arrays for the tests: strided inputs between garbage, outputs between guard words; and memory by its address."""

import ctypes

import numpy as np
import pytest
import torch

POISON = -1_985_229_329
GUARD = 64
# Lengths whose sums and differences reach the ends of int64, and some between them.
INT64_EDGES = [-(2**63), 0, 1, 2**31, 2**62 - 1, 2**62, 2**62 + 2, 2**63 - 3, 2**63 - 1]


def lengths(values, *, device="cpu", dtype=torch.int32, stride=1):
    """A 1-D input of any positive stride; the elements between hold garbage."""
    memory = torch.full((len(values) * stride,), POISON, dtype=dtype)
    memory[::stride] = torch.tensor(values, dtype=dtype)
    return memory.to(device)[::stride]


def table(rows, width, *, device="cpu", row_stride=None, offset=0):
    """A 2-D input whose rows may lie inside the rows of a wider table."""
    row_stride = row_stride or width
    memory = torch.full((offset + len(rows) * row_stride,), POISON, dtype=torch.int32)
    view = memory.as_strided((len(rows), width), (row_stride, 1), offset)
    if rows and width:
        view.copy_(torch.tensor(rows, dtype=torch.int32))
    return memory.to(device).as_strided((len(rows), width), (row_stride, 1), offset)


class DeviceWords:
    """int32 words of a GPU, for whoever reads the interface."""

    def __init__(self, address, size):
        self.__cuda_array_interface__ = {"version": 3, "data": (address, False), "shape": (size,), "typestr": "<i4"}


def words_at(address, size, device):
    """The words that lie at an address."""
    if device == "cpu":
        return np.ctypeslib.as_array((ctypes.c_int32 * size).from_address(address)).tolist()
    return torch.as_tensor(DeviceWords(address, size), device=device).tolist()


class Output:
    """An int32 output that lies in poisoned memory, with guard words before and after."""

    def __init__(self, *shape, device="cpu", row_stride=None, offset=0):
        self.start, self.row_stride = GUARD + offset, row_stride or shape[-1]
        self.strides = (1,) if len(shape) == 1 else (self.row_stride, 1)
        size = self.row_stride * (shape[0] if len(shape) == 2 else 1)
        self.memory = torch.full((self.start + size + GUARD,), POISON, dtype=torch.int32, device=device)
        self.array = self.memory.as_strided(shape, self.strides, self.start)

    def check(self, expected, name):
        """Compares all of the memory; `None` in `expected` stands for a slot that keeps its poison."""
        rows = [expected] if len(self.strides) == 1 else expected
        want = [POISON] * self.memory.numel()
        for r, row in enumerate(rows):
            at = self.start + r * self.row_stride
            want[at : at + len(row)] = [POISON if value is None else value for value in row]
        got = self.memory.tolist()
        if got != want:
            at = next(i for i, pair in enumerate(zip(got, want, strict=True)) if pair[0] != pair[1])
            place = divmod(at - self.start, self.row_stride or 1) if len(self.strides) == 2 else at - self.start
            words = ["untouched" if value == POISON else value for value in (got[at], want[at])]
            pytest.fail(f"{name}[{place}] is {words[0]}, must be {words[1]}")

    def check_untouched(self, name):
        self.check([], name)
