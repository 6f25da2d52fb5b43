// digest: whether tensors still hold what they held. Versions of tensors do not tell: writes through
// .data count none up.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <array>
#include <cstring>
#include <vector>

namespace detnas {
namespace {

constexpr uint64_t kPrime = 0x9E3779B185EBCA87u;

inline uint64_t mix(uint64_t hash, uint64_t word) {
  hash ^= word;
  return (hash << 29 | hash >> 35) * kPrime;  // the rotation spreads the highest bits, too
}

uint64_t of_bytes(const char* bytes, int64_t size) {
  constexpr int64_t kLanes = 32, kBlock = kLanes * sizeof(uint64_t);  // independent: vectors of them
  std::array<uint64_t, kLanes> lanes{}, words;
  for (; size >= kBlock; size -= kBlock, bytes += kBlock) {
    std::memcpy(words.data(), bytes, kBlock);
    for (int64_t i = 0; i < kLanes; ++i) lanes[i] = mix(lanes[i], words[i]);
  }
  words.fill(0);
  std::memcpy(words.data(), bytes, size);
  for (int64_t i = 0; i < kLanes; ++i) lanes[i] = mix(lanes[i], words[i]);
  uint64_t hash = 0;
  for (const uint64_t lane : lanes) hash = mix(hash, lane);
  return hash;
}

int64_t digest(at::TensorList tensors) {
  std::vector<uint64_t> hashes(tensors.size());
  at::parallel_for(0, static_cast<int64_t>(tensors.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const at::Tensor t = tensors[i].contiguous();
      uint64_t hash = of_bytes(static_cast<const char*>(t.const_data_ptr()), static_cast<int64_t>(t.nbytes()));
      for (const int64_t size : t.sizes()) hash = mix(hash, static_cast<uint64_t>(size));
      hashes[i] = mix(hash, static_cast<uint64_t>(t.scalar_type()));
    }
  });
  uint64_t hash = 0;
  for (const uint64_t one : hashes) hash = mix(hash, one);
  int64_t result;
  std::memcpy(&result, &hash, sizeof(result));
  return result;
}

}  // namespace
}  // namespace detnas

TORCH_LIBRARY_IMPL(detnas_d2, CPU, m) { m.impl("digest", &detnas::digest); }
