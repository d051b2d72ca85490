// Which algorithm computes a convolution, and the gradient of its bias.
#include "fastnn/conv.h"

#include <algorithm>
#include <cstddef>
#include <vector>

#include "cpu/conv/algorithms.h"
#include "cpu/conv/benchmark.h"
#include "cpu/conv/patch.h"
#include "cpu/kernels/conv.h"
#include "cpu/kernels/conv_last.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

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

int64_t lanes_of(const ConvGeometry& p) {
  return p.dtype == DType::kFloat64 ? conv_kernels().f64.lanes : conv_kernels().f32.lanes;
}

// Registers along output rows pay where registers of output channels would be emptier still, or where
// transposing dy costs as much as the few products made of it: measured, as many as a register has lanes.
bool few_products(const ConvGeometry& p) {
  const int64_t lanes = lanes_of(p), kg = p.k / p.g, row = p.out[2];
  const int64_t steps = p.c / p.g * p.kernel[0] * p.kernel[1] * p.kernel[2];
  return 2 * kg <= std::min(lanes, row) ||
         (row >= lanes && steps * kg <= lanes * ceil_div(kg, lanes) * lanes);
}

template <class P>
bool always(const P&) {
  return true;
}
template <class P>
bool fits(const P& p) {
  return fits_patch(p);
}
template <class P>
bool winograd_does_pay(const P& p) {
  return winograd_pays(p);
}

template <class P>
constexpr ConvAlgorithm<P> kProduct = {"matrix product", [](const P& p) { return whole_input(p); }, always,
                                       conv_product};
template <class P>
constexpr ConvAlgorithm<P> kDepthwise = {
    "depthwise", [](const P& p) { return depthwise(p) && fits_patch(p); }, always, conv_shift};
template <class P>
constexpr ConvAlgorithm<P> kPointwise = {
    "pointwise", [](const P& p) { return pointwise(p) && fits_patch(p); }, always, conv_shift};
template <class P>
constexpr ConvAlgorithm<P> kWinograd = {"winograd",
                                        [](const P& p) { return winograd_applicable(p) && fits_patch(p); },
                                        winograd_does_pay, conv_winograd};
template <class P>
constexpr ConvAlgorithm<P> kShift = {"shifted patch", fits, always, conv_shift};
template <class P>
constexpr ConvAlgorithm<P> kReference = {"reference", always, always, conv_reference};

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
    {"dot products", fits, [](const BackwardWeight& p) { return few_products(p); }, conv_dot},
    {"outer products", fits, always, conv_outer},
    kReference<BackwardWeight>,
};

// With channels last registers hold channels, which pays from two thirds of their lanes on; planes of short
// rows fill them no better than half.
bool fills_registers(const ConvGeometry& p, int64_t channels) {
  const int64_t lanes = lanes_of(p), used = channels / p.g;
  return 3 * used >= 2 * lanes || (2 * used >= lanes && p.out[2] < lanes);
}
bool fills_registers(const Forward& p) {
  return fills_registers(p, p.k);
}
bool fills_registers(const BackwardData& p) {
  return fills_registers(p, p.c);
}
bool fills_registers(const BackwardWeight& p) {
  return fills_registers(p, std::max(p.c, p.k));
}

template <class P>
constexpr ConvAlgorithm<P> kLastProduct = {
    "matrix product", [](const P& p) { return p.g == 1 && whole_input(p); }, always, conv_product};
template <class P>
constexpr ConvAlgorithm<P> kLastDepthwise = {"depthwise, channels last",
                                             [](const P& p) { return depthwise(p) && p.k == p.c; }, always,
                                             conv_last_depthwise};
template <class P>
constexpr ConvAlgorithm<P> kLastWinograd = {"winograd", [](const P& p) { return winograd_applicable(p); },
                                            winograd_does_pay, conv_winograd};
template <class P>
constexpr ConvAlgorithm<P> kLastDense = {"channels last", always,
                                         [](const P& p) { return fills_registers(p); }, conv_last_dense};
template <class P>
constexpr ConvAlgorithm<P> kLastPlanes = {"copied to planes", always, always, conv_last_planes};

template <class P>
constexpr ConvAlgorithm<P> kLast[] = {kLastProduct<P>, kLastDepthwise<P>, kLastWinograd<P>,
                                      kLastDense<P>,   kLastPlanes<P>,    kReference<P>};

template <class P>
const char* run_first(const ConvAlgorithms<P>& algorithms, const P& p) {
  for (const ConvAlgorithm<P>& algorithm : algorithms) {
    if (algorithm.applicable(p) && algorithm.pays(p)) {
      algorithm.run(p);
      return algorithm.name;
    }
  }
  return "";
}

// The default first, then the others that give a right result; the plain loops only if nothing else does.
template <class P>
std::vector<const ConvAlgorithm<P>*> candidates(const ConvAlgorithms<P>& algorithms, const P& p) {
  std::vector<const ConvAlgorithm<P>*> found;
  for (const bool pays : {true, false}) {
    for (const ConvAlgorithm<P>& algorithm : algorithms) {
      if (!algorithm.applicable(p) || algorithm.pays(p) != pays) continue;
      if (algorithm.run == static_cast<void (*)(const P&)>(conv_reference) && !found.empty()) continue;
      const bool known = std::any_of(found.begin(), found.end(), [&](const auto* other) {
        return other->run == algorithm.run;  // under another name
      });
      if (!known) found.push_back(&algorithm);
    }
  }
  return found;
}

template <class P>
const char* run(ConvDirection direction, const ConvAlgorithms<P>& algorithms, const P& p) {
  // Within a parallel loop of another algorithm threads would wait for each other's measurements.
  if (!conv_benchmark_enabled() || omp_in_parallel()) return run_first(algorithms, p);
  const auto found = candidates(algorithms, p);
  std::vector<const char*> names;
  for (const auto* algorithm : found) names.push_back(algorithm->name);
  const auto* fastest = found[fastest_conv(direction, p, names, [&](size_t i) { found[i]->run(p); })];
  fastest->run(p);
  return fastest->name;
}

// Pixels in a chain of additions, and chains whose sums are added up in double.
constexpr int64_t kBiasChain = 256;
constexpr int64_t kBiasSplits = 64;

template <class T>
void backward_bias_last(const ConvBackwardBiasParams& p) {
  const int64_t pixels = p.n * p.plane, splits = pixels < kBiasSplits ? pixels : kBiasSplits;
  const Scratch<double> sums(splits * p.channels);
  parallel_for(splits, ceil_div(kGrain, pixels / splits * p.channels), [&](int64_t first, int64_t last) {
    const Scratch<T> chain(p.channels);
    for (int64_t i = first; i < last; ++i) {
      const int64_t end = pixels * (i + 1) / splits;
      double* sum = sums.data() + i * p.channels;
      std::fill_n(sum, p.channels, 0.0);
      for (int64_t pixel = pixels * i / splits; pixel < end; pixel += kBiasChain) {
        std::fill_n(chain.data(), p.channels, T(0));
        conv_last_kernels_of<T>().sum(static_cast<const T*>(p.dy) + pixel * p.channels,
                                      std::min(kBiasChain, end - pixel), p.channels, chain.data());
        for (int64_t c = 0; c < p.channels; ++c) sum[c] += chain[c];
      }
    }
  });
  for (int64_t c = 0; c < p.channels; ++c) {
    double sum = 0;
    for (int64_t i = 0; i < splits; ++i) sum += sums[i * p.channels + c];
    static_cast<T*>(p.db)[c] = static_cast<T>(sum);
  }
}

template <class T>
void backward_bias(const ConvBackwardBiasParams& p) {
  if (p.channels_last) return backward_bias_last<T>(p);
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

template <class P, size_t N, size_t M>
ConvAlgorithms<P> choose(const ConvAlgorithm<P> (&planes)[N], const ConvAlgorithm<P> (&last)[M],
                         bool channels_last) {
  return channels_last ? ConvAlgorithms<P>{last, M} : ConvAlgorithms<P>{planes, N};
}

}  // namespace

ConvAlgorithms<ConvForwardParams> conv_forward_algorithms(bool channels_last) {
  return choose(kForward, kLast<Forward>, channels_last);
}
ConvAlgorithms<ConvBackwardDataParams> conv_backward_data_algorithms(bool channels_last) {
  return choose(kBackwardData, kLast<BackwardData>, channels_last);
}
ConvAlgorithms<ConvBackwardWeightParams> conv_backward_weight_algorithms(bool channels_last) {
  return choose(kBackwardWeight, kLast<BackwardWeight>, channels_last);
}

const char* conv_forward(const ConvForwardParams& p) {
  return run(ConvDirection::kForward, conv_forward_algorithms(p.channels_last), p);
}
const char* conv_backward_data(const ConvBackwardDataParams& p) {
  return run(ConvDirection::kBackwardData, conv_backward_data_algorithms(p.channels_last), p);
}
const char* conv_backward_weight(const ConvBackwardWeightParams& p) {
  return run(ConvDirection::kBackwardWeight, conv_backward_weight_algorithms(p.channels_last), p);
}

void conv_backward_bias(const ConvBackwardBiasParams& p) {
  p.dtype == DType::kFloat64 ? backward_bias<double>(p) : backward_bias<float>(p);
}

}  // namespace fastnn::cpu
