"""Sizes at the ends: very many requests, tables past 2**31 and 2**32 elements, sums that saturate, nothing at all."""

import nsa_kernel
import numpy as np
import pytest
import torch
from memory import POISON, Output, lengths, table
from reference import INT32_MAX, draft_extend, replay

VARIANTS = ["basic", "adaptive", "optimized"]
MANY = 1_000_000


def on(device, values, dtype=torch.int32):
    return torch.from_numpy(values).to(dtype).to(device)


def many_requests():
    draw = np.random.default_rng(0)
    return draw.integers(-1, 4, MANY), draw.integers(-2, 5000, MANY)


def poisoned(device, *shape):
    return torch.full(shape, POISON, dtype=torch.int32, device=device)


def tokens_of(q, k):
    """Request of each token, and its length, by numpy: the oracle's loops would take too long here."""
    counts = np.maximum(q, 0)
    request = np.repeat(np.arange(len(q)), counts)
    step = np.arange(len(request)) - np.repeat(np.cumsum(counts) - counts, counts)
    return request, np.maximum(np.maximum(k, 0)[request] - counts[request] + 1 + step, 0)


def test_the_numpy_oracle_is_the_oracle():
    q, k = [2, 0, 3, -1, 4], [10, 5, 15, 7, 2]
    assert tokens_of(np.array(q), np.array(k))[1].tolist() == draft_extend(q, k, 2048, 9)[0]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("short", [0, 1000])
def test_draft_extend_of_a_million_requests(device, variant, short):
    q, k = many_requests()
    _, seqlens = tokens_of(q, k)
    capacity = len(seqlens) - short
    outputs = [poisoned(device, size) for size in (capacity, capacity + 9, 1)]
    nsa_kernel.fill_draft_extend_metadata(on(device, q), on(device, k), 2048, *outputs, variant=variant)
    expanded, clipped, count = (output.cpu().numpy() for output in outputs)
    assert count[0] == len(seqlens)
    assert np.array_equal(expanded, seqlens[:capacity])
    assert np.array_equal(clipped[:capacity], np.minimum(seqlens, 2048)[:capacity])
    assert (clipped[capacity:] == POISON).all()


@pytest.mark.parametrize("mode", ["decode", "target_verify", "draft_extend", "ragged"])
def test_replay_of_a_million_requests(device, mode):
    q, s = many_requests()
    n, width, page_size = 2, 5, 2
    counts = {"decode": np.ones(MANY, np.int64), "ragged": q}.get(mode, np.full(MANY, n))
    kv = np.maximum(s, 0) + (n if mode == "target_verify" else 0)
    request, seqlens = tokens_of(counts, kv)
    pool = np.arange(7 * width).reshape(7, width)
    indices = np.arange(MANY) % 9 - 1
    sizes = {
        "cache_seqlens": MANY,
        "cu_seqlens_k": MANY + 1,
        "seqlens_expanded": len(request) + 5,
        "nsa_cache_seqlens": len(request),
        "nsa_cu_seqlens_k": len(request) + 1,
        "num_tokens": 1,
    }
    out = {name: poisoned(device, size) for name, size in sizes.items()}
    out |= {"page_table": poisoned(device, len(request), width), "real_page_table": poisoned(device, len(request), 3)}
    nsa_kernel.fill_replay_metadata(
        "draft_extend" if mode == "ragged" else mode,
        seq_lens=on(device, s),
        extend_seq_lens=on(device, q) if mode == "ragged" else None,
        nsa_index_topk=2048,
        num_draft_tokens=n,
        req_pool_indices=on(device, indices, torch.int64),
        req_to_token=on(device, pool),
        page_size=page_size,
        **out,
    )
    got = {name: output.cpu().numpy() for name, output in out.items()}
    clipped = np.minimum(seqlens, 2048)
    assert np.array_equal(got["cache_seqlens"], kv)
    assert np.array_equal(got["cu_seqlens_k"], np.minimum(np.cumsum([0, *kv]), INT32_MAX))
    assert np.array_equal(got["seqlens_expanded"], [*seqlens, *[0] * 5])
    assert np.array_equal(got["nsa_cache_seqlens"], clipped)
    assert np.array_equal(got["nsa_cu_seqlens_k"], np.minimum(np.cumsum([0, *clipped]), INT32_MAX))
    assert got["num_tokens"][0] == len(request)
    in_pool = (indices >= 0) & (indices < len(pool))
    rows = np.where(in_pool[:, None], pool[np.clip(indices, 0, len(pool) - 1)], 0)[request]
    live = np.arange(width) < np.minimum(kv, width)[request, None]
    assert np.array_equal(got["page_table"], np.where(live, rows, POISON))
    assert np.array_equal(got["real_page_table"], np.where(live[:, ::page_size], rows[:, ::page_size] // 2, POISON))


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
    tables = {"page_table": (1, width), "real_page_table": (64, -(-width // 64))}
    out = {name: poisoned(device, int(counts.sum()), columns) for name, (_, columns) in tables.items()}
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
    for name, (page_size, columns) in tables.items():
        got = out[name].cpu().numpy()
        for row, b in enumerate(np.repeat(np.arange(bs), counts)):
            live = -(-min(kv[b], width) // page_size)
            slots = pool[indices[b]] if indices[b] < len(pool) else np.zeros(width, np.int32)
            assert np.array_equal(got[row, :live], slots[::page_size][:live] // page_size), (name, row)
            assert live == columns or (got[row, live:] == POISON).all(), (name, row)


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


@pytest.mark.parametrize("mode", ["decode", "target_verify", "draft_extend", "ragged"])
@pytest.mark.parametrize("width", [40, 41])  # rows that are aligned, and not
@pytest.mark.parametrize("bs", [7, 400, 3000])
def test_a_thousand_runs_of_replay_give_equal_bits(device, mode, width, bs):
    q, s = (on(device, values[:bs]) for values in many_requests())
    rows = 3 * bs
    out = torch.empty(bs + 1 + 3 * (rows + 1) + 2 * rows * width, dtype=torch.int32, device=device)
    sizes = [rows * width, rows * width, bs + 1, rows + 1, rows + 1, rows + 1]
    slots, pages, cu, expanded, clipped, cu_clipped = out.split(sizes)
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
    tables = {"req_to_token": huge[: 2**20].reshape(1, -1), "page_table": huge[: 2**24].reshape(16, -1)}
    message = r"page_table has shape \[16, 1048576\] and real_page_table \[100000000, 1\], must be smaller"
    with pytest.raises(ValueError, match=message):
        nsa_kernel.fill_replay_metadata(
            "decode",
            seq_lens=k,
            nsa_index_topk=7,
            req_pool_indices=q,
            real_page_table=huge[: 10**8].reshape(-1, 1),
            **tables,
        )
