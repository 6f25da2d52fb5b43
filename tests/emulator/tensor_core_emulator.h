// ldmatrix and mma on the host, for csrc/cuda/tensor_core.cuh: a warp's lanes meet, and the last to come
// moves all fragments as the PTX ISA lays them out.
#pragma once

namespace detnas {
namespace cuda {

template <bool TRANSPOSED>
inline void ldmatrix(uint32_t (&to)[4], const void* row) {
  struct Lane {
    uint32_t* to;
    const unsigned char* row;
  } lane{to, static_cast<const unsigned char*>(row)};
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) emulator::fail("matrix at a misaligned address");
  emulator::Scheduler::get().of_warp(&lane, [](void* const* lanes) {
    const auto of = [&](int l) { return *static_cast<const Lane*>(lanes[l]); };
    for (int m = 0; m < 4; ++m) {
      uint16_t rows[8][8];
      for (int r = 0; r < 8; ++r) std::memcpy(rows[r], of(8 * m + r).row, 16);
      for (int l = 0; l < 32; ++l) {
        const int g = l / 4, t = l % 4;
        const uint16_t pair[] = {TRANSPOSED ? rows[2 * t][g] : rows[g][2 * t],
                                 TRANSPOSED ? rows[2 * t + 1][g] : rows[g][2 * t + 1]};
        std::memcpy(of(l).to + m, pair, 4);
      }
    }
  });
}

inline float to_tf32(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  if (v - v == 0.f) bits = (bits + 0x1000u) & ~0x1FFFu;
  std::memcpy(&v, &bits, 4);
  return v;
}

// Elements of 4 bytes of a fragment: two of 16 bits, or one of which tensor cores see 19.
template <typename S>
inline void elements(uint32_t bits, float* to) {
  if constexpr (sizeof(S) == 4) {
    bits &= ~0x1FFFu;
    std::memcpy(to, &bits, 4);
  } else {
    S pair[2];
    std::memcpy(pair, &bits, 4);
    to[0] = static_cast<float>(pair[0]), to[1] = static_cast<float>(pair[1]);
  }
}

template <typename S>
inline void mma(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  struct Lane {
    float* sums;
    const uint32_t* a;
    uint32_t b[2];
  } lane{sums, a, {b0, b1}};
  emulator::Scheduler::get().of_warp(&lane, [](void* const* lanes) {
    constexpr int kEach = 4 / sizeof(S), kDepth = 8 * kEach;
    float rows[16][kDepth], cols[8][kDepth];
    for (int l = 0; l < 32; ++l) {
      const Lane& lane = *static_cast<const Lane*>(lanes[l]);
      const int g = l / 4, t = l % 4;
      for (int i = 0; i < 4; ++i) elements<S>(lane.a[i], rows[g + i % 2 * 8] + i / 2 * kDepth / 2 + t * kEach);
      for (int i = 0; i < 2; ++i) elements<S>(lane.b[i], cols[g] + i * kDepth / 2 + t * kEach);
    }
    for (int l = 0; l < 32; ++l)
      for (int i = 0; i < 4; ++i) {
        float& sum = static_cast<const Lane*>(lanes[l])->sums[i];
        const float *row = rows[l / 4 + i / 2 * 8], *col = cols[l % 4 * 2 + i % 2];
        for (int k = 0; k < kDepth; ++k) sum += row[k] * col[k];
      }
  });
}

}  // namespace cuda
}  // namespace detnas
