"""The SGLang plug-in against SGLang itself: the 0.5.23 wheel from the package index, without its dependencies.

What needs SGLang runs in a child process, where SGLang is imported from a folder of its own. Two modules cannot be
imported there and are replaced at their own boundary: `sglang` itself, whose `__init__` imports the whole front end,
and `sglang.srt.utils`, which imports the libraries of every device. Everything else is SGLang's own code.
"""

import ast
import gc
import importlib
import importlib.util
import inspect
import itertools
import random
import sys
import types
import weakref
from pathlib import Path

import nsa_kernel
import nsa_kernel.sglang as plugin
import pytest
import torch
from fetched import PEERS
from sglang_process import hook_registry, in_child, load_plugins, log_to_stdout, said

METADATA = "sglang.kernels.ops.attention.dsa.metadata"
PAD = "sglang.kernels.ops.attention.pad"
MANAGER = "sglang.srt.layers.attention.dsa.dsa_metadata_manager"
NAMES = {
    "fused_dsa_decode_metadata": METADATA,
    "fused_dsa_target_verify_metadata": METADATA,
    "fused_dsa_draft_extend_metadata": METADATA,
    "seqlens_expand_triton": PAD,
}
UNTOUCHED = -7


def import_sglang(folder):
    """Makes SGLang importable in this process, with the two modules that cannot be imported replaced."""
    package = types.ModuleType("sglang")
    package.__path__ = [str(Path(folder, "sglang"))]
    utils = types.ModuleType("sglang.srt.utils")
    utils.is_cuda, utils.is_hip = lambda: True, lambda: False
    sys.modules |= {"sglang": package, "sglang.srt.utils": utils}


# The plug-in.


def child_compares_signatures(folder):
    import_sglang(folder)
    for name, module in NAMES.items():
        theirs = inspect.signature(getattr(importlib.import_module(module), name))
        ours = inspect.signature(getattr(plugin, name))
        strip = [[p.replace(annotation=p.empty) for p in s.parameters.values()] for s in (theirs, ours)]
        assert strip[0] == strip[1], (name, theirs, ours)
    print("equal")


def test_signatures_are_sglangs(sglang_folder):
    assert in_child(sglang_folder, child_compares_signatures) == "equal\n"


def uses(folder):
    """(the module that uses one of the functions, the syntax tree of its file), of all of SGLang."""
    for path in sorted((Path(folder) / "sglang").rglob("*.py")):
        text = path.read_text()
        module = ".".join(path.relative_to(folder).with_suffix("").parts)
        if any(name in text for name in NAMES) and module not in NAMES.values():
            yield module, ast.parse(text)


def imports(tree):
    """Where a module imports one of the functions by name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and any(alias.name in NAMES for alias in node.names):
            yield node


def import_early(folder):
    """Runs what every module of SGLang does to import the functions; the rest of most of them needs a GPU."""
    for module, tree in uses(folder):
        stand_in = types.ModuleType(f"early.{module}")
        for node in imports(tree):
            exec(ast.unparse(node), vars(stand_in))
        sys.modules[stand_in.__name__] = stand_in
        yield stand_in


def child_loads_plugins(folder):
    import_sglang(folder)
    early = importlib.import_module(MANAGER)
    users = list(import_early(folder))
    originals = {name: getattr(importlib.import_module(module), name) for name, module in NAMES.items()}
    log_to_stdout()
    load_plugins()
    get_kernel = importlib.import_module("sglang.kernels.selector").get_kernel
    for name, module in NAMES.items():
        replaced = getattr(sys.modules[module], name)
        [(kind, hook, source)] = hook_registry().HookRegistry._hooks[f"{module}.{name}"]
        assert kind is hook_registry().HookType.REPLACE
        assert hook is getattr(plugin, name)
        assert source.plugin_name == "nsa_kernel"
        assert replaced.__wrapped__ is originals[name]
        holders = [held for held in list(sys.modules.values()) if getattr(held, name, None) is originals[name]]
        assert holders == [], f"{name} is still SGLang's in {holders}"
        assert get_kernel(f"attention.{name}") is replaced
        assert any(getattr(user, name, None) is replaced for user in users), f"nothing uses {name}"
    assert early.fused_dsa_decode_metadata is sys.modules[METADATA].fused_dsa_decode_metadata

    # SGLang picks its functions up where a backend starts; from there they fill these buffers.
    backend = early.DSAMetadataManagementMixin()
    backend.dsa_index_kpool, backend.physical_page_size, backend.dsa_index_topk = 1, 64, 12
    backend._init_kpool_metadata_fusion()
    calls = {"decode": backend._fused_decode_metadata, "verify": backend._fused_verify_metadata}
    calls["draft_extend"] = backend._fused_draft_extend_metadata
    buffers = {name: int32([0] * size) for name, size in [("cache_seqlens", 2), ("cu_seqlens_k", 3)]}
    buffers |= {"dsa_cache_seqlens": int32([0] * 2), "dsa_cu_seqlens_k": int32([0] * 3), "page_table_1": None}
    buffers |= {"real_page_table": torch.zeros(2, 1, dtype=torch.int32), "bs": 2, "max_len": 64}
    pool = {"req_pool_indices": int32([1, 0]), "req_to_token": torch.full((2, 64), 640, dtype=torch.int32)}
    calls["decode"](seq_lens=int32([10, 15]), **pool, **buffers, dsa_index_topk=12, physical_page_size=64)
    assert buffers["dsa_cu_seqlens_k"].tolist() == [0, 10, 22]
    assert buffers["real_page_table"].tolist() == [[10], [10]]
    for name in ("verify", "draft_extend"):
        assert calls[name].__wrapped__ in originals.values()


def int32(values):
    return torch.tensor(values, dtype=torch.int32)


def test_sglang_discovers_the_plugin_and_applies_its_hooks(sglang_folder):
    log = in_child(sglang_folder, child_loads_plugins)
    replaced = f"nsa_kernel {nsa_kernel.__version__} replaces {', '.join(NAMES)}"
    assert said(log) == [f"{replaced}; the refresh stays SGLang's: sgl-deep-gemm is not installed"]
    assert "Executed general plugin: nsa_kernel" in log


def used_at_import(tree):
    """The functions that a module takes out of its name for them while it is imported, where no hook follows."""
    inside = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            body = node.body if isinstance(node.body, list) else [node.body]
            inside.update(part for statement in body for part in ast.walk(statement))
    return {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and n.id in NAMES and n not in inside}


def test_sglang_uses_the_functions_by_names_that_the_hooks_reach(sglang_folder):
    """The registry patches a module that imported one of them before; a module that imports it later finds ours."""
    sources = {}
    for module, tree in uses(sglang_folder):
        for node in imports(tree):
            for alias in node.names:
                if alias.name in NAMES:
                    sources.setdefault(alias.name, set()).add(node.module)
        assert used_at_import(tree) == set(), module
    assert sources == {name: {module} for name, module in NAMES.items()}


@pytest.mark.parametrize("taken", ["held = {name}", "def f(g={name}): pass", "class A:\n  f = staticmethod({name})"])
def test_a_function_taken_while_importing_would_be_found(taken):
    assert used_at_import(ast.parse(taken.format(name="seqlens_expand_triton"))) == {"seqlens_expand_triton"}


def child_switched_off(folder):
    stays_untouched(folder)


def child_without_cuda(folder):
    nsa_kernel.is_cuda_kernel_available = lambda: False
    nsa_kernel.get_kernel_info = lambda: {"reason": "no CUDA device"}
    stays_untouched(folder, available=False)


def child_on_rocm(folder):
    torch.version.hip = "7.0"
    stays_untouched(folder)


def child_with_an_unknown_signature(folder):
    import_sglang(folder)
    pad = importlib.import_module(PAD)
    pad.seqlens_expand_triton = lambda extend_seq_lens, seq_lens, total_len, max_q_len, base=0: None
    stays_untouched(folder)


def child_with_a_function_gone(folder):
    import_sglang(folder)
    del importlib.import_module(METADATA).fused_dsa_target_verify_metadata
    stays_untouched(folder)


def child_with_other_signatures(folder):
    """One line each, and none of the functions is replaced."""
    import_sglang(folder)
    log_to_stdout()
    nsa_kernel.is_cuda_kernel_available = lambda: True
    pad = importlib.import_module(PAD)
    original = pad.seqlens_expand_triton

    class Unknown:
        __name__ = "seqlens_expand_triton"

        def __call__(self, *args):
            return original(*args)

        @property
        def __signature__(self):
            raise ValueError("it does not tell")

    for other in (
        lambda extend_seq_lens, seq_lens, total_len: None,
        lambda extend_seq_lens, seq_lens, max_q_len, total_len: None,
        lambda extend_seq_lens, seq_lens, total_len, max_q_len=8: None,
        lambda extend_seq_lens, seq_lens, total_len, *, max_q_len: None,
        lambda *args, **kwargs: None,
        Unknown(),
        None,
    ):
        pad.seqlens_expand_triton = other
        plugin.register()
        assert not hook_registry().HookRegistry._hooks
    pad.seqlens_expand_triton = original
    plugin.register()
    assert set(hook_registry().HookRegistry._hooks) == {f"{module}.{name}" for name, module in NAMES.items()}


def test_every_other_signature_is_told_in_one_line(sglang_folder):
    *refused, replaced = said(in_child(sglang_folder, child_with_other_signatures))
    beginning = f"nsa_kernel leaves SGLang's metadata functions in place: {PAD}.seqlens_expand_triton has "
    assert len(refused) == 7
    assert all(
        line.startswith((beginning + "an unknown signature: (", beginning + "no signature (")) for line in refused
    )
    assert replaced.startswith(f"nsa_kernel {nsa_kernel.__version__} replaces ")


def child_with_a_module_that_fails(folder):
    import_sglang(folder)

    class Fails:
        def find_spec(self, name, path=None, target=None):
            if name == METADATA:
                raise RuntimeError("no driver")

    sys.meta_path.insert(0, Fails())
    log_to_stdout()
    load_plugins()
    assert not hook_registry().HookRegistry._hooks


def stays_untouched(folder, available=True):
    import_sglang(folder)
    before = {name: getattr(importlib.import_module(module), name, None) for name, module in NAMES.items()}
    log_to_stdout()
    load_plugins(available)
    assert not hook_registry().HookRegistry._hooks
    assert before == {name: getattr(sys.modules[module], name, None) for name, module in NAMES.items()}


@pytest.mark.parametrize(
    ("child", "environment", "reason"),
    [
        (child_switched_off, {"NSA_KERNEL_SGLANG": "0"}, "NSA_KERNEL_SGLANG is 0"),
        (child_switched_off, {"NSA_KERNEL_SGLANG": "on"}, "NSA_KERNEL_SGLANG is 'on', must be 0, functions or 1"),
        (child_without_cuda, {}, "no CUDA device"),
        (child_on_rocm, {}, "torch is built for ROCm"),
        (
            child_with_an_unknown_signature,
            {},
            f"{PAD}.seqlens_expand_triton has an unknown signature: (extend_seq_lens",
        ),
        (child_with_a_function_gone, {}, f"{METADATA}.fused_dsa_target_verify_metadata cannot be found"),
        (child_with_a_module_that_fails, {}, f"{METADATA}.fused_dsa_decode_metadata cannot be found (no driver)"),
    ],
    ids=[
        "switched_off",
        "unknown_word",
        "no_cuda_device",
        "rocm",
        "unknown_signature",
        "function_gone",
        "module_fails",
    ],
)
def test_sglang_stays_untouched_and_the_log_says_why(sglang_folder, child, environment, reason):
    log = in_child(sglang_folder, child, **environment)
    [line] = said(log)
    assert line.startswith(f"nsa_kernel leaves SGLang's metadata functions in place: {reason}")


def child_deselected(folder):
    stays_untouched(folder)
    print("untouched")


def test_sglangs_own_selection_of_plugins_holds(sglang_folder):
    log = in_child(sglang_folder, child_deselected, SGLANG_PLUGINS="another")
    assert "untouched" in log
    assert said(log) == []


def child_logs_late(folder):
    """SGLang's worker processes set up logging after they load plug-ins."""
    import_sglang(folder)
    load_plugins()
    log_to_stdout()
    print("started")
    for _ in range(2):
        sys.modules[PAD].seqlens_expand_triton(int32([2, 3]), int32([10, 15]), 5, 3)


def test_the_log_line_waits_for_the_log(sglang_folder):
    log = in_child(sglang_folder, child_logs_late)
    assert log.startswith("started\nnsa_kernel.sglang> ")
    assert len(said(log)) == 1


# What the functions do.


class Case:
    """A random call of one of the four functions: its arguments, and what SGLang defines of its outputs.

    Five seeds in a row share what SGLang compiles kernels for. `fixed` are attributes that are not left to chance.
    """

    def __init__(self, seed, device, **fixed):
        self.device = device
        self.named = f"seed {seed}, {fixed}"
        shared, self.rng = random.Random(seed // 5), random.Random(seed)
        self.name = shared.choice(list(NAMES))
        self.bs = shared.choice([0, 1, 2, 3, 5, 8, 17, 33, 64, 100])
        self.n = shared.choice([1, 2, 3, 4, 8])
        self.page_size = shared.choice([1, 16, 64])
        self.width = shared.choice([1, 63, 128, 200, 517])
        self.topk = shared.choice([1, 64, 300, 2048])
        self.static = shared.random() < 0.5
        self.wide = self.page_size == 1 or shared.random() < 0.6
        self.ctx = shared.random() < 0.5
        self.oversize = shared.choice([0, 0, 3])
        self.same_tables = shared.random() < 0.5
        self.total = None
        self.length_dtypes = [shared.choice([torch.int32, torch.int64]) for _ in range(3)]
        self.strides = [shared.choice([1, 1, 2]) for _ in range(3)]
        vars(self).update(fixed)
        self.outputs, self.live = {}, {}
        self.arguments = self.expand() if self.name == "seqlens_expand_triton" else self.fused()

    def lengths(self, values, which=0):
        """An input of int32 or int64 elements, some of them strided."""
        stride = self.strides[which]
        array = torch.zeros(max(len(values), 1) * stride, dtype=self.length_dtypes[which])[::stride][: len(values)]
        array.copy_(torch.tensor(values, dtype=torch.int64))
        base = torch.zeros(array.numel() * stride + 1, dtype=array.dtype, device=self.device)
        view = base[: array.numel() * stride : stride]
        return view.copy_(array)

    def output(self, name, size):
        self.outputs[name] = torch.full((size + self.oversize,), UNTOUCHED, dtype=torch.int32, device=self.device)
        return self.outputs[name]

    def table(self, name, rows, cols, live):
        """A table inside a wider one; `live` has the number of defined columns of each row."""
        whole = (rows + self.oversize, cols + self.rng.choice([0, 0, 5]))
        self.outputs[name] = torch.full(whole, UNTOUCHED, dtype=torch.int32, device=self.device)
        self.live[name] = live
        return self.outputs[name]

    def fused(self):
        rng, bs, n, width = self.rng, self.bs, self.n, self.width
        decode, verify = (self.name == f"fused_dsa_{mode}_metadata" for mode in ("decode", "target_verify"))
        most = width - n if verify else width
        seq_lens = [rng.choice([1, max(most, 0), rng.randint(0, max(most, 0))]) for _ in range(bs)]
        kv = [s + n for s in seq_lens] if verify else seq_lens
        q = [1 if decode else n] * bs
        if not decode and not verify and not self.static:
            q = [rng.randint(0, n) for _ in range(bs)]
        rows = sum(q)
        if not decode and not verify:
            rows = rng.choice([rows, rows, rng.randint(0, rows), 0]) if self.total is None else self.total
        requests = [b for b in range(bs) for _ in range(q[b])][:rows]
        max_len = rng.choice([width, width, rng.randint(1, width)])
        pool = bs + 3
        slots = torch.randint(0, 1 << 30, (pool, width + 2), dtype=torch.int32, generator=self.generator())
        arguments = {
            "seq_lens": self.lengths(seq_lens, 0),
            "req_pool_indices": self.lengths([rng.randrange(pool) for _ in range(bs)], 1),
            "req_to_token": slots.to(self.device)[:, :width],
            "cache_seqlens": self.output("cache_seqlens", bs),
            "cu_seqlens_k": self.output("cu_seqlens_k", bs + 1),
            "page_table_1": None,
            "dsa_cache_seqlens": self.output("dsa_cache_seqlens", rows),
            "dsa_cu_seqlens_k": self.output("dsa_cu_seqlens_k", rows + 1),
            "real_page_table": None,
            "bs": bs,
            "max_len" if decode else "max_seqlen_k": max_len,
            "dsa_index_topk": self.topk,
            "physical_page_size": self.page_size,
        }
        seen = [min(kv[b], max_len) for b in requests]
        if self.wide:
            arguments["page_table_1"] = self.table("page_table_1", rows, width, seen)
        if self.page_size == 1 and self.same_tables:  # as SGLang's backend has it
            arguments["real_page_table"] = arguments["page_table_1"]
        if self.page_size > 1:
            pages = [-(-k // self.page_size) for k in seen]
            arguments["real_page_table"] = self.table("real_page_table", rows, -(-width // self.page_size), pages)
        if not decode:
            arguments["seqlens_expanded"] = self.output("seqlens_expanded", rows)
        if verify:
            arguments["next_n"] = n
            if self.ctx:
                self.outputs["paged_mqa_ctx_lens_2d"] = torch.zeros(bs, n, dtype=torch.int32, device=self.device)
                arguments["paged_mqa_ctx_lens_2d"] = self.outputs["paged_mqa_ctx_lens_2d"]
        if not decode and not verify:
            arguments |= {"extend_seq_lens": self.lengths(q, 2), "total_len": rows, "max_extend_len": n}
            arguments |= {"max_total_len": bs * n, "static_extend_len": self.static}
            if rows == 0 and bs:  # SGLang copies whole tensors then
                arguments["cache_seqlens"] = self.outputs["cache_seqlens"] = self.outputs["cache_seqlens"][:bs]
        return arguments

    def expand(self):
        q = [self.rng.randint(0, self.n) for _ in range(self.bs)]
        k = [self.rng.randint(0, self.width) for _ in range(self.bs)]
        self.strides = [1, 1, 1]
        lengths = {"extend_seq_lens": self.lengths(q, 0), "seq_lens": self.lengths(k, 1)}
        return lengths | {"total_len": sum(q), "max_q_len": self.n}

    def generator(self):
        return torch.Generator().manual_seed(self.rng.getrandbits(31))

    def run(self, module):
        """Calls the function of `module`; returns the defined values, and every element that nothing may write."""
        for buffer in self.outputs.values():
            buffer.fill_(UNTOUCHED)
        returned = getattr(module, self.name)(**self.arguments)
        results = {name: buffer.to("cpu", copy=True) for name, buffer in self.outputs.items()}
        for name, live in self.live.items():
            results[name] = [row[:length] for row, length in zip(results[name], live, strict=False)]
        results["returned"] = returned if returned is None else returned.cpu()
        return results

    def beyond(self, name):
        """What lies beyond the live prefix of each row of a table."""
        live = [*self.live[name], *[0] * self.outputs[name].shape[0]]
        return [row[length:] for row, length in zip(self.outputs[name].cpu(), live, strict=False)]


def edge_cases(device):
    """What chance seldom draws: no request, no token, one table alone, pages of one slot."""
    fused = [name for name in NAMES if name != "seqlens_expand_triton"]
    pages = {"page_size": 64, "wide": True}
    tables = [pages, pages | {"wide": False}]
    tables += [{"page_size": 1, "wide": True, "same_tables": same} for same in (False, True)]
    requests = [{"bs": 0}, {"bs": 0, "oversize": 3}, {"bs": 1, "n": 1}, {"bs": 3, "n": 2, "oversize": 0}]
    for seed, (name, of_tables, of_requests) in enumerate(itertools.product(fused, tables, requests)):
        yield Case(seed, device, name=name, width=200, ctx=seed % 2 == 0, **of_tables, **of_requests)
    extend = {"name": "fused_dsa_draft_extend_metadata", "bs": 3, "n": 2, "width": 200}
    for static, total in itertools.product((False, True), (0, 1, None)):
        yield Case(total or 0, device, **extend, **pages, static=static, total=total)
    yield Case(0, device, **extend, **pages, static=True, total=6)
    for bs in (0, 1, 3):
        yield Case(bs, device, name="seqlens_expand_triton", bs=bs)


def compare(theirs, device, cases):
    """Both functions on the same inputs; nothing but live prefixes may be written by ours."""
    for case in cases:
        expected = case.run(theirs)
        got = case.run(plugin)
        torch.testing.assert_close(got, expected, msg=lambda text, case=case: f"{case.named}: {text}")
        for name in case.live:
            if any(bool((tail != UNTOUCHED).any()) for tail in case.beyond(name)):
                raise AssertionError(f"{case.named}: {name} is written beyond its live prefixes")


def child_compares_with_interpreted_kernels(folder):
    """SGLang's files alone, their `assert tensor.is_cuda` switched off by -O, their kernels interpreted on the CPU."""
    compare(
        sglang_functions(
            Path(folder) / (METADATA.replace(".", "/") + ".py"), Path(folder, "sglang", *PAD.split(".")[1:-1], "pad.py")
        ),
        "cpu",
        [*edge_cases("cpu"), *(Case(seed, "cpu") for seed in range(60))],
    )
    print("equal")


def sglang_functions(*files):
    """A namespace with SGLang's functions, from these files alone."""
    functions = types.SimpleNamespace()
    for path in files:
        spec = importlib.util.spec_from_file_location(f"peer_{path.stem}", path)
        sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for name in NAMES.keys() & vars(module).keys():
            setattr(functions, name, getattr(module, name))
    return functions


def test_equal_to_sglangs_interpreted_kernels(sglang_folder):
    assert in_child(sglang_folder, child_compares_with_interpreted_kernels, "-O", TRITON_INTERPRET="1") == "equal\n"


@pytest.mark.cuda
def test_equal_to_sglangs_kernels(device):
    pytest.importorskip("triton")
    files = [PEERS / "sglang_dsa_metadata.py", PEERS / "sglang_pad.py"]
    if not all(path.is_file() for path in files):
        pytest.skip(f"SGLang's {files[0].name} and {files[1].name} are not in {PEERS}")
    compare(sglang_functions(*files), device, [*edge_cases(device), *(Case(seed, device) for seed in range(300))])


@pytest.fixture
def verify(device):
    """A target-verify case with every output."""
    return next(
        case
        for case in (Case(seed, device) for seed in range(0, 10_000, 5))
        if case.name == "fused_dsa_target_verify_metadata" and case.bs > 1 and case.wide and case.page_size > 1
    )


def test_tensors_are_let_go_at_once(verify):
    gc.disable()
    try:
        verify.run(plugin)
        held = [weakref.ref(value) for value in verify.arguments.values() if isinstance(value, torch.Tensor)]
        verify.arguments.clear()
        verify.outputs.clear()
        assert [ref() for ref in held] == [None] * len(held)
    finally:
        gc.enable()


def test_a_tensor_that_moved_is_read_and_written_where_it_is_now(verify):
    expected = verify.run(plugin)
    for value in verify.arguments.values():
        if isinstance(value, torch.Tensor):
            value.set_(value.clone())
    again = verify.run(plugin)
    torch.testing.assert_close(again, expected)


def test_int32_lengths_of_a_decode_step_are_the_lengths_that_it_keeps(device):
    """SGLang makes `cache_seqlens` by `seq_lens.to(torch.int32)`, which is the same buffer then."""
    buffer = torch.tensor([5, 0, 9], dtype=torch.int32, device=device)
    outputs = {name: torch.full((4,), UNTOUCHED, dtype=torch.int32, device=device) for name in ("cu", "dsa", "dsa_cu")}
    table = torch.full((3, 4), UNTOUCHED, dtype=torch.int32, device=device)
    plugin.fused_dsa_decode_metadata(
        seq_lens=buffer[:3],
        req_pool_indices=torch.tensor([1, 0, 1], device=device),
        req_to_token=torch.arange(20, dtype=torch.int32, device=device).reshape(2, 10),
        cache_seqlens=buffer.to(torch.int32),
        cu_seqlens_k=outputs["cu"],
        page_table_1=None,
        dsa_cache_seqlens=outputs["dsa"],
        dsa_cu_seqlens_k=outputs["dsa_cu"],
        real_page_table=table,
        bs=3,
        max_len=10,
        dsa_index_topk=7,
        physical_page_size=3,
    )
    assert buffer.tolist() == [5, 0, 9]
    assert outputs["cu"].tolist() == [0, 5, 5, 14]
    assert outputs["dsa"].tolist() == [5, 0, 7, UNTOUCHED]
    assert outputs["dsa_cu"].tolist() == [0, 5, 5, 12]
    u = UNTOUCHED
    assert table.tolist() == [[3, 4, u, u], [u] * 4, [3, 4, 5, u]]


@pytest.mark.parametrize(("page_size", "absent"), [(1, "page_table_1"), (64, "real_page_table")])
def test_a_table_that_sglang_needs_is_asked_for(verify, page_size, absent):
    arguments = verify.arguments | {"physical_page_size": page_size, absent: None}
    with pytest.raises(ValueError, match=f"{absent} is None, must be given when physical_page_size is {page_size}"):
        plugin.fused_dsa_target_verify_metadata(**arguments)
