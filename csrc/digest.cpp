// digest: whether tensors still hold what they held. Versions of tensors do not tell: writes through
// .data count none up.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

namespace detnas {
namespace {

constexpr uint64_t kPrime = 0x9E3779B185EBCA87u;

// Both halves of the product of 64 bits with 64, as in wyhash: one multiplication for two words, which
// every processor has; vectors of 64-bit products many have not.
inline uint64_t mix(uint64_t hash, uint64_t word, uint64_t other = 0) {
  const auto product = static_cast<unsigned __int128>(hash ^ word) * (other ^ kPrime);
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

inline uint64_t word_at(const char* bytes) {
  uint64_t word;
  std::memcpy(&word, bytes, sizeof(word));
  return word;
}

constexpr int64_t kLine = 64, kAhead = 1024;  // bytes

// Asks for the beginning of what is read next, which no hardware foresees.
void prefetch(const char* bytes, int64_t size) {
  for (int64_t i = 0; i < std::min(size, kAhead); i += kLine) __builtin_prefetch(bytes + i);
}

uint64_t of_bytes(const char* bytes, int64_t size) {
  constexpr int64_t kLanes = 6, kBlock = kLanes * 2 * sizeof(uint64_t);  // independent: side by side
  std::array<uint64_t, kLanes> lanes{1, 2, 3, 4, 5, 6};
  const auto add = [&](const char* block) {
#pragma GCC unroll 8
    for (int64_t i = 0; i < kLanes; ++i) lanes[i] = mix(lanes[i], word_at(block + 16 * i), word_at(block + 16 * i + 8));
  };
  for (; size >= kBlock; size -= kBlock, bytes += kBlock) {
    // Multiplications fill the window in which a processor finds loads by itself.
    __builtin_prefetch(bytes + kAhead);
    __builtin_prefetch(bytes + kAhead + kLine);
    add(bytes);
  }
  std::array<char, kBlock> rest{};
  std::memcpy(rest.data(), bytes, size);
  add(rest.data());
  uint64_t hash = 0;
  for (const uint64_t lane : lanes) hash = mix(hash, lane);
  return hash;
}

// One for each group: the first counts[0] tensors, the next counts[1], ...
std::vector<int64_t> digest(at::TensorList tensors, at::IntArrayRef counts) {
  const auto total = static_cast<int64_t>(tensors.size());
  int64_t grouped = 0;
  for (const int64_t count : counts) {
    TORCH_CHECK(count >= 0, "counts: expected none below 0, got ", count);
    grouped += count;
  }
  TORCH_CHECK(grouped == total, "counts: expected ", total, " tensors in all, got ", grouped);
  std::vector<uint64_t> hashes(total);
  at::parallel_for(0, total, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const at::Tensor t = tensors[i].contiguous();
      if (i + 1 < end) prefetch(static_cast<const char*>(tensors[i + 1].const_data_ptr()), tensors[i + 1].nbytes());
      uint64_t hash = of_bytes(static_cast<const char*>(t.const_data_ptr()), static_cast<int64_t>(t.nbytes()));
      for (const int64_t size : t.sizes()) hash = mix(hash, static_cast<uint64_t>(size));
      hashes[i] = mix(hash, static_cast<uint64_t>(t.scalar_type()));
    }
  });
  std::vector<int64_t> results;
  results.reserve(counts.size());
  auto next = hashes.cbegin();
  for (const int64_t count : counts) {
    uint64_t hash = 0;
    for (int64_t i = 0; i < count; ++i) hash = mix(hash, *next++);
    int64_t result;
    std::memcpy(&result, &hash, sizeof(result));
    results.push_back(result);
  }
  return results;
}

}  // namespace
}  // namespace detnas

TORCH_LIBRARY_IMPL(detnas_d2, CPU, m) { m.impl("digest", &detnas::digest); }
