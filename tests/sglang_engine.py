"""SGLang's own DSA backends in a process without a GPU: what they call and no CPU can run has a stand-in here.

torch says that it has a GPU; DeepGEMM, FlashMLA and the compiled part of SGLang's top-k are plain Python; packages that
SGLang imports and a refresh never calls are absent. All else is SGLang's own, and its Triton kernels are interpreted
(TRITON_INTERPRET=1, and -O, which skips their `assert tensor.is_cuda`).
"""

import importlib
import importlib.abc
import importlib.machinery
import os
import random
import re
import sys
import types
from pathlib import Path

import reference
import torch

PAGE = 64
SMS = 12
CLUSTERS = 3
# Empty distributions say that these are installed; the environment may name another version of DeepGEMM.
DEEP_GEMM = "TEST_DEEP_GEMM_VERSION"
PACKAGES = {"sgl-deep-gemm": os.environ.get(DEEP_GEMM, "0.2.3.post2"), "sgl-flash-mla": "1.0.0"}


# Packages that are absent.


class AbsentType(type):
    """Of a class that stands for anything: a base class, a decorator, a value."""

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent

    def __call__(cls, *arguments, **keywords):
        if cls is not Absent:
            return super().__call__(*arguments, **keywords)
        return arguments[0] if len(arguments) == 1 and not keywords and callable(arguments[0]) else Absent

    def __getitem__(cls, key):
        return Absent

    def __setitem__(cls, key, value):
        pass

    def __or__(cls, other):
        return Absent

    __ror__ = __or__

    def __iter__(cls):
        return iter(())


class Absent(metaclass=AbsentType):
    def __init_subclass__(cls, **_):
        pass


class AbsentPackages(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds what SGLang imports from elsewhere, and the parts of SGLang that only serve such packages."""

    present = sys.stdlib_module_names | {
        *("msgspec", "numpy", "nsa_kernel", "packaging", "sglang", "torch", "triton", "typing_extensions"),
    }
    parts = ("sglang.srt.utils.hf_transformers", "sglang.srt.hardware_backend")

    def __init__(self, folder):
        self.folder, self.names = str(folder), {"deep_gemm", "flash_mla"}

    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in self.names and not name.startswith(self.parts):
            frame = sys._getframe(1)
            while "importlib" in frame.f_code.co_filename:
                frame = frame.f_back
            if top in self.present or not frame.f_code.co_filename.startswith(self.folder):
                return None
            self.names.add(top)
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        module = types.ModuleType(spec.name)
        module.__path__, module.__version__ = [], "0"
        module.__getattr__ = lambda name: getattr(Absent, name)
        return module

    def exec_module(self, module):
        pass


# The device and its libraries.


def pose_as(major):
    """Torch says that it has a GPU of this major compute capability."""
    torch.version.cuda = "13.0"
    properties = types.SimpleNamespace(
        name="GPU", major=major, minor=0, total_memory=80 << 30, multi_processor_count=SMS
    )
    for name, value in {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_capability": (major, 0),
        "get_device_name": properties.name,
        "get_device_properties": properties,
    }.items():
        setattr(torch.cuda, name, lambda *_, value=value, **__: value)


def is_sm100():
    return torch.cuda.get_device_capability()[0] == 10


def paged_mqa_schedule(context_lens, block_kv, num_sms, indices=None):
    """DeepGEMM's: where each multiprocessor starts, as (row, split of the row)."""
    bs, tokens = context_lens.shape
    format_ = "deepgemm_sm100_256" if is_sm100() else "deepgemm_sm90"
    lengths = [row[-1] for row in context_lens.tolist()]
    schedule = reference.schedule((num_sms + 1, 2), format_, lengths, [tokens] * bs, atoms=-(-tokens // 2))
    return torch.tensor(schedule, dtype=torch.int32)


def flashmla_schedule(cache_seqlens, heads_per_token, kv_heads, heads, fp8, topk, *, use_legacy):
    """FlashMLA's: with `topk`, it depends on the number of rows alone."""
    rows = cache_seqlens.numel()
    part = torch.arange(SMS, dtype=torch.int32)[:, None]
    return part * rows + torch.arange(8, dtype=torch.int32), torch.arange(rows + 1, dtype=torch.int32) * topk


class CompiledTopK:
    """The compiled part of SGLang's top-k."""

    @staticmethod
    def get_max_active_clusters(cluster_size, occupancy):
        assert (cluster_size, occupancy) in ((8, 2), (16, 1))
        return CLUSTERS

    @staticmethod
    def topk_plan(seq_lens, plan, static_threshold):
        assert static_threshold == -1
        lengths = seq_lens.tolist()
        format_ = "sglang_topk_v2_sm100" if is_sm100() else "sglang_topk_v2_sm90"
        rows = [row for row in reference.topk_plan(tuple(plan.shape), format_, lengths, CLUSTERS) if None not in row]
        if rows:
            head, *items = rows
            random.Random(len(items)).shuffle(items)  # SGLang's atomics give them no order
            plan[: len(rows)] = torch.tensor([head, *items], dtype=torch.int32)


def load(folder, scratch, major=9):
    """Imports SGLang's backends, in this process; returns their module."""
    pose_as(major)
    for package, version in PACKAGES.items():
        info = Path(scratch, f"{package.replace('-', '_')}-{version}.dist-info")
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    sys.path.append(str(scratch))
    sys.modules["regex"] = re
    for name in ("sglang", "sglang.srt.configs"):  # without an __init__ that imports everything
        sys.modules[name] = package = types.ModuleType(name)
        package.__path__ = [str(Path(folder, *name.split(".")))]
        package.__getattr__ = lambda name: getattr(Absent, name)
    sys.meta_path.insert(0, AbsentPackages(folder))
    # Compiled as well; SGLang copies one by one where it cannot be imported.
    sys.modules["sglang.kernels.ops.attention.dsa.fused_metadata_copy"] = None
    backend = importlib.import_module("sglang.srt.layers.attention.dsa_backend")
    backend.make_persistent_multi_ctas_kv_counter_buffer = lambda *_, **__: None  # of the attention of SM100
    deep_gemm = importlib.import_module("deep_gemm")
    deep_gemm.get_num_sms, deep_gemm.get_paged_mqa_logits_metadata = lambda: SMS, paged_mqa_schedule
    importlib.import_module("flash_mla").get_mla_decoding_metadata = flashmla_schedule
    for name in ("sglang.kernels.ops.attention.dsv4.topk", "sglang.kernels.jit.utils.occupancy"):
        importlib.import_module(name).load_jit = lambda *_, **__: CompiledTopK
    return backend
