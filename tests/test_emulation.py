"""The CUDA sources on a machine without a GPU: each thread takes its turn, and the result is held to the same oracle.

Every block runs alone, its warps and lanes in a random order. Threads that meet others at different places, or wait for
some that never come, are an error. What only a GPU shows, races and its own instructions, is left to it.
"""

import ctypes
import inspect
import os
import random
import shutil
import subprocess
from pathlib import Path

import draft_extend_cases
import indexer_cases
import nsa_kernel
import pytest
import replay_cases
import schedule_cases
import torch
from ops import OPS

ROOT = Path(__file__).resolve().parents[1]
COMPILER = shutil.which("g++") or shutil.which("c++")
FLAGS = [
    *("-std=c++20", "-O1", "-shared", "-fPIC", "-fvisibility=hidden", "-Wno-unknown-pragmas"),
    *("-ffunction-sections", "-Wl,--gc-sections"),  # what waits for a device is not there
    "-U_FORTIFY_SOURCE",  # a checked longjmp takes the stacks of threads for one
    *os.environ.get("CXXFLAGS", "").split(),  # the sanitizers of `make asan`
]
SOURCES = [
    *("tests/emulation/entry.cpp", "tests/emulation/machine.cpp"),
    *("cpp/src/draft_extend.cpp", "cpp/src/indexer.cpp", "cpp/src/replay.cpp"),
]
DEVICE_SOURCES = [
    *("cuda/draft_extend.cu", "cuda/replay/replay.cu"),
    *("cuda/indexer/decode.cu", "cuda/indexer/prefill.cu", "cuda/indexer/token_requests.cu"),
]
FOLDERS = ["tests/emulation", "cuda", "cpp/src", "cpp/include"]
EMPTY = 16  # an address for arrays that have none: they are given, and nothing is there

pytestmark = pytest.mark.skipif(not COMPILER, reason="needs a C++ compiler")


class Value(ctypes.Structure):
    """An argument as `emulation/entry.cpp` reads it."""

    _fields_ = (
        ("is_given", ctypes.c_int64),
        ("number", ctypes.c_int64),
        ("word", ctypes.c_char_p),
        ("data", ctypes.c_void_p),
        *[(name, ctypes.c_int64) for name in ("size", "cols", "stride", "is_int64")],
    )


def as_value(value):
    if value is None:
        return Value()
    if isinstance(value, str):
        return Value(1, word=value.encode())
    if isinstance(value, int):
        return Value(1, value)
    address, rows = value.data_ptr() or EMPTY, value.shape[0]
    cols = value.shape[1] if value.dim() == 2 else 1
    stride = value.stride(0) if rows > 1 or value.dim() == 2 else 1
    return Value(1, 0, None, address, rows, cols, stride, value.dtype == torch.int64)


class Machine:
    """A device of so many multiprocessors; `seed` decides who takes which turn.

    A negative number of multiprocessors: it has the generic kernels alone.
    """

    def __init__(self, kernels, multiprocessors, seed=0):
        self.kernels, self.where = kernels, (multiprocessors, ctypes.c_uint64(seed))

    def draft_extend(self, arrays, outputs, variant):
        self._call(nsa_kernel.fill_draft_extend_metadata, *arrays, *outputs, variant=variant)

    def replay(self, mode, arguments):
        self._call(nsa_kernel.fill_replay_metadata, mode, **arguments)

    def indexer_decode(self, layout, arguments):
        self._call(nsa_kernel.fill_indexer_decode_metadata, layout, **arguments)

    def indexer_prefill(self, arguments):
        self._call(nsa_kernel.fill_indexer_prefill_metadata, **arguments)

    def token_requests(self, arguments):
        self._call(nsa_kernel.fill_token_requests, **arguments)

    def _call(self, function, *args, **kwargs):
        """The arguments of the public function, in its order."""
        signature = inspect.signature(function)
        given = signature.bind(*args, **kwargs).arguments
        values = [as_value(given.get(name)) for name in signature.parameters if name != "stream"]
        emulated = getattr(self.kernels, function.__name__)
        emulated.restype = ctypes.c_char_p  # what went wrong, if anything
        error = emulated(*self.where, (Value * len(values))(*values))
        assert error is None, error.decode()


@pytest.fixture(scope="session")
def kernels(tmp_path_factory):
    target = tmp_path_factory.mktemp("emulation") / "kernels.so"
    folders = [f"-I{folder}" for folder in FOLDERS]
    command = [COMPILER, *FLAGS, *folders, "-o", target, *SOURCES, "-x", "c++", *DEVICE_SOURCES]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(target))


@pytest.mark.parametrize("multiprocessors", [1, 3, 20])
@pytest.mark.parametrize("variant", draft_extend_cases.VARIANTS)
def test_draft_extend_by_name(kernels, variant, multiprocessors):
    way = Machine(kernels, multiprocessors).draft_extend
    for case in draft_extend_cases.NAMED_CASES.values():
        draft_extend_cases.check(**case, device="cpu", variant=variant, way=way)


def way_of(machine, op):
    return machine.replay if op == "schedule" else getattr(machine, op)


@pytest.mark.parametrize("multiprocessors", [1, 3, 20, -3])
@pytest.mark.parametrize(
    ("op", "name"), [(op, name) for op in OPS if op != "draft_extend" for name in OPS[op].named_cases]
)
def test_by_name(kernels, op, name, multiprocessors):
    OPS[op].check(**OPS[op].named_cases[name], device="cpu", way=way_of(Machine(kernels, multiprocessors), op))


@pytest.mark.parametrize("multiprocessors", [1, 4])
@pytest.mark.parametrize("bs", [0, 1, 16, 17, 32, 33, 128, 129, 512, 513, 1024, 1025, 2100])
def test_batch_sizes(kernels, bs, multiprocessors):
    draw = random.Random(bs)
    q = [draw.choice([0, 1, 2, 3, 40 if b == bs // 2 else 4]) for b in range(bs)]
    k = [draw.randrange(90) for _ in range(bs)]
    machine = Machine(kernels, multiprocessors, seed=bs)
    for variant in draft_extend_cases.VARIANTS:
        draft_extend_cases.check(q, k, 40, device="cpu", variant=variant, way=machine.draft_extend)
    pool, indices = [list(range(60)), list(range(600, 660))], [b % 3 for b in range(bs)]
    for mode in replay_cases.MODES:
        replay_cases.check(
            mode, k, q=q, topk=40, width=60, pool=pool, indices=indices, page_size=8, device="cpu", way=machine.replay
        )
        for fmt, rows in schedule_cases.FORMATS:
            if schedule_cases.fits(mode, fmt, rows):
                case = schedule_cases.of(fmt, rows, slots=33) | schedule_cases.plan(bs // 2)
                schedule_cases.check(mode, [700 * kv for kv in k], q=q, **case, device="cpu", way=machine.replay)


@pytest.mark.parametrize("multiprocessors", [1, 4])
@pytest.mark.parametrize("bs", [0, 1, 32, 33, 256, 257, 512, 513, 1024, 1025, 2100])
def test_batch_sizes_of_the_indexer(kernels, bs, multiprocessors):
    draw = random.Random(bs)
    q = [draw.choice([0, 1, 2, 3, 40 if b == bs // 2 else 4]) for b in range(bs)]
    k = [draw.randrange(900) for _ in range(bs)]
    machine, starts = Machine(kernels, multiprocessors, seed=bs), indexer_cases.starts(q)
    for tokens in ({"query_start_loc": starts}, {"query_lens": q}, {"max_query_len": 2}):
        count = 2 * bs if "max_query_len" in tokens else sum(q)
        for num_tokens in (count, count + 9, max(count - 3, 0)):
            case = tokens | {"num_tokens": num_tokens, "width": 12}
            for by in ({}, *(schedule_cases.of(fmt, rows, slots=33) for fmt, rows in INDEXER_FORMATS)):
                indexer_cases.check_decode("rows", k, **case, **by, device="cpu", way=machine.indexer_decode)
    native = {"query_lens": q, "max_query_len": 3, "names": indexer_cases.NATIVE_OUTPUTS}
    for by in ({}, *(schedule_cases.of(fmt, "request", slots=33) for fmt, _ in INDEXER_FORMATS)):
        indexer_cases.check_decode("native", k, **native, **by, device="cpu", way=machine.indexer_decode)
    ranks = {"compress_ratio": 2, "dcp_world": 3, "dcp_rank": 1, "dcp_interleave": 4}
    for chunk in ({}, {"first_request": bs // 3, "end_request": bs - bs // 5, "first_row": 5, "end_row": 900} | ranks):
        indexer_cases.check_prefill(starts, k, **chunk, device="cpu", way=machine.indexer_prefill)
    indexer_cases.check_token_requests(starts, sum(q) + 50, sum(q) + 4, device="cpu", way=machine.token_requests)


INDEXER_FORMATS = [("deepgemm_sm90", "token"), ("deepgemm_sm100_256", "token"), ("deepgemm_sm100_384", "request")]


@pytest.mark.parametrize("multiprocessors", [1, 2, 5])
@pytest.mark.parametrize("slack", [0, 1], ids=["aligned", "odd"])
@pytest.mark.parametrize(("bs", "width"), [(1, 30_000), (7, 9_000), (40, 3_000), (520, 700)])
def test_a_few_long_block_tables_among_short_ones(kernels, bs, width, slack, multiprocessors):
    draw = random.Random(bs)
    k = [draw.randrange(60) for _ in range(bs)]
    k[draw.randrange(bs)] = 64 * width
    indexer_cases.check_decode(
        "rows",
        k,
        query_lens=[draw.choice([1, 2, 20 if b == bs - 1 else 0]) for b in range(bs)],
        width=width,
        slack={"expanded_block_table": (slack, slack)},
        device="cpu",
        way=Machine(kernels, multiprocessors, seed=bs).indexer_decode,
    )


@pytest.mark.parametrize("multiprocessors", [1, 2, 5])
@pytest.mark.parametrize("mode", ["draft_extend", "ragged"])
@pytest.mark.parametrize(("bs", "width"), [(1, 30_000), (7, 9_000), (40, 3_000), (520, 700)])
def test_a_few_long_requests_among_short_ones(kernels, bs, width, mode, multiprocessors):
    """More than the warps of one request can do."""
    draw = random.Random(bs)
    kv = [draw.randrange(60) for _ in range(bs)]
    kv[draw.randrange(bs)], kv[-1] = width - 1, width + 9
    replay_cases.check(
        mode,
        kv,
        q=[draw.choice([1, 2, 20 if b == bs - 1 else 0]) for b in range(bs)],
        n=2,
        width=width,
        pool=[[7 * c + row for c in range(width)] for row in range(3)],
        indices=[draw.randrange(3) for _ in range(bs)],
        page_size=5,
        names=replay_cases.TABLES,
        device="cpu",
        way=Machine(kernels, multiprocessors, seed=bs).replay,
    )


@pytest.mark.parametrize("op", OPS)
def test_random_cases_equal_the_oracle(kernels, op, random_cases):
    for seed, reproducible in random_cases:
        draw = random.Random(seed)
        case = OPS[op].draw_case(draw)
        machine = Machine(kernels, draw.choice([1, 2, 3, 7, 24]), seed)
        with reproducible:
            OPS[op].check(**case | {"way": way_of(machine, op)}, device="cpu")
