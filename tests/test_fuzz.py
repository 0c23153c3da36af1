"""The boundary: whatever object stands in whatever argument, the answer is right or the refusal names the argument.

`make test` draws a fixed, bounded set of cases; `make fuzz` draws new ones, as many as FUZZ_EXAMPLES says.
"""

import array
import ctypes
import math
import mmap
import os
import re
import struct

import nsa_kernel
import numpy as np
import pytest
import torch
from arguments import (
    CALLS,
    DRAFT_EXTEND,
    REPLAY,
    ROLES,
    check_refusal,
    drop_in,
    is_output,
    shape_that_fits,
    valid_arguments,
)
from exporters import (
    CPU,
    CUDA,
    CUDA_HOST,
    INT32,
    INT64,
    METAL,
    READ_ONLY,
    ROCM,
    Exporter,
    Layout,
    Tensor,
    borrow,
    borrow_fails_silently,
    borrow_raises,
    table_type,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import CLUSTER_LIMITS, INT32_MAX, SPLITS, draft_extend, replay
from replay_cases import MODES, shapes_of
from torch._subclasses.fake_tensor import FakeTensorMode

settings.register_profile("bounded", max_examples=200, derandomize=True, database=None, deadline=None)
settings.register_profile("fuzz", max_examples=int(os.environ.get("FUZZ_EXAMPLES", "20000")), deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "bounded"))


def check_refused(op, device, name, make, exceptions=TypeError, words=""):
    """The refusal names the argument."""
    # An array on another device than the first one's may be either of the two.
    check_refusal(op, device, exceptions, rf"(.* like )?{name}\b.*{words}", **{name: lambda _: make()})


# Objects that no argument takes, for the roles that each is drawn for. `make` gets the shape that would fit.


def layout(shape, **changes):
    return Layout(**{"memory": bytearray(1024), "shape": shape} | changes)


def raising(error):
    def method(*_, **__):
        raise error

    return method


def with_methods(**methods):
    return type("Odd", (), methods)()


def exporting(answer, device=(CPU, 0)):
    """An object whose `__dlpack__` gives `answer`."""
    return with_methods(__dlpack__=lambda self, **_: answer, __dlpack_device__=lambda self: device)


def on_device(answer):
    """An object whose `__dlpack_device__` gives `answer`."""
    return with_methods(__dlpack__=lambda self, **_: None, __dlpack_device__=lambda self: answer)


def fake(shape, view=lambda tensor: tensor):
    with FakeTensorMode():
        return view(torch.zeros((shape[0] + 2, *shape[1:]), dtype=torch.int32))


def without_storage(shape):
    tensor = torch.zeros(shape, dtype=torch.int32)
    tensor.untyped_storage().resize_(0)
    return tensor


def released_memoryview(shape):
    view = memoryview(np.zeros(shape, np.int32))
    view.release()
    return view


class UnprintableError(Exception):
    def __str__(self):
        raise ZeroDivisionError


class NotUtf8Error(Exception):
    def __str__(self):
        return "\ud800"


class OddMeta(type):
    def __getattribute__(cls, name):
        raise ZeroDivisionError


Tabled = table_type(borrow_from_object=borrow)
UNFIT = {
    "None in a list": lambda shape: [None],
    "generator": lambda shape: (i for i in ()),
    "dict": lambda shape: {},
    "ellipsis": lambda shape: ...,
    "complex": lambda shape: 1j,
    "function": lambda shape: len,
    "module": lambda shape: torch,
    "class of arrays": lambda shape: torch.Tensor,
    "type of arrays": lambda shape: np.ndarray,
    "class that lies": lambda shape: with_methods(__class__=property(lambda self: torch.Tensor)),
    "class without a usable module": lambda shape: with_methods(__module__="\ud800"),
    "class whose module is an int": lambda shape: with_methods(__module__=3),
    "class whose module holds NUL": lambda shape: with_methods(__module__="a\0b"),
    "class named like a format": lambda shape: type("%s%n{}", (), {})(),
    "attributes raise": lambda shape: with_methods(__getattribute__=raising(ZeroDivisionError())),
    "attributes of the class raise": lambda shape: OddMeta("Odd", (), {})(),
    "fresh capsule of another kind": lambda shape: layout(shape).capsule(name=b"buffer"),
    "used capsule": lambda shape: layout(shape).capsule(name=b"used_dltensor"),
    "nameless capsule": lambda shape: layout(shape).capsule(name=None),
    "capsule of many dimensions": lambda shape: layout((1,) * 40).capsule(),
    "export raises": lambda shape: with_methods(
        __dlpack__=raising(RuntimeError("no")), __dlpack_device__=lambda self: (CPU, 0)
    ),
    "export raises on a GPU": lambda shape: with_methods(
        __dlpack__=raising(RuntimeError("no")), __dlpack_device__=lambda self: (CUDA, 0)
    ),
    "export raises the unprintable": lambda shape: with_methods(
        __dlpack__=raising(UnprintableError()), __dlpack_device__=lambda self: (CUDA, 0)
    ),
    "export raises what UTF-8 cannot hold": lambda shape: with_methods(
        __dlpack__=raising(NotUtf8Error()), __dlpack_device__=lambda self: (CUDA, 0)
    ),
    "export gives None": lambda shape: exporting(None),
    "export gives an int": lambda shape: exporting(3),
    "export gives an array": lambda shape: exporting(np.zeros(shape, np.int32)),
    "export gives a used capsule": lambda shape: exporting(layout(shape).capsule(name=b"used_dltensor")),
    "export gives None on a GPU": lambda shape: exporting(None, (CUDA, 0)),
    "export takes no argument": lambda shape: with_methods(
        __dlpack__=lambda self: None, __dlpack_device__=lambda self: (CPU, 0)
    ),
    "export is no method": lambda shape: with_methods(__dlpack__=3, __dlpack_device__=3),
    "device raises": lambda shape: with_methods(
        __dlpack__=lambda self, **_: None, __dlpack_device__=raising(RuntimeError("no"))
    ),
    "device is None": lambda shape: on_device(None),
    "device is a word": lambda shape: on_device("cpu"),
    "device is half a pair": lambda shape: on_device((CUDA,)),
    "device is not a number": lambda shape: on_device((math.nan, 0)),
    "device is infinite": lambda shape: on_device((math.inf, 0)),
    "device is huge": lambda shape: on_device((2**100, 0)),
    "device of Apple": lambda shape: Exporter(layout(shape, device=(METAL, 0))),
    "device of AMD": lambda shape: Exporter(layout(shape, device=(ROCM, 0))),
    "device that nobody has": lambda shape: Exporter(layout(shape, device=(-5, 0))),
    "negative rank": lambda shape: Exporter(layout(shape, ndim=-1)),
    "rank 1000": lambda shape: Exporter(layout(shape, ndim=1000)),
    "negative size": lambda shape: Exporter(layout((-1,) * len(shape))),
    "no address": lambda shape: Exporter(layout(shape, memory=None)),
    "an offset from no address": lambda shape: Exporter(layout(shape, memory=None, byte_offset=8)),
    "two lanes": lambda shape: Exporter(layout(shape, dtype=(0, 32, 2))),
    "no lanes": lambda shape: Exporter(layout(shape, dtype=(0, 32, 0))),
    "no bits": lambda shape: Exporter(layout(shape, dtype=(0, 0, 1))),
    "unsigned": lambda shape: Exporter(layout(shape, dtype=(1, 32, 1))),
    "dtype that nobody has": lambda shape: Exporter(layout(shape, dtype=(77, 32, 1))),
    "table of another version": lambda shape: table_type(major=2, borrow_from_object=borrow)(layout(shape)),
    "table of null entries": lambda shape: table_type()(layout(shape)),
    "table under another name": lambda shape: table_type(capsule_name=b"x", borrow_from_object=borrow)(layout(shape)),
    "table that is no capsule": lambda shape: with_methods(__dlpack_c_exchange_api__=7),
    "table entry that fails": lambda shape: table_type(
        borrow_from_object=borrow_raises, methods={"__bool__": raising(BufferError("not today"))}
    )(layout(shape)),
    "table entry that fails silently": lambda shape: table_type(borrow_from_object=borrow_fails_silently)(
        layout(shape)
    ),
    "table: negative rank": lambda shape: Tabled(layout(shape, ndim=-1)),
    "table: negative size": lambda shape: Tabled(layout((-1,) * len(shape))),
    "table: no address": lambda shape: Tabled(layout(shape, memory=None)),
    "table: an offset from no address": lambda shape: Tabled(layout(shape, memory=None, byte_offset=8)),
    "table: smallest stride": lambda shape: Tabled(layout((3,) * len(shape), strides=(-(2**63),) * len(shape))),
    "fake tensor": fake,
    "view of a fake tensor": lambda shape: fake(shape, lambda tensor: tensor[2:]),
    "meta tensor": lambda shape: torch.zeros(shape, dtype=torch.int32, device="meta"),
    "tensor without storage": without_storage,
    "tensor of zeros alone": lambda shape: torch._efficientzerotensor(shape, dtype=torch.int32),
    "functional tensor": lambda shape: torch._to_functional_tensor(torch.zeros(shape, dtype=torch.int32)),
    "sparse tensor": lambda shape: torch.zeros(shape, dtype=torch.int32).to_sparse(),
    "quantized tensor": lambda shape: torch.quantize_per_tensor(torch.zeros(shape), 1.0, 0, torch.qint32),
    "nested tensor": lambda shape: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
    "tensor of 8-bit floats": lambda shape: torch.zeros(shape, dtype=torch.float8_e5m2),
    "conjugate tensor": lambda shape: torch.zeros(shape, dtype=torch.complex64).conj(),
    "numpy records": lambda shape: np.zeros(shape, [("a", "<i4")]),
    "numpy dates": lambda shape: np.zeros(shape, "M8[s]"),
    "numpy words": lambda shape: np.zeros(shape, "U1"),
    "numpy long doubles": lambda shape: np.zeros(shape, np.longdouble),
    "numpy bytes of no kind": lambda shape: np.zeros(shape, "V4"),
    "numpy of most dimensions": lambda shape: np.zeros((1,) * (64 if np.__version__ >= "2" else 32), np.int32),
    "bytes": lambda shape: bytes(8),
    "bytearray": lambda shape: bytearray(8),
    "memory map": lambda shape: mmap.mmap(-1, 4096),
    "released memoryview": released_memoryview,
    "array of characters": lambda shape: array.array("u", "ab"),
    "ctypes array of the other byte order": lambda shape: (ctypes.c_int32.__ctype_be__ * 2)(),
    "ctypes array of structures": lambda shape: (Tensor * 2)(),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_an_object_that_does_not_fit(device, kind):
    for op, name in ROLES:
        shape = shape_that_fits(op, name)
        # All of them are on the CPU, which may be what is refused.
        exceptions = TypeError if device == "cpu" else (TypeError, ValueError)
        check_refused(op, device, name, lambda shape=shape: UNFIT[kind](shape), exceptions)


def test_at_least_sixty_kinds_of_object_are_tried():
    assert len(UNFIT) >= 60


READ_ONLY_OBJECTS = {
    "exporter that says so": lambda shape: Exporter(layout(shape), flags=READ_ONLY),
    "versioned capsule that says so": lambda shape: layout(shape).versioned_capsule(flags=READ_ONLY),
    "memoryview": lambda shape: memoryview(np.zeros(shape, np.int32)).toreadonly(),
    "numpy broadcast": lambda shape: np.broadcast_to(np.int32(1), shape),
}


@pytest.mark.parametrize("kind", READ_ONLY_OBJECTS)
def test_an_output_that_is_read_only(device, kind):
    for (op, name), role in ROLES.items():
        if is_output(role):
            shape = shape_that_fits(op, name)
            check_refused(op, device, name, lambda shape=shape: READ_ONLY_OBJECTS[kind](shape), words="is read-only")


def test_an_array_on_a_gpu_among_those_of_the_cpu():
    for make in (Exporter, Tabled, lambda layout: layout.capsule()):
        for op, name in ROLES:
            shape = shape_that_fits(op, name)
            arguments, outputs = valid_arguments(op, "cpu")
            with pytest.raises(ValueError, match=rf"^{op}: \w+ is on \S+, must be on \S+ like \w+$"):
                CALLS[op][0](**arguments | {name: make(layout(shape, device=(CUDA, 0)))})
            for output in outputs.values():
                output.check_untouched(name)


# Objects that are unusual and fit.


def ctypes_array(values):
    return (ctypes.c_int32 * len(values))(*values)


def over(values, make):
    return make(layout((len(values),), memory=bytearray(struct.pack(f"{len(values)}i", *values))))


FIT = {
    "capsule": lambda values: over(values, Layout.capsule),
    "capsule that nobody frees": lambda values: over(values, lambda at: at.capsule(deleter=False)),
    "versioned capsule": lambda values: over(values, Layout.versioned_capsule),
    "exporter": lambda values: over(values, Exporter),
    "exporter of the first protocol": lambda values: over(values, lambda at: Exporter(at, versioned=False)),
    "exchange table": lambda values: over(values, Tabled),
    "older exchange table behind a newer one": lambda values: over(values, table_type(major=2, previous=Tabled.table)),
    "exporter with a table of null entries": lambda values: over(
        values,
        table_type(
            methods={"__dlpack__": Exporter.__dlpack__, "__dlpack_device__": lambda self: (CPU, 0), "asked": []}
            | {"flags": 0, "versioned": True, "major": 1}
        ),
    ),
    "memory that CUDA locked": lambda values: over(
        values, lambda at: Exporter(Layout(at.memory, (len(values),), device=(CUDA_HOST, 0)))
    ),
    "memoryview": lambda values: memoryview(np.array(values, np.int32)),
    "array.array": lambda values: array.array("i", values),
    "ctypes array": ctypes_array,
    "numpy subclass": lambda values: np.ma.array(values, dtype=np.int32),
    "torch parameter": lambda values: torch.nn.Parameter(torch.tensor(values, dtype=torch.int32), requires_grad=False),
    "torch subclass": lambda values: torch.tensor(values, dtype=torch.int32).as_subclass(torch.nn.Buffer),
    "inference tensor": torch.inference_mode()(lambda values: torch.tensor(values, dtype=torch.int32)),
}


@pytest.mark.parametrize("kind", FIT)
@pytest.mark.parametrize("call", CALLS[DRAFT_EXTEND], ids=lambda call: call.__name__)
def test_an_object_that_fits(kind, call):
    outputs = [np.zeros(5, np.int32), np.zeros(5, np.int32)]
    result = call(FIT[kind]([2, 3]), FIT[kind]([10, 15]), 12, *outputs)
    if call is nsa_kernel.DraftExtendPlan:
        result.run()
    elif drop_in(call):
        assert np.asarray(result).item() == 5
    assert [output.tolist() for output in outputs] == [[9, 10, 13, 14, 15], [9, 10, 12, 12, 12]]


@pytest.mark.parametrize("make", [ctypes_array, lambda values: array.array("i", values)], ids=["ctypes", "array"])
def test_a_buffer_that_fits_as_output(make):
    expanded, clipped = make([7] * 3), make([7] * 3)
    nsa_kernel.fill_draft_extend_metadata(make([2]), make([10]), 9, expanded, clipped)
    assert [*expanded] == [9, 10, 7]
    assert [*clipped] == [9, 9, 7]


# Numbers, words, flags and streams.


class Index:
    def __init__(self, index):
        self.index = index

    def __index__(self):
        return self.index()


class OddInt(int):
    def __repr__(self):
        return "\ud800"


class OddStr(str):
    def __repr__(self):
        return "\ud800"


class SilentInt(int):
    def __repr__(self):
        raise ZeroDivisionError


class SilentStr(str):
    def __repr__(self):
        raise ZeroDivisionError


NUMBERS = {
    "None": None,
    "not a number": math.nan,
    "word": "7",
    "more digits than Python prints": 10**5000,
    "as many below zero": -(10**5000),
    "int that prints no UTF-8": OddInt(2**70),
    "int that raises when printed": SilentInt(2**70),
    "index raises": Index(raising(RuntimeError("no"))),
    "index raises a TypeError": Index(raising(TypeError("no"))),
    "index gives a word": Index(lambda: "a"),
    "index gives too much": Index(lambda: 2**64),
    "two numbers": torch.tensor([3, 4]),
    "fake number": fake((1,), lambda tensor: tensor[0]),
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_a_number_that_does_not_fit(kind):
    for op, name in [(DRAFT_EXTEND, "nsa_index_topk"), (REPLAY, "nsa_index_topk"), (REPLAY, "page_size")]:
        words = "must (be an int|be given with nsa_cache_seqlens|fit in 64 bits)$"  # of replay it is needed at times
        check_refused(op, "cpu", name, lambda: NUMBERS[kind], (TypeError, ValueError), words)


@pytest.mark.parametrize(
    "number", [True, np.int8(3), np.int64(3), np.array(3), torch.tensor(3), OddInt(3), Index(lambda: 3)], ids=type
)
def test_a_number_that_fits(number):
    for call in (nsa_kernel.fill_draft_extend_metadata, nsa_kernel.fill_draft_extend_metadata_cuda):
        arguments, _ = valid_arguments(DRAFT_EXTEND, "cpu", call)
        call(**arguments | {"nsa_index_topk": number})
        assert arguments["out_nsa_cache_seqlens"].tolist() == [int(number.__index__())] * 5


WORDS = {
    "what UTF-8 cannot hold": "\ud800",
    "NUL in it": "basic\0",
    "a million letters": "x" * 10**6,
    "str that prints no UTF-8": OddStr("x"),
    "str that raises when printed": SilentStr("x"),
    "None": None,
    "bytes": b"basic",
}


@pytest.mark.parametrize("kind", WORDS)
def test_a_word_that_does_not_fit(kind):
    for op, name in [(DRAFT_EXTEND, "variant"), (REPLAY, "mode"), (REPLAY, "schedule_rows")]:
        check_refused(op, "cpu", name, lambda: WORDS[kind], (TypeError, ValueError), "must be ")


STREAMS = {
    "more digits than Python prints": 10**5000,
    "int that prints no UTF-8": OddInt(-1),
    "int that raises when printed": SilentInt(-1),
    "protocol that raises on access": with_methods(__cuda_stream__=property(raising(RuntimeError("no")))),
    "torch's attribute that raises": with_methods(cuda_stream=property(raising(RuntimeError("no")))),
    "protocol with too many digits": with_methods(__cuda_stream__=lambda self: (0, 10**5000)),
    "protocol with a bool": with_methods(__cuda_stream__=(0, True)),
    "attributes raise": with_methods(__getattr__=raising(ZeroDivisionError())),
    "class": int,
}


@pytest.mark.parametrize("kind", STREAMS)
def test_a_stream_that_does_not_fit(kind):
    arguments, outputs = valid_arguments(DRAFT_EXTEND, "cpu")
    plan = nsa_kernel.DraftExtendPlan(**arguments)
    for call in (lambda stream: nsa_kernel.fill_draft_extend_metadata(**arguments, stream=stream), plan.run):
        with pytest.raises(TypeError, match=f"^{DRAFT_EXTEND}: stream is .*, must be None, an int handle, or an"):
            call(STREAMS[kind])
    for name, output in outputs.items():
        output.check_untouched(name)


@pytest.mark.parametrize("flag", [0, 1, None, "", np.bool_(True), torch.tensor(False)], ids=repr)
def test_a_flag_counts_as_python_counts_it(flag):
    arguments, _ = valid_arguments(DRAFT_EXTEND, "cpu", nsa_kernel.fill_draft_extend_metadata_cuda)
    assert nsa_kernel.fill_draft_extend_metadata_cuda(**arguments, use_adaptive=flag, use_optimized=flag) == 5


def test_a_flag_that_has_no_truth():
    arguments, outputs = valid_arguments(DRAFT_EXTEND, "cpu", nsa_kernel.fill_draft_extend_metadata_cuda)
    for name in ("use_adaptive", "use_optimized"):
        with pytest.raises(TypeError, match=f"^{DRAFT_EXTEND}: {name} is a ndarray.*, must be a bool$"):
            nsa_kernel.fill_draft_extend_metadata_cuda(**arguments, **{name: np.zeros(2)})
    outputs["out_seqlens_expanded"].check_untouched("out_seqlens_expanded")


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_an_interruption_is_not_a_refusal(interruption):
    arguments, _ = valid_arguments(DRAFT_EXTEND, "cpu")
    interrupted = with_methods(__dlpack_device__=raising(interruption()))
    for change in ({"nsa_index_topk": Index(raising(interruption()))}, {"seq_lens": interrupted}):
        with pytest.raises(interruption):
            nsa_kernel.fill_draft_extend_metadata(**arguments | change)


def test_a_number_that_moves_an_array_as_it_is_read():
    q, *outputs = torch.tensor([2], dtype=torch.int32), *torch.zeros((2, 2), dtype=torch.int32)

    def resize():
        q.resize_(1 << 20)
        return 12

    with pytest.raises(ValueError, match="must have as many as"):
        nsa_kernel.fill_draft_extend_metadata(q, torch.tensor([10]), Index(resize), *outputs)


# Random layouts, most of them right: the rules of the boundary, stated a second time.

CENTRE, MEMORY = 2048, 4096
DTYPES = {INT32: np.int32, INT64: np.int64, (2, 32, 1): np.float32, (0, 16, 1): np.int16, (1, 32, 1): np.uint32}
CARRIERS = ["numpy", "torch", "memoryview", "exporter", "first exporter", "capsule", "table"]


class Drawn:
    """An array of a random layout in memory of its own."""

    def __init__(self, draw, role, shape, values):
        seldom = st.integers(0, 19)
        self.role = role
        self.carrier = draw(st.sampled_from(CARRIERS))
        by_hand = self.carrier in CARRIERS[3:]
        if draw(seldom) == 0:
            shape = draw(st.lists(st.integers(0, 4), max_size=3))
        self.shape = tuple(shape)
        self.dtype = INT32
        if draw(seldom) < (8 if role == "length" else 1):
            self.dtype = INT64 if draw(seldom) < 16 else draw(st.sampled_from([*DTYPES]))
        self.size = self.dtype[1] // 8
        self.strides = [math.prod(self.shape[i + 1 :]) for i in range(len(self.shape))]
        if draw(seldom) < 6:
            least = 0 if self.carrier == "torch" else -2
            self.strides = [draw(st.integers(max(least, stride - 2), stride + 3)) for stride in self.strides]
        shift = draw(st.integers(0, 3)) * self.size
        if self.carrier != "torch" and draw(seldom) == 0:
            shift += draw(st.integers(1, 7))
        self.start = CENTRE + shift
        self.device = (CPU, 0)
        if by_hand and draw(seldom) == 0:
            self.device = draw(st.sampled_from([(CUDA_HOST, 0), (METAL, 0), (ROCM, 1), (CPU, 3)]))
        may_forbid = self.carrier in ("numpy", "memoryview", "exporter")
        self.read_only = may_forbid and draw(seldom) == 0
        self.memory = bytearray(draw(st.binary(min_size=1, max_size=1)) * MEMORY)
        for index in np.ndindex(*self.shape):
            self.write(index, draw(values))

    def offset(self, index):
        return self.start + self.size * sum(i * stride for i, stride in zip(index, self.strides, strict=True))

    def write(self, index, value):
        struct.pack_into({8: "q", 4: "i", 2: "h"}[self.size], self.memory, self.offset(index), value)

    def tolist(self):
        """Of what fits."""
        code = "q" if self.size == 8 else "i"

        def at(*index):
            return struct.unpack_from(code, self.memory, self.offset(index))[0]

        if len(self.shape) == 1:
            return [at(i) for i in range(self.shape[0])]
        return [[at(r, c) for c in range(self.shape[1])] for r in range(self.shape[0])]

    def fits(self):
        rank = 2 if "table" in self.role else 1
        output = "output" in self.role
        if self.dtype != INT32 and not (self.dtype == INT64 and self.role == "length"):
            return False
        if len(self.shape) != rank or self.device[0] not in (CPU, CUDA_HOST) or (output and self.read_only):
            return False
        if 0 in self.shape:
            return True
        if self.start % self.size:
            return False
        last, columns = self.strides[-1], self.shape[-1]
        if columns > 1 and (last < 1 if self.role == "length" else last != 1):
            return False
        return rank == 1 or self.shape[0] == 1 or self.strides[0] >= (columns if output else 1)

    def holds_pairs(self):
        """Whether a table that fits is contiguous, and its pairs are aligned."""
        return 0 in self.shape or (self.start % 8 == 0 and (self.shape[0] == 1 or self.strides[0] == 2))

    def array(self):
        if self.carrier in ("numpy", "memoryview", "torch"):
            strides = [stride * self.size for stride in self.strides]
            result = np.ndarray(self.shape, DTYPES[self.dtype], self.memory, self.start, strides)
            if self.carrier == "torch":
                return torch.from_numpy(result)
            result.flags.writeable = not self.read_only
            return result if self.carrier == "numpy" else memoryview(result)
        layout = Layout(self.memory, self.shape, self.strides, self.dtype, self.device, byte_offset=self.start)
        if self.carrier == "capsule":
            return layout.capsule()
        if self.carrier == "table":
            return Tabled(layout)
        return Exporter(layout, flags=READ_ONLY * self.read_only, versioned=self.carrier == "exporter")


def refusal_of(call, arguments):
    try:
        plan = call(**arguments)
        if isinstance(call, type):
            plan.run()
    except (TypeError, ValueError) as refusal:
        return refusal
    return None


def run_drawn(op, call, drawn, others):
    """Whether the call was accepted; otherwise its refusal was right and nothing was written."""
    before = {name: bytes(array.memory) for name, array in drawn.items()}
    unfit = {name for name, array in drawn.items() if not array.fits()}
    arguments = {name: array.array() for name, array in drawn.items()}
    refusal = refusal_of(call, arguments | others)
    if refusal is None:
        assert not unfit, f"{unfit} must be refused"
        return True
    named = re.match(rf"{op}: (?:the size of )?(\w+) ", str(refusal))
    assert named, refusal
    if not unfit and named[1] in ("schedule", "topk_plan") and not drawn[named[1]].holds_pairs():
        unfit = {named[1]} if re.search("must be (contiguous|aligned)$", str(refusal)) else unfit
    assert type(refusal) is (TypeError if unfit else ValueError), (refusal, unfit)
    assert named[1] in (unfit or {*drawn, *others}), (refusal, unfit)
    assert {name: bytes(array.memory) for name, array in drawn.items()} == before
    return False


def check_written(drawn, expected):
    """Every byte is as it was, but for the elements that the oracle names."""
    for name, values in expected.items():
        rows = values if values and isinstance(values[0], list) else [values]
        for r, row in enumerate(rows):
            for c, value in enumerate(row):
                if value is not None:
                    drawn[name].write((c,) if len(drawn[name].shape) == 1 else (r, c), value)


@given(st.data())
def test_random_layouts_of_draft_extend(data):
    draw, bs = data.draw, data.draw(st.integers(0, 5))
    call = draw(st.sampled_from([nsa_kernel.fill_draft_extend_metadata, nsa_kernel.DraftExtendPlan]))
    value, topk = st.integers(-2, 9), draw(st.sampled_from([0, 3, 2048]))
    drawn = {name: Drawn(draw, "length", (bs,), value) for name in ("extend_seq_lens", "seq_lens")}
    for name in ("out_seqlens_expanded", "out_nsa_cache_seqlens"):
        drawn[name] = Drawn(draw, "output", (draw(st.integers(0, 20)),), value)
    drawn["out_num_tokens"] = Drawn(draw, "output", (draw(st.integers(0 if bs == 5 else 1, 2)),), value)
    inputs = [drawn[name].tolist() if drawn[name].fits() else [] for name in ("extend_seq_lens", "seq_lens")]
    outputs = [name for name in drawn if name.startswith("out")]
    others = {"nsa_index_topk": topk, "variant": draw(st.sampled_from(["basic", "adaptive", "optimized"]))}
    if not run_drawn(DRAFT_EXTEND, call, drawn, others):
        return
    after = {name: bytes(drawn[name].memory) for name in drawn}
    expanded, clipped, count = draft_extend(*inputs, topk, min(drawn[name].shape[0] for name in outputs[:2]))
    assert len(inputs[0]) == len(inputs[1])
    check_written(drawn, dict(zip(outputs, (expanded, clipped, [count]), strict=True)))
    assert {name: bytes(array.memory) for name, array in drawn.items()} == after


@given(st.data())
def test_random_layouts_of_replay(data):
    draw = data.draw
    bs, n, page_size = draw(st.integers(0, 4)), draw(st.integers(0, 3)), draw(st.integers(1, 4))
    mode = draw(st.sampled_from(MODES))
    call = draw(st.sampled_from([nsa_kernel.fill_replay_metadata, nsa_kernel.ReplayPlan]))
    length, width = st.integers(-2, 9), draw(st.integers(0, 9))
    drawn = {"seq_lens": Drawn(draw, "length", (bs,), length)}
    if mode == "ragged":
        drawn["extend_seq_lens"] = Drawn(draw, "length", (bs,), st.integers(-1, 3))
    rows, more = bs * {"decode": 1, "ragged": 2}.get(mode, n), st.integers(0, 2)
    shapes = shapes_of(mode, bs, rows, n, width, page_size)
    for name, shape in shapes.items():
        if draw(st.booleans()):
            role = "output table" if len(shape) == 2 else "output"
            drawn[name] = Drawn(draw, role, [size + draw(more) for size in shape], length)
    schedules = {"schedule": 1 + draw(st.integers(1, 4)), "topk_plan": 1 + rows + draw(more)}
    shapes |= {name: (rows, 2) for name, rows in schedules.items() if draw(st.booleans())}
    drawn |= {name: Drawn(draw, "output table", shapes[name], length) for name in schedules if name in shapes}
    if "page_table" in drawn or "real_page_table" in drawn:
        drawn["req_pool_indices"] = Drawn(draw, "length", (bs,), st.integers(-1, 3))
        drawn["req_to_token"] = Drawn(draw, "table", (3, width), st.integers(-9, 99))
    values = {name: array.tolist() if array.fits() else [] for name, array in drawn.items()}
    op_mode = "draft_extend" if mode == "ragged" else mode
    topk = draw(st.sampled_from([0, 4, INT32_MAX]))
    scheduling = {}
    if "schedule" in drawn:
        scheduling |= {"schedule_format": draw(st.sampled_from([*SPLITS])), "schedule_rows": "token"}
        if mode != "ragged":
            scheduling["schedule_rows"] = draw(st.sampled_from(["token", "request"]))
    if "topk_plan" in drawn:
        scheduling |= {"topk_plan_format": draw(st.sampled_from([*CLUSTER_LIMITS])), "topk_plan_clusters": 1}
    others = {"mode": op_mode, "nsa_index_topk": topk, "page_size": page_size, "num_draft_tokens": n} | scheduling
    if not run_drawn(REPLAY, call, drawn, others):
        return
    after = {name: bytes(array.memory) for name, array in drawn.items()}
    expected = replay(
        op_mode,
        values["seq_lens"],
        topk,
        {name: drawn[name].shape for name in shapes if name in drawn},
        num_draft_tokens=n,
        extend_seq_lens=values.get("extend_seq_lens"),
        req_pool_indices=values.get("req_pool_indices"),
        req_to_token=values.get("req_to_token"),
        req_to_token_width=drawn["req_to_token"].shape[1] if "req_to_token" in drawn else 0,
        page_size=page_size,
        **scheduling,
    )
    check_written(drawn, expected)
    assert {name: bytes(array.memory) for name, array in drawn.items()} == after


ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=4),
    st.binary(max_size=8),
    st.lists(st.integers(), max_size=3),
    st.sampled_from([object(), type, len, ..., NotImplemented, np.zeros(2), torch.zeros(2), np.int32, torch.int32]),
)


@given(st.sampled_from([*ROLES, (DRAFT_EXTEND, "stream"), (REPLAY, "num_draft_tokens")]), ANYTHING)
def test_anything_anywhere(where, value):
    op, name = where
    for call in CALLS[op]:
        arguments, _ = valid_arguments(op, "cpu", call)
        if name == "stream" and isinstance(call, type):
            continue
        refusal = refusal_of(call, arguments | {name: value})
        if refusal is None or (drop_in(call) and name == "out_num_tokens"):
            continue  # the drop-in functions have no such argument
        named = re.match(rf"{op}: (\w+) ", str(refusal))
        assert named, refusal
        assert named[1] == name or type(refusal) is ValueError, refusal
