"""What is timed: the shapes, their inputs, the values that every row must write, and the bytes that it must move."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch
from nsa_kernel.tools import schedules
from torch import Tensor

TOPK, PAGE_SIZE, TOKENS = 2048, 64, 4
SCHEDULE_FORMAT, SLOTS = "deepgemm_sm90", 132
TOPK_PLAN_FORMAT, CLUSTERS = "sglang_topk_v2_sm90", 1  # a plan is written where there are more rows than clusters
POISON = -7
SECTOR = 32  # bytes: the least that a GPU reads from memory
ROTATED_CACHES = 3  # the sets of a case together fill the L2 cache this many times
MOST_SETS, MOST_BYTES = 16, 12 << 30
CHECKED_ELEMENTS = 1 << 25


class DoesNotFitError(Exception):
    """The case needs more memory than the device has to spare."""


def random_int32(generator: torch.Generator, low: int, high: int, shape: int | tuple[int, ...]) -> Tensor:
    """Draws from low to high, both included."""
    shape = (shape,) if isinstance(shape, int) else shape
    return torch.randint(low, high + 1, shape, generator=generator, dtype=torch.int32, device=generator.device)


def expand(q: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    """Returns each token's request, and its length when the first token of a request sees `first`; never below 0."""
    request = torch.repeat_interleave(torch.arange(len(q)), q)
    j = torch.arange(len(request)) - (torch.cumsum(q, 0) - q)[request]
    return request, torch.clamp(first[request] + j, min=0)


def cumulative_sum(values: Tensor) -> Tensor:
    return torch.cat([torch.zeros(1, dtype=torch.int64), torch.cumsum(values, 0)])


def differs(name: str, got: Tensor, expected: Tensor) -> str | None:
    wrong = (got.cpu().long() != expected.cpu().long()).flatten()
    if not bool(wrong.any()):
        return None
    at = int(wrong.nonzero()[0])
    return f"{name}[{at}] is {int(got.flatten()[at])}, must be {int(expected.flatten()[at])}"


# ---- draft_extend ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DraftExtendCase:
    """`bs` requests that add 1 to `tokens` tokens each."""

    bs: int
    tokens: int = TOKENS

    op = "draft_extend"

    @property
    def name(self) -> str:
        return f"bs {self.bs}"


@dataclass
class DraftExtendBuffers:
    """One set of arrays: those of the op, and what it must write."""

    case: DraftExtendCase
    extend_seq_lens: Tensor
    seq_lens: Tensor
    out_seqlens_expanded: Tensor
    out_nsa_cache_seqlens: Tensor
    out_num_tokens: Tensor
    expected: Tensor

    @property
    def arguments(self) -> tuple:
        """The arguments that every function of this op takes first: four arrays and topk."""
        return (self.extend_seq_lens, self.seq_lens, TOPK, self.out_seqlens_expanded, self.out_nsa_cache_seqlens)

    @property
    def arguments_with_count(self) -> tuple:
        return (*self.arguments, self.out_num_tokens)

    @property
    def total(self) -> int:
        return len(self.expected)

    @property
    def bytes_read(self) -> int:
        return 2 * 4 * self.case.bs

    @property
    def bytes_written(self) -> int:
        return 2 * 4 * len(self.expected)

    def poison(self) -> None:
        for output in (self.out_seqlens_expanded, self.out_nsa_cache_seqlens, self.out_num_tokens):
            output.fill_(POISON)

    def wrong_lengths(self, name: str, lengths: Tensor) -> str | None:
        """Says where a tensor differs from the expanded lengths."""
        if len(lengths) != self.total:
            return f"{name} has {len(lengths)} elements, must have {self.total}"
        return differs(name, lengths, self.expected)

    def wrong(self, exact: bool) -> str | None:
        """Says where the outputs differ from what they must hold; `exact` also looks at what must be left alone."""
        total = len(self.expected)
        outputs = {
            "out_seqlens_expanded": (self.out_seqlens_expanded, self.expected),
            "out_nsa_cache_seqlens": (self.out_nsa_cache_seqlens, self.expected.clamp(max=TOPK)),
        }
        for name, (output, expected) in outputs.items():
            message = differs(name, output[:total], expected)
            if message is None and exact:
                message = differs(f"{name}[{total}:]", output[total:], torch.full((len(output) - total,), POISON))
            if message is not None:
                return message
        return None


def draft_extend_sets(case: DraftExtendCase, device: str) -> list[DraftExtendBuffers]:
    """Makes one set: the arrays of this op stay in the L2 cache whatever one does, for every row alike."""
    generator = torch.Generator().manual_seed(case.bs)
    q = random_int32(generator, 1, case.tokens, case.bs)
    k = q + random_int32(generator, 0, 4 * TOPK, case.bs)
    capacity = case.bs * case.tokens
    outputs = [torch.empty(size, dtype=torch.int32, device=device) for size in (capacity, capacity, 1)]
    _, expected = expand(q.long(), (k - q + 1).long())
    return [DraftExtendBuffers(case, q.to(device), k.to(device), *outputs, expected)]


# ---- replay ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReplayCase:
    """`bs` requests with lengths between half and all of `kv`, or `skewed`: one of `kv` and the rest of 500."""

    mode: str
    bs: int
    tokens: int
    kv: int
    width: int
    ragged: bool = False
    compact: bool = False
    skewed: bool = False
    scheduled: bool = False  # with a schedule and a top-k plan, whose rows are tokens

    op = "replay"

    @property
    def name(self) -> str:
        kinds = [("ragged", self.ragged), ("compact", self.compact), ("skewed", self.skewed)]
        kind = " ".join(word for word, given in kinds if given) or ("uniform" if self.mode == "draft_extend" else "")
        return f"{self.mode} {kind} {self.bs} x {self.tokens}, kv {self.kv}, width {self.width}".replace("  ", " ")

    @property
    def rows(self) -> int:
        return self.bs * self.tokens

    @property
    def set_bytes(self) -> int:
        """What one set of arrays takes, its rows of the request table included."""
        tables = self.bs + self.rows / PAGE_SIZE + (0 if self.compact else self.rows)
        return math.ceil(4 * self.width * tables)


@dataclass
class ReplayBuffers:
    """One set of arrays: those of the op, and what it must write."""

    case: ReplayCase
    seq_lens: Tensor
    req_pool_indices: Tensor
    req_to_token: Tensor
    extend_seq_lens: Tensor
    total: int
    outputs: dict[str, Tensor]
    expected: dict[str, Tensor]
    request: Tensor = field(repr=False)

    @property
    def arguments(self) -> dict:
        """The arguments of `fill_replay_metadata` after the mode."""
        inputs = {
            "seq_lens": self.seq_lens,
            "nsa_index_topk": TOPK,
            "req_pool_indices": self.req_pool_indices,
            "req_to_token": self.req_to_token,
            "page_size": PAGE_SIZE,
        }
        if self.case.ragged:
            inputs["extend_seq_lens"] = self.extend_seq_lens
        elif self.case.mode != "decode":
            inputs["num_draft_tokens"] = self.case.tokens
        if "schedule" in self.outputs:
            inputs["schedule_format"] = SCHEDULE_FORMAT
        if "topk_plan" in self.outputs:
            inputs |= {"topk_plan_format": TOPK_PLAN_FORMAT, "topk_plan_clusters": CLUSTERS}
        return inputs | self.outputs

    def narrowed(self, keep: Callable[[str], bool]) -> "ReplayBuffers":
        """The same arrays, without the outputs whose names do not pass."""
        return replace(self, outputs={name: array for name, array in self.outputs.items() if keep(name)})

    @property
    def row_lengths(self) -> Tensor:
        """The lengths that the rows of a schedule have, as another launch wrote them."""
        name = "cache_seqlens" if self.case.mode == "decode" else "seqlens_expanded"
        return self.expected[name].to(self.seq_lens.device, torch.int32)

    @property
    def live(self) -> Tensor:
        return self.expected["cache_seqlens"].clamp(max=self.case.width)

    @property
    def bytes_read(self) -> int:
        """Lengths and indices, and each live entry of the request table once; by sectors where pages lie apart."""
        inputs = self.seq_lens.nbytes + self.req_pool_indices.nbytes
        inputs += self.extend_seq_lens.nbytes if self.case.ragged else 0
        if "page_table" in self.outputs:
            return inputs + 4 * int(self.live.sum())
        if "real_page_table" in self.outputs:
            return inputs + SECTOR * int(((self.live + PAGE_SIZE - 1) // PAGE_SIZE).sum())
        return inputs

    @property
    def bytes_written(self) -> int:
        """Each element of an output once, of the tables the live ones."""
        live = self.live[self.request]
        elements = sum(value.numel() for name, value in self.expected.items() if name in self.outputs)
        elements += int(((live + PAGE_SIZE - 1) // PAGE_SIZE).sum()) if "real_page_table" in self.outputs else 0
        elements += int(live.sum()) if "page_table" in self.outputs else 0
        return 4 * elements

    def poison(self) -> None:
        for output in self.outputs.values():
            output.fill_(POISON)

    def wrong(self, exact: bool) -> str | None:
        """Says where the outputs differ from what they must hold; `exact` also looks at what must be left alone."""
        for name, expected in self.expected.items():
            if name not in self.outputs:
                continue
            got = self.outputs[name]
            if message := differs(name, got[: len(expected)], expected):
                return message
            if exact and bool((got[len(expected) :] != self._rest(name)).any()):
                return f"{name}[{len(expected)}:] must all be {self._rest(name)}"
        for name, page_size in (("page_table", 1), ("real_page_table", PAGE_SIZE)):
            if name in self.outputs and (message := self._wrong_table(name, page_size, exact)):
                return message
        return None

    def _rest(self, name: str) -> int:
        """What the elements of a per-token output hold that no token fills, and entries of a plan after its rows."""
        if name == "topk_plan":
            return POISON
        return int(self.expected[name][-1]) if name == "nsa_cu_seqlens_k" else 0

    def _wrong_table(self, name: str, page_size: int, exact: bool) -> str | None:
        table = self.outputs[name]
        device, columns = table.device, table.shape[1]
        step = max(1, CHECKED_ELEMENTS // columns)
        column = torch.arange(columns, device=device)
        for begin in range(0, self.total, step):
            request = self.request[begin : min(begin + step, self.total)]
            pages = ((self.live[request] + page_size - 1) // page_size).to(device)
            live = column < pages[:, None]
            source = self.req_to_token[self.req_pool_indices[request.to(device)].long(), ::page_size][:, :columns]
            got = table[begin : begin + len(request)]
            wrong = (got != source // page_size) & live
            if exact:
                wrong |= (got != POISON) & ~live
            if bool(wrong.any()):
                row, at = wrong.nonzero()[0].tolist()
                return f"{name}[{begin + row}, {at}] is {int(got[row, at])}, live columns {int(pages[row])}"
        if exact and self.total < len(table) and bool((table[self.total :] != POISON).any()):
            return f"{name}[{self.total}:] must be left alone"
        return None


def replay_shapes(case: ReplayCase) -> dict[str, tuple[int, ...]]:
    """The outputs that the engine's own kernel of this mode writes, which are those that every row is given."""
    shapes: dict[str, tuple[int, ...]] = {
        "cache_seqlens": (case.bs,),
        "cu_seqlens_k": (case.bs + 1,),
        "nsa_cache_seqlens": (case.rows,),
        "nsa_cu_seqlens_k": (case.rows + 1,),
        "real_page_table": (case.rows, math.ceil(case.width / PAGE_SIZE)),
    }
    if case.mode != "decode":
        shapes["seqlens_expanded"] = (case.rows,)
    if case.mode == "target_verify":
        shapes["ctx_lens_2d"] = (case.bs, case.tokens)
    if not case.compact:
        shapes["page_table"] = (case.rows, case.width)
    if case.scheduled:
        shapes |= {"schedule": (SLOTS + 1, 2), "topk_plan": (case.rows + 1, 2)}
    return shapes


def replay_expected(case: ReplayCase, s: Tensor, q: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns each token's request and the values of every output but the tables."""
    kv = s + case.tokens if case.mode == "target_verify" else s
    first = s + 1 if case.mode == "target_verify" else s if case.mode == "decode" else s - q + 1
    request, lengths = expand(q, first)
    clipped = lengths.clamp(max=TOPK)
    values = {
        "cache_seqlens": kv,
        "cu_seqlens_k": cumulative_sum(kv),
        "nsa_cache_seqlens": clipped,
        "nsa_cu_seqlens_k": cumulative_sum(clipped),
        "seqlens_expanded": lengths,
        "ctx_lens_2d": kv[:, None].expand(case.bs, case.tokens),
    }
    if case.scheduled:
        rows = lengths.tolist() + [0] * (case.rows - len(lengths))
        schedule = schedules.schedule(SCHEDULE_FORMAT, SLOTS, rows, [1] * case.rows)
        plan = schedules.topk_plan(TOPK_PLAN_FORMAT, rows, CLUSTERS)
        values |= {"schedule": torch.tensor(schedule).view(-1, 2), "topk_plan": torch.tensor(plan).view(-1, 2)}
    return request, {name: values[name] for name in replay_shapes(case) if name in values}


def replay_set(case: ReplayCase, s: Tensor, q: Tensor, req_pool_indices: Tensor, req_to_token: Tensor) -> ReplayBuffers:
    """Makes one set of arrays from its lengths, which arrive on the CPU, and its rows of the request table."""
    device = req_to_token.device
    request, expected = replay_expected(case, s.long(), q.long())
    outputs = {
        name: torch.empty(shape, dtype=torch.int32, device=device) for name, shape in replay_shapes(case).items()
    }
    return ReplayBuffers(
        case,
        s.to(device, torch.int64),
        req_pool_indices.to(device, torch.int64),
        req_to_token,
        q.to(device, torch.int32),
        len(request),
        outputs,
        expected,
        request,
    )


def replay_lengths(case: ReplayCase, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draws sequence lengths and tokens of a request."""
    s = random_int32(generator, case.kv // 2, case.kv, case.bs)
    if case.skewed:
        s = torch.full_like(s, 500)
        s[case.bs // 2] = case.kv
    q = torch.full_like(s, case.tokens)
    return s, random_int32(generator, 1, case.tokens, case.bs) if case.ragged else q


def replay_sets(case: ReplayCase, device: str) -> list[ReplayBuffers]:
    """Makes as many sets as it takes to defeat the L2 cache, up to a limit; one on the CPU."""
    generator = torch.Generator().manual_seed(case.bs)
    lengths = replay_lengths(case, generator)
    count = 1
    if device == "cuda":
        free, _ = torch.cuda.mem_get_info()
        free += torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        affordable = int(min(MOST_BYTES, 0.6 * free) // case.set_bytes)
        if affordable < 1:
            raise DoesNotFitError(f"one set of arrays takes {case.set_bytes / 1e9:.1f} GB")
        cache = torch.cuda.get_device_properties(0).L2_cache_size
        live = 4 * int(lengths[0].sum())
        moved = live / PAGE_SIZE * (8 + case.tokens) if case.compact else live * (1 + case.tokens)
        count = min(max(2, math.ceil(ROTATED_CACHES * cache / moved)), MOST_SETS, affordable)
    pool = count * case.bs + 1
    on_device = torch.Generator(device=device).manual_seed(case.bs)
    req_to_token = random_int32(on_device, 0, (1 << 24) - 1, (pool, case.width))
    order = torch.randperm(pool, generator=generator)
    sets = []
    for number in range(count):
        s, q = replay_lengths(case, generator) if number else lengths
        sets.append(replay_set(case, s, q, order[number * case.bs : (number + 1) * case.bs], req_to_token))
    return sets


def replay_grid() -> Iterator[ReplayCase]:
    """The grid on which replay is compared: three kinds of draft-extend, the other two modes, and a skewed batch."""
    shapes = [
        (1, 4, 1000, 131072),
        (8, 4, 2000, 131072),
        (32, 4, 4096, 4096),
        (32, 4, 32768, 131072),
        (64, 4, 32768, 32768),
        (128, 4, 8192, 131072),
        (256, 2, 131072, 131072),
        (512, 4, 2048, 131072),
    ]
    for shape in shapes:
        uniform = ReplayCase("draft_extend", *shape)
        yield from (uniform, replace(uniform, ragged=True), replace(uniform, compact=True))
    for bs, kv in [(1, 1000), (128, 8192), (512, 30000)]:
        yield ReplayCase("decode", bs, 1, kv, 131072)
        yield ReplayCase("target_verify", bs, TOKENS, kv, 131072)
    yield ReplayCase("draft_extend", 128, TOKENS, 131072, 131072, skewed=True)


SGLANG_BATCH_SIZES = (1, 32, 128, 512)
SCHEDULED_BATCH_SIZES = (1, 8, 32, 128, 256, 512)


def sglang_refreshes(device: str, bs: int) -> Iterator[ReplayCase]:
    """A refresh of each mode as SGLang's defaults make it: a plain decode has the compact table alone."""
    kv, width = (8192, 131072) if device == "cuda" else (512, 1024)
    yield ReplayCase("decode", bs, 1, kv, width, compact=True)
    yield ReplayCase("target_verify", bs, TOKENS, kv, width)
    yield ReplayCase("draft_extend", bs, TOKENS, kv, width)


def sglang_calls(device: str) -> Iterator[tuple[str, ReplayCase | DraftExtendCase]]:
    """SGLang's functions as its defaults call them."""
    for bs in SGLANG_BATCH_SIZES:
        for case in sglang_refreshes(device, bs):
            yield f"fused_dsa_{case.mode}_metadata", case
        yield "seqlens_expand_triton", DraftExtendCase(bs)


def scheduled_grid(device: str) -> Iterator[ReplayCase]:
    """The same refreshes, and a decode of requests that are long enough for rows in a top-k plan."""
    for of_mode in zip(*(sglang_refreshes(device, bs) for bs in SCHEDULED_BATCH_SIZES), strict=True):
        yield from (replace(case, scheduled=True) for case in of_mode)
        if of_mode[0].mode == "decode":
            yield from (replace(case, scheduled=True, kv=case.width) for case in of_mode)


def replay_cpu_grid() -> Iterator[ReplayCase]:
    """What a CPU can do in a few seconds."""
    for bs in (1, 32):
        uniform = ReplayCase("draft_extend", bs, TOKENS, 4096, 8192)
        yield from (uniform, replace(uniform, ragged=True), replace(uniform, compact=True))
        yield ReplayCase("decode", bs, 1, 4096, 8192)
        yield ReplayCase("target_verify", bs, TOKENS, 4096, 8192)
