// Depthwise convolutions without dilation: two rows of output at a time, so that what is loaded of
// the input serves both. Nothing pending: rows are read where they lie, and only strips that touch
// the map's border from a small copy with zeros around.

// Pixels of a strip: two rows of sums, the inputs of a row and a weight fill the registers.
template <int STRIDE>
constexpr int pair_pixels() {
  return DETNAS_VEC_BYTES < 64 ? 4 : STRIDE == 1 ? 6 : 4;
}

// acc[o][i] += taps of the output rows FIRST <= o < LAST, pixel i, of the input rows begin <= r < end, all of which
// they need; unless CHECK: then those that they need of the first `outputs`. rows[r] + offset: input row r of the
// strip, `apart` between its pixels. w: [K * K][kSlab].
template <typename T, int K, int STRIDE, int S, int FIRST, int LAST, bool CHECK>
DETNAS_INLINE void accumulate_rows(const T* const* rows, int64_t offset, int64_t apart, int begin, int end, int outputs,
                                   const T* w, typename Vec<T>::type (&acc)[2][S]) {
  using V = typename Vec<T>::type;
  constexpr int N = (S - 1) * STRIDE + K;
  for (int r = begin; r < end; ++r) {
    V in[N];
    const T* p = rows[r] + offset;
#pragma GCC unroll 32
    for (int i = 0; i < N; ++i, p += apart) in[i] = load(p);
#pragma GCC unroll 2
    for (int o = FIRST; o < LAST; ++o) {
      const int ky = r - o * STRIDE;
      if (CHECK && (ky < 0 || ky >= K || o >= outputs)) continue;
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

// Input rows [first, last) of a pair of output rows, the second one of which may be missing: without branches between
// the taps where there are registers for their inputs.
template <typename T, int K, int STRIDE, int S>
DETNAS_INLINE void accumulate_pair(const T* const* rows, int64_t offset, int64_t apart, int first, int last,
                                   int outputs, const T* w, typename Vec<T>::type (&acc)[2][S]) {
  if (DETNAS_VEC_BYTES < 64 && K > 3)
    return accumulate_rows<T, K, STRIDE, S, 0, 2, true>(rows, offset, apart, first, last, outputs, w, acc);
  if (outputs == 1)
    return accumulate_rows<T, K, STRIDE, S, 0, 1, false>(rows, offset, apart, first, last, 1, w, acc);
  const int one = last < STRIDE ? last : STRIDE, two = last < K ? last : K;
  accumulate_rows<T, K, STRIDE, S, 0, 1, false>(rows, offset, apart, first, one, 2, w, acc);
  accumulate_rows<T, K, STRIDE, S, 0, 2, false>(rows, offset, apart, first < STRIDE ? STRIDE : first, two, 2, w, acc);
  accumulate_rows<T, K, STRIDE, S, 1, 2, false>(rows, offset, apart, K, last, 2, w, acc);
}

// Pixels [from, to) of the source's rows [first, last), the first of which begins at `in`, into rows: through an
// affine function and a ReLU, or copied.
template <typename T>
DETNAS_INLINE void read_columns(const Source<T>& s, int64_t c, const T* in, int64_t width, int64_t from, int64_t to,
                                T* const* rows, int64_t offset, int first, int last) {
  using V = typename Vec<T>::type;
  const int64_t ld = s.ld;
  const bool affine = s.scale;
  V mul = {}, add = {}, floor = {};
  if (affine) {
    mul = load(s.scale + c);
    add = load(s.shift + c);
    floor = splat<T>(s.relu ? T(0) : -__builtin_inf());
  }
  for (int r = first; r < last; ++r, in += width * ld) {
    T* out = rows[r] + offset + from * kSlab;
    T* const end = out + (to - from) * kSlab;
    const T* p = in + from * ld;
    if (affine) {
      for (; out != end; out += kSlab, p += ld) {
        const V v = load(p) * mul + add;
        store(out, v < floor ? floor : v);
      }
    } else {
      for (; out != end; out += kSlab, p += ld) store(out, load(p));
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
  // Rows of the ring are read as strips need them, which hides what that takes: where a vector is a whole slab, and
  // not at stride 2, where rows are long.
  const bool by_columns = L == kSlab && STRIDE == 1 && !in_place && channels == kSlab && !a.source.y &&
                          a.source.order == Order::kPlain && (a.source.scale || !a.source.relu);
  const int64_t ld = in_place ? a.source.ld : kSlab;
  const T* const image = a.source.data + n * a.height * a.width * a.source.ld + c;
  T border[R * N * kSlab];
  T* edges[R];
  for (int r = 0; r < R; ++r) edges[r] = border + r * N * kSlab;

  for (int64_t oy = row_begin; oy < row_end; oy += 2) {
    const int outputs = row_end - oy < 2 ? 1 : 2;
    const int64_t top = oy * STRIDE - pad, below = a.height - top;
    const int first = static_cast<int>(top < 0 ? -top : 0), all = K + (outputs - 1) * STRIDE;
    const int last = static_cast<int>(below < all ? below : all);
    int fresh = last;  // the first row that is read by columns
    if (by_columns) {
      const int64_t claimed = ring.claim(top, top + all - 1) - top;
      fresh = static_cast<int>(claimed < first ? first : claimed < last ? claimed : last);
    } else if (!in_place) {
      ring.advance(top, top + all - 1);
    }
    T* rows[R];  // input pixel -pad of each
    T* p = in_place ? const_cast<T*>(image) + (top * a.width - pad) * ld : ring.row(top < 0 ? top + R : top);
    for (int r = 0; r < R; ++r) {
      rows[r] = p;
      p += in_place ? a.width * ld : ring.row_size;
      if (!in_place && p == workspace + R * ring.row_size) p = workspace;
    }
    for (int64_t v = 0; v < channels; v += L) {
      SinkLane<T, M> lane(a.sink, c + v, channels - v);
      const T* w = a.taps(c) + v;
      int64_t ready = 0;  // pixels of fresh rows
      for (int64_t x = 0; x < a.out_width; x += S) {
        V acc[2][S];
#pragma GCC unroll 2
        for (int o = 0; o < 2; ++o)
#pragma GCC unroll 8
          for (int i = 0; i < S; ++i) acc[o][i] = V{};
        const int64_t begin = x * STRIDE - pad;  // the strip's first input pixel
        if (in_place && begin >= 0 && begin + N <= a.width) {
          accumulate_pair<T, K, STRIDE, S>(rows, x * STRIDE * ld + v, ld, first, last, outputs, w, acc);
        } else if (in_place) {
          for (int r = first; r < last; ++r) {
            const T* in = rows[r] + x * STRIDE * ld + v;
            for (int64_t i = 0; i < N; ++i) {
              const bool inside = begin + i >= 0 && begin + i < a.width;
              store(edges[r] + i * kSlab, inside ? load(in + i * ld) : V{});
            }
          }
          accumulate_pair<T, K, STRIDE, S>(edges, 0, kSlab, first, last, outputs, w, acc);
        } else {
          if (fresh < last) {
            const int64_t next = begin + N + S * STRIDE, until = next < a.width ? next : a.width;  // a strip ahead
            read_columns(a.source, c, image + (top + fresh) * a.width * a.source.ld, a.width, ready, until, rows,
                         pad * kSlab, fresh, last);
            ready = until;
          }
          accumulate_pair<T, K, STRIDE, S>(rows, x * STRIDE * kSlab + v, kSlab, first, last, outputs, w, acc);
        }
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
