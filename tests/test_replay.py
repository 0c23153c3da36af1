"""`replay` against the oracle: every mode, any subset of the outputs, every way to call it, every device."""

import random

import nsa_kernel
import numpy as np
import pytest
import torch
from memory import INT64_EDGES, POISON, Output, lengths, table
from reference import INT32_MAX, PER_TOKEN
from replay_cases import MODES, NAMED_CASES, OUTPUTS, TABLES, by_function, by_plan, check, shapes_of

SIZES = [0, 1, 16, 17, 127, 128, 1023, 1024, 1025, 4097, 100_000]


def test_an_example_of_every_output(device):
    """Two requests of 5 and 3 KV entries, two draft tokens each, pages of two slots."""
    seq_lens = torch.tensor([5, 3], device=device)
    req_to_token = torch.tensor([[20, 21, 24, 25, 30, 0], [10, 11, 16, 0, 0, 0]], dtype=torch.int32, device=device)
    req_pool_indices = torch.tensor([0, 1], device=device)
    shapes = shapes_of("draft_extend", bs=2, rows=4, n=2, width=6, page_size=2)
    out = {name: torch.full(shape, -1, dtype=torch.int32, device=device) for name, shape in shapes.items()}
    assert (
        nsa_kernel.fill_replay_metadata(
            "draft_extend",
            seq_lens=seq_lens,
            nsa_index_topk=4,
            req_pool_indices=req_pool_indices,
            req_to_token=req_to_token,
            num_draft_tokens=2,
            page_size=2,
            **out,
        )
        is None
    )
    assert {name: output.tolist() for name, output in out.items()} == {
        "cache_seqlens": [5, 3],
        "cu_seqlens_k": [0, 5, 8],
        "seqlens_expanded": [4, 5, 2, 3],
        "nsa_cache_seqlens": [4, 4, 2, 3],
        "nsa_cu_seqlens_k": [0, 4, 8, 10, 13],
        "page_table": [[20, 21, 24, 25, 30, -1]] * 2 + [[10, 11, 16, -1, -1, -1]] * 2,
        "real_page_table": [[10, 12, 15]] * 2 + [[5, 8, -1]] * 2,
        "ctx_lens_2d": [[5, 5], [3, 3]],
        "num_tokens": [4],
    }


@pytest.mark.parametrize("way", [by_function, by_plan])
@pytest.mark.parametrize("case", NAMED_CASES.values(), ids=NAMED_CASES.keys())
def test_named_case(device, case, way):
    check(**case, device=device, way=way)


@pytest.mark.parametrize("mode", MODES)
def test_no_requests(device, mode):
    check(mode, [], q=[], width=4, device=device)
    longer = {"cu_seqlens_k": (3,), "seqlens_expanded": (3,), "nsa_cache_seqlens": (4,), "nsa_cu_seqlens_k": (5,)}
    check(mode, [], q=[], width=4, shapes=longer | {"page_table": (2, 4), "real_page_table": (2, 4)}, device=device)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", OUTPUTS)
def test_each_output_alone(device, mode, name):
    if name == "ctx_lens_2d" and mode in ("decode", "ragged"):
        pytest.skip("the mode has no ctx_lens_2d")
    check(mode, [6, 0, 300], q=[2, 3, 1], width=280, page_size=64, names=[name], device=device)


@pytest.mark.parametrize("mode", MODES)
def test_no_output_at_all(device, mode):
    check(mode, [6, 0, 300], q=[2, 3, 1], names=[], device=device)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("page_size", [1, 2, 3, 16, 64, 100, 4096, INT32_MAX])
def test_any_page_size(device, mode, page_size):
    check(mode, [0, 1, 63, 64, 65, 128, 250], q=[1, 2, 0, 1, 2, 3, 1], width=200, page_size=page_size, device=device)


@pytest.mark.parametrize(
    "page_size",
    [1, 2, 3, 5, 7, 10, 63, 64, 65, 1000, 2**16 - 1, 2**16, 2**16 + 1, 10**9 + 7, 2**30, INT32_MAX],
)
def test_pages_of_slots_around_every_boundary(device, page_size):
    last = INT32_MAX // page_size
    near = {page * page_size + step for page in (0, 1, 2, 3, last // 2, last - 1, last) for step in (-1, 0, 1)}
    pool = [[slot] for slot in sorted({*near, *(-slot for slot in near)}) if -(2**31) <= slot <= INT32_MAX]
    pool += [[-(2**31)], [INT32_MAX]]
    check("decode", [1] * len(pool), pool=pool, width=1, page_size=page_size, names=TABLES, device=device)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bs", SIZES)
def test_any_number_of_requests(device, mode, bs):
    draw = random.Random(bs)
    seq_lens = [draw.choice([0, 3, 9, 40, draw.randrange(5000)]) for _ in range(bs)]
    q = [draw.randrange(4) for _ in range(bs)]
    pool = [[draw.randrange(10**6) for _ in range(5)] for _ in range(7)]
    indices = [draw.randrange(-1, 8) for _ in range(bs)]
    check(mode, seq_lens, q=q, n=2, pool=pool, indices=indices, width=5, page_size=2, device=device)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 127, 128, 1023, 1024, 1025, 4097, 100_000])
def test_any_width(device, mode, width):
    check(mode, [width + 9, 5, width - 1], q=[1, 0, 2], n=2, width=width, page_size=64, device=device)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("source_layout", [(0, 0), (1, 0), (0, 1), (4, 4), (7, 2), (64, 3)])
@pytest.mark.parametrize("slack", [(0, 0), (1, 0), (4, 4), (5, 1), (6, 2), (64, 3)])
def test_tables_may_be_column_slices_of_wider_ones(device, mode, source_layout, slack):
    check(
        mode,
        [130, 61, 0, 7],
        q=[3, 0, 1, 2],
        width=129,
        page_size=2,
        source_layout=source_layout,
        slack=dict.fromkeys([*TABLES, "ctx_lens_2d"], slack),
        device=device,
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("stride", [1, 2, 5])
def test_any_dtype_and_stride(device, mode, dtype, stride):
    check(mode, [5, 70, 0, 33], q=[1, 0, 4, 2], width=64, page_size=16, dtype=dtype, stride=stride, device=device)


@pytest.mark.parametrize("mode", MODES)
def test_int64_values_beyond_int32(device, mode):
    far = 2**40
    shapes = dict.fromkeys(PER_TOKEN, (50,)) | {"page_table": (50, 8), "real_page_table": (50, 3)}
    check(
        mode,
        [far, 6, -far, 2**62, far],
        q=[2, far, 1, 3, 3],
        width=8,
        pool=[[5] * 8] * 3,
        indices=[far, 1, 2, -far, 2**32],
        page_size=3,
        shapes=shapes,
        dtype=torch.int64,
        device=device,
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seq_len", INT64_EDGES)
def test_every_int64_counts_as_it_is(device, mode, seq_len):
    shapes = dict.fromkeys(PER_TOKEN, (5,)) | {"page_table": (5, 8), "real_page_table": (5, 8)}
    for q in INT64_EDGES if mode == "ragged" else [None]:
        check(mode, [seq_len], q=[q], topk=INT32_MAX, width=8, shapes=shapes, dtype=torch.int64, device=device)


@pytest.mark.parametrize("seq_len", INT64_EDGES)
def test_the_most_draft_tokens_on_top_of_every_int64(device, seq_len):
    names = ["cache_seqlens", "cu_seqlens_k"]
    check("target_verify", [seq_len], n=INT32_MAX, names=names, dtype=torch.int64, device=device)


@pytest.mark.parametrize("mode", MODES)
def test_one_long_request_among_short_ones(device, mode):
    long, at = 50_000, 20
    seq_lens, q = [30] * 40, [2] * 40
    seq_lens[at], q[at] = long, 3
    pool = [list(range(1000, 1000 + long)), list(range(long))]
    indices = [b % 2 for b in range(40)]
    check(mode, seq_lens, q=q, n=2, width=long, pool=pool, indices=indices, page_size=64, names=TABLES, device=device)


def test_one_request_with_nearly_all_tokens(device):
    q = [1] * 20
    q[7] = 3000
    check("ragged", [40] * 7 + [3010] + [50] * 12, q=q, width=33, page_size=16, device=device)


def test_ragged_ignores_num_draft_tokens_and_decode_too(device):
    out = torch.full((3,), POISON, dtype=torch.int32, device=device)
    seq_lens = lengths([5, 6], device=device)
    shared = {"seq_lens": seq_lens, "nsa_index_topk": 64, "seqlens_expanded": out}
    q = lengths([1, 2], device=device)
    for number in (None, 0, 1, 9):
        nsa_kernel.fill_replay_metadata("draft_extend", extend_seq_lens=q, num_draft_tokens=number, **shared)
        assert out.tolist() == [5, 5, 6]
        nsa_kernel.fill_replay_metadata("decode", num_draft_tokens=number, **shared)
        assert out.tolist() == [5, 6, 0]


def test_strides_of_one_row_or_one_column_mean_nothing(device):
    memory = torch.arange(40, dtype=torch.int32, device=device)
    out = torch.zeros(40, dtype=torch.int32, device=device)
    shared = {"seq_lens": lengths([2], device=device), "nsa_index_topk": 64}
    shared["req_pool_indices"] = lengths([0], device=device)
    one_row, one_column = ((1, 5), (0, 1)), ((1, 1), (9, 7))
    for (shape, strides), expected in ((one_row, [0, 1, 0]), (one_column, [0, 0, 0])):
        out.zero_()
        source, table = memory.as_strided(shape, strides), out.as_strided(shape, strides)
        nsa_kernel.fill_replay_metadata("decode", req_to_token=source, page_table=table, **shared)
        assert out[:3].tolist() == expected


def huge_table(device):
    """More than 2**31 zeros; on the CPU their pages are only there once they are touched."""
    shape = 2**16 + 3, 2**15 + 1
    if device == "cpu":
        try:
            return torch.from_numpy(np.zeros(shape, dtype=np.int32))
        except MemoryError:
            pytest.skip("needs more address space")
    if torch.cuda.mem_get_info()[0] < 5 * shape[0] * shape[1]:
        pytest.skip("needs more GPU memory")
    return torch.zeros(shape, dtype=torch.int32, device=device)


def test_source_beyond_2_to_31_elements(device):
    pool = huge_table(device)
    pool[-1, :70] = torch.arange(70, dtype=torch.int32)
    slots, pages = Output(1, 100, device=device), Output(1, 30, device=device)
    nsa_kernel.fill_replay_metadata(
        "decode",
        seq_lens=lengths([70], device=device),
        nsa_index_topk=64,
        req_to_token=pool,
        req_pool_indices=lengths([len(pool) - 1], device=device),
        page_table=slots.array,
        real_page_table=pages.array,
        page_size=4,
    )
    slots.check([list(range(70))], "page_table")
    pages.check([list(range(18))], "real_page_table")


@pytest.mark.parametrize("name", TABLES)
def test_output_beyond_2_to_31_elements(device, name):
    out = huge_table(device)
    nsa_kernel.fill_replay_metadata(
        "draft_extend",
        seq_lens=lengths([0, 70], device=device),
        nsa_index_topk=64,
        extend_seq_lens=lengths([len(out) - 2, 3], device=device),
        req_to_token=table([list(range(1, 100))], 99, device=device),
        req_pool_indices=lengths([0, 0], device=device),
        **{name: out},
    )
    assert out[-3, :70].tolist() == [0] * 70
    assert out[-2:, :71].tolist() == [[*range(1, 71), 0]] * 2
