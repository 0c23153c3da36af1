"""Refused arguments: the exception, its exact message, and that nothing was written before it."""

import array
import contextlib
import inspect
import random
import re
import sys

import arguments
import nsa_kernel
import numpy as np
import pytest
import torch
from arguments import (
    CALLS,
    DRAFT_EXTEND,
    FLAT_OUTPUT,
    LENGTH,
    ONLY_ASYNCHRONOUS,
    OUTPUT,
    OUTPUT_SHAPES,
    OUTPUT_TABLE,
    RAGGED,
    REPLAY,
    ROLES,
    TABLE,
    documented,
    drop_in,
    ints,
    is_output,
    shape_that_fits,
    valid_arguments,
    words,
)
from exporters import Exporter, Layout
from memory import POISON, lengths
from nsa_kernel.tools.benchmark import launch_empty_kernel
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._functional_collectives import AsyncCollectiveTensor


def check_refusal(op, device, exception, message, **changes):
    """Every way to call the op refuses the changed arguments, in exactly these words."""
    arguments.check_refusal(op, device, exception, re.escape(message) + "$", **changes)


@pytest.mark.parametrize("op", CALLS)
def test_the_arguments_fit_before_they_are_changed(device, op):
    for call in CALLS[op]:
        fitting, _ = valid_arguments(op, device, call)
        call(**fitting)


CALLABLES = [call for calls in CALLS.values() for call in calls]


@pytest.mark.parametrize("call", CALLABLES, ids=lambda call: call.__name__)
def test_the_docstring_documents_each_argument(call):
    assert [*documented(call)] == [*inspect.signature(call).parameters]


@pytest.mark.parametrize("op", CALLS)
def test_the_arguments_that_fit_have_every_output(op):
    documented_outputs = {name for (of, name), role in ROLES.items() if of == op and is_output(role)}
    assert valid_arguments(op, "cpu")[1].keys() == OUTPUT_SHAPES[op].keys() == documented_outputs


# What one array may be refused for, whichever argument it is.


class Unwilling:
    def __dlpack__(self, **_):
        raise RuntimeError("not today")

    def __dlpack_device__(self):
        return 1, 0


class Unable:
    def __dlpack__(self, **_):
        return np.zeros(9, np.int32)

    def __dlpack_device__(self):
        return 1, 0


def numpy_zeros(dtype):
    """Zeros of the rank that the role needs."""
    return lambda shape, device: np.zeros(shape, dtype)


def fake(shape, _):
    with FakeTensorMode():
        return torch.zeros(shape, dtype=torch.int32)


class Wrapper(torch.Tensor):
    """A tensor around another, which has the elements."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=inner.device)

    @classmethod
    def __torch_dispatch__(cls, function, kinds, args=(), kwargs=None):
        raise AssertionError(f"{function} is called")


def misaligned(shape, _):
    words = np.zeros(4 * int(np.prod(shape)) + 4, np.uint8)
    return words[1:-3].view(np.int32).reshape(shape)


def read_only(shape, _):
    memory = np.zeros(shape, np.int32)
    memory.flags.writeable = False
    return memory


def last_stride_2(shape, device):
    return torch.zeros((*shape[:-1], 2 * shape[-1]), dtype=torch.int32, device=device)[..., ::2]


OUTPUTS = (OUTPUT, OUTPUT_TABLE, FLAT_OUTPUT)
ANY = (LENGTH, TABLE, *OUTPUTS)
NOT_AN_ARRAY = "must be an array that exports DLPack"


def not_exported_by_numpy(dtype):
    """The refusal, with NumPy's own words."""
    with pytest.raises(BufferError) as caught:
        np.zeros(1, dtype).__dlpack__()
    return f"is a ndarray that cannot be exported ({caught.value}), {NOT_AN_ARRAY}"


MUST_BE = dict.fromkeys((TABLE, *OUTPUTS), "must be int32") | {LENGTH: "must be int32 or int64"}
DTYPES = [np.float32, np.float64, np.float16, np.bool_, np.int8, np.int16, np.uint8, np.uint32, np.uint64, np.complex64]
FLOAT8 = [torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz, torch.float8_e8m0fnu]
KINDS = (
    {
        "list": (ANY, lambda shape, device: [1, 2], f"is a list, {NOT_AN_ARRAY}"),
        "int": (ANY, lambda shape, device: 7, f"is a int, {NOT_AN_ARRAY}"),
        "str": (ANY, lambda shape, device: "lengths", f"is a str, {NOT_AN_ARRAY}"),
        "object that does not export": (
            ANY,
            lambda shape, device: Unwilling(),
            f"is a test_arguments.Unwilling that cannot be exported (not today), {NOT_AN_ARRAY}",
        ),
        "export of the next version": (
            ANY,
            lambda shape, device: Exporter(Layout(bytearray(256), shape), major=2),
            "is of DLPack version 2, must be of version 1",
        ),
        "capsule of the next version": (
            ANY,
            lambda shape, device: Layout(bytearray(256), shape).versioned_capsule(major=2),
            "is of DLPack version 2, must be of version 1",
        ),
        "export that is no capsule": (
            ANY,
            lambda shape, device: Unable(),
            f"is a test_arguments.Unable that cannot be exported (__dlpack__ gives a ndarray), {NOT_AN_ARRAY}",
        ),
        "numpy objects": (ANY, numpy_zeros(object), not_exported_by_numpy(object)),
        "other byte order": (ANY, numpy_zeros(">i4"), not_exported_by_numpy(">i4")),
        "numpy scalar as input": (
            (LENGTH, TABLE),
            lambda shape, device: np.int32(3),
            "has 0 dimensions, must have {rank}",
        ),
        "numpy scalar as output": (
            OUTPUTS,
            lambda shape, device: np.int32(3),
            "is read-only, must be writable",
        ),
        "bfloat16": (
            ANY,
            lambda shape, device: torch.zeros(shape, dtype=torch.bfloat16),
            "has dtype bfloat16, {must_be}",
        ),
        "int64": ((TABLE, *OUTPUTS), numpy_zeros(np.int64), "has dtype int64, {must_be}"),
        "no dimension": (
            ANY,
            lambda shape, device: torch.tensor(1, dtype=torch.int32),
            "has 0 dimensions, must have {rank}",
        ),
        "two dimensions more": (
            (FLAT_OUTPUT,),
            lambda shape, device: np.zeros((*shape, 2, 2), np.int32),
            "has 3 dimensions, must have {rank}",
        ),
        "strided flat output": (
            (FLAT_OUTPUT,),
            lambda shape, device: last_stride_2((9,), device),
            "has strides 9 and 2, must be contiguous",
        ),
        "rows apart of a flat output": (
            (FLAT_OUTPUT,),
            lambda shape, device: torch.zeros((4, 5), dtype=torch.int32, device=device)[:, :3],
            "has strides 5 and 1, must be contiguous",
        ),
        "a dimension more": (
            (LENGTH, TABLE, OUTPUT, OUTPUT_TABLE),
            lambda shape, device: np.zeros((*shape, 2), np.int32),
            "has {more} dimensions, must have {rank}",
        ),
        "misaligned": (
            ANY,
            misaligned,
            "starts at an address that is not a multiple of its element size, must be aligned",
        ),
        "fake tensor": (ANY, fake, "has no memory, as a fake or meta tensor, must be a real array"),
        "wrapper": (
            ANY,
            lambda shape, device: Wrapper(torch.zeros(shape, dtype=torch.int32, device=device)),
            "is a test_arguments.Wrapper without memory of its own, must be the tensor that it wraps",
        ),
        "result of a collective": (
            ANY,
            lambda shape, device: AsyncCollectiveTensor(torch.zeros(shape, dtype=torch.int32, device=device)),
            "is a torch.distributed._functional_collectives.AsyncCollectiveTensor, which has no memory of its own, "
            "must be the tensor that holds the elements (.wait())",
        ),
        "read-only": (OUTPUTS, read_only, "is read-only, must be writable"),
        "buffer": ((OUTPUT,), lambda shape, device: array.array("q", [1]), "has dtype int64, must be int32"),
        "negative stride": (
            (LENGTH,),
            lambda shape, device: np.zeros(9, np.int32)[::-1],
            "has stride -1, must have a positive one",
        ),
        "stride zero": (
            (LENGTH,),
            lambda shape, device: torch.zeros(1, dtype=torch.int32, device=device).expand(2),
            "has stride 0, must have a positive one",
        ),
        "strided output": (
            (OUTPUT,),
            lambda shape, device: last_stride_2((9,), device),
            "has stride 2, must be contiguous",
        ),
        "output of one repeated element": (
            (OUTPUT,),
            lambda shape, device: torch.zeros(1, dtype=torch.int32, device=device).expand(9),
            "has stride 0, must be contiguous",
        ),
        "strided rows": (
            (TABLE, OUTPUT_TABLE),
            last_stride_2,
            "has stride 2 in its last dimension, must be contiguous there",
        ),
        "one row for all": (
            (OUTPUT_TABLE,),
            lambda shape, device: torch.zeros((1, 9), dtype=torch.int32, device=device).expand(9, 9),
            "has row stride 0, must be at least 9",
        ),
        "rows that overlap": (
            (OUTPUT_TABLE,),
            lambda shape, device: torch.zeros(99, dtype=torch.int32, device=device).as_strided((9, 9), (8, 1)),
            "has row stride 8, must be at least 9",
        ),
    }
    | {
        str(dtype): (
            ANY,
            lambda shape, device, dtype=dtype: torch.zeros(shape, dtype=torch.uint8, device=device).view(dtype),
            f"has dtype {str(dtype).removeprefix('torch.')}, {{must_be}}",
        )
        for dtype in FLOAT8
    }
    | {
        np.dtype(dtype).name: (ANY, numpy_zeros(dtype), f"has dtype {np.dtype(dtype).name}, {{must_be}}")
        for dtype in DTYPES
    }
)


@pytest.mark.parametrize(
    ("op", "name", "kind"),
    [(*key, kind) for key, role in ROLES.items() for kind, (roles, _, _) in KINDS.items() if role in roles],
)
def test_an_array_that_does_not_fit(device, op, name, kind):
    if (device, kind) == ("cuda", "negative stride"):
        pytest.skip("torch has no negative strides")
    role = ROLES[op, name]
    _, make, message = KINDS[kind]
    rank = 2 if role in (TABLE, OUTPUT_TABLE) else 1
    words = "1 or 2" if role == FLAT_OUTPUT else rank
    message = message.format(must_be=MUST_BE[role], rank=words, more=rank + 1)
    check_refusal(op, device, TypeError, f"{name} {message}", **{name: make(shape_that_fits(op, name), device)})


@pytest.mark.parametrize(
    ("op", "name"),
    [
        (DRAFT_EXTEND, "extend_seq_lens"),
        (DRAFT_EXTEND, "seq_lens"),
        (DRAFT_EXTEND, "out_seqlens_expanded"),
        (DRAFT_EXTEND, "out_nsa_cache_seqlens"),
        (REPLAY, "seq_lens"),
    ],
)
def test_a_needed_array_that_is_none(device, op, name):
    check_refusal(op, device, TypeError, f"{name} is a NoneType, {NOT_AN_ARRAY}", **{name: None})


def test_one_dimensional_tables(device):
    flat = torch.zeros(8, dtype=torch.int32)
    for name in ("req_to_token", "page_table", "real_page_table", "ctx_lens_2d"):
        check_refusal(REPLAY, device, TypeError, f"{name} has 1 dimensions, must have 2", **{name: flat})


def test_meta_tensors(device):
    meta = torch.zeros(2, dtype=torch.int32, device="meta")
    for op, name in ((DRAFT_EXTEND, "seq_lens"), (REPLAY, "seq_lens")):
        others, outputs = valid_arguments(op, device)
        with pytest.raises(TypeError, match=f"^{op}: {name} "):
            CALLS[op][0](**others | {name: meta})
        for output in outputs.values():
            output.check_untouched(name)


# Numbers, words, sizes and devices.

NUMBERS = {
    "float": (TypeError, 1.5, "is a float, must be an int"),
    "str": (TypeError, "1", "is a str, must be an int"),
    "list": (TypeError, [1], "is a list, must be an int"),
    "too large": (ValueError, 2**63, f"is {2**63}, must fit in 64 bits"),
    "too small": (ValueError, -(2**70), f"is {-(2**70)}, must fit in 64 bits"),
}
NUMBER_NAMES = [
    (DRAFT_EXTEND, "nsa_index_topk"),
    (REPLAY, "nsa_index_topk"),
    (REPLAY, "num_draft_tokens"),
    (REPLAY, "page_size"),
    (REPLAY, "topk_plan_clusters"),
]


@pytest.mark.parametrize("kind", NUMBERS)
@pytest.mark.parametrize(("op", "name"), NUMBER_NAMES)
def test_a_number_that_is_no_int(device, op, name, kind):
    exception, value, message = NUMBERS[kind]
    check_refusal(op, device, exception, f"{name} {message}", **{name: value})


VERIFY, DECODE = {"mode": "target_verify"}, {"mode": "decode", "ctx_lens_2d": None}
VALUES = [
    (DRAFT_EXTEND, "nsa_index_topk is -1, must be at least 0", {"nsa_index_topk": -1}),
    (DRAFT_EXTEND, "seq_lens has 1 elements, must have as many as extend_seq_lens (2)", {"seq_lens": ints(1)}),
    (DRAFT_EXTEND, "seq_lens has 2 elements, must have as many as extend_seq_lens (0)", {"extend_seq_lens": ints()}),
    (DRAFT_EXTEND, "out_num_tokens has 0 elements, must have at least 1", {"out_num_tokens": words(0)}),
    (DRAFT_EXTEND, "variant is 'fast', must be one of 'optimized', 'adaptive', 'basic'", {"variant": "fast"}),
    (DRAFT_EXTEND, "variant is 'Basic', must be one of 'optimized', 'adaptive', 'basic'", {"variant": "Basic"}),
    (DRAFT_EXTEND, "variant is '', must be one of 'optimized', 'adaptive', 'basic'", {"variant": ""}),
    (REPLAY, "mode is 'verify', must be one of 'decode', 'target_verify', 'draft_extend'", {"mode": "verify"}),
    (REPLAY, "mode is 'DECODE', must be one of 'decode', 'target_verify', 'draft_extend'", {"mode": "DECODE"}),
    (REPLAY, "nsa_index_topk is -5, must be at least 0", {"nsa_index_topk": -5}),
    (REPLAY, "num_draft_tokens is -1, must be at least 0", {"num_draft_tokens": -1}),
    (REPLAY, "num_draft_tokens is -1, must be at least 0", {"num_draft_tokens": -1} | VERIFY),
    (REPLAY, f"num_draft_tokens is {2**31}, must be at most {2**31 - 1}", {"num_draft_tokens": 2**31}),
    (REPLAY, "num_draft_tokens is absent in mode target_verify, must be given", {"num_draft_tokens": None} | VERIFY),
    (REPLAY, "num_draft_tokens is absent in mode draft_extend, must be given", {"num_draft_tokens": None}),
    (REPLAY, f"page_size is 0, must be from 1 to {2**31 - 1}", {"page_size": 0}),
    (REPLAY, f"page_size is -64, must be from 1 to {2**31 - 1}", {"page_size": -64}),
    (REPLAY, f"page_size is {2**31}, must be from 1 to {2**31 - 1}", {"page_size": 2**31}),
    (REPLAY, "extend_seq_lens is given in mode decode, must be absent", RAGGED | {"mode": "decode"}),
    (REPLAY, "extend_seq_lens is given in mode target_verify, must be absent", RAGGED | VERIFY),
    (REPLAY, "ctx_lens_2d is given in mode decode, must be absent", {"mode": "decode"}),
    (REPLAY, "ctx_lens_2d is given with extend_seq_lens, must be absent", {"extend_seq_lens": ints(2, 3)}),
    (
        REPLAY,
        "extend_seq_lens has 3 elements, must have as many as seq_lens (2)",
        RAGGED | {"extend_seq_lens": ints(1, 2, 3)},
    ),
    (REPLAY, "req_pool_indices has 1 elements, must have as many as seq_lens (2)", {"req_pool_indices": ints(1)}),
    (REPLAY, "req_pool_indices is absent, must be given with page_table", {"req_pool_indices": None}),
    (REPLAY, "req_to_token is absent, must be given with page_table", {"req_to_token": None}),
    (
        REPLAY,
        "req_to_token is absent, must be given with real_page_table",
        {"req_to_token": None, "page_table": None},
    ),
    (
        REPLAY,
        "req_pool_indices is absent, must be given with real_page_table",
        {"req_pool_indices": None, "page_table": None},
    ),
    (REPLAY, "cache_seqlens has 1 elements, must have at least 2", {"cache_seqlens": words(1)}),
    (REPLAY, "cu_seqlens_k has 2 elements, must have at least 3", {"cu_seqlens_k": words(2)}),
    (REPLAY, "cu_seqlens_k has 0 elements, must have at least 3", RAGGED | {"cu_seqlens_k": words(0)}),
    (REPLAY, "num_tokens has 0 elements, must have at least 1", {"num_tokens": words(0)}),
    (REPLAY, "seqlens_expanded has 5 elements, must have at least 6", {"seqlens_expanded": words(5)}),
    (REPLAY, "nsa_cache_seqlens has 5 elements, must have at least 6", {"nsa_cache_seqlens": words(5)}),
    (REPLAY, "nsa_cu_seqlens_k has 6 elements, must have at least 7", {"nsa_cu_seqlens_k": words(6)}),
    (REPLAY, "seqlens_expanded has 0 elements, must have at least 6", {"seqlens_expanded": words(0)} | VERIFY),
    (REPLAY, "seqlens_expanded has 1 elements, must have at least 2", {"seqlens_expanded": words(1)} | DECODE),
    (REPLAY, "nsa_cu_seqlens_k has 2 elements, must have at least 3", {"nsa_cu_seqlens_k": words(2)} | DECODE),
    (REPLAY, "ctx_lens_2d has shape [1, 3], must be at least [2, 3]", {"ctx_lens_2d": words(1, 3)}),
    (REPLAY, "ctx_lens_2d has shape [2, 2], must be at least [2, 3]", {"ctx_lens_2d": words(2, 2)} | VERIFY),
]


@pytest.mark.parametrize(("op", "message", "changes"), VALUES, ids=[message for _, message, _ in VALUES])
def test_values_that_do_not_fit(device, op, message, changes):
    check_refusal(op, device, ValueError, message, **changes)


# Overlaps.


def strides_of(shape):
    return (1,) if len(shape) == 1 else (shape[1], 1)


@pytest.mark.parametrize(
    ("op", "output", "other"),
    [
        (op, output, other)
        for (op, output), role in ROLES.items()
        if is_output(role)
        for that_op, other in ROLES
        if that_op == op and other != output
    ],
)
def test_an_output_that_overlaps(device, op, output, other):
    """By its last element alone."""
    shape, other_shape = shape_that_fits(op, output), shape_that_fits(op, other)
    size = int(np.prod(shape))
    memory = torch.full((1024,), POISON, dtype=torch.int32, device=device)
    views = {
        output: memory.as_strided(shape, strides_of(shape), 100),
        other: memory.as_strided(other_shape, strides_of(other_shape), 100 + size - 1),
    }
    message = f"{output} overlaps {other}|{other} overlaps {output}"
    for call in CALLS[op]:
        if drop_in(call) and views.keys() & ONLY_ASYNCHRONOUS:
            continue
        fitting, outputs = valid_arguments(op, device, call)
        with pytest.raises(ValueError, match=f"^{op}: ({message}), must have memory of its own$"):
            call(**fitting | views)
        assert bool((memory == POISON).all())
        for name in outputs.keys() - views.keys():
            outputs[name].check_untouched(name)


def test_lengths_in_place_are_refused(device):
    """Blocks read what others have written by then."""
    k = lengths([3, 5], device=device)
    with pytest.raises(ValueError, match=r"^fill_replay_metadata: cache_seqlens overlaps seq_lens, "):
        nsa_kernel.fill_replay_metadata("target_verify", seq_lens=k, num_draft_tokens=2, cache_seqlens=k)
    assert k.tolist() == [3, 5]


def test_neighbours_are_no_overlap(device):
    """Columns of one table, one after the other; and rows of another."""
    wide = torch.full((3, 14), POISON, dtype=torch.int32, device=device)
    wide[:, 12:] = torch.tensor([[4, 0], [2, 0], [3, 0]], device=device)
    columns = {"page_table": wide[:, :4], "real_page_table": wide[:, 4:6], "req_to_token": wide[:, 6:10]}
    wide[:, 6:10] = torch.arange(12, device=device).reshape(3, 4)
    memory = torch.full((10,), POISON, dtype=torch.int32, device=device)
    rows = {"cache_seqlens": memory[:3], "cu_seqlens_k": memory[3:7], "seqlens_expanded": memory[7:]}
    inputs = {"seq_lens": wide[:, 12], "req_pool_indices": torch.tensor([2, 1, 0], device=device)}
    nsa_kernel.fill_replay_metadata("decode", page_size=2, **inputs, **columns, **rows)
    assert memory.tolist() == [4, 2, 3, 0, 4, 6, 9, 4, 2, 3]
    p = POISON
    assert wide[:, :6].tolist() == [[8, 9, 10, 11, 4, 5], [4, 5, p, p, 2, p], [0, 1, 2, p, 0, 1]]


def test_inputs_may_overlap(device):
    both, out = lengths([1, 0], device=device), words(2)(device)
    pool = both.as_strided((2, 1), (1, 1))
    table = torch.full((2, 1), POISON, dtype=torch.int32, device=device)
    nsa_kernel.fill_replay_metadata(
        "decode", seq_lens=both, req_pool_indices=both, req_to_token=pool, page_table=table, cache_seqlens=out
    )
    assert (out.tolist(), table.tolist()) == ([1, 0], [[0], [POISON]])


def test_empty_arrays_overlap_nothing(device):
    k, memory = lengths([3], device=device), words(3)(device)
    nsa_kernel.fill_replay_metadata(
        "decode", seq_lens=k, req_pool_indices=k, req_to_token=memory[:0].reshape(1, 0), cache_seqlens=memory[:1],
        page_table=memory.as_strided((0, 3), (3, 1)), cu_seqlens_k=memory[1:],
    )  # fmt: skip
    assert memory.tolist() == [3, 0, 3]


def elements(layout):
    """The places in int32 words that an array has, of (start, rows, cols, row stride)."""
    start, rows, cols, stride = layout
    return {start + r * stride + c for r in range(rows) for c in range(cols)}


def test_overlaps_are_found_exactly(random_cases):
    """Any two layouts in one memory, also where rows are unequally far apart."""
    found = 0
    for seed, context in random_cases:
        rng = random.Random(seed)
        cols, other_cols = rng.randint(1, 5), rng.randint(1, 5)
        output = rng.randint(0, 60), rng.randint(1, 6), cols, rng.randint(cols, 12)
        other = rng.randint(0, 60), rng.randint(1, 6), other_cols, rng.randint(1, 12)
        role = rng.choice(["req_to_token", "seq_lens", "int64", "real_page_table", "cu_seqlens_k"])
        memory = torch.zeros(256, dtype=torch.int32)
        if role == "real_page_table":
            other = (*other[:3], max(other[3], other_cols))
        elif role == "cu_seqlens_k":
            other = other[0], 1, rng.randint(2, 6), 1
        elif role == "int64":
            other = other[0] // 2 * 2, other[1], 2, 2 * other[3]
        elif role == "seq_lens":
            other = other[0], other[1], 1, other[3]
        start, rows, cols, stride = other
        arrays = {"seq_lens": torch.zeros(1, dtype=torch.int32), "req_to_token": torch.zeros(1, 1, dtype=torch.int32)}
        if role == "int64":
            arrays["seq_lens"] = memory.view(torch.int64).as_strided((rows,), (stride // 2,), start // 2)
        elif role in ("seq_lens", "cu_seqlens_k"):
            arrays[role] = memory.as_strided((rows * cols,), (stride,), start)
        else:
            arrays[role] = memory.as_strided((rows, cols), (stride, 1), start)
        arrays["req_pool_indices"] = torch.zeros_like(arrays["seq_lens"])
        table = memory.as_strided(output[1:3], (output[3], 1), output[0])
        overlap = bool(elements(output) & elements(other))
        found += overlap
        with context, pytest.raises(ValueError, match="overlaps") if overlap else contextlib.nullcontext():
            nsa_kernel.fill_replay_metadata("decode", **arrays, page_table=table)
    assert 0 < found < len(random_cases) or len(random_cases) == 1


@pytest.mark.parametrize("value", [0, 1.5, ["basic"], b"basic"], ids=repr)
def test_words_that_are_no_str(device, value):
    kind = type(value).__name__
    check_refusal(DRAFT_EXTEND, device, TypeError, f"variant is a {kind}, must be a str", variant=value)
    check_refusal(REPLAY, device, TypeError, f"mode is a {kind}, must be a str", mode=value)


@pytest.mark.parametrize(("op", "name"), ROLES)
@pytest.mark.cuda
def test_arrays_on_two_devices(device, op, name):
    first = next(iter(valid_arguments(op, device)[0].values()))
    others, outputs = valid_arguments(op, device)
    stray = {name: (others.get(name, first)).cpu()}
    with pytest.raises(ValueError, match=rf"^{op}: \w+ is on (cpu|cuda:0), must be on (cpu|cuda:0) like \w+$"):
        CALLS[op][0](**others | stray)
    for output in outputs.values():
        output.check_untouched(name)


@pytest.mark.parametrize("op", CALLS)
def test_names_that_no_argument_has(op):
    for call in CALLS[op]:
        fitting, outputs = valid_arguments(op, "cpu")
        with pytest.raises(TypeError):
            call(**fitting, no_such_argument=1)
        with pytest.raises(TypeError):
            call()
        for name, output in outputs.items():
            output.check_untouched(name)


ORDINALS = NUMBERS | {
    "None": (TypeError, None, "is a NoneType, must be an int"),
    "negative": (ValueError, -1, f"is -1, must be from 0 to {2**31 - 1}"),
    "more than 32 bits": (ValueError, 2**31, f"is {2**31}, must be from 0 to {2**31 - 1}"),
}


@pytest.mark.parametrize("kind", ORDINALS)
def test_a_device_that_is_no_ordinal(kind):
    exception, value, message = ORDINALS[kind]
    with pytest.raises(exception, match="^" + re.escape(f"launch_empty_kernel: device {message}") + "$"):
        launch_empty_kernel(device=value)


@pytest.mark.parametrize("ordinal", [1000, 2**31 - 1])
def test_a_device_that_no_machine_has(ordinal):
    with pytest.raises(nsa_kernel.CudaError, match=r"^launch_empty_kernel: ") as caught:
        launch_empty_kernel(device=ordinal)
    assert caught.value.code > 0


@pytest.mark.cuda
def test_the_device_launches_after_refused_ones(device):
    for ordinal in (-1, 1000):
        with pytest.raises((ValueError, nsa_kernel.CudaError)):
            launch_empty_kernel(device=ordinal)
    launch_empty_kernel(device=torch.cuda.current_device())


class Raising:
    """An object that has no attribute to be had, and says so with another exception than AttributeError."""

    def __getattr__(self, name):
        raise ZeroDivisionError(name)


@pytest.mark.parametrize("argument", ["extend_seq_lens", "stream"])
def test_attributes_that_raise_are_not_printed(monkeypatch, argument):
    printed = []
    monkeypatch.setattr(sys, "unraisablehook", printed.append)
    fitting, _ = valid_arguments(DRAFT_EXTEND, "cpu")
    with pytest.raises(TypeError, match=f"^{DRAFT_EXTEND}: {argument} is a .*Raising, must be"):
        nsa_kernel.fill_draft_extend_metadata(**fitting | {argument: Raising()})
    assert printed == []


def test_cuda_arrays_given_to_a_build_without_cuda():
    if nsa_kernel.get_kernel_info()["cuda_version"] or not torch.cuda.is_available():
        pytest.skip("needs a GPU and a build without CUDA")
    for op, calls in CALLS.items():
        fitting, _ = valid_arguments(op, "cuda")
        with pytest.raises(nsa_kernel.CudaError, match=f"^{op}: the arrays are on a CUDA device, must be on the CPU"):
            calls[0](**fitting)
