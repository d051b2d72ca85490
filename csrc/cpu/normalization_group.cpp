// Group norm, and instance norm as its case of one channel per group. Per sample and group of n elements,
// with g = dy * weight, S = sum(g), P = sum(g * (x - mean)):
//   dx = (g - S / n - (x - mean) * P * rstd^2 / n) * rstd
//   dweight = sum over samples of sum(dy * (x - mean)) * rstd,  dbias = sum over samples of sum(dy), per
//   channel
// [N, C, L]: a group is one stretch of memory, its channels are rows. [N, L, C]: registers run along C;
// blocks of rows give moments and sums per channel, which the groups collect. Both go the three steps of
// normalization_plan.h. Channels shorter than a register are taken as layer norm, the parameters repeated.
#include "cpu/normalization_plan.h"

namespace fastnn::cpu {
namespace {

// How the samples are cut. A unit is a group of [N, C, L] or a sample of [N, L, C]; a part of it is some
// channels, a piece of one, or some rows.
struct GroupPlan {
  static constexpr int64_t kShort = 16;       // the widest register's worth of floats
  static constexpr int64_t kBlockRows = 128;  // rows of [L, C]: as many a lane adds
  static constexpr int64_t kWide = 64;        // narrower matrices are taken several rows at a time

  GroupNormShape shape;
  int64_t width, units;  // channels of a group
  Pieces pieces;         // of a channel
  int64_t channels = 1;  // of a part
  int64_t parts;         // of a unit
  int64_t repeat = 1;    // rows of [L, C] that are taken as one

  explicit GroupPlan(const GroupNormShape& s)
      : shape(s), width(s.C / s.G), units(s.channels_last ? s.N : s.N * s.G), pieces(s.L) {
    if (s.channels_last) {
      parts = (s.L + kBlockRows - 1) / kBlockRows;
      repeat = std::min({(kWide + s.C - 1) / s.C, kBlockRows, s.L});
    } else {
      channels = std::clamp<int64_t>(Pieces::kPiece / s.L, 1, width);
      parts = (width + channels - 1) / channels * pieces.count;
    }
  }
  bool is_short() const { return !shape.channels_last && shape.L < kShort; }
  bool is_whole() const { return !shape.channels_last && width * shape.L <= Pieces::kPiece; }
  double count() const { return static_cast<double>(width * shape.L); }

  struct Part {
    int64_t at;                 // its first element in the tensor
    int64_t channel, channels;  // within the unit
    int64_t piece, length;      // elements of a channel
  };
  Part part(int64_t unit, int64_t i) const {
    const auto& s = shape;
    if (s.channels_last) {
      const int64_t row = i * kBlockRows;
      return {(unit * s.L + row) * s.C, 0, s.C, i, std::min(kBlockRows, s.L - row)};
    }
    const int64_t channel = i / pieces.count * channels, piece = i % pieces.count;
    return {(unit * width + channel) * s.L + pieces.begin(piece), channel,
            std::min(channels, width - channel), piece, pieces.size(piece)};
  }
  int64_t cost(int64_t visits) const {
    return visits * (shape.channels_last ? std::min(kBlockRows, shape.L) * shape.C
                                         : channels * std::min(shape.L, Pieces::kPiece));
  }
  // f(first element, rows, width) over a part of [L, C], seen as a matrix `repeat` times as wide.
  template <class F>
  void wide_rows(const Part& p, const F& f) const {
    const int64_t wide = shape.C * repeat, whole = p.length / repeat, rest = p.length % repeat;
    if (whole > 0) f(p.at, whole, wide);
    if (rest > 0) f(p.at + whole * wide, int64_t{1}, rest * shape.C);
  }
};

// Coefficients as the kernels read them, [units, arrays, channels of a unit * repeat].
template <class A>
class GroupCoefficients {
 public:
  GroupCoefficients(const GroupPlan& plan, int arrays, bool needed = true)
      : used_(plan.shape.channels_last ? plan.shape.C : plan.width),
        size_(used_ * plan.repeat),
        arrays_(arrays),
        data_(needed ? plan.units * arrays * size_ : 0) {}
  A* operator()(int64_t unit, int array) const { return data_.data() + (unit * arrays_ + array) * size_; }
  void repeat(int64_t unit, int array) const {
    A* p = (*this)(unit, array);
    for (int64_t i = used_; i < size_; ++i) p[i] = p[i - used_];
  }

 private:
  const int64_t used_, size_;
  const int arrays_;
  const Scratch<A> data_;
};

// A parameter [C] as [C, L]: each number L times. Null stays null.
template <class A>
class PerElement {
 public:
  PerElement(const void* p, const GroupNormShape& s) : data_(p && s.L > 1 ? s.C * s.L : 0), p_(p) {
    if (p == nullptr || s.L == 1) return;
    for (int64_t c = 0; c < s.C; ++c) std::fill_n(&data_[c * s.L], s.L, static_cast<const A*>(p)[c]);
    p_ = data_.data();
  }
  const void* get() const { return p_; }

 private:
  const Scratch<A> data_;
  const void* p_;
};

template <class T>
class GroupForward {
  using A = Compute<T>;
  enum { kMean, kScale, kShift, kArrays };

 public:
  explicit GroupForward(const GroupNormParams& p)
      : p_(p),
        s_(p.shape),
        plan_(p.shape),
        var_(s_.N * s_.G),
        coefficients_(plan_, kArrays, !plan_.is_short() && !plan_.is_whole()) {}

  void run() const {
    if (plan_.is_short()) {
      const PerElement<A> weight(p_.weight, s_), bias(p_.bias, s_);
      grouped_layer_forward({.dtype = p_.dtype,
                             .rows = s_.N * s_.G,
                             .length = plan_.width * s_.L,
                             .x = p_.x,
                             .y = p_.y,
                             .weight = weight.get(),
                             .bias = bias.get(),
                             .mean = p_.mean,
                             .rstd = p_.rstd,
                             .eps = p_.eps},
                            s_.G, var_.data());
    } else if (plan_.is_whole()) {
      forward_units<T>({.x = x(),
                        .y = y(),
                        .units = plan_.units,
                        .length = plan_.width * s_.L,
                        .inner = s_.L,
                        .group = 0,
                        .G = s_.G,
                        .weight = static_cast<const A*>(p_.weight),
                        .bias = static_cast<const A*>(p_.bias),
                        .mean = static_cast<A*>(p_.mean),
                        .rstd = static_cast<A*>(p_.rstd),
                        .var = var_.data(),
                        .eps = p_.eps,
                        .rms = false});
    } else if (s_.channels_last) {
      columns();
    } else {
      rows();
    }
    if (p_.running_mean != nullptr || p_.running_var != nullptr) update_running();
  }

 private:
  const T* x() const { return static_cast<const T*>(p_.x); }
  T* y() const { return static_cast<T*>(p_.y); }
  static double at(const void* p, int64_t c, double otherwise) {
    return p ? static_cast<const A*>(p)[c] : otherwise;
  }

  void rows() const {
    const Scratch<Moments> moments(plan_.units * plan_.parts);
    in_three_steps(
        plan_.units, plan_.parts, plan_.cost(3),
        [&](int64_t unit, int64_t i) {
          const GroupPlan::Part part = plan_.part(unit, i);
          moments[unit * plan_.parts + i] = piece_moments(x() + part.at, part.channels * part.length, false);
        },
        [&](int64_t unit) {
          const auto size = [&](int64_t i) {
            const GroupPlan::Part part = plan_.part(unit, i);
            return part.channels * part.length;
          };
          set(unit, merge(&moments[unit * plan_.parts], plan_.parts, plan_.count(), size), unit, 0);
        },
        [&](int64_t unit, int64_t i) {
          const GroupPlan::Part part = plan_.part(unit, i);
          const auto array = [&](int k) { return coefficients_(unit, k) + part.channel; };
          batchnorm_ops<T>().normalize_rows(x() + part.at, y() + part.at,
                                            {part.channels, part.length, s_.L, 0, 1, part.channels},
                                            array(kMean), array(kScale), array(kShift));
        });
  }

  void columns() const {
    const Scratch<double> means(s_.N * plan_.parts * s_.C), m2s(s_.N * plan_.parts * s_.C);
    in_three_steps(
        s_.N, plan_.parts, plan_.cost(3),
        [&](int64_t n, int64_t i) {
          const GroupPlan::Part part = plan_.part(n, i);
          const int64_t to = (n * plan_.parts + i) * s_.C;
          batchnorm_ops<T>().column_moments(x() + part.at, part.length, s_.C, s_.C, &means[to], &m2s[to]);
        },
        [&](int64_t n) {
          const int64_t from = n * plan_.parts * s_.C;
          for (int64_t g = 0; g < s_.G; ++g) {
            const int64_t first = g * plan_.width;
            set(n * s_.G + g, of_group(n, first, &means[from + first], &m2s[from + first]), n, first);
          }
          for (int array = 0; array < kArrays; ++array) coefficients_.repeat(n, array);
        },
        [&](int64_t n, int64_t i) {
          plan_.wide_rows(plan_.part(n, i), [&](int64_t at, int64_t rows, int64_t width) {
            batchnorm_ops<T>().normalize_columns(x() + at, y() + at, rows, width, coefficients_(n, kMean),
                                                 coefficients_(n, kScale), coefficients_(n, kShift));
          });
        });
  }

  // Of the group of sample n that begins at channel `first`, from [parts, C]. The sums of each channel are
  // kept apart: additions that don't wait for each other.
  Moments of_group(int64_t n, int64_t first, const double* means, const double* m2s) const {
    const int64_t width = plan_.width;
    const Scratch<double> sums(width);
    const auto total = [&](const auto& term) {
      std::fill_n(sums.data(), width, 0.0);
      for (int64_t i = 0; i < plan_.parts; ++i) {
        const double count = static_cast<double>(plan_.part(n, i).length);
        for (int64_t k = 0; k < width; ++k) sums[k] += term(count, i * s_.C + k);
      }
      double all = 0;
      for (int64_t k = 0; k < width; ++k) all += sums[k];
      return all;
    };
    Moments m;
    m.mean = total([&](double count, int64_t j) { return count * means[j]; }) / plan_.count();
    m.m2 = total([&](double count, int64_t j) {
      const double d = means[j] - m.mean;
      return m2s[j] + count * d * d;
    });
    if (std::isfinite(m.m2)) return m;
    // Overflow in float, or a NaN or an infinity in x: once more in double.
    double mean, m2;
    const Scratch<Moments> channels(width);
    for (int64_t k = 0; k < width; ++k) {
      batchnorm_ops<T>().wide_moments(x() + n * s_.L * s_.C + first + k, s_.L, s_.C, 1, 1, &mean, &m2);
      channels[k] = {mean, m2};
    }
    return merge(channels.data(), width, plan_.count(), [&](int64_t) { return s_.L; });
  }

  // Everything that the moments of a group decide; the coefficients of its channels begin at `first` of
  // `unit`.
  void set(int64_t group, const Moments& m, int64_t unit, int64_t first) const {
    var_[group] = m.m2 / plan_.count();
    const double rstd = 1 / std::sqrt(var_[group] + p_.eps);
    const A mean = static_cast<A>(m.mean);
    static_cast<A*>(p_.mean)[group] = mean;
    static_cast<A*>(p_.rstd)[group] = static_cast<A>(rstd);
    const double lost = std::isfinite(m.mean) ? (m.mean - static_cast<double>(mean)) * rstd : 0;
    for (int64_t k = 0; k < plan_.width; ++k) {
      const int64_t c = group % s_.G * plan_.width + k;
      const double weight = at(p_.weight, c, 1);
      coefficients_(unit, kMean)[first + k] = mean;
      coefficients_(unit, kScale)[first + k] = static_cast<A>(rstd * weight);
      coefficients_(unit, kShift)[first + k] = static_cast<A>(at(p_.bias, c, 0) - lost * weight);
    }
  }

  // Instance norm's: the averages over the batch of means and unbiased variances.
  void update_running() const {
    const double unbiased = static_cast<double>(s_.L) / static_cast<double>(s_.L - 1);
    for (int64_t c = 0; c < s_.C; ++c) {
      double mean = 0, var = 0;
      for (int64_t i = c; i < s_.N * s_.C; i += s_.C)
        mean += static_cast<const A*>(p_.mean)[i], var += var_[i];
      const double n = static_cast<double>(s_.N);
      if (p_.running_mean != nullptr) update(static_cast<A*>(p_.running_mean)[c], mean / n);
      if (p_.running_var != nullptr) update(static_cast<A*>(p_.running_var)[c], var / n * unbiased);
    }
  }
  void update(A& running, double now) const {
    running = static_cast<A>(p_.momentum * now + (1 - p_.momentum) * static_cast<double>(running));
  }

  const GroupNormParams& p_;
  const GroupNormShape& s_;
  const GroupPlan plan_;
  const Scratch<double> var_;  // [N, G]
  const GroupCoefficients<A> coefficients_;
};

template <class T>
class GroupBackward {
  using A = Compute<T>;
  enum { kMean, kRstd, kShift, kSlope, kArrays };

 public:
  explicit GroupBackward(const GroupNormBackwardParams& p)
      : p_(p),
        s_(p.shape),
        plan_(p.shape),
        sums_(plan_.is_short() ? 0 : s_.N * s_.C),
        dots_(plan_.is_short() ? 0 : s_.N * s_.C),
        weight_(s_.C * plan_.repeat) {
    for (int64_t c = 0; c < s_.C; ++c) weight_[c] = p.weight ? static_cast<const A*>(p.weight)[c] : A(1);
    for (int64_t i = s_.C; i < s_.C * plan_.repeat; ++i) weight_[i] = weight_[i - s_.C];
  }

  void run() const {
    if (plan_.is_short()) return short_rows();
    s_.channels_last ? columns() : rows();
    parameters();
  }

 private:
  const T* x() const { return static_cast<const T*>(p_.x); }
  const T* dy() const { return static_cast<const T*>(p_.dy); }
  T* dx() const { return static_cast<T*>(p_.dx); }
  A mean(int64_t group) const { return static_cast<const A*>(p_.mean)[group]; }
  A rstd(int64_t group) const { return static_cast<const A*>(p_.rstd)[group]; }

  void short_rows() const {
    const PerElement<A> weight(p_.weight, s_);
    const int64_t size = s_.C * s_.L;
    const Scratch<A> dw(p_.dweight ? size : 0), db(p_.dbias ? size : 0);
    grouped_layer_backward({.dtype = p_.dtype,
                            .rows = s_.N * s_.G,
                            .length = plan_.width * s_.L,
                            .dy = p_.dy,
                            .x = p_.x,
                            .weight = weight.get(),
                            .mean = p_.mean,
                            .rstd = p_.rstd,
                            .dx = p_.dx,
                            .dweight = p_.dweight ? dw.data() : nullptr,
                            .dbias = p_.dbias ? db.data() : nullptr},
                           s_.G);
    const auto fold = [&](const Scratch<A>& from, void* to) {
      if (to == nullptr) return;
      for (int64_t c = 0; c < s_.C; ++c) {
        double sum = 0;
        for (int64_t i = 0; i < s_.L; ++i) sum += from[c * s_.L + i];
        static_cast<A*>(to)[c] = static_cast<A>(sum);
      }
    };
    fold(dw, p_.dweight);
    fold(db, p_.dbias);
  }

  void rows() const {
    const int64_t pieces = plan_.pieces.count;
    const Scratch<double> sums(s_.N * s_.C * pieces), dots(s_.N * s_.C * pieces);
    const Scratch<A> shift(plan_.units), slope(plan_.units);
    in_three_steps(
        plan_.units, plan_.parts, plan_.cost(4),
        [&](int64_t unit, int64_t i) {
          const GroupPlan::Part part = plan_.part(unit, i);
          for (int64_t k = 0; k < part.channels; ++k) {
            const int64_t from = part.at + k * s_.L, to = (unit * plan_.width + part.channel + k) * pieces;
            batchnorm_ops<T>().row_sums(x() + from, dy() + from, 1, part.length, s_.L, mean(unit),
                                        &sums[to + part.piece], &dots[to + part.piece]);
          }
        },
        [&](int64_t unit) {
          for (int64_t c = unit * plan_.width; c < (unit + 1) * plan_.width; ++c) {
            sums_[c] = dots_[c] = 0;
            for (int64_t i = c * pieces; i < (c + 1) * pieces; ++i) sums_[c] += sums[i], dots_[c] += dots[i];
          }
          of_group(unit, &shift[unit], &slope[unit]);
        },
        [&](int64_t unit, int64_t i) {
          if (dx() == nullptr) return;
          const GroupPlan::Part part = plan_.part(unit, i);
          normalization_ops<T>().group_rows(x() + part.at, dy() + part.at, dx() + part.at, part.channels,
                                            part.length, mean(unit), rstd(unit), shift[unit], slope[unit],
                                            &weight_[unit % s_.G * plan_.width + part.channel]);
        });
  }

  void columns() const {
    const Scratch<double> sums(s_.N * plan_.parts * s_.C), dots(s_.N * plan_.parts * s_.C);
    const GroupCoefficients<A> coefficients(plan_, kArrays);
    for (int64_t n = 0; n < s_.N; ++n)
      for (int64_t c = 0; c < s_.C; ++c) coefficients(n, kMean)[c] = mean(n * s_.G + c / plan_.width);
    in_three_steps(
        s_.N, plan_.parts, plan_.cost(4),
        [&](int64_t n, int64_t i) {
          const GroupPlan::Part part = plan_.part(n, i);
          const int64_t to = (n * plan_.parts + i) * s_.C;
          batchnorm_ops<T>().column_sums(x() + part.at, dy() + part.at, part.length, s_.C, s_.C,
                                         coefficients(n, kMean), &sums[to], &dots[to]);
        },
        [&](int64_t n) {
          double *sum = &sums_[n * s_.C], *dot = &dots_[n * s_.C];
          std::fill_n(sum, s_.C, 0.0);
          std::fill_n(dot, s_.C, 0.0);
          for (int64_t i = n * plan_.parts; i < (n + 1) * plan_.parts; ++i)
            for (int64_t c = 0; c < s_.C; ++c) sum[c] += sums[i * s_.C + c], dot[c] += dots[i * s_.C + c];
          for (int64_t g = 0; g < s_.G; ++g) {
            A shift, slope;
            of_group(n * s_.G + g, &shift, &slope);
            const auto fill = [&](int array, A a) {
              std::fill_n(coefficients(n, array) + g * plan_.width, plan_.width, a);
            };
            fill(kRstd, rstd(n * s_.G + g));
            fill(kShift, shift);
            fill(kSlope, slope);
          }
          for (int array = 0; array < kArrays; ++array) coefficients.repeat(n, array);
        },
        [&](int64_t n, int64_t i) {
          if (dx() == nullptr) return;
          plan_.wide_rows(plan_.part(n, i), [&](int64_t at, int64_t rows, int64_t width) {
            normalization_ops<T>().group_columns(
                x() + at, dy() + at, dx() + at, rows, width, coefficients(n, kMean), coefficients(n, kRstd),
                coefficients(n, kShift), coefficients(n, kSlope), weight_.data());
          });
        });
  }

  // S / n and P * rstd^2 / n of a group, from the sums of its channels.
  void of_group(int64_t group, A* shift, A* slope) const {
    const int64_t from = group * plan_.width;
    const A* weight = &weight_[group % s_.G * plan_.width];
    double sum = 0, dot = 0;
    for (int64_t k = 0; k < plan_.width; ++k) {
      sum += weight[k] * sums_[from + k];
      dot += weight[k] * dots_[from + k];
    }
    const double r = rstd(group);
    *shift = static_cast<A>(sum / plan_.count());
    *slope = static_cast<A>(dot / plan_.count() * r * r);
  }

  void parameters() const {
    for (int64_t c = 0; c < s_.C; ++c) {
      double dw = 0, db = 0;
      for (int64_t n = 0; n < s_.N; ++n) {
        dw += dots_[n * s_.C + c] * rstd(n * s_.G + c / plan_.width);
        db += sums_[n * s_.C + c];
      }
      if (p_.dweight) static_cast<A*>(p_.dweight)[c] = static_cast<A>(dw);
      if (p_.dbias) static_cast<A*>(p_.dbias)[c] = static_cast<A>(db);
    }
  }

  const GroupNormBackwardParams& p_;
  const GroupNormShape& s_;
  const GroupPlan plan_;
  const Scratch<double> sums_, dots_;  // [N, C]: of dy and of dy * (x - mean)
  const Scratch<A> weight_;            // [C] * repeat
};

bool is_empty(const GroupNormShape& s) {
  return s.N == 0 || s.C == 0 || s.L == 0;
}

}  // namespace

void group_norm_forward(const GroupNormParams& p) {
  if (is_empty(p.shape)) return;
  visit(p.dtype, [&](auto t) { GroupForward<decltype(t)>(p).run(); });
}
void group_norm_backward(const GroupNormBackwardParams& p) {
  if (is_empty(p.shape)) return;
  visit(p.dtype, [&](auto t) { GroupBackward<decltype(t)>(p).run(); });
}

}  // namespace fastnn::cpu
