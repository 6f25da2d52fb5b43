// Ops that look at one pixel at a time: statistics, shuffle and concatenation, mixed sums.

constexpr int64_t kStatsBlock = 64;  // pixels summed in T before the sums go to doubles
constexpr int64_t kStatsFirst = 4;   // of the first block; behind it and the next the reference moves

// Sums of U vectors of channels over the pixels [p0, p1).
template <typename T, int U, bool Affine, bool Relu>
DETNAS_INLINE void stats_block(const Source<T>& s, int64_t p0, int64_t p1, int64_t c,
                               const Moments<T>& m) {
  using V = typename Vec<T>::type;
  constexpr int64_t L = Vec<T>::size;
  V ref[U], sum[U], sq[U], scale[U], shift[U];
#pragma GCC unroll 4
  for (int u = 0; u < U; ++u) {
    ref[u] = load(m.ref + c + u * L);
    sum[u] = V{};
    sq[u] = V{};
    if (Affine) {
      scale[u] = load(s.scale + c + u * L);
      shift[u] = load(s.shift + c + u * L);
    }
  }
  const T* in = s.data + p0 * s.ld + c;
  for (int64_t p = p0; p < p1; ++p, in += s.ld) {
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u) {
      V v = load(in + u * L);
      if (Affine) v = v * scale[u] + shift[u];
      if (Relu) v = relu<T>(v);
      v = v - ref[u];
      sum[u] += v;
      sq[u] += v * v;
    }
  }
#pragma GCC unroll 4
  for (int u = 0; u < U; ++u) {
    add_lanes<T>(m.sum + c + u * L, sum[u], L);
    add_lanes<T>(m.sum_sq + c + u * L, sq[u], L);
  }
}

// The same, by what is pending.
template <typename T, int U>
DETNAS_INLINE void stats_columns(const Source<T>& s, int64_t p0, int64_t p1, int64_t c, const Moments<T>& m) {
  if (s.scale && s.relu) stats_block<T, U, true, true>(s, p0, p1, c, m);
  else if (s.scale) stats_block<T, U, true, false>(s, p0, p1, c, m);
  else if (s.relu) stats_block<T, U, false, true>(s, p0, p1, c, m);
  else stats_block<T, U, false, false>(s, p0, p1, c, m);
}

template <typename T>
void stats_channels_last(const Source<T>& s, int64_t begin, int64_t end, int64_t channels,
                         const Moments<T>& m) {
  using V = typename Vec<T>::type;
  constexpr int64_t L = Vec<T>::size;
  for (int64_t c = 0; c < channels; c += L) {
    const int64_t n = channels - c;
    const V v = apply(s, load_part(s.data + begin * s.ld + c, n), begin, c, n);
    for (int64_t i = 0; i < L && i < n; ++i) m.ref[c + i] = finite_or_zero<T>(v[i]);
  }
  int64_t p1 = begin;
  for (int64_t p0 = begin; p0 < end; p0 = p1) {
    p1 = p0 + (p0 == begin ? kStatsFirst : kStatsBlock);
    if (p1 > end) p1 = end;
    int64_t c = 0;
    if (!s.y) {
      for (; c + 4 * L <= channels; c += 4 * L) stats_columns<T, 4>(s, p0, p1, c, m);
      for (; c + 2 * L <= channels; c += 2 * L) stats_columns<T, 2>(s, p0, p1, c, m);
      for (; c + L <= channels; c += L) stats_columns<T, 1>(s, p0, p1, c, m);
    }
    for (; c < channels; c += L) {
      const int64_t n = channels - c;
      const V ref = load_part(m.ref + c, n);
      V sum = {}, sq = {};
      for (int64_t p = p0; p < p1; ++p) {
        const V v = apply(s, load_part(s.data + p * s.ld + c, n), p, c, n) - ref;
        sum += v;
        sq += v * v;
      }
      add_lanes<T>(m.sum + c, sum, n);
      add_lanes<T>(m.sum_sq + c, sq, n);
    }
    if (p0 <= begin + kStatsFirst && p1 < end) recentre(m.ref, m.sum, m.sum_sq, channels, p1 - begin);
  }
}

template <typename T>
void stats_plane(const T* data, int64_t size, const T* scale, const T* shift, bool with_relu,
                 bool first, T* ref_out, double* sum_out, double* sq_out) {
  using V = typename Vec<T>::type;
  constexpr int64_t L = Vec<T>::size, block = 2048;
  constexpr int U = 4;
  const V a = splat<T>(scale ? *scale : T(1)), b = splat<T>(shift ? *shift : T(0));
  const bool affine = scale != nullptr;
  auto value = [&](V v) __attribute__((always_inline)) {
    if (affine) v = v * a + b;
    return with_relu ? relu<T>(v) : v;
  };
  if (first) *ref_out = finite_or_zero<T>(value(splat<T>(data[0]))[0]);
  int64_t i1 = 0;
  for (int64_t i0 = 0; i0 < size; i0 = i1) {
    i1 = i0 + (i0 == 0 ? kStatsFirst : i0 == kStatsFirst ? kStatsBlock : block);
    if (i1 > size) i1 = size;
    const V ref = splat<T>(*ref_out);
    V sum[U], sq[U];
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u) sum[u] = V{}, sq[u] = V{};
    int64_t i = i0;
    for (; i + U * L <= i1; i += U * L)
#pragma GCC unroll 4
      for (int u = 0; u < U; ++u) {
        const V d = value(load(data + i + u * L)) - ref;
        sum[u] += d;
        sq[u] += d * d;
      }
    for (int u = 1; u < U; ++u) sum[0] += sum[u], sq[0] += sq[u];
    double s1 = 0, s2 = 0;
    for (int64_t l = 0; l < L; ++l) s1 += sum[0][l], s2 += sq[0][l];
    for (; i < i1; ++i) {
      const double d = value(splat<T>(data[i]))[0] - ref[0];
      s1 += d;
      s2 += d * d;
    }
    *sum_out += s1;
    *sq_out += s2;
    if (first && i0 <= kStatsFirst && i1 < size) recentre(ref_out, sum_out, sq_out, 1, i1);
  }
}

// Memory position, in the concatenation, of channel j of the shuffled concatenation.
DETNAS_INLINE int64_t shuffled(int method, int64_t j, int64_t channels) {
  if (method == 1) return j / 2 + (j % 2) * (channels / 2);
  if (method == 2) return j < channels / 2 ? 2 * j : 2 * (j - channels / 2) + 1;
  return j;
}

// One pixel of the concatenation to its two shuffled halves, and back.
template <typename T>
DETNAS_INLINE void shuffle_pixel(int method, const T* in, int64_t channels, T* left, int64_t c_left,
                                 T* right) {
  const int64_t half = channels / 2;
  if (method == 2 && c_left == half) return deinterleave(in, half, left, right);
  if (method == 1 && c_left == half && half % 2 == 0) {
    interleave(in, in + half, half / 2, left);
    return interleave(in + half / 2, in + half + half / 2, half / 2, right);
  }
  for (int64_t j = 0; j < c_left; ++j) left[j] = in[shuffled(method, j, channels)];
  for (int64_t j = c_left; j < channels; ++j) right[j - c_left] = in[shuffled(method, j, channels)];
}
template <typename T>
DETNAS_INLINE void unshuffle_pixel(int method, const T* left, const T* right, int64_t channels,
                                   int64_t c_left, T* out) {
  const int64_t half = channels / 2;
  if (method == 2 && c_left == half) return interleave(left, right, half, out);
  if (method == 1 && c_left == half && half % 2 == 0) {
    deinterleave(left, half / 2, out, out + half);
    return deinterleave(right, half / 2, out + half / 2, out + half + half / 2);
  }
  for (int64_t j = 0; j < c_left; ++j) out[shuffled(method, j, channels)] = left[j];
  for (int64_t j = c_left; j < channels; ++j) out[shuffled(method, j, channels)] = right[j - c_left];
}

// A vector of a source's channels, from c on, of the pixel at `in`.
template <typename T>
DETNAS_INLINE typename Vec<T>::type read(const Source<T>& s, const T* in, int64_t c) {
  typename Vec<T>::type v = load(in + c);
  if (s.scale) v = v * load(s.scale + c) + load(s.shift + c);
  return s.relu ? relu<T>(v) : v;
}

// Even channels of a source's pixels to `even`, odd ones to `odd`. channels: even, at least two
// vectors; the last two overlap those before if they must.
template <typename T>
DETNAS_INLINE void split_channels(const Source<T>& s, int64_t begin, int64_t end, int64_t channels,
                                  T* even, int64_t ld_even, T* odd, int64_t ld_odd) {
  constexpr int64_t L = Vec<T>::size;
  const T* __restrict in = s.data + begin * s.ld;
  even += begin * ld_even;
  odd += begin * ld_odd;
  for (int64_t p = begin; p < end; ++p, in += s.ld, even += ld_even, odd += ld_odd)
    for (int64_t j = 0; j < channels; j += 2 * L) {
      const int64_t c = j + 2 * L <= channels ? j : channels - 2 * L;
      const auto a = read(s, in, c), b = read(s, in, c + L);
      store(even + c / 2, every_second<T, false>(a, b));
      store(odd + c / 2, every_second<T, true>(a, b));
    }
}

// Channels [first, first + count) of two sources in turns, in whole vectors, the last of which
// overlaps those before if it must.
template <typename T>
DETNAS_INLINE void join_channels(const Source<T>& x, const Source<T>& y, int64_t begin, int64_t end,
                                 int64_t first, int64_t count, T* out, int64_t ld_out) {
  constexpr int64_t L = Vec<T>::size;
  for (int64_t p = begin; p < end; ++p)
    for (int64_t j = 0; j < count; j += L) {
      const int64_t i = j + L <= count ? j : count - L;
      const auto a = read(x, x.data + p * x.ld, first + i), b = read(y, y.data + p * y.ld, first + i);
      store(out + p * ld_out + 2 * i, in_turns<T, false>(a, b));
      store(out + p * ld_out + 2 * i + L, in_turns<T, true>(a, b));
    }
}

template <typename T>
void shuffle(const ShuffleArgs<T>& a, int64_t begin, int64_t end, T* work) {
  const int64_t channels = a.c_left + a.c_right;
  constexpr int64_t L = Vec<T>::size;
  const bool plain = a.left.order == Order::kPlain && a.right.order == Order::kPlain;
  // The cases of whole vectors, without a copy between.
  const bool halved = plain && a.c_left % 2 == 0 && a.c_right % 2 == 0 && a.c_left >= 2 * L &&
                      (a.c_right == 0 || a.c_right >= 2 * L) && 2 * a.c_out_left == channels;
  if (a.method == 2 && halved) {
    const int64_t h = a.c_left / 2;
    split_channels(a.left, begin, end, a.c_left, a.out_left, a.ld_out_left, a.out_right, a.ld_out_right);
    split_channels(a.right, begin, end, a.c_right, a.out_left + h, a.ld_out_left, a.out_right + h,
                   a.ld_out_right);
    return;
  }
  if (a.method == 1 && halved && a.c_left == a.c_right) {
    const int64_t h = a.c_left / 2;
    join_channels(a.left, a.right, begin, end, 0, h, a.out_left, a.ld_out_left);
    join_channels(a.left, a.right, begin, end, h, h, a.out_right, a.ld_out_right);
    return;
  }
  if (a.method == 0 && a.ld_out_left == a.ld_out_right && a.out_right == a.out_left + a.c_out_left &&
      a.c_left % L == 0 && a.c_right % L == 0) {
    const int64_t ld = a.ld_out_left;
    transform(a.left, begin, end - begin, 0, a.c_left, a.out_left + begin * ld, ld);
    transform(a.right, begin, end - begin, 0, a.c_right, a.out_left + begin * ld + a.c_left, ld);
    return;
  }
  constexpr int64_t block = kShuffleBlock;
  const int64_t ld = round_up(channels, 16) + 32;
  for (int64_t p0 = begin; p0 < end; p0 += block) {
    const int64_t count = end - p0 < block ? end - p0 : block;
    // The left half may spill lanes into the right half's place, which is written after it.
    transform(a.left, p0, count, 0, a.c_left, work, ld);
    transform(a.right, p0, count, 0, a.c_right, work + a.c_left, ld);
    for (int64_t i = 0; i < count; ++i) {
      const T* in = work + i * ld;
      T* left = a.out_left + (p0 + i) * a.ld_out_left;
      T* right = a.out_right + (p0 + i) * a.ld_out_right;
      if (a.method == 0) {
        __builtin_memcpy(left, in, a.c_out_left * sizeof(T));
        __builtin_memcpy(right, in + a.c_out_left, (channels - a.c_out_left) * sizeof(T));
      } else {
        shuffle_pixel(a.method, in, channels, left, a.c_out_left, right);
      }
    }
  }
}

// Sends the gradients of a half of a few pixels (ld between them) back through its source.
template <typename T>
void shuffle_half_backward(const Source<T>& s, int64_t pixel, int64_t count, int64_t channels,
                           const T* grad, int64_t ld, T* out, double* d_scale, double* d_shift) {
  using V = typename Vec<T>::type;
  const V zero = {};
  for (int64_t c = 0; c < channels; c += Vec<T>::size) {
    const int64_t n = channels - c;
    const V scale = s.scale ? load(s.scale + c) : zero, shift = s.scale ? load(s.shift + c) : zero;
    V dot = {}, total = {};
    for (int64_t p = 0; p < count; ++p) {
      V g = load(grad + p * ld + c);
      if (s.scale) {
        const V x = load_part(s.data + (pixel + p) * s.ld + c, n);
        if (s.relu) g = x * scale + shift <= zero ? zero : g;
        dot += g * x;
        total += g;
        g = g * scale;
      } else if (s.relu) {
        g = load_part(s.data + (pixel + p) * s.ld + c, n) <= zero ? zero : g;
      }
      store_part(out + (pixel + p) * channels + c, g, n);
    }
    if (s.scale) {
      add_lanes<T>(d_scale + c, dot, n);
      add_lanes<T>(d_shift + c, total, n);
    }
  }
}

template <typename T>
void shuffle_backward(const ShuffleArgs<T>& a, int64_t begin, int64_t end, T* work) {
  const int64_t channels = a.c_left + a.c_right, ld = round_up(channels, 16) + 32;
  constexpr int64_t block = kShuffleBlock;
  for (int64_t p0 = begin; p0 < end; p0 += block) {
    const int64_t count = end - p0 < block ? end - p0 : block;
    for (int64_t i = 0; i < count; ++i)
      unshuffle_pixel(a.method, a.out_left + (p0 + i) * a.ld_out_left,
                      a.out_right + (p0 + i) * a.ld_out_right, channels, a.c_out_left, work + i * ld);
    shuffle_half_backward(a.left, p0, count, a.c_left, work, ld, a.grad_left, a.d_scale_left,
                          a.d_shift_left);
    shuffle_half_backward(a.right, p0, count, a.c_right, work + a.c_left, ld, a.grad_right,
                          a.d_scale_right, a.d_shift_right);
  }
}

template <typename T>
void mixed_sum(const MixedSumArgs<T>& a, int64_t begin, int64_t end) {
  using V = typename Vec<T>::type;
  for (int64_t p = begin; p < end; ++p)
    for (int64_t c = 0; c < a.channels; c += Vec<T>::size) {
      const int64_t n = a.channels - c, at = p * a.channels + c;
      V v = load(a.shift + c);
      for (int i = 0; i < a.count; ++i) v += load(a.scale[i] + c) * load_part(a.y[i] + at, n);
      if (a.residual) v += load_part(a.residual + at, n);
      store_part(a.out + at, v, n);
    }
}

template <typename T>
void mixed_sum_backward(const MixedSumArgs<T>& a, int64_t begin, int64_t end) {
  using V = typename Vec<T>::type;
  for (int64_t p0 = begin; p0 < end; p0 += kStatsBlock) {
    const int64_t p1 = p0 + kStatsBlock < end ? p0 + kStatsBlock : end;
    for (int64_t c = 0; c < a.channels; c += Vec<T>::size) {
      const int64_t n = a.channels - c;
      V total = {};
      for (int64_t p = p0; p < p1; ++p) total += load_part(a.grad + p * a.channels + c, n);
      add_lanes<T>(a.total + c, total, n);
      for (int i = 0; i < a.count; ++i) {
        const V scale = load(a.scale[i] + c);
        V dot = {};
        for (int64_t p = p0; p < p1; ++p) {
          const int64_t at = p * a.channels + c;
          const V g = load_part(a.grad + at, n);
          dot += g * load_part(a.y[i] + at, n);
          store_part(a.grad_y[i] + at, g * scale, n);
        }
        add_lanes<T>(a.dot[i] + c, dot, n);
      }
    }
  }
}
