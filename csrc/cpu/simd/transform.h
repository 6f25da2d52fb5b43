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

// Distances between pixels that the processor's own prefetching does not follow, where few channels of
// each are read.
constexpr int64_t kAhead = 24;  // pixels

// What a plain source's values go through.
enum class Way { kNone, kAffine, kPassed, kStats };

// U vectors of channels from c on, whose constants stay in registers.
template <typename T, int U, Way W>
DETNAS_INLINE void transform_columns(const Source<T>& s, int64_t pixel, int64_t count, int64_t c,
                                     T* __restrict out, int64_t ld_out) {
  using V = typename Vec<T>::type;
  constexpr int64_t L = Vec<T>::size;
  constexpr bool kGradient = W == Way::kPassed || W == Way::kStats;
  V mul[U], add[U], mean[U];
  const V zero = {}, floor = splat<T>(s.relu ? T(0) : -__builtin_inf());
#pragma GCC unroll 4
  for (int u = 0; u < U; ++u) {
    if (W == Way::kAffine || W == Way::kStats) {
      mul[u] = load((W == Way::kAffine ? s.scale : s.mul) + c + u * L);
      add[u] = load((W == Way::kAffine ? s.shift : s.add) + c + u * L);
    }
    if (W == Way::kStats) mean[u] = load(s.mean + c + u * L);
  }
  const T* __restrict in = s.data + pixel * s.ld + c;
  const T* __restrict y = kGradient ? s.y + pixel * s.ld_y + c : in;
  for (int64_t p = 0; p < count; ++p, in += s.ld, y += s.ld_y, out += ld_out) {
    __builtin_prefetch(in + kAhead * s.ld);
    if (kGradient) __builtin_prefetch(y + kAhead * s.ld_y);
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u) {
      V v = load(in + u * L);
      if (W == Way::kAffine) {
        v = v * mul[u] + add[u];
        v = v < floor ? floor : v;
      }
      if (W == Way::kStats) v = v + add[u] + mul[u] * (load(y + u * L) - mean[u]);
      if (W == Way::kPassed) v = load(y + u * L) <= zero ? zero : v;
      store(out + u * L, v);
    }
  }
}

template <typename T, Way W>
DETNAS_INLINE void transform_way(const Source<T>& s, int64_t pixel, int64_t count, int64_t c,
                                 int64_t channels, T* out, int64_t ld_out) {
  constexpr int64_t L = Vec<T>::size;
  int64_t j = 0;
  for (; j + 4 * L <= channels; j += 4 * L)
    transform_columns<T, 4, W>(s, pixel, count, c + j, out + j, ld_out);
  for (; j < channels; j += L) transform_columns<T, 1, W>(s, pixel, count, c + j, out + j, ld_out);
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
  if (channels % L == 0) {  // the common cases, without per-vector branches
    const bool forward = s.scale || s.relu;
    if (s.y && !forward && s.add) return transform_way<T, Way::kStats>(s, pixel, count, c, channels, out, ld_out);
    if (s.y && !forward) return transform_way<T, Way::kPassed>(s, pixel, count, c, channels, out, ld_out);
    if (!s.y && s.scale) return transform_way<T, Way::kAffine>(s, pixel, count, c, channels, out, ld_out);
    if (!s.y && !forward) return transform_way<T, Way::kNone>(s, pixel, count, c, channels, out, ld_out);
  }
  const T* in = s.data + pixel * s.ld + c;
  for (int64_t p = 0; p < count; ++p)
    for (int64_t j = 0; j < channels; j += L) {
      const int64_t n = channels - j;
      store(out + p * ld_out + j, apply(s, load_part(in + p * s.ld + j, n), pixel + p, c + j, n));
    }
}

template <typename T>
void read_pixels(const Source<T>& s, int64_t begin, int64_t end, int64_t channels, T* out, int64_t ld) {
  transform(s, begin, end - begin, 0, channels, out, ld);
}
