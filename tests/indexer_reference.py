"""The oracle of vLLM's indexer ops, as `reference.py` is of the others."""

from bisect import bisect_right
from itertools import accumulate

from reference import schedule, stored


def local(x: int, world: int, rank: int, interleave: int) -> int:
    """How many of the first x entries lie on this rank, of ranks that take runs of `interleave` in turn."""
    rounds = x // interleave // world * interleave
    return rounds + min(max(x - rounds * world - rank * interleave, 0), interleave)


def token_counts(
    bs: int, query_start_loc: list[int] | None, query_lens: list[int] | None, max_query_len: int | None
) -> list[int]:
    """Returns the tokens of each request, of which one argument tells."""
    if query_start_loc is not None:
        return [max(query_start_loc[b + 1] - query_start_loc[b], 0) for b in range(bs)]
    if query_lens is not None:
        return [max(value, 0) for value in query_lens]
    return [max_query_len] * bs


def indexer_decode(
    layout: str,
    seq_lens: list[int],
    shapes: dict[str, tuple[int, ...]],
    *,
    query_start_loc: list[int] | None = None,
    query_lens: list[int] | None = None,
    max_query_len: int | None = None,
    block_table: list[list[int]] | None = None,
    block_table_width: int = 0,
    num_tokens: int = 0,
    page_size: int = 64,
    compress_ratio: int = 1,
    dcp_world: int = 1,
    dcp_rank: int = 0,
    dcp_interleave: int = 1,
    schedule_format: str | None = None,
    schedule_rows: str = "token",
    schedule_atoms: int | None = None,
) -> dict[str, list]:
    """Returns the outputs named in `shapes`, each as a list (or a list of rows) of that shape."""
    bs = len(seq_lens)
    k = [max(value, 0) for value in seq_lens]
    q = token_counts(bs, query_start_loc, query_lens, max_query_len)

    def final(x: int) -> int:
        return local(x, dcp_world, dcp_rank, dcp_interleave) // compress_ratio

    outputs = {name: empty(shape) for name, shape in shapes.items()}

    def put(name: str, at: int, value: int) -> None:
        if name in outputs:
            outputs[name][at] = stored(value)

    if layout == "native":
        m = max_query_len
        for b in range(bs):
            for j in range(m if "decode_seq_lens" in outputs else 0):
                put("decode_seq_lens", b * m + j, final(max(k[b] - m + 1 + j, 0)))
            put("decode_lens", b, q[b])
            put("per_req_lens", b, q[b])
        if "schedule" in shapes:
            lengths = [stored(final(value)) for value in k]
            atoms = schedule_atoms or -(-m // 2)
            outputs["schedule"] = schedule(shapes["schedule"], schedule_format, lengths, [m] * bs, atoms=atoms)
        return outputs

    capacity = shapes["decode_seq_lens"][0] if "decode_seq_lens" in shapes else num_tokens
    rows = min(num_tokens, capacity)
    columns = shapes.get("expanded_block_table", (0, 0))[1]
    row_lengths, held_lengths, held_tokens = [], [], []
    t = 0
    for b in range(bs):
        live = min(max(-(-final(k[b]) // page_size), 1), block_table_width, columns)
        held = min(q[b], max(rows - t, 0))
        for j in range(held):
            seen = max(k[b] - q[b] + 1 + j, 0)
            row_lengths.append(stored(final(seen)))
            put("global_seq_lens", t + j, seen)
            put("decode_seq_lens", t + j, final(seen))
            put("decode_lens", t + j, 1)
            put("indices", t + j, b)
            if live:
                outputs["expanded_block_table"][t + j][:live] = block_table[b][:live]
        held_lengths.append(stored(final(k[b])) if held == q[b] else row_lengths[-1] if held else 0)
        held_tokens.append(held)
        t += q[b]
        put("per_req_lens", b, q[b])
    for padding in range(min(t, rows), rows):
        put("global_seq_lens", padding, 0)
        put("decode_seq_lens", padding, 0)
        put("decode_lens", padding, 1)
        put("indices", padding, bs + padding - t)
        if columns:
            outputs["expanded_block_table"][padding][0] = 0
    for after in range(rows, capacity):
        put("decode_seq_lens", after, 0)
    if "schedule" in shapes:
        end = rows
        if schedule_rows == "token":
            lengths, tokens, atoms = row_lengths + [0] * (rows - len(row_lengths)), [1] * rows, 1
        else:
            lengths, tokens = held_lengths, held_tokens
            atoms = schedule_atoms or -(-(max_query_len or 0) // 2)
            if schedule_format == "deepgemm_sm90":  # whose rows by request are no runs of tokens
                end = atoms * bs
        outputs["schedule"] = schedule(shapes["schedule"], schedule_format, lengths, tokens, atoms=atoms, end=end)
    return outputs


def indexer_prefill(
    query_start_loc: list[int],
    seq_lens: list[int],
    first_request: int,
    end_request: int,
    shapes: dict[str, tuple[int, ...]],
    *,
    first_row: int = 0,
    end_row: int | None = None,
    compress_ratio: int = 1,
    dcp_world: int = 1,
    dcp_rank: int = 0,
    dcp_interleave: int = 1,
) -> dict[str, list]:
    """Returns the outputs named in `shapes`, each as a list of that shape."""
    requests = range(first_request, end_request)
    q = [max(query_start_loc[b + 1] - query_start_loc[b], 0) for b in requests]
    k = [max(seq_lens[b], 0) for b in requests]

    def local_states(x: int) -> int:
        return local(x // compress_ratio, dcp_world, dcp_rank, dcp_interleave)

    cu = list(accumulate((value // compress_ratio for value in k), initial=0))
    local_cu = list(accumulate(map(local_states, k), initial=0))
    outputs = {name: empty(shape) for name, shape in shapes.items()}

    def put(name: str, at: int, value: int) -> None:
        if name in outputs and at < len(outputs[name]):
            outputs[name][at] = stored(value)

    for at in range(len(cu)):
        put("cu_seq_lens", at, cu[at])
        put("local_cu_seq_lens", at, local_cu[at])
    for b in range(len(k)):
        for at in range(cu[b], min(cu[b + 1], len(outputs.get("token_to_seq", [])))):
            put("token_to_seq", at, b)
    end_row = sum(q) if end_row is None else end_row
    most = first_row + max(len(outputs.get(name, [])) for name in ("cu_seqlen_ks", "cu_seqlen_ke"))
    before = 0
    for b in range(len(k)):
        for row in range(max(before, first_row), min(before + q[b], end_row, most)):
            seen = max(k[b] - q[b] + 1 + row - before, 0)
            put("cu_seqlen_ks", row - first_row, local_cu[b])
            put("cu_seqlen_ke", row - first_row, local_cu[b] + local_states(seen))
        before += q[b]
    return outputs


def token_requests(query_start_loc: list[int], size: int, num_mapped: int | None = None) -> list[int]:
    """Returns the request of each token, and 0 for what is not mapped."""
    ends = list(accumulate(query_start_loc[1:], max))
    last = max(len(ends) - 1, 0)
    mapped = size if num_mapped is None else min(num_mapped, size)
    return [min(bisect_right(ends, t), last) if t < mapped else 0 for t in range(size)]


def empty(shape: tuple[int, ...]) -> list:
    """An output of which nothing is written."""
    if len(shape) == 1:
        return [None] * shape[0]
    return [[None] * shape[1] for _ in range(shape[0])]
