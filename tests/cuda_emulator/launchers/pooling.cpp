#include "cuda/pooling.h"

namespace fastnn::cpu {

const char* max_pool_forward(const MaxPoolParams& p) {
  cuda::max_pool_forward(p, nullptr);
  return "cuda";
}
const char* max_pool_backward(const MaxPoolBackwardParams& p) {
  cuda::max_pool_backward(p, nullptr);
  return "cuda";
}
const char* avg_pool_forward(const AvgPoolParams& p) {
  cuda::avg_pool_forward(p, nullptr);
  return "cuda";
}
const char* avg_pool_backward(const AvgPoolBackwardParams& p) {
  cuda::avg_pool_backward(p, nullptr);
  return "cuda";
}
void max_pool_indices(const MaxPoolIndicesParams& p) {
  cuda::max_pool_indices(p, nullptr);
}

}  // namespace fastnn::cpu
