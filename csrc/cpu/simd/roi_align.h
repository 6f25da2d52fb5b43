// Regions of a map, sampled bilinearly and averaged in bins, as torchvision's roi_align.

// A sample between four pixels; outside of the map weights are zero.
template <typename T>
struct Sample {
  const T* pixel[4];
  T weight[4];
};

// Below, beyond and where a coordinate lies between them; false: outside of the map, or not a number.
template <typename T>
DETNAS_INLINE bool between(T at, int64_t size, int64_t& low, int64_t& high, T& share) {
  if (!(at >= T(-1) && at <= static_cast<T>(size))) return false;
  at = at <= T(0) ? T(0) : at;
  low = static_cast<int64_t>(at);
  if (low >= size - 1) {
    low = high = size - 1;
    share = T(0);
  } else {
    high = low + 1;
    share = at - static_cast<T>(low);
  }
  return true;
}

template <typename T>
DETNAS_INLINE Sample<T> sample_at(const RoiArgs<T>& g, T y, T x) {
  int64_t y0 = 0, y1 = 0, x0 = 0, x1 = 0;
  T ly = 0, lx = 0;
  const bool inside = between(y, g.height, y0, y1, ly) && between(x, g.width, x0, x1, lx);
  const T one = inside ? T(1) : T(0), hy = one - ly, hx = one - lx;
  if (!inside) return {{g.x, g.x, g.x, g.x}, {T(0), T(0), T(0), T(0)}};
  const T *above = g.x + y0 * g.width * g.ld, *below = g.x + y1 * g.width * g.ld;
  return {{above + x0 * g.ld, above + x1 * g.ld, below + x0 * g.ld, below + x1 * g.ld},
          {hy * hx, hy * lx, ly * hx, ly * lx}};
}

// Adds samples to a bin's channels, from zero with the first; after the last the mean is taken.
template <typename T>
DETNAS_INLINE void add_samples(const RoiArgs<T>& g, const Sample<T>* samples, int64_t count, bool first, bool last,
                               T* out) {
  using V = typename Vec<T>::type;
  constexpr int64_t L = Vec<T>::size;
  const V all = splat<T>(static_cast<T>(g.grid_y * g.grid_x));
  for (int64_t c = 0; c < g.channels; c += L) {
    const int64_t left = g.channels - c;
    V sum = {};
    if (!first) sum = load_part(out + c, left);
    for (int64_t i = 0; i < count; ++i) {
      const Sample<T>& s = samples[i];
      V value = splat<T>(s.weight[0]) * load_part(s.pixel[0] + c, left);
#pragma GCC unroll 3
      for (int j = 1; j < 4; ++j) value += splat<T>(s.weight[j]) * load_part(s.pixel[j] + c, left);
      sum += value;
    }
    store_part(out + c, last ? sum / all : sum, left);
  }
}

template <typename T>
void roi_align(const RoiArgs<T>& g) {
  constexpr int64_t kMost = 16;
  Sample<T> samples[kMost];
  const int64_t total = g.grid_y * g.grid_x;
  for (int64_t py = 0; py < g.size; ++py)
    for (int64_t px = 0; px < g.size; ++px) {
      T* out = g.out + (py * g.size + px) * g.channels;
      const T top = g.start_y + static_cast<T>(py) * g.bin_y, left = g.start_x + static_cast<T>(px) * g.bin_x;
      int64_t held = 0, done = 0;
      for (int64_t iy = 0; iy < g.grid_y; ++iy) {
        const T y = top + (static_cast<T>(iy) + T(0.5)) * g.bin_y / static_cast<T>(g.grid_y);
        for (int64_t ix = 0; ix < g.grid_x; ++ix) {
          const T x = left + (static_cast<T>(ix) + T(0.5)) * g.bin_x / static_cast<T>(g.grid_x);
          samples[held++] = sample_at(g, y, x);
          if (held < kMost && done + held < total) continue;
          add_samples(g, samples, held, done == 0, done + held == total, out);
          done += held;
          held = 0;
        }
      }
      if (total == 0) add_samples(g, samples, 0, true, false, out);
    }
}
