#include "nsa_kernel/draft_extend.h"

#include "check_arrays.h"
#include "draft_extend_arguments.h"
#include "draft_extend_batch.h"
#include "launch.h"
#include "require.h"
#include "rules.h"

namespace nsa_kernel {
namespace {

constexpr Require require(kDraftExtendArguments.op);

DraftExtend checked(const DraftExtend& given, Variant variant) {
  DraftExtend buffers = given;
  check_arrays(require, kDraftExtendArguments, buffers);
  require(word_of(variant) != nullptr, "variant is ", static_cast<int64_t>(variant),
          ", must be basic, adaptive or optimized");
  require.countable("extend_seq_lens", buffers.extend_seq_lens.size);
  require.countable("out_seqlens_expanded", buffers.out_seqlens_expanded.size);
  require.countable("out_nsa_cache_seqlens", buffers.out_nsa_cache_seqlens.size);
  require.same_size("seq_lens", buffers.seq_lens, "extend_seq_lens", buffers.extend_seq_lens);
  require.not_negative("nsa_index_topk", buffers.nsa_index_topk);
  require.at_least("out_num_tokens", buffers.out_num_tokens, 1);
  buffers.nsa_index_topk = rules::min(buffers.nsa_index_topk, rules::kMaxStored);
  return buffers;
}

bool needs_workspace(Variant variant) { return variant != Variant::optimized; }

int64_t fill_on_cpu(const DraftExtend& buffers) {
  const View<int32_t>& expanded = buffers.out_seqlens_expanded;
  const View<int32_t>& clipped = buffers.out_nsa_cache_seqlens;
  const DraftExtendBatch batch = batch_of(buffers);
  const int32_t topk = static_cast<int32_t>(buffers.nsa_index_topk);
  int32_t total = 0;
  for (int32_t b = 0; b < batch.bs; ++b) {
    const auto request = batch.read(b);
    const int32_t tokens = batch.tokens(request), first = batch.first_seqlen(request);
    const int32_t held = batch.held_tokens(total, tokens);
    for (int32_t j = 0; j < held; ++j) {
      const int32_t seqlen = rules::expanded_seqlen(first, j);
      expanded.data[total + j] = seqlen;
      clipped.data[total + j] = rules::clipped_seqlen(seqlen, topk);
    }
    total = rules::saturating_add(total, tokens);
  }
  if (buffers.out_num_tokens) *buffers.out_num_tokens.data = total;
  return total;
}

void fill(const DraftExtend& buffers, Variant variant, int32_t* workspace, Stream stream) {
  if (buffers.device.type == DeviceType::cuda) {
    cuda::fill_draft_extend(buffers, variant, workspace, stream);
  } else {
    fill_on_cpu(buffers);
  }
}

}  // namespace

DraftExtendPlan::DraftExtendPlan(const DraftExtend& buffers, Variant variant)
    : buffers_(checked(buffers, variant)), variant_(variant) {
  if (buffers.device.type == DeviceType::cuda && needs_workspace(variant)) {
    workspace_ = cuda::allocate_workspace(buffers.device, buffers.extend_seq_lens.size);
  }
}

void DraftExtendPlan::run(Stream stream) const { fill(buffers_, variant_, workspace_.get(), stream); }

void fill_draft_extend_metadata(const DraftExtend& buffers, Variant variant, Stream stream) {
  fill(checked(buffers, variant), variant, nullptr, stream);
}

int64_t fill_draft_extend_metadata_and_count(const DraftExtend& buffers, Variant variant, Stream stream) {
  const DraftExtend args = checked(buffers, variant);
  return args.device.type == DeviceType::cuda ? cuda::fill_draft_extend_and_count(args, variant, stream)
                                              : fill_on_cpu(args);
}

}  // namespace nsa_kernel
