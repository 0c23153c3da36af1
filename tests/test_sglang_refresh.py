"""A refresh of SGLang's DSA backends as one launch, against SGLang's own methods on equal backends.

Everything runs in child processes without a GPU (sglang_engine.py). They run with -O: nothing here may rely on `assert`.
"""

import copy
import importlib
import inspect
import random
import tempfile
import types

import nsa_kernel
import pytest
import sglang_engine as engine
import torch
from sglang_process import in_child, load_plugins, log_to_stdout, said
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
                dsa_kv_cache_store_fp8=self.fp8, kv_cache_dim=656, dtype=torch.uint8, size=1 << 20, page_size=engine.PAGE
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
        for bs in reversed(BATCHES):
            batch = Inputs(self.engine, self.mode).batch(bs, [1] * bs, [0] * bs)
            batch.seq_lens, batch.req_pool_indices = batch.seq_lens[:bs], batch.req_pool_indices[:bs]
            self.call("init_forward_metadata_out_graph", batch, True)

    def call(self, name, *arguments):
        method = getattr(type(self.backend), name)
        (method if self.hooked else inspect.unwrap(method))(self.backend, *arguments)

    def refresh(self, batch):
        self.call("init_forward_metadata_out_graph", batch)

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
        return self.batch(bs, [rng.randint(1, top) for _ in range(requests)], rng.sample(range(1, MAX_BS + 2), requests))


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
        sorted(got[1 : items + 1].tolist()) == sorted(expected[1 : items + 1].tolist()), f"{said_of}: topk_v2_plan items"
    )


class Operations(TorchDispatchMode):
    """The operations of torch that run meanwhile."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.found.append(str(function))
        return function(*args, **(kwargs or {}))


# What a refresh writes.


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
                batch = inputs.random_batch(rng, bs, of.longest)
                for side in (ours, theirs):
                    side.poison(bs)
                theirs.refresh(batch)
                ours.refresh(batch)
                compare(ours, theirs, batch, f"{config}, {mode}, step {step}, bs {bs}")
    print("equal")


# How many replays of each mode, and what is not as Engine.configure has it.
CONFIGURATIONS = [
    (12, {}),
    (12, {"fp8": False, "steps": 5}),
    (12, {"speculative": False}),
    (6, {"page_size": 1}),
    (12, {"longest": 600_000}),  # beyond the tables, for the plan of the top-k
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
