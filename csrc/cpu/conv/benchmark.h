// Which of several algorithms is fastest for a convolution: measured on the first call of its kind and
// remembered, as torch.backends.cudnn.benchmark does. Off unless FASTNN_CONV_BENCHMARK=1 or the switch says
// so.
#pragma once
#include <cstddef>
#include <functional>
#include <string>
#include <vector>

#include "fastnn/conv.h"

namespace fastnn::cpu {

bool conv_benchmark_enabled();
void set_conv_benchmark_enabled(bool);

enum class ConvDirection : int { kForward, kBackwardData, kBackwardWeight };

struct ConvMeasurement {
  ConvDirection direction;
  ConvGeometry geometry;
  int threads;
  std::string capability;
  std::vector<const char*> names;  // of the candidates, in the order of the list: the first is the default
  std::vector<double> seconds;     // the least of each; empty where there was one candidate
  size_t fastest;
};

// The candidate that is fastest. run(i) runs candidate i on the caller's data and overwrites its output; it
// is called only if nothing is remembered for this direction, geometry, number of threads, instruction set
// and choice of candidates.
size_t fastest_conv(ConvDirection, const ConvGeometry&, const std::vector<const char*>& names,
                    const std::function<void(size_t)>& run);

std::vector<ConvMeasurement> conv_measurements();
void forget_conv_measurements();

}  // namespace fastnn::cpu
