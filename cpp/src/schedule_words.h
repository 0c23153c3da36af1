// The words of schedules in Python and in messages.
#pragma once

#include "arguments.h"
#include "nsa_kernel/schedule.h"

namespace nsa_kernel {

template <>
inline constexpr std::array<Word<ScheduleFormat>, 3> kWords<ScheduleFormat>{
    {{"deepgemm_sm90", ScheduleFormat::deepgemm_sm90},
     {"deepgemm_sm100_256", ScheduleFormat::deepgemm_sm100_256},
     {"deepgemm_sm100_384", ScheduleFormat::deepgemm_sm100_384}}};

template <>
inline constexpr std::array<Word<ScheduleRows>, 2> kWords<ScheduleRows>{
    {{"token", ScheduleRows::token}, {"request", ScheduleRows::request}}};

}  // namespace nsa_kernel
