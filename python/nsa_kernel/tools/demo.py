"""`python -m nsa_kernel demo`: the ops on a small batch, printed as tables."""

from collections.abc import Iterable
from typing import Any

import nsa_kernel

from .devices import Device, cpu, gpus
from .output import say, table

EXTEND_SEQ_LENS, SEQ_LENS, TOPK = [2, 3], [10, 15], 12
TOKENS = sum(EXTEND_SEQ_LENS)
PAGE_SIZE, WIDTH, PAGES = 4, 16, 4
MULTIPROCESSORS = 3
UNTOUCHED = -1


def run() -> None:
    """Prints the demo, on the first GPU that can be used, on the CPU otherwise."""
    usable, unusable = gpus()
    device = usable[0] if usable else cpu()
    say(f"nsa_kernel {nsa_kernel.__version__} on {device.name}", "bold")
    for name, why in unusable.items():
        say(f"{name} is not used: {why}", "yellow")
    with device.current:
        draft_extend(device)
        replay(device)
        indexer_decode(device)


def draft_extend(device: Device) -> None:
    """Two requests, whose tokens one by one see one KV entry more."""
    q, k = device.array(EXTEND_SEQ_LENS), device.array(SEQ_LENS)
    expanded, clipped = (device.full([TOKENS], UNTOUCHED) for _ in range(2))
    num_tokens = nsa_kernel.fill_draft_extend_metadata_cuda(q, k, TOPK, expanded, clipped)
    say()
    say(f"draft_extend: extend_seq_lens {_row(q)}, seq_lens {_row(k)}, nsa_index_topk {TOPK}", "bold")
    say()
    tokens = [(b, j) for b, count in enumerate(EXTEND_SEQ_LENS) for j in range(count)]
    lengths = zip(expanded.tolist(), clipped.tolist(), strict=True)
    table(
        [[*token, *length] for token, length in zip(tokens, lengths, strict=True)],
        ["request", "token", "seqlens_expanded", "nsa_cache_seqlens"],
        left=0,
    )
    say()
    say(f"{num_tokens} tokens")


def replay(device: Device) -> None:
    """The same batch, with all that a backend reads in a CUDA-graph replay."""
    outputs = {
        "cache_seqlens": device.full([2], UNTOUCHED),
        "cu_seqlens_k": device.full([3], UNTOUCHED),
        "seqlens_expanded": device.full([TOKENS], UNTOUCHED),
        "nsa_cache_seqlens": device.full([TOKENS], UNTOUCHED),
        "nsa_cu_seqlens_k": device.full([TOKENS + 1], UNTOUCHED),
    }
    pages = device.full([TOKENS, PAGES], UNTOUCHED)
    schedule = device.full([MULTIPROCESSORS + 1, 2], UNTOUCHED)
    nsa_kernel.fill_replay_metadata(
        "draft_extend",
        seq_lens=device.array(SEQ_LENS),
        extend_seq_lens=device.array(EXTEND_SEQ_LENS),
        nsa_index_topk=TOPK,
        req_pool_indices=device.array([1, 0]),
        req_to_token=device.reshape(device.array(range(2 * WIDTH)), [2, WIDTH]),
        page_size=PAGE_SIZE,
        real_page_table=pages,
        schedule=schedule,
        schedule_format="deepgemm_sm90",
        **outputs,
    )
    say()
    what = f"pages of {PAGE_SIZE} slots and DeepGEMM's schedule for {MULTIPROCESSORS} multiprocessors"
    say(f"replay: the same batch in one launch, with {what}; - is left unmodified", "bold")
    say()
    rows = [[name, _row(values)] for name, values in outputs.items()]
    rows.append(["schedule", " ".join(f"({row}, {split})" for row, split in schedule.tolist())])
    rows += [["" if token else "real_page_table", _words(row)] for token, row in enumerate(pages.tolist())]
    table(rows, left=2)


def indexer_decode(device: Device) -> None:
    """The same batch, with all that vLLM's indexer reads in a decode step, and one row of padding."""
    rows = TOKENS + 1
    outputs = {name: device.full([rows], UNTOUCHED) for name in ("decode_seq_lens", "decode_lens", "indices")}
    outputs["per_req_lens"] = device.full([2], UNTOUCHED)
    blocks = device.full([rows, PAGES], UNTOUCHED)
    nsa_kernel.fill_indexer_decode_metadata(
        "rows",
        seq_lens=device.array(SEQ_LENS),
        query_lens=device.array(EXTEND_SEQ_LENS),
        num_tokens=rows,
        block_table=device.reshape(device.array(range(2 * PAGES)), [2, PAGES]),
        page_size=PAGE_SIZE,
        expanded_block_table=blocks,
        **outputs,
    )
    say()
    say(f"indexer_decode: the same batch in {rows} rows, the last one of padding; - is left unmodified", "bold")
    say()
    shown = [[name, _row(values)] for name, values in outputs.items()]
    shown += [["" if t else "expanded_block_table", _words(row)] for t, row in enumerate(blocks.tolist())]
    table(shown, left=2)


def _row(values: Any) -> str:
    return _words(values.tolist())


def _words(values: Iterable[int]) -> str:
    return " ".join("-" if value == UNTOUCHED else str(value) for value in values)
