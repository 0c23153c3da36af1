"""The plainest way: the lengths come to the host, a loop over requests makes one small array each."""

from collections.abc import Callable
from typing import Any

import torch
from cases import TOPK

from peers import PEER, Row
from peers.names import PYTHON_LOOP

MOST_REQUESTS = 4000


def _bind(buffers: Any) -> Callable[[], object]:
    q, k = buffers.extend_seq_lens, buffers.seq_lens
    expanded, clipped = buffers.out_seqlens_expanded, buffers.out_nsa_cache_seqlens

    def fill() -> int:
        lengths = torch.cat(
            [
                torch.arange(kv - tokens + 1, kv + 1, dtype=torch.int32, device=q.device)
                for tokens, kv in zip(q.tolist(), k.tolist(), strict=True)
            ]
        )
        total = len(lengths)
        expanded[:total].copy_(lengths)
        torch.clamp(lengths, max=TOPK, out=clipped[:total])
        return total

    return fill


def _unfit(case: Any) -> str | None:
    return f"takes too long above {MOST_REQUESTS} requests" if case.bs > MOST_REQUESTS else None


def draft_extend(_device: str) -> list[Row]:
    return [Row(PYTHON_LOOP, PEER, _bind, returns_count=True, unfit=_unfit)]
