"""What schedules and top-k plans must hold: plain loops over all rows, for the selftest and the benchmarks."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from .checked import cumulative_sum

SPLITS = {"deepgemm_sm90": 256, "deepgemm_sm100_256": 256, "deepgemm_sm100_384": 384}
MOST_ABOVE = {
    "sglang_topk_v2_sm90": {65536: 30, 98304: 45, 131072: 60, 196608: 80, 262144: 112, 393216: 128},
    "sglang_topk_v2_sm100": {32768: 48, 131072: 66, 163840: 99, 196608: 132, 262144: 198, 393216: 231, 524288: 264},
}
"""Of a format of top-k plans: so many rows may be longer than each length."""
LEAST_LIMIT, MOST_PLANNED = 32768, 512


def schedule(
    fmt: str, slots: int, lengths: Sequence[int], tokens: Sequence[int], atoms: int = 1, end: int | None = None
) -> list[int]:
    """All elements of a schedule of rows of such lengths and tokens; of deepgemm_sm90 a row is so many atoms.

    `end` is what column 0 calls the row after the last, where that is not where the rows end.
    """
    sm90 = fmt == "deepgemm_sm90"
    steps = [atoms] * len(lengths) if sm90 else tokens
    work = [8 * -(-count // 4) + count for count in tokens] if fmt == "deepgemm_sm100_384" else steps
    splits = [-(-length // SPLITS[fmt]) for length in lengths]
    first = list(accumulate(steps, initial=0))
    work_before = cumulative_sum([count * of_one for count, of_one in zip(splits, work, strict=True)])
    total = work_before[-1]
    if total == 0:
        return [0, 0] * (slots + 1)
    the_end = (first[-1] if end is None else end, 0)
    each, rest = divmod(total, slots)
    flat: list[int] = []
    for slot in range(slots):
        start = slot * each + (max(slot - (slots - rest), 0) if sm90 else min(slot, rest))
        if start >= total:
            flat += the_end
            continue
        row = bisect_right(work_before, start) - 1
        done = start - work_before[row]
        if sm90:
            flat += (first[row] + done // splits[row], done % splits[row])
        else:
            flat += (first[row], done // work[row])
    return [*flat, *the_end]


def topk_plan(fmt: str, lengths: Sequence[int], clusters: int) -> list[int]:
    """The elements of a top-k plan that are written, of rows of such lengths."""
    if not 0 < clusters < len(lengths) <= MOST_PLANNED:
        return []
    limit = max(MOST_ABOVE[fmt])
    for length, most in sorted(MOST_ABOVE[fmt].items(), reverse=True):
        if sum(other > length for other in lengths) > most:
            break
        limit = length
    limit = max(limit, LEAST_LIMIT)
    planned = [(row, length) for row, length in enumerate(lengths) if length > limit]
    return [limit, len(planned), *(value for pair in planned for value in pair)]
