"""The versions of SGLang whose refresh is known: the sources that `refresh` follows, and the packages they call."""

import hashlib
import importlib
import importlib.metadata
import importlib.resources
import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple

BACKEND = "sglang.srt.layers.attention.dsa_backend"
_BATCH, _DRAFT = f"{BACKEND}:DeepseekSparseAttnBackend", f"{BACKEND}:DeepseekSparseAttnMultiStepBackend"


class Version(NamedTuple):
    """A version of SGLang."""

    name: str
    sources: dict[str, str]  # `module:name` of a class or function, or `package/file` -> hash of its source
    packages: dict[str, str]  # distribution -> version


VERSIONS = [
    Version(
        "0.5.23",
        {
            f"{_BATCH}._apply_cuda_graph_metadata": "4229112f6cf86dea",
            f"{_BATCH}._build_forward_metadata_cuda_graph": "f3cb69ada529dd08",
            f"{_BATCH}._build_paged_mqa_schedule_2d_ctx_lens": "742d73fe4163533d",
            f"{_BATCH}._build_topk_v2_plan": "a9f5f841bc9ea438",
            f"{_BATCH}._compute_flashmla_metadata": "93c8e8fd611b27a6",
            f"{_BATCH}._copy_base_replay_buffers": "82c5dcec5aab2e49",
            f"{_BATCH}._forward_flashmla_kv": "5f7786995e6f003c",
            f"{_BATCH}._graph_page_table_width": "00c356c091440d9b",
            f"{_BATCH}._init_kpool_metadata_capture": "c3fa4c1c0589cbbb",
            f"{_BATCH}._precompute_decode_mode": "89d75369a9d8c5c5",
            f"{_BATCH}._precompute_replay_metadata": "dad1ad53ca6cb2e3",
            f"{_BATCH}._refresh_paged_mqa_schedule_metadata": "f039989542ebd59f",
            f"{_BATCH}._refresh_topk_v2_plan": "7670363885112429",
            f"{_BATCH}._transform_table_1_to_real": "c07a7765e900b457",
            f"{_BATCH}._update_kpool_metadata_from_precomputed": "01772a5aa8c9f317",
            f"{_BATCH}._update_kpool_metadata_replay": "cc6198d18fa840b3",
            f"{_BATCH}.init_cuda_graph_state": "facc3084a5366c67",
            f"{_BATCH}.init_forward_metadata_out_graph": "9bebda14b707ac16",
            f"{_BATCH}.init_forward_metadata_replay_cuda_graph_from_precomputed": "8bc885beaba1f522",
            f"{_BATCH}.set_dsa_prefill_impl": "0a4cc9a3ec288120",
            f"{_DRAFT}.__init__": "490e63f193783935",
            f"{_DRAFT}.init_cuda_graph_state": "409f65fbb5a7fe3f",
            f"{_DRAFT}.init_forward_metadata_out_graph": "8506fa017bb81d43",
            f"{BACKEND}:DSAFlashMLAMetadata.copy_": "270d2f11c46685f6",
            f"{BACKEND}:DSAFlashMLAMetadata.slice": "c474cc8b3025488c",
            f"{BACKEND}:_to_2d_context_lens": "4b8916f2e0b790b8",
            "sglang.srt.layers.attention.dsa.utils:_use_torch_mqa_logits": "d9a8864c71daef7a",
            "sglang.srt.layers.attention.dsa.utils:resolve_num_sms": "bfd83c0f3620e2ce",
            "sglang.srt.layers.attention.dsa.utils:resolve_paged_mqa_logits_metadata_fn": "bf996fe9f8974440",
            "sglang.srt.runtime_context:get_platform": "b2d09fdd40ee1e5a",
            "sglang.kernels.jit.utils.occupancy:get_max_active_clusters": "8d81161bfd837666",
            "sglang.kernels.ops.attention.dsv4.topk:_jit_topk_v2_module": "3cb90d9938ca1925",
            "sglang.kernels.ops.attention.dsv4.topk:plan_topk_v2": "165a965163b581f7",
            "sglang.kernels/jit/csrc/deepseek_v4/topk_v2.cuh": "85ee4ce82bd0c6f3",
        },
        {"sgl-deep-gemm": "0.2.3.post2", "sgl-flash-mla": "1.0.0"},
    ),
]

# The methods of the backend that a refresh consists of, but for the one that the plug-in stands around.
METHODS = [target.removeprefix(f"{_BATCH}.") for target in VERSIONS[-1].sources if target.startswith(f"{_BATCH}.")]
METHODS.remove("init_forward_metadata_out_graph")


def source_hash(target: str) -> str:
    """The hash of the source of `module:name` or `package/file`."""
    if "/" in target:
        package, _, file = target.partition("/")
        source = importlib.resources.files(package).joinpath(file).read_text()
    else:
        module, _, path = target.partition(":")
        found: Any = importlib.import_module(module)
        for name in path.split("."):
            found = getattr(found, name)
        if "." in path and hasattr(found, "__wrapped__"):  # whose source `inspect` would not show
            raise TypeError("something is wrapped around it")
        source = inspect.getsource(found)
    return hashlib.sha256(source.encode()).hexdigest()[:16]


def difference() -> str:
    """How SGLang differs from all versions that are known, told for the last of them; empty where it is one of them."""
    differences = [next(_differences(version), "") for version in VERSIONS]
    return "" if "" in differences else differences[-1]


def _differences(version: Version) -> Iterator[str]:
    for package, expected in version.packages.items():
        try:
            installed = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            yield f"{package} is not installed"
            continue
        if installed != expected:
            yield f"{package} is {installed}, must be {expected}"
    for target, expected in version.sources.items():
        try:
            found = source_hash(target)
        except Exception as error:  # importing it runs SGLang's code
            yield f"{target} cannot be read ({error})"
            continue
        if found != expected:
            yield f"{target} is not that of SGLang {version.name}"
