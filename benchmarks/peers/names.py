"""The names of rows: results are read by them, also on a machine that cannot run the rows."""

from peers.fetch import VERSION

SGLANG_FUSED = f"SGLang {VERSION} fused"
SGLANG_EXPAND = f"SGLang {VERSION} seqlens_expand_triton"
BEFORE, AFTER = f"SGLang {VERSION}", "nsa_kernel.sglang"
TRITON_AFTER_ITEM = "Triton after cumsum and item"
PYTHON_LOOP = "Python loop"
TORCH_OPERATORS = "torch operators"
LAUNCH, NODE, COPY = "empty launch", "empty graph node", "copy of the same bytes"
CALL, PLAN, COUNT = "fill_draft_extend_metadata", "DraftExtendPlan.run", "fill_draft_extend_metadata_cuda"
REPLAY_CALL, REPLAY_PLAN = "fill_replay_metadata", "ReplayPlan.run"
WITH_SCHEDULE, SCHEDULE = f"{REPLAY_PLAN}, with schedule and top-k plan", f"{REPLAY_PLAN}, a schedule alone"
TRITON_SCHEDULE = "a schedule by a Triton kernel, then a copy"
FOUND_AGAIN, BOUND_ANEW, SAFE_KEY = "call, its plan found again", "call, its plan bound anew", "key of its tensors"
IMPORT, FIVE_ARRAYS, FIVE_DLPACK = "import nsa_kernel", "five torch arrays", "five Tensor.__dlpack__"
