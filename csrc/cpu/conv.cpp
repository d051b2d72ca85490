// Which algorithm computes a convolution, and the gradient of its bias.
#include "fastnn/conv.h"

#include <iterator>

#include "cpu/conv/algorithms.h"
#include "cpu/conv/patch.h"
#include "cpu/kernels/conv.h"
#include "cpu/parallel.h"

namespace fastnn::cpu {
namespace {

bool depthwise(const ConvGeometry& p) {
  return p.c == p.g;
}

bool pointwise(const ConvGeometry& p) {
  for (int d = 0; d < 3; ++d) {
    if (p.kernel[d] != 1 || p.stride[d] != 1 || p.padding[d] != 0) return false;
  }
  return true;
}

// One output position that reads the whole input: images must be the rows of a matrix product then.
bool whole_input(const ConvGeometry& p) {
  if (p.n == 1 || depthwise(p)) return false;
  for (int d = 0; d < 3; ++d) {
    if (p.out[d] != 1 || p.padding[d] != 0 || p.kernel[d] != p.in[d] ||
        (p.dilation[d] != 1 && p.kernel[d] != 1))
      return false;
  }
  return true;
}

// The offsets of a patch are 32-bit: channels x the smallest block must stay below.
bool fits_patch(const ConvGeometry& p) {
  int64_t reach = (p.c > p.k ? p.c : p.k) / p.g;
  for (int d = 0; d < 3; ++d)
    reach *= p.kernel[d] * p.dilation[d] + 2 * p.stride[d] + (d == 2 ? 256 * p.stride[d] : 0);
  return reach < INT32_MAX;
}

// Registers along output rows pay where registers of output channels would be mostly empty, or where
// transposing dy costs as much as the few products made of it.
bool few_products(const ConvGeometry& p) {
  const int lanes = p.dtype == DType::kFloat64 ? conv_kernels().f64.lanes : conv_kernels().f32.lanes;
  const int64_t steps = p.c / p.g * p.kernel[0] * p.kernel[1] * p.kernel[2];
  return p.k / p.g <= lanes / 2 || (steps <= 64 && p.out[2] >= lanes);
}

template <class P>
constexpr ConvAlgorithm<P> kProduct = {"matrix product", [](const P& p) { return whole_input(p); },
                                       conv_product};
template <class P>
constexpr ConvAlgorithm<P> kDepthwise = {
    "depthwise", [](const P& p) { return depthwise(p) && fits_patch(p); }, conv_shift};
template <class P>
constexpr ConvAlgorithm<P> kPointwise = {
    "pointwise", [](const P& p) { return pointwise(p) && fits_patch(p); }, conv_shift};
template <class P>
constexpr ConvAlgorithm<P> kWinograd = {
    "winograd", [](const P& p) { return winograd_pays(p) && fits_patch(p); }, conv_winograd};
template <class P>
constexpr ConvAlgorithm<P> kShift = {"shifted patch", [](const P& p) { return fits_patch(p); }, conv_shift};
template <class P>
constexpr ConvAlgorithm<P> kReference = {"reference", [](const P&) { return true; }, conv_reference};

using Forward = ConvForwardParams;
constexpr ConvAlgorithm<Forward> kForward[] = {kProduct<Forward>,  kDepthwise<Forward>, kPointwise<Forward>,
                                               kWinograd<Forward>, kShift<Forward>,     kReference<Forward>};

using BackwardData = ConvBackwardDataParams;
constexpr ConvAlgorithm<BackwardData> kBackwardData[] = {kProduct<BackwardData>,   kDepthwise<BackwardData>,
                                                         kPointwise<BackwardData>, kWinograd<BackwardData>,
                                                         kShift<BackwardData>,     kReference<BackwardData>};

using BackwardWeight = ConvBackwardWeightParams;
constexpr ConvAlgorithm<BackwardWeight> kBackwardWeight[] = {
    kProduct<BackwardWeight>,
    kWinograd<BackwardWeight>,
    {"dot products", [](const BackwardWeight& p) { return fits_patch(p) && few_products(p); }, conv_dot},
    {"outer products", [](const BackwardWeight& p) { return fits_patch(p); }, conv_outer},
    kReference<BackwardWeight>,
};

template <class P>
const char* run_first(const ConvAlgorithms<P>& algorithms, const P& p) {
  for (const ConvAlgorithm<P>& algorithm : algorithms) {
    if (algorithm.applicable(p)) {
      algorithm.run(p);
      return algorithm.name;
    }
  }
  return "";
}

template <class T>
void backward_bias(const ConvBackwardBiasParams& p) {
  const auto& kernels = conv_kernels_of<T>();
  parallel_for(p.channels, ceil_div(kGrain, p.n * p.plane + 1), [&](int64_t first, int64_t last) {
    for (int64_t c = first; c < last; ++c) {
      double sum = 0;
      for (int64_t n = 0; n < p.n; ++n) {
        sum += kernels.sum(static_cast<const T*>(p.dy) + (n * p.channels + c) * p.plane, p.plane);
      }
      static_cast<T*>(p.db)[c] = static_cast<T>(sum);
    }
  });
}

}  // namespace

ConvAlgorithms<ConvForwardParams> conv_forward_algorithms() {
  return {kForward, std::size(kForward)};
}
ConvAlgorithms<ConvBackwardDataParams> conv_backward_data_algorithms() {
  return {kBackwardData, std::size(kBackwardData)};
}
ConvAlgorithms<ConvBackwardWeightParams> conv_backward_weight_algorithms() {
  return {kBackwardWeight, std::size(kBackwardWeight)};
}

const char* conv_forward(const ConvForwardParams& p) {
  return run_first(conv_forward_algorithms(), p);
}
const char* conv_backward_data(const ConvBackwardDataParams& p) {
  return run_first(conv_backward_data_algorithms(), p);
}
const char* conv_backward_weight(const ConvBackwardWeightParams& p) {
  return run_first(conv_backward_weight_algorithms(), p);
}

void conv_backward_bias(const ConvBackwardBiasParams& p) {
  p.dtype == DType::kFloat64 ? backward_bias<double>(p) : backward_bias<float>(p);
}

}  // namespace fastnn::cpu
