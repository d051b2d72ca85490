// A place in the stream of random numbers (fastnn/dropout.h), drawn from torch's CPU generator: so
// torch.manual_seed, fork_rng and checkpoint rule it.
#pragma once
#include <ATen/CPUGeneratorImpl.h>

#include <mutex>

namespace fastnn::ops {

struct RandomPlace {
  int64_t seed, offset;

  RandomPlace() {
    const at::Generator generator = at::detail::getDefaultCPUGenerator();
    auto* cpu = at::check_generator<at::CPUGeneratorImpl>(generator);
    const std::lock_guard lock(cpu->mutex_);
    seed = static_cast<int64_t>(cpu->random64());
    offset = static_cast<int64_t>(cpu->random64());
  }
};

}  // namespace fastnn::ops
