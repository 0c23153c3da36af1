"""Sizes at the ends: very many requests, tables past 2**31 and 2**32 elements, sums that saturate, nothing at all."""

import functools

import nsa_kernel
import numpy as np
import pytest
import torch
from draft_extend_cases import VARIANTS
from memory import POISON, Output, lengths, table
from reference import INT32_MAX, draft_extend, replay, schedule
from replay_cases import MODES

MANY = 1_000_000


def on(device, values, dtype=torch.int32):
    return torch.from_numpy(values).to(dtype).to(device)


def many_requests():
    draw = np.random.default_rng(0)
    return draw.integers(-1, 4, MANY), draw.integers(-2, 5000, MANY)


def poisoned(device, *shape):
    return torch.full(shape, POISON, dtype=torch.int32, device=device)


@functools.cache
def expected_draft_extend(capacity):
    q, k = (values.tolist() for values in many_requests())
    return draft_extend(q, k, 2048, capacity)


def values_of(expected):
    """What the memory of an output holds by the oracle; before, all of it held poison."""
    return np.nan_to_num(np.array(expected, dtype=float), nan=POISON).astype(np.int64)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("short", [0, 1000])
def test_draft_extend_of_a_million_requests(device, variant, short):
    q, k = many_requests()
    capacity = int(np.maximum(q, 0).sum()) - short
    outputs = [poisoned(device, size) for size in (capacity, capacity + 9, 1)]
    nsa_kernel.fill_draft_extend_metadata(on(device, q), on(device, k), 2048, *outputs, variant=variant)
    expanded, clipped, count = expected_draft_extend(capacity)
    assert count == capacity + short
    for output, expected in zip(outputs, (expanded, clipped + [None] * 9, [count]), strict=True):
        assert np.array_equal(output.cpu().numpy(), values_of(expected))


@pytest.mark.parametrize("mode", MODES)
def test_replay_of_a_million_requests(device, mode):
    """The same 9,973 requests again and again: a prime, which no warp, block or tile is a part of."""
    some, n, width, page_size = 9973, 2, 5, 2
    q, s = (values[:some] for values in many_requests())
    pool = np.arange(7 * width).reshape(7, width)
    indices = np.arange(some) % 9 - 1
    tokens = {"decode": np.ones(some, dtype=int), "ragged": np.maximum(q, 0)}.get(mode, np.full(some, n))
    rows, rows_of_some = int(np.resize(tokens, MANY).sum()), int(tokens.sum())
    shapes = {
        "cache_seqlens": (some,),
        "seqlens_expanded": (rows_of_some,),
        "nsa_cache_seqlens": (rows_of_some,),
        "page_table": (rows_of_some, width),
        "real_page_table": (rows_of_some, 3),
    }
    op_mode = "draft_extend" if mode == "ragged" else mode
    expected_of_some = replay(
        op_mode,
        s.tolist(),
        2048,
        shapes,
        num_draft_tokens=n,
        extend_seq_lens=q.tolist() if mode == "ragged" else None,
        req_pool_indices=indices.tolist(),
        req_to_token=pool.tolist(),
        req_to_token_width=width,
        page_size=page_size,
    )
    expected = {}
    for name, shape in shapes.items():
        expected[name] = np.resize(values_of(expected_of_some[name]), (MANY if shape == (some,) else rows, *shape[1:]))
    for total, name in (("cu_seqlens_k", "cache_seqlens"), ("nsa_cu_seqlens_k", "nsa_cache_seqlens")):
        expected[total] = np.minimum(np.cumsum([0, *expected[name]]), INT32_MAX)
    expected["seqlens_expanded"] = np.append(expected["seqlens_expanded"], [0] * 5)
    expected["num_tokens"] = np.array([rows])
    scheduled = expected["seqlens_expanded"].tolist()[: None if mode == "ragged" else rows]
    expected["schedule"] = np.array(schedule((133, 2), "deepgemm_sm90", scheduled, [1] * len(scheduled), atoms=1))

    out = {name: poisoned(device, *values.shape) for name, values in expected.items()}
    nsa_kernel.fill_replay_metadata(
        op_mode,
        seq_lens=on(device, np.resize(s, MANY)),
        extend_seq_lens=on(device, np.resize(q, MANY)) if mode == "ragged" else None,
        nsa_index_topk=2048,
        num_draft_tokens=n,
        req_pool_indices=on(device, np.resize(indices, MANY), torch.int64),
        req_to_token=on(device, pool),
        page_size=page_size,
        schedule_format="deepgemm_sm90",
        **out,
    )
    for name, output in out.items():
        assert np.array_equal(output.cpu().numpy(), expected[name]), name


LONG_BATCHES = [
    (1, 2, 1_400_000),
    (20, 2, 70_000),
    (32, 1, 48_001),
    (33, 40, 3_000),
    (128, 2, 70_000),
    (512, 3, 9_000),
    (700, 2, 5_001),
]


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize(("bs", "n", "width"), LONG_BATCHES)
def test_a_few_long_requests_among_short_ones(device, bs, n, width, ragged):
    draw = np.random.default_rng(bs)
    kv, counts = draw.integers(0, 600, bs), np.full(bs, n)
    kv[draw.integers(0, bs, 3)] = [width - 1, width // 2, width + 9]
    if ragged:
        counts = draw.integers(0, n + 1, bs)
        counts[kv > 600] = n
    pool = draw.integers(0, 2**30, (bs + 3, width), dtype=np.int32)
    indices = draw.permutation(bs + 3)[:bs]
    indices[-1] = len(pool) if bs > 1 else indices[-1]
    rows = int(counts.sum())
    shapes = {"page_table": (rows, width), "real_page_table": (rows, -(-width // 64))}
    out = {name: poisoned(device, *shape) for name, shape in shapes.items()}
    nsa_kernel.fill_replay_metadata(
        "draft_extend",
        seq_lens=on(device, kv, torch.int64),
        extend_seq_lens=on(device, counts) if ragged else None,
        nsa_index_topk=2048,
        num_draft_tokens=n,
        req_pool_indices=on(device, indices, torch.int64),
        req_to_token=on(device, pool),
        page_size=64,
        **out,
    )
    expected = replay(
        "draft_extend",
        kv.tolist(),
        2048,
        shapes,
        num_draft_tokens=n,
        extend_seq_lens=counts.tolist() if ragged else None,
        req_pool_indices=indices.tolist(),
        req_to_token=pool.tolist(),
        req_to_token_width=width,
        page_size=64,
    )
    for name, output in out.items():
        assert np.array_equal(output.cpu().numpy(), values_of(expected[name])), name


def zeros(device, rows, columns):
    torch.cuda.empty_cache()  # of the table before
    if torch.cuda.mem_get_info()[0] < 4.5 * rows * columns:
        pytest.skip("needs more GPU memory")
    return torch.zeros((rows, columns), dtype=torch.int32, device=device)


@pytest.mark.cuda
def test_source_beyond_2_to_32_elements(device):
    pool = zeros(device, 2**17 + 3, 2**15 + 4)
    assert pool.numel() > 2**32
    width = pool.shape[1]
    pool[-1] = torch.arange(width, dtype=torch.int32, device=device)
    out, pages = poisoned(device, 2, width), poisoned(device, 2, width)
    nsa_kernel.fill_replay_metadata(
        "decode",
        seq_lens=lengths([width, 3], device=device),
        nsa_index_topk=64,
        req_to_token=pool,
        req_pool_indices=lengths([len(pool) - 1, len(pool) - 2], device=device),
        page_size=4,
        page_table=out,
        real_page_table=pages,
    )
    assert torch.equal(out[0], pool[-1])
    assert torch.equal(pages[0, : width // 4], torch.arange(width // 4, dtype=torch.int32, device=device))
    assert out[1, :4].tolist() == [0, 0, 0, POISON]


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["page_table", "real_page_table"])
@pytest.mark.parametrize("columns", [2**15 + 1, 2**15 + 4])
def test_output_beyond_2_to_32_elements(device, name, columns):
    out = zeros(device, 2**17 + 3, columns)
    assert out.numel() > 2**32
    nsa_kernel.fill_replay_metadata(
        "draft_extend",
        seq_lens=lengths([0, columns], device=device),
        nsa_index_topk=64,
        extend_seq_lens=lengths([len(out) - 2, 3], device=device),
        req_to_token=table([list(range(1, columns + 1))], columns, device=device),
        req_pool_indices=lengths([0, 0], device=device),
        **{name: out},
    )
    want = torch.arange(1, columns + 1, dtype=torch.int32, device=device)
    assert torch.equal(out[-1], want)
    assert torch.equal(out[-2], want)
    assert not out[-3].any()
    assert not out[0].any()


@pytest.mark.parametrize("many", [2, 33, 1025, 5000])
def test_sums_saturate_wherever_they_cross(device, many):
    """The crossing wanders through warps, blocks and tiles."""
    for at in {0, many // 2, many - 1}:
        kv = [1000] * many
        kv[at] = INT32_MAX - 999
        shapes = {"cu_seqlens_k": (many + 1,), "nsa_cu_seqlens_k": (many + 1,), "cache_seqlens": (many,)}
        outputs = {name: Output(*shape, device=device) for name, shape in shapes.items()}
        arrays = {name: output.array for name, output in outputs.items()}
        nsa_kernel.fill_replay_metadata(
            "decode", seq_lens=lengths(kv, device=device), nsa_index_topk=INT32_MAX, **arrays
        )
        expected = replay("decode", kv, INT32_MAX, shapes)
        for name, output in outputs.items():
            output.check(expected[name], name)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("many", [2, 33, 1025, 5000])
def test_counts_saturate_wherever_they_cross(device, variant, many):
    for at in {0, many // 2, many - 1}:
        q = [1] * many
        q[at] = INT32_MAX
        k = [INT32_MAX] * many
        outputs = [Output(size, device=device) for size in (many + 40, many + 40, 1)]
        arrays = [lengths(values, device=device) for values in (q, k)]
        nsa_kernel.fill_draft_extend_metadata(*arrays, 7, *(output.array for output in outputs), variant=variant)
        expanded, clipped, count = draft_extend(q, k, 7, many + 40)
        for output, want in zip(outputs, (expanded, clipped, [count]), strict=True):
            output.check(want, "output")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("capacity", [0, 1])
@pytest.mark.parametrize("bs", [0, 1, 33, 5000])
def test_capacities_of_nothing_and_of_one(device, variant, bs, capacity):
    outputs = [Output(size, device=device) for size in (capacity, capacity, 1)]
    arrays = [lengths([value] * bs, device=device) for value in (2, 9)]
    nsa_kernel.fill_draft_extend_metadata(*arrays, 7, *(output.array for output in outputs), variant=variant)
    expanded, clipped, count = draft_extend([2] * bs, [9] * bs, 7, capacity)
    for output, want in zip(outputs, (expanded, clipped, [count]), strict=True):
        output.check(want, "output")


RUNS = 1000


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("bs", [20, 100, 400, 900, 3000])  # each has a kernel of its own
def test_a_thousand_runs_of_draft_extend_give_equal_bits(device, variant, bs):
    q, k = (on(device, values[:bs]) for values in many_requests())
    out = torch.empty((3, 3 * bs), dtype=torch.int32, device=device)
    plan = nsa_kernel.DraftExtendPlan(q, k, 2048, *out, variant=variant)
    check_runs(plan, out)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("width", [40, 41])  # rows that are aligned, and not
@pytest.mark.parametrize("bs", [7, 400, 3000])
def test_a_thousand_runs_of_replay_give_equal_bits(device, mode, width, bs):
    q, s = (on(device, values[:bs]) for values in many_requests())
    rows = 3 * bs
    sizes = [64, 4 * (rows // 2 + 2), rows * width, rows * width, bs + 1, rows + 1, rows + 1, rows + 1]
    out = torch.empty(sum(sizes), dtype=torch.int32, device=device)
    schedule, topk_plan, slots, pages, cu, expanded, clipped, cu_clipped = out.split(sizes)
    plan = nsa_kernel.ReplayPlan(
        "draft_extend" if mode == "ragged" else mode,
        seq_lens=s,
        nsa_index_topk=2048,
        num_draft_tokens=3,
        extend_seq_lens=q if mode == "ragged" else None,
        req_pool_indices=on(device, np.arange(bs) % 50),
        req_to_token=torch.arange(50 * width, dtype=torch.int32, device=device).reshape(50, width),
        page_size=2,
        cu_seqlens_k=cu,
        seqlens_expanded=expanded,
        nsa_cache_seqlens=clipped,
        nsa_cu_seqlens_k=cu_clipped,
        page_table=slots.reshape(rows, width),
        real_page_table=pages.reshape(rows, width),
        schedule=schedule.reshape(-1, 2),
        schedule_format="deepgemm_sm100_256",
        topk_plan=topk_plan.reshape(-1, 2),
        topk_plan_format="sglang_topk_v2_sm100",
        topk_plan_clusters=3,
    )
    check_runs(plan, out)


def check_runs(plan, out):
    """The CPU's loops hold no race to lose, so few runs are enough there."""
    out.fill_(POISON)
    plan.run()
    first = out.clone()
    differing = torch.zeros((), dtype=torch.bool, device=out.device)
    for _ in range(RUNS if out.is_cuda else 20):
        out.fill_(POISON)
        plan.run()
        differing |= (out != first).any()
    assert not differing


def test_what_cannot_be_counted_is_refused():
    """The memory is only reserved: the refusal comes before anything touches it."""
    q, k, small = torch.ones(1, dtype=torch.int32), torch.ones(1, dtype=torch.int32), torch.zeros(4, dtype=torch.int32)
    huge = torch.empty(2**30 + 1, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"out_seqlens_expanded has size 1073741825, must be at most 1073741824"):
        nsa_kernel.fill_draft_extend_metadata(q, k, 7, huge, small)
    with pytest.raises(ValueError, match=r"seqlens_expanded has size 1073741825, must be at most 1073741824"):
        nsa_kernel.fill_replay_metadata("decode", seq_lens=k, nsa_index_topk=7, seqlens_expanded=huge)
    table, pages = huge[: 2**24].reshape(16, -1), huge[2**24 : 2**24 + 10**8].reshape(-1, 1)
    message = r"page_table has shape \[16, 1048576\] and real_page_table \[100000000, 1\], must be smaller"
    with pytest.raises(ValueError, match=message):
        nsa_kernel.fill_replay_metadata(
            "decode",
            seq_lens=k,
            nsa_index_topk=7,
            req_pool_indices=q,
            req_to_token=small.reshape(1, -1),
            page_table=table,
            real_page_table=pages,
        )
