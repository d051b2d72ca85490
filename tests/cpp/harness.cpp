#include "harness.h"

#include <omp.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <csignal>
#include <cstdio>
#include <limits>

namespace fastnn::testing {
namespace {

struct Test {
  const char* name;
  void (*body)();
  bool per_variant;
};

std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

std::vector<std::string> cases;  // the open Case texts
char running[256] = "";          // "test [variant]", plain bytes: the signal handler prints it
int failures_here = 0;           // of the running test
constexpr int kShown = 10;       // failures printed per test

constexpr unsigned char kCanary = 0xa5;

size_t round_up(size_t bytes, size_t unit) {
  return (bytes + unit - 1) / unit * unit;
}

int passed = 0, failed = 0;

// Not for sanitized builds, whose own report is better. A fault ends the run: the rest is not counted.
[[maybe_unused]] void on_fault(int signal) {
  char text[512];
  const int length = std::snprintf(
      text, sizeof(text), "%s: a read or write outside a buffer, or another fault\n%d passed, %d failed\n",
      running, passed, failed + 1);
  [[maybe_unused]] const ssize_t written = write(STDOUT_FILENO, text, static_cast<size_t>(length));
  _exit(128 + signal);
}

// False when the body failed a check.
bool run(const Test& test, const char* variant) {
  std::snprintf(running, sizeof(running), "%s [%s]", test.name, variant);
  failures_here = 0;
  try {
    test.body();
  } catch (const std::exception& e) {
    fail(test.name, 0, std::string("exception: ") + e.what());
  }
  cases.clear();
  if (failures_here > kShown) std::printf("%s: %d more\n", running, failures_here - kShown);
  return failures_here == 0;
}

}  // namespace

const char* name(Place place) {
  switch (place) {
    case Place::kStart: return "start";
    case Place::kEndOdd: return "end, odd";
    case Place::kStartOdd: return "start, odd";
    default: return "end";
  }
}

// ---- Numbers ----

double to_double(float x) {
  return x;
}
double to_double(double x) {
  return x;
}
double to_double(int64_t x) {
  return static_cast<double>(x);
}
double to_double(int32_t x) {
  return x;
}
double to_double(uint8_t x) {
  return x;
}

double to_double(BFloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

double to_double(Float16 x) {
  const int exponent = (x.bits >> 10) & 31, fraction = x.bits & 1023;
  const double sign = x.bits & 0x8000 ? -1 : 1;
  if (exponent == 31) {
    return fraction ? std::numeric_limits<double>::quiet_NaN()
                    : sign * std::numeric_limits<double>::infinity();
  }
  return sign * (exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24));
}

template <>
double from_double<double>(double x) {
  return x;
}
template <>
float from_double<float>(double x) {
  return static_cast<float>(x);
}
template <>
int64_t from_double<int64_t>(double x) {
  return static_cast<int64_t>(x);
}
template <>
int32_t from_double<int32_t>(double x) {
  return static_cast<int32_t>(x);
}
template <>
uint8_t from_double<uint8_t>(double x) {
  return static_cast<uint8_t>(x);
}

// Through float, as a kernel does: the inputs of a test are rounded twice, its references start after that.
template <>
BFloat16 from_double<BFloat16>(double x) {
  const float value = static_cast<float>(x);
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  if (std::isnan(value)) return {0x7fc0};
  return {static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

template <>
Float16 from_double<Float16>(double x) {
  if (std::isnan(x)) return {0x7e00};
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  const double magnitude = std::fabs(x);
  if (magnitude >= 65520)
    return {static_cast<uint16_t>(sign | 0x7c00)};  // halfway above the largest, or more
  int exponent = -14;
  if (magnitude >= std::ldexp(1.0, -14)) exponent = std::ilogb(magnitude);
  // Units of the last place; a carry out of the fraction runs into the exponent, which is then right.
  const int units = static_cast<int>(std::nearbyint(std::ldexp(magnitude, 10 - exponent)));
  return {static_cast<uint16_t>(sign | (((exponent + 14) << 10) + units))};
}

double random_at(uint64_t seed, int64_t index, double lo, double hi) {
  uint64_t z = seed * 0x9e3779b97f4a7c15u + static_cast<uint64_t>(index) * 0xd1342543de82ef95u;  // splitmix64
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  z ^= z >> 31;
  return lo + (hi - lo) * static_cast<double>(z >> 11) * 0x1p-53;
}

// ---- Buffers ----

GuardedBytes::GuardedBytes(size_t bytes, size_t element, Place place) : bytes_(bytes) {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  page_bytes_ = round_up(bytes + element, page);
  map_bytes_ = page_bytes_ + 2 * page;
  void* map = mmap(nullptr, map_bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (map == MAP_FAILED) throw std::bad_alloc();
  map_ = static_cast<unsigned char*>(map);
  pages_ = map_ + page;
  if (mprotect(pages_, page_bytes_, PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
  std::memset(pages_, kCanary, page_bytes_);
  switch (place) {
    case Place::kStart: data_ = pages_; break;
    case Place::kStartOdd: data_ = pages_ + element; break;
    case Place::kEnd: data_ = pages_ + page_bytes_ - bytes; break;
    case Place::kEndOdd: data_ = pages_ + page_bytes_ - bytes - element; break;
  }
}

GuardedBytes::~GuardedBytes() {
  for (const unsigned char* p = pages_; p < pages_ + page_bytes_; ++p) {
    if (p == data_) p += bytes_;
    if (p < pages_ + page_bytes_ && *p != kCanary) {
      const bool before = p < data_;
      const long distance = before ? data_ - p : p - (data_ + bytes_) + 1;
      fail("buffer", 0,
           std::to_string(distance) + (before ? " bytes before" : " bytes after") + " it: written");
      break;
    }
  }
  munmap(map_, map_bytes_);
}

// ---- Checks ----

void fail(const char* file, int line, const std::string& message) {
  if (++failures_here > kShown) return;
  std::printf("%s: ", running);
  for (const std::string& text : cases) std::printf("%s: ", text.c_str());
  std::printf("%s:%d: %s\n", file, line, message.c_str());
}

void check_close(const std::vector<double>& actual, const std::vector<double>& expected, double rtol,
                 double atol, const char* what, const char* file, int line) {
  if (actual.size() != expected.size()) {
    fail(file, line,
         std::string(what) + ": " + std::to_string(actual.size()) + " elements, expected " +
             std::to_string(expected.size()));
    return;
  }
  size_t wrong = 0, worst = 0;
  double worst_ratio = 0;
  for (size_t i = 0; i < actual.size(); ++i) {
    const double a = actual[i], e = expected[i];
    if (a == e || (std::isnan(a) && std::isnan(e))) continue;
    const double ratio = std::fabs(a - e) / (atol + rtol * std::fabs(e));
    if (std::isfinite(e) && ratio <= 1) continue;
    if (wrong++ == 0 || !(ratio <= worst_ratio)) {
      worst = i;
      worst_ratio = ratio;
    }
  }
  if (wrong == 0) return;
  char text[256];
  std::snprintf(text, sizeof(text),
                "%s: %zu of %zu elements are off; at %zu: %.9g, expected %.9g (%.3g x tolerance)", what,
                wrong, actual.size(), worst, actual[worst], expected[worst], worst_ratio);
  fail(file, line, text);
}

Case::Case(std::string text) {
  cases.push_back(std::move(text));
}
Case::~Case() {
  if (!cases.empty()) cases.pop_back();
}

// ---- Running ----

Registration::Registration(const char* name, void (*body)(), bool per_variant) {
  tests().push_back({name, body, per_variant});
}

void set_threads(int count) {
  static const int at_start = omp_get_max_threads();
  omp_set_num_threads(count > 0 ? count : at_start);
}

static int run_all(const char* filter) {
#ifndef __SANITIZE_ADDRESS__
  std::signal(SIGSEGV, on_fault);
  std::signal(SIGBUS, on_fault);
#endif
  set_threads(0);
  for (const Test& test : tests()) {
    if (std::strstr(test.name, filter) == nullptr) continue;
    const std::vector<Variant>& all = variants();
    for (size_t i = test.per_variant ? 0 : all.size() - 1; i < all.size(); ++i) {
      all[i].select();
      ++(run(test, all[i].name) ? passed : failed);
    }
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed > 0 || passed == 0;
}

}  // namespace fastnn::testing

int main(int argc, char** argv) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  return fastnn::testing::run_all(argc > 1 ? argv[1] : "");
}
