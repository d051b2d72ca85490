// Sums in splits that threads make side by side, each in room of its own, and add up in the order of the
// splits: as much room as there are threads, and the same bits for any number of them.
#pragma once
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace fastnn::cpu {

class SplitQueue {
 public:
  struct Item {
    int64_t sum, split, part;  // a sum's parts are added up apart from each other
  };

  SplitQueue(int64_t sums, int64_t splits, int64_t parts)
      : splits_(splits), parts_(parts), size_(sums * splits * parts), added_(sums * parts) {}
  int64_t size() const { return size_; }

  // The next item for the calling thread; false when all are taken. They are given out in the order of their
  // splits, so that whoever waits does so for a thread that is at work.
  bool next(Item& item) {
    const int64_t i = next_.fetch_add(1, std::memory_order_relaxed);
    item = {i / parts_ / splits_, i / parts_ % splits_, i % parts_};
    return i < size_;
  }
  // Until the split before this one is added.
  void wait(const Item& item) const {
    while (added_[index(item)].load(std::memory_order_acquire) != item.split) std::this_thread::yield();
  }
  void done(const Item& item) { added_[index(item)].store(item.split + 1, std::memory_order_release); }

 private:
  size_t index(const Item& item) const { return static_cast<size_t>(item.sum * parts_ + item.part); }

  int64_t splits_, parts_, size_;
  std::vector<std::atomic<int64_t>> added_;  // splits
  std::atomic<int64_t> next_{0};
};

}  // namespace fastnn::cpu
