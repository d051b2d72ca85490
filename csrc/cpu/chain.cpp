// A chain of layers, a few planes at a time: batch normalisation (batchnorm_forward.h) hands over each
// channel or sample once its statistics stand, and the stages behind run on it while it is in cache.
//
//   forward    x -> z = normalised -> residual and activation in place -> windows -> dropout -> y
//   backward   dy -> dropout -> windows -> dz, with z made again from x -> dx -> sums of batch normalisation
//
// So memory is read and written as often as batch normalisation alone would, and only x, three numbers for
// each channel and the window codes are kept.
#include "fastnn/chain.h"

#include "cpu/batchnorm_backward.h"
#include "cpu/batchnorm_forward.h"
#include "cpu/chain_stages.h"
#include "cpu/kernels/chain.h"

namespace fastnn::cpu {
namespace {

// Elements that a stage takes at once: with its output they stay in L1. Planes of half of it or more are
// worth a call each, so that a channel can be finished while its slab is in L2.
constexpr int64_t kPiece = 4096;

// What forward and backward share: how the work is cut, and normalising into scratch.
template <class T>
class Pieces {
  using A = Compute<T>;

 public:
  Pieces(const ChainStages& s, DType dtype, const BatchNormShape& shape, const void* x)
      : stage(s, dtype),
        normalizes(s.normalize),
        N(shape.N),
        C(shape.C),
        L(shape.L),
        OL(stage.pools() ? s.windows.out[0] * s.windows.out[1] * s.windows.out[2] : shape.L),
        x_(static_cast<const T*>(x)) {}

  bool takes_channels() const { return L >= kPiece / 2; }

  // f(first plane, planes), planes of a channel or of all, on the calling thread or in parallel. Where the
  // normalisation works on columns a piece is a whole sample, C planes.
  template <class F>
  void for_channel(int64_t c, const F& f) const {
    for (int64_t n = 0; n < N; ++n) f(n * C + c, int64_t{1});
  }
  template <class F>
  void for_all(const BatchNormPlan& plan, const F& f) const {
    if (plan.columns) {
      parallel_for(N, std::max<int64_t>(1, kGrain / (C * L)), [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; ++n) f(n * C, C);
      });
      return;
    }
    const int64_t group = std::max<int64_t>(1, kPiece / L);
    parallel_for(N * C, std::max<int64_t>(1, kGrain / L), [&](int64_t begin, int64_t end) {
      for (int64_t at = begin; at < end; at += group) f(at, std::min(group, end - at));
    });
  }

  // z = (x - mean) * scale + shift of these planes.
  void normalize(const BatchNormPlan& plan, const BatchNormCoefficients<A>& k, int64_t first, int64_t planes,
                 T* z) const {
    const T* x = x_ + first * L;
    const BatchNormOps<T>& ops = batchnorm_ops<T>();
    if (!plan.columns) {
      ops.normalize_rows(x, z, {planes, L, L, first % C, 1, C}, k[0], k[1], k[2]);
      return;
    }
    const int64_t rows = C * L / plan.width, wide = plan.width * plan.repeat, whole = rows / plan.repeat;
    ops.normalize_columns(x, z, whole, wide, k[0], k[1], k[2]);
    const int64_t done = whole * wide, rest = rows % plan.repeat;
    if (rest > 0) ops.normalize_columns(x + done, z + done, 1, rest * plan.width, k[0], k[1], k[2]);
  }

  const ChainStage<T> stage;
  const bool normalizes;
  const int64_t N, C, L, OL;

 private:
  const T* const x_;
};

template <class T>
class Forward : Pieces<T> {
  using A = Compute<T>;
  using Coefficients = BatchNormCoefficients<A>;
  using Pieces<T>::stage, Pieces<T>::C, Pieces<T>::L, Pieces<T>::OL;

 public:
  explicit Forward(const ChainParams& p) : Pieces<T>(p.stages, p.norm.dtype, p.norm.shape, p.norm.x), p_(p) {}

  void run() const {
    const BatchNormPlan plan(p_.norm.shape);
    if (this->normalizes) {
      BatchNormForward<T, Forward>(p_.norm, *this).run();
    } else {
      this->for_all(plan, [&](int64_t first, int64_t planes) { piece(plan, nullptr, first, planes); });
    }
  }

  // The writer of BatchNormForward.
  using Pieces<T>::takes_channels;
  void channel(const BatchNormPlan& plan, const Coefficients& k, int64_t c) const {
    keep(plan, k, c);
    this->for_channel(c, [&](int64_t first, int64_t planes) { piece(plan, &k, first, planes); });
  }
  void all(const BatchNormPlan& plan, const Coefficients& k) const {
    for (int64_t c = 0; c < C; ++c) keep(plan, k, c);
    this->for_all(plan, [&](int64_t first, int64_t planes) { piece(plan, &k, first, planes); });
  }

 private:
  void keep(const BatchNormPlan& plan, const Coefficients& k, int64_t c) const {
    if (p_.coefficients == nullptr) return;
    for (int i = 0; i < 3; ++i) static_cast<A*>(p_.coefficients)[i * C + c] = k[i][c * plan.fold];
  }

  void piece(const BatchNormPlan& plan, const Coefficients* k, int64_t first, int64_t planes) const {
    const int64_t n = planes * L, out = planes * OL, at = first * OL;
    T* const y = static_cast<T*>(p_.y) + at;
    const Scratch<T> room(stage.pools() ? n : 0);
    T* const z = stage.pools() ? room.data() : y;
    const T* now = static_cast<const T*>(p_.norm.x) + first * L;
    if (k != nullptr) {
      this->normalize(plan, *k, first, planes, z);
      now = z;
    }
    if (p_.stages.residual) {
      const T* const residual = static_cast<const T*>(p_.residual) + first * L;
      of_type<T>(chain_kernels())(now, residual, z, n);
      now = z;
    }
    if (stage.activates()) {
      stage.activate(now, z, n);
      now = z;
    }
    if (stage.pools()) {
      stage.pool(now, y, p_.codes, at, planes);
      now = y;
    }
    if (stage.drops()) stage.drop(now, y, at, out);
  }

  const ChainParams& p_;
};

template <class T>
class Backward : Pieces<T> {
  using A = Compute<T>;
  using Coefficients = BatchNormCoefficients<A>;
  using Pieces<T>::stage, Pieces<T>::C, Pieces<T>::L, Pieces<T>::OL;

 public:
  explicit Backward(const ChainBackwardParams& p)
      : Pieces<T>(p.stages, p.norm.dtype, p.norm.shape, p.norm.x),
        p_(p),
        plan_(p.norm.shape),
        coefficients_(plan_, this->normalizes ? 3 : 0) {
    if (!this->normalizes) return;
    for (int i = 0; i < 3; ++i) {
      for (int64_t c = 0; c < C; ++c)
        coefficients_.set(i, c, static_cast<const A*>(p.coefficients)[i * C + c]);
    }
    coefficients_.repeat();
  }

  void run() const {
    if (!this->normalizes) {
      all(plan_);
      return;
    }
    BatchNormBackwardParams norm = p_.norm;
    norm.dy = p_.dx;
    norm.dx = p_.wants_dx ? p_.dx : nullptr;
    BatchNormBackward<T, Backward>(norm, *this).run();
  }

  // The source of BatchNormBackward: dz, into dx.
  using Pieces<T>::takes_channels;
  void channel(int64_t c) const {
    this->for_channel(c, [&](int64_t first, int64_t planes) { piece(first, planes); });
  }
  void all(const BatchNormPlan& plan) const {
    this->for_all(plan, [&](int64_t first, int64_t planes) { piece(first, planes); });
  }

 private:
  void piece(int64_t first, int64_t planes) const {
    const int64_t n = planes * L, out = planes * OL, at = first * OL;
    const T* now = static_cast<const T*>(p_.dy) + at;
    T* const dx = static_cast<T*>(p_.dx) + first * L;
    const Scratch<T> dropped(stage.drops() && stage.pools() ? out : 0);
    if (stage.drops()) {
      T* const to = stage.pools() ? dropped.data() : dx;
      stage.drop(now, to, at, out);
      now = to;
    }
    if (stage.pools()) {
      stage.pool_backward(now, p_.codes, dx, at, planes);
      now = dx;
    }
    if (p_.stages.residual) {
      before_residual(now, first * L, n);
      return;
    }
    if (stage.activates()) {
      const bool wants_y = stage.activation_saves_y();
      const Scratch<T> room(this->normalizes || wants_y ? n : 0);
      const T* saved = static_cast<const T*>(p_.norm.x) + first * L;
      if (this->normalizes) {
        this->normalize(plan_, coefficients_, first, planes, room.data());
        saved = room.data();
      }
      if (wants_y) {
        stage.activate(saved, room.data(), n);
        saved = room.data();
      }
      stage.activate_backward(now, saved, dx, n);
    } else if (now != dx) {
      std::memcpy(static_cast<void*>(dx), now, n * sizeof(T));
    }
  }

  // dz from dy, for the residual as well.
  void before_residual(const T* dy, int64_t at, int64_t n) const {
    T* const dx = static_cast<T*>(p_.dx) + at;
    if (stage.activates()) {
      stage.activate_backward(dy, static_cast<const T*>(p_.y) + at, dx, n);
    } else {
      std::memcpy(static_cast<void*>(dx), dy, n * sizeof(T));
    }
    if (p_.dresidual != nullptr) {
      std::memcpy(static_cast<void*>(static_cast<T*>(p_.dresidual) + at), dx, n * sizeof(T));
    }
  }

  const ChainBackwardParams& p_;
  const BatchNormPlan plan_;
  const Coefficients coefficients_;
};

bool empty(const BatchNormShape& s) {
  return s.N == 0 || s.C == 0 || s.L == 0;
}

}  // namespace

void chain_forward(const ChainParams& p) {
  if (!empty(p.norm.shape)) visit(p.norm.dtype, [&](auto t) { Forward<decltype(t)>(p).run(); });
}

void chain_backward(const ChainBackwardParams& p) {
  if (!empty(p.norm.shape)) visit(p.norm.dtype, [&](auto t) { Backward<decltype(t)>(p).run(); });
}

}  // namespace fastnn::cpu
