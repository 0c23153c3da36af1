"""vLLM's own metadata code on any machine, without what it needs from the rest of vLLM.

A module of vLLM is either in `REAL`, and then it is vLLM's own file, or it is a stub: a module whose every attribute is
an empty class. What the own files do with a stub beyond naming it has a stand-in below. Builders and batches are made
as the engine makes them; `plan_schedule` stands in for DeepGEMM's kernel. What is replaced is named `module:name`.
"""

import contextlib
import dataclasses
import enum
import functools
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import itertools
import sys
import types
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

REAL = [
    "vllm.envs",
    "vllm.logger",
    "vllm.logging_utils",
    "vllm.logging_utils.formatter",
    "vllm.model_executor.layers.attention.sparse_mla_attention",
    "vllm.model_executor.warmup.jit_warmup",
    "vllm.model_executor.warmup.jit_warmup_triton_helper",
    "vllm.plugins",
    "vllm.transformers_utils.deepseek_v4_utils",
    "vllm.triton_utils.dispatcher",
    "vllm.utils.deep_gemm",
    "vllm.utils.math_utils",
    "vllm.utils.torch_utils",
    "vllm.utils.torch_version",
    "vllm.v1.attention.backend",
    "vllm.v1.attention.backends.mla.compressor_utils",
    "vllm.v1.attention.backends.mla.flashmla_sparse",
    "vllm.v1.attention.backends.mla.indexer",
    "vllm.v1.attention.backends.mla.sparse_utils",
    "vllm.v1.attention.backends.registry",
    "vllm.v1.attention.backends.utils",
    "vllm.v1.attention.ops.metadata",
    "vllm.v1.kv_cache_interface",
    "vllm.v1.kv_cache_layout",
    "vllm.v1.kv_cache_spec_registry",
    "vllm.v1.worker.block_table",
]
INDEXER = "vllm.v1.attention.backends.mla.indexer"
FLASHMLA = "vllm.v1.attention.backends.mla.flashmla_sparse"
WIDTH, PAGE, MAX_TOKENS = 12, 64, 96
UNTOUCHED = -7

platform = SimpleNamespace(  # what vLLM's current_platform says; `family` is that of the GPU
    family=90,
    device_type="cuda",
    dispatch_key="CUDA",
    is_cuda=lambda: True,
    is_cuda_alike=lambda: True,
    is_rocm=lambda: False,
    is_xpu=lambda: False,
    is_cpu=lambda: False,
    is_arch_support_pdl=lambda: False,
    support_deep_gemm=lambda: False,
    is_fp8_fnuz=lambda: False,
    is_device_capability_family=lambda family: family == platform.family,
    register_triton_kernel_overrides=lambda: None,
    simple_compile_backend="eager",
)
dcp_group = SimpleNamespace(rank_in_group=0, world_size=1)


class CUDAGraphMode(enum.Enum):
    NONE, FULL_AND_PIECEWISE = range(2)

    def mixed_mode(self):
        return self


@dataclasses.dataclass(kw_only=True)
class MLACommonMetadata:
    """The base of vLLM's sparse metadata, whose own file imports half of vLLM."""

    num_reqs: int
    max_query_len: int
    max_seq_len: int
    num_actual_tokens: int
    query_start_loc: torch.Tensor
    slot_mapping: torch.Tensor

    def __class_getitem__(cls, parameters):
        return cls


def plan_schedule(context_lens, block_kv, num_slots, indices=None):
    """The schedule of DeepGEMM's paged logits: runs of equal indices share a row, and the last one tells its length."""
    lengths = context_lens[:, -1].tolist()
    runs = [
        list(run)
        for _, run in itertools.groupby(range(len(lengths)), key=None if indices is None else lambda t: indices[t])
    ]
    split = 256 if indices is None else 384
    splits = np.array([-(-lengths[run[-1]] // split) for run in runs], dtype=np.int64)
    work = np.array([1 if indices is None else 8 * -(-len(run) // 4) + len(run) for run in runs], dtype=np.int64)
    until = np.cumsum(splits * work)
    schedule = np.zeros((num_slots + 1, 2), dtype=np.int32)
    if runs and until[-1]:
        each, rest = divmod(int(until[-1]), num_slots)
        schedule[:] = len(lengths), 0
        for slot in range(num_slots):
            late = max(slot - (num_slots - rest), 0)
            start = slot * each + (late if indices is None else min(slot, rest))
            if start < until[-1]:
                row = int(np.searchsorted(until, start, side="right"))
                within = start - int(until[row - 1] if row else 0)
                if indices is None:
                    schedule[slot] = row + within // int(splits[row]), within % int(splits[row])
                else:
                    schedule[slot] = runs[row][0], within // int(work[row])
    return torch.from_numpy(schedule).to(context_lens.device)


def multiprocessors(index):
    return torch.cuda.get_device_properties(index or 0).multi_processor_count if torch.cuda.is_available() else 20


def triton_modules():
    triton = importlib.import_module("triton")
    return {"HAS_TRITON": True, "triton": triton, "tl": importlib.import_module("triton.language")}


STAND_INS = {
    "vllm.config": lambda: {"CUDAGraphMode": CUDAGraphMode},
    "vllm.config.cache": lambda: {"get_kv_cache_dtype_handler": lambda name: None},
    "vllm.distributed": lambda: {"get_dcp_group": lambda: dcp_group, "get_pcp_group": lambda: dcp_group},
    "vllm.model_executor.layers.attention.mla_attention": lambda: {"MLACommonMetadata": MLACommonMetadata},
    "vllm.model_executor.layers.quantization.utils.quant_utils": lambda: {"get_fp8_min_max": lambda: (0, 0)},
    "vllm.platforms": lambda: {"current_platform": platform},
    "vllm.third_party.deep_gemm": lambda: {"get_paged_mqa_logits_metadata": plan_schedule},
    "vllm.triton_utils": triton_modules,
    "vllm.utils.import_utils": lambda: {"has_deep_gemm": lambda: True},
    "vllm.utils.platform_utils": lambda: {
        "is_pin_memory_available": lambda: False,
        "num_compute_units": multiprocessors,
    },
    "vllm.v1.attention.ops.flashmla": lambda: {"get_mla_metadata": lambda: ("made at the first use", None)},
}


class Anything(type):
    """An empty class: it has every attribute, takes every parameter and goes into every union of types."""

    def __getattr__(cls, name):
        return anything(name)

    def __getitem__(cls, parameters):
        return cls

    def __or__(cls, other):
        return cls

    __ror__ = __or__


def anything(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return Anything(name, (), {})


class StubModule(types.ModuleType):
    def __getattr__(self, name):
        value = anything(name)
        setattr(self, name, value)
        return value


class Importer(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds vLLM's own file of a module, or makes its stub."""

    def __init__(self, folder, version, real):
        self.folder, self.version, self.real = Path(folder), version, real

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] != "vllm":
            return None
        if name not in REAL and not name.startswith(self.real):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        package = self.folder.joinpath(*name.split("."))
        if package.is_dir():
            folders = [str(package)]
            return importlib.util.spec_from_file_location(
                name, package / "__init__.py", submodule_search_locations=folders
            )
        return importlib.util.spec_from_file_location(name, package.with_suffix(".py"))

    def create_module(self, spec):
        return StubModule(spec.name)

    def exec_module(self, module):
        if module.__name__ == "vllm":
            module.__version__ = self.version
        vars(module).update(STAND_INS.get(module.__name__, dict)())


def import_vllm(folder, version="0.33.0", real=()):
    """Makes vLLM importable in this process, in which torch pretends to be built for CUDA.

    Modules whose names begin with one of `real` are vLLM's own too.
    """
    sys.meta_path.insert(0, Importer(folder, version, tuple(real)))
    torch.version.cuda = torch.version.cuda or "13.0"
    torch.compile = lambda *arguments, **options: lambda function: function  # of functions that are not called
    if not torch.cuda.is_available():
        torch.zeros = without_pinning(torch.zeros)


def without_pinning(function):
    """Drops what torch refuses where there is no GPU."""

    @functools.wraps(function)
    def call(*arguments, **options):
        options.pop("pin_memory", None)
        return function(*arguments, **options)

    return call


DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def int32(values):
    return torch.tensor(values, dtype=torch.int32)


def make_builder(
    family=90, drafts=0, ratio=1, dcp=(1, 0, 1), adaptive=False, page=PAGE, cls=None, width=WIDTH, **sizes
):
    """Makes vLLM's builder; `dcp` is world, rank and interleave."""
    indexer = importlib.import_module(INDEXER)
    platform.family = family
    world, dcp_group.rank_in_group, interleave = dcp
    dcp_group.world_size = world
    sizes = {"tokens": MAX_TOKENS, "requests": 32} | sizes
    speculative = SimpleNamespace(num_speculative_tokens=drafts, enable_adaptive_verification=adaptive)
    config = SimpleNamespace(
        scheduler_config=SimpleNamespace(max_num_batched_tokens=sizes["tokens"], max_num_seqs=sizes["requests"]),
        parallel_config=SimpleNamespace(
            decode_context_parallel_size=world,
            prefill_context_parallel_size=1,
            tensor_parallel_size=1,
            cp_kv_cache_interleave_size=interleave,
        ),
        model_config=SimpleNamespace(max_model_len=width * page * ratio, hf_config=None, hf_text_config=None),
        attention_config=SimpleNamespace(
            sparse_mla_prefill_workspace_factor=5,
            resolve_indexer_kv_dtype=lambda default: default,
            indexer_tp_shard_min_rows=1 << 30,
        ),
        compilation_config=SimpleNamespace(cudagraph_mode=CUDAGraphMode.FULL_AND_PIECEWISE),
        speculative_config=speculative if drafts or adaptive else None,
        num_speculative_tokens=drafts,
    )
    spec = importlib.import_module("vllm.v1.kv_cache_interface").MLAAttentionSpec(
        block_size=page * ratio, num_kv_heads=1, head_size=128, dtype=torch.bfloat16, tokens_per_state=ratio
    )
    return (cls or indexer.DeepseekV32IndexerMetadataBuilder)(spec, ["layer"], config, DEVICE, block_table_width=width)


def make_sparse_builder(threshold=4, fp8=True, mixed=False, workspace=5, width=WIDTH, tokens=MAX_TOKENS):
    """Makes vLLM's builder of FlashMLA's metadata, without the part of it that reads a model."""
    builder = object.__new__(importlib.import_module(FLASHMLA).FlashMLASparseMetadataBuilder)
    builder.device, builder.topk_tokens = DEVICE, 2048
    builder.kv_cache_spec = SimpleNamespace(block_size=PAGE)
    builder.reorder_batch_threshold, builder.use_pcp, builder.pcp_dcp_kv_gather = threshold, False, False
    builder.cp_kv_cache_interleave_size, builder._prefill_backend = 1, None
    builder.use_fp8_kv_cache, builder.fp8_use_mixed_batch = fp8, mixed
    builder.req_id_per_token_buffer = torch.empty(tokens, dtype=torch.int32, device=DEVICE)
    builder.max_model_len_tensor = torch.full((tokens,), width * PAGE, dtype=torch.int32, device=DEVICE)
    builder.dummy_block_table = torch.empty((tokens, 1), dtype=torch.int32, device=DEVICE)
    builder.vllm_config = SimpleNamespace(
        attention_config=SimpleNamespace(sparse_mla_prefill_workspace_factor=workspace, hisparse_config=None),
        model_config=SimpleNamespace(max_model_len=width * PAGE),
    )
    return builder


def make_batch(queries, seq_lens, table, num_tokens=None, dcp=False, bound=None):
    """What the model runner hands to the builders; a padded request has no token and no length."""
    starts = int32([0, *itertools.accumulate(queries)])
    num_tokens = int(starts[-1]) if num_tokens is None else num_tokens
    lengths = int32(seq_lens)
    backend = importlib.import_module("vllm.v1.attention.backend")
    return backend.CommonAttentionMetadata(
        query_start_loc=starts.to(DEVICE),
        query_start_loc_cpu=starts,
        seq_lens=lengths.to(DEVICE),
        seq_lens_cpu_upper_bound=lengths,
        num_reqs=len(queries),
        num_actual_tokens=num_tokens,
        max_query_len=max(queries) if bound is None else bound,
        max_seq_len=max(seq_lens),
        block_table_tensor=table,
        slot_mapping=torch.arange(num_tokens, dtype=torch.int64, device=DEVICE),
        dcp_local_seq_lens=lengths.to(DEVICE) if dcp else None,
    )


def holder(target):
    """The module or class that has the target, and its name there."""
    module, _, path = target.partition(":")
    *classes, name = path.split(".")
    return functools.reduce(getattr, classes, importlib.import_module(module)), name


def find(target):
    return getattr(*holder(target))


@contextlib.contextmanager
def originals(own):
    """Puts vLLM's own in place of what replaces it."""
    replaced = {target: find(target) for target in own}
    for target, value in own.items():
        setattr(*holder(target), value)
    try:
        yield
    finally:
        for target, value in replaced.items():
            setattr(*holder(target), value)


def flatten(value, name="metadata"):
    """All that a dataclass holds, by its path."""
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from flatten(getattr(value, field.name), f"{name}.{field.name}")
    elif isinstance(value, list):
        yield f"{name}.length", len(value)
        for index, item in enumerate(value):
            yield from flatten(item, f"{name}[{index}]")
    else:
        yield name, value


def run(builder, batch):
    """Builds with every buffer untouched before; returns what was built, as values and as places in the buffers."""
    clear(builder)
    return results(builder, batch, builder.build(0, batch))


def clear(builder):
    for name, buffer in vars(builder).items():
        if torch.is_tensor(buffer) and name not in ("offsets_buffer", "arange_buffer", "dcp_rank_tensor"):
            buffer.fill_(UNTOUCHED)


def results(builder, batch, metadata):
    kept = {
        value.data_ptr() for holder in (builder, batch) for value in vars(holder).values() if torch.is_tensor(value)
    }
    found = {}
    for name, value in flatten(metadata):
        if isinstance(value, torch.Tensor):
            place = value.data_ptr() if value.data_ptr() in kept else None
            found[name] = (value.tolist(), value.dtype, value.shape, value.stride(), place)
        else:
            found[name] = value
    decode = getattr(metadata, "decode", None)
    if decode is not None and decode.block_table.data_ptr() == builder.expanded_block_table_buffer.data_ptr():
        found["lengths"] = builder.decode_seq_lens_buffer.tolist()
        columns = columns_of_rows(metadata, batch)
        table, *rest = found["metadata.decode.block_table"]
        found["metadata.decode.block_table"] = ([row[:width] for row, width in zip(table, columns, strict=True)], *rest)
    return found


def columns_of_rows(metadata, batch):
    """The columns of each row of the expanded table that the kernels read: those of the request's last token."""
    queries = batch.query_start_loc.diff()[: metadata.num_decodes].tolist()
    lengths = metadata.decode.seq_lens.flatten().tolist()
    columns, row = [], 0
    for q in queries:
        columns += [max(-(-lengths[min(row + q, len(lengths)) - 1] // PAGE), 1)] * q if q else []
        row += q
    return [min(width, WIDTH) for width in columns] + [1] * (len(lengths) - len(columns))


def assert_equal(got, expected, name):
    assert got.keys() == expected.keys(), name
    for path in expected:
        assert got[path] == expected[path], f"{name}: {path}: {got[path]}, vLLM has {expected[path]}"
