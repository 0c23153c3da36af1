// What every op refuses of a schedule.
#pragma once

#include <cstdint>

#include "nsa_kernel/schedule.h"
#include "require.h"

namespace nsa_kernel {

/// `counts` is the array of token counts that makes a batch ragged; null of one that is not.
template <class Args>
void check_schedule(const Require& require, const Args& args, const char* counts) {
  const bool by_request = args.schedule_rows == ScheduleRows::request;
  if (!args.schedule) {
    require(!args.schedule_format, "schedule_format is given without schedule, must be absent");
    require(!args.schedule_atoms, "schedule_atoms is given without schedule, must be absent");
    return;
  }
  require(args.schedule_format.has_value(), "schedule_format is absent, must be given with schedule");
  const ScheduleFormat format = *args.schedule_format;
  require(format == ScheduleFormat::deepgemm_sm90 || format == ScheduleFormat::deepgemm_sm100_256 ||
              format == ScheduleFormat::deepgemm_sm100_384,
          "schedule_format is ", static_cast<int64_t>(format),
          ", must be deepgemm_sm90, deepgemm_sm100_256 or deepgemm_sm100_384");
  require(by_request || args.schedule_rows == ScheduleRows::token, "schedule_rows is ",
          static_cast<int64_t>(args.schedule_rows), ", must be token or request");
  require.pairs("schedule", args.schedule);
  require(args.schedule.rows >= 2, "schedule has ", args.schedule.rows, " rows, must have at least 2");
  require(!by_request || counts == nullptr || format == ScheduleFormat::deepgemm_sm100_384,
          "schedule_rows is request with ", counts, ", must be token but in deepgemm_sm100_384");
  if (!args.schedule_atoms) return;
  require(by_request && format == ScheduleFormat::deepgemm_sm90,
          "schedule_atoms is given, must be absent but in deepgemm_sm90 with rows by request");
  require(*args.schedule_atoms >= 1, "schedule_atoms is ", *args.schedule_atoms, ", must be at least 1");
}

}  // namespace nsa_kernel
