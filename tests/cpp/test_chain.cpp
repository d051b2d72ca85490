// Chains: bit for bit what the kernels of the single layers give, one after the other.
#include <cstdint>
#include <vector>

#include "fastnn/activation.h"
#include "fastnn/activation_table.h"
#include "fastnn/chain.h"
#include "fastnn/dropout.h"
#include "harness.h"

namespace fastnn::testing {
namespace {

// Which stages, and the shape: [N, C, H, W], windows of 2 x 2.
struct Layout {
  int64_t N, C, H, W;
  bool channels_last;
  int64_t inputs() const { return N * C * H * W; }
  int64_t outputs(bool pools) const { return pools ? N * C * (H / 2) * (W / 2) : inputs(); }
};

template <class T>
class Setup {
  using A = Compute<T>;

 public:
  Setup(const Layout& l, const ChainStages& s, DType dtype, bool training, Place place)
      : l_(l),
        s_(s),
        dtype_(dtype),
        training_(training),
        out_(l.outputs(s.pool != ChainStages::kNone)),
        x(l.inputs(), place),
        residual(s.residual ? l.inputs() : 0, place),
        y(out_, place),
        dy(out_, place),
        dx(l.inputs(), place),
        dr(s.residual ? l.inputs() : 0, place),
        codes(s.pool == ChainStages::kMax ? out_ : 0, place),
        coefficients(3 * l.C, place),
        weight(l.C, place),
        bias(l.C, place),
        running_mean(l.C, place),
        running_var(l.C, place),
        mean(l.C, place),
        invstd(l.C, place),
        dw(l.C, place),
        db(l.C, place) {
    x.fill_random(1, -2, 3);
    residual.fill_random(2);
    dy.fill_random(3);
    weight.fill_random(4, 0.5, 2);
    bias.fill_random(5);
    running_mean.fill_random(6);
    running_var.fill_random(7, 0.5, 2);
  }

  BatchNormShape shape() const { return {l_.N, l_.C, l_.H * l_.W, l_.channels_last}; }
  PoolShape windows() const {
    PoolShape w;
    w.n = l_.N, w.c = l_.C, w.channels_last = l_.channels_last;
    w.in[1] = l_.H, w.in[2] = l_.W, w.out[1] = l_.H / 2, w.out[2] = l_.W / 2;
    w.kernel[1] = w.kernel[2] = w.stride[1] = w.stride[2] = 2;
    return w;
  }
  BatchNormParams norm(void* to) const {
    return {.dtype = dtype_,
            .shape = shape(),
            .x = x.data(),
            .y = to,
            .weight = weight.data(),
            .bias = bias.data(),
            .running_mean = running_mean.data(),
            .running_var = running_var.data(),
            .save_mean = mean.data(),
            .save_invstd = invstd.data(),
            .training = training_,
            .momentum = 0.1,
            .eps = 1e-5};
  }
  BatchNormBackwardParams norm_backward(const void* from, void* to) const {
    return {.dtype = dtype_,
            .shape = shape(),
            .dy = from,
            .x = x.data(),
            .weight = weight.data(),
            .mean = training_ ? mean.data() : running_mean.data(),
            .invstd = training_ ? invstd.data() : nullptr,
            .var = training_ ? nullptr : running_var.data(),
            .dx = to,
            .dweight = dw.data(),
            .dbias = db.data(),
            .training = training_,
            .eps = 1e-5};
  }

  void as_one() {
    ChainStages s = s_;
    s.windows = windows();
    cpu::chain_forward({.stages = s,
                        .norm = norm(nullptr),
                        .residual = residual.data(),
                        .y = y.data(),
                        .codes = codes.data(),
                        .coefficients = coefficients.data()});
    cpu::chain_backward({.stages = s,
                         .norm = norm_backward(nullptr, nullptr),
                         .dy = dy.data(),
                         .y = y.data(),
                         .codes = codes.data(),
                         .coefficients = coefficients.data(),
                         .dx = dx.data(),
                         .dresidual = s.residual ? dr.data() : nullptr});
  }

  void one_by_one() {
    const int64_t n = l_.inputs();
    Buffer<T> z(n), a(n), g(n), h(n);
    if (s_.normalize) {
      cpu::batchnorm_forward(norm(z.data()));
    } else {
      for (int64_t i = 0; i < n; ++i) z[i] = x[i];
    }
    for (int64_t i = 0; i < (s_.residual ? n : 0); ++i)
      z[i] = from_double<T>(static_cast<A>(to_double(z[i])) + static_cast<A>(to_double(residual[i])));
    if (s_.activation >= 0) {
      cpu::activation_forward(
          {.kind = s_.activation, .dtype = dtype_, .n = n, .x = z.data(), .y = a.data(), .a = s_.a});
    } else {
      for (int64_t i = 0; i < n; ++i) a[i] = z[i];
    }
    const PoolShape w = windows();
    Buffer<T> pooled(out_), undropped(out_);
    if (s_.pool == ChainStages::kMax) {
      cpu::max_pool_forward(
          {.dtype = dtype_, .shape = w, .x = a.data(), .y = pooled.data(), .codes = codes.data()});
    } else if (s_.pool == ChainStages::kAverage) {
      cpu::avg_pool_forward({.dtype = dtype_, .shape = w, .x = a.data(), .y = pooled.data()});
    } else {
      for (int64_t i = 0; i < n; ++i) pooled[i] = a[i];
    }
    drop(pooled, y);

    drop(dy, undropped);
    if (s_.pool == ChainStages::kMax) {
      cpu::max_pool_backward(
          {.dtype = dtype_, .shape = w, .dy = undropped.data(), .codes = codes.data(), .dx = g.data()});
    } else if (s_.pool == ChainStages::kAverage) {
      cpu::avg_pool_backward({.dtype = dtype_, .shape = w, .dy = undropped.data(), .dx = g.data()});
    } else {
      for (int64_t i = 0; i < n; ++i) g[i] = undropped[i];
    }
    if (s_.activation >= 0) {
      const bool from_y = kActivationInfo[s_.activation].saves_y(dtype_);
      cpu::activation_backward({.kind = s_.activation,
                                .dtype = dtype_,
                                .n = n,
                                .dy = g.data(),
                                .saved = from_y ? a.data() : z.data(),
                                .dx = h.data(),
                                .a = s_.a});
    } else {
      for (int64_t i = 0; i < n; ++i) h[i] = g[i];
    }
    for (int64_t i = 0; i < (s_.residual ? n : 0); ++i) dr[i] = h[i];
    if (s_.normalize) {
      cpu::batchnorm_backward(norm_backward(h.data(), dx.data()));
    } else {
      for (int64_t i = 0; i < n; ++i) dx[i] = h[i];
    }
  }

 private:
  void drop(const Buffer<T>& from, const Buffer<T>& to) const {
    if (s_.p == 0) {
      for (int64_t i = 0; i < out_; ++i) to[i] = from[i];
      return;
    }
    cpu::dropout({.dtype = dtype_,
                  .decisions = out_,
                  .x = from.data(),
                  .y = to.data(),
                  .p = s_.p,
                  .scale = 1 / (1 - s_.p),
                  .seed = s_.seed,
                  .offset = s_.offset});
  }

  const Layout l_;
  const ChainStages s_;
  const DType dtype_;
  const bool training_;
  const int64_t out_;

 public:
  Buffer<T> x, residual, y, dy, dx, dr;
  Buffer<uint8_t> codes;
  Buffer<A> coefficients, weight, bias, running_mean, running_var, mean, invstd, dw, db;
};

template <class T>
void check_chain(const Layout& l, const ChainStages& s, DType dtype, bool training, Place place) {
  Setup<T> fused(l, s, dtype, training, place), plain(l, s, dtype, training, Place::kEnd);
  fused.as_one();
  plain.one_by_one();
  CHECK(fused.y.same_bits(plain.y));
  CHECK(fused.codes.same_bits(plain.codes));
  CHECK(fused.dx.same_bits(plain.dx));
  CHECK(fused.dr.same_bits(plain.dr));
  if (!s.normalize) return;
  CHECK(fused.dw.same_bits(plain.dw));
  CHECK(fused.db.same_bits(plain.db));
  CHECK(fused.running_mean.same_bits(plain.running_mean));
  CHECK(fused.running_var.same_bits(plain.running_var));
}

std::vector<ChainStages> all_stages() {
  std::vector<ChainStages> all;
  for (bool normalize : {true, false}) {
    for (int activation : {-1, +ActivationKind::kRelu, +ActivationKind::kSilu}) {
      for (auto pool : {ChainStages::kNone, ChainStages::kMax, ChainStages::kAverage}) {
        for (double p : {0.0, 0.3}) {
          if (!normalize && activation < 0 && pool == ChainStages::kNone && p == 0) continue;
          ChainStages s;
          s.normalize = normalize;
          s.activation = activation;
          s.pool = pool;
          s.p = p;
          s.seed = 11;
          s.offset = 12;
          all.push_back(s);
        }
      }
      ChainStages s;
      s.normalize = normalize;
      s.residual = true;
      s.activation = activation == ActivationKind::kSilu ? +ActivationKind::kTanh : activation;
      all.push_back(s);
    }
  }
  return all;
}

// Rows, planes of a channel at once (over 2048 elements), columns (short rows, channels last).
constexpr Layout kLayouts[] = {{3, 5, 7, 9, false},  {2, 2, 47, 45, false}, {1, 3, 50, 41, false},
                               {5, 3, 3, 3, false},  {3, 5, 7, 9, true},    {2, 70, 6, 5, true},
                               {33, 3, 2, 3, false}, {1, 9, 12, 11, true}};

TEST(chain_is_its_layers) {
  for (const ChainStages& s : all_stages()) {
    for (const Layout& l : kLayouts) {
      for (bool training : {true, false}) {
        const Case which("stages " + std::to_string(s.normalize) + std::to_string(s.activation) +
                         std::to_string(s.pool) + std::to_string(s.residual) + " W " + std::to_string(l.W));
        const Place place = kPlaces[(l.W + s.pool) % 4];
        check_chain<float>(l, s, DType::kFloat32, training, place);
        check_chain<double>(l, s, DType::kFloat64, training, place);
      }
    }
  }
}

TEST(chain_of_half_types) {
  for (const ChainStages& s : all_stages()) {
    check_chain<BFloat16>(kLayouts[0], s, DType::kBFloat16, true, Place::kEndOdd);
    check_chain<Float16>(kLayouts[4], s, DType::kFloat16, true, Place::kStartOdd);
  }
}

TEST(chain_gives_equal_bits_for_any_threads) {
  ChainStages s;
  s.normalize = true;
  s.activation = ActivationKind::kRelu;
  s.pool = ChainStages::kMax;
  s.p = 0.3;
  for (const Layout& l : {Layout{4, 8, 50, 50, false}, Layout{9, 16, 20, 20, true}}) {
    each_thread_count([&] { check_chain<float>(l, s, DType::kFloat32, true, Place::kEnd); });
  }
}

}  // namespace
}  // namespace fastnn::testing
