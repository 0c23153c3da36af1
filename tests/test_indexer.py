"""The ops of vLLM's indexer against the oracle: decode, prefill and token requests."""

import random
import re

import nsa_kernel
import pytest
import torch
from arguments import (
    CALLS,
    DECODE,
    PREFILL,
    TOKEN_REQUESTS,
    check_refusal,
    ints,
    valid_arguments,
    with_outputs,
    words,
)
from indexer_cases import (
    DECODE_OUTPUTS,
    NAMED_DECODE_CASES,
    NAMED_PREFILL_CASES,
    NAMED_TOKEN_REQUESTS_CASES,
    NATIVE_OUTPUTS,
    NUMBERS,
    PREFILL_NUMBERS,
    PREFILL_OUTPUTS,
    TOKEN_SOURCES,
    check_decode,
    check_prefill,
    check_token_requests,
    decode_by_function,
    decode_by_plan,
    starts,
)
from indexer_reference import indexer_decode, indexer_prefill, local, token_requests
from memory import INT64_EDGES, POISON, Output, lengths, table
from reference import INT32_MAX, SPLITS
from schedule_cases import of, walk, work_of

SIZES = [0, 1, 16, 17, 32, 33, 127, 128, 512, 513, 1023, 1024, 1025, 100_000]
LAYOUTS = ["rows", "native"]


def tokens_as(source, q):
    """The token counts in one of the three ways; the last takes the largest for all."""
    return {
        "query_start_loc": {"query_start_loc": starts(q)},
        "query_lens": {"query_lens": q},
        "max_query_len": {"max_query_len": max(q, default=1)},
    }[source]


# The oracle.


@pytest.mark.parametrize("interleave", [1, 3, 16])
@pytest.mark.parametrize("world", [1, 2, 5])
def test_the_oracle_counts_what_lies_on_a_rank(world, interleave):
    for rank in range(world):
        held = 0
        for x in range(200):
            assert local(x, world, rank, interleave) == held
            held += x // interleave % world == rank


def test_the_oracle_gives_an_example_of_decode():
    """Two requests of 3 and 1 tokens, and two rows of padding."""
    shapes = dict.fromkeys(("decode_seq_lens", "global_seq_lens", "decode_lens", "indices"), (6,))
    shapes |= {"per_req_lens": (2,), "expanded_block_table": (6, 3)}
    tables = [[7, 8, 9], [4, 5, 6]]
    got = indexer_decode(
        "rows",
        [130, 64],
        shapes,
        query_lens=[3, 1],
        block_table=tables,
        block_table_width=3,
        num_tokens=6,
        compress_ratio=2,
        page_size=32,
    )
    assert got == {
        "decode_seq_lens": [64, 64, 65, 32, 0, 0],
        "global_seq_lens": [128, 129, 130, 64, 0, 0],
        "decode_lens": [1] * 6,
        "indices": [0, 0, 0, 1, 2, 3],
        "per_req_lens": [3, 1],
        "expanded_block_table": [*[[7, 8, 9]] * 3, [4, None, None], *[[0, None, None]] * 2],
    }


def test_the_oracle_gives_an_example_of_rows_by_request():
    """Three requests of 3 tokens, of which column 0 counts each as two, whatever rows of padding there are."""
    by_request = {"schedule_format": "deepgemm_sm90", "schedule_rows": "request"}
    got = indexer_decode("rows", [300, 0, 513], {"schedule": (3, 2)}, max_query_len=3, num_tokens=12, **by_request)
    assert got == {"schedule": [[0, 0], [4, 1], [6, 0]]}


def test_the_oracle_gives_an_example_of_prefill():
    """Requests 1 and 2 of a batch of three, on the second of two ranks."""
    shapes = {"cu_seq_lens": (3,), "local_cu_seq_lens": (3,), "token_to_seq": (9,)}
    shapes |= {"cu_seqlen_ks": (3,), "cu_seqlen_ke": (3,)}
    got = indexer_prefill([0, 9, 11, 14], [9, 5, 3], 1, 3, shapes, first_row=1, end_row=4, dcp_world=2, dcp_rank=1)
    assert got == {
        "cu_seq_lens": [0, 5, 8],
        "local_cu_seq_lens": [0, 2, 3],
        "token_to_seq": [0, 0, 0, 0, 0, 1, 1, 1, None],
        "cu_seqlen_ks": [0, 2, 2],
        "cu_seqlen_ke": [2, 2, 3],
    }


def test_the_oracle_gives_an_example_of_token_requests():
    assert token_requests([0, 2, 2, 5], 8, 6) == [0, 0, 2, 2, 2, 2, 0, 0]


@pytest.mark.parametrize("rows", ["token", "request"])
def test_the_oracles_schedule_has_each_split_done_once(rows, random_cases):
    """As the consumer of the expanded rows walks it, whose arrays have a row for each token and for padding."""
    for seed, reproducible in random_cases:
        draw = random.Random(seed)
        fmt = draw.choice([*SPLITS]) if rows == "token" else "deepgemm_sm100_384"
        bs, slots = draw.randrange(8), draw.choice([1, 5, 132])
        seq_lens = [draw.choice([0, draw.randrange(4000)]) for _ in range(bs)]
        q = [draw.randrange(4) for _ in range(bs)]
        num_tokens = draw.choice([sum(q), sum(q) + draw.randrange(4), draw.randrange(sum(q) + 1)])
        shapes = {"schedule": (slots + 1, 2), "decode_seq_lens": (num_tokens,), "indices": (num_tokens,)}
        shape = {"compress_ratio": draw.choice([1, 4]), "dcp_world": 2, "dcp_rank": draw.randrange(2)}
        with reproducible:
            got = indexer_decode(
                "rows",
                seq_lens,
                shapes,
                query_lens=q,
                num_tokens=num_tokens,
                schedule_format=fmt,
                schedule_rows=rows,
                **shape,
            )
            row_lengths, tokens = got["decode_seq_lens"], [1] * num_tokens
            if rows == "request":  # runs of equal indices, as long as their last token sees
                last = [t for t in range(num_tokens) if got["indices"][t : t + 1] != got["indices"][t + 1 : t + 2]]
                row_lengths = [row_lengths[t] for t in last]
                tokens = [t - before for t, before in zip(last, [-1, *last], strict=False)]
            done = [unit for of_slot in walk(got["schedule"], fmt, row_lengths, tokens) for unit in of_slot]
            assert done == work_of(fmt, row_lengths, tokens)


# Decode.


@pytest.mark.parametrize("case", NAMED_DECODE_CASES.values(), ids=NAMED_DECODE_CASES.keys())
def test_named_case_of_decode(device, case):
    for way in (decode_by_function, decode_by_plan):
        check_decode(**case, device=device, way=way)


@pytest.mark.parametrize("source", TOKEN_SOURCES)
@pytest.mark.parametrize("bs", SIZES)
def test_any_number_of_requests(device, source, bs):
    draw = random.Random(bs)
    seq_lens = [draw.choice([0, 3, 200, draw.randrange(5000), draw.randrange(100_000)]) for _ in range(bs)]
    q = [draw.randrange(4) for _ in range(bs)]
    tokens = tokens_as(source, q)
    count = max(q, default=1) * bs if source == "max_query_len" else sum(q)
    for num_tokens in (count, count + 9):
        for fmt, rows in (("deepgemm_sm90", "token"), ("deepgemm_sm100_384", "request")):
            case = of(fmt, rows, slots=132) | tokens | {"num_tokens": num_tokens, "page_size": 64, "width": 5}
            check_decode("rows", seq_lens, **case, device=device)
    case = of("deepgemm_sm90", "request", slots=132) | tokens | {"max_query_len": 2, "names": NATIVE_OUTPUTS}
    check_decode("native", seq_lens, **case, device=device)


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 127, 128, 1023, 1024, 1025, 4097, 15_625])
def test_any_width_of_the_block_table(device, width):
    seq_lens = [64 * width + 9, 5, 64 * width - 1, 32 * width]
    check_decode("rows", seq_lens, query_lens=[1, 0, 2, 3], width=width, num_tokens=8, device=device)


@pytest.mark.parametrize("source_layout", [(0, 0), (1, 0), (0, 1), (4, 4), (7, 2), (64, 3)])
@pytest.mark.parametrize("slack", [(0, 0), (1, 0), (4, 4), (5, 1), (6, 2), (64, 3)])
def test_block_tables_may_be_column_slices_of_wider_ones(device, source_layout, slack):
    check_decode(
        "rows",
        [8000, 61, 0, 700],
        query_lens=[3, 0, 1, 2],
        num_tokens=9,
        width=129,
        source_layout=source_layout,
        slack={"expanded_block_table": slack},
        device=device,
    )


def test_one_long_request_among_short_ones(device):
    """A block table of a million tokens."""
    width = 15_625
    check_decode("rows", [70] * 20 + [64 * width] + [9] * 11, query_lens=[2] * 32, width=width, device=device)


def test_one_request_with_nearly_all_tokens(device):
    q = [1] * 20
    q[7] = 3000
    check_decode("rows", [400] * 20, query_start_loc=starts(q), width=9, num_tokens=3100, device=device)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("source", TOKEN_SOURCES)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("stride", [1, 2, 5])
def test_any_dtype_and_stride(device, layout, source, dtype, stride):
    case = of("deepgemm_sm90", "token" if layout == "rows" else "request") | tokens_as(source, [1, 0, 4, 2])
    case["names"] = DECODE_OUTPUTS if layout == "rows" else NATIVE_OUTPUTS
    if layout == "native":
        case["max_query_len"] = 4
    check_decode(layout, [5, 700, 0, 333], **case, width=12, dtype=dtype, stride=stride, device=device)


@pytest.mark.parametrize("seq_len", INT64_EDGES)
@pytest.mark.parametrize("numbers", NUMBERS.values(), ids=NUMBERS)
def test_every_int64_counts_as_it_is(device, seq_len, numbers):
    numbers = {"page_size": 64} | numbers
    for q in INT64_EDGES:
        for fmt, rows in (("deepgemm_sm90", "token"), ("deepgemm_sm100_384", "request")):
            case = of(fmt, rows) | {"query_lens": [q], "num_tokens": 5, "width": 4}
            check_decode("rows", [seq_len], **case, **numbers, dtype=torch.int64, device=device)
    case = of("deepgemm_sm90", "request") | {"max_query_len": 3, "names": NATIVE_OUTPUTS}
    check_decode("native", [seq_len], **case, **numbers, dtype=torch.int64, device=device)


def test_starts_over_the_whole_of_int64(device):
    edges = [-(2**63), 2**63 - 1, 0, -(2**63), -5, 2**62, 2**62 + 2]
    check_decode("rows", [9] * 6, query_start_loc=edges, num_tokens=20, width=3, dtype=torch.int64, device=device)


@pytest.mark.parametrize("numbers", NUMBERS.values(), ids=NUMBERS)
@pytest.mark.parametrize("name", [*DECODE_OUTPUTS, "schedule"])
def test_each_output_alone(device, name, numbers):
    case = {"query_lens": [2, 0, 3], "num_tokens": 7, "width": 40, "names": [name]} | numbers
    if name == "schedule":
        case = of("deepgemm_sm100_256", **case)
    check_decode("rows", [700, 3, 2300], **case, device=device)
    if name in NATIVE_OUTPUTS:
        check_decode("native", [700, 3, 2300], max_query_len=3, names=[name], **numbers, device=device)


def test_no_output_at_all(device):
    check_decode("rows", [700, 3], query_lens=[2, 1], names=[], device=device)
    check_decode("native", [700, 3], max_query_len=2, names=[], device=device)


def test_lengths_of_native_may_have_two_dimensions(device):
    out = Output(3, 2, device=device)
    nsa_kernel.fill_indexer_decode_metadata(
        "native", seq_lens=lengths([5, 0, 700], device=device), max_query_len=2, decode_seq_lens=out.array
    )
    out.check([[4, 5], [0, 0], [699, 700]], "decode_seq_lens")


@pytest.mark.parametrize("rows", [0, 1, 100])
def test_padding_is_no_request(device, rows):
    """Each row of padding has an index that no request has, and none that another row has."""
    out = torch.full((rows + 3,), POISON, dtype=torch.int32, device=device)
    nsa_kernel.fill_indexer_decode_metadata(
        "rows",
        seq_lens=lengths([9, 9], device=device),
        query_lens=lengths([2, 1], device=device),
        num_tokens=rows + 3,
        indices=out,
    )
    assert out.tolist() == [0, 0, 1, *range(2, rows + 2)]


@pytest.mark.cuda
@pytest.mark.parametrize("bs", [7, 200, 1500])
def test_a_decode_step_follows_inputs_that_change_in_place(device, bs):
    """One graph for a padded batch; also the tokens change."""
    draw, width, num_tokens = random.Random(bs), 70, 3 * bs
    shapes = dict.fromkeys(("decode_seq_lens", "global_seq_lens", "decode_lens", "indices"), (num_tokens,))
    shapes |= {"per_req_lens": (bs,), "expanded_block_table": (num_tokens, width), "schedule": (133, 2)}
    outputs = {name: Output(*shape, device=device) for name, shape in shapes.items()}
    blocks = [[draw.randrange(10**6) for _ in range(width)] for _ in range(bs)]
    s, q = (lengths([0] * bs, device=device) for _ in range(2))
    plan = nsa_kernel.IndexerDecodePlan(
        "rows",
        seq_lens=s,
        query_lens=q,
        num_tokens=num_tokens,
        block_table=table(blocks, width, device=device),
        schedule_format="deepgemm_sm90",
        **{name: output.array for name, output in outputs.items()},
    )
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        plan.run()
    for live in (bs, bs // 3, 0, bs):
        seq_lens = [draw.randrange(70 * 64) if b < live else 0 for b in range(bs)]
        counts = [draw.randrange(4) if b < live else 0 for b in range(bs)]
        s.copy_(torch.tensor(seq_lens, dtype=torch.int32))
        q.copy_(torch.tensor(counts, dtype=torch.int32))
        for output in outputs.values():
            output.array.fill_(POISON)
        graph.replay()
        expected = indexer_decode(
            "rows",
            seq_lens,
            shapes,
            query_lens=counts,
            num_tokens=num_tokens,
            block_table=blocks,
            block_table_width=width,
            schedule_format="deepgemm_sm90",
        )
        for name, output in outputs.items():
            output.check(expected[name], name)


# Prefill.


@pytest.mark.parametrize("case", NAMED_PREFILL_CASES.values(), ids=NAMED_PREFILL_CASES.keys())
def test_named_case_of_prefill(device, case):
    check_prefill(**case, device=device)


@pytest.mark.parametrize("bs", SIZES)
def test_any_number_of_requests_of_a_chunk(device, bs):
    draw = random.Random(bs)
    q = [draw.randrange(3) for _ in range(bs)]
    seq_lens = [count + draw.randrange(4) for count in q]
    check_prefill(starts(q), seq_lens, device=device)
    check_prefill(starts(q), seq_lens, bs // 3, bs - bs // 4, first_row=bs // 8, device=device)


@pytest.mark.parametrize("tokens", [127, 128, 1023, 1024, 1025, 4097, 100_000])
def test_any_number_of_tokens_of_a_chunk(device, tokens):
    check_prefill(starts([1, tokens, 2]), [9, tokens + 50, 2], device=device)
    check_prefill(starts([1, tokens, 2]), [9, 0, 2], first_row=tokens // 2, device=device)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("stride", [1, 2, 5])
def test_any_dtype_and_stride_of_a_chunk(device, dtype, stride):
    check_prefill(starts([3, 0, 7]), [9, 4, 30], dtype=dtype, stride=stride, device=device)


@pytest.mark.parametrize("seq_len", INT64_EDGES)
@pytest.mark.parametrize("numbers", PREFILL_NUMBERS.values(), ids=PREFILL_NUMBERS)
def test_every_int64_counts_as_it_is_in_a_chunk(device, seq_len, numbers):
    room = {"shapes": {"token_to_seq": (20,)}}
    check_prefill([0, 3, 5], [7, seq_len], **room, **numbers, dtype=torch.int64, device=device)
    check_prefill([0, 3, 5], [seq_len, 7], **room, **numbers, dtype=torch.int64, device=device)
    many = {"shapes": dict.fromkeys(("token_to_seq", "cu_seqlen_ks", "cu_seqlen_ke"), (20,)), "end_row": 20}
    check_prefill([0, 2**62], [seq_len], **many, **numbers, dtype=torch.int64, device=device)


@pytest.mark.parametrize("name", PREFILL_OUTPUTS)
def test_each_output_of_a_chunk_alone(device, name):
    check_prefill(starts([3, 0, 7]), [9, 4, 30], 1, 3, first_row=2, names=[name], device=device)


def test_no_output_of_a_chunk_at_all(device):
    check_prefill(starts([3, 0, 7]), [9, 4, 30], names=[], device=device)


# Token requests.


@pytest.mark.parametrize("case", NAMED_TOKEN_REQUESTS_CASES.values(), ids=NAMED_TOKEN_REQUESTS_CASES.keys())
def test_named_case_of_token_requests(device, case):
    check_token_requests(**case, device=device)


@pytest.mark.parametrize("bs", SIZES)
def test_the_tokens_of_any_number_of_requests(device, bs):
    draw = random.Random(bs)
    q = [draw.randrange(4) for _ in range(bs)]
    check_token_requests(starts(q), sum(q) + 33, device=device)
    check_token_requests(starts(q), sum(q), sum(q) // 2, device=device)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("stride", [1, 2, 5])
def test_starts_of_any_dtype_and_stride(device, dtype, stride):
    check_token_requests(starts([3, 0, 7]), 12, 9, dtype=dtype, stride=stride, device=device)


def test_starts_beyond_int32(device):
    check_token_requests([0, 3, 2**40, 2**62], 9, dtype=torch.int64, device=device)
    check_token_requests([-(2**62), -(2**40), 5, 2**63 - 1], 9, dtype=torch.int64, device=device)


# Refusals: three requests of 2, 0 and 3 tokens.

NATIVE_SHAPES = {"decode_seq_lens": (9,), "decode_lens": (3,), "per_req_lens": (3,), "schedule": (5, 2)}


def native_inputs(device):
    arrays = {"seq_lens": lengths([9, 4, 7], device=device), "max_query_len": 3}
    return arrays | {"layout": "native", "schedule_format": "deepgemm_sm90", "schedule_rows": "request"}


def valid_native_arguments(op, device, call=None):
    return with_outputs(native_inputs, NATIVE_SHAPES, device)


OPS = {
    "rows": (DECODE, valid_arguments),
    "native": (DECODE, valid_native_arguments),
    "prefill": (PREFILL, valid_arguments),
    "tokens": (TOKEN_REQUESTS, valid_arguments),
}


def test_the_arguments_of_native_fit_before_they_are_changed(device):
    for call in CALLS[DECODE]:
        arguments, _ = valid_native_arguments(DECODE, device)
        call(**arguments)


DIVISOR = f"must be from 1 to {INT32_MAX}"
NOT_AN_ARRAY = "must be an array that exports DLPack"
SHARDS = [
    (ValueError, f"compress_ratio is 0, {DIVISOR}", {"compress_ratio": 0}),
    (ValueError, f"compress_ratio is -4, {DIVISOR}", {"compress_ratio": -4}),
    (ValueError, f"dcp_world is 0, {DIVISOR}", {"dcp_world": 0}),
    (ValueError, f"dcp_world is -1, {DIVISOR}", {"dcp_world": -1}),
    (ValueError, f"dcp_interleave is 0, {DIVISOR}", {"dcp_interleave": 0}),
    (ValueError, "dcp_rank is -1, must be from 0 to dcp_world - 1 (0)", {"dcp_rank": -1}),
    (ValueError, "dcp_rank is 2, must be from 0 to dcp_world - 1 (1)", {"dcp_rank": 2, "dcp_world": 2}),
    (TypeError, "compress_ratio is a float, must be an int", {"compress_ratio": 1.0}),
    (TypeError, "dcp_world is a str, must be an int", {"dcp_world": "1"}),
    (ValueError, f"dcp_rank is {2**70}, must fit in 64 bits", {"dcp_rank": 2**70}),
]
REFUSALS = {
    "rows": [
        *SHARDS,
        (ValueError, "layout is 'row', must be one of 'rows', 'native'", {"layout": "row"}),
        (TypeError, "layout is a int, must be a str", {"layout": 1}),
        (TypeError, f"seq_lens is a NoneType, {NOT_AN_ARRAY}", {"seq_lens": None}),
        (ValueError, "query_lens is given with query_start_loc, must be absent", {"query_lens": ints(2, 0, 3)}),
        (
            ValueError,
            "max_query_len is given with query_start_loc in layout rows, must be absent",
            {"max_query_len": 2},
        ),
        (
            ValueError,
            "max_query_len is given with query_lens in layout rows, must be absent",
            {"max_query_len": 2, "query_start_loc": None, "query_lens": ints(2, 0, 3)},
        ),
        (
            ValueError,
            "query_start_loc is absent, must be given, or query_lens or max_query_len",
            {"query_start_loc": None},
        ),
        (
            ValueError,
            "query_start_loc has 3 elements, must have one more than seq_lens (3)",
            {"query_start_loc": ints(0, 2, 5)},
        ),
        (
            ValueError,
            "query_lens has 2 elements, must have as many as seq_lens (3)",
            {"query_start_loc": None, "query_lens": ints(2, 3)},
        ),
        (ValueError, "max_query_len is -1, must be at least 0", {"query_start_loc": None, "max_query_len": -1}),
        (ValueError, "num_tokens is absent in layout rows, must be given", {"num_tokens": None}),
        (ValueError, "num_tokens is -1, must be at least 0", {"num_tokens": -1}),
        (
            ValueError,
            "num_tokens is 1073741825, must be at most 1073741824",
            {"num_tokens": 2**30 + 1, "decode_seq_lens": None},
        ),
        (ValueError, f"page_size is 0, {DIVISOR}", {"page_size": 0}),
        (ValueError, f"page_size is -64, {DIVISOR}", {"page_size": -64}),
        (ValueError, "global_seq_lens has 4 elements, must have at least 5", {"global_seq_lens": words(4)}),
        (ValueError, "decode_lens has 4 elements, must have at least 5", {"decode_lens": words(4)}),
        (ValueError, "indices has 4 elements, must have at least 5", {"indices": words(4)}),
        (ValueError, "per_req_lens has 2 elements, must have at least 3", {"per_req_lens": words(2)}),
        (
            ValueError,
            "expanded_block_table has 4 rows, must have at least 5",
            {"expanded_block_table": words(4, 4)},
        ),
        (ValueError, "block_table is absent, must be given with expanded_block_table", {"block_table": None}),
        (ValueError, "block_table has 2 rows, must have at least 3", {"block_table": words(2, 4)}),
        (
            ValueError,
            "schedule_rows is request with query_start_loc, must be token but in deepgemm_sm100_384",
            {"schedule_rows": "request"},
        ),
        (
            ValueError,
            "schedule_atoms is given, must be absent but in deepgemm_sm90 with rows by request",
            {"schedule_atoms": 2},
        ),
        (ValueError, "schedule_format is absent, must be given with schedule", {"schedule_format": None}),
        (ValueError, "schedule_format is given without schedule, must be absent", {"schedule": None}),
        (ValueError, "schedule has 1 rows, must have at least 2", {"schedule": words(1, 2)}),
        (ValueError, "schedule has 3 columns, must have 2", {"schedule": words(5, 3)}),
        (TypeError, "seq_lens has dtype float32, must be int32 or int64", {"seq_lens": words(3, dtype=torch.float32)}),
        (TypeError, "indices has dtype int64, must be int32", {"indices": words(5, dtype=torch.int64)}),
        (TypeError, "block_table has dtype int64, must be int32", {"block_table": words(3, 4, dtype=torch.int64)}),
        (TypeError, "block_table has 1 dimensions, must have 2", {"block_table": words(12)}),
        (TypeError, "indices has 2 dimensions, must have 1", {"indices": words(5, 2)}),
    ],
    "native": [
        *SHARDS,
        (ValueError, "max_query_len is absent in layout native, must be given", {"max_query_len": None}),
        (ValueError, "max_query_len is -1, must be at least 0", {"max_query_len": -1}),
        (ValueError, "global_seq_lens is given in layout native, must be absent", {"global_seq_lens": words(9)}),
        (ValueError, "indices is given in layout native, must be absent", {"indices": words(9)}),
        (
            ValueError,
            "expanded_block_table is given in layout native, must be absent",
            {"expanded_block_table": words(9, 4)},
        ),
        (ValueError, "decode_seq_lens has 8 elements, must have at least 9", {"decode_seq_lens": words(8)}),
        (ValueError, "decode_lens has 2 elements, must have at least 3", {"decode_lens": words(2)}),
        (ValueError, "per_req_lens has 2 elements, must have at least 3", {"per_req_lens": words(2)}),
        (ValueError, "schedule_atoms is 0, must be at least 1", {"schedule_atoms": 0}),
    ],
    "prefill": [
        *SHARDS,
        (TypeError, f"seq_lens is a NoneType, {NOT_AN_ARRAY}", {"seq_lens": None}),
        (TypeError, f"query_start_loc is a NoneType, {NOT_AN_ARRAY}", {"query_start_loc": None}),
        (
            ValueError,
            "query_start_loc has 3 elements, must have one more than seq_lens (3)",
            {"query_start_loc": ints(0, 2, 5)},
        ),
        (ValueError, "first_request is -1, must be at least 0", {"first_request": -1}),
        (ValueError, "end_request is 4, must be at most 3", {"end_request": 4}),
        (
            ValueError,
            "end_request is 1, must be at least first_request (2)",
            {"first_request": 2, "end_request": 1},
        ),
        (ValueError, "first_row is -1, must be at least 0", {"first_row": -1}),
        (ValueError, "end_row is 2, must be at least first_row (3)", {"first_row": 3, "end_row": 2}),
        (TypeError, "first_request is a NoneType, must be an int", {"first_request": None}),
        (TypeError, "end_row is a str, must be an int", {"end_row": "3"}),
        (ValueError, "cu_seq_lens has 3 elements, must have at least 4", {"cu_seq_lens": words(3)}),
        (ValueError, "local_cu_seq_lens has 3 elements, must have at least 4", {"local_cu_seq_lens": words(3)}),
        (TypeError, "token_to_seq has dtype int64, must be int32", {"token_to_seq": words(9, dtype=torch.int64)}),
    ],
    "tokens": [
        (ValueError, "query_start_loc has 0 elements, must have at least 1", {"query_start_loc": ints()}),
        (ValueError, "num_mapped is -1, must be at least 0", {"num_mapped": -1}),
        (TypeError, "num_mapped is a float, must be an int", {"num_mapped": 2.0}),
        (TypeError, f"out is a NoneType, {NOT_AN_ARRAY}", {"out": None}),
        (TypeError, "out has dtype int64, must be int32", {"out": words(7, dtype=torch.int64)}),
        (TypeError, "out has 2 dimensions, must have 1", {"out": words(7, 2)}),
    ],
}
ALL_REFUSALS = [(kind, *refusal) for kind, refusals in REFUSALS.items() for refusal in refusals]


@pytest.mark.parametrize(
    ("kind", "exception", "message", "changes"),
    ALL_REFUSALS,
    ids=[f"{kind}: {message}" for kind, _, message, _ in ALL_REFUSALS],
)
def test_arguments_that_are_refused(device, kind, exception, message, changes):
    op, valid = OPS[kind]
    check_refusal(op, device, exception, re.escape(message) + "$", valid, **changes)
