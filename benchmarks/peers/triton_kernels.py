"""What engines do around a kernel, which is Triton's here.

Of draft-extend: torch sums the counts, the host reads the total, a kernel fills. A launch through Triton costs the host
more than one from C++, by less than the sum and the wait for the total cost together. Of a schedule: a kernel writes it
to an allocation of its own, from lengths that another launch wrote, and a copy brings it to where a graph reads it.
"""

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from cases import TOPK
from nsa_kernel.tools.schedules import SPLITS

from peers import PEER, MissingError, Row, schedule_alone
from peers.names import TRITON_AFTER_ITEM, TRITON_SCHEDULE

BLOCK = 256
LINEAR_SEARCH_REQUESTS = 16
SCHEDULE_COMPARISONS, SCHEDULE_WARPS = 1 << 14, 8


@triton.jit
def request_kernel(extend_seq_lens, seq_lens, ends, expanded, clipped, topk, TOKENS: tl.constexpr):  # noqa: N803
    """One program a request."""
    b = tl.program_id(0)
    q = tl.load(extend_seq_lens + b)
    j = tl.arange(0, TOKENS)
    t = tl.load(ends + b) - q + j
    seqlen = tl.maximum(tl.load(seq_lens + b) - q + 1 + j, 0)
    tl.store(expanded + t, seqlen, mask=j < q)
    tl.store(clipped + t, tl.minimum(seqlen, topk), mask=j < q)


@triton.jit
def token_kernel(
    extend_seq_lens,
    seq_lens,
    before,
    expanded,
    clipped,
    bs,
    total,
    steps,
    topk,
    LINEAR: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
):
    """One thread a token, which looks for its request: the last one whose first token is not past it."""
    t = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    b = tl.zeros((BLOCK,), tl.int32)
    if LINEAR:
        for other in range(1, bs):
            b += (tl.load(before + other) <= t).to(tl.int32)
    else:
        high = b + (bs - 1)
        for _ in range(steps):
            middle = (b + high + 1) // 2
            right = tl.load(before + middle) <= t
            b = tl.where(right, middle, b)
            high = tl.where(right, high, middle - 1)
    mask = t < total
    q = tl.load(extend_seq_lens + b, mask=mask, other=0)
    k = tl.load(seq_lens + b, mask=mask, other=0)
    seqlen = tl.maximum(k - q + 1 + t - tl.load(before + b), 0)
    tl.store(expanded + t, seqlen, mask=mask)
    tl.store(clipped + t, tl.minimum(seqlen, topk), mask=mask)


@triton.jit
def schedule_kernel(
    lengths,
    schedule,
    rows,
    SLOTS: tl.constexpr,  # noqa: N803
    SPLIT: tl.constexpr,  # noqa: N803
    ROWS: tl.constexpr,  # noqa: N803
    STEP: tl.constexpr,  # noqa: N803
):
    """One program, as those of vendors are one block: sums the splits of all rows, then finds those of STEP slots."""
    r = tl.arange(0, ROWS)
    splits = (tl.load(lengths + r, mask=r < rows, other=0) + SPLIT - 1) // SPLIT
    ends = tl.cumsum(splits, 0)
    total = tl.sum(splits, 0)
    each = total // SLOTS
    rest = total % SLOTS
    for first in range(0, SLOTS + 1, STEP):
        slot = first + tl.arange(0, STEP)
        start = slot * each + tl.maximum(slot - (SLOTS - rest), 0)
        passed = (ends[None, :] <= start[:, None]) & (r < rows)[None, :]
        row = tl.sum(passed.to(tl.int32), 1)
        before = tl.max(tl.where(passed, ends[None, :], 0), 1)
        tl.store(schedule + 2 * slot, row, mask=slot <= SLOTS)
        tl.store(schedule + 2 * slot + 1, start - before, mask=slot <= SLOTS)


def _after_item(buffers: Any) -> Callable[[], object]:
    q, k = buffers.extend_seq_lens, buffers.seq_lens
    outputs = buffers.out_seqlens_expanded, buffers.out_nsa_cache_seqlens
    tokens, grid = triton.next_power_of_2(buffers.case.tokens), (buffers.case.bs,)

    def fill() -> int:
        ends = torch.cumsum(q, 0, dtype=torch.int32)
        total = int(ends[-1].item())
        request_kernel[grid](q, k, ends, *outputs, TOPK, TOKENS=tokens)
        return total

    return fill


def _structure(variant: str) -> Row:
    def bind(buffers: Any) -> Callable[[], object]:
        q, k, bs = buffers.extend_seq_lens, buffers.seq_lens, buffers.case.bs
        outputs = buffers.out_seqlens_expanded, buffers.out_nsa_cache_seqlens
        linear = variant == "adaptive" and bs <= LINEAR_SEARCH_REQUESTS

        def fill() -> int:
            before = torch.zeros(bs + 1, dtype=torch.int32, device=q.device)
            before[1:].copy_(torch.cumsum(q, 0))
            total = int(before[-1].item())
            grid = (triton.cdiv(total, BLOCK),)
            token_kernel[grid](q, k, before, *outputs, bs, total, bs.bit_length(), TOPK, LINEAR=linear, BLOCK=BLOCK)
            return total

        return fill

    return Row(f"zeros, cumsum, copy_, item, {variant} search", PEER, bind, returns_count=True)


def _schedule(buffers: Any) -> Callable[[], object]:
    lengths, schedule = buffers.row_lengths, buffers.outputs["schedule"]
    split, slots = SPLITS[buffers.arguments["schedule_format"]], len(schedule) - 1
    most_rows = max(triton.next_power_of_2(len(lengths)), 32)
    step = min(triton.next_power_of_2(slots + 1), max(SCHEDULE_COMPARISONS // most_rows, 1))
    sizes = {"SLOTS": slots, "SPLIT": split, "ROWS": most_rows, "STEP": step, "num_warps": SCHEDULE_WARPS}

    def fill() -> None:
        made = torch.empty_like(schedule)
        schedule_kernel[(1,)](lengths, made, len(lengths), **sizes)
        schedule.copy_(made)

    return fill


def _gpu_only(device: str) -> None:
    if device == "cpu":
        raise MissingError("it needs a GPU")


def schedule(device: str) -> list[Row]:
    _gpu_only(device)
    return [Row(TRITON_SCHEDULE, PEER, _schedule, exact=True, in_graph=True, narrow=schedule_alone)]


def draft_extend(device: str) -> list[Row]:
    _gpu_only(device)
    return [Row(TRITON_AFTER_ITEM, PEER, _after_item, returns_count=True), _structure("basic"), _structure("adaptive")]
