// Sinks: writing results, with what is computed on the way. One object per vector of channels;
// it sums in vectors and flushes to the doubles of the sink after a bounded number of pixels.

enum class Mode { kPlain, kStats, kGradient };

template <typename T>
DETNAS_INLINE Mode mode_of(const Sink<T>& s) {
  return s.sum ? Mode::kStats : s.x ? Mode::kGradient : Mode::kPlain;
}

template <typename T, Mode M>
struct SinkLane {
  using V = typename Vec<T>::type;
  T* const out;
  const T* const x;
  const int64_t ld, ld_x;
  const bool affine, x_relu;
  const int64_t c, n;  // first channel, channels left
  const bool full;     // a whole vector of channels is left
  const Sink<T>& s;
  V first = {}, second = {}, ref = {}, bias = {}, floor = {}, scale = {}, shift = {};
  T* next = nullptr;
  const T* next_x = nullptr;

  DETNAS_INLINE SinkLane(const Sink<T>& sink, int64_t channel, int64_t left)
      : out(sink.second && channel >= sink.channels ? sink.second + channel - sink.channels : sink.out + channel),
        x(sink.x ? sink.x + channel : nullptr), ld(sink.ld), ld_x(sink.ld_x), affine(sink.scale != nullptr),
        x_relu(sink.x_relu), c(channel), n(left), full(left >= Vec<T>::size), s(sink) {
    if (s.bias) bias = load(s.bias + c);
    floor = splat<T>(s.relu ? T(0) : -__builtin_inf());
    if (M == Mode::kStats) ref = load(s.ref + c);
    if (M == Mode::kGradient && affine) {
      scale = load(s.scale + c);
      shift = load(s.shift + c);
    }
  }

  // v where it is finite, else zero.
  static DETNAS_INLINE V all_finite(V v) {
    const V zero = {};
    return v - v == zero ? v : zero;  // inf - inf and NaN - NaN are NaN
  }

  // Takes the reference of the statistics from the first value of the range; of several, from their
  // mean, so that no single one decides.
  DETNAS_INLINE void set_reference(V v) {
    if (M != Mode::kStats) return;
    ref = all_finite(v + bias);
    store(s.ref + c, ref);
  }
  template <int R>
  DETNAS_INLINE void set_reference(const V (&values)[R]) {
    if (M != Mode::kStats) return;
    V sum = {};
#pragma GCC unroll 16
    for (int r = 1; r < R; ++r) sum += values[r] - values[0];
    ref = all_finite(values[0] + bias) + all_finite(sum / splat<T>(R));
    store(s.ref + c, ref);
  }
  template <int R, int C>
  DETNAS_INLINE void set_reference(const V (&tile)[R][C], int column) {
    V values[R];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) values[r] = tile[r][column];
    set_reference(values);
  }

  DETNAS_INLINE V finish(V v, V in) {
    if (M == Mode::kGradient) {
      const V zero = {};
      if (affine) {
        if (x_relu) v = in * scale + shift <= zero ? zero : v;
        first += v * in;
        second += v;
        return v * scale;
      }
      return x_relu ? (in <= zero ? zero : v) : v;
    }
    v = v + bias;
    if (M == Mode::kPlain) return v < floor ? floor : v;
    const V d = v - ref;
    first += d;
    second += d * d;
    return v;
  }

  DETNAS_INLINE void put(V v, int64_t pixel) {
    const V in = M == Mode::kGradient ? load_part(x + pixel * ld_x, n) : V{};
    store_part(out + pixel * ld, finish(v, in), n);
  }

  // The same for a sequence of pixels, `step` apart, where `full`.
  DETNAS_INLINE void seek(int64_t pixel) {
    next = out + pixel * ld;
    next_x = x + pixel * ld_x;
  }
  DETNAS_INLINE void put_next(V v, int64_t step) {
    const V in = M == Mode::kGradient ? load(next_x) : V{};
    store(next, finish(v, in));
    next += step * ld;
    next_x += step * ld_x;
  }

  DETNAS_INLINE void flush() {
    if (M == Mode::kStats) {
      add_lanes<T>(s.sum + c, first, n);
      add_lanes<T>(s.sum_sq + c, second, n);
    }
    if (M == Mode::kGradient && affine) {
      add_lanes<T>(s.d_scale + c, first, n);
      add_lanes<T>(s.d_shift + c, second, n);
    }
    const V zero = {};
    first = zero;
    second = zero;
  }
};

// Statistics of n values so far: the reference moves from the first value, which may lie far from
// all others, to their mean. What is infinite or NaN stays.
template <typename T>
inline void recentre(T* ref, double* sum, double* sum_sq, int64_t channels, int64_t n) {
  for (int64_t c = 0; c < channels; ++c) {
    const T to = static_cast<T>(ref[c] + sum[c] / static_cast<double>(n));
    const double d = static_cast<double>(to) - ref[c];
    if (d - d != 0) continue;
    sum_sq[c] -= d * (2 * sum[c] - static_cast<double>(n) * d);
    sum[c] -= static_cast<double>(n) * d;
    ref[c] = to;
  }
}
