"""The oracle: both ops as plain loops over lists, written from the specification alone.

In every result, `None` marks a slot that must keep what it held.
"""

from collections.abc import Callable
from itertools import accumulate, islice

INT32_MAX = 2**31 - 1
PER_TOKEN = ("seqlens_expanded", "nsa_cache_seqlens", "nsa_cu_seqlens_k")


def stored(value: int) -> int:
    """What an int32 output holds: sums and lengths saturate."""
    return min(value, INT32_MAX)


def draft_extend(q: list[int], k: list[int], topk: int, capacity: int) -> tuple[list, list, int]:
    """Returns the expanded lengths, the clipped lengths and the number of tokens."""
    expanded, clipped = [None] * capacity, [None] * capacity
    t = 0
    for b in range(len(q)):
        tokens, kv = max(q[b], 0), max(k[b], 0)
        for j in range(min(tokens, max(capacity - t, 0))):
            length = max(kv - tokens + 1 + j, 0)
            expanded[t + j] = stored(length)
            clipped[t + j] = stored(min(length, topk))
        t += tokens
    return expanded, clipped, stored(t)


def replay(
    mode: str,
    seq_lens: list[int],
    topk: int,
    shapes: dict[str, tuple[int, ...]],
    *,
    num_draft_tokens: int = 0,
    extend_seq_lens: list[int] | None = None,
    req_pool_indices: list[int] | None = None,
    req_to_token: list[list[int]] | None = None,
    req_to_token_width: int = 0,
    page_size: int = 1,
) -> dict[str, list]:
    """Returns the outputs named in `shapes`, each as a list (or a list of rows) of that shape."""
    s = [max(value, 0) for value in seq_lens]
    bs, n = len(s), num_draft_tokens
    if mode == "decode":
        tokens = [1] * bs
    elif extend_seq_lens is not None:
        tokens = [max(value, 0) for value in extend_seq_lens]
    else:
        tokens = [n] * bs
    kv = [value + n for value in s] if mode == "target_verify" else s

    def length(b: int, j: int) -> int:
        if mode == "decode":
            return kv[b]
        if mode == "target_verify":
            return s[b] + 1 + j
        return max(s[b] - tokens[b] + 1 + j, 0)

    def row_of_slots(b: int) -> list[int]:
        row = req_pool_indices[b]
        return req_to_token[row] if 0 <= row < len(req_to_token) else [0] * req_to_token_width

    most = max((shape[0] for name, shape in shapes.items() if name in PER_TOKEN), default=0)
    token_lengths = list(islice((length(b, j) for b in range(bs) for j in range(tokens[b])), most))

    def per_token(capacity: int) -> list[int]:
        return token_lengths[:capacity] + [0] * (capacity - len(token_lengths))

    def table(rows: int, width: int, live_row: Callable[[int, int], list[int]]) -> list[list]:
        filled = []
        for b in range(bs):
            if count := min(tokens[b], rows - len(filled)):
                values = live_row(b, width)
                filled += [values + [None] * (width - len(values))] * count
        return filled + [[None] * width] * (rows - len(filled))

    def live_slots(b: int, width: int) -> list[int]:
        return row_of_slots(b)[: min(kv[b], req_to_token_width, width)]

    def live_pages(b: int, width: int) -> list[int]:
        return [slot // page_size for slot in live_slots(b, width * page_size)[::page_size]]

    outputs = {}
    for name, shape in shapes.items():
        if name == "cache_seqlens":
            values = kv
        elif name == "cu_seqlens_k":
            values = list(accumulate(kv, initial=0))
        elif name == "seqlens_expanded":
            values = per_token(shape[0])
        elif name == "nsa_cache_seqlens":
            values = [min(value, topk) for value in per_token(shape[0])]
        elif name == "nsa_cu_seqlens_k":
            clipped = [min(value, topk) for value in per_token(max(shape[0] - 1, 0))]
            values = list(accumulate(clipped, initial=0))[: shape[0]]
        elif name == "num_tokens":
            values = [sum(tokens)]
        elif name == "ctx_lens_2d":
            rows = [[stored(kv[b])] * n + [None] * (shape[1] - n) for b in range(bs)]
            outputs[name] = rows + [[None] * shape[1] for _ in range(shape[0] - bs)]
            continue
        else:
            outputs[name] = table(*shape, live_slots if name == "page_table" else live_pages)
            continue
        outputs[name] = [stored(value) for value in values] + [None] * (shape[0] - len(values))
    return outputs
