"""`python -m nsa_kernel selftest`: every variant and mode against plain Python loops, on every device present."""

import math
import random
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from itertools import chain, product
from typing import Any

import nsa_kernel

from .checked import MAX_STORED, POISON, Output, Run, cumulative_sum, lengths
from .devices import Device, cpu, gpus
from .output import progress, say
from .schedules import MOST_ABOVE, SPLITS, schedule, topk_plan
from .verify_indexer import indexer_runs

MOST_TOLD = 10

# Sizes and layouts that take every kernel there is.
DRAFT_EXTEND_REQUESTS = (0, 1, 2, 16, 17, 32, 33, 128, 257, 512, 1000, 1024, 1025, 5000)
REPLAY_MODES = ("decode", "target_verify", "draft_extend", "ragged draft_extend")
PER_TOKEN = ("seqlens_expanded", "nsa_cache_seqlens", "nsa_cu_seqlens_k")
REPLAY_SIZES = ((0, 64), (1, 64), (2, 64), (17, 100), (32, 64), (33, 64), (257, 32), (513, 16), (1100, 16), (3, 9004))
"""Requests, and width of the pool; where rows are not aligned, it is one less."""
SLOTS, CLUSTERS = (1, 37, 132, 300), (0, 1, 4, 16)

Outputs = dict[str, tuple[list[int], list[int]]]
"""The shape of each output, and all its elements."""


def run() -> int:
    """Tests all devices, prints what came out, and returns the exit status."""
    usable, unusable = gpus()
    failed = False
    for device in (cpu(), *usable):
        runs, wrong = _runs_on(device)
        failed = failed or bool(wrong)
        outcome, style = ("FAILED", "bold red") if wrong else ("ok", "green")
        say(f"{device.name}: {outcome}, {runs} runs, {len(wrong)} wrong", style)
        for line in wrong[:MOST_TOLD]:
            say(f"  {line}")
    for name, why in unusable.items():
        say(f"{name}: not tested, {why}", "yellow")
    return 1 if failed else 0


def _runs_on(device: Device) -> tuple[int, list[str]]:
    runs, all_wrong = 0, []
    try:
        with device.current:
            for what, wrong in chain(draft_extend_runs(device), replay_runs(device), indexer_runs(device)):
                runs += 1
                progress(f"{device.name}: {runs} runs, {what}")
                if wrong:
                    all_wrong.append(f"{what}: {wrong}")
    except RuntimeError as error:  # a failure of CUDA, after which the device is of no more use
        all_wrong.append(str(error))
    progress()
    return runs, all_wrong


def _tokens(q: list[int], kv: list[int]) -> list[tuple[int, int]]:
    """The request of each token, and the KV length that it sees."""
    return [
        (b, min(max(length - count + 1 + j, 0), MAX_STORED))
        for b, (count, length) in enumerate(zip(q, kv, strict=True))
        for j in range(count)
    ]


def _padded(values: list[int], size: int, rest: int) -> list[int]:
    return values[:size] + [rest] * (size - len(values))


# ---- draft_extend ----------------------------------------------------------------------------------------------------


def _by_function(device: Device, arguments: dict[str, Any], variant: Any) -> int:
    count = device.array([POISON])
    nsa_kernel.fill_draft_extend_metadata(**arguments, out_num_tokens=count, variant=variant)
    return int(count.tolist()[0])


def _by_plan(device: Device, arguments: dict[str, Any], variant: Any) -> int:
    count = device.array([POISON])
    nsa_kernel.DraftExtendPlan(**arguments, out_num_tokens=count, variant=variant).run()
    return int(count.tolist()[0])


def _by_drop_in(_device: Device, arguments: dict[str, Any], variant: Any) -> int:
    flags = {"use_adaptive": variant != "basic", "use_optimized": variant == "optimized"}
    return nsa_kernel.fill_draft_extend_metadata_cuda(**arguments, **flags)


DRAFT_EXTEND_CALLS = {
    "fill_draft_extend_metadata": _by_function,
    "DraftExtendPlan": _by_plan,
    "fill_draft_extend_metadata_cuda": _by_drop_in,
}


def draft_extend_runs(device: Device) -> Iterator[Run]:
    """Every variant and way to call it, with a capacity for all tokens and for fewer."""
    for bs in DRAFT_EXTEND_REQUESTS:
        draw = random.Random(bs)
        q = [draw.choice((-2, 0, 1, 1, 3, 7)) for _ in range(bs)]
        k = [draw.choice((-3, 0, 2, MAX_STORED, draw.randrange(5000))) for _ in range(bs)]
        topk = draw.choice((0, 3, 2048))
        tokens = [length for _, length in _tokens([max(count, 0) for count in q], [max(length, 0) for length in k])]
        inputs = {
            "extend_seq_lens": lengths(device, draw, q),
            "seq_lens": lengths(device, draw, k),
            "nsa_index_topk": topk,
        }
        for capacity in (len(tokens), max(len(tokens) - 3, 0), len(tokens) + 5):
            for variant in nsa_kernel.get_kernel_info()["variants"]:
                for name, call in DRAFT_EXTEND_CALLS.items():
                    if call is _by_drop_in and capacity < len(tokens):
                        continue  # it refuses
                    expanded = Output(device, [capacity], draw.randrange(4))
                    clipped = Output(device, [capacity + draw.randrange(3)], draw.randrange(4))
                    outputs = {"out_seqlens_expanded": expanded.array, "out_nsa_cache_seqlens": clipped.array}
                    count = call(device, inputs | outputs, variant)
                    seen = tokens[:capacity]
                    clipped_seen = [min(length, topk) for length in seen]
                    wrong = (
                        expanded.wrong("out_seqlens_expanded", _padded(seen, expanded.size, POISON))
                        or clipped.wrong("out_nsa_cache_seqlens", _padded(clipped_seen, clipped.size, POISON))
                        or ("" if count == len(tokens) else f"the count is {count}, must be {len(tokens)}")
                    )
                    yield f"{name}, variant {variant}, {bs} requests, a capacity of {capacity} tokens", wrong


# ---- replay ----------------------------------------------------------------------------------------------------------


class ReplayCase:
    """The inputs of one refresh, as lists, and what each output must hold."""

    def __init__(self, draw: random.Random, mode: str, bs: int, width: int, aligned: bool) -> None:
        self.aligned = aligned
        self.n = draw.randint(1, 4) if aligned else draw.choice((1, 4, 17))
        self.topk, self.page_size = draw.choice((0, 5, 2048)), draw.choice((1, 3, 16, 64))
        pool = bs + 2
        self.slots = [[draw.randrange(-50, 1 << 20) for _ in range(width)] for _ in range(pool)]
        self.pool_indices = [draw.randint(-1, pool) for _ in range(bs)]
        longest = draw.choice((MAX_STORED, 400_000))
        self.seq_lens = [
            draw.choice((-1, width, 3000, longest, draw.randint(0, width), draw.randint(0, longest))) for _ in range(bs)
        ]
        self.ragged = mode.startswith("ragged")
        self.extend_seq_lens = [draw.choice((-1, 0, 1, 2, 4, 4, 4, 40)) for _ in range(bs)]

        counts = {"decode": [1] * bs, "ragged draft_extend": [max(count, 0) for count in self.extend_seq_lens]}
        self.counts = counts.get(mode, [self.n] * bs)
        pending_tokens = self.n if mode == "target_verify" else 0
        self.kv = [max(length, 0) + pending_tokens for length in self.seq_lens]
        self.tokens = _tokens(self.counts, self.kv)
        self.shapes = self._shapes(draw, mode, bs, width)

    def _shapes(self, draw: random.Random, mode: str, bs: int, width: int) -> dict[str, list[int]]:
        rows = max(len(self.tokens) + draw.randint(-3 if self.ragged else 0, 3), 1)
        columns = width + draw.choice((-8, 0, 4) if self.aligned else (-7, 0, 5))
        shapes = {
            "cache_seqlens": [bs],
            "cu_seqlens_k": [bs + 1],
            "seqlens_expanded": [rows],
            "nsa_cache_seqlens": [rows],
            "nsa_cu_seqlens_k": [rows + 1],
            "page_table": [rows, columns],
            "real_page_table": [rows, -(-columns // self.page_size)],
            "ctx_lens_2d": [bs + 1, self.n],
            "num_tokens": [1],
        }
        if self.ragged or mode == "decode":
            del shapes["ctx_lens_2d"]
        return shapes

    def inputs(self, device: Device, draw: random.Random) -> dict[str, Any]:
        """The arguments that are no outputs."""
        slots = device.array(chain.from_iterable(self.slots))
        arguments = {
            "seq_lens": lengths(device, draw, self.seq_lens),
            "nsa_index_topk": self.topk,
            "req_pool_indices": lengths(device, draw, self.pool_indices),
            "req_to_token": device.reshape(slots, [len(self.slots), len(self.slots[0])]),
            "num_draft_tokens": self.n,
            "page_size": self.page_size,
        }
        if self.ragged:
            arguments["extend_seq_lens"] = lengths(device, draw, self.extend_seq_lens)
        return arguments

    def expected(self, name: str) -> list[int]:
        """All elements of an output, row after row."""
        shape = self.shapes[name]
        lengths = [length for _, length in self.tokens]
        kv = [min(length, MAX_STORED) for length in self.kv]
        match name:
            case "cache_seqlens":
                return kv
            case "cu_seqlens_k":
                return cumulative_sum(self.kv)
            case "seqlens_expanded":
                return _padded(lengths, shape[0], 0)
            case "nsa_cache_seqlens":
                return _padded([min(length, self.topk) for length in lengths], shape[0], 0)
            case "nsa_cu_seqlens_k":
                return cumulative_sum(_padded([min(length, self.topk) for length in lengths], shape[0] - 1, 0))
            case "ctx_lens_2d":
                return _padded([length for length in kv for _ in range(self.n)], math.prod(shape), POISON)
            case "num_tokens":
                return [len(self.tokens)]
        return self._expected_table(shape[0], shape[1], 1 if name == "page_table" else self.page_size)

    def _expected_table(self, rows: int, columns: int, step: int) -> list[int]:
        table: list[int] = []
        for b, _ in self.tokens[:rows]:
            row = self.pool_indices[b]
            slots = self.slots[row] if 0 <= row < len(self.slots) else [0] * len(self.slots[0])
            live = slots[: min(self.kv[b], columns * step) : step]
            table += _padded([slot // step for slot in live], columns, POISON)
        return _padded(table, rows * columns, POISON)

    def outputs(self, names: Iterable[str]) -> Outputs:
        """Those of such names, but a schedule and a top-k plan."""
        return {name: (self.shapes[name], self.expected(name)) for name in names}

    def _rows(self, by_request: bool, capacity: int) -> tuple[list[int], list[int]]:
        """The length and the tokens of each row of a schedule; of ragged ones, outputs hold so many tokens."""
        held = self.tokens[:capacity] if self.ragged else self.tokens
        if by_request:
            last, counts = dict(held), Counter(b for b, _ in held)  # the last token sees all that its request has
            requests = range(len(self.kv))
            return [last.get(b, 0) for b in requests], [counts[b] for b in requests]
        lengths = [length for _, length in held]
        lengths += [0] * (capacity - len(held) if self.ragged else 0)
        return lengths, [1] * len(lengths)

    def schedules(
        self, draw: random.Random, fmt: str, rows: str, others: Collection[str]
    ) -> tuple[Outputs, dict[str, Any]]:
        """A schedule, a top-k plan or both, beside other outputs; and the arguments that say which."""
        outputs, words = self.outputs(others), dict[str, Any]()
        capacity = self.shapes["seqlens_expanded"][0] if {*PER_TOKEN} & {*others} else 0
        which = draw.choice(("schedule", "topk_plan", "both", "both", "both"))
        if which != "topk_plan":
            words |= {"schedule_format": fmt, "schedule_rows": rows}
            lengths, tokens = self._rows(rows == "request", capacity)
            atoms = -(-max(tokens, default=0) // 2)
            if fmt == "deepgemm_sm90" and rows == "request" and draw.random() < 0.5:
                words["schedule_atoms"] = atoms = draw.randint(1, 3)
            slots = draw.choice(SLOTS)
            values = schedule(fmt, slots, lengths, tokens, atoms, end=capacity if self.ragged else None)
            outputs["schedule"] = [slots + 1, 2], values
        if which != "schedule":
            words |= {"topk_plan_format": draw.choice([*MOST_ABOVE]), "topk_plan_clusters": draw.choice(CLUSTERS)}
            lengths, _ = self._rows(False, capacity)
            size = 2 * (len(lengths) + 1 + draw.randint(0, 2))
            values = topk_plan(words["topk_plan_format"], lengths, words["topk_plan_clusters"])
            outputs["topk_plan"] = [size // 2, 2], _padded(values, size, POISON)
        return outputs, words


def refreshes(draw: random.Random, case: ReplayCase) -> Iterator[tuple[Outputs, dict[str, Any]]]:
    """Outputs that are asked for together, and the arguments that these take: all, some, and with schedules."""
    some = draw.sample(sorted(case.shapes), 4)
    yield case.outputs(case.shapes), {}
    yield case.outputs(some), {}
    for fmt, rows in product(SPLITS, ("token", "request")):
        if rows == "token" or not case.ragged or fmt == "deepgemm_sm100_384":
            others = {*draw.choice(([], some))} | {*draw.sample(PER_TOKEN, case.ragged)}  # which bound a ragged batch
            yield case.schedules(draw, fmt, rows, sorted(others))


def replay_runs(device: Device) -> Iterator[Run]:
    """Every mode as a function and as a plan, with rows that are aligned and not."""
    for mode in REPLAY_MODES:
        for (bs, width), aligned in product(REPLAY_SIZES, (True, False)):
            draw = random.Random(f"{mode} {bs} {aligned}")
            case = ReplayCase(draw, mode, bs, width if aligned else width - 1, aligned)
            inputs = case.inputs(device, draw)
            for expected, words in refreshes(draw, case):
                for by_plan in (False, True):
                    outputs = {}
                    for name, (shape, _) in expected.items():
                        step = 2 if name in ("schedule", "topk_plan") else 1  # whose elements are pairs
                        outputs[name] = Output(device, shape, 0 if aligned else draw.randrange(0, 4, step))
                    arguments: Any = inputs | words | {name: output.array for name, output in outputs.items()}
                    mode_word: Any = mode.removeprefix("ragged ")
                    if by_plan:
                        nsa_kernel.ReplayPlan(mode_word, **arguments).run()
                    else:
                        nsa_kernel.fill_replay_metadata(mode_word, **arguments)
                    wrong = (output.wrong(name, expected[name][1]) for name, output in outputs.items())
                    call = "ReplayPlan" if by_plan else "fill_replay_metadata"
                    rows = "aligned" if aligned else "odd"
                    what = f"{call}, mode {mode}, {bs} requests, {rows} rows"
                    what += "".join(f", {name} {word}" for name, word in words.items())
                    yield what, next(filter(None, wrong), "")
