// Shared memory of the emulated block: each array ends at an unmapped page and begins after guarded bytes.
//
// Reads and writes past the end fault (or are reported by the address sanitizer); before the beginning the
// sanitizer reports them, and without it a changed guard byte is found when the block ends.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <unordered_map>

namespace fastnn::emulator {

class SharedArray {
 public:
  SharedArray(size_t bytes, size_t alignment);
  ~SharedArray();
  SharedArray(const SharedArray&) = delete;
  SharedArray& operator=(const SharedArray&) = delete;

  void poison() const;       // all bits one
  bool guards_hold() const;  // nothing before the array was written
  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }

  uint64_t block = 0;  // the last one that used it

 private:
  unsigned char *map_, *pages_, *data_;
  size_t map_bytes_, page_bytes_, bytes_;
};

class SharedMemory {
 public:
  void begin_block(size_t dynamic_bytes);
  std::string end_block();  // what was damaged, or ""

  void* array(const void* place, size_t bytes, size_t alignment);
  void* dynamic() const;
  size_t static_bytes() const { return static_bytes_; }
  size_t dynamic_bytes() const { return dynamic_bytes_; }

 private:
  std::unordered_map<const void*, SharedArray> static_;
  std::unordered_map<size_t, SharedArray> dynamic_;  // by size
  uint64_t block_ = 0;
  size_t static_bytes_ = 0, dynamic_bytes_ = 0;

  void* use(SharedArray&);
};

}  // namespace fastnn::emulator
