// The algorithms of pooling in the order in which they are tried; the last one always applies.
#pragma once
#include <span>

#include "fastnn/pooling.h"

namespace fastnn::cpu {

template <class Params>
struct PoolAlgorithm {
  const char* name;
  bool (*applicable)(const Params&);
  void (*run)(const Params&);
};

template <class Params>
std::span<const PoolAlgorithm<Params>> pool_algorithms();
template <>
std::span<const PoolAlgorithm<MaxPoolParams>> pool_algorithms<MaxPoolParams>();
template <>
std::span<const PoolAlgorithm<MaxPoolBackwardParams>> pool_algorithms<MaxPoolBackwardParams>();
template <>
std::span<const PoolAlgorithm<AvgPoolParams>> pool_algorithms<AvgPoolParams>();
template <>
std::span<const PoolAlgorithm<AvgPoolBackwardParams>> pool_algorithms<AvgPoolBackwardParams>();

template <class Params>
const PoolAlgorithm<Params>& choose_pool_algorithm(const Params& p) {
  const auto list = pool_algorithms<Params>();
  for (const auto& algorithm : list)
    if (algorithm.applicable(p)) return algorithm;
  return list.back();
}

}  // namespace fastnn::cpu
