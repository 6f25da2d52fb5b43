// 3x3 convolutions by Winograd's F(4x4, 3x3): 36 products of matrices for tiles of 4x4 outputs, where direct
// convolution has 144. The points are 0, +-a, +-b and infinity.

// Exact in every dtype, and rounding is amplified less than by the textbook's 1 and 2.
template <typename T>
struct Points {
  static constexpr T a = T(0.625), b = T(1.5);
  static constexpr T aa = a * a, bb = b * b, sum = aa + bb, product = aa * bb;
};

// V = B^T d: six values to six.
template <typename T, typename V>
DETNAS_INLINE void winograd_data(const V (&d)[6], V (&v)[6]) {
  using P = Points<T>;
  const V d4 = d[4], even_a = d4 - P::bb * d[2], odd_a = P::a * d[3] - P::a * P::bb * d[1];
  const V even_b = d4 - P::aa * d[2], odd_b = P::b * d[3] - P::aa * P::b * d[1];
  v[0] = P::product * d[0] - P::sum * d[2] + d4;
  v[1] = even_a + odd_a;
  v[2] = even_a - odd_a;
  v[3] = even_b + odd_b;
  v[4] = even_b - odd_b;
  v[5] = P::product * d[1] - P::sum * d[3] + d[5];
}

// G g: three values to six.
template <typename T, typename V>
DETNAS_INLINE void winograd_taps(const V (&g)[3], V (&u)[6]) {
  using P = Points<T>;
  constexpr T na = 1 / (2 * P::aa * (P::aa - P::bb)), nb = 1 / (2 * P::bb * (P::bb - P::aa));
  const V even_a = na * g[0] + na * P::aa * g[2], odd_a = na * P::a * g[1];
  const V even_b = nb * g[0] + nb * P::bb * g[2], odd_b = nb * P::b * g[1];
  u[0] = g[0] * (1 / P::product);
  u[1] = even_a + odd_a;
  u[2] = even_a - odd_a;
  u[3] = even_b + odd_b;
  u[4] = even_b - odd_b;
  u[5] = g[2];
}

// A^T m: six values to four.
template <typename T, typename V>
DETNAS_INLINE void winograd_result(const V (&m)[6], V (&y)[4]) {
  using P = Points<T>;
  const V even_a = m[1] + m[2], odd_a = m[1] - m[2], even_b = m[3] + m[4], odd_b = m[3] - m[4];
  y[0] = m[0] + even_a + even_b;
  y[1] = P::a * odd_a + P::b * odd_b;
  y[2] = P::aa * even_a + P::bb * even_b;
  y[3] = P::a * P::aa * odd_a + P::b * P::bb * odd_b + m[5];
}

// taps: the weights (n, c, 3, 3) as packed by pack_matrix (n, 9 c); out: 36 packed matrices (n, c).
template <typename T>
void winograd_weights(const T* taps, int64_t n, int64_t c, T* out) {
  using V = typename Vec<T>::type;
  constexpr int64_t L = Vec<T>::size;
  const int64_t size = round_up(n, kPanel) * c;
  for (int64_t p = 0; p < size; p += kPanel)
    for (int64_t j = 0; j < kPanel; j += L) {
      const T* in = taps + 9 * p + j;
      V half[6][3];
#pragma GCC unroll 3
      for (int x = 0; x < 3; ++x) {
        const V g[3] = {load(in + x * kPanel), load(in + (3 + x) * kPanel), load(in + (6 + x) * kPanel)};
        V u[6];
        winograd_taps<T>(g, u);
#pragma GCC unroll 6
        for (int y = 0; y < 6; ++y) half[y][x] = u[y];
      }
#pragma GCC unroll 6
      for (int y = 0; y < 6; ++y) {
        V u[6];
        winograd_taps<T>(half[y], u);
#pragma GCC unroll 6
        for (int x = 0; x < 6; ++x) store(out + (y * 6 + x) * size + p + j, u[x]);
      }
    }
}

// Image and first output pixel of a tile.
template <typename T>
struct TilePlace {
  int64_t n, y, x;
  DETNAS_INLINE TilePlace(const WinogradArgs<T>& g, int64_t tile) {
    const int64_t across = (g.width + 3) / 4, down = (g.height + 3) / 4;
    x = tile % across * 4;
    y = tile / across % down * 4;
    n = tile / across / down;
  }
};

template <typename T>
void winograd_input(const WinogradArgs<T>& g, int64_t begin, int64_t end) {
  using V = typename Vec<T>::type;
  constexpr int64_t L = Vec<T>::size;
  const T* pixels[6][6];
  T* out = g.in;
  for (int64_t t = begin; t < end; ++t, out += g.ld_in) {
    const TilePlace<T> at(g, t);
    for (int64_t y = 0; y < 6; ++y)
      for (int64_t x = 0; x < 6; ++x) {
        const int64_t iy = at.y + y - 1, ix = at.x + x - 1;
        const bool inside = iy >= 0 && iy < g.height && ix >= 0 && ix < g.width;
        pixels[y][x] = inside ? g.x + ((at.n * g.height + iy) * g.width + ix) * g.ld : g.zeros;
      }
    for (int64_t c = 0; c < g.channels; c += L) {
      const int64_t left = g.channels - c;
      V half[6][6];
#pragma GCC unroll 6
      for (int x = 0; x < 6; ++x) {
        V d[6], v[6];
#pragma GCC unroll 6
        for (int y = 0; y < 6; ++y) d[y] = load_part(pixels[y][x] + c, left);
        winograd_data<T>(d, v);
#pragma GCC unroll 6
        for (int y = 0; y < 6; ++y) half[y][x] = v[y];
      }
#pragma GCC unroll 6
      for (int y = 0; y < 6; ++y) {
        V v[6];
        winograd_data<T>(half[y], v);
#pragma GCC unroll 6
        for (int x = 0; x < 6; ++x) store(out + (y * 6 + x) * g.map_in + c, v[x]);
      }
    }
  }
}

template <typename T, Mode M>
int64_t winograd_output_mode(const WinogradArgs<T>& g, int64_t begin, int64_t end) {
  using V = typename Vec<T>::type;
  constexpr int64_t L = Vec<T>::size;
  const T* in = g.out;
  int64_t pixels = 0;
  for (int64_t t = begin; t < end; ++t, in += g.ld_out) {
    const TilePlace<T> at(g, t);
    const int64_t h = g.height - at.y < 4 ? g.height - at.y : 4;
    const int64_t w = g.width - at.x < 4 ? g.width - at.x : 4;
    const int64_t first = (at.n * g.height + at.y) * g.width + at.x;
    for (int64_t c = 0; c < g.out_channels; c += L) {
      SinkLane<T, M> lane(g.sink, c, g.out_channels - c);
      V half[4][6], y[4][4];
#pragma GCC unroll 6
      for (int j = 0; j < 6; ++j) {
        V m[6], v[4];
#pragma GCC unroll 6
        for (int i = 0; i < 6; ++i) m[i] = load(in + (i * 6 + j) * g.map_out + c);
        winograd_result<T>(m, v);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) half[i][j] = v[i];
      }
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) winograd_result<T>(half[i], y[i]);
      if (t == begin) lane.set_reference(y[0][0]);
      if (h == 4 && w == 4) {
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i)
#pragma GCC unroll 4
          for (int j = 0; j < 4; ++j) lane.put(y[i][j], first + i * g.width + j);
      } else {
        for (int64_t i = 0; i < h; ++i)
          for (int64_t j = 0; j < w; ++j) lane.put(y[i][j], first + i * g.width + j);
      }
      lane.flush();
    }
    pixels += h * w;
    if (M == Mode::kStats && t == begin && t + 1 < end)
      recentre(g.sink.ref, g.sink.sum, g.sink.sum_sq, g.out_channels, pixels);
  }
  return pixels;
}

template <typename T>
int64_t winograd_output(const WinogradArgs<T>& g, int64_t begin, int64_t end) {
  if (g.sink.sum) return winograd_output_mode<T, Mode::kStats>(g, begin, end);
  return winograd_output_mode<T, Mode::kPlain>(g, begin, end);
}
