"""Cases of `replay` and how one is run: what every test of the op shares."""

import nsa_kernel
import torch
from memory import Output, lengths, table
from reference import INT32_MAX, PER_TOKEN, replay

MODES = ["decode", "target_verify", "draft_extend", "ragged"]
TABLES = ["page_table", "real_page_table"]
OUTPUTS = ["cache_seqlens", "cu_seqlens_k", *PER_TOKEN, *TABLES, "ctx_lens_2d", "num_tokens"]


def by_function(mode, arguments):
    nsa_kernel.fill_replay_metadata(mode, **arguments)


def by_plan(mode, arguments):
    nsa_kernel.ReplayPlan(mode, **arguments).run()


def count_tokens(mode, bs, n, q=None):
    """The tokens of a batch, of which a ragged one has `q`."""
    if mode == "ragged":
        return sum(max(value, 0) for value in q)
    return bs * (1 if mode == "decode" else n)


def shapes_of(mode, bs, rows, n, width, page_size, names=OUTPUTS):
    """The exact shape of every output that the mode has, of those asked for; `rows` are tokens."""
    shapes = {
        "cache_seqlens": (bs,),
        "cu_seqlens_k": (bs + 1,),
        "seqlens_expanded": (rows,),
        "nsa_cache_seqlens": (rows,),
        "nsa_cu_seqlens_k": (rows + 1,),
        "page_table": (rows, width),
        "real_page_table": (rows, -(-width // page_size)),
        "ctx_lens_2d": (bs, n),
        "num_tokens": (1,),
    }
    if mode in ("decode", "ragged"):
        del shapes["ctx_lens_2d"]
    return {name: shape for name, shape in shapes.items() if name in names}


def check(
    mode,
    seq_lens,
    *,
    device,
    q=None,
    n=3,
    topk=2048,
    pool=None,
    width=0,
    indices=None,
    page_size=1,
    names=OUTPUTS,
    shapes=None,
    slack=None,
    way=by_function,
    dtype=torch.int32,
    stride=1,
    source_layout=None,
    **scheduling,
):
    """Runs one case in poisoned memory and compares every word of it with the oracle.

    `shapes` replaces the shapes of single outputs, and adds those of schedules and top-k plans, whose other arguments
    are `scheduling`; `slack` gives their rows (row_stride beyond the width, offset).
    """
    ragged, op_mode = mode == "ragged", "draft_extend" if mode == "ragged" else mode
    rows = count_tokens(mode, len(seq_lens), n, q)
    if pool is None:
        pool = [[1000 * row + 3 * c for c in range(width)] for row in range(len(seq_lens) + 1)]
    if indices is None:
        indices = [len(pool) - 1 - b for b in range(len(seq_lens))]
    shapes = {**shapes_of(mode, len(seq_lens), rows, n, width, page_size, names), **(shapes or {})}

    outputs = {}
    for name, shape in shapes.items():
        extra, offset = (slack or {}).get(name, (0, 0))
        outputs[name] = Output(*shape, device=device, row_stride=shape[-1] + extra, offset=offset)
    arguments = {name: output.array for name, output in outputs.items()}
    arguments["seq_lens"] = lengths(seq_lens, device=device, dtype=dtype, stride=stride)
    if topk is not None:
        arguments["nsa_index_topk"] = topk
    if ragged:
        arguments["extend_seq_lens"] = lengths(q, device=device, dtype=dtype, stride=stride)
    if mode != "decode":
        arguments["num_draft_tokens"] = n
    if any(name in shapes for name in TABLES):
        extra, offset = source_layout or (0, 0)
        arguments["req_to_token"] = table(pool, width, device=device, row_stride=width + extra, offset=offset)
        arguments["req_pool_indices"] = lengths(indices, device=device, dtype=dtype, stride=stride)
        arguments["page_size"] = page_size
    way(op_mode, arguments | scheduling)

    expected = replay(
        op_mode,
        seq_lens,
        topk,
        shapes,
        num_draft_tokens=n,
        extend_seq_lens=q if ragged else None,
        req_pool_indices=indices,
        req_to_token=pool,
        req_to_token_width=width,
        page_size=page_size,
        **scheduling,
    )
    for name, output in outputs.items():
        output.check(expected[name], name)
    assert arguments["seq_lens"].tolist() == seq_lens, "an input changed"


NAMED_CASES = {
    "decode": {"mode": "decode", "seq_lens": [5, 1, 9], "width": 9},
    "verify counts the draft tokens too": {"mode": "target_verify", "seq_lens": [5, 0, 9], "width": 12},
    "uniform": {"mode": "draft_extend", "seq_lens": [5, 3, 9], "width": 9},
    "ragged": {"mode": "ragged", "seq_lens": [5, 3, 9], "q": [2, 0, 4], "width": 9},
    "padded rows": {"mode": "draft_extend", "seq_lens": [5, 0, 0], "width": 9},
    "padded rows of a ragged batch": {"mode": "ragged", "seq_lens": [5, 0, 1], "q": [2, 3, 2], "width": 9},
    "all lengths zero": {"mode": "target_verify", "seq_lens": [0, 0], "width": 4},
    "all counts zero": {
        "mode": "ragged",
        "seq_lens": [4, 5],
        "q": [0, 0],
        "width": 4,
        "shapes": {"seqlens_expanded": (3,)},
    },
    "negative lengths count as zero": {"mode": "decode", "seq_lens": [-5, 2, -(2**31)], "width": 4},
    "negative length in verify": {"mode": "target_verify", "seq_lens": [-5, 2], "width": 4},
    "negative counts count as zero": {"mode": "ragged", "seq_lens": [6, 4, 5], "q": [-2, 2, -(2**31)], "width": 4},
    "no draft tokens": {"mode": "target_verify", "seq_lens": [6, 4], "n": 0, "width": 4},
    "topk zero": {"mode": "draft_extend", "seq_lens": [6, 4], "topk": 0, "width": 4},
    "topk clips": {"mode": "draft_extend", "seq_lens": [6, 4], "topk": 3, "width": 4},
    "length over the tables' width": {"mode": "decode", "seq_lens": [6, 40, 3000], "width": 4},
    "output narrower than the source": {
        "mode": "draft_extend",
        "seq_lens": [6, 40],
        "width": 30,
        "shapes": {"page_table": (6, 7), "real_page_table": (6, 5)},
    },
    "output wider than the source": {
        "mode": "draft_extend",
        "seq_lens": [6, 40],
        "width": 8,
        "shapes": {"page_table": (6, 21), "real_page_table": (6, 19)},
    },
    "table without columns": {"mode": "decode", "seq_lens": [6, 4], "width": 0},
    "output without columns": {"mode": "decode", "seq_lens": [6, 4], "width": 5, "shapes": {"page_table": (2, 0)}},
    "pool without rows": {"mode": "decode", "seq_lens": [6, 4], "width": 5, "pool": [], "indices": [0, 0]},
    "pool rows out of range": {
        "mode": "decode",
        "seq_lens": [3, 3, 3, 3],
        "width": 5,
        "pool": [[7] * 5] * 2,
        "indices": [-1, 1, 2, -(2**31)],
    },
    "requests that share a pool row": {
        "mode": "ragged",
        "seq_lens": [3, 5],
        "q": [2, 1],
        "width": 5,
        "indices": [1, 1],
    },
    "negative slots": {
        "mode": "decode",
        "seq_lens": [4],
        "width": 4,
        "pool": [[-1, -2, -(2**31), INT32_MAX]],
        "indices": [0],
        "page_size": 1,
    },
    "pages of negative slots": {
        "mode": "decode",
        "seq_lens": [7],
        "width": 7,
        "pool": [[-1, 0, 0, -64, 0, 0, -65]],
        "indices": [0],
        "page_size": 3,
    },
    "fewer rows than tokens": {
        "mode": "ragged",
        "seq_lens": [6, 7, 8],
        "q": [3, 3, 3],
        "width": 8,
        "shapes": {"page_table": (4, 8), "real_page_table": (7, 8), "seqlens_expanded": (5,), "nsa_cu_seqlens_k": (3,)},
    },
    "more rows than tokens": {
        "mode": "ragged",
        "seq_lens": [6, 7],
        "q": [3, 1],
        "width": 8,
        "shapes": {
            "page_table": (9, 8),
            "real_page_table": (6, 8),
            "seqlens_expanded": (7,),
            "nsa_cu_seqlens_k": (11,),
        },
    },
    "outputs longer than the batch": {
        "mode": "target_verify",
        "seq_lens": [6, 7],
        "width": 12,
        "shapes": {
            "cache_seqlens": (5,),
            "cu_seqlens_k": (8,),
            "ctx_lens_2d": (4, 5),
            "num_tokens": (3,),
            "seqlens_expanded": (9,),
            "nsa_cache_seqlens": (7,),
            "nsa_cu_seqlens_k": (10,),
        },
    },
    "empty outputs of a ragged batch": {
        "mode": "ragged",
        "seq_lens": [6],
        "q": [2],
        "width": 4,
        "shapes": dict.fromkeys(PER_TOKEN, (0,)) | {"page_table": (0, 4), "real_page_table": (0, 4)},
    },
    "cumulative sum over capacity": {
        "mode": "ragged",
        "seq_lens": [9, 9],
        "q": [3, 3],
        "shapes": {"nsa_cu_seqlens_k": (1,)},
    },
    "sums saturate": {
        "mode": "decode",
        "seq_lens": [INT32_MAX, 1, INT32_MAX],
        "topk": INT32_MAX,
        "names": ["cache_seqlens", "cu_seqlens_k", *PER_TOKEN],
    },
    "verify lengths saturate": {
        "mode": "target_verify",
        "seq_lens": [INT32_MAX - 1, INT32_MAX],
        "topk": INT32_MAX,
        "width": 4,
    },
    "count saturates": {
        "mode": "ragged",
        "seq_lens": [7, INT32_MAX],
        "q": [INT32_MAX, INT32_MAX],
        "width": 4,
        "shapes": dict.fromkeys(PER_TOKEN, (9,)) | {"page_table": (9, 4), "real_page_table": (9, 4)},
    },
}


def draw_case(draw):
    mode, n = draw.choice(MODES), draw.choice([0, 1, 2, 3, 4, 5])
    bs = draw.choice([0, 1, 2, 3, 4, 5, 8, draw.randrange(40)])
    width = draw.choice([0, 1, 3, 8, 33, 64, draw.randrange(150)])
    page_size = draw.choice([1, 1, 2, 3, 16, 64, draw.randrange(1, 90)])
    dtype = draw.choice([torch.int32, torch.int64])
    seq_lens = [draw.randrange(-2, draw.choice([2, 9, 60, 300])) for _ in range(bs)]
    q = [draw.choice([-1, 0, 1, 2, n, n, 7]) for _ in range(bs)]
    if bs and draw.random() < 0.15:
        seq_lens[draw.randrange(bs)] = draw.choice([INT32_MAX, -(2**31)] if dtype == torch.int32 else [2**33, -(2**33)])
    if bs and draw.random() < 0.1:
        q[draw.randrange(bs)] = draw.choice([200, INT32_MAX])
    slots = draw.choice([(0, 10**6), (-9, 9), (-(2**31), 2**31)])
    pool = [[draw.randrange(*slots) for _ in range(width)] for _ in range(draw.randrange(5))]
    indices = [draw.randrange(-1 if draw.random() < 0.2 else 0, len(pool) + 1) for _ in range(bs)]
    names = draw.choice([OUTPUTS, draw.sample(OUTPUTS, draw.randrange(len(OUTPUTS) + 1))])

    rows = count_tokens(mode, bs, n, q)
    shapes = shapes_of(mode, bs, rows, n, width, page_size, names)
    rows = min(rows, 250)
    for name in shapes:
        if name in PER_TOKEN:
            least = 0 if mode == "ragged" else rows + (name == "nsa_cu_seqlens_k")
            shapes[name] = (draw.choice([least, rows + 1, rows + draw.randrange(1, 9), max(least, rows // 2)]),)
        elif name in TABLES:
            columns = draw.choice([shapes[name][1], draw.randrange(shapes[name][1] + 9)])
            shapes[name] = (draw.choice([rows, rows, draw.randrange(rows + 5)]), columns)
        elif draw.random() < 0.2:
            shapes[name] = tuple(size + draw.randrange(4) for size in shapes[name])
    layouts = [(0, 0), (0, 0), (1, 0), (4, 4), (5, 1), (30, 2)]
    return {
        "mode": mode,
        "seq_lens": seq_lens,
        "q": q,
        "n": n,
        "topk": draw.choice([0, 1, 7, 64, 2048, INT32_MAX]),
        "pool": pool,
        "width": width,
        "indices": indices,
        "page_size": page_size,
        "names": names,
        "shapes": shapes,
        "slack": {name: draw.choice(layouts) for name in [*TABLES, "ctx_lens_2d"]},
        "way": draw.choice([by_function, by_plan]),
        "dtype": dtype,
        "stride": draw.choice([1, 1, 1, 2, 3]),
        "source_layout": draw.choice(layouts),
    }
