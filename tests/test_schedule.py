"""Schedules and top-k plans of `replay` against the oracle, and walked as their consumer walks them."""

import random
import re

import nsa_kernel
import pytest
import torch
from arguments import RAGGED, REPLAY, check_refusal
from memory import INT64_EDGES, POISON, Output, lengths
from reference import CLUSTER_LIMITS, INT32_MAX, SPLITS, replay
from replay_cases import MODES, OUTPUTS, PER_TOKEN, by_function, by_plan
from schedule_cases import FORMATS, NAMED_CASES, TOPK_FORMATS, check, fits, of, plan, walk, work_of

SIZES = [0, 1, 16, 17, 32, 33, 127, 128, 512, 513, 1023, 1024, 1025, 100_000]


def test_the_oracle_gives_the_worked_example():
    shapes = {"schedule": (5, 2)}
    got = replay("decode", [300, 0, 513], None, shapes, schedule_format="deepgemm_sm90")
    assert got == {"schedule": [[0, 0], [0, 1], [2, 0], [2, 1], [3, 0]]}


def test_the_worked_example(device):
    seq_lens = torch.tensor([300, 0, 513], device=device)
    schedule = torch.full((5, 2), -1, dtype=torch.int32, device=device)
    nsa_kernel.fill_replay_metadata("decode", seq_lens=seq_lens, schedule=schedule, schedule_format="deepgemm_sm90")
    assert schedule.tolist() == [[0, 0], [0, 1], [2, 0], [2, 1], [3, 0]]


def test_an_example_of_a_top_k_plan(device):
    """Two of four rows are longer than the limit, 65,536."""
    seq_lens = torch.tensor([70_000, 500, 65_536, 99_000], device=device)
    topk_plan = torch.full((5, 2), -1, dtype=torch.int32, device=device)
    nsa_kernel.fill_replay_metadata(
        "decode",
        seq_lens=seq_lens,
        topk_plan=topk_plan,
        topk_plan_format="sglang_topk_v2_sm90",
        topk_plan_clusters=2,
    )
    assert topk_plan.tolist() == [[65_536, 2], [0, 70_000], [3, 99_000], [-1, -1], [-1, -1]]


@pytest.mark.parametrize("case", NAMED_CASES.values(), ids=NAMED_CASES.keys())
def test_named_case(device, case):
    for way in (by_function, by_plan):
        check(**case, device=device, way=way)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bs", SIZES)
def test_any_number_of_requests(device, mode, bs):
    draw = random.Random(bs)
    seq_lens = [draw.choice([0, 3, 200, draw.randrange(5000), 40_000 + draw.randrange(90_000)]) for _ in range(bs)]
    q = [draw.randrange(4) for _ in range(bs)]
    for fmt, rows in FORMATS:
        if fits(mode, fmt, rows):
            check(mode, seq_lens, q=q, n=2, **of(fmt, rows, slots=132), device=device)
    for fmt in TOPK_FORMATS:
        check(mode, seq_lens, q=q, n=2, **plan(16, fmt), device=device)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("fmt", "rows"), FORMATS)
def test_with_any_other_outputs(device, mode, fmt, rows):
    if not fits(mode, fmt, rows):
        pytest.skip("the format has no such rows")
    case = of(fmt, rows, slots=33) | plan(3)
    for names in ([], *([name] for name in OUTPUTS), OUTPUTS, PER_TOKEN):
        present = [name for name in names if mode in ("target_verify", "draft_extend") or name != "ctx_lens_2d"]
        check(mode, [6, 0, 70_000, 900], q=[2, 3, 1, 0], width=280, page_size=64, names=present, **case, device=device)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("fmt", "rows"), FORMATS)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("stride", [1, 2, 5])
def test_any_dtype_and_stride(device, mode, fmt, rows, dtype, stride):
    if fits(mode, fmt, rows):
        case = of(fmt, rows, slots=33) | plan(2)
        check(mode, [5000, 70_000, 0, 33], q=[1, 0, 4, 2], **case, dtype=dtype, stride=stride, device=device)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seq_len", INT64_EDGES)
def test_every_int64_counts_as_it_is(device, mode, seq_len):
    shapes = {"seqlens_expanded": (5,)} if mode == "ragged" else {}
    for q in INT64_EDGES if mode == "ragged" else [None]:
        for fmt, rows in FORMATS:
            if fits(mode, fmt, rows):
                case = of(fmt, rows, slots=7) | plan(1)
                check(mode, [seq_len], q=[q], shapes=shapes, **case, dtype=torch.int64, device=device)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("many", [2, 33, 513, 1025])
def test_work_saturates_wherever_it_crosses(device, mode, many):
    """The crossing wanders through warps, blocks and tiles."""
    for at in {0, many // 2, many - 257}:
        seq_lens = [1000] * many
        seq_lens[max(at, 0) : max(at, 0) + 256] = [INT32_MAX - 5] * min(256, many - max(at, 0))
        for fmt, rows in FORMATS:
            if fits(mode, fmt, rows):
                check(mode, seq_lens, q=[2] * many, n=2, **of(fmt, rows, slots=264), device=device)


@pytest.mark.parametrize("offset", [0, 2, 6])
def test_a_multiple_of_8_bytes_is_enough(device, offset):
    slack = {"schedule": (0, offset), "topk_plan": (0, offset)}
    check("decode", [300, 70_000, 90_000], **of("deepgemm_sm90") | plan(2), slack=slack, device=device)


def test_topk_is_not_needed(device):
    others = [name for name in OUTPUTS if name not in ("nsa_cache_seqlens", "nsa_cu_seqlens_k", "ctx_lens_2d")]
    for mode in MODES:
        for names in (["cache_seqlens"], others):
            check(mode, [300, 0], q=[2, 1], names=names, topk=None, width=9, **of("deepgemm_sm90"), device=device)
            check(mode, [300, 0], q=[2, 1], names=names, topk=None, width=9, device=device)


# As the consumer walks it.


def rows_of(mode, seq_lens, q, n, rows, atoms):
    """The lengths, tokens and atoms of the rows that a consumer reads, of a batch whose capacity is just its tokens."""
    tokens = {"decode": [1] * len(seq_lens), "ragged": q}.get(mode, [n] * len(seq_lens))
    count = sum(tokens)
    op_mode = "draft_extend" if mode == "ragged" else mode
    shapes = {"seqlens_expanded": (count,), "cache_seqlens": (len(seq_lens),)}
    extend = q if mode == "ragged" else None
    seen = replay(op_mode, seq_lens, None, shapes, num_draft_tokens=n, extend_seq_lens=extend)
    if rows == "token":
        return seen["seqlens_expanded"], [1] * count, None
    return seen["cache_seqlens"], tokens, atoms


def by_oracle(mode, seq_lens, q, n, slots, **scheduling):
    shapes = {"schedule": (slots + 1, 2)}
    if mode == "ragged":
        shapes["seqlens_expanded"] = (sum(q),)
    return replay(
        "draft_extend" if mode == "ragged" else mode,
        seq_lens,
        None,
        shapes,
        num_draft_tokens=n,
        extend_seq_lens=q if mode == "ragged" else None,
        **scheduling,
    )["schedule"]


def by_op(mode, seq_lens, q, n, slots, **scheduling):
    schedule = torch.full((slots + 1, 2), POISON, dtype=torch.int32)
    arguments = {"seq_lens": lengths(seq_lens), "num_draft_tokens": n, "schedule": schedule}
    if mode == "ragged":
        arguments |= {"extend_seq_lens": lengths(q), "seqlens_expanded": torch.empty(sum(q), dtype=torch.int32)}
    nsa_kernel.fill_replay_metadata("draft_extend" if mode == "ragged" else mode, **arguments, **scheduling)
    return schedule.tolist()


@pytest.mark.parametrize("made", [by_oracle, by_op])
@pytest.mark.parametrize(("fmt", "rows"), FORMATS)
def test_each_split_is_done_once_by_slots_with_an_even_share(made, fmt, rows, random_cases):
    """No slot reads outside its rows, none that has nothing to do reads at all."""
    for seed, reproducible in random_cases:
        draw = random.Random(seed)
        mode = draw.choice([mode for mode in MODES if fits(mode, fmt, rows)])
        bs, n, slots = draw.randrange(9), draw.randrange(5), draw.choice([1, 2, 5, 33, 132])
        seq_lens = [draw.choice([0, 0, 1, 256, 384, draw.randrange(3000)]) for _ in range(bs)]
        q = [draw.randrange(5) for _ in range(bs)]
        atoms, scheduling = None, {"schedule_format": fmt, "schedule_rows": rows}
        if (fmt, rows) == ("deepgemm_sm90", "request"):
            atoms = scheduling["schedule_atoms"] = draw.randrange(1, 4)
        with reproducible:
            lengths_of_rows, tokens, atoms = rows_of(mode, seq_lens, q, n, rows, atoms)
            entries = made(mode, seq_lens, q, n, slots, **scheduling)
            done = list(walk(entries, fmt, lengths_of_rows, tokens, atoms))
            work = work_of(fmt, lengths_of_rows, tokens, atoms)
            assert [unit for of_slot in done for unit in of_slot] == work
            if fmt == "deepgemm_sm90" or (fmt, rows) == ("deepgemm_sm100_256", "token"):  # each split weighs 1
                shares = [len(of_slot) for of_slot in done]
                assert max(shares) - min(shares) <= 1
                assert shares == sorted(shares, reverse=fmt != "deepgemm_sm90")


@pytest.mark.parametrize(("fmt", "rows"), FORMATS)
@pytest.mark.parametrize("mode", ["decode", "target_verify"])
def test_no_slot_reads_anything_where_there_is_no_row(mode, fmt, rows):
    entries = by_op(mode, [], [], 2, 9, schedule_format=fmt, schedule_rows=rows)
    assert list(walk(entries, fmt, [], [])) == [[]] * 9


# Refusals.


def pairs(*shape, offset=0, row_stride=None):
    return lambda device: Output(*shape, device=device, offset=offset, row_stride=row_stride).array


FORMAT_WORDS = "must be one of " + ", ".join(f"'{fmt}'" for fmt in SPLITS)
TOPK_FORMAT_WORDS = "must be one of " + ", ".join(f"'{fmt}'" for fmt in CLUSTER_LIMITS)
ATOMS_WORDS = "must be absent but in deepgemm_sm90 with rows by request"
REFUSALS = [
    (ValueError, "schedule_format is given without schedule, must be absent", {"schedule": None}),
    (
        ValueError,
        "schedule_atoms is given without schedule, must be absent",
        {"schedule": None, "schedule_format": None, "schedule_atoms": 1},
    ),
    (ValueError, "schedule_format is absent, must be given with schedule", {"schedule_format": None}),
    (ValueError, f"schedule_format is 'deepgemm', {FORMAT_WORDS}", {"schedule_format": "deepgemm"}),
    (ValueError, f"schedule_format is '', {FORMAT_WORDS}", {"schedule_format": ""}),
    (TypeError, "schedule_format is a int, must be a str", {"schedule_format": 90}),
    (ValueError, "schedule_rows is 'tokens', must be one of 'token', 'request'", {"schedule_rows": "tokens"}),
    (TypeError, "schedule_rows is a NoneType, must be a str", {"schedule_rows": None}),
    (ValueError, "schedule has 3 columns, must have 2", {"schedule": pairs(5, 3)}),
    (ValueError, "schedule has 1 columns, must have 2", {"schedule": pairs(5, 1)}),
    (ValueError, "schedule has 0 columns, must have 2", {"schedule": pairs(5, 0)}),
    (ValueError, "schedule has 1 rows, must have at least 2", {"schedule": pairs(1, 2)}),
    (ValueError, "schedule has 0 rows, must have at least 2", {"schedule": pairs(0, 2)}),
    (TypeError, "schedule has row stride 4, must be contiguous", {"schedule": pairs(5, 2, row_stride=4)}),
    (
        TypeError,
        "schedule starts at an address that is not a multiple of 8, must be aligned",
        {"schedule": pairs(5, 2, offset=1)},
    ),
    (TypeError, "schedule has 1 dimensions, must have 2", {"schedule": pairs(10)}),
    (
        TypeError,
        "schedule has dtype int64, must be int32",
        {"schedule": lambda device: torch.zeros((5, 2), dtype=torch.int64, device=device)},
    ),
    (
        TypeError,
        "schedule has stride 2 in its last dimension, must be contiguous there",
        {"schedule": lambda device: torch.zeros((5, 4), dtype=torch.int32, device=device)[:, ::2]},
    ),
    (ValueError, f"schedule_atoms is given, {ATOMS_WORDS}", {"schedule_atoms": 1}),
    (
        ValueError,
        f"schedule_atoms is given, {ATOMS_WORDS}",
        {"schedule_atoms": 1, "schedule_rows": "request", "schedule_format": "deepgemm_sm100_256"},
    ),
    (
        ValueError,
        f"schedule_atoms is given, {ATOMS_WORDS}",
        {"schedule_atoms": 1, "schedule_rows": "request", "schedule_format": "deepgemm_sm100_384"},
    ),
    (ValueError, "schedule_atoms is 0, must be at least 1", {"schedule_atoms": 0, "schedule_rows": "request"}),
    (ValueError, "schedule_atoms is -3, must be at least 1", {"schedule_atoms": -3, "schedule_rows": "request"}),
    (TypeError, "schedule_atoms is a float, must be an int", {"schedule_atoms": 1.0, "schedule_rows": "request"}),
    (
        ValueError,
        "schedule_rows is request with extend_seq_lens, must be token but in deepgemm_sm100_384",
        RAGGED | {"schedule_rows": "request"},
    ),
    (
        ValueError,
        "schedule_rows is request with extend_seq_lens, must be token but in deepgemm_sm100_384",
        RAGGED | {"schedule_rows": "request", "schedule_format": "deepgemm_sm100_256"},
    ),
    (
        ValueError,
        "topk_plan_format is given without topk_plan, must be absent",
        {"topk_plan": None, "topk_plan_clusters": None},
    ),
    (
        ValueError,
        "topk_plan_clusters is given without topk_plan, must be absent",
        {"topk_plan": None, "topk_plan_format": None},
    ),
    (ValueError, "topk_plan_format is absent, must be given with topk_plan", {"topk_plan_format": None}),
    (ValueError, "topk_plan_clusters is absent, must be given with topk_plan", {"topk_plan_clusters": None}),
    (ValueError, "topk_plan_clusters is -1, must be at least 0", {"topk_plan_clusters": -1}),
    (TypeError, "topk_plan_clusters is a str, must be an int", {"topk_plan_clusters": "2"}),
    (ValueError, f"topk_plan_format is 'sm90', {TOPK_FORMAT_WORDS}", {"topk_plan_format": "sm90"}),
    (TypeError, "topk_plan_format is a int, must be a str", {"topk_plan_format": 2}),
    (ValueError, "topk_plan has 6 rows, must have at least 7", {"topk_plan": pairs(6, 2)}),
    (ValueError, "topk_plan has 3 columns, must have 2", {"topk_plan": pairs(7, 3)}),
    (TypeError, "topk_plan has row stride 3, must be contiguous", {"topk_plan": pairs(7, 2, row_stride=3)}),
    (
        TypeError,
        "topk_plan starts at an address that is not a multiple of 8, must be aligned",
        {"topk_plan": pairs(7, 2, offset=3)},
    ),
    (ValueError, "nsa_index_topk is absent, must be given with nsa_cache_seqlens", {"nsa_index_topk": None}),
    (
        ValueError,
        "nsa_index_topk is absent, must be given with nsa_cu_seqlens_k",
        {"nsa_index_topk": None, "nsa_cache_seqlens": None},
    ),
]


@pytest.mark.parametrize(("exception", "message", "changes"), REFUSALS, ids=[message for _, message, _ in REFUSALS])
def test_arguments_that_are_refused(device, exception, message, changes):
    check_refusal(REPLAY, device, exception, re.escape(message) + "$", **changes)


# In a graph.


@pytest.mark.cuda
@pytest.mark.parametrize(("fmt", "rows"), FORMATS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bs", [7, 200, 1500])
def test_a_schedule_follows_lengths_that_change_in_place(device, bs, mode, fmt, rows):
    if not fits(mode, fmt, rows):
        pytest.skip("the format has no such rows")
    n, draw = 2, random.Random(bs)
    capacity = {"ragged": 3 * bs, "decode": bs}.get(mode, n * bs)
    shapes = {"schedule": (133, 2), "seqlens_expanded": (capacity,), "topk_plan": (capacity + 1, 2)}
    outputs = {name: Output(*shape, device=device) for name, shape in shapes.items()}
    s, q = (lengths([0] * bs, device=device) for _ in range(2))
    scheduling = {"schedule_format": fmt, "schedule_rows": rows, "topk_plan_format": "sglang_topk_v2_sm100"}
    scheduling["topk_plan_clusters"] = 3
    op_mode = "draft_extend" if mode == "ragged" else mode
    arguments = {"seq_lens": s, "num_draft_tokens": n, "extend_seq_lens": q if mode == "ragged" else None}
    arguments |= {name: output.array for name, output in outputs.items()}
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        nsa_kernel.fill_replay_metadata(op_mode, **arguments, **scheduling)
    for live in (bs, bs // 3, 0, bs):
        seq_lens = [draw.randrange(120_000) if b < live else 0 for b in range(bs)]
        counts = [draw.randrange(4) if b < live else 0 for b in range(bs)]
        s.copy_(torch.tensor(seq_lens, dtype=torch.int32))
        q.copy_(torch.tensor(counts, dtype=torch.int32))
        for output in outputs.values():
            output.array.fill_(POISON)
        graph.replay()
        expected = replay(
            op_mode,
            seq_lens,
            None,
            shapes,
            num_draft_tokens=n,
            extend_seq_lens=counts if mode == "ragged" else None,
            **scheduling,
        )
        for name, output in outputs.items():
            output.check(expected[name], name)
