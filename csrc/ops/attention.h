// What attention of separate and of packed projections share: views, masks, the question of what the mask is.
#pragma once
#include "fastnn/attention.h"
#include "ops/vectors.h"

namespace fastnn::ops {

// What forward and backward share beside the tensors.
struct Settings {
  double p;
  bool causal;
  double scale;
  int64_t seed, offset;
};

// Features side by side, as the kernels read them; a view where it is one already.
inline Tensor side_by_side(const Tensor& t) {
  return t.stride(-1) == 1 || t.size(-1) <= 1 ? t : t.contiguous();
}

inline AttentionView view(const Tensor& t) {
  return {const_cast<void*>(t.const_data_ptr()), t.stride(0), t.stride(1), t.stride(2)};
}
inline AttentionView view_or_null(const Tensor& t, bool wanted) {
  return wanted ? view(t) : AttentionView{};
}

// The mask as the kernels read it: keys side by side, other dimensions broadcast by strides of 0.
inline Tensor broadcast_mask(const OptionalTensor& mask, const AttentionShape& s) {
  if (!mask || !mask->defined()) return Tensor();
  std::vector<int64_t> sizes = mask->sizes().vec();
  TORCH_CHECK(!sizes.empty(), "fastnn::_attention: a mask without dimensions");
  sizes.back() = s.S;
  return side_by_side(mask->expand(sizes)).expand({s.N, s.H, s.L, s.S});
}

// The tensors of a call, checked and in the layout that the kernels read.
struct Operands {
  AttentionShape shape;
  Tensor q, k, v, mask;

  Operands(const Tensor& query, const Tensor& key, const Tensor& value, const OptionalTensor& m) {
    TORCH_CHECK(query.dim() == 4 && key.dim() == 4 && value.dim() == 4,
                "fastnn::_attention: four dimensions");
    const int64_t HK = key.size(1);
    shape = {.N = query.size(0),
             .H = query.size(1),
             .HK = HK,
             .L = query.size(2),
             .S = key.size(2),
             .E = query.size(3),
             .EV = value.size(3)};
    TORCH_CHECK(query.numel() > 0 && key.numel() > 0 && value.numel() > 0 && shape.H % HK == 0,
                "fastnn::_attention: ", shape.H, " heads on ", HK, ", or an empty tensor");
    check_sizes(key, {shape.N, HK, shape.S, shape.E}, query, "key");
    check_sizes(value, {shape.N, HK, shape.S, shape.EV}, query, "value");
    q = side_by_side(query);
    k = side_by_side(key);
    v = side_by_side(value);
    mask = broadcast_mask(m, shape);
    TORCH_CHECK(!mask.defined() || mask.scalar_type() == at::kBool || mask.scalar_type() == q.scalar_type(),
                "fastnn::_attention: a mask of ", mask.scalar_type());
  }

  AttentionInputs inputs(const Settings& s) const {
    TORCH_CHECK(s.p >= 0 && s.p < 1, "fastnn::_attention: p must be in [0, 1), but is ", s.p);
    return {.dtype = dtype_of(q),
            .shape = shape,
            .q = view(q),
            .k = view(k),
            .v = view(v),
            .scale = s.scale,
            .causal = s.causal,
            .mask = mask.defined() ? view(mask) : AttentionView{},
            .mask_is_bool = mask.defined() && mask.scalar_type() == at::kBool,
            .p = s.p,
            .seed = static_cast<uint64_t>(s.seed),
            .offset = static_cast<uint64_t>(s.offset)};
  }
};

inline const char* why_not_mask(const Tensor& q, const Tensor& k, const Tensor& mask, bool causal) {
  if (causal) return "a mask beside is_causal";
  if (needs_grad(mask)) return "the gradient of a mask";
  if (mask.scalar_type() != at::kBool && mask.scalar_type() != q.scalar_type())
    return "the dtype of the mask";
  if (!mask.is_cpu() || mask.is_sparse() || mask.is_nested()) return "a mask that is not plain and dense";
  if (mask.dim() < 2 || mask.dim() > q.dim()) return "the dimensions of the mask";
  for (int64_t i = 1; i <= mask.dim(); ++i) {
    const int64_t size = i == 1 ? k.size(-2) : q.size(-i);
    if (mask.size(-i) != 1 && mask.size(-i) != size) return "the shape of the mask";
  }
  return nullptr;
}

}  // namespace fastnn::ops
