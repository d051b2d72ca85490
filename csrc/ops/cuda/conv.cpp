// The CUDA kernels of fastnn::_conv and fastnn::_conv_backward.
#include "ops/conv.h"

#include "cuda/conv.h"
#include "ops/cuda/device.h"
#include "ops/cuda/workspace.h"

namespace fastnn::ops {
namespace {

// torch's switch for convolutions of floats: torch.backends.cudnn.conv.fp32_precision, allow_tf32.
bool tf32() {
  return at::globalContext().allowTF32CuDNN(at::Float32Op::CONV);
}

struct CudaConv {
  static void record(const char*) {}  // explain() is on the other side of the library's border
  template <class Params>
  static auto run(const Params& p, const Tensor& like) {
    const Tensor workspace = workspace_of(cuda::conv_workspace(p), like);
    return start(p, workspace.data_ptr(), current_stream());
  }

 private:
  static auto start(const ConvForwardParams& p, void* workspace, cudaStream_t stream) {
    return cuda::conv_forward(p, tf32(), workspace, stream);
  }
  static auto start(const ConvBackwardDataParams& p, void* workspace, cudaStream_t stream) {
    return cuda::conv_backward_data(p, tf32(), workspace, stream);
  }
  static auto start(const ConvBackwardWeightParams& p, void* workspace, cudaStream_t stream) {
    return cuda::conv_backward_weight(p, tf32(), workspace, stream);
  }
  static void start(const ConvBackwardBiasParams& p, void* workspace, cudaStream_t stream) {
    cuda::conv_backward_bias(p, workspace, stream);
  }
};

Tensor conv_cuda(const Tensor& x, const Tensor& w, const std::optional<Tensor>& b, IntArrayRef stride,
                 IntArrayRef padding, IntArrayRef dilation, bool transposed, IntArrayRef output_padding,
                 int64_t groups) {
  const DeviceGuard guard(x.device());
  return conv_by<CudaConv>(x, w, b, stride, padding, dilation, transposed, output_padding, groups);
}

Tensors conv_backward_cuda(const Tensor& dy, const Tensor& x, const Tensor& w, IntArrayRef stride,
                           IntArrayRef padding, IntArrayRef dilation, bool transposed,
                           IntArrayRef output_padding, int64_t groups, std::array<bool, 3> output_mask) {
  const DeviceGuard guard(x.device());
  return conv_backward_by<CudaConv>(dy, x, w, stride, padding, dilation, transposed, output_padding, groups,
                                    output_mask);
}

FASTNN_CUDA_KERNELS(m) {
  m.impl("_conv", conv_cuda);
  m.impl("_conv_backward", conv_backward_cuda);
}

}  // namespace
}  // namespace fastnn::ops
