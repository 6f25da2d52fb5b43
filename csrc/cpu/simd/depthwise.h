// Depthwise convolution and its gradients over a ring of input rows.
//
// A task owns one image, a slab of kSlab channels and a range of rows. Each row it needs is read
// once through its source into a ring (padded left and right with zeros, channels of the slab
// contiguous); an output pixel is then a sum over taps. Taps that lie evenly in a ring row form a
// segment. The same strip kernel serves the forward pass and the gradient of the input.

// A strip: pixels and vectors of channels computed together. All vectors of a cache line of the ring
// are used at once, and there are registers for twelve sums beside the weights.
constexpr int kStrip = 8;  // pixels at most
template <typename T>
struct Strip {
  static constexpr int vectors = kSlab / Vec<T>::size >= 2 ? 2 : 1;
  static constexpr int pixels = vectors == 2 ? 6 : kStrip;
};

// Taps of a ring row that lie evenly: tap j of output pixel t reads in[(t + j) * step pixels] with
// weight w[j * w_step].
template <typename T>
struct Segment {
  const T* in;
  const T* w;
  int taps;
};

template <typename T>
struct Segments {
  Segment<T> list[49];
  int count = 0;
  int64_t w_step = 0;
  DETNAS_INLINE void add(const T* in, const T* w, int taps) {
    if (taps > 0) list[count++] = {in, w, taps};
  }
};

// Inputs are operands of the multiply-add straight from the first-level cache: keeping them for
// the next tap would cost more registers than there are, which the barrier tells the compiler.
template <typename T, int TAPS, int STEP, int S, int U>
DETNAS_INLINE void accumulate(typename Vec<T>::type (&acc)[S][U], const T* in, const T* w,
                              int64_t w_step) {
  using V = typename Vec<T>::type;
  constexpr int64_t L = Vec<T>::size;
#pragma GCC unroll 8
  for (int j = 0; j < TAPS; ++j) {
    V weight[U];
#pragma GCC unroll 2
    for (int u = 0; u < U; ++u) weight[u] = load(w + j * w_step + u * L);
#pragma GCC unroll 8
    for (int i = 0; i < S; ++i)
#pragma GCC unroll 2
      for (int u = 0; u < U; ++u) acc[i][u] += weight[u] * load(in + (i + j) * STEP * kSlab + u * L);
    asm volatile("" ::: "memory");
  }
}

// Pixels first, first + step, ... (count of them) of the sink.
template <typename T, Mode M, int STEP>
void strip_row(const Segments<T>& segments, int64_t count, int64_t first, int64_t step,
               const Sink<T>& sink, int64_t c_begin, int64_t channels, bool new_range) {
  using V = typename Vec<T>::type;
  constexpr int64_t L = Vec<T>::size;
  constexpr int S = Strip<T>::pixels, U = Strip<T>::vectors;
  for (int64_t v = 0; v < channels; v += U * L) {
    // The second vector may have no channels: what is computed for it goes nowhere.
    SinkLane<T, M> lane0(sink, c_begin + v, channels - v);
    SinkLane<T, M> lane1(sink, c_begin + v + (U - 1) * L, channels - v - L);
    const bool two = U == 2 && lane1.n > 0;
    for (int64_t x = 0; x < count; x += S) {
      V acc[S][U];
#pragma GCC unroll 8
      for (int i = 0; i < S; ++i)
#pragma GCC unroll 2
        for (int u = 0; u < U; ++u) acc[i][u] = V{};
      const int64_t offset = x * STEP * kSlab + v;
      const Segment<T>* end = segments.list + segments.count;
      for (const Segment<T>* s = segments.list; s != end; ++s) {
        const T *in = s->in + offset, *w = s->w + v;
        switch (s->taps) {
          case 1: accumulate<T, 1, STEP>(acc, in, w, segments.w_step); break;
          case 2: accumulate<T, 2, STEP>(acc, in, w, segments.w_step); break;
          case 3: accumulate<T, 3, STEP>(acc, in, w, segments.w_step); break;
          case 4: accumulate<T, 4, STEP>(acc, in, w, segments.w_step); break;
          case 5: accumulate<T, 5, STEP>(acc, in, w, segments.w_step); break;
          default: accumulate<T, 7, STEP>(acc, in, w, segments.w_step);
        }
      }
      if (M == Mode::kStats && new_range && x == 0) {
        lane0.set_reference(acc[0][0]);
        if (two) lane1.set_reference(acc[0][U - 1]);
      }
      if (count - x >= S && lane0.full && (U == 1 || lane1.full)) {
        lane0.seek(first + x * step);
        if (U == 2) lane1.seek(first + x * step);
#pragma GCC unroll 8
        for (int i = 0; i < S; ++i) {
          lane0.put_next(acc[i][0], step);
          if (U == 2) lane1.put_next(acc[i][U - 1], step);
        }
      } else {
        T rest[S * U * L];
#pragma GCC unroll 8
        for (int i = 0; i < S; ++i)
#pragma GCC unroll 2
          for (int u = 0; u < U; ++u) store(rest + (i * U + u) * L, acc[i][u]);
        for (int64_t i = 0; i < S && i < count - x; ++i) {
          lane0.put(load(rest + i * U * L), first + (x + i) * step);
          if (two) lane1.put(load(rest + (i * U + 1) * L), first + (x + i) * step);
        }
      }
    }
    lane0.flush();
    if (two) lane1.flush();
  }
}

template <typename T, Mode M>
void depthwise_mode(const DepthwiseArgs<T>& a, int64_t n, int64_t c, int64_t row_begin,
                    int64_t row_end, T* workspace) {
  const int64_t channels = a.channels - c < kSlab ? a.channels - c : kSlab;
  const int64_t pad = a.pad(), d = a.dilation;
  Ring<T> ring(a.source, n, a.height, a.width, c, channels, pad, pad, kRingSlack,
               (a.kernel - 1) * d + a.stride, workspace);
  ring.clear();
  // Output pixels `phases` apart share their taps: tap kx is `d` inputs on. At stride 2 even and
  // odd kx lie evenly (d == 1), or all do (d == 2), or each is on its own (d == 3).
  const int64_t phases = a.stride == 1 ? d : 1;
  for (int64_t oy = row_begin; oy < row_end; ++oy) {
    const int64_t top = oy * a.stride - pad;
    ring.advance(top, top + (a.kernel - 1) * d);
    for (int64_t phase = 0; phase < phases && phase < a.out_width; ++phase) {
      Segments<T> segments;
      const int64_t apart = a.stride == 1 || d == 2 ? 1 : d == 1 ? 2 : a.kernel;  // of kx
      segments.w_step = apart * kSlab;
      for (int64_t ky = 0; ky < a.kernel; ++ky) {
        if (!ring.inside(top + ky * d)) continue;
        for (int64_t kx = 0; kx < apart; ++kx)
          segments.add(ring.row(top + ky * d) + (phase + kx * d) * kSlab,
                       a.taps(c) + (ky * a.kernel + kx) * kSlab,
                       static_cast<int>((a.kernel - kx + apart - 1) / apart));
      }
      const int64_t first = (n * a.out_height + oy) * a.out_width + phase;
      const int64_t count = (a.out_width - phase + phases - 1) / phases;
      const bool new_range = oy == row_begin && phase == 0;
      switch (a.stride * phases) {
        case 1:
          strip_row<T, M, 1>(segments, count, first, 1, a.sink, c, channels, new_range);
          break;
        case 2:
          strip_row<T, M, 2>(segments, count, first, phases, a.sink, c, channels, new_range);
          break;
        default:
          strip_row<T, M, 3>(segments, count, first, phases, a.sink, c, channels, new_range);
      }
    }
    const int64_t done = oy + 1 - row_begin;
    if (M == Mode::kStats && (done & (done - 1)) == 0 && oy + 1 < row_end)
      recentre(a.sink.ref + c, a.sink.sum + c, a.sink.sum_sq + c, channels, done * a.out_width);
  }
}

template <typename T, Mode M>
void depthwise_in_mode(const DepthwiseArgs<T>& a, int64_t n, int64_t c, int64_t row_begin,
                       int64_t row_end, T* workspace) {
  if (a.dilation == 1) {
    switch (a.kernel * 2 + a.stride) {
      case 7: return depthwise_pairs<T, M, 3, 1>(a, n, c, row_begin, row_end, workspace);
      case 8: return depthwise_pairs<T, M, 3, 2>(a, n, c, row_begin, row_end, workspace);
      case 11: return depthwise_pairs<T, M, 5, 1>(a, n, c, row_begin, row_end, workspace);
      case 12: return depthwise_pairs<T, M, 5, 2>(a, n, c, row_begin, row_end, workspace);
      case 15: return depthwise_pairs<T, M, 7, 1>(a, n, c, row_begin, row_end, workspace);
      case 16: return depthwise_pairs<T, M, 7, 2>(a, n, c, row_begin, row_end, workspace);
    }
  }
  depthwise_mode<T, M>(a, n, c, row_begin, row_end, workspace);
}

template <typename T>
void depthwise(const DepthwiseArgs<T>& a, int64_t n, int64_t c, int64_t row_begin, int64_t row_end,
               T* workspace) {
  switch (mode_of(a.sink)) {
    case Mode::kPlain: return depthwise_in_mode<T, Mode::kPlain>(a, n, c, row_begin, row_end, workspace);
    case Mode::kStats: return depthwise_in_mode<T, Mode::kStats>(a, n, c, row_begin, row_end, workspace);
    case Mode::kGradient:
      return depthwise_in_mode<T, Mode::kGradient>(a, n, c, row_begin, row_end, workspace);
  }
}

DETNAS_INLINE int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }

// Input pixel (y, x) receives grad[(y + pad - ky d) / s, (x + pad - kx d) / s] * w[ky, kx] from
// every tap that divides evenly. Pixels of equal x modulo s (at s == 1: modulo d) share their taps.
template <typename T, Mode M>
void depthwise_grad_input_mode(const DepthwiseArgs<T>& a, int64_t n, int64_t c, int64_t row_begin,
                               int64_t row_end, T* workspace) {
  const int64_t channels = a.channels - c < kSlab ? a.channels - c : kSlab;
  const int64_t pad = a.pad(), halo = (a.kernel - 1) * a.dilation, s = a.stride, d = a.dilation;
  Ring<T> ring(a.source, n, a.out_height, a.out_width, c, channels, halo, halo + 1, 3 * kStrip,
               halo / s + 2, workspace);
  ring.clear();
  const int64_t phases = s == 1 ? d : s;
  // Taps kx, kx + apart, ... lie one strip step apart, in falling order.
  const int64_t apart = s == 1 || d == 2 ? 1 : d == 1 ? 2 : a.kernel;
  for (int64_t y = row_begin; y < row_end; ++y) {
    ring.advance(floor_div(y + pad - halo + s - 1, s), floor_div(y + pad, s));
    for (int64_t phase = 0; phase < phases && phase < a.width; ++phase) {
      Segments<T> segments;
      segments.w_step = -apart * kSlab;
      for (int64_t ky = 0; ky < a.kernel; ++ky) {
        const int64_t ty = y + pad - ky * d;
        if (floor_div(ty, s) * s != ty || !ring.inside(ty / s)) continue;
        for (int64_t kx = 0; kx < apart; ++kx) {
          const int64_t taps = (a.kernel - kx + apart - 1) / apart, last = kx + (taps - 1) * apart;
          const int64_t tx = phase + pad - last * d, ox = floor_div(tx, s);
          if (ox * s == tx)
            segments.add(ring.row(ty / s) + (ox + halo) * kSlab, a.taps(c) + (ky * a.kernel + last) * kSlab,
                         static_cast<int>(taps));
        }
      }
      const int64_t first = (n * a.height + y) * a.width + phase;
      const int64_t count = (a.width - phase + phases - 1) / phases;
      switch (s == 1 ? d : 1) {
        case 1: strip_row<T, M, 1>(segments, count, first, phases, a.sink, c, channels, false); break;
        case 2: strip_row<T, M, 2>(segments, count, first, phases, a.sink, c, channels, false); break;
        default: strip_row<T, M, 3>(segments, count, first, phases, a.sink, c, channels, false);
      }
    }
  }
}

template <typename T>
void depthwise_grad_input(const DepthwiseArgs<T>& a, int64_t n, int64_t c, int64_t row_begin,
                          int64_t row_end, T* workspace) {
  if (mode_of(a.sink) == Mode::kGradient)
    return depthwise_grad_input_mode<T, Mode::kGradient>(a, n, c, row_begin, row_end, workspace);
  depthwise_grad_input_mode<T, Mode::kPlain>(a, n, c, row_begin, row_end, workspace);
}

// Y rows of taps at once, so that enough independent sums hide the latency of the multiply-add.
template <typename T, int K, int Y>
DETNAS_INLINE void grad_weight_rows(const T* const* z, const T* dy, int64_t width, int64_t step,
                                    int64_t dilation, T* acc) {
  using V = typename Vec<T>::type;
  V sum[Y][K];
#pragma GCC unroll 8
  for (int i = 0; i < Y; ++i)
#pragma GCC unroll 8
    for (int k = 0; k < K; ++k) sum[i][k] = V{};
  for (int64_t x = 0; x < width; ++x) {
    const V g = load(dy + x * kSlab);
#pragma GCC unroll 8
    for (int i = 0; i < Y; ++i)
#pragma GCC unroll 8
      for (int k = 0; k < K; ++k) sum[i][k] += g * load(z[i] + x * step + k * dilation);
  }
#pragma GCC unroll 8
  for (int i = 0; i < Y; ++i)
#pragma GCC unroll 8
    for (int k = 0; k < K; ++k) store(acc + (i * K + k) * kSlab, load(acc + (i * K + k) * kSlab) + sum[i][k]);
}

template <typename T, int K, int Y>
void depthwise_grad_weight_k(const DepthwiseArgs<T>& a, const Source<T>& grad, int64_t n, int64_t c,
                             int64_t row_begin, int64_t row_end, T* acc, T* workspace) {
  const int64_t channels = a.channels - c < kSlab ? a.channels - c : kSlab;
  const int64_t pad = a.pad();
  T* dy = workspace;
  Ring<T> ring(a.source, n, a.height, a.width, c, channels, pad, pad + a.stride, 0,
               (K - 1) * a.dilation + a.stride, workspace + (a.out_width + 1) * kSlab);
  ring.clear();
  for (int64_t oy = row_begin; oy < row_end; ++oy) {
    const int64_t top = oy * a.stride - pad;
    ring.advance(top, top + (K - 1) * a.dilation);
    transform(grad, (n * a.out_height + oy) * a.out_width, a.out_width, c, channels, dy,
              kSlab);
    for (int64_t v = 0; v < channels; v += Vec<T>::size)
      for (int ky = 0; ky < K;) {
        const T* z[Y];
        int rows = 0;
        for (; rows < Y && ky + rows < K && ring.inside(top + (ky + rows) * a.dilation); ++rows)
          z[rows] = ring.row(top + (ky + rows) * a.dilation) + v;
        const int64_t step = a.stride * kSlab, d = a.dilation * kSlab;
        T* out = acc + ky * K * kSlab + v;
        if (rows == Y) {
          grad_weight_rows<T, K, Y>(z, dy + v, a.out_width, step, d, out);
        } else {
          for (int i = 0; i < rows; ++i)
            grad_weight_rows<T, K, 1>(z + i, dy + v, a.out_width, step, d, out + i * K * kSlab);
        }
        ky += rows ? rows : 1;
      }
  }
}

template <typename T>
void depthwise_grad_weight(const DepthwiseArgs<T>& a, const Source<T>& grad, int64_t n, int64_t c,
                           int64_t row_begin, int64_t row_end, T* acc, T* workspace) {
  switch (a.kernel) {
    case 3: return depthwise_grad_weight_k<T, 3, 3>(a, grad, n, c, row_begin, row_end, acc, workspace);
    case 5: return depthwise_grad_weight_k<T, 5, 2>(a, grad, n, c, row_begin, row_end, acc, workspace);
    case 7: return depthwise_grad_weight_k<T, 7, 1>(a, grad, n, c, row_begin, row_end, acc, workspace);
  }
}
