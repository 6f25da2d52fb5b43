// Packed copies of weights, kept while the weights stay the same.
//
// A copy belongs to one tensor, the memory that it points to and its version, which every in-place
// change counts up. It is made where the same version is seen for the second time, and only by
// operators that run without gradients (fixed_weights.h). Writes through .data count no version up:
// a few values are compared, too. Tensors without a version (made under inference_mode) are packed
// anew at every call.
#pragma once
#include <c10/core/TensorImpl.h>
#include <c10/core/UndefinedTensorImpl.h>

#include <array>
#include <cstring>
#include <memory>
#include <mutex>
#include <unordered_map>

#include "../fixed_weights.h"
#include "common.h"

namespace detnas {
namespace cpu {

template <typename T>
using SharedBuffer = std::shared_ptr<const Buffer<T>>;

template <typename T>
class PackedWeights {
 public:
  static constexpr int64_t kMaxBytes = int64_t(256) << 20;

  // Never destroyed: at exit torch may be gone before it.
  static PackedWeights& instance() {
    static PackedWeights& cache = *new PackedWeights();
    return cache;
  }

  // The copy of `size` elements that fill(T*) makes, or null if none is to be kept yet.
  template <typename F>
  SharedBuffer<T> get(const Tensor& weight, int64_t size, F&& fill) {
    if (weight.is_inference() || size == 0) return nullptr;
    const Key key = weight.unsafeGetTensorImpl();
    const int64_t version = weight._version();
    const T* data = weight.const_data_ptr<T>();
    const Sample sample = sample_of(data, weight);
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      const auto found = entries_.find(key);
      const bool same = found != entries_.end() && found->second.version == version &&
          found->second.data == data && found->second.size == size &&
          std::memcmp(&found->second.sample, &sample, sizeof(sample)) == 0;
      if (same && found->second.copy) {
        found->second.used = ++clock_;
        return found->second.copy;
      }
      if (!same) {
        put(weight, version, data, sample, size, nullptr);
        return nullptr;
      }
    }
    auto copy = std::make_shared<Buffer<T>>(size);
    fill(copy->data());
    const std::lock_guard<std::mutex> lock(mutex_);
    put(weight, version, data, sample, size, copy);
    return copy;
  }

  // Bytes of the copies of living tensors.
  int64_t bytes() {
    const std::lock_guard<std::mutex> lock(mutex_);
    drop_expired();
    return bytes_;
  }

 private:
  using Key = const c10::TensorImpl*;
  using Sample = std::array<T, 16>;
  using Weak = c10::weak_intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl>;
  struct Entry {
    // Keeps the address, not the values: no other tensor takes the key as long as the entry lives.
    Weak tensor;
    int64_t version, size, used;
    const T* data;
    Sample sample;
    SharedBuffer<T> copy;
    int64_t bytes() const { return copy ? size * static_cast<int64_t>(sizeof(T)) : 0; }
  };

  static Sample sample_of(const T* data, const Tensor& weight) {
    Sample sample{};
    const int64_t size = weight.is_contiguous() ? weight.numel() : 0, n = sample.size();
    for (int64_t i = 0; i < n && size > 0; ++i) sample[i] = data[i * (size - 1) / (n - 1)];
    return sample;
  }
  void put(const Tensor& weight, int64_t version, const T* data, const Sample& sample, int64_t size,
           SharedBuffer<T> copy) {
    if (copy || ++since_sweep_ > 1024) drop_expired();
    erase(entries_.find(weight.unsafeGetTensorImpl()));
    Entry entry{Weak(weight.getIntrusivePtr()), version, size,
                ++clock_, data, sample, std::move(copy)};
    bytes_ += entry.bytes();
    entries_.emplace(weight.unsafeGetTensorImpl(), std::move(entry));
    while (bytes_ > kMaxBytes) drop_oldest_half();
  }
  void erase(typename std::unordered_map<Key, Entry>::iterator it) {
    if (it == entries_.end()) return;
    bytes_ -= it->second.bytes();
    entries_.erase(it);
  }
  template <typename P>
  void erase_if(P&& predicate) {
    for (auto it = entries_.begin(); it != entries_.end();) {
      const auto next = std::next(it);
      if (predicate(it->second)) erase(it);
      it = next;
    }
  }
  void drop_expired() {
    since_sweep_ = 0;
    erase_if([](const Entry& e) { return e.tensor.expired(); });
  }
  void drop_oldest_half() {
    const int64_t limit = clock_ - std::max<int64_t>(static_cast<int64_t>(entries_.size()) / 2, 1);
    erase_if([&](const Entry& e) { return e.used <= limit; });
    if (bytes_ > kMaxBytes) erase_if([](const Entry&) { return true; });
  }

  std::mutex mutex_;
  std::unordered_map<Key, Entry> entries_;
  int64_t bytes_ = 0, clock_ = 0, since_sweep_ = 0;
};

// A weight packed by fill(T*): the copy that is kept, or one in the workspace.
template <typename T>
struct PackedWeight {
  SharedBuffer<T> kept;
  const T* data = nullptr;
};
template <typename T, typename F>
PackedWeight<T> packed_weight(const Tensor& weight, int64_t size, F&& fill) {
  PackedWeight<T> packed;
  if (FixedWeights::flag()) packed.kept = PackedWeights<T>::instance().get(weight, size, fill);
  if (packed.kept) {
    packed.data = packed.kept->data();
  } else {
    T* memory = workspace<T, 1>(size);
    fill(memory);
    packed.data = memory;
  }
  return packed;
}

// The same, for several weights in use at once: never in the workspace.
template <typename T, typename F>
SharedBuffer<T> own_packed_weight(const Tensor& weight, int64_t size, F&& fill) {
  auto copy = PackedWeights<T>::instance().get(weight, size, fill);
  if (copy) return copy;
  auto own = std::make_shared<Buffer<T>>(size);
  fill(own->data());
  return own;
}

}  // namespace cpu
}  // namespace detnas
