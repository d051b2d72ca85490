// A fresh stream of random words (fastnn/philox.h) from torch's generators, so that torch.manual_seed,
// fork_rng and checkpoint rule it.
#pragma once
#include <ATen/CPUGeneratorImpl.h>

#include <mutex>

#include "ops/front.h"

namespace fastnn::ops {

struct Stream {
  int64_t seed, offset;
};

inline Stream next_stream() {
  const at::Generator generator = at::detail::getDefaultCPUGenerator();
  auto* cpu = at::check_generator<at::CPUGeneratorImpl>(generator);
  const std::lock_guard lock(cpu->mutex_);
  // Braces: seed first.
  return {static_cast<int64_t>(cpu->random64()), static_cast<int64_t>(cpu->random64())};
}

// The same from the CUDA generator of the device of `like`, in its memory: a captured graph draws anew.
inline Tensor random_stream(const Tensor& like) {
  static const auto op = handle<Tensor(const Tensor&)>("fastnn::_random_stream");
  return op.call(like);
}

}  // namespace fastnn::ops
