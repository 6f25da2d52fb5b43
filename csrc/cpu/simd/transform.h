// Sources: reading pixels through the function that is pending on them.

template <typename T>
DETNAS_INLINE typename Vec<T>::type apply(const Source<T>& s, typename Vec<T>::type v, int64_t pixel,
                                          int64_t c, int64_t n) {
  using V = typename Vec<T>::type;
  if (s.scale) v = v * load(s.scale + c) + load(s.shift + c);
  if (s.relu) v = relu<T>(v);
  if (s.y) {
    const V y = load_part(s.y + pixel * s.ld_y + c, n);
    if (s.add) {
      v = v + load(s.add + c) + load(s.mul + c) * (y - load(s.mean + c));
    } else {
      const V zero = {};
      v = y <= zero ? zero : v;
    }
  }
  return v;
}

// Copies channels [c, c + channels) of one pixel in the source's order.
template <typename T>
DETNAS_INLINE void gather(const Source<T>& s, const T* row, int64_t c, int64_t channels,
                          T* __restrict out) {
  if (s.order == Order::kStrided) {
    for (int64_t j = 0; j < channels; ++j) out[j] = row[2 * (c + j)];
    return;
  }
  const int64_t first = s.first + c;
  if (first % 2 == 0 && channels % 2 == 0)
    return interleave(row + first / 2, row + s.half + first / 2, channels / 2, out);
  for (int64_t j = 0; j < channels; ++j) {
    const int64_t i = first + j;
    out[j] = row[i / 2 + (i % 2) * s.half];
  }
}

// The rows of a ring: few channels of many pixels that lie apart, whose distance the processor's
// own prefetching does not follow.
constexpr int64_t kAhead = 24;  // pixels

template <typename T, int U, bool Affine>
DETNAS_INLINE void transform_slab(const Source<T>& s, const T* __restrict in, int64_t count, int64_t c,
                                  T* __restrict out, int64_t ld_out) {
  using V = typename Vec<T>::type;
  constexpr int64_t L = Vec<T>::size;
  V scale[U], shift[U];
  const V floor = splat<T>(s.relu ? T(0) : -__builtin_inf());
#pragma GCC unroll 4
  for (int u = 0; Affine && u < U; ++u) {
    scale[u] = load(s.scale + c + u * L);
    shift[u] = load(s.shift + c + u * L);
  }
  for (int64_t p = 0; p < count; ++p, in += s.ld, out += ld_out) {
    __builtin_prefetch(in + kAhead * s.ld);
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u) {
      V v = load(in + u * L);
      if (Affine) {
        v = v * scale[u] + shift[u];
        v = v < floor ? floor : v;
      }
      store(out + u * L, v);
    }
  }
}

// Values of `count` pixels from `pixel` on, channels [c, c + channels), into out (ld_out between
// pixels, at least round_up(channels, vector)); lanes beyond the channels are written too.
template <typename T>
inline void transform(const Source<T>& s, int64_t pixel, int64_t count, int64_t c, int64_t channels,
                      T* out, int64_t ld_out) {
  constexpr int64_t L = Vec<T>::size;
  if (s.order != Order::kPlain) {
    const bool nothing_pending = !s.scale && !s.relu && !s.y;
    for (int64_t p = 0; p < count; ++p) {
      T* o = out + p * ld_out;
      gather(s, s.data + (pixel + p) * s.ld, c, channels, o);
      if (nothing_pending) continue;
      for (int64_t j = 0; j < channels; j += L)
        store(o + j, apply(s, load(o + j), pixel + p, c + j, channels - j));
    }
    return;
  }
  const T* in = s.data + pixel * s.ld + c;
  if (!s.y && channels % L == 0) {  // the common case, without per-vector branches
    using V = typename Vec<T>::type;
    constexpr int U = kSlab / L;
    if (channels == kSlab && U <= 4 && (s.scale || !s.relu)) {
      if (s.scale) return transform_slab<T, U, true>(s, in, count, c, out, ld_out);
      return transform_slab<T, U, false>(s, in, count, c, out, ld_out);
    }
    if (!s.scale && !s.relu) {
      for (int64_t p = 0; p < count; ++p)
        for (int64_t j = 0; j < channels; j += L) store(out + p * ld_out + j, load(in + p * s.ld + j));
      return;
    }
    if (s.scale) {
      const V floor = splat<T>(s.relu ? T(0) : -__builtin_inf());
      for (int64_t p = 0; p < count; ++p)
        for (int64_t j = 0; j < channels; j += L) {
          V v = load(in + p * s.ld + j) * load(s.scale + c + j) + load(s.shift + c + j);
          v = v < floor ? floor : v;
          store(out + p * ld_out + j, v);
        }
      return;
    }
  }
  for (int64_t p = 0; p < count; ++p)
    for (int64_t j = 0; j < channels; j += L) {
      const int64_t n = channels - j;
      store(out + p * ld_out + j, apply(s, load_part(in + p * s.ld + j, n), pixel + p, c + j, n));
    }
}
