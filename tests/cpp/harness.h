// Test harness of the torch-free kernels. One executable per tests/cpp/test_*.cpp:
//
//   TEST(relu_keeps_nan) {                 // runs once under every variant: each CPU capability of this
//   machine
//     for (Place place : kPlaces) {        // against an unmapped page: at its start, at its end, both off by
//     one
//       Buffer<float> x(n, place), y(n, place);
//       x.fill_random(/*seed=*/1, -2, 2);
//       ...call the kernel...
//       CHECK_CLOSE(y, expected, /*rtol=*/1e-6, /*atol=*/1e-7);  // expected: std::vector<double>
//     }
//   }
//
// A kernel that reads or writes past a buffer faults on the unmapped page (the report names test and
// variant) or changes the canary bytes beside the data (checked when the buffer is destroyed).
// `test_relu NAME` runs the tests whose name contains NAME. Last line: "N passed, N failed".
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <type_traits>
#include <vector>

#include "cpu/capability.h"
#include "fastnn/dtype.h"

namespace fastnn::testing {

// Where a buffer lies between its two unmapped pages. The "Odd" places are one element off the page
// border, so that no vector load is aligned; canaries stand where the guard page does not touch.
enum class Place { kEnd, kStart, kEndOdd, kStartOdd };
inline constexpr Place kPlaces[] = {Place::kEnd, Place::kStart, Place::kEndOdd, Place::kStartOdd};
const char* name(Place);

// ---- Numbers ----

template <class T>
constexpr DType kDType = std::is_same_v<T, float>      ? DType::kFloat32
                         : std::is_same_v<T, double>   ? DType::kFloat64
                         : std::is_same_v<T, BFloat16> ? DType::kBFloat16
                                                       : DType::kFloat16;

double to_double(float x);
double to_double(double x);
double to_double(BFloat16 x);
double to_double(Float16 x);
double to_double(int64_t x);
double to_double(int32_t x);
double to_double(uint8_t x);

// Rounds to nearest, ties to even.
template <class T>
T from_double(double x);

// Uniform in [lo, hi): a function of seed and index alone.
double random_at(uint64_t seed, int64_t index, double lo = -1, double hi = 1);

// ---- Buffers ----

class GuardedBytes {
 public:
  GuardedBytes(size_t bytes, size_t element, Place place);
  ~GuardedBytes();  // fails the running test when a canary has changed
  GuardedBytes(const GuardedBytes&) = delete;
  GuardedBytes& operator=(const GuardedBytes&) = delete;
  void* data() const { return data_; }

 private:
  unsigned char *map_, *pages_, *data_;
  size_t map_bytes_, page_bytes_, bytes_;
};

// `size` elements, first all bits one: NaN in every floating type, so what a kernel forgot shows.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t size, Place place = Place::kEnd)
      : bytes_(static_cast<size_t>(size) * sizeof(T), sizeof(T), place), size_(size) {
    if (size_ > 0) std::memset(bytes_.data(), 0xff, static_cast<size_t>(size_) * sizeof(T));
  }
  Buffer(const std::vector<double>& values, Place place = Place::kEnd)
      : Buffer(static_cast<int64_t>(values.size()), place) {
    for (int64_t i = 0; i < size_; ++i) data()[i] = from_double<T>(values[i]);
  }
  T* data() const { return static_cast<T*>(bytes_.data()); }
  int64_t size() const { return size_; }
  T& operator[](int64_t i) const { return data()[i]; }
  void fill(double value) const {
    for (int64_t i = 0; i < size_; ++i) data()[i] = from_double<T>(value);
  }
  void fill_random(uint64_t seed, double lo = -1, double hi = 1) const {
    for (int64_t i = 0; i < size_; ++i) data()[i] = from_double<T>(random_at(seed, i, lo, hi));
  }
  // The values as stored (rounded to T): what a reference in double starts from.
  std::vector<double> doubles() const {
    std::vector<double> out(size_);
    for (int64_t i = 0; i < size_; ++i) out[i] = to_double(data()[i]);
    return out;
  }
  bool same_bits(const Buffer& other) const {
    return size_ == other.size_ &&
           (size_ == 0 || std::memcmp(data(), other.data(), static_cast<size_t>(size_) * sizeof(T)) == 0);
  }

 private:
  GuardedBytes bytes_;
  int64_t size_;
};

// ---- Checks: a failed one is printed and fails the running test, which goes on ----

void fail(const char* file, int line, const std::string& message);

// |actual - expected| <= atol + rtol * |expected|; NaN equals NaN, infinities must be equal.
void check_close(const std::vector<double>& actual, const std::vector<double>& expected, double rtol,
                 double atol, const char* what, const char* file, int line);

template <class T>
void check_close(const Buffer<T>& actual, const std::vector<double>& expected, double rtol, double atol,
                 const char* what, const char* file, int line) {
  check_close(actual.doubles(), expected, rtol, atol, what, file, line);
}

// While it lives, a failure's message begins with this text: the case inside a loop.
class Case {
 public:
  explicit Case(std::string text);
  ~Case();
  Case(const Case&) = delete;
  Case& operator=(const Case&) = delete;
};

// ---- Running ----

struct Registration {
  Registration(const char* name, void (*body)(), bool per_variant);
};

// What a test is repeated under: the instruction sets (capabilities.cpp), for the emulated CUDA kernels the
// orders of threads (tests/cuda_emulator/orders.cpp). The last one is the best.
struct Variant {
  const char* name;
  std::function<void()> select;
};
const std::vector<Variant>& variants();

// Runs f() with 1, 2, 3 and 7 OpenMP threads, then restores the number.
void set_threads(int count);  // 0 restores the number at start
template <class F>
void each_thread_count(const F& f) {
  for (int count : {1, 2, 3, 7}) {
    set_threads(count);
    f();
  }
  set_threads(0);
}

}  // namespace fastnn::testing

#define FASTNN_TEST(name, per_variant)                                                               \
  static void test_##name();                                                                         \
  static const ::fastnn::testing::Registration registration_##name(#name, test_##name, per_variant); \
  static void test_##name()

#define TEST(name) FASTNN_TEST(name, true)        // once per variant
#define TEST_ONCE(name) FASTNN_TEST(name, false)  // once, under the best

#define CHECK(condition)                                                       \
  do {                                                                         \
    if (!(condition)) ::fastnn::testing::fail(__FILE__, __LINE__, #condition); \
  } while (0)
#define CHECK_CLOSE(actual, expected, rtol, atol) \
  ::fastnn::testing::check_close(actual, expected, rtol, atol, #actual, __FILE__, __LINE__)
