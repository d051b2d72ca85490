// Scratch memory that is kept between calls, one arena per thread: fresh memory costs a page fault
// per 4 KiB, several times the price of the arithmetic done on it.
#pragma once
#include <cstddef>
#include <cstdint>

namespace fastnn::cpu {

// Uninitialised, 64-byte aligned room for `count` elements, from the calling thread's arena.
// Nested scopes stack; the room is valid until the Scratch that owns it is destroyed.
class ScratchBytes {
 public:
  explicit ScratchBytes(size_t bytes);
  ~ScratchBytes();
  ScratchBytes(const ScratchBytes&) = delete;
  ScratchBytes& operator=(const ScratchBytes&) = delete;
  void* data() const { return data_; }

 private:
  void* data_;
  size_t bytes_;
  bool own_;  // too large for the arena's bound: allocated for this scope alone
};

template <class T>
class Scratch : ScratchBytes {
 public:
  explicit Scratch(int64_t count) : ScratchBytes(static_cast<size_t>(count) * sizeof(T)) {}
  T* data() const { return static_cast<T*>(ScratchBytes::data()); }
  T& operator[](int64_t i) const { return data()[i]; }
};

}  // namespace fastnn::cpu
