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
  const Sink<T>& s;
  int64_t c, n;  // first channel, channels left
  V first = {}, second = {}, ref = {}, bias = {}, scale = {}, shift = {};

  DETNAS_INLINE SinkLane(const Sink<T>& sink, int64_t channel, int64_t left)
      : s(sink), c(channel), n(left) {
    if (s.bias) bias = load(s.bias + c);
    if (M == Mode::kStats) ref = load(s.ref + c);
    if (M == Mode::kGradient && s.scale) {
      scale = load(s.scale + c);
      shift = load(s.shift + c);
    }
  }

  // Takes the reference of the statistics from the first value of the range.
  DETNAS_INLINE void set_reference(V v) {
    if (M != Mode::kStats) return;
    v = v + bias;
    for (int64_t i = 0; i < Vec<T>::size; ++i) s.ref[c + i] = finite_or_zero<T>(v[i]);
    ref = load(s.ref + c);
  }

  DETNAS_INLINE void put(V v, int64_t pixel) {
    if (M == Mode::kGradient) {
      const V x = load_part(s.x + pixel * s.ld_x + c, n);
      const V zero = {};
      if (s.scale) {
        if (s.x_relu) v = x * scale + shift <= zero ? zero : v;
        first += v * x;
        second += v;
        v = v * scale;
      } else if (s.x_relu) {
        v = x <= zero ? zero : v;
      }
    } else {
      v = v + bias;
      if (M == Mode::kPlain && s.relu) v = relu<T>(v);
      if (M == Mode::kStats) {
        const V d = v - ref;
        first += d;
        second += d * d;
      }
    }
    store_part(s.out + pixel * s.ld + c, v, n);
  }

  DETNAS_INLINE void flush() {
    if (M == Mode::kStats) {
      add_lanes<T>(s.sum + c, first, n);
      add_lanes<T>(s.sum_sq + c, second, n);
    }
    if (M == Mode::kGradient && s.scale) {
      add_lanes<T>(s.d_scale + c, first, n);
      add_lanes<T>(s.d_shift + c, second, n);
    }
    const V zero = {};
    first = zero;
    second = zero;
  }
};
