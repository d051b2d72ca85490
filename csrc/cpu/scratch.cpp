#include "cpu/scratch.h"

#include <cstdlib>
#include <memory>
#include <new>

namespace fastnn::cpu {
namespace {

constexpr size_t kAlign = 64;
// An arena holds at most this much; larger requests are allocated and freed by their scope.
constexpr size_t kArenaBytes = size_t{32} << 20;

struct Free {
  void operator()(void* p) const { std::free(p); }
};

struct Arena {
  std::unique_ptr<char, Free> base;  // reserved on first use, touched page by page as needed
  size_t used = 0;
};

thread_local Arena arena;

size_t round_up(size_t bytes) {
  return (bytes + kAlign - 1) / kAlign * kAlign;
}

void* allocate(size_t bytes) {
  void* p = std::aligned_alloc(kAlign, bytes);
  if (p == nullptr) throw std::bad_alloc();
  return p;
}

}  // namespace

ScratchBytes::ScratchBytes(size_t bytes) : bytes_(round_up(bytes)) {
  if (!arena.base) arena.base.reset(static_cast<char*>(allocate(kArenaBytes)));
  own_ = arena.used + bytes_ > kArenaBytes;
  if (own_) {
    data_ = allocate(bytes_);
  } else {
    data_ = arena.base.get() + arena.used;
    arena.used += bytes_;
  }
}

ScratchBytes::~ScratchBytes() {
  if (own_) {
    std::free(data_);
  } else {
    arena.used -= bytes_;
  }
}

}  // namespace fastnn::cpu
