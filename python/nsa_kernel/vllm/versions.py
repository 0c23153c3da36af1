"""What the plug-in replaces of vLLM, what it relies on there, and the versions that have it."""

import hashlib
import importlib
import inspect
from typing import Any, NamedTuple

BACKEND = "vllm.v1.attention.backend"
DEEP_GEMM = "vllm.utils.deep_gemm"
FLASHMLA = "vllm.v1.attention.backends.mla.flashmla_sparse"
INDEXER = "vllm.v1.attention.backends.mla.indexer"
KERNELS = "vllm.v1.attention.ops.metadata"
SPARSE_MLA = "vllm.model_executor.layers.attention.sparse_mla_attention"
UTILS = "vllm.v1.attention.backends.utils"
BUILDER = f"{INDEXER}:DeepseekV32IndexerMetadataBuilder"

# `module:name` -> the first 16 digits of the sha256 of its source, by version.
SOURCES = {
    "0.33.0": {
        f"{KERNELS}:_indexer_decode_metadata_kernel": "26b7785da16b0b8d",
        f"{KERNELS}:_token_request": "e1dd81a45c4b10e1",
        f"{KERNELS}:_token_request_mapping_kernel": "1e6bc998d5b47fd0",
        f"{INDEXER}:DeepSeekV32IndexerDecodeMetadata": "3198184f78e55d35",
        f"{INDEXER}:DeepseekV32IndexerMetadata": "44f329814c542323",
        f"{INDEXER}:DeepseekV32IndexerPrefillChunkMetadata": "39871e3d292b9e55",
        f"{INDEXER}:_supports_native_decode": "56e3f20ebbddcfb5",
        f"{INDEXER}:build_prefill_chunk_metadata": "1e58523382f7f560",
        f"{BUILDER}.__init__": "0f730868e855863d",
        f"{BUILDER}._dcp_localize_decode_seq_lens": "a4e0be4713168ca4",
        f"{BUILDER}._prepare_decode_tensors": "3b232bdbaebccf75",
        f"{BUILDER}._prepare_global_decode_seq_lens": "c3ba0857a84fb74d",
        f"{BUILDER}.build": "60c3752b0beefbd9",
        f"{BUILDER}.update_draft_decode_metadata": "f498d7e33f51e6e9",
        f"{DEEP_GEMM}:_import_deep_gemm": "78805dc9c797a18c",
        f"{DEEP_GEMM}:_paged_mqa_logits_schedule_slots": "33488b4ba490e965",
        f"{DEEP_GEMM}:get_paged_mqa_logits_metadata": "6cde1f642da6228a",
        f"{DEEP_GEMM}:get_paged_mqa_page_sizes": "0963e89e0c33dcd4",
        f"{BACKEND}:CommonAttentionMetadata": "b83b991c7a22298b",
        f"{BACKEND}:CommonAttentionMetadata.token_to_req_indices": "3c2879ef98f7de29",
        f"{UTILS}:get_dcp_local_seq_lens": "23c8c9f856af2057",
        f"{UTILS}:split_decodes_and_prefills": "f007f7c52cb563c9",
        f"{UTILS}:split_prefill_chunks": "71d6c2493c3004b6",
        f"{SPARSE_MLA}:SparseMLACommonMetadata": "08f9db1f3341e8ca",
        f"{SPARSE_MLA}:SparseMLACommonMetadataBuilder.build": "9f05f74a64dafe37",
        f"{FLASHMLA}:FlashMLASparseMetadata": "bf09b345ba685aad",
        f"{FLASHMLA}:FlashMLASparseMetadataBuilder._build_fp8_separate_prefill_decode": "255c8285c10cf82f",
    }
}


class Level(NamedTuple):
    """Replacements that stand or fall together, made as soon as vLLM has imported a module."""

    module: str
    ours: str  # the module here that has them
    replacements: dict[str, str]  # what is replaced -> the name of what replaces it
    relies_on: list[str]
    any_version: bool = False  # whose sources are the same


_SCHEDULE = [
    f"{DEEP_GEMM}:_import_deep_gemm",
    f"{DEEP_GEMM}:_paged_mqa_logits_schedule_slots",
    f"{DEEP_GEMM}:get_paged_mqa_logits_metadata",
]
LEVELS = {
    "kernels": Level(
        KERNELS,
        "nsa_kernel.vllm.kernels",
        {
            f"{KERNELS}:_indexer_decode_metadata_kernel": "indexer_decode_metadata",
            f"{KERNELS}:_token_request_mapping_kernel": "token_request_mapping",
        },
        [f"{KERNELS}:_token_request", f"{DEEP_GEMM}:get_paged_mqa_page_sizes"],
        any_version=True,
    ),
    "methods": Level(
        INDEXER,
        "nsa_kernel.vllm.indexer",
        {
            f"{BUILDER}._prepare_decode_tensors": "prepare_decode_tensors",
            f"{BUILDER}.update_draft_decode_metadata": "update_draft_decode_metadata",
            f"{INDEXER}:build_prefill_chunk_metadata": "build_prefill_chunk_metadata",
        },
        [
            f"{INDEXER}:DeepSeekV32IndexerDecodeMetadata",
            f"{INDEXER}:DeepseekV32IndexerMetadata",
            f"{INDEXER}:DeepseekV32IndexerPrefillChunkMetadata",
            f"{BUILDER}.__init__",
            f"{BUILDER}.build",  # keeps the lengths by request that _prepare_decode_tensors needs
            f"{UTILS}:get_dcp_local_seq_lens",
            *_SCHEDULE,
        ],
    ),
    "build": Level(
        INDEXER,
        "nsa_kernel.vllm.decode",
        {f"{BUILDER}.build": "build"},
        [
            f"{INDEXER}:DeepSeekV32IndexerDecodeMetadata",
            f"{INDEXER}:DeepseekV32IndexerMetadata",
            f"{INDEXER}:_supports_native_decode",
            f"{BUILDER}.__init__",
            f"{BUILDER}._dcp_localize_decode_seq_lens",
            f"{BUILDER}._prepare_decode_tensors",
            f"{BUILDER}._prepare_global_decode_seq_lens",
            f"{BACKEND}:CommonAttentionMetadata",
            f"{UTILS}:get_dcp_local_seq_lens",
            f"{UTILS}:split_decodes_and_prefills",
            *_SCHEDULE,
        ],
    ),
    "sparse MLA": Level(
        SPARSE_MLA,
        "nsa_kernel.vllm.sparse_mla",
        {
            f"{SPARSE_MLA}:SparseMLACommonMetadataBuilder.build": "build",
            f"{BACKEND}:CommonAttentionMetadata.token_to_req_indices": "token_to_req_indices",
        },
        [
            f"{SPARSE_MLA}:SparseMLACommonMetadata",
            f"{BACKEND}:CommonAttentionMetadata",
            f"{UTILS}:split_decodes_and_prefills",
        ],
    ),
    "FlashMLA": Level(
        FLASHMLA,
        "nsa_kernel.vllm.flashmla",
        {
            f"{FLASHMLA}:FlashMLASparseMetadataBuilder._build_fp8_separate_prefill_decode": (
                "build_fp8_separate_prefill_decode"
            )
        },
        [
            f"{FLASHMLA}:FlashMLASparseMetadata",
            f"{BACKEND}:CommonAttentionMetadata",
            f"{UTILS}:split_prefill_chunks",
        ],
    ),
}


def find(target: str) -> tuple[Any, str, Any]:
    """The module or class that has the target, its name there, and what it is."""
    module, _, path = target.partition(":")
    *classes, name = path.split(".")
    holder: Any = importlib.import_module(module)
    for class_name in classes:
        holder = getattr(holder, class_name)
    return holder, name, getattr(holder, name)


def source_hash(target: str) -> str:
    """The hash of the source of the target, for a Triton kernel that of its function."""
    value = find(target)[-1]
    function = value if inspect.isclass(value) else getattr(value, "fn", value)
    return hashlib.sha256(inspect.getsource(function).encode()).hexdigest()[:16]


def obstacle(level: Level) -> str:
    """Why a level does not fit; empty where nothing speaks against it."""
    version = str(importlib.import_module("vllm").__version__).partition("+")[0]
    if not level.any_version and version not in SOURCES:
        return f"vLLM {version} is not known"
    versions = list(SOURCES) if level.any_version else [version]
    for target in (*level.replacements, *level.relies_on):
        try:
            found = source_hash(target)
        except Exception as error:  # importing it runs vLLM's code
            return f"{target} cannot be read ({error})"
        if found not in [SOURCES[known][target] for known in versions]:
            return f"{target} is not that of vLLM {versions[-1]}"
    return ""
