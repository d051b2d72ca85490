#include "shared.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <new>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

namespace fastnn::emulator {
namespace {

constexpr unsigned char kGuard = 0xa5;
#ifdef __SANITIZE_ADDRESS__
constexpr size_t kGranule = 8;  // the sanitizer can't forbid the beginning of eight bytes alone
#else
constexpr size_t kGranule = 1;
#endif

size_t round_up(size_t bytes, size_t unit) {
  return (bytes + unit - 1) / unit * unit;
}

}  // namespace

SharedArray::SharedArray(size_t bytes, size_t alignment) : bytes_(bytes) {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t room = round_up(bytes, std::max(alignment, kGranule));
  page_bytes_ = round_up(room + page / 2, page);  // at least half a page of guard bytes
  map_bytes_ = page_bytes_ + 2 * page;
  void* map = mmap(nullptr, map_bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (map == MAP_FAILED) throw std::bad_alloc();
  map_ = static_cast<unsigned char*>(map);
  pages_ = map_ + page;
  if (mprotect(pages_, page_bytes_, PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
  data_ = pages_ + page_bytes_ - room;
  std::memset(pages_, kGuard, page_bytes_);
#ifdef __SANITIZE_ADDRESS__
  ASAN_POISON_MEMORY_REGION(pages_, data_ - pages_);
  ASAN_POISON_MEMORY_REGION(data_ + bytes_, room - bytes_);
#endif
}

SharedArray::~SharedArray() {
#ifdef __SANITIZE_ADDRESS__
  ASAN_UNPOISON_MEMORY_REGION(pages_, page_bytes_);
#endif
  munmap(map_, map_bytes_);
}

void SharedArray::poison() const {
  std::memset(data_, 0xff, bytes_);
}

bool SharedArray::guards_hold() const {
#ifdef __SANITIZE_ADDRESS__
  return true;  // reported at the access
#else
  const auto is_guard = [](unsigned char byte) { return byte == kGuard; };
  return std::all_of(pages_, data_, is_guard) && std::all_of(data_ + bytes_, pages_ + page_bytes_, is_guard);
#endif
}

void* SharedMemory::use(SharedArray& array) {
  if (array.block != block_) {
    array.block = block_;
    array.poison();
  }
  return array.data();
}

void SharedMemory::begin_block(size_t dynamic_bytes) {
  ++block_;
  static_bytes_ = 0;
  dynamic_bytes_ = dynamic_bytes;
  if (dynamic_bytes > 0) use(dynamic_.try_emplace(dynamic_bytes, dynamic_bytes, 16).first->second);
}

std::string SharedMemory::end_block() {
  for (const auto& [place, array] : static_) {
    if (array.block == block_ && !array.guards_hold()) {
      return "a write before the beginning of a shared array of " + std::to_string(array.bytes()) + " bytes";
    }
  }
  if (dynamic_bytes_ > 0 && !dynamic_.at(dynamic_bytes_).guards_hold()) {
    return "a write outside the dynamic shared memory";
  }
  return "";
}

void* SharedMemory::array(const void* place, size_t bytes, size_t alignment) {
  SharedArray& array = static_.try_emplace(place, bytes, alignment).first->second;
  if (array.block != block_) static_bytes_ += round_up(bytes, alignment);
  return use(array);
}

void* SharedMemory::dynamic() const {
  return dynamic_bytes_ > 0 ? dynamic_.at(dynamic_bytes_).data() : nullptr;
}

}  // namespace fastnn::emulator
