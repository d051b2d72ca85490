// Layer and RMS norm. Forward: the moments of a row, piece by piece, then y while the row is in cache.
// Backward, with g = dy * weight, S = sum(g), P = sum(g * (x - mean)) of a row of n elements:
//   dx = (g - S / n - (x - mean) * P * rstd^2 / n) * rstd           (RMS norm: mean = 0 and no S)
//   dweight = sum over rows of dy * (x - mean) * rstd,  dbias = sum over rows of dy
// Tiles of rows are looked at twice while they are in cache: for S and P, then for all three gradients. The
// parameters' are summed over fixed blocks of rows, and the blocks in double.
#include "cpu/normalization_plan.h"

namespace fastnn::cpu {
namespace {

template <class T>
class LayerForward {
  using A = Compute<T>;

 public:
  LayerForward(const LayerNormParams& p, int64_t G, double* var)
      : p_(p),
        G_(G),
        var_(var),
        pieces_(p.length),
        moments_(pieces_.whole() ? 0 : p.rows * pieces_.count),
        lost_(pieces_.whole() ? 0 : p.rows) {}

  void run() const {
    if (pieces_.whole()) {
      return forward_units<T>({.x = x(),
                               .y = static_cast<T*>(p_.y),
                               .units = p_.rows,
                               .length = p_.length,
                               .inner = 1,
                               .group = 0,
                               .G = G_,
                               .weight = static_cast<const A*>(p_.weight),
                               .bias = static_cast<const A*>(p_.bias),
                               .mean = static_cast<A*>(p_.mean),
                               .rstd = static_cast<A*>(p_.rstd),
                               .var = var_,
                               .eps = p_.eps,
                               .rms = p_.rms});
    }
    in_three_steps(
        p_.rows, pieces_.count, 3 * std::min(p_.length, Pieces::kPiece),
        [&](int64_t row, int64_t i) {
          moments_[row * pieces_.count + i] =
              piece_moments(x() + row * p_.length + pieces_.begin(i), pieces_.size(i), p_.rms);
        },
        [&](int64_t row) { finish(row); }, [&](int64_t row, int64_t i) { normalize(row, i); });
  }

 private:
  const T* x() const { return static_cast<const T*>(p_.x); }
  A& rstd(int64_t row) const { return static_cast<A*>(p_.rstd)[row]; }
  A mean(int64_t row) const { return p_.rms ? A(0) : static_cast<const A*>(p_.mean)[row]; }

  void finish(int64_t row) const {
    const Moments m = merge(&moments_[row * pieces_.count], pieces_.count, static_cast<double>(p_.length),
                            [&](int64_t i) { return pieces_.size(i); });
    const double variance = m.m2 / static_cast<double>(p_.length), r = 1 / std::sqrt(variance + p_.eps);
    rstd(row) = static_cast<A>(r);
    if (!p_.rms) static_cast<A*>(p_.mean)[row] = static_cast<A>(m.mean);
    if (var_ != nullptr) var_[row] = variance;
    lost_[row] = static_cast<A>((m.mean - static_cast<double>(mean(row))) * r);
  }

  void normalize(int64_t row, int64_t i) const {
    const int64_t begin = pieces_.begin(i), at = row * p_.length + begin,
                  parameter = row % G_ * p_.length + begin;
    const auto from = [&](const void* p) { return p ? static_cast<const A*>(p) + parameter : nullptr; };
    normalization_ops<T>().normalize(x() + at, static_cast<T*>(p_.y) + at, pieces_.size(i), mean(row),
                                     rstd(row), lost_[row], from(p_.weight), from(p_.bias));
  }

  const LayerNormParams& p_;
  const int64_t G_;
  double* const var_;
  const Pieces pieces_;
  const Scratch<Moments> moments_;  // [rows, pieces]
  const Scratch<A> lost_;           // [rows]: what rounding took from the mean, times rstd
};

template <class T>
class LayerBackward {
  using A = Compute<T>;
  static constexpr int64_t kBlock = 128;  // rows of a block at most: a lane adds 32 tiles
  static constexpr int64_t kBlocks = 16;  // blocks at least, as far as there are tiles: work for the threads

 public:
  LayerBackward(const LayerNormBackwardParams& p, int64_t G)
      : p_(p),
        G_(G),
        N_(p.rows / G),
        pieces_(p.length),
        block_(std::min(kBlock, (N_ + kBlocks * kNormTile - 1) / (kBlocks * kNormTile) * kNormTile)),
        blocks_((N_ + block_ - 1) / block_),
        width_(G * p.length),
        wants_parameters_(p.dweight != nullptr || p.dbias != nullptr),
        parts_(wants_parameters_ ? 2 * blocks_ * width_ : 0) {}

  void run() const {
    const int64_t threads = thread_limit(), units = blocks_ * G_;
    if (pieces_.whole() || units >= 4 * threads || units % threads == 0) {
      by_tile();
    } else {
      by_piece();
    }
    if (p_.dweight != nullptr) add_blocks(parts_.data(), p_.dweight);
    if (p_.dbias != nullptr) add_blocks(parts_.data() + blocks_ * width_, p_.dbias);
  }

 private:
  struct Sums {
    double sum[kNormTile], dot[kNormTile];
  };
  int64_t tiles(int64_t block) const { return (rows(block) + kNormTile - 1) / kNormTile; }
  int64_t rows(int64_t block) const { return std::min(block_, N_ - block * block_); }

  // Piece i of tile t of a block, all but shift and slope.
  NormTile<T> tile(int64_t block, int64_t g, int64_t t, int64_t i) const {
    const int64_t n = block * block_ + t * kNormTile, piece = g * p_.length + pieces_.begin(i);
    const int64_t at = n * width_ + piece, part = block * width_ + piece;
    NormTile<T> tile = {};
    tile.x = static_cast<const T*>(p_.x) + at;
    tile.dy = static_cast<const T*>(p_.dy) + at;
    tile.dx = p_.dx ? static_cast<T*>(p_.dx) + at : nullptr;
    tile.rows = static_cast<int>(std::min<int64_t>(kNormTile, rows(block) - t * kNormTile));
    tile.length = pieces_.size(i);
    tile.stride = width_;
    tile.weight = p_.weight ? static_cast<const A*>(p_.weight) + piece : nullptr;
    tile.dweight = wants_parameters_ ? parts_.data() + part : nullptr;
    tile.dbias = wants_parameters_ ? parts_.data() + blocks_ * width_ + part : nullptr;
    for (int r = 0; r < tile.rows; ++r) {
      const int64_t row = (n + r) * G_ + g;
      tile.mean[r] = p_.rms ? A(0) : static_cast<const A*>(p_.mean)[row];
      tile.rstd[r] = static_cast<const A*>(p_.rstd)[row];
    }
    return tile;
  }

  void add(const NormTile<T>& tile, Sums& sums) const {
    Sums piece;
    normalization_ops<T>().sums(tile, piece.sum, piece.dot);
    for (int r = 0; r < tile.rows; ++r) sums.sum[r] += piece.sum[r], sums.dot[r] += piece.dot[r];
  }

  void gradients(NormTile<T> tile, const Sums& sums) const {
    const double n = static_cast<double>(p_.length);
    for (int r = 0; r < tile.rows; ++r) {
      const double rstd = tile.rstd[r];
      tile.shift[r] = p_.rms ? A(0) : static_cast<A>(sums.sum[r] / n);
      tile.slope[r] = static_cast<A>(sums.dot[r] / n * rstd * rstd);
    }
    normalization_ops<T>().gradients(tile);
  }

  void clear(int64_t block, int64_t g, int64_t begin, int64_t size) const {
    if (!wants_parameters_) return;
    A* part = parts_.data() + block * width_ + g * p_.length + begin;
    std::fill_n(part, size, A(0));
    std::fill_n(part + blocks_ * width_, size, A(0));
  }

  void by_tile() const {
    const int64_t cost = 4 * block_ * p_.length;
    parallel_for(blocks_ * G_, std::max<int64_t>(1, kGrain / cost), [&](int64_t begin, int64_t end) {
      for (int64_t u = begin; u < end; ++u) {
        const int64_t block = u / G_, g = u % G_;
        clear(block, g, 0, p_.length);
        for (int64_t t = 0; t < tiles(block); ++t) {
          Sums sums = {};
          if (p_.dx != nullptr)
            for (int64_t i = 0; i < pieces_.count; ++i) add(tile(block, g, t, i), sums);
          for (int64_t i = 0; i < pieces_.count; ++i) gradients(tile(block, g, t, i), sums);
        }
      }
    });
  }

  // Few long rows: first the sums of all pieces, then the gradients of all.
  void by_piece() const {
    const int64_t most = (block_ + kNormTile - 1) / kNormTile;  // tiles of a block
    const Scratch<Sums> sums(blocks_ * G_ * most * pieces_.count);
    const auto each_piece = [&](const auto& f) {
      const int64_t grain = std::max<int64_t>(1, kGrain / (2 * block_ * Pieces::kPiece));
      parallel_for(blocks_ * G_ * pieces_.count, grain, [&](int64_t begin, int64_t end) {
        for (int64_t k = begin; k < end; ++k) {
          const int64_t unit = k / pieces_.count, i = k % pieces_.count;
          f(unit / G_, unit % G_, i, sums.data() + unit * most * pieces_.count);
        }
      });
    };
    each_piece([&](int64_t block, int64_t g, int64_t i, Sums* unit) {
      for (int64_t t = 0; t < tiles(block); ++t)
        normalization_ops<T>().sums(tile(block, g, t, i), unit[t * pieces_.count + i].sum,
                                    unit[t * pieces_.count + i].dot);
    });
    each_piece([&](int64_t block, int64_t g, int64_t i, const Sums* unit) {
      clear(block, g, pieces_.begin(i), pieces_.size(i));
      for (int64_t t = 0; t < tiles(block); ++t) {
        const NormTile<T> piece = tile(block, g, t, i);
        Sums total = {};
        for (const Sums* s = unit + t * pieces_.count; s < unit + (t + 1) * pieces_.count; ++s)
          for (int r = 0; r < piece.rows; ++r) total.sum[r] += s->sum[r], total.dot[r] += s->dot[r];
        gradients(piece, total);
      }
    });
  }

  void add_blocks(const A* parts, void* total) const {
    constexpr int64_t kColumns = 512;
    parallel_for((width_ + kColumns - 1) / kColumns, std::max<int64_t>(1, kGrain / (kColumns * blocks_)),
                 [&](int64_t begin, int64_t end) {
                   const int64_t first = begin * kColumns;
                   normalization_ops<T>().add_blocks(parts + first, blocks_, width_,
                                                     std::min(width_, end * kColumns) - first,
                                                     static_cast<A*>(total) + first);
                 });
  }

  const LayerNormBackwardParams& p_;
  const int64_t G_, N_;
  const Pieces pieces_;
  const int64_t block_, blocks_, width_;
  const bool wants_parameters_;
  const Scratch<A> parts_;  // [2: dweight, dbias][blocks, G, length]
};

}  // namespace

void grouped_layer_forward(const LayerNormParams& p, int64_t G, double* var) {
  if (p.rows == 0 || p.length == 0) return;
  visit(p.dtype, [&](auto t) { LayerForward<decltype(t)>(p, G, var).run(); });
}
void grouped_layer_backward(const LayerNormBackwardParams& p, int64_t G) {
  if (p.rows == 0 || p.length == 0) return;
  visit(p.dtype, [&](auto t) { LayerBackward<decltype(t)>(p, G).run(); });
}

void layer_norm_forward(const LayerNormParams& p) {
  grouped_layer_forward(p, 1, nullptr);
}
void layer_norm_backward(const LayerNormBackwardParams& p) {
  grouped_layer_backward(p, 1);
}

}  // namespace fastnn::cpu
