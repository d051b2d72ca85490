// The CUDA kernels of fastnn::_cross_entropy, _pointwise_loss and their gradients.
#include "cuda/loss.h"

#include "ops/cuda/device.h"
#include "ops/loss.h"

namespace fastnn::ops {
namespace {

using Tensors = std::tuple<Tensor, Tensor, Tensor>;

struct Classes {
  Tensor index, weight;
  ClassTargets view;

  Classes(const Tensor& x, const Tensor& target, const OptionalTensor& class_weight, int64_t ignored) {
    const DimensionView v = class_view(x);
    TORCH_CHECK(target.scalar_type() == at::kLong && target.numel() == v.outer * v.inner &&
                    target.device() == x.device(),
                "fastnn::_cross_entropy: targets of ", target.sizes(), " and ", target.scalar_type());
    index = target.contiguous();
    weight = vector_of(class_weight, v.length, compute_type(x));
    view = {.index = index.const_data_ptr<int64_t>(), .class_weight = data(weight), .ignored = ignored};
  }
};

Tensor workspace_for(const Tensor& x) {
  return at::empty({cuda::kLossWorkspace}, x.options().dtype(at::kDouble));
}

// The loss; the largest logit and the sum of exponentials of each position; what the mean is divided by, in
// double.
Tensors cross_entropy_cuda(const Tensor& x, const Tensor& target, const OptionalTensor& weight,
                           int64_t reduction, int64_t ignored) {
  const DeviceGuard guard(x.device());
  const DimensionView v = class_view(x);
  const Classes classes(x, target, weight, ignored);
  const Tensor dense = x.contiguous();
  const auto options = x.options().dtype(compute_type(x)), doubles = x.options().dtype(at::kDouble);
  Tensor statistics = at::empty({2, v.outer * v.inner}, options), loss = at::empty(target.sizes(), options);
  const CrossEntropyParams p = {.dtype = dtype_of(x),
                                .N = v.outer,
                                .C = v.length,
                                .inner = v.inner,
                                .target = classes.view,
                                .x = dense.const_data_ptr(),
                                .peak = statistics[0].data_ptr(),
                                .sum = statistics[1].data_ptr(),
                                .loss = loss.data_ptr()};
  const auto stream = current_stream();
  cuda::cross_entropy_forward(p, stream);
  if (reduction == at::Reduction::None) return {loss.to(x.scalar_type()), statistics, at::ones({}, doubles)};
  Tensor total = at::empty({}, x.options()), normaliser = at::empty({}, doubles);
  const Tensor workspace = workspace_for(x);
  cuda::sum_cross_entropy(p, reduction == at::Reduction::Mean, total.data_ptr(),
                          normaliser.data_ptr<double>(), workspace.data_ptr<double>(), stream);
  return {total, statistics, normaliser};
}

Tensor cross_entropy_backward_cuda(const Tensor& dy, const Tensor& x, const Tensor& target,
                                   const OptionalTensor& weight, const Tensor& statistics,
                                   const Tensor& normaliser, int64_t reduction, int64_t ignored) {
  const DeviceGuard guard(x.device());
  const DimensionView v = class_view(x);
  const Classes classes(x, target, weight, ignored);
  const int64_t positions = v.outer * v.inner;
  check_sizes(statistics, {2, positions}, at::empty({0}, x.options().dtype(compute_type(x))), "statistics");
  TORCH_CHECK(dy.numel() == (reduction == at::Reduction::None ? positions : 1) && normaliser.numel() == 1 &&
                  normaliser.scalar_type() == at::kDouble && normaliser.device() == x.device(),
              "fastnn::_cross_entropy_backward: dy of ", dy.sizes());
  const Tensor dense = x.contiguous(), slopes = dy.to(compute_type(x)).contiguous(),
               kept = statistics.contiguous();
  Tensor dx = at::empty(x.sizes(), x.options());
  cuda::cross_entropy_backward({.dtype = dtype_of(x),
                                .N = v.outer,
                                .C = v.length,
                                .inner = v.inner,
                                .target = classes.view,
                                .dy = slopes.const_data_ptr(),
                                .dy_is_number = reduction != at::Reduction::None,
                                .normaliser = normaliser.const_data_ptr<double>(),
                                .x = dense.const_data_ptr(),
                                .peak = kept[0].const_data_ptr(),
                                .sum = kept[1].const_data_ptr(),
                                .dx = dx.data_ptr()},
                               current_stream());
  return dx;
}

Tensor pointwise_loss_cuda(const Tensor& input, const Tensor& target, int64_t kind, int64_t reduction) {
  const DeviceGuard guard(input.device());
  const Operands t(input, target);
  const bool each = reduction == at::Reduction::None;
  Tensor y = each ? at::empty_like(t.x) : at::empty({}, input.options());
  const Tensor workspace = each ? Tensor() : workspace_for(input);
  const PointwiseLossParams p = {.dtype = dtype_of(input),
                                 .kind = static_cast<PointwiseLoss>(kind),
                                 .count = input.numel(),
                                 .x = t.x.const_data_ptr(),
                                 .target = t.target.const_data_ptr(),
                                 .y = each ? y.data_ptr() : nullptr};
  cuda::pointwise_loss_forward(p, 1 / scale_of(reduction, p.count), y.data_ptr(),
                               each ? nullptr : workspace.data_ptr<double>(), current_stream());
  return y;
}

Tensor pointwise_loss_backward_cuda(const Tensor& dy, const Tensor& input, const Tensor& target, int64_t kind,
                                    int64_t reduction) {
  const DeviceGuard guard(input.device());
  const Operands t(input, target);
  const bool each = reduction == at::Reduction::None;
  TORCH_CHECK((each ? dy.sizes() == input.sizes() : dy.numel() == 1) &&
                  dy.scalar_type() == input.scalar_type() && dy.device() == input.device(),
              "fastnn::_pointwise_loss_backward: dy of ", dy.sizes());
  const Tensor slopes = each ? with_layout_of(dy, t.x) : Tensor();
  Tensor dx = at::empty_like(t.x);
  cuda::pointwise_loss_backward({.dtype = dtype_of(input),
                                 .kind = static_cast<PointwiseLoss>(kind),
                                 .count = input.numel(),
                                 .dy = each ? slopes.const_data_ptr() : nullptr,
                                 .slope = scale_of(reduction, input.numel()),
                                 .number = dy.const_data_ptr(),
                                 .x = t.x.const_data_ptr(),
                                 .target = t.target.const_data_ptr(),
                                 .dx = dx.data_ptr()},
                                current_stream());
  return dx;
}

FASTNN_CUDA_KERNELS(m) {
  m.impl("_cross_entropy", cross_entropy_cuda);
  m.impl("_cross_entropy_backward", cross_entropy_backward_cuda);
  m.impl("_pointwise_loss", pointwise_loss_cuda);
  m.impl("_pointwise_loss_backward", pointwise_loss_backward_cuda);
}

}  // namespace
}  // namespace fastnn::ops
