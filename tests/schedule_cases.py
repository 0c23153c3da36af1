"""Cases of the schedules and top-k plans of `replay`, how one is run, and how a consumer walks a schedule."""

from itertools import pairwise

import replay_cases
from reference import CLUSTER_LIMITS, INT32_MAX, PER_TOKEN, SPLITS
from replay_cases import by_function, count_tokens, shapes_of

TOPK_FORMATS = list(CLUSTER_LIMITS)
# Every format with the rows that it takes in each mode.
FORMATS = [(fmt, rows) for fmt in SPLITS for rows in ("token", "request")]


def fits(mode, fmt, rows):
    """Whether a batch of this mode may have such a schedule."""
    return rows == "token" or mode != "ragged" or fmt == "deepgemm_sm100_384"


def rows_by_token(mode, bs, n, shapes):
    if mode == "ragged":
        return max([0, *(shapes[name][0] - (name == "nsa_cu_seqlens_k") for name in PER_TOKEN if name in shapes)])
    return bs if mode == "decode" else bs * n


def check(
    mode,
    seq_lens,
    *,
    device,
    q=None,
    n=3,
    names=("seqlens_expanded",),
    shapes=None,
    slots=None,
    plan_rows=None,
    way=by_function,
    **case,
):
    """Runs one case as `replay_cases.check` does, with a schedule of so many slots, a top-k plan, or both.

    `plan_rows` are the rows of the plan, by default as few as there may be; without a format there is none.
    """
    shapes = dict(shapes or {})
    bs, width, page_size = len(seq_lens), case.get("width", 0), case.get("page_size", 1)
    others = shapes_of(mode, bs, count_tokens(mode, bs, n, q), n, width, page_size, names) | shapes
    if "schedule_format" in case:
        shapes["schedule"] = (slots + 1, 2)
    if "topk_plan_format" in case:
        least = rows_by_token(mode, bs, n, others) + 1
        shapes["topk_plan"] = (least if plan_rows is None else plan_rows, 2)
    replay_cases.check(mode, seq_lens, device=device, q=q, n=n, names=names, shapes=shapes, way=way, **case)


def walk(entries, fmt, lengths, tokens, atoms=None):
    """What each slot does, as (row, split) with the row as column 0 counts it, by the consumer's own steps.

    `atoms` is given where each of so many numbers of column 0 is the same row.
    """
    rows = {}  # by their number in column 0: length, and the step to the next
    for r, (length, count) in enumerate(zip(lengths, tokens, strict=True)):
        for number in range(atoms * r, atoms * (r + 1)) if atoms else [sum(tokens[:r])] * (count > 0):
            rows[number] = length, 1 if atoms else count
    for start, stop in pairwise(entries):
        (row, split), done = start, []
        while [row, split] != stop:
            assert [row, split] < stop, "the slot passes its end"
            length, step = rows[row]  # not a row: a read outside
            splits = -(-length // SPLITS[fmt])
            if split < splits:
                done.append((row, split))
            row, split = (row, split + 1) if split + 1 < splits else (row + step, 0)
        yield done


def work_of(fmt, lengths, tokens, atoms=None):
    """All that there is to do, as `walk` says it."""
    work, row = [], 0
    for length, count in zip(lengths, tokens, strict=True):
        numbers = range(row, row + atoms) if atoms else [row] * (count > 0)
        work += [(number, split) for number in numbers for split in range(-(-length // SPLITS[fmt]))]
        row += atoms or count
    return work


def of(fmt, rows="token", atoms=None, slots=5, **case):
    """A case with a schedule."""
    case |= {"schedule_format": fmt, "schedule_rows": rows, "slots": slots}
    return case if atoms is None else case | {"schedule_atoms": atoms}


def plan(clusters, fmt="sglang_topk_v2_sm90", **case):
    """A case with a top-k plan."""
    return case | {"topk_plan_format": fmt, "topk_plan_clusters": clusters}


# Of every format, in words that do not depend on it; rows by token or by request.
BATCHES = {
    "one request": {"mode": "decode", "seq_lens": [1000]},
    "the worked example": {"mode": "decode", "seq_lens": [300, 0, 513]},
    "all lengths zero": {"mode": "decode", "seq_lens": [0, 0, 0]},
    "negative lengths count as zero": {"mode": "decode", "seq_lens": [-5, 700, -(2**31), 300]},
    "zero-length requests in the middle": {"mode": "decode", "seq_lens": [5000, 0, 0, 0, 260, 0, 1]},
    "zero-length requests at both ends": {"mode": "decode", "seq_lens": [0, 0, 800, 900, 0, 0]},
    "lengths around a split": {"mode": "decode", "seq_lens": [255, 256, 257, 383, 384, 385, 512, 768, 769]},
    "verify": {"mode": "target_verify", "seq_lens": [500, 0, 1020, 3], "n": 4},
    "verify of nothing yet": {"mode": "target_verify", "seq_lens": [0, 0], "n": 2},
    "uniform": {"mode": "draft_extend", "seq_lens": [257, 400, 1030, 0], "n": 3},
    "padded rows": {"mode": "draft_extend", "seq_lens": [700, 2, 0, 1, 300], "n": 4},
    "no draft tokens": {"mode": "target_verify", "seq_lens": [700, 200], "n": 0},
    "one draft token": {"mode": "target_verify", "seq_lens": [700, 256], "n": 1},
    "more draft tokens than a split": {"mode": "target_verify", "seq_lens": [200, 0], "n": 600},
    "sums that saturate": {"mode": "decode", "seq_lens": [INT32_MAX] * 300},
    "a sum that saturates in its last row": {"mode": "decode", "seq_lens": [INT32_MAX] * 256 + [1000]},
    "lengths that saturate": {"mode": "target_verify", "seq_lens": [INT32_MAX - 1, INT32_MAX, 600], "n": 3},
    "no requests": {"mode": "target_verify", "seq_lens": [], "n": 3},
}
RAGGED_BATCHES = {
    "ragged": {"seq_lens": [257, 400, 1030], "q": [2, 1, 4]},
    "requests without tokens between others": {"seq_lens": [900, 400, 1030, 500], "q": [0, 3, 0, 2]},
    "no tokens": {"seq_lens": [900, 400], "q": [0, 0], "shapes": {"seqlens_expanded": (5,)}},
    "negative counts": {"seq_lens": [900, 400, 600], "q": [-2, 3, -(2**31)]},
    "padded rows": {"seq_lens": [700, 2, 0, 300], "q": [3, 4, 2, 1]},
    "more rows than tokens": {"seq_lens": [700, 300], "q": [2, 2], "shapes": {"seqlens_expanded": (9,)}},
    "a capacity that cuts a request in the middle": {
        "seq_lens": [700, 1000, 300],
        "q": [3, 5, 2],
        "shapes": {"seqlens_expanded": (5,)},
    },
    "a capacity that ends with a request": {
        "seq_lens": [700, 1000, 300],
        "q": [3, 5, 2],
        "shapes": {"seqlens_expanded": (8,)},
    },
    "a capacity that cuts a padded request": {
        "seq_lens": [700, 3, 300],
        "q": [3, 6, 2],
        "shapes": {"seqlens_expanded": (6,)},
    },
    "a capacity of one": {"seq_lens": [700, 300], "q": [3, 5], "shapes": {"seqlens_expanded": (1,)}},
    "a capacity of nothing": {"seq_lens": [700, 300], "q": [3, 5], "shapes": {"seqlens_expanded": (0,)}},
    "a capacity far below a count that saturates": {
        "seq_lens": [INT32_MAX, 500],
        "q": [INT32_MAX, INT32_MAX],
        "shapes": {"seqlens_expanded": (300,)},
    },
    "the longest of several outputs": {
        "seq_lens": [700, 1000, 300],
        "q": [3, 5, 2],
        "names": ["seqlens_expanded", "nsa_cache_seqlens", "nsa_cu_seqlens_k"],
        "shapes": {"seqlens_expanded": (2,), "nsa_cache_seqlens": (4,), "nsa_cu_seqlens_k": (7,)},
    },
    "the cumulative sum alone": {"seq_lens": [700, 1000], "q": [3, 5], "names": ["nsa_cu_seqlens_k"]},
    "no requests": {"seq_lens": [], "q": [], "shapes": {"seqlens_expanded": (4,)}},
}
NAMED_CASES = {
    f"{name}, {fmt}, rows by {rows}": of(fmt, rows, **batch)
    for name, batch in (BATCHES | {f"ragged: {k}": v | {"mode": "ragged"} for k, v in RAGGED_BATCHES.items()}).items()
    for fmt, rows in FORMATS
    if fits(batch["mode"], fmt, rows)
}
NAMED_CASES |= {
    f"{slots} slots, {fmt}, rows by {rows}": of(
        fmt, rows, slots=slots, mode="target_verify", seq_lens=[3000, 0, 900, 20_000, 7], n=2
    )
    for slots in (1, 2, 3, 33, 132, 148, 264)
    for fmt, rows in FORMATS
}
NAMED_CASES |= {
    f"{atoms} atoms": of("deepgemm_sm90", "request", atoms, mode="target_verify", seq_lens=[3000, 0, 900], n=4)
    for atoms in (1, 2, 3, 7, INT32_MAX, 2**40)
}
NAMED_CASES["atoms of a batch without tokens"] = of(
    "deepgemm_sm90", "request", 2, mode="target_verify", seq_lens=[3000, 600], n=0
)
NAMED_CASES["work of a request beyond 32 bits"] = of(
    "deepgemm_sm100_384", "request", mode="target_verify", seq_lens=[3000, 600], n=INT32_MAX, names=["cache_seqlens"]
)
NAMED_CASES["nothing for clusters"] = plan(8, mode="decode", seq_lens=[100] * 9)
NAMED_CASES |= {
    f"{rows} rows, {clusters} clusters, {fmt}": plan(
        clusters, fmt, mode="decode", seq_lens=[40_000 + 1009 * b % 90_000 for b in range(rows)]
    )
    for rows, clusters in ((9, 8), (8, 8), (9, 0), (511, 16), (512, 16), (513, 16), (512, 511), (512, 512), (1, 0))
    for fmt in TOPK_FORMATS
}
NAMED_CASES |= {
    f"{many} rows above {length}, {fmt}": plan(7, fmt, mode="decode", seq_lens=[9, length] + [length + 1] * many)
    for fmt in TOPK_FORMATS
    for length, most in CLUSTER_LIMITS[fmt]
    for many in (most, most + 1)
}
NAMED_CASES |= {
    "more rows of a plan than it needs": plan(3, mode="decode", seq_lens=[70_000, 5, 99_000, 1], plan_rows=9),
    "lengths at the least limit": plan(
        2, "sglang_topk_v2_sm100", mode="decode", seq_lens=[32_767, 32_768, 32_769, 32_770]
    ),
    "a plan of tokens": plan(4, mode="target_verify", seq_lens=[65_535, 10, 65_534], n=4),
    "a plan of a ragged batch": plan(4, mode="ragged", seq_lens=[70_000, 10, 66_000], q=[3, 0, 4]),
    "a plan of a ragged batch that is cut": plan(
        3, mode="ragged", seq_lens=[70_000, 90_000], q=[3, 4], shapes={"seqlens_expanded": (5,)}
    ),
    "a plan of more rows than tokens": plan(
        3, mode="ragged", seq_lens=[70_000, 90_000], q=[3, 4], shapes={"seqlens_expanded": (20,)}
    ),
    "a plan of a ragged batch of 513 rows": plan(
        3, mode="ragged", seq_lens=[70_000], q=[3], shapes={"seqlens_expanded": (513,)}
    ),
    "a plan of lengths that saturate": plan(
        1, mode="target_verify", seq_lens=[INT32_MAX, INT32_MAX - 1, 5, 40_000], n=2
    ),
    "a plan of no requests": plan(4, mode="decode", seq_lens=[]),
    "both": plan(4, mode="target_verify", seq_lens=[70_000, 0, 90_000], n=3) | of("deepgemm_sm90", slots=132),
}


def draw_case(draw):
    case = replay_cases.draw_case(draw)
    mode, bs, n = case["mode"], len(case["seq_lens"]), case["n"]
    scale = draw.choice([1, 30, 30, 700, 3000])
    case["seq_lens"] = [value * scale if abs(value) < 1000 else value for value in case["seq_lens"]]
    if draw.random() < 0.3:
        case["names"], case["shapes"] = [], {}
        if mode == "ragged":
            case["names"] = ["seqlens_expanded"]
            case["shapes"] = {"seqlens_expanded": (draw.randrange(2 * bs + 5),)}
    if not {"nsa_cache_seqlens", "nsa_cu_seqlens_k"} & set(case["shapes"]):
        case["topk"] = draw.choice([None, 2048])
    which = draw.choice(["schedule", "schedule", "plan", "both"])
    if which != "plan":
        fmt, rows = draw.choice([pair for pair in FORMATS if fits(mode, *pair)])
        slots = draw.choice([1, 2, 3, 8, 33, 132, 148, 264, draw.randrange(1, 300)])
        atoms = draw.choice([None, 1, 2, 5]) if (fmt, rows) == ("deepgemm_sm90", "request") else None
        case = of(fmt, rows, atoms, slots, **case)
    if which != "schedule":
        least = rows_by_token(mode, bs, n, case["shapes"]) + 1
        case = plan(draw.choice([0, 1, 2, 8, 16, least]), draw.choice(TOPK_FORMATS), **case)
        case["plan_rows"] = least + draw.choice([0, 0, 1, 5])
    case["slack"] |= {name: (0, draw.choice([0, 2])) for name in ("schedule", "topk_plan")}
    return case
