// Device memory of a launcher for the time of one call: as long as it asked for and aligned to 16 bytes,
// against unmapped pages, all bits one.
#pragma once
#include "harness.h"

namespace fastnn::testing {

class Workspace {
 public:
  // `numbers` of the compute type of dtype.
  Workspace(int64_t numbers, DType dtype)
      : bytes_((numbers * (dtype == DType::kFloat64 ? 8 : 4) + 15) / 16 * 16) {}
  explicit Workspace(int64_t bytes) : bytes_((bytes + 15) / 16 * 16) {}
  void* data() const { return bytes_.data(); }

 private:
  Buffer<uint8_t> bytes_;
};

}  // namespace fastnn::testing
