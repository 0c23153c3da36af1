"""Cases of `draft_extend` and how one is run: what every test of the op shares."""

import nsa_kernel
import pytest
import torch
from memory import Output, lengths
from reference import INT32_MAX, draft_extend

VARIANTS = ["basic", "adaptive", "optimized"]


def by_function(arrays, outputs, variant):
    nsa_kernel.fill_draft_extend_metadata(*arrays, *outputs, variant=variant)


def by_plan(arrays, outputs, variant):
    nsa_kernel.DraftExtendPlan(*arrays, *outputs, variant=variant).run()


def by_direct_function(arrays, outputs, variant):
    function = getattr(nsa_kernel, f"fill_draft_extend_metadata_cuda_{variant}")
    outputs[2][0] = function(*arrays, *outputs[:2]).item()


def by_drop_in_function(arrays, outputs, variant):
    flags = {"use_adaptive": variant == "adaptive", "use_optimized": variant == "optimized"}
    capacity = min(len(outputs[0]), len(outputs[1]))
    count = draft_extend(arrays[0].tolist(), arrays[1].tolist(), 0, 0)[2]
    if count > capacity:
        with pytest.raises(ValueError, match=rf"has {capacity} elements, must have at least {count}\b"):
            nsa_kernel.fill_draft_extend_metadata_cuda(*arrays, *outputs[:2], **flags)
    else:
        count = nsa_kernel.fill_draft_extend_metadata_cuda(*arrays, *outputs[:2], **flags)
    outputs[2][0] = count


WAYS = [by_function, by_plan, by_direct_function, by_drop_in_function]


def check(q, k, topk=2048, *, device, capacity=None, capacities=None, variant="optimized", way=by_function, **layout):
    """Runs one case in poisoned memory and compares every word of it with the oracle."""
    if capacities is None:
        capacities = [sum(max(value, 0) for value in q) if capacity is None else capacity] * 2
    arrays = [lengths(values, device=device, **layout) for values in (q, k)]
    outputs = [Output(size, device=device) for size in (*capacities, 1)]
    way([*arrays, topk], [output.array for output in outputs], variant)
    expanded, clipped, count = draft_extend(q, k, topk, min(capacities))
    for output, expected, name in zip(
        outputs, (expanded, clipped, [count]), ("seqlens_expanded", "nsa_cache_seqlens", "num_tokens"), strict=True
    ):
        output.check(expected, name)
    assert [array.tolist() for array in arrays[:2]] == [q, k], "an input changed"


NAMED_CASES = {
    "no requests": {"q": [], "k": [], "capacity": 4},
    "no tokens": {"q": [0, 0, 0], "k": [5, 6, 7], "capacity": 4},
    "requests without tokens between others": {"q": [0, 2, 0, 0, 1, 0], "k": [9, 8, 7, 6, 5, 4]},
    "slots past the tokens are left unmodified": {"q": [2, 1], "k": [4, 4], "capacity": 9},
    "count is true over capacity": {"q": [4, 4, 4], "k": [10, 20, 30], "capacity": 7},
    "capacity ends at a request's end": {"q": [4, 4, 4], "k": [10, 20, 30], "capacity": 8},
    "capacity zero": {"q": [4, 4], "k": [10, 20], "capacity": 0},
    "first output shorter": {"q": [3, 3], "k": [10, 20], "capacities": (4, 9)},
    "second output shorter": {"q": [3, 3], "k": [10, 20], "capacities": (9, 4)},
    "padded row: k below q": {"q": [4, 4], "k": [0, 2]},
    "negative q counts as zero": {"q": [-3, 2, -1, 1], "k": [10, 20, 30, 40], "capacity": 4},
    "negative k counts as zero": {"q": [2, 2], "k": [-7, 20]},
    "most negative values": {"q": [-(2**31), 2], "k": [-(2**31), -(2**31)], "capacity": 4},
    "topk zero": {"q": [2], "k": [5], "topk": 0},
    "topk one": {"q": [2], "k": [5], "topk": 1},
    "topk as large as it gets": {"q": [2], "k": [INT32_MAX], "topk": INT32_MAX},
    "count saturates": {"q": [INT32_MAX, INT32_MAX, 5], "k": [INT32_MAX, 7, 8], "capacity": 100},
    "count saturates late": {"q": [3, INT32_MAX], "k": [INT32_MAX, 7], "capacity": 100},
    "longest length": {"q": [1, 2], "k": [INT32_MAX, INT32_MAX]},
    "one long request among short ones": {"q": [1] * 50 + [30_000] + [1] * 50, "k": [70] * 50 + [31_000] + [80] * 50},
}


def draw_case(draw):
    bs = draw.choice([0, 1, 2, 3, 5, 8, 15, 16, 17, 32, 33, 40, draw.randrange(300)])
    most = draw.choice([0, 1, 2, 4, 4, 8, 20])
    q = [draw.randrange(-1, most + 1) for _ in range(bs)]
    k = [draw.randrange(-3, draw.choice([4, 100, 5000])) for _ in range(bs)]
    dtype = draw.choice([torch.int32, torch.int64])
    far = [INT32_MAX, -(2**31)] if dtype == torch.int32 else [INT32_MAX, 2**31, 2**50, -(2**50)]
    if bs and draw.random() < 0.2:
        k[draw.randrange(bs)] = draw.choice(far)
    if bs and draw.random() < 0.1:
        q[draw.randrange(bs)] = draw.choice([*far, 1000])
    tokens = min(sum(max(value, 0) for value in q), 1500)
    exact = (tokens, tokens)
    return {
        "q": q,
        "k": k,
        "topk": draw.choice([0, 1, 7, 64, 2048, INT32_MAX]),
        "capacities": draw.choice([exact, exact, (draw.randrange(tokens + 9), draw.randrange(tokens + 9))]),
        "variant": draw.choice(VARIANTS),
        "way": draw.choice(WAYS),
        "dtype": dtype,
        "stride": draw.choice([1, 1, 1, 2, 3]),
    }
