"""The oracle of `draft_extend` and `replay`: plain loops over lists, written from the specification alone.

In every result, `None` marks a slot that must be left unmodified.
"""

from bisect import bisect_right
from collections.abc import Callable
from itertools import accumulate, islice

INT32_MAX = 2**31 - 1
PER_TOKEN = ("seqlens_expanded", "nsa_cache_seqlens", "nsa_cu_seqlens_k")
SPLITS = {"deepgemm_sm90": 256, "deepgemm_sm100_256": 256, "deepgemm_sm100_384": 384}
# Of SGLang's top-k: so many rows may be longer than that.
CLUSTER_LIMITS = {
    "sglang_topk_v2_sm90": [(65536, 30), (98304, 45), (131072, 60), (196608, 80), (262144, 112), (393216, 128)],
    "sglang_topk_v2_sm100": [(32768, 48), (131072, 66), (163840, 99), (196608, 132), (262144, 198), (393216, 231),
                             (524288, 264)],
}  # fmt: skip


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


def schedule(
    shape: tuple[int, int],
    fmt: str,
    lengths: list[int],
    tokens: list[int],
    *,
    atoms: int | None = None,
    end: int | None = None,
) -> list[list[int]]:
    """Returns where each slot starts, of rows of these lengths and tokens; `atoms` where rows are no runs of tokens.

    `end` is what column 0 calls the row after the last, where it is not what follows from the rows.
    """
    slots, split = shape[0] - 1, SPLITS[fmt]
    firsts, works, sums = [], [], []
    first = total = 0
    for length, count in zip(lengths, tokens, strict=True):
        if fmt == "deepgemm_sm90":
            work = step = atoms
        elif fmt == "deepgemm_sm100_256":
            work, step = count, count
        else:
            work, step = 8 * -(-count // 4) + count, count
        firsts.append(first)
        works.append(work)
        total = stored(total + -(-length // split) * work)
        sums.append(total)
        first += step
    if total == 0:
        return [[0, 0] for _ in range(slots + 1)]

    end_entry = [stored(first if end is None else end), 0]
    each, rest = divmod(total, slots)
    entries = []
    for i in range(slots):
        t = i * each + (max(i - (slots - rest), 0) if fmt == "deepgemm_sm90" else min(i, rest))
        if t >= total:
            entries.append(end_entry)
            continue
        r = bisect_right(sums, t)  # the first row with a sum above t
        offset = t - (sums[r - 1] if r else 0)
        splits = -(-lengths[r] // split)
        if fmt == "deepgemm_sm90":
            entries.append([stored(firsts[r] + offset // splits), offset % splits])
        else:
            entries.append([stored(firsts[r]), offset // works[r]])
    return [*entries, end_entry]


def topk_plan(shape: tuple[int, int], fmt: str, lengths: list[int], clusters: int) -> list[list]:
    """Returns the rows that go to clusters, of rows of these lengths."""
    untouched = [[None, None] for _ in range(shape[0])]
    if not 0 < clusters < len(lengths) <= 512:
        return untouched
    limit = CLUSTER_LIMITS[fmt][-1][0]
    for length, most in reversed(CLUSTER_LIMITS[fmt]):
        if sum(value > length for value in lengths) > most:
            break
        limit = length
    limit = max(limit, 32768)
    rows = [[r, length] for r, length in enumerate(lengths) if length > limit]
    filled = [[limit, len(rows)], *rows]
    return filled + untouched[len(filled) :]


def replay(
    mode: str,
    seq_lens: list[int],
    topk: int | None,
    shapes: dict[str, tuple[int, ...]],
    *,
    num_draft_tokens: int = 0,
    extend_seq_lens: list[int] | None = None,
    req_pool_indices: list[int] | None = None,
    req_to_token: list[list[int]] | None = None,
    req_to_token_width: int = 0,
    page_size: int = 1,
    schedule_format: str | None = None,
    schedule_rows: str = "token",
    schedule_atoms: int | None = None,
    topk_plan_format: str | None = None,
    topk_plan_clusters: int | None = None,
) -> dict[str, list]:
    """Returns the outputs named in `shapes`, each as a list (or a list of rows) of that shape.

    The capacity of the per-token outputs, which bounds the rows of schedules of a ragged batch, is that of the longest.
    """
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

    def tokens_in_order(most: int) -> list[int]:
        """The lengths of the first tokens."""
        return list(islice((length(b, j) for b in range(bs) for j in range(tokens[b])), most))

    capacity = max([0, *(shapes[name][0] - (name == "nsa_cu_seqlens_k") for name in PER_TOKEN if name in shapes)])
    token_lengths = tokens_in_order(capacity)

    def per_token(size: int) -> list[int]:
        return token_lengths[:size] + [0] * (size - len(token_lengths))

    def rows_by_token() -> list[int]:
        """The length of each row that a consumer of the per-token outputs reads."""
        lengths = per_token(capacity) if extend_seq_lens is not None else tokens_in_order(sum(tokens))
        return [stored(value) for value in lengths]

    def rows_by_request() -> tuple[list[int], list[int]]:
        """The length of each request as a row, and its tokens; of a ragged batch those that fit."""
        if extend_seq_lens is None:
            return [stored(value) for value in kv], tokens
        lengths, counts, left = [], [], capacity
        for b in range(bs):
            held = min(tokens[b], left)
            cut = held < tokens[b]
            lengths.append(stored(kv[b] if not cut else length(b, held - 1) if held else 0))
            counts.append(held)
            left -= held
        return lengths, counts

    def filled_schedule(shape: tuple[int, int]) -> list[list[int]]:
        end = None if extend_seq_lens is None else capacity
        if schedule_rows == "token":
            lengths = rows_by_token()
            return schedule(shape, schedule_format, lengths, [1] * len(lengths), atoms=1, end=end)
        atoms = schedule_atoms or -(-(1 if mode == "decode" else n) // 2)
        return schedule(shape, schedule_format, *rows_by_request(), atoms=atoms, end=end)

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
        elif name == "schedule":
            outputs[name] = filled_schedule(shape)
            continue
        elif name == "topk_plan":
            outputs[name] = topk_plan(shape, topk_plan_format, rows_by_token(), topk_plan_clusters)
            continue
        else:
            outputs[name] = table(*shape, live_slots if name == "page_table" else live_pages)
            continue
        outputs[name] = [stored(value) for value in values] + [None] * (shape[0] - len(values))
    return outputs
