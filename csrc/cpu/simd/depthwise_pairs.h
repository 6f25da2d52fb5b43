// Depthwise convolutions without dilation: two rows of output at a time, so that what is loaded of
// the input serves both. Nothing pending: rows are read where they lie, and only strips that touch
// the map's border from a small copy with zeros around.

// Pixels of a strip: two rows of sums, the inputs of a row and a weight fill the registers.
template <int STRIDE>
constexpr int pair_pixels() {
  return DETNAS_VEC_BYTES < 64 ? 4 : STRIDE == 1 ? 6 : 4;
}

// acc[o][i] += taps of output row o, pixel i. rows[r], first <= r < last: input row r of the strip,
// `apart` between its pixels. w: [K * K][kSlab].
template <typename T, int K, int STRIDE, int S>
DETNAS_INLINE void accumulate_pair(const T* const* rows, int first, int last, int64_t apart, const T* w,
                                   int outputs, typename Vec<T>::type (&acc)[2][S]) {
  using V = typename Vec<T>::type;
  constexpr int N = (S - 1) * STRIDE + K;
  for (int r = first; r < last; ++r) {
    V in[N];
    const T* p = rows[r];
#pragma GCC unroll 32
    for (int i = 0; i < N; ++i, p += apart) in[i] = load(p);
#pragma GCC unroll 2
    for (int o = 0; o < 2; ++o) {
      const int ky = r - o * STRIDE;
      if (ky < 0 || ky >= K || o >= outputs) continue;
      const T* row = w + ky * K * kSlab;
#pragma GCC unroll 8
      for (int kx = 0; kx < K; ++kx) {
        const V weight = load(row + kx * kSlab);
#pragma GCC unroll 8
        for (int i = 0; i < S; ++i) acc[o][i] += weight * in[i * STRIDE + kx];
      }
    }
  }
}

template <typename T, Mode M, int K, int STRIDE>
void depthwise_pairs(const DepthwiseArgs<T>& a, int64_t n, int64_t c, int64_t row_begin, int64_t row_end,
                     T* workspace) {
  using V = typename Vec<T>::type;
  constexpr int64_t L = Vec<T>::size;
  constexpr int S = pair_pixels<STRIDE>(), N = (S - 1) * STRIDE + K, R = K + STRIDE;
  const int64_t channels = a.channels - c < kSlab ? a.channels - c : kSlab, pad = K / 2;
  // On narrow maps most strips touch the border: a ring of whole rows copies less.
  const bool in_place = a.source.plain() && channels == kSlab && a.out_width >= 6 * S;
  Ring<T> ring(a.source, n, a.height, a.width, c, channels, pad, pad, kRingSlack, R, workspace);
  if (!in_place) ring.clear();
  const int64_t ld = in_place ? a.source.ld : kSlab;
  const T* const image = a.source.data + n * a.height * a.width * a.source.ld + c;
  T border[R * N * L];

  for (int64_t oy = row_begin; oy < row_end; oy += 2) {
    const int outputs = row_end - oy < 2 ? 1 : 2;
    const int64_t top = oy * STRIDE - pad, below = a.height - top;
    const int first = static_cast<int>(top < 0 ? -top : 0), all = K + (outputs - 1) * STRIDE;
    const int last = static_cast<int>(below < all ? below : all);
    if (!in_place) ring.advance(top, top + all - 1);
    const T* rows[R] = {};  // input pixel -pad of each
    for (int r = first; r < last; ++r)
      rows[r] = in_place ? image + ((top + r) * a.width - pad) * ld : ring.row(top + r);
    for (int64_t v = 0; v < channels; v += L) {
      SinkLane<T, M> lane(a.sink, c + v, channels - v);
      const T* w = a.taps(c) + v;
      for (int64_t x = 0; x < a.out_width; x += S) {
        const T* at[R];
        const int64_t begin = x * STRIDE - pad;  // the strip's first input pixel
        int64_t apart = ld;
        if (!in_place || (begin >= 0 && begin + N <= a.width)) {
          for (int r = first; r < last; ++r) at[r] = rows[r] + x * STRIDE * ld + v;
        } else {
          apart = L;
          for (int r = first; r < last; ++r) {
            T* out = border + r * N * L;
            at[r] = out;
            for (int64_t i = 0; i < N; ++i) {
              const bool inside = begin + i >= 0 && begin + i < a.width;
              store(out + i * L, inside ? load(rows[r] + (x * STRIDE + i) * ld + v) : V{});
            }
          }
        }
        V acc[2][S];
#pragma GCC unroll 2
        for (int o = 0; o < 2; ++o)
#pragma GCC unroll 8
          for (int i = 0; i < S; ++i) acc[o][i] = V{};
        accumulate_pair<T, K, STRIDE, S>(at, first, last, apart, w, outputs, acc);
        if (M == Mode::kStats && oy == row_begin && x == 0) {
          if (a.out_width < S) lane.set_reference(acc[0][0]);
          else lane.set_reference(acc[0]);
        }
        const int64_t pixel = (n * a.out_height + oy) * a.out_width + x;
#pragma GCC unroll 2
        for (int o = 0; o < 2; ++o) {
          if (o >= outputs) break;
          if (lane.full && a.out_width - x >= S) {
            lane.seek(pixel + o * a.out_width);
#pragma GCC unroll 8
            for (int i = 0; i < S; ++i) lane.put_next(acc[o][i], 1);
          } else {
            T rest[S * L];
#pragma GCC unroll 8
            for (int i = 0; i < S; ++i) store(rest + i * L, acc[o][i]);
            for (int64_t i = 0; i < S && x + i < a.out_width; ++i)
              lane.put(load(rest + i * L), pixel + o * a.out_width + i);
          }
        }
      }
      lane.flush();
    }
    const int64_t done = oy + outputs - row_begin;
    if (M == Mode::kStats && (done & (done - 1)) == 0 && oy + outputs < row_end)
      recentre(a.sink.ref + c, a.sink.sum + c, a.sink.sum_sq + c, channels, done * a.out_width);
  }
}
