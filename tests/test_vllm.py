"""The vLLM plug-in against vLLM itself: the files of 0.33.0 that make metadata, out of its source distribution.

What needs vLLM runs in a child process, where vllm_stubs.py imports it; Triton interprets its kernels on the CPU.
"""

import dataclasses
import fractions
import importlib
import importlib.util
import inspect
import itertools
import random
import re
import sys
import types
import weakref

import nsa_kernel
import processes
import pytest
import torch
import vllm_stubs
from fetched import fetched
from nsa_kernel.vllm import register, versions
from vllm_stubs import (
    FLASHMLA,
    INDEXER,
    PAGE,
    UNTOUCHED,
    WIDTH,
    assert_equal,
    clear,
    find,
    holder,
    int32,
    make_batch,
    make_builder,
    make_sparse_builder,
    originals,
    results,
    run,
)

NEEDED = ["triton==3.8.0"]  # its interpreter takes the NumPy of these tests
INPUTS = ("seq_lens", "query_start_loc", "query_lens", "block_table")
BUILDER = f"{INDEXER}:DeepseekV32IndexerMetadataBuilder"
KERNELS = "vllm.v1.attention.ops.metadata"
SPARSE_MLA = "vllm.model_executor.layers.attention.sparse_mla_attention"
LEVELS = {
    "kernels": [f"{KERNELS}:_indexer_decode_metadata_kernel", f"{KERNELS}:_token_request_mapping_kernel"],
    "methods": [
        f"{BUILDER}._prepare_decode_tensors",
        f"{BUILDER}.update_draft_decode_metadata",
        f"{INDEXER}:build_prefill_chunk_metadata",
    ],
    "build": [f"{BUILDER}.build"],
    "sparse MLA": [
        f"{SPARSE_MLA}:SparseMLACommonMetadataBuilder.build",
        "vllm.v1.attention.backend:CommonAttentionMetadata.token_to_req_indices",
    ],
    "FlashMLA": [
        f"{FLASHMLA}:FlashMLASparseMetadataBuilder._build_fp8_separate_prefill_decode",
    ],
}


@pytest.fixture(scope="session")
def in_child(request):
    """Runs a function of this module in a fork of a process where vLLM can be imported; returns what it printed."""
    folder = fetched(request.config, "vllm-0.33.0", *NEEDED, source="vllm==0.33.0")
    with processes.forks(__name__, [folder], timeout=900, TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="") as run:
        yield lambda function, *arguments, **environment: run(function, str(folder), *arguments, **environment)


def replacements():
    """What the plug-in replaces, and by what."""
    for level in versions.LEVELS.values():
        for target, name in level.replacements.items():
            yield target, getattr(importlib.import_module(level.ours), name)


def found():
    return {target: find(target) for targets in LEVELS.values() for target in targets}


def load_plugins(usable=True, log=True):
    """Has vLLM's own loader find and run the plug-in, as if on a GPU; nobody may ask for one meanwhile."""

    def asked():
        raise AssertionError("the plug-in asks for a GPU while it is loaded")

    asking = {name: getattr(nsa_kernel, name) for name in ("is_cuda_kernel_available", "get_kernel_info")}
    nsa_kernel.is_cuda_kernel_available = nsa_kernel.get_kernel_info = asked
    if log:
        set_up_log()
    importlib.import_module("vllm.plugins").load_general_plugins()
    vars(nsa_kernel).update(asking)
    if usable:
        nsa_kernel.is_cuda_kernel_available = lambda: True
    assert not torch.cuda.is_initialized()


def set_up_log():
    importlib.import_module("vllm.logger")._configure_vllm_root_logger()


def said(log):
    """What the plug-in logged, through vLLM's own handler."""
    lines = [line.partition("] ")[2] for line in log.splitlines() if "nsa_kernel" in line and "] " in line]
    return [line for line in lines if line.startswith("nsa_kernel")]


def replaces(level, targets):
    names = ", ".join(re.split("[.:]", target)[-1] for target in targets)
    return f"nsa_kernel {nsa_kernel.__version__} replaces vLLM's {level}: {names}"


# The plug-in.


def child_loads_plugins(folder):
    vllm_stubs.import_vllm(folder)
    before = found()
    load_plugins()
    for target, own in before.items():
        now = find(target)
        if target in LEVELS["kernels"]:
            assert type(now).__name__ == "KernelOverride"
            assert now.warmup == own.warmup
            now = now.func
        assert now.__module__.startswith("nsa_kernel.vllm.")
    after = found()
    register()
    assert found() == after


def test_vllm_discovers_the_plugin(in_child):
    log = in_child(child_loads_plugins)
    assert said(log) == [replaces(*level) for level in LEVELS.items()]


def child_imports_late(folder):
    """Imports what the levels wait for as vLLM's workers do, after the plug-ins."""
    vllm_stubs.import_vllm(folder)
    before = set(sys.modules)
    load_plugins()
    imported = {name for name in set(sys.modules) - before if name.startswith("vllm.")}
    assert imported <= {"vllm.plugins", "vllm.envs", "vllm.logger", *(n for n in imported if "logging_utils" in n)}
    for level in versions.LEVELS.values():
        assert importlib.util.find_spec(level.module).origin.startswith(folder)  # imports no level
    builder, batch = make_builder(family=100), make_batch([1, 1], [9, 9], torch.ones(2, WIDTH, dtype=torch.int32))
    assert find(f"{BUILDER}.build").__module__ == "nsa_kernel.vllm.decode"
    nsa_kernel.fill_indexer_decode_metadata = None
    builder.build(0, batch)
    importlib.import_module(FLASHMLA)
    for target, function in replacements():
        replaced = find(target)
        assert getattr(replaced, "func", replaced) is function
    assert importlib.import_module(INDEXER).__spec__.origin.startswith(folder)


def test_levels_are_replaced_when_vllm_imports_them(in_child):
    assert set(said(in_child(child_imports_late))) == {replaces(*level) for level in LEVELS.items()}


def child_logs_late(folder):
    """Some of vLLM's processes set up logging after they load plug-ins."""
    vllm_stubs.import_vllm(folder)
    found()
    load_plugins(log=False)
    set_up_log()
    print("started")
    for _ in range(2):
        importlib.import_module(KERNELS).compute_token_to_req_indices(int32([0, 1]), int32([0]), 1, 1)


def test_the_log_lines_wait_for_the_log(in_child):
    log = in_child(child_logs_late, NSA_KERNEL_VLLM="")  # as if it were not set
    early, late = log.split("started\n")
    assert said(early) == []
    assert said(late) == [replaces(*level) for level in LEVELS.items()]


def child_compares_signatures(folder):
    vllm_stubs.import_vllm(folder)
    for target, function in replacements():
        own = find(target)
        theirs = list(inspect.signature(getattr(own, "fn", own)).parameters.values())
        ours = list(inspect.signature(function).parameters.values())
        if target in LEVELS["kernels"]:
            assert ours.pop().name == "num_warps"
        for one, other in zip(ours, theirs, strict=True):
            assert (one.name, one.kind, one.default) == (other.name, other.kind, other.default), target
    print("equal")


def test_signatures_are_vllms(in_child):
    assert in_child(child_compares_signatures).endswith("equal\n")


def child_stays_untouched(folder, attribute=None, value=None):
    vllm_stubs.import_vllm(folder)
    if attribute:
        setattr(torch.version, attribute, value)
    before = found()
    load_plugins()
    assert found() == before


@pytest.mark.parametrize(
    ("arguments", "environment", "reason"),
    [
        ([], {"NSA_KERNEL_VLLM": "0"}, "NSA_KERNEL_VLLM is 0"),
        ([], {"NSA_KERNEL_VLLM": "on"}, "NSA_KERNEL_VLLM is 'on', must be 0, functions or 1"),
        (["hip", "7.0"], {}, "torch is built for ROCm"),
        (["cuda", None], {}, "torch is built without CUDA"),
    ],
    ids=["switched_off", "unknown_word", "rocm", "cpu"],
)
def test_vllm_stays_untouched_and_the_log_says_why(in_child, arguments, environment, reason):
    log = in_child(child_stays_untouched, *arguments, **environment)
    assert said(log) == [f"nsa_kernel leaves vLLM as it is: {reason}"]


def child_deselected(folder):
    child_stays_untouched(folder)
    print("untouched")


def test_vllms_own_selection_of_plugins_holds(in_child):
    log = in_child(child_deselected, VLLM_PLUGINS="another")
    assert "untouched" in log
    assert said(log) == []


def child_replaces(folder, *levels, version="0.33.0", change=None):
    """Loads the plug-in, and sees whether these levels alone are replaced."""
    vllm_stubs.import_vllm(folder, version)
    if change:
        setattr(*holder(change), another_source)
    before = found()
    load_plugins()
    after = found()
    for level, targets in LEVELS.items():
        assert all((after[target] is not before[target]) == (level in levels) for target in targets), level


def another_source(self, *args):
    """Differs from whatever it stands for."""


def child_of_another_version(folder):
    child_replaces(folder, "kernels", version="0.34.0")


def test_another_version_keeps_all_but_known_kernels(in_child):
    log = in_child(child_of_another_version)
    reason = "vLLM 0.34.0 is not known"
    assert said(log) == [
        replaces("kernels", LEVELS["kernels"]),
        *(f"nsa_kernel leaves vLLM's {level} in place: {reason}" for level in LEVELS if level != "kernels"),
    ]


def child_of_a_local_version(folder):
    child_replaces(folder, *LEVELS, version="0.33.0+cu129")


def test_a_local_version_is_the_version(in_child):
    assert len(said(in_child(child_of_a_local_version))) == len(LEVELS)


def child_with_functions_alone(folder):
    child_replaces(folder, "kernels")


def test_the_switch_takes_the_kernels_alone(in_child):
    left, replaced = said(in_child(child_with_functions_alone, NSA_KERNEL_VLLM="functions"))
    assert replaced == replaces("kernels", LEVELS["kernels"])
    names = ", ".join(list(LEVELS)[1:])
    assert left == f"nsa_kernel leaves vLLM's {names} in place: NSA_KERNEL_VLLM is functions"


def child_with_changed_source(folder, change, *levels):
    child_replaces(folder, *levels, change=change)


CHANGES = {  # what changes, and the levels that are left in place
    f"{KERNELS}:_token_request": ["kernels"],
    "vllm.utils.deep_gemm:get_paged_mqa_page_sizes": ["kernels"],
    f"{BUILDER}.update_draft_decode_metadata": ["methods"],
    f"{BUILDER}._dcp_localize_decode_seq_lens": ["build"],
    f"{BUILDER}.build": ["methods", "build"],
    f"{INDEXER}:DeepseekV32IndexerMetadata": ["methods", "build"],
    f"{SPARSE_MLA}:SparseMLACommonMetadataBuilder.build": ["sparse MLA"],
    f"{FLASHMLA}:FlashMLASparseMetadata": ["FlashMLA"],
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: re.split("[.:]", change)[-1])
def test_changed_source_leaves_its_levels_in_place(in_child, change):
    others = [level for level in LEVELS if level not in CHANGES[change]]
    log = said(in_child(child_with_changed_source, change, *others))
    told = [line for line in log if line.endswith(f"in place: {change} is not that of vLLM 0.33.0")]
    assert [line.partition("'s ")[2].partition(" in place")[0] for line in told] == CHANGES[change]
    assert len(log) == len(LEVELS)


def child_with_a_function_gone(folder):
    vllm_stubs.import_vllm(folder)
    del importlib.import_module(INDEXER).build_prefill_chunk_metadata
    load_plugins()


def test_a_function_that_is_gone_is_told(in_child):
    methods, build = said(in_child(child_with_a_function_gone))
    target = f"{INDEXER}:build_prefill_chunk_metadata"
    assert methods.startswith(f"nsa_kernel leaves vLLM's methods in place: {target} cannot be read (")
    assert build == replaces("build", LEVELS["build"])


def child_with_a_registry_that_fails(folder):
    vllm_stubs.import_vllm(folder)
    importlib.import_module("vllm.triton_utils.dispatcher").register_kernels = None
    load_plugins()
    importlib.import_module(KERNELS)
    print("goes on")


def test_no_import_of_vllms_fails_for_the_plugin(in_child):
    log = in_child(child_with_a_registry_that_fails)
    [line] = said(log)
    assert line.startswith("nsa_kernel leaves vLLM's kernels in place: TypeError(")
    assert log.endswith("goes on\n")


def child_refuses(folder):
    vllm_stubs.import_vllm(folder)
    load_plugins()
    kernel = find(f"{KERNELS}:_token_request_mapping_kernel")[(1,)]
    starts, requests = int32([0, 2, 5]), torch.empty(9, dtype=torch.int64)  # which Triton takes
    for how, call in {
        "by position": lambda: kernel(starts, requests, 2, 5, 9),
        "by name": lambda: kernel(query_start_loc=starts, output=requests, num_reqs=2, num_mapped=5, num_tokens=9),
    }.items():
        requests.fill_(UNTOUCHED)
        call()
        assert requests.tolist() == [0, 0, 1, 1, 1, 0, 0, 0, 0], how


def test_vllm_does_what_the_library_refuses(in_child):
    log = in_child(child_refuses)
    lines = [line for line in said(log) if " replaces " not in line]
    assert len(lines) == 1
    assert lines[0].startswith(f"nsa_kernel leaves a call of {KERNELS}:_token_request_mapping_kernel to vLLM: ")
    assert "dtype int64" in lines[0]


def child_without_a_usable_gpu(folder):
    vllm_stubs.import_vllm(folder)
    own = {target: find(target) for target in LEVELS["kernels"]}
    load_plugins(usable=False)
    nsa_kernel.is_cuda_kernel_available = lambda: False
    nsa_kernel.get_kernel_info = lambda: {"reason": "no CUDA device"}
    nsa_kernel.fill_token_requests = nsa_kernel.fill_indexer_decode_metadata = None
    for case in [Case(0, family=90, drafts=2, kind="uniform"), Case(1, family=100, kind="mixed")]:
        builder, batch = case.builder(), case.batch()
        with originals(own):
            expected = run(builder, batch)
        assert_equal(run(builder, batch), expected, case.name)
    requests = torch.full((9,), UNTOUCHED, dtype=torch.int32)
    importlib.import_module(KERNELS).compute_token_to_req_indices(int32([0, 2, 5]), requests, 5, 9)
    assert requests.tolist() == [0, 0, 1, 1, 1, 0, 0, 0, 0]


def test_without_a_usable_gpu_vllm_goes_its_own_way(in_child):
    log = said(in_child(child_without_a_usable_gpu))
    assert [line for line in log if " replaces " not in line] == ["nsa_kernel is not used: no CUDA device"]


# What the replacements do.


class Case:
    """A random builder and a batch for it; `fixed` are attributes that are not left to chance."""

    def __init__(self, seed, **fixed):
        self.rng = rng = random.Random(seed)
        self.family, self.drafts = rng.choice([90, 90, 100]), rng.randrange(4)
        self.ratio, world = rng.choice([1, 1, 4]), rng.choice([1, 1, 1, 2, 3, 4])
        self.dcp = (world, rng.randrange(world), self.ratio * rng.choice([1, 2, 16]))
        self.adaptive = rng.random() < 0.2
        self.kind = rng.choice(["uniform", "padded", "short", "ragged", "empty", "mixed", "prefill", "prefill"])
        self.requests = rng.choice([1, 2, rng.randint(1, 9)])
        vars(self).update(fixed)
        chosen = {name: value for name, value in vars(self).items() if name != "rng"}
        self.name = f"Case({seed}, **{chosen})"

    def builder(self, **options):
        builder = make_builder(self.family, self.drafts, self.ratio, self.dcp, self.adaptive, **options)
        builder.max_prefill_buffer_size = self.rng.choice([WIDTH * PAGE, WIDTH * PAGE * 8])
        # Few enough logits that one request is more than one chunk.
        logits = self.rng.choice([1 << 20, 1 << 13, 1 << 12])
        megabytes = fractions.Fraction(4 * logits, 1 << 20)
        importlib.import_module(INDEXER).envs = types.SimpleNamespace(VLLM_SPARSE_INDEXER_MAX_LOGITS_MB=megabytes)
        return builder

    def queries(self):
        rng, most, n = self.rng, self.drafts + 1, self.requests
        full = rng.randint(1, n)
        if self.kind == "uniform":
            return [most] * n
        if self.kind == "padded":
            return [most] * full + [0] * (n - full)
        if self.kind == "short":
            return [rng.randint(1, most)] * n
        if self.kind == "ragged":
            return [rng.randint(1, most) for _ in range(n)]
        if self.kind == "empty":
            return [most] + [rng.choice([most, 0]) for _ in range(n - 1)]
        prefills = [rng.randint(most + 1, 20) for _ in range(rng.randint(1, 4))]
        return prefills if self.kind == "prefill" else [most] * min(n, 4) + prefills

    def batch(self):
        rng, queries = self.rng, self.queries()
        longest = WIDTH * PAGE * self.ratio
        seq_lens = [q and rng.choice([q, rng.randint(q, longest), rng.randint(q, min(longest, 300))]) for q in queries]
        generator = torch.Generator().manual_seed(rng.getrandbits(31))
        table = torch.randint(1, 1 << 30, (len(queries) + 1, WIDTH + 3), dtype=torch.int32, generator=generator)
        table = table.to(vllm_stubs.DEVICE)[: len(queries), :WIDTH]
        decodes = self.kind not in ("mixed", "prefill")
        num_tokens = sum(queries)
        if decodes and self.kind != "uniform" and rng.random() < 0.7:
            num_tokens = len(queries) * (max(queries) if self.kind == "short" else self.drafts + 1)
        bound = self.drafts + 1 if decodes and rng.random() < 0.3 else None
        batch = make_batch(queries, seq_lens, table, num_tokens, dcp=self.dcp[0] > 1, bound=bound)
        if self.adaptive and decodes:
            self.split_on_device(batch)
        return batch

    def split_on_device(self, batch):
        """Has the device share the same number of tokens otherwise, as it does with adaptive verification."""
        queries, seq_lens = batch.query_start_loc_cpu.diff().tolist(), batch.seq_lens.tolist()
        for _ in range(10):
            giver, taker = self.rng.randrange(len(queries)), self.rng.randrange(len(queries))
            if queries[giver] > 0 and queries[taker] < min(self.drafts + 1, seq_lens[taker]):
                queries[giver] -= 1
                queries[taker] += 1
        batch.query_start_loc = int32([0, *itertools.accumulate(queries)]).to(vllm_stubs.DEVICE)


def no_output_is_an_input(arguments):
    storages = {name: value.untyped_storage().data_ptr() for name, value in arguments.items() if torch.is_tensor(value)}
    read = {storages.pop(name) for name in INPUTS if name in storages}
    assert not read & set(storages.values()), arguments.keys()


class Launches:
    """Counts what the replacements launch, and sees that no launch writes what it reads."""

    def __init__(self):
        self.count, self.schedules = 0, 0
        self.plan = nsa_kernel.IndexerDecodePlan
        for name in ("fill_indexer_decode_metadata", "fill_indexer_prefill_metadata", "fill_token_requests"):
            setattr(nsa_kernel, name, self.counted(getattr(nsa_kernel, name)))
        nsa_kernel.IndexerDecodePlan = self.bound
        deep_gemm = importlib.import_module("vllm.utils.deep_gemm")
        deep_gemm._lazy_init()
        schedule = deep_gemm._get_paged_mqa_logits_metadata_impl

        def scheduled(*args, **kwargs):
            self.schedules += 1
            return schedule(*args, **kwargs)

        deep_gemm._get_paged_mqa_logits_metadata_impl = scheduled

    def counted(self, function):
        def call(*args, **kwargs):
            no_output_is_an_input(kwargs)
            self.count += 1
            return function(*args, **kwargs)

        return call

    def bound(self, *args, **kwargs):
        no_output_is_an_input(kwargs)
        return types.SimpleNamespace(run=self.counted(self.plan(*args, **kwargs).run))

    def take(self):
        taken, self.count, self.schedules = (self.count, self.schedules), 0, 0
        return taken


def start(folder):
    """Loads the plug-in; returns vLLM's own and what counts our launches."""
    vllm_stubs.import_vllm(folder)
    own = found()
    load_plugins()
    return own, Launches()


EVERY = ("kernels", "methods", "build")
KEPT = [EVERY, EVERY, ("kernels", "methods"), ("kernels",), ("methods",)]  # the levels that are on in a case


def child_builds(folder, first, count):
    own, launches = start(folder)
    seen = {"alone": 0, "chunks": set()}
    for seed in range(first, first + count):
        case = Case(seed)
        builder, batch = case.builder(), case.batch()
        kept = KEPT[seed % len(KEPT)]
        left = {target: own[target] for level in LEVELS if level not in kept for target in LEVELS[level]}
        for _ in range(2):  # the second step has other lengths at the same addresses
            with originals(own):
                expected = run(builder, batch)
            launches.take()
            with originals(left):
                got = run(builder, batch)
            assert_equal(got, expected, case.name)
            seen["chunks"].add(expected.get("metadata.prefill.chunks.length"))
            ours, vllms = launches.take()
            alone = expected["metadata.num_prefills"] == 0 and case.kind != "mixed"
            if "build" in kept and alone and expects_build(case, batch):
                seen["alone"] += 1
                assert (ours, vllms) == (1, 0), (case.name, ours, vllms)
            lengths = batch.query_start_loc.diff() + torch.randint(0, 100, batch.seq_lens.shape)
            batch.seq_lens.copy_(lengths * (batch.seq_lens > 0))
            batch.seq_lens_cpu_upper_bound.copy_(batch.seq_lens)
    assert seen["alone"] > count // 3
    assert {1, 2, 3, 4} <= seen["chunks"]
    print("equal")


def child_builds_many_requests(folder):
    """More requests than a tile of any kernel has, and just more than the kernels of small batches take."""
    own, launches = start(folder)
    same = {"ratio": 1, "dcp": (1, 0, 1), "adaptive": False}
    sizes = {"tokens": 4200, "requests": 1040}
    for family, drafts, requests, kind in itertools.product((90, 100), range(4), (33, 1030), ("uniform", "padded")):
        if requests > 1024 and (family == 100 or (drafts == 2 and kind == "uniform")):
            continue  # Triton's interpreter takes half a minute for vLLM's own kernel
        case = Case(requests, family=family, drafts=drafts, kind=kind, requests=requests, **same)
        builder, batch = case.builder(**sizes), case.batch()
        batch.num_actual_tokens = requests * (drafts + 1)
        compare_builds(own, launches, builder, batch, case.name)
        assert launches.take() == (1, 0), case.name
    case = Case(0, family=90, drafts=0, kind="prefill", **same)
    case.queries = lambda: [2] * 1030 + [9]
    compare_builds(own, launches, case.builder(**sizes), case.batch(), case.name)
    print("equal")


def child_builds_of_device_splits(folder):
    """Requests that the host takes for equally long."""
    own, launches = start(folder)
    for seed in range(30):
        case = Case(seed, drafts=3, adaptive=True, kind="short", requests=seed % 5 + 2)
        case.queries = lambda case=case: [2] * case.requests
        builder, batch = case.builder(), case.batch()
        batch.num_actual_tokens = 2 * case.requests
        compare_builds(own, launches, builder, batch, case.name)
        assert launches.take() == (1, 0), case.name
    print("equal")


def test_builds_of_device_splits_are_equal_to_vllms(in_child):
    assert in_child(child_builds_of_device_splits).endswith("equal\n")


def compare_builds(own, launches, builder, batch, name):
    with originals(own):
        expected = run(builder, batch)
    launches.take()
    assert_equal(run(builder, batch), expected, name)
    return expected


def test_builds_of_many_requests_are_equal_to_vllms(in_child):
    assert in_child(child_builds_many_requests).endswith("equal\n")


def expects_build(case, batch):
    """Whether a batch of decodes alone is one of those that vLLM's engine makes."""
    compressed_in_place = case.ratio > 1 and case.drafts == 0 and case.family == 90 and not case.adaptive
    return not (compressed_in_place and batch.num_actual_tokens != batch.num_reqs)


def child_refreshes_drafts(folder, count):
    own, launches = start(folder)
    for seed in range(count):
        case = Case(seed, kind="short", dcp=(1, 0, 1), requests=seed % 7 + 1)
        case.queries = lambda case=case: [1] * case.requests
        case.split_on_device = lambda batch: None
        builder, batch = case.builder(), case.batch()
        batch.num_actual_tokens = batch.num_reqs
        metadata = builder.build(0, batch)
        batch.seq_lens += 1

        def refreshed(builder=builder, batch=batch, metadata=metadata):
            clear(builder)
            metadata.slot_mapping.fill_(UNTOUCHED)
            builder.update_draft_decode_metadata(metadata)
            return results(builder, batch, metadata)

        with originals(own):
            expected = refreshed()
        launches.take()
        assert_equal(refreshed(), expected, case.name)
        assert launches.take() == (1, 0), case.name
    print("equal")


def test_refreshes_of_drafts_are_equal_to_vllms(in_child):
    assert in_child(child_refreshes_drafts, 60).endswith("equal\n")


def child_builds_sparse_mla(folder, count):
    own, launches = start(folder)
    counted = 0
    for seed in range(count):
        case = Case(seed, ratio=1, dcp=(1, 0, 1))
        fp8, mixed = case.rng.choice([(True, False), (True, False), (True, True), (False, False)])
        builder = make_sparse_builder(
            threshold=case.rng.choice([1, case.drafts + 1, 16]), fp8=fp8, mixed=mixed, workspace=case.rng.choice([1, 2])
        )
        builder.require_uniform_decodes = case.rng.random() < 0.8
        batch = case.batch()
        batch.max_logits_per_req = case.rng.choice([None, 2])
        if fp8 and not mixed and int(batch.query_start_loc_cpu[1]) != case.drafts + 1:
            continue  # vLLM asserts that its decodes are as long as the first one

        def built(builder=builder, batch=batch):
            batch._token_to_req_indices_cache = None
            builder.req_id_per_token_buffer.fill_(UNTOUCHED)
            return results(builder, batch, builder.build(0, batch))

        try:
            with originals(own):
                expected = built()
        except AssertionError:  # so does its own build here
            continue
        launches.take()
        assert_equal(built(), expected, case.name)
        separate = fp8 and not mixed and expected["metadata.num_prefills"] > 0
        assert launches.take() == (1 + separate, 0), case.name
        counted += 1
    assert counted > count // 2
    print("equal")


def test_sparse_mla_is_equal_to_vllms(in_child):
    assert in_child(child_builds_sparse_mla, 80).endswith("equal\n")


def child_of_unknown_schedules(folder):
    """The schedule is left to vLLM where another DeepGEMM reads it, or pages of another size, or SM120."""
    own, launches = start(folder)
    deep_gemm = importlib.import_module("vllm.utils.deep_gemm")
    another = types.SimpleNamespace(__name__="deep_gemm")
    for name, case, options in [
        ("known", Case(0, family=90, drafts=1), {}),
        ("known", Case(0, family=100, drafts=2), {}),
        ("known", Case(0, family=90, drafts=3), {}),
        ("page", Case(0, family=90, drafts=2), {"page": 32}),
        ("family", Case(0, family=120, drafts=1), {}),
        ("module", Case(0, family=90, drafts=2), {}),
    ]:
        vars(case).update(kind="uniform", adaptive=False, ratio=1, dcp=(1, 0, 1))
        builder, batch = case.builder(**options), case.batch()
        with originals(own):
            expected = run(builder, batch)
        deep_gemm._import_deep_gemm = (lambda: another) if name == "module" else deep_gemm._import_deep_gemm
        launches.take()
        assert_equal(run(builder, batch), expected, name)
        assert launches.take() == (1, int(name != "known")), name
    print("equal")


def test_unknown_schedules_are_left_to_vllm(in_child):
    assert in_child(child_of_unknown_schedules).endswith("equal\n")


def child_with_an_overriding_builder(folder):
    start(folder)
    base = importlib.import_module(INDEXER).DeepseekV32IndexerMetadataBuilder

    class Overrides(base):
        def _prepare_decode_tensors(self, **arguments):
            self.asked = True
            return super()._prepare_decode_tensors(**arguments)

    case = Case(0, family=90, drafts=1, kind="uniform", adaptive=False)
    builder, batch = case.builder(cls=Overrides), case.batch()
    builder.build(0, batch)
    assert builder.asked
    print("asked")


def test_a_builder_that_overrides_a_method_keeps_it(in_child):
    assert in_child(child_with_an_overriding_builder).endswith("asked\n")


def child_keeps_steps(folder):
    start(folder)
    bound = []
    plan = nsa_kernel.IndexerDecodePlan
    nsa_kernel.IndexerDecodePlan = lambda *args, **kwargs: bound.append(1) or plan(*args, **kwargs)
    decode = importlib.import_module("nsa_kernel.vllm.decode")
    decode.MAX_SIZES, decode.MAX_PLACES = 3, 2
    case = Case(0, family=90, drafts=1, kind="uniform", adaptive=False, requests=4)
    builder, batch = case.builder(), case.batch()
    for _ in range(3):
        builder.build(0, batch)
    assert len(bound) == 1
    moved = dataclasses.replace(batch, seq_lens=batch.seq_lens.clone())
    assert builder.build(0, moved).seq_lens is moved.seq_lens
    assert len(bound) == 2
    steps = builder._nsa_kernel_known.steps
    kept = []
    for _ in range(5):
        moved = dataclasses.replace(batch, seq_lens=batch.seq_lens.clone())
        kept.append(weakref.ref(moved.seq_lens))
        builder.build(0, moved)
        assert [len(places) for places in steps.values()] == [2]
    del moved
    assert [of() is None for of in kept] == [True, True, True, False, False]
    for requests in range(5, 10):
        builder.build(0, Case(0, family=90, drafts=1, kind="uniform", adaptive=False, requests=requests).batch())
        assert len(steps) <= 3
    print("kept")


def test_a_step_is_bound_once_and_again_where_its_tensors_moved(in_child):
    """And the memory of tensors that are new in every step is not kept."""
    assert in_child(child_keeps_steps).endswith("kept\n")


@pytest.mark.parametrize("first", [0, 1000])
def test_builds_are_equal_to_vllms(in_child, first):
    assert in_child(child_builds, first, 120).endswith("equal\n")
