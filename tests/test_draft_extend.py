"""`draft_extend` against the oracle: every variant, every way to call it, every device."""

import functools
import random

import nsa_kernel
import pytest
import torch
from draft_extend_cases import NAMED_CASES, VARIANTS, WAYS, check
from memory import INT64_EDGES, Output, lengths
from reference import INT32_MAX, draft_extend

SIZES = [0, 1, 2, 15, 16, 17, 31, 32, 33, 127, 128, 129, 255, 256, 257, 1023, 1024, 1025, 4097, 100_000]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_worked_example(device, variant):
    q, k = torch.tensor([2, 3], device=device), torch.tensor([10, 15], device=device)
    expanded, clipped = (torch.empty(5, dtype=torch.int32, device=device) for _ in range(2))
    count = torch.empty(1, dtype=torch.int32, device=device)
    assert nsa_kernel.fill_draft_extend_metadata(q, k, 12, expanded, clipped, count, variant=variant) is None
    assert expanded.tolist() == [9, 10, 13, 14, 15]
    assert clipped.tolist() == [9, 10, 12, 12, 12]
    assert count.tolist() == [5]


def test_the_oracle_gives_the_worked_example():
    assert draft_extend([2, 3], [10, 15], 12, 5) == ([9, 10, 13, 14, 15], [9, 10, 12, 12, 12], 5)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("case", NAMED_CASES.values(), ids=NAMED_CASES.keys())
def test_named_case(device, variant, case):
    for way in WAYS:
        check(**case, device=device, variant=variant, way=way)


@pytest.mark.parametrize("variant", VARIANTS)
def test_int64_values_beyond_int32_saturate(device, variant):
    far = 2**40
    check([1, 2, 0], [far, -far, 3], 2048, device=device, variant=variant, dtype=torch.int64)
    check([2, far], [5, far + 9], INT32_MAX, capacity=50, device=device, variant=variant, dtype=torch.int64)
    check([far, far, 1], [far, 7, 7], capacity=50, device=device, variant=variant, dtype=torch.int64)
    check([1, 3], [2**63 - 1, 2**62], capacity=50, device=device, variant=variant, dtype=torch.int64)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("q", INT64_EDGES)
def test_every_int64_counts_as_it_is(device, variant, q):
    for k in INT64_EDGES:
        check([q], [k], INT32_MAX, capacity=5, device=device, variant=variant, dtype=torch.int64)


@functools.cache
def batch(bs):
    draw = random.Random(bs)
    return [draw.randrange(4) for _ in range(bs)], [draw.randrange(-2, 5000) for _ in range(bs)]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("bs", SIZES)
def test_any_number_of_requests(device, variant, bs):
    check(*batch(bs), device=device, variant=variant)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("tokens", [127, 128, 1023, 1024, 1025, 4097, 100_000, 300_007])
def test_any_number_of_tokens(device, variant, tokens):
    check([1, tokens, 2], [900, 5000, 12], device=device, variant=variant)
    check([1, tokens, 2], [900, 5000, 12], capacity=tokens - 1, device=device, variant=variant)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("stride", [1, 2, 5])
def test_any_dtype_and_stride(device, variant, dtype, stride):
    check(*batch(33), device=device, variant=variant, dtype=dtype, stride=stride)


def test_dtypes_and_strides_may_differ(device):
    q = lengths([2, 3], device=device, dtype=torch.int64, stride=3)
    k = lengths([10, 15], device=device, stride=2)
    outputs = [Output(5, device=device) for _ in range(2)]
    nsa_kernel.fill_draft_extend_metadata(q, k, 12, *(output.array for output in outputs))
    outputs[0].check([9, 10, 13, 14, 15], "seqlens_expanded")
    outputs[1].check([9, 10, 12, 12, 12], "nsa_cache_seqlens")


@pytest.mark.parametrize("offset", [1, 2, 3])
def test_outputs_need_no_more_than_their_own_alignment(device, offset):
    q, k = lengths([7, 9], device=device), lengths([10, 15], device=device)
    outputs = [Output(20, device=device, offset=offset) for _ in range(2)]
    nsa_kernel.fill_draft_extend_metadata(q, k, 12, *(output.array for output in outputs))
    for output, expected in zip(outputs, draft_extend([7, 9], [10, 15], 12, 20)[:2], strict=True):
        output.check(expected, "output")


def test_the_stride_of_one_element_means_nothing(device):
    q, k = (torch.tensor([value, 99, 99], device=device)[::7] for value in (1, 6))
    outputs = [torch.zeros(9, dtype=torch.int32, device=device)[::9] for _ in range(3)]
    nsa_kernel.fill_draft_extend_metadata(q, k, 4, *outputs)
    assert [output.tolist() for output in outputs] == [[6], [4], [1]]
