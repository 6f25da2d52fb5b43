#include "recycled.h"

#include <ATen/EmptyTensor.h>
#include <c10/core/Allocator.h>

#include <map>
#include <mutex>

namespace detnas {
namespace cpu {
namespace {

#if defined(DETNAS_D2_CHECKED)  // tests/ops/sanitized.py: nothing to reuse
constexpr size_t kKept = 0;
#else
constexpr size_t kKept = 64 << 20;  // bytes, of all that waits
#endif
constexpr size_t kPage = 4096, kSmallest = 64 << 10;  // bytes; smaller ones the C library keeps itself

// Takes memory from PyTorch's allocator and keeps it when tensors give it back.
class Recycler final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t n) override {
    if (n < kSmallest) return plain(n);
    const size_t size = (n + kPage - 1) / kPage * kPage;
    Block* block = take(size);
    if (!block) block = new Block{plain(size), size};
    return {block->memory.get(), block, &give, c10::Device(c10::DeviceType::CPU)};
  }
  void copy_data(void* to, const void* from, size_t count) const override { default_copy_data(to, from, count); }

  static Recycler& instance() {
    static Recycler* const recycler = new Recycler;  // outlives every tensor
    return *recycler;
  }

 private:
  static c10::DataPtr plain(size_t n) { return c10::GetAllocator(c10::DeviceType::CPU)->allocate(n); }

  struct Block {
    c10::DataPtr memory;
    size_t size;
  };

  // One that waits and is not much larger. Locks are tried only: of a forked process they may stay locked.
  Block* take(size_t size) {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock) return nullptr;
    const auto found = waiting_.lower_bound(size);
    if (found == waiting_.end() || found->first > size + size / 4) return nullptr;
    Block* block = found->second;
    waiting_.erase(found);
    bytes_ -= block->size;
    return block;
  }
  static void give(void* context) { instance().keep(static_cast<Block*>(context)); }
  void keep(Block* block) {
    {
      const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
      if (lock && bytes_ + block->size <= kKept) {
        waiting_.emplace(block->size, block);
        bytes_ += block->size;
        return;
      }
    }
    delete block;
  }

  std::mutex mutex_;
  std::multimap<size_t, Block*> waiting_;
  size_t bytes_ = 0;
};

}  // namespace

at::Tensor recycled_map(at::IntArrayRef sizes, at::ScalarType type) {
  const c10::DispatchKeySet cpu(c10::DispatchKey::CPU);
  return at::Tensor(
      at::detail::empty_generic(sizes, &Recycler::instance(), cpu, type, at::MemoryFormat::ChannelsLast));
}

}  // namespace cpu
}  // namespace detnas
