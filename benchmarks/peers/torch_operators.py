"""The ops out of torch operators alone, a launch for each."""

from collections.abc import Callable
from typing import Any

import torch
from cases import PAGE_SIZE, TOPK
from nsa_kernel.tools.schedules import SPLITS

from peers import PEER, Row, schedule_alone
from peers.names import TORCH_OPERATORS

MOST_TABLE_ELEMENTS = 1 << 26


def _draft_extend(buffers: Any) -> Callable[[], object]:
    q, k = buffers.extend_seq_lens, buffers.seq_lens
    expanded, clipped = buffers.out_seqlens_expanded, buffers.out_nsa_cache_seqlens

    def fill() -> int:
        total = int(q.sum().item())
        before = torch.cumsum(q, 0, dtype=torch.int32) - q
        first = torch.repeat_interleave(k - q + 1 - before, q, output_size=total)
        lengths = first + torch.arange(total, dtype=torch.int32, device=q.device)
        torch.clamp(lengths, min=0, out=expanded[:total])
        torch.clamp(expanded[:total], max=TOPK, out=clipped[:total])
        return total

    return fill


def _replay(buffers: Any) -> Callable[[], object]:
    """Knows the number of tokens of a request on the host, and copies table rows whole, as engines without a kernel."""
    case, outputs = buffers.case, buffers.outputs
    mode, n, width = case.mode, case.tokens, case.width
    s, rows, table = buffers.seq_lens, buffers.req_pool_indices, buffers.req_to_token

    def fill() -> None:
        kv = (s + n if mode == "target_verify" else s).to(torch.int32)
        outputs["cache_seqlens"].copy_(kv)
        outputs["cu_seqlens_k"][:1].zero_()
        outputs["cu_seqlens_k"][1:].copy_(torch.cumsum(kv, 0))
        j = torch.arange(n, dtype=torch.int32, device=s.device)
        lengths = torch.clamp(kv[:, None] - n + 1 + j, min=0).flatten()
        if "seqlens_expanded" in outputs:
            outputs["seqlens_expanded"].copy_(lengths)
        clipped = torch.clamp(lengths, max=TOPK)
        outputs["nsa_cache_seqlens"].copy_(clipped)
        outputs["nsa_cu_seqlens_k"][:1].zero_()
        outputs["nsa_cu_seqlens_k"][1:].copy_(torch.cumsum(clipped, 0))
        if "ctx_lens_2d" in outputs:
            outputs["ctx_lens_2d"].copy_(kv[:, None].expand(-1, n))
        slots = torch.repeat_interleave(table[rows, :width], n, dim=0)
        if "page_table" in outputs:
            outputs["page_table"].copy_(slots)
        outputs["real_page_table"].copy_(slots[:, ::PAGE_SIZE] // PAGE_SIZE)

    return fill


def _schedule(buffers: Any) -> Callable[[], object]:
    """Reads the lengths of rows that another launch wrote."""
    lengths, schedule = buffers.row_lengths, buffers.outputs["schedule"]
    split, slots = SPLITS[buffers.arguments["schedule_format"]], len(schedule) - 1

    def fill() -> None:
        ends = torch.cumsum((lengths + split - 1) // split, 0)
        total = ends[-1]
        slot = torch.arange(slots + 1, device=lengths.device)
        start = slot * (total // slots) + torch.clamp(slot - (slots - total % slots), min=0)
        row = torch.searchsorted(ends, start, right=True)
        before = torch.where(row > 0, ends[row - 1], 0)
        schedule.copy_(torch.stack([row, start - before], 1))

    return fill


def _replay_unfit(case: Any) -> str | None:
    if case.ragged:
        return "needs the same number of tokens of every request"
    too_large = case.rows * case.width > MOST_TABLE_ELEMENTS
    return "its copies of whole table rows take too much memory" if too_large else None


def draft_extend(_device: str) -> list[Row]:
    return [Row(TORCH_OPERATORS, PEER, _draft_extend, returns_count=True)]


def replay(_device: str) -> list[Row]:
    return [Row(TORCH_OPERATORS, PEER, _replay, unfit=_replay_unfit)]


def schedule(_device: str) -> list[Row]:
    return [Row(TORCH_OPERATORS, PEER, _schedule, exact=True, in_graph=True, narrow=schedule_alone)]
