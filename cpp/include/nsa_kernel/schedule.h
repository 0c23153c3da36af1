// Schedules: how the consumers of attention metadata divide its rows among multiprocessors. The KV entries of a row are
// cut into splits. Consecutive splits are the work of a slot, one multiprocessor or a cluster of them. All slots have
// equally much; what remains of the division is dealt to some of them, a unit each.
#pragma once

namespace nsa_kernel {

/// Whose paged-MQA-logits kernel reads the schedule.
enum class ScheduleFormat {
  deepgemm_sm90,       ///< splits of 256 KV entries; the remainder goes to the last slots
  deepgemm_sm100_256,  ///< splits of 256 KV entries; the remainder goes to the first slots
  deepgemm_sm100_384,  ///< splits of 384 KV entries, weighed by the row's tokens; the remainder likewise
};

/// What a row of the context lengths is that the consumer reads.
enum class ScheduleRows {
  token,    ///< one row a token
  request,  ///< one row a request, of the length of its last token
};

/// Which top-k kernel reads the plan.
enum class TopkPlanFormat { sglang_topk_v2_sm90, sglang_topk_v2_sm100 };

}  // namespace nsa_kernel
