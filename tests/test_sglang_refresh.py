"""A refresh of SGLang's DSA backends as one launch, against SGLang's own methods on equal backends.

Everything runs in child processes, with SGLang as sglang_engine.py has it. Those that interpret SGLang's kernels run
with -O, so nothing in them may rely on `assert`.
"""

import contextlib
import copy
import functools
import importlib
import inspect
import os
import random
import sys
import tempfile
import types

import nsa_kernel
import pytest
import sglang_engine as engine
import torch
from sglang_process import hook_registry, in_child, load_plugins, log_to_stdout, said
from torch.utils._python_dispatch import TorchDispatchMode

MAX_BS, BATCHES, DRAFT = 6, (1, 3, 6), 3
WIDTH = 1000
POISON = -7
DRAFT_STEPS = "DRAFT_STEPS"
MODES = ("DECODE", "TARGET_VERIFY", "DRAFT_EXTEND_V2", DRAFT_STEPS)
VECTORS = (
    *("cache_seqlens_int32", "cu_seqlens_k", "dsa_cache_seqlens_int32", "dsa_cu_seqlens_k", "dsa_seqlens_expanded"),
    *("paged_mqa_schedule_metadata", "paged_mqa_ctx_lens_2d"),
)
CONSTANTS = ("cu_seqlens_q", "dsa_cu_seqlens_q")


def expect(holds, message):
    if not holds:
        raise AssertionError(message)


class Engine:
    """SGLang with the plug-in in this process; what backends are made for."""

    def __init__(self, folder, major=9, **fields):
        self.dsa_backend = engine.load(folder, tempfile.mkdtemp(), major)
        log_to_stdout()
        load_plugins()
        self.context = importlib.import_module("sglang.srt.runtime_context")
        self.forward_mode = self.dsa_backend.ForwardMode
        self.configure()

    def configure(self, fp8=True, page_size=engine.PAGE, steps=3, speculative=True, longest=WIDTH - DRAFT):
        vars(self).update(fp8=fp8, page_size=page_size, steps=steps, speculative=speculative, longest=longest)
        implementation = "flashmla_kv" if fp8 else "flashmla_sparse"
        fields = {"dsa_decode_backend": implementation, "dsa_prefill_backend": "flashmla_auto"}
        if speculative:
            fields |= {"speculative_algorithm": "EAGLE", "speculative_eagle_topk": 1, "speculative_num_steps": steps}
            fields |= {"speculative_num_draft_tokens": DRAFT}
        self.context.get_context().override_server_args(**fields).install()
        self.context.get_parallel().override_permanently(attn_dcp_rank=0)

    def runner(self, mode):
        """What a backend asks of a model runner."""
        pool = MAX_BS + 2
        table = torch.randint(0, 1 << 30, (pool, WIDTH), dtype=torch.int32)
        return types.SimpleNamespace(
            device="cpu",
            page_size=self.page_size,
            is_draft_worker=mode in ("DRAFT_EXTEND_V2", DRAFT_STEPS),
            hisparse_coordinator=None,
            kv_cache_dtype=torch.float8_e4m3fn if self.fp8 else torch.bfloat16,
            max_running_requests=MAX_BS,
            model_config=types.SimpleNamespace(
                hf_config=types.SimpleNamespace(
                    architectures=["DeepseekV32ForCausalLM"], model_type="deepseek_v32", index_topk=200
                ),
                context_len=WIDTH,
                num_attention_heads=64,
                qk_nope_head_dim=128,
                kv_lora_rank=512,
                qk_rope_head_dim=64,
            ),
            token_to_kv_pool=types.SimpleNamespace(
                dsa_kv_cache_store_fp8=self.fp8,
                kv_cache_dim=656,
                dtype=torch.uint8,
                size=1 << 20,
                page_size=engine.PAGE,
            ),
            req_to_token_pool=types.SimpleNamespace(req_to_token=table, size=pool),
        )

    def pair(self, mode):
        """Two equal backends: ours, and SGLang's own."""
        runner = self.runner(mode)
        return Side(self, mode, runner, True), Side(self, mode, runner, False)


class Side:
    """A backend with its captured batches, as SGLang's graph runners drive it: through the hooks or around them."""

    def __init__(self, of, mode, runner, hooked):
        self.engine, self.mode, self.hooked = of, mode, hooked
        if mode == DRAFT_STEPS:
            self.backend = of.dsa_backend.DeepseekSparseAttnMultiStepBackend(runner, 1, of.steps)
            self.backends = self.backend.attn_backends
        else:
            self.backend = of.dsa_backend.DeepseekSparseAttnBackend(runner)
            self.backends = [self.backend]
        if not hooked:
            for backend in self.backends:
                for name in ("_fused_decode_metadata", "_fused_verify_metadata", "_fused_draft_extend_metadata"):
                    setattr(backend, name, inspect.unwrap(getattr(backend, name)))
        self.capture()

    def capture(self):
        self.call("init_cuda_graph_state", MAX_BS, MAX_BS * DRAFT)
        self.capture_batches()

    def capture_batches(self):
        for bs in reversed(BATCHES):
            batch = Inputs(self.engine, self.mode).batch(bs, [1] * bs, [0] * bs)
            batch.seq_lens, batch.req_pool_indices = batch.seq_lens[:bs], batch.req_pool_indices[:bs]
            self.call("init_forward_metadata_out_graph", batch, True)

    def call(self, name, *arguments):
        method = getattr(type(self.backend), name)
        (method if self.hooked else inspect.unwrap(method))(self.backend, *arguments)

    def refresh(self, batch):
        self.call("init_forward_metadata_out_graph", batch)

    def key(self, batch):
        """Of what refreshes a batch, in SGLang's dictionary of captured batches."""
        steps = importlib.import_module("nsa_kernel.sglang.refresh").DRAFT_STEPS
        return batch.batch_size, steps if self.mode == DRAFT_STEPS else batch.forward_mode

    def bound(self, batch):
        return self.backends[0].decode_cuda_graph_metadata[self.key(batch)]

    def bind(self, batch, bound):
        self.backends[0].decode_cuda_graph_metadata[self.key(batch)] = bound

    def captured(self, bs):
        return [backend.decode_cuda_graph_metadata[bs] for backend in self.backends]

    def poison(self, bs):
        for metadata in self.captured(bs):
            for name in (*VECTORS, "page_table_1", "real_page_table", "topk_v2_plan"):
                if (tensor := getattr(metadata, name)) is not None:
                    tensor.fill_(POISON)
            metadata.cu_seqlens_k[0] = metadata.dsa_cu_seqlens_k[0] = 0  # SGLang leaves them as captured


class Inputs:
    """The static buffers of a graph runner, and the view of them that it passes on in each mode."""

    def __init__(self, of, mode):
        self.mode = mode
        self.forward_mode = of.forward_mode.DECODE if mode == DRAFT_STEPS else of.forward_mode[mode]
        self.idle = of.forward_mode.IDLE
        self.seq_lens = torch.ones(MAX_BS, dtype=torch.int64)
        self.rows = torch.zeros(MAX_BS, dtype=torch.int64)

    def batch(self, bs, seq_lens, rows):
        """A batch padded as SGLang pads it: length 1 and pool row 0. Without a request it is an idle rank's step."""
        padding = bs - len(seq_lens)
        self.seq_lens[:bs] = torch.tensor(seq_lens + [1] * padding)
        self.rows[:bs] = torch.tensor(rows + [0] * padding)
        lengths, pool = self.seq_lens[:bs], self.rows[:bs]
        if self.mode == "DRAFT_EXTEND_V2" and bs < MAX_BS:  # the whole buffers
            lengths, pool = self.seq_lens, self.rows
        elif self.mode == DRAFT_STEPS and not padding:  # the batch's own tensors, new ones each step
            lengths, pool = lengths.clone(), pool.clone()
        return types.SimpleNamespace(
            batch_size=bs,
            forward_mode=self.forward_mode,
            actual_forward_mode=self.forward_mode if seq_lens else self.idle,
            seq_lens=lengths,
            req_pool_indices=pool,
            seq_lens_cpu=None,
            seq_lens_sum=None,
            spec_info=None,
            out_cache_loc=None,
            num_padding=padding,
        )

    def random_batch(self, rng, bs, longest):
        requests = rng.choice([0, rng.randint(1, bs), bs, bs])
        top = rng.choice([10, longest // 2, longest])
        return self.batch(
            bs, [rng.randint(1, top) for _ in range(requests)], rng.sample(range(1, MAX_BS + 2), requests)
        )


def live(batch, mode):
    """The KV length of each row of the tables."""
    tokens = 1 if mode in ("DECODE", DRAFT_STEPS) else DRAFT
    kv = batch.seq_lens[: batch.batch_size] + (DRAFT if mode == "TARGET_VERIFY" else 0)
    return kv.clamp(max=WIDTH).repeat_interleave(tokens).tolist()


def compare(ours, theirs, batch, said_of):
    """Every output of both, and what a backend holds beside them."""
    for backend, other in zip(ours.backends, theirs.backends, strict=True):
        got, expected = (side.decode_cuda_graph_metadata[batch.batch_size] for side in (backend, other))
        expect(backend.forward_metadata is got, f"{said_of}: forward_metadata is not that of the batch")
        for name in ("use_mha", "dsa_prefill_impl"):
            expect(getattr(backend, name) == getattr(other, name), f"{said_of}: {name}")
        for name in (*VECTORS, *CONSTANTS):
            check(getattr(got, name), getattr(expected, name), f"{said_of}: {name}")
        for name, unit in (("page_table_1", 1), ("real_page_table", ours.engine.page_size)):
            tables = [getattr(metadata, name) for metadata in (got, expected)]
            if tables[1] is None:
                expect(tables[0] is None, f"{said_of}: {name}")
                continue
            for row, kv in enumerate(live(batch, ours.mode)):
                columns = -(-kv // unit)
                check(tables[0][row, :columns], tables[1][row, :columns], f"{said_of}: {name}, row {row}")
                expect((tables[0][row, columns:] == POISON).all(), f"{said_of}: {name}, row {row} is written beyond kv")
        check_topk_plan(got.topk_v2_plan, expected.topk_v2_plan, said_of)
        if expected.flashmla_metadata is not None:
            for name in ("flashmla_metadata", "num_splits"):
                both = [getattr(metadata.flashmla_metadata, name) for metadata in (got, expected)]
                check(*both, f"{said_of}: flashmla {name}")


def check(got, expected, said_of):
    torch.testing.assert_close(got, expected, rtol=0, atol=0, msg=lambda text: f"{said_of}: {text}")


def check_topk_plan(got, expected, said_of):
    if expected is None or len(expected) - 1 <= engine.CLUSTERS:  # nobody writes or reads it
        return
    items = int(expected[0, 1])
    check(got[0], expected[0], f"{said_of}: topk_v2_plan")
    expect(
        sorted(got[1 : items + 1].tolist()) == sorted(expected[1 : items + 1].tolist()),
        f"{said_of}: topk_v2_plan items",
    )


class Operations(TorchDispatchMode):
    """The operations of torch that run meanwhile."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.found.append(str(function))
        return function(*args, **(kwargs or {}))


# What a refresh writes, and how.


def child_compares_on_sm90(folder):
    compare_everything(Engine(folder, 9))


def child_compares_on_sm100(folder):
    compare_everything(Engine(folder, 10))


def compare_everything(of):
    for number, (replays, config) in enumerate(CONFIGURATIONS):
        of.configure(**config)
        for mode in MODES if of.speculative else ("DECODE",):
            rng = random.Random(number)
            ours, theirs = of.pair(mode)
            inputs = Inputs(of, mode)
            for step in range(replays):
                bs = rng.choice(BATCHES)
                replay_both(ours, theirs, inputs.random_batch(rng, bs, of.longest), f"{config}, {mode}, step {step}")
    print("equal")


def replay_both(ours, theirs, batch, said_of):
    for side in (ours, theirs):
        side.poison(batch.batch_size)
        side.refresh(batch)
    expect(ours.bound(batch).run, f"{said_of}: SGLang's own")
    compare(ours, theirs, batch, f"{said_of}, bs {batch.batch_size}")


# How many replays of each mode, and what is not as Engine.configure has it.
CONFIGURATIONS = [
    (8, {}),
    (6, {"fp8": False, "steps": 5}),
    (8, {"speculative": False}),
    (4, {"page_size": 1}),
    (6, {"longest": 600_000}),  # beyond the tables, for the plan of the top-k
]


@pytest.mark.parametrize("child", [child_compares_on_sm90, child_compares_on_sm100])
def test_a_refresh_equals_sglangs(sglang_folder, child):
    log = in_child(sglang_folder, child, "-O", TRITON_INTERPRET="1")
    assert log.endswith("equal\n")
    assert said(log) == [REPLACES]


REPLACES = (
    f"nsa_kernel {nsa_kernel.__version__} replaces the refresh of captured batches and fused_dsa_decode_metadata, "
    "fused_dsa_target_verify_metadata, fused_dsa_draft_extend_metadata, seqlens_expand_triton"
)


def child_replays_alone(folder):
    of = Engine(folder)
    for mode in MODES:
        ours, _ = of.pair(mode)
        inputs, rng = Inputs(of, mode), random.Random(0)
        for bs in BATCHES:
            ours.refresh(inputs.random_batch(rng, bs, of.longest))
        for bs in BATCHES * 3:
            batch = inputs.random_batch(rng, bs, of.longest)
            bound, launches = ours.bound(batch), []
            ours.bind(batch, bound._replace(run=lambda run=bound.run, to=launches, **given: to.append(run(**given))))
            with Operations() as operations:
                ours.refresh(batch)
            ours.bind(batch, bound)
            expect(operations.found == [], f"{mode}, bs {bs}: {operations.found}")
            expect(len(launches) == 1, f"{mode}, bs {bs}: {len(launches)} launches")
    print("alone")


def test_a_refresh_is_one_launch_and_no_operation_of_torch(sglang_folder):
    assert in_child(sglang_folder, child_replays_alone).endswith("alone\n")


# Buffers that are replaced, and backends beside each other.


def child_meets_other_buffers(folder):
    of = Engine(folder)
    for mode in MODES:
        rng, pair = random.Random(0), of.pair(mode)
        another = of.pair(mode)  # of another engine

        def replay(what, inputs, sides=pair, mode=mode, rng=rng):
            for _ in range(2):
                replay_both(*sides, inputs.random_batch(rng, 3, of.longest), f"{mode}, {what}")

        inputs = Inputs(of, mode)
        replay("as captured", inputs)
        replay("another engine", Inputs(of, mode), another)
        replay("as captured again", inputs)
        replay("another runner's buffers", Inputs(of, mode))

        tables = [side.backends[0].req_to_token for side in pair]
        for table in tables:
            table.set_(table + 1)
        replay("a table that moved", inputs)
        for side in pair:
            for backend in side.backends:
                backend.req_to_token = tables[0].flip(0)
        replay("another table", inputs)

        kept = [metadata.flashmla_metadata for metadata in pair[0].captured(3)]
        for side in pair:
            side.capture_batches()
        expect(kept == [metadata.flashmla_metadata for metadata in pair[0].captured(3)], "FlashMLA's schedule moved")
        replay("a second graph of the same batches", inputs)

        old = [copy.deepcopy(metadata) for metadata in pair[0].captured(3)]
        before = pair[0].captured(3)
        for side in pair:
            side.capture()
        replay("captured anew", inputs)
        for metadata, expected in zip(before, old, strict=True):
            for name in VECTORS:
                check(getattr(metadata, name), getattr(expected, name), f"{mode}: the old {name}")
    print("noticed")


def test_other_buffers_are_noticed(sglang_folder):
    assert in_child(sglang_folder, child_meets_other_buffers, "-O", TRITON_INTERPRET="1").endswith("noticed\n")


def child_runs_the_glue_graph(folder):
    """Recording runs what it records here, and a graph's replay nothing."""
    of = Engine(folder)
    torch.cuda.Stream = torch.cuda.CUDAGraph = lambda: types.SimpleNamespace(replay=lambda: None)
    torch.cuda.graph = lambda *_, **__: contextlib.nullcontext()
    glue_graph = importlib.import_module("sglang.srt.model_executor.runner.metadata_glue_graph")
    for mode in MODES[:3]:
        ours, theirs = of.pair(mode)
        glue, inputs, rng = glue_graph.MetadataGlueGraph("cpu"), Inputs(of, mode), random.Random(0)
        for step in range(glue.NUM_WARMUP + 1):
            batch = inputs.batch(3, [rng.randint(1, of.longest) for _ in range(3)], [1, 2, 3])
            for side in (ours, theirs):
                side.poison(3)
            theirs.refresh(batch)
            glue.run(ours.backend, batch, "key")
            compare(ours, theirs, batch, f"{mode}, step {step}")
        expect(glue.is_captured("key"), f"{mode} is not recorded")
        ours.refresh(inputs.batch(6, [1] * 6, [0] * 6))
        glue.replay("key")
        expect(ours.backend.forward_metadata is ours.captured(3)[0], f"{mode}: forward_metadata of the graph")
    print("recorded")


def test_sglangs_glue_graph_records_a_refresh(sglang_folder):
    assert in_child(sglang_folder, child_runs_the_glue_graph, "-O", TRITON_INTERPRET="1").endswith("recorded\n")


# What stays SGLang's own.


def child_hooks(folder):
    of = Engine(folder)
    registry = hook_registry().HookRegistry
    backend = "sglang.srt.layers.attention.dsa_backend.DeepseekSparseAttn"
    methods = {
        f"{backend}Backend.init_forward_metadata_out_graph",
        f"{backend}MultiStepBackend.init_forward_metadata_out_graph",
        f"{backend}MultiStepBackend.init_cuda_graph_state",
    }
    assert {target for target in registry._hooks if "_backend." in target} == methods
    assert methods <= registry._patched
    # What runs where a batch exceeds the largest captured one, and where nothing is captured at all.
    for name in ("DeepseekSparseAttnBackend", "DeepseekSparseAttnMultiStepBackend"):
        assert not hasattr(getattr(of.dsa_backend, name).init_forward_metadata, "__wrapped__")


def test_only_captured_batches_are_touched(sglang_folder):
    in_child(sglang_folder, child_hooks)


class Counted:
    """Calls of a method of SGLang, which are only counted."""

    def __init__(self):
        self.batches = []

    def __call__(self, backend, forward_batch, in_capture=False):
        self.batches.append(forward_batch)


def child_leaves_to_sglang(folder):
    of = Engine(folder)
    refresh = importlib.import_module("nsa_kernel.sglang.refresh")
    backend_class = of.dsa_backend.DeepseekSparseAttnBackend

    class Overrides(backend_class):
        def _refresh_topk_v2_plan(self, metadata):
            pass

    def with_field(name, value):
        return lambda side: object.__setattr__(side.captured(3)[0], name, value(side.captured(3)[0]))

    def with_attribute(name, value):
        return lambda side: [setattr(backend, name, value) for backend in side.backends]

    shared = lambda side: side.backends[0].decode_cuda_graph_metadata["flashmla_metadata"]  # noqa: E731
    alterations = [
        ("DECODE", with_attribute("dsa_index_kpool", 4)),
        (DRAFT_STEPS, with_attribute("dsa_index_kpool", 2)),
        ("DECODE", with_attribute("device_sm_major", 12)),
        ("TARGET_VERIFY", with_attribute("device_sm_major", 10)),
        ("DECODE", with_attribute("__class__", Overrides)),
        ("TARGET_VERIFY", with_field("dsa_seqlens_expanded", lambda metadata: metadata.dsa_seqlens_expanded[1:])),
        ("TARGET_VERIFY", with_field("paged_mqa_ctx_lens_2d", lambda m: m.paged_mqa_ctx_lens_2d.clone())),
        ("DECODE", with_field("dsa_seqlens_expanded", lambda metadata: metadata.dsa_seqlens_expanded.clone())),
        ("DECODE", with_field("paged_mqa_schedule_metadata", lambda metadata: None)),
        ("DECODE", with_field("cu_seqlens_k", lambda metadata: metadata.cu_seqlens_k.long())),
        (
            "DECODE",
            lambda side: object.__setattr__(side.captured(3)[0], "flashmla_metadata", shared(side).slice(slice(4))),
        ),
        (DRAFT_STEPS, lambda side: setattr(side.backends[1], "decode_cuda_graph_metadata", {})),
    ]
    for mode, alter in alterations:
        side = of.pair(mode)[0]
        alter(side)
        left_alone(refresh, side, Inputs(of, mode).batch(3, [5, 6], [1, 2]))

    side = of.pair("DECODE")[0]
    batch = Inputs(of, "DECODE").batch(3, [5, 6], [1, 2])
    batch.forward_mode = of.forward_mode.EXTEND
    left_alone(refresh, side, batch)

    os.environ["SGLANG_FP8_PAGED_MQA_LOGITS_TORCH"] = "1"
    left_alone(refresh, of.pair("DECODE")[0], Inputs(of, "DECODE").batch(3, [5, 6], [1, 2]))
    del os.environ["SGLANG_FP8_PAGED_MQA_LOGITS_TORCH"]

    of.dsa_backend.is_cuda = lambda: False
    left_alone(refresh, side, Inputs(of, "DECODE").batch(3, [5, 6], [1, 2]))


def left_alone(refresh, side, batch):
    """Every replay is SGLang's, as it came."""
    name = "refresh_draft_steps" if side.mode == DRAFT_STEPS else "refresh"
    original, counted = getattr(refresh.sglangs, name), Counted()
    setattr(refresh.sglangs, name, counted)
    for _ in range(3):
        side.refresh(batch)
    setattr(refresh.sglangs, name, original)
    assert [found is batch for found in counted.batches] == [True] * 3


def test_what_is_not_understood_stays_sglangs_and_the_log_says_once_why(sglang_folder):
    leaves = "nsa_kernel leaves the refresh of "
    assert said(in_child(sglang_folder, child_leaves_to_sglang))[1:] == [
        f"{leaves}DECODE to SGLang: dsa_index_kpool is 4",
        f"{leaves}DECODE to SGLang: dsa_index_kpool is 2",
        f"{leaves}DECODE to SGLang: DeepGEMM's schedule for compute capability 12.x is not known",
        f"{leaves}TARGET_VERIFY to SGLang: DeepGEMM's schedule for compute capability 10.x is not known",
        f"{leaves}DECODE to SGLang: Overrides._refresh_topk_v2_plan is not SGLang's own",
        f"{leaves}TARGET_VERIFY to SGLang: dsa_seqlens_expanded has 8 elements, must have 9",
        f"{leaves}TARGET_VERIFY to SGLang: paged_mqa_ctx_lens_2d is no view of dsa_seqlens_expanded",
        f"{leaves}DECODE to SGLang: dsa_seqlens_expanded is no view of cache_seqlens_int32",
        f"{leaves}DECODE to SGLang: it has no schedule",
        f"{leaves}DECODE to SGLang: fill_replay_metadata: cu_seqlens_k has dtype int64, must be int32",
        f"{leaves}DECODE to SGLang: its FlashMLA schedule is that of all batch sizes",
        f"{leaves}the draft steps to SGLang: their backends have buffers of their own",
        f"{leaves}EXTEND to SGLang: it is no step of a captured decoding batch",
        f"{leaves}DECODE to SGLang: SGLANG_FP8_PAGED_MQA_LOGITS_TORCH asks for a schedule that is not DeepGEMM's",
        f"{leaves}DECODE to SGLang: its device is not of CUDA",
    ]


# Which versions are known.


def child_reads_sources(folder):
    engine.load(folder, tempfile.mkdtemp())
    versions = importlib.import_module("nsa_kernel.sglang.versions")
    for version in versions.VERSIONS:
        found = {target: versions.source_hash(target) for target in version.sources}
        assert found == version.sources, found
    assert versions.difference() == ""

    dsa_backend = importlib.import_module(versions.BACKEND)
    backend = dsa_backend.DeepseekSparseAttnBackend
    original = backend.set_dsa_prefill_impl
    target = f"{versions.BACKEND}:DeepseekSparseAttnBackend.set_dsa_prefill_impl"
    backend.set_dsa_prefill_impl = lambda self, forward_batch=None: None
    assert versions.difference() == f"{target} is not that of SGLang 0.5.23"
    backend.set_dsa_prefill_impl = functools.wraps(original)(functools.partial(original))
    assert versions.difference() == f"{target} cannot be read (something is wrapped around it)"
    del backend.set_dsa_prefill_impl
    assert versions.difference().startswith(f"{target} cannot be read (")


def test_the_table_of_sources_is_that_of_the_wheel(sglang_folder):
    in_child(sglang_folder, child_reads_sources)


def child_keeps_the_refresh(folder):
    of = Engine(folder)
    assert not hasattr(of.dsa_backend.DeepseekSparseAttnBackend.init_forward_metadata_out_graph, "__wrapped__")
    assert of.dsa_backend.seqlens_expand_triton.__wrapped__


def child_fails_to_import_the_refresh(folder):
    sys.modules["nsa_kernel.sglang.refresh"] = None
    child_keeps_the_refresh(folder)


@pytest.mark.parametrize(
    ("child", "environment", "reason"),
    [
        (child_keeps_the_refresh, {"NSA_KERNEL_SGLANG": "functions"}, "NSA_KERNEL_SGLANG is functions"),
        (child_keeps_the_refresh, {engine.DEEP_GEMM: "0.2.5"}, "sgl-deep-gemm is 0.2.5, must be 0.2.3.post2"),
        (
            child_fails_to_import_the_refresh,
            {},
            "ModuleNotFoundError('import of nsa_kernel.sglang.refresh halted; None in sys.modules')",
        ),
    ],
)
def test_functions_alone(sglang_folder, child, environment, reason):
    [line] = said(in_child(sglang_folder, child, **environment))
    assert (
        line == REPLACES.replace("the refresh of captured batches and ", "") + f"; the refresh stays SGLang's: {reason}"
    )
