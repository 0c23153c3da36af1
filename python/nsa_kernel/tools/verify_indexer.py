"""The selftest of the ops of vLLM's indexer."""

import random
from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import nsa_kernel

from .checked import MAX_STORED, POISON, Output, Run, lengths
from .devices import Device
from .schedules import SPLITS, schedule

# Sizes and layouts that take every kernel there is.
DECODE_SIZES = ((0, 8), (1, 8), (17, 40), (32, 8), (33, 16), (257, 12), (513, 8), (1100, 4), (3, 2300))
"""Requests, and columns of the block table; where rows are not aligned, it is one less."""
PREFILL_REQUESTS = (0, 1, 3, 200, 257, 600)
SLOTS = 37


def indexer_runs(device: Device) -> Iterator[Run]:
    """All three ops."""
    yield from decode_runs(device)
    yield from prefill_runs(device)
    yield from token_requests_runs(device)


def _stored(values: list[int]) -> list[int]:
    return [min(value, MAX_STORED) for value in values]


class Shard:
    """The part of a cache that a rank holds, in compressed states."""

    def __init__(self, draw: random.Random) -> None:
        self.ratio, world = draw.choice((1, 1, 4)), draw.choice((1, 1, 2, 3))
        self.world, self.rank, self.interleave = world, draw.randrange(world), draw.choice((1, 16))

    def arguments(self) -> dict[str, Any]:
        """As the ops take them."""
        shares = {"dcp_world": self.world, "dcp_rank": self.rank, "dcp_interleave": self.interleave}
        return {"compress_ratio": self.ratio, **shares}

    def local(self, entries: int) -> int:
        """How many of the first entries the rank holds."""
        rounds = entries // (self.interleave * self.world)
        rest = entries - rounds * self.interleave * self.world - self.rank * self.interleave
        return rounds * self.interleave + min(max(rest, 0), self.interleave)

    def final(self, entries: int) -> int:
        """The states of those."""
        return self.local(entries) // self.ratio


class DecodeCase:
    """The inputs of one refresh, as lists, and what each output must hold."""

    def __init__(self, draw: random.Random, layout: str, bs: int, width: int, aligned: bool) -> None:
        self.layout, self.shard = layout, Shard(draw)
        self.page_size, self.most = draw.choice((1, 16, 64)), draw.choice((1, 2, 4))
        longest = width * self.page_size * self.shard.ratio * self.shard.world
        self.seq_lens = [draw.choice((-1, 3, longest, longest + 9, draw.randint(0, longest))) for _ in range(bs)]
        self.seq_lens = [min(length, 4000) for length in self.seq_lens]
        self.source = draw.choice(("query_start_loc", "query_lens", "max_query_len"))
        short = [draw.choice((0, 1, self.most, self.most)) for _ in range(bs)]
        self.counts = [self.most] * bs if self.source == "max_query_len" else short
        if self.source != "max_query_len" and bs and draw.random() < 0.3:
            self.counts[draw.randrange(bs)] = 40
        self.tables = [[draw.randrange(1 << 20) for _ in range(width)] for _ in range(bs)]
        self.columns = max(width + draw.choice((-4, 0, 4) if aligned else (-3, 0, 5)), 1)
        self.num_tokens = max(sum(self.counts) + draw.randint(-3, 5), 0)
        self.capacity = max(self.num_tokens + draw.choice((-2, 0, 700)), 0)
        self.rows = min(self.num_tokens, self.capacity)
        self.format = draw.choice(list(SPLITS))
        self.shapes = self._shapes(bs)
        self.outputs = self._native() if layout == "native" else self._rows()

    def _shapes(self, bs: int) -> dict[str, list[int]]:
        if self.layout == "native":
            shapes = {"decode_seq_lens": [bs * self.most], "decode_lens": [bs + 2], "per_req_lens": [bs]}
        else:
            shapes = {name: [self.rows + 1] for name in ("global_seq_lens", "decode_lens", "indices")}
            shapes |= {"decode_seq_lens": [self.capacity], "per_req_lens": [bs + 1]}
            shapes["expanded_block_table"] = [self.rows + 1, self.columns]
        return shapes | {"schedule": [SLOTS + 1, 2]}

    def inputs(self, device: Device, draw: random.Random) -> dict[str, Any]:
        """The arguments that are no outputs."""
        arguments: dict[str, Any] = {"seq_lens": lengths(device, draw, self.seq_lens), **self.shard.arguments()}
        if self.source == "query_start_loc":
            arguments[self.source] = lengths(device, draw, list(accumulate(self.counts, initial=7)))
        elif self.source == "query_lens":
            arguments[self.source] = lengths(device, draw, self.counts)
        if self.source == "max_query_len" or self.layout == "native":
            arguments["max_query_len"] = self.most
        if self.layout == "rows":
            flat = device.array([block for row in self.tables for block in row])
            width = len(self.tables[0]) if self.tables else 0
            arguments["block_table"] = device.reshape(flat, [len(self.tables), width]) if self.tables else None
            arguments |= {"num_tokens": self.num_tokens, "page_size": self.page_size}
        return arguments

    def _rows(self) -> dict[str, list[int]]:
        bs, rows, final = len(self.seq_lens), self.rows, self.shard.final
        seen = [
            (b, max(max(k, 0) - q + 1 + j, 0))
            for b, (k, q) in enumerate(zip(self.seq_lens, self.counts, strict=True))
            for j in range(q)
        ]
        held, missing = seen[:rows], max(rows - len(seen), 0)
        row_lengths = [final(length) for _, length in held] + [0] * missing
        table: list[int] = []
        for b, _ in held:
            blocks = self.tables[b][: max(-(-final(max(self.seq_lens[b], 0)) // self.page_size), 1)][: self.columns]
            table += blocks + [POISON] * (self.columns - len(blocks))
        table += [0, *[POISON] * (self.columns - 1)] * missing
        return {
            "global_seq_lens": [length for _, length in held] + [0] * missing,
            "decode_seq_lens": row_lengths + [0] * (self.capacity - rows),
            "decode_lens": [1] * rows,
            "indices": [b for b, _ in held] + [bs + t for t in range(missing)],
            "per_req_lens": self.counts,
            "expanded_block_table": table,
            "schedule": schedule(self.format, SLOTS, row_lengths, [1] * rows),
        }

    def _native(self) -> dict[str, list[int]]:
        m, final = self.most, self.shard.final
        kv = [max(length, 0) for length in self.seq_lens]
        return {
            "decode_seq_lens": [final(max(k - m + 1 + j, 0)) for k in kv for j in range(m)],
            "decode_lens": self.counts,
            "per_req_lens": self.counts,
            "schedule": schedule(self.format, SLOTS, [final(k) for k in kv], [m] * len(kv), atoms=-(-m // 2)),
        }

    def expected(self, name: str) -> list[int]:
        """All elements of an output, row after row."""
        values, size = self.outputs[name], 1
        for extent in self.shapes[name]:
            size *= extent
        return values + [POISON] * (size - len(values))


def decode_runs(device: Device) -> Iterator[Run]:
    """Both layouts as a function and as a plan, with and without a schedule, with rows that are aligned and not."""
    for layout in ("rows", "native"):
        for bs, width in DECODE_SIZES:
            for aligned in (True, False):
                draw = random.Random(f"{layout} {bs} {aligned}")
                case = DecodeCase(draw, layout, bs, width if aligned else width - 1, aligned)
                inputs = case.inputs(device, draw)
                for with_schedule in (False, True):
                    for by_plan in (False, True):
                        names = [name for name in case.shapes if with_schedule or name != "schedule"]
                        shifts = {n: draw.randrange(4) if n != "schedule" and not aligned else 0 for n in names}
                        outputs = {name: Output(device, case.shapes[name], shift) for name, shift in shifts.items()}
                        arguments: Any = inputs | {name: output.array for name, output in outputs.items()}
                        if with_schedule:
                            arguments["schedule_format"] = case.format
                        how: Any = layout
                        if by_plan:
                            nsa_kernel.IndexerDecodePlan(how, **arguments).run()
                        else:
                            nsa_kernel.fill_indexer_decode_metadata(how, **arguments)
                        wrong = (output.wrong(name, case.expected(name)) for name, output in outputs.items())
                        call = "IndexerDecodePlan" if by_plan else "fill_indexer_decode_metadata"
                        yield f"{call}, layout {layout}, {bs} requests", next(filter(None, wrong), "")


def prefill_runs(device: Device) -> Iterator[Run]:
    """Chunks of a batch, whole and in part."""
    for bs in PREFILL_REQUESTS:
        for part in (False, True):
            draw = random.Random(f"{bs} {part}")
            shard = Shard(draw)
            counts = [draw.choice((0, 1, 5, 40)) for _ in range(bs)]
            kv = [count + draw.choice((-3, 0, 90)) for count in counts]
            first, end = (bs // 3, bs - bs // 4) if part else (0, bs)
            first_row, most_rows = (5, 60) if part else (0, sum(counts))
            chunk = range(first, end)
            states = [max(kv[b], 0) // shard.ratio for b in chunk]
            local_cu = list(accumulate(map(shard.local, states), initial=0))
            rows = [
                (local_cu[b - first], shard.local(max(max(kv[b], 0) - counts[b] + 1 + j, 0) // shard.ratio))
                for b in chunk
                for j in range(counts[b])
            ][first_row : first_row + most_rows]
            owners = [b for b, count in enumerate(states) for _ in range(count)]
            expected = {
                "cu_seq_lens": list(accumulate(states, initial=0)),
                "local_cu_seq_lens": local_cu,
                "token_to_seq": owners[: len(owners) - part * 7],
                "cu_seqlen_ks": [start for start, _ in rows],
                "cu_seqlen_ke": [start + length for start, length in rows],
            }
            outputs = {name: Output(device, [len(values)], draw.randrange(4)) for name, values in expected.items()}
            nsa_kernel.fill_indexer_prefill_metadata(
                query_start_loc=lengths(device, draw, list(accumulate(counts, initial=0))),
                seq_lens=lengths(device, draw, kv),
                first_request=first,
                end_request=end,
                first_row=first_row,
                end_row=first_row + most_rows,
                **shard.arguments(),
                **{name: output.array for name, output in outputs.items()},
            )
            wrong = (output.wrong(name, _stored(expected[name])) for name, output in outputs.items())
            yield f"fill_indexer_prefill_metadata, {end - first} of {bs} requests", next(filter(None, wrong), "")


def token_requests_runs(device: Device) -> Iterator[Run]:
    """All tokens mapped, and some."""
    for bs in PREFILL_REQUESTS:
        draw = random.Random(bs)
        counts = [draw.choice((0, 1, 5, 40)) for _ in range(bs)]
        owners = [b for b, count in enumerate(counts) for _ in range(count)]
        for mapped in (len(owners) + 9, len(owners) // 2):
            size = len(owners) + 9
            expected = (owners + [max(bs - 1, 0)] * size)[:mapped]
            out = Output(device, [size], draw.randrange(4))
            starts = lengths(device, draw, list(accumulate(counts, initial=0)))
            nsa_kernel.fill_token_requests(starts, out.array, num_mapped=mapped)
            wrong = out.wrong("out", expected + [0] * (size - len(expected)))
            yield f"fill_token_requests, {bs} requests, {mapped} of {size} tokens", wrong
