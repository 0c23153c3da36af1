"""Cases of the indexer ops and how one is run: what every test of them shares."""

from itertools import accumulate

import nsa_kernel
import torch
from indexer_reference import indexer_decode, indexer_prefill, token_counts, token_requests
from memory import Output, lengths, table
from reference import INT32_MAX, SPLITS
from schedule_cases import of

TOKEN_SOURCES = ["query_start_loc", "query_lens", "max_query_len"]
DCP = ("dcp_world", "dcp_rank", "dcp_interleave")


def starts(q, first=0):
    """The `query_start_loc` of requests of so many tokens."""
    return list(accumulate(q, initial=first))


def inputs(device, dtype, stride, **values):
    return {
        name: lengths(value, device=device, dtype=dtype, stride=stride)
        for name, value in values.items()
        if value is not None
    }


def compare(outputs, expected, arguments, given):
    for name, output in outputs.items():
        output.check(expected[name], name)
    for name, values in given.items():
        assert values is None or arguments[name].tolist() == values, "an input changed"


# ---- decode ----------------------------------------------------------------------------------------------------------

DECODE_OUTPUTS = [
    *("decode_seq_lens", "global_seq_lens", "decode_lens", "per_req_lens", "indices", "expanded_block_table"),
]
NATIVE_OUTPUTS = ["decode_seq_lens", "decode_lens", "per_req_lens"]


def decode_by_function(layout, arguments):
    nsa_kernel.fill_indexer_decode_metadata(layout, **arguments)


def decode_by_plan(layout, arguments):
    nsa_kernel.IndexerDecodePlan(layout, **arguments).run()


def decode_shapes(layout, bs, m, rows, width, names):
    """The exact shape of every output that the layout has, of those asked for."""
    if layout == "native":
        shapes = {"decode_seq_lens": (bs * m,), "decode_lens": (bs,), "per_req_lens": (bs,)}
    else:
        shapes = dict.fromkeys(("decode_seq_lens", "global_seq_lens", "decode_lens", "indices"), (rows,))
        shapes |= {"per_req_lens": (bs,), "expanded_block_table": (rows, width)}
    return {name: shape for name, shape in shapes.items() if name in names}


def check_decode(
    layout,
    seq_lens,
    *,
    device,
    query_start_loc=None,
    query_lens=None,
    max_query_len=None,
    num_tokens=None,
    block_table=None,
    width=0,
    slots=None,
    names=DECODE_OUTPUTS,
    shapes=None,
    slack=None,
    way=decode_by_function,
    dtype=torch.int32,
    stride=1,
    source_layout=None,
    **numbers,
):
    """Runs one case in poisoned memory and compares every word of it with the oracle.

    `num_tokens` is the true count where it is not given. `shapes` replaces the shapes of single outputs; `slack` gives
    their rows (row_stride beyond the width, offset). `numbers` are the other arguments, those of a schedule included.
    """
    bs = len(seq_lens)
    counts = token_counts(bs, query_start_loc, query_lens, max_query_len)
    rows = sum(counts) if num_tokens is None else num_tokens
    if block_table is None:
        block_table = [[1000 * row + 3 * c for c in range(width)] for row in range(bs)]
    shapes = {**decode_shapes(layout, bs, max_query_len, rows, width, names), **(shapes or {})}
    if "schedule_format" in numbers:
        shapes["schedule"] = (slots + 1, 2)

    outputs = {}
    for name, shape in shapes.items():
        extra, offset = (slack or {}).get(name, (0, 0))
        outputs[name] = Output(*shape, device=device, row_stride=shape[-1] + extra, offset=offset)
    arguments = {name: output.array for name, output in outputs.items()} | numbers
    given = {"seq_lens": seq_lens, "query_start_loc": query_start_loc, "query_lens": query_lens}
    arguments |= inputs(device, dtype, stride, **given)
    if max_query_len is not None:
        arguments["max_query_len"] = max_query_len
    if layout == "rows":
        arguments["num_tokens"] = rows
    if "expanded_block_table" in shapes:
        extra, offset = source_layout or (0, 0)
        arguments["block_table"] = table(block_table, width, device=device, row_stride=width + extra, offset=offset)
    way(layout, arguments)

    expected = indexer_decode(
        layout,
        seq_lens,
        shapes,
        query_start_loc=query_start_loc,
        query_lens=query_lens,
        max_query_len=max_query_len,
        block_table=block_table,
        block_table_width=width,
        num_tokens=rows,
        **numbers,
    )
    compare(outputs, expected, arguments, given)


DECODE_BATCHES = {
    "one token a request": {"seq_lens": [5, 700, 64], "q": [1, 1, 1], "width": 12},
    "several tokens a request": {"seq_lens": [70, 129, 300], "q": [3, 1, 4], "width": 9},
    "requests without tokens between others": {"seq_lens": [70, 129, 300, 9, 80], "q": [0, 2, 0, 0, 3], "width": 9},
    "no tokens": {"seq_lens": [70, 129], "q": [0, 0], "width": 3},
    "no tokens but padding": {"seq_lens": [70, 129], "q": [0, 0], "width": 3, "num_tokens": 4},
    "padding": {"seq_lens": [70, 129, 300], "q": [3, 1, 4], "width": 9, "num_tokens": 13},
    "fewer rows than tokens": {"seq_lens": [70, 129, 300], "q": [3, 1, 4], "width": 9, "num_tokens": 6},
    "rows that end with a request": {"seq_lens": [70, 129, 300], "q": [3, 1, 4], "width": 9, "num_tokens": 4},
    "no rows": {"seq_lens": [70, 129], "q": [3, 1], "width": 9, "num_tokens": 0},
    "lengths longer than the rows": {
        "seq_lens": [70, 129],
        "q": [3, 1],
        "width": 9,
        "num_tokens": 6,
        "shapes": {"decode_seq_lens": (11,)},
    },
    "lengths shorter than the rows": {
        "seq_lens": [70, 129],
        "q": [3, 1],
        "width": 9,
        "num_tokens": 6,
        "shapes": {"decode_seq_lens": (3,)},
    },
    "lengths of no room": {
        "seq_lens": [70, 129],
        "q": [3, 1],
        "width": 9,
        "num_tokens": 6,
        "shapes": {"decode_seq_lens": (0,)},
    },
    "outputs longer than the batch": {
        "seq_lens": [70, 129],
        "q": [3, 1],
        "width": 9,
        "num_tokens": 5,
        "shapes": {
            "global_seq_lens": (7,),
            "decode_lens": (9,),
            "per_req_lens": (6,),
            "indices": (8,),
            "expanded_block_table": (10, 9),
        },
    },
    "padded rows: k below q": {"seq_lens": [0, 2, 70], "q": [3, 4, 2], "width": 3},
    "all lengths zero": {"seq_lens": [0, 0], "q": [2, 1], "width": 3},
    "negative lengths count as zero": {"seq_lens": [-5, 300, -(2**31)], "q": [2, 1, 1], "width": 6},
    "a narrower output table": {
        "seq_lens": [700, 129],
        "q": [2, 1],
        "width": 12,
        "shapes": {"expanded_block_table": (3, 5)},
    },
    "a wider output table": {
        "seq_lens": [700, 129],
        "q": [2, 1],
        "width": 12,
        "shapes": {"expanded_block_table": (3, 21)},
    },
    "an output table without columns": {
        "seq_lens": [700, 129],
        "q": [2, 1],
        "width": 12,
        "num_tokens": 5,
        "shapes": {"expanded_block_table": (5, 0)},
    },
    "a block table without columns": {
        "seq_lens": [700, 129],
        "q": [2, 1],
        "width": 0,
        "num_tokens": 5,
        "shapes": {"expanded_block_table": (5, 4)},
    },
    "lengths over the table's width": {"seq_lens": [700, 10**6], "q": [2, 1], "width": 4},
    "no requests": {"seq_lens": [], "q": [], "width": 4},
    "no requests but padding": {"seq_lens": [], "q": [], "width": 4, "num_tokens": 5},
    "lengths as long as they get": {"seq_lens": [INT32_MAX, INT32_MAX - 1], "q": [2, 3], "width": 4},
    "more tokens than an int32 counts": {
        "seq_lens": [INT32_MAX, 500],
        "query_lens": [INT32_MAX, INT32_MAX],
        "num_tokens": 40,
        "width": 4,
    },
    "negative token counts": {"seq_lens": [70, 129, 300], "query_lens": [-2, 2, -(2**31)], "width": 9},
    "starts that do not begin at zero": {"seq_lens": [70, 129], "query_start_loc": [7, 9, 12], "width": 9},
    "starts that go back": {"seq_lens": [70, 129, 300, 9], "query_start_loc": [0, 3, 1, 2, -4], "width": 9},
    "the same number of tokens": {"seq_lens": [70, 2, 300], "max_query_len": 3, "width": 9},
    "the same number, and padding": {"seq_lens": [70, 2, 300], "max_query_len": 3, "num_tokens": 12, "width": 9},
    "the same number, and fewer rows": {"seq_lens": [70, 2, 300], "max_query_len": 3, "num_tokens": 5, "width": 9},
    "the same number, zero": {"seq_lens": [70, 2, 300], "max_query_len": 0, "num_tokens": 2, "width": 9},
}
NUMBERS = {
    "pages of one": {"page_size": 1},
    "pages of 3": {"page_size": 3},
    "pages as large as they get": {"page_size": INT32_MAX},
    "a compress ratio of 4": {"compress_ratio": 4, "page_size": 16},
    "a compress ratio above every length": {"compress_ratio": 10**6},
    "the first of two ranks": {"dcp_world": 2, "dcp_rank": 0},
    "the last of three ranks, in runs of 16": {"dcp_world": 3, "dcp_rank": 2, "dcp_interleave": 16},
    "both": {"compress_ratio": 2, "dcp_world": 2, "dcp_rank": 1, "dcp_interleave": 8, "page_size": 16},
}


def named_decode_cases():
    def arguments(batch):
        """In every way to give the tokens."""
        batch = {"layout": "rows"} | batch
        if "q" not in batch:
            yield batch
            return
        q = batch.pop("q")
        yield batch | {"query_start_loc": starts(q)}
        yield batch | {"query_lens": q}

    for name, batch in DECODE_BATCHES.items():
        for case in arguments(batch):
            source = next(word for word in TOKEN_SOURCES if word in case)
            yield f"{name}, {source}", case
            for fmt in SPLITS:
                yield f"{name}, {source}, {fmt}", of(fmt, slots=7, **case)
            for fmt in SPLITS if source == "max_query_len" else ["deepgemm_sm100_384"]:
                yield f"{name}, {source}, by request, {fmt}", of(fmt, "request", slots=7, **case)
    batch = {"layout": "rows", "seq_lens": [5, 700, 0, 64, 3000], "query_lens": [2, 1, 3, 0, 4], "width": 60}
    native = {"layout": "native", "seq_lens": [5, 700, 0, 64, 3000], "names": NATIVE_OUTPUTS}
    for name, numbers in NUMBERS.items():
        for fmt in SPLITS:
            yield f"{name}, {fmt}", of(fmt, slots=7, **batch, **numbers, num_tokens=12)
            yield f"native: {name}, {fmt}", of(fmt, "request", slots=7, max_query_len=2, **native, **numbers)
    several = {"layout": "rows", "seq_lens": [700, 0, 3000], "max_query_len": 5, "width": 50}
    for rows in (15, 19, 12):
        case = of("deepgemm_sm90", "request", 2, 40, num_tokens=rows, **several)
        yield f"rows by request end after the last request, of {rows} rows", case
    for m in (0, 1, 2, 3, 5):
        yield f"native: {m} tokens", native | {"max_query_len": m}
        yield f"native: {m} tokens, atoms", of("deepgemm_sm90", "request", 2, max_query_len=m, **native)
        for fmt in SPLITS:
            yield f"native: {m} tokens, {fmt}", of(fmt, "request", max_query_len=m, **native)
    yield "native: no requests", of("deepgemm_sm90", "request", **native | {"seq_lens": [], "max_query_len": 2})
    yield "native: requests with tokens of their own", native | {"max_query_len": 3, "query_lens": [3, 0, 2, -1, 1]}
    yield "native: the same, as starts", native | {"max_query_len": 3, "query_start_loc": [0, 3, 3, 5, 5, 6]}
    longer = {"decode_seq_lens": (19,), "decode_lens": (8,), "per_req_lens": (9,)}
    yield "native: longer outputs", native | {"max_query_len": 3, "shapes": longer}
    yield "native: lengths as long as they get", native | {"max_query_len": 3, "seq_lens": [INT32_MAX, -4, 2]}


NAMED_DECODE_CASES = dict(named_decode_cases())


def draw_numbers(draw):
    numbers = {}
    if draw.random() < 0.4:
        numbers["compress_ratio"] = draw.choice([1, 2, 4, 7, 128])
    if draw.random() < 0.4:
        world = draw.choice([1, 2, 3, 4, 8])
        numbers |= dict(zip(DCP, (world, draw.randrange(world), draw.choice([1, 2, 8, 64, 100])), strict=True))
    return numbers


def draw_lengths(draw, bs, dtype):
    scale = draw.choice([5, 100, 3000, 100_000])
    seq_lens = [draw.choice([0, draw.randrange(-2, scale), draw.randrange(scale)]) for _ in range(bs)]
    if bs and draw.random() < 0.15:
        far = [INT32_MAX, -(2**31)] if dtype == torch.int32 else [2**33, -(2**33), 2**62, 2**63 - 1]
        seq_lens[draw.randrange(bs)] = draw.choice(far)
    return seq_lens


def draw_decode_case(draw):
    layout = draw.choice(["rows", "rows", "native"])
    dtype = draw.choice([torch.int32, torch.int64])
    bs = draw.choice([0, 1, 2, 3, 4, 5, 8, 17, draw.randrange(80)])
    most = draw.choice([1, 1, 2, 3, 5])
    q = [draw.choice([most, draw.randrange(most + 1), draw.randrange(most + 1)]) for _ in range(bs)]
    case = {"layout": layout, "seq_lens": draw_lengths(draw, bs, dtype), **draw_numbers(draw)}
    source = draw.choice(TOKEN_SOURCES)
    if source == "query_start_loc":
        case[source] = starts(q, draw.choice([0, 0, 5]))
    elif source == "query_lens":
        case[source] = [draw.choice([count, count, count, -1]) for count in q]
    if layout == "native" or source == "max_query_len":
        case["max_query_len"] = most
    tokens = sum(token_counts(bs, *(case.get(word) for word in TOKEN_SOURCES)))

    names = NATIVE_OUTPUTS if layout == "native" else DECODE_OUTPUTS
    names = draw.choice([names, draw.sample(names, draw.randrange(len(names) + 1))])
    rows = draw.choice([tokens, tokens, tokens + draw.randrange(9), draw.randrange(tokens + 5)])
    width = draw.choice([0, 1, 3, 8, 33, draw.randrange(150)])
    shapes = decode_shapes(layout, bs, most, rows, width, names)
    for name, shape in shapes.items():
        if name == "expanded_block_table":
            columns = draw.choice([width, draw.randrange(width + 9)])
            shapes[name] = (rows + draw.choice([0, 0, draw.randrange(5)]), columns)
        elif name == "decode_seq_lens" and layout == "rows":
            shapes[name] = (draw.choice([rows, rows + draw.randrange(20), draw.randrange(rows + 1)]),)
        else:
            shapes[name] = (shape[0] + draw.choice([0, 0, draw.randrange(5)]),)
    if draw.random() < 0.5:
        fmt, by = draw.choice([*SPLITS]), draw.choice(["token", "request"])
        if layout == "native":
            by = "request"
        elif fmt != "deepgemm_sm100_384" and source != "max_query_len":
            by = "token"
        atoms = draw.choice([None, 1, 3]) if (fmt, by) == ("deepgemm_sm90", "request") else None
        case = of(fmt, by, atoms, draw.choice([1, 2, 7, 132, 148]), **case)
    layouts = [(0, 0), (0, 0), (1, 0), (4, 4), (5, 1), (30, 2)]
    return case | {
        "num_tokens": rows if layout == "rows" else None,
        "page_size": draw.choice([1, 2, 3, 16, 64, 64, draw.randrange(1, 90)]),
        "block_table": [[draw.randrange(-9, 10**6) for _ in range(width)] for _ in range(bs)],
        "width": width,
        "names": names,
        "shapes": shapes,
        "slack": {"expanded_block_table": draw.choice(layouts), "schedule": (0, draw.choice([0, 2]))},
        "way": draw.choice([decode_by_function, decode_by_plan]),
        "dtype": dtype,
        "stride": draw.choice([1, 1, 2, 3]),
        "source_layout": draw.choice(layouts),
    }


# ---- prefill ---------------------------------------------------------------------------------------------------------

PREFILL_OUTPUTS = ["cu_seq_lens", "local_cu_seq_lens", "token_to_seq", "cu_seqlen_ks", "cu_seqlen_ke"]


def prefill_by_function(arguments):
    nsa_kernel.fill_indexer_prefill_metadata(**arguments)


def check_prefill(
    query_start_loc,
    seq_lens,
    first_request=0,
    end_request=None,
    *,
    device,
    first_row=None,
    end_row=None,
    names=PREFILL_OUTPUTS,
    shapes=None,
    way=prefill_by_function,
    dtype=torch.int32,
    stride=1,
    **numbers,
):
    """Runs one case in poisoned memory and compares every word of it with the oracle.

    The chunk is the whole batch by default, and its outputs hold just what there is.
    """
    end_request = len(seq_lens) if end_request is None else end_request
    requests = range(first_request, end_request)
    states = sum(max(seq_lens[b], 0) // numbers.get("compress_ratio", 1) for b in requests)
    rows = sum(max(query_start_loc[b + 1] - query_start_loc[b], 0) for b in requests)
    rows = max((rows if end_row is None else end_row) - (first_row or 0), 0)
    exact = dict.fromkeys(("cu_seq_lens", "local_cu_seq_lens"), (len(requests) + 1,)) | {"token_to_seq": (states,)}
    exact |= dict.fromkeys(("cu_seqlen_ks", "cu_seqlen_ke"), (rows,))
    shapes = {**{name: shape for name, shape in exact.items() if name in names}, **(shapes or {})}

    outputs = {name: Output(*shape, device=device) for name, shape in shapes.items()}
    numbers |= {name: row for name, row in (("first_row", first_row), ("end_row", end_row)) if row is not None}
    arguments = {name: output.array for name, output in outputs.items()} | numbers
    given = {"query_start_loc": query_start_loc, "seq_lens": seq_lens}
    arguments |= inputs(device, dtype, stride, **given)
    way(arguments | {"first_request": first_request, "end_request": end_request})
    expected = indexer_prefill(query_start_loc, seq_lens, first_request, end_request, shapes, **numbers)
    compare(outputs, expected, arguments, given)


BATCH = {"query_start_loc": starts([3, 0, 7, 2, 5]), "seq_lens": [9, 4, 7, 2, 30]}
NAMED_PREFILL_CASES = {
    "a whole batch": BATCH,
    "one request": {"query_start_loc": [0, 4], "seq_lens": [4]},
    "the first requests": BATCH | {"end_request": 2},
    "requests in the middle": BATCH | {"first_request": 1, "end_request": 4},
    "the last request": BATCH | {"first_request": 4},
    "no request of several": BATCH | {"first_request": 3, "end_request": 3},
    "no requests": {"query_start_loc": [0], "seq_lens": []},
    "rows in the middle": BATCH | {"first_row": 4, "end_row": 11},
    "rows in the middle of a part of the batch": BATCH | {"first_request": 2, "first_row": 3, "end_row": 8},
    "rows of one request": BATCH | {"first_row": 4, "end_row": 6},
    "rows from one on": BATCH | {"first_row": 12},
    "no rows": BATCH | {"first_row": 5, "end_row": 5},
    "rows past the last": BATCH | {"first_row": 12, "end_row": 40},
    "rows that all lie past the last": BATCH | {"first_row": 17, "end_row": 20},
    "more room than states and rows": BATCH
    | {"shapes": {"token_to_seq": (70,), "cu_seqlen_ks": (20,), "cu_seqlen_ke": (23,), "cu_seq_lens": (9,)}},
    "less room than states": BATCH | {"shapes": {"token_to_seq": (11,)}},
    "room for states that ends with a request": BATCH | {"shapes": {"token_to_seq": (13,)}},
    "no room for states": BATCH | {"shapes": {"token_to_seq": (0,)}},
    "no tokens": {"query_start_loc": [0, 0, 0], "seq_lens": [5, 6]},
    "no states": {"query_start_loc": [0, 2, 5], "seq_lens": [0, 0]},
    "padded rows: k below q": {"query_start_loc": [0, 5, 9], "seq_lens": [2, 0]},
    "negative lengths count as zero": {"query_start_loc": [0, 2, 3, 5], "seq_lens": [-4, 6, -(2**31)]},
    "starts that do not begin at zero": {"query_start_loc": [7, 9, 12], "seq_lens": [5, 6]},
    "starts that go back": {"query_start_loc": [0, 3, 1, 2, -4], "seq_lens": [5, 6, 7, 8]},
    "sums that saturate": {
        "query_start_loc": [0, 2, 3, 5],
        "seq_lens": [INT32_MAX, INT32_MAX, 40],
        "shapes": {"token_to_seq": (99,)},
    },
    "one long request among short ones": {
        "query_start_loc": starts([1] * 20 + [3000] + [2] * 20),
        "seq_lens": [7] * 20 + [9001] + [30] * 20,
    },
}
PREFILL_NUMBERS = {name: {k: v for k, v in numbers.items() if k != "page_size"} for name, numbers in NUMBERS.items()}
NAMED_PREFILL_CASES |= {
    name: {"query_start_loc": starts([3, 0, 700, 2]), "seq_lens": [90, 4, 5000, 1]} | numbers
    for name, numbers in PREFILL_NUMBERS.items()
    if numbers
}


def draw_prefill_case(draw):
    dtype = draw.choice([torch.int32, torch.int64])
    bs = draw.choice([0, 1, 2, 3, 5, 8, draw.randrange(40)])
    q = [draw.choice([0, 1, draw.randrange(9), draw.randrange(draw.choice([9, 300]))]) for _ in range(bs)]
    first = draw.randrange(bs + 1)
    chunk = draw.choice([(0, bs), (0, bs), (first, draw.randrange(first, bs + 1))])
    seq_lens = [count + max(value, -2) for count, value in zip(q, draw_lengths(draw, bs, dtype), strict=True)]
    seq_lens = [min(value, 2000) for value in seq_lens] if draw.random() < 0.8 else seq_lens
    limit = INT32_MAX if dtype == torch.int32 else 2**63 - 1
    seq_lens = [min(value, limit) for value in seq_lens]
    case = {"query_start_loc": starts(q, draw.choice([0, 0, 9])), "seq_lens": seq_lens, **draw_numbers(draw)}
    rows = sum(q[slice(*chunk)])
    first_row = draw.choice([None, 0, draw.randrange(rows + 3)])
    end_row = draw.choice([None, rows, (first_row or 0) + draw.randrange(rows + 5)])
    if end_row is not None:
        end_row = max(end_row, first_row or 0)
    states = min(sum(max(value, 0) for value in seq_lens[slice(*chunk)]), 3000)
    room = max((rows if end_row is None else end_row) - (first_row or 0), 0)
    names = draw.choice([PREFILL_OUTPUTS, draw.sample(PREFILL_OUTPUTS, draw.randrange(6))])
    shapes = {
        "cu_seq_lens": (chunk[1] - chunk[0] + 1 + draw.choice([0, 0, 3]),),
        "local_cu_seq_lens": (chunk[1] - chunk[0] + 1 + draw.choice([0, 0, 2]),),
        "token_to_seq": (draw.choice([states, states + 5, draw.randrange(states + 1)]),),
        "cu_seqlen_ks": (room + draw.choice([0, 0, 4]),),
        "cu_seqlen_ke": (room + draw.choice([0, 0, 7]),),
    }
    return case | {
        "first_request": chunk[0],
        "end_request": chunk[1],
        "first_row": first_row,
        "end_row": end_row,
        "names": names,
        "shapes": {name: shapes[name] for name in names},
        "dtype": dtype,
        "stride": draw.choice([1, 1, 2, 3]),
    }


# ---- token requests --------------------------------------------------------------------------------------------------


def token_requests_by_function(arguments):
    nsa_kernel.fill_token_requests(**arguments)


def check_token_requests(
    query_start_loc, size, num_mapped=None, *, device, way=token_requests_by_function, dtype=torch.int32, stride=1
):
    """Runs one case in poisoned memory and compares every word of it with the oracle."""
    out = Output(size, device=device)
    given = {"query_start_loc": query_start_loc}
    arguments = {"out": out.array} | inputs(device, dtype, stride, **given)
    if num_mapped is not None:
        arguments["num_mapped"] = num_mapped
    way(arguments)
    compare({"out": out}, {"out": token_requests(query_start_loc, size, num_mapped)}, arguments, given)


NAMED_TOKEN_REQUESTS_CASES = {
    "the tokens of all requests": {"query_start_loc": [0, 2, 5, 6], "size": 6},
    "more than the tokens": {"query_start_loc": [0, 2, 5, 6], "size": 11},
    "fewer than the tokens": {"query_start_loc": [0, 2, 5, 6], "size": 4},
    "some mapped": {"query_start_loc": [0, 2, 5, 6], "size": 9, "num_mapped": 5},
    "none mapped": {"query_start_loc": [0, 2, 5, 6], "size": 9, "num_mapped": 0},
    "all mapped": {"query_start_loc": [0, 2, 5, 6], "size": 9, "num_mapped": 9},
    "more mapped than there are": {"query_start_loc": [0, 2, 5, 6], "size": 9, "num_mapped": 100},
    "requests without tokens": {"query_start_loc": [0, 0, 2, 2, 2, 5, 5], "size": 8},
    "no tokens": {"query_start_loc": [0, 0, 0], "size": 3},
    "one request": {"query_start_loc": [0, 4], "size": 6},
    "no requests": {"query_start_loc": [0], "size": 3},
    "nothing to fill": {"query_start_loc": [0, 4], "size": 0},
    "starts that do not begin at zero": {"query_start_loc": [3, 5, 9], "size": 12},
    "negative starts": {"query_start_loc": [-9, -5, 2, 4], "size": 6},
    "starts that go back": {"query_start_loc": [0, 5, 2, 7, 3, 9], "size": 12},
    "starts beyond everything": {"query_start_loc": [0, 3, INT32_MAX], "size": 9},
    "one long request among short ones": {"query_start_loc": starts([1] * 30 + [5000] + [2] * 30), "size": 5100},
}


def draw_token_requests_case(draw):
    bs = draw.choice([0, 1, 2, 5, 33, draw.randrange(200)])
    q = [draw.choice([0, 1, 1, draw.randrange(9), draw.randrange(draw.choice([2, 400]))]) for _ in range(bs)]
    query_start_loc = starts(q, draw.choice([0, 0, 0, 3, -3]))
    size = draw.choice([sum(q), sum(q) + draw.randrange(99), draw.randrange(sum(q) + 1)])
    if bs and draw.random() < 0.1:
        query_start_loc[draw.randrange(bs)] = draw.randrange(-5, size + 5)
    return {
        "query_start_loc": query_start_loc,
        "size": size,
        "num_mapped": draw.choice([None, None, draw.randrange(size + 9)]),
        "dtype": draw.choice([torch.int32, torch.int64]),
        "stride": draw.choice([1, 1, 2, 3]),
    }
