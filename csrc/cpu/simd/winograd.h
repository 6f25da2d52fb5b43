// 3x3 convolutions by Winograd's F(4x4, 3x3): 36 products of matrices for tiles of 4x4 outputs, where direct
// convolution has 144. The points are 0, +-a, +-b and infinity. The last tiles of a map have the outputs that
// are left, M in a direction, and M + 2 of the points: 121 products for a map of 7x7, not 144.

// Exact in every dtype, and rounding is amplified less than by the textbook's 1 and 2.
template <typename T>
struct Points {
  static constexpr T a = T(0.625), b = T(1.5);
  static constexpr T aa = a * a, bb = b * b, sum = aa + bb, product = aa * bb;
};

// The M + 2 points of M outputs, counted in the order above.
template <int M>
struct Chosen;
template <>
struct Chosen<4> {
  static constexpr int at[6] = {0, 1, 2, 3, 4, 5};
};
template <>
struct Chosen<3> {
  static constexpr int at[5] = {0, 1, 2, 3, 5};
};
template <>
struct Chosen<2> {
  static constexpr int at[4] = {0, 1, 2, 5};
};
template <>
struct Chosen<1> {
  static constexpr int at[3] = {0, 1, 5};
};

// V = B^T d. Weights are those of six points: where one is left out, each other point p has, as a factor, its
// difference to it.
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
template <typename T, typename V>
DETNAS_INLINE void winograd_data(const V (&d)[5], V (&v)[5]) {
  using P = Points<T>;
  constexpr T a = P::a, b = P::b, aab = P::aa * b;
  v[0] = b * aab * d[0] - b * P::aa * d[1] - P::bb * d[2] + b * d[3];
  v[1] = (a + b) * d[3] + (P::aa - P::bb) * d[2] - (a + b) * a * b * d[1];
  v[2] = (b - a) * d[3] - (P::bb - P::aa) * d[2] + (b - a) * a * b * d[1];
  v[3] = 2 * b * d[3] - 2 * aab * d[1];
  v[4] = aab * d[1] - P::aa * d[2] - b * d[3] + d[4];
}
template <typename T, typename V>
DETNAS_INLINE void winograd_data(const V (&d)[4], V (&v)[4]) {
  using P = Points<T>;
  constexpr T c = P::aa - P::bb;
  v[0] = P::product * d[0] - P::bb * d[2];
  v[1] = c * d[2] + c * P::a * d[1];
  v[2] = c * d[2] - c * P::a * d[1];
  v[3] = d[3] - P::aa * d[1];
}
template <typename T, typename V>
DETNAS_INLINE void winograd_data(const V (&d)[3], V (&v)[3]) {
  using P = Points<T>;
  v[0] = P::product * d[0] - P::a * P::bb * d[1];
  v[1] = 2 * P::a * (P::aa - P::bb) * d[1];
  v[2] = d[2] - P::a * d[1];
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

// A^T m.
template <typename T, typename V>
DETNAS_INLINE void winograd_result(const V (&m)[6], V (&y)[4]) {
  using P = Points<T>;
  const V even_a = m[1] + m[2], odd_a = m[1] - m[2], even_b = m[3] + m[4], odd_b = m[3] - m[4];
  y[0] = m[0] + even_a + even_b;
  y[1] = P::a * odd_a + P::b * odd_b;
  y[2] = P::aa * even_a + P::bb * even_b;
  y[3] = P::a * P::aa * odd_a + P::b * P::bb * odd_b + m[5];
}
template <typename T, typename V>
DETNAS_INLINE void winograd_result(const V (&m)[5], V (&y)[3]) {
  using P = Points<T>;
  const V even = m[1] + m[2];
  y[0] = m[0] + even + m[3];
  y[1] = P::a * (m[1] - m[2]) + P::b * m[3];
  y[2] = P::aa * even + P::bb * m[3] + m[4];
}
template <typename T, typename V>
DETNAS_INLINE void winograd_result(const V (&m)[4], V (&y)[2]) {
  using P = Points<T>;
  y[0] = m[0] + m[1] + m[2];
  y[1] = P::a * (m[1] - m[2]) + m[3];
}
template <typename T, typename V>
DETNAS_INLINE void winograd_result(const V (&m)[3], V (&y)[1]) {
  y[0] = m[0] + m[1] + m[2];
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

// Image, first output pixel and outputs of a tile.
template <typename T>
struct Tile {
  int64_t n, y, x;
  int rows, columns;
  DETNAS_INLINE Tile(const WinogradArgs<T>& g, int64_t tile) {
    const int64_t across = (g.width + 3) / 4, down = (g.height + 3) / 4;
    x = tile % across * 4;
    y = tile / across % down * 4;
    n = tile / across / down;
    rows = static_cast<int>(g.height - y < 4 ? g.height - y : 4);
    columns = static_cast<int>(g.width - x < 4 ? g.width - x : 4);
  }
};

// f(outputs in a column, outputs in a row), as types.
template <typename T, typename F>
DETNAS_INLINE void with_outputs(const Tile<T>& tile, F&& f) {
  auto of_columns = [&](auto rows) __attribute__((always_inline)) {
    switch (tile.columns) {
      case 1: return f(rows, Rows<1>());
      case 2: return f(rows, Rows<2>());
      case 3: return f(rows, Rows<3>());
      default: return f(rows, Rows<4>());
    }
  };
  switch (tile.rows) {
    case 1: return of_columns(Rows<1>());
    case 2: return of_columns(Rows<2>());
    case 3: return of_columns(Rows<3>());
    default: return of_columns(Rows<4>());
  }
}

// The tile's rows in the matrices of its points, each the next that is free.
template <int Y, int X, typename T>
DETNAS_INLINE void take_rows(T* maps, int64_t map, int64_t ld, int64_t* taken, T* (&rows)[Y + 2][X + 2]) {
  for (int y = 0; y < Y + 2; ++y)
    for (int x = 0; x < X + 2; ++x) {
      const int point = Chosen<Y>::at[y] * 6 + Chosen<X>::at[x];
      rows[y][x] = maps + point * map + taken[point]++ * ld;
    }
}

template <typename T, int Y, int X>
__attribute__((noinline)) void winograd_input_tile(const WinogradArgs<T>& g, const Tile<T>& at) {
  using V = typename Vec<T>::type;
  constexpr int64_t L = Vec<T>::size;
  const T* pixels[Y + 2][X + 2];
  for (int64_t y = 0; y < Y + 2; ++y)
    for (int64_t x = 0; x < X + 2; ++x) {
      const int64_t iy = at.y + y - 1, ix = at.x + x - 1;
      const bool inside = iy >= 0 && iy < g.height && ix >= 0 && ix < g.width;
      pixels[y][x] = inside ? g.x + ((at.n * g.height + iy) * g.width + ix) * g.ld : g.zeros;
    }
  T* rows[Y + 2][X + 2];
  take_rows<Y, X>(g.in, g.map_in, g.ld_in, g.rows, rows);
  for (int64_t c = 0; c < g.channels; c += L) {
    const int64_t left = g.channels - c;
    V half[Y + 2][X + 2];
#pragma GCC unroll 6
    for (int x = 0; x < X + 2; ++x) {
      V d[Y + 2], v[Y + 2];
#pragma GCC unroll 6
      for (int y = 0; y < Y + 2; ++y) d[y] = load_part(pixels[y][x] + c, left);
      winograd_data<T>(d, v);
#pragma GCC unroll 6
      for (int y = 0; y < Y + 2; ++y) half[y][x] = v[y];
    }
#pragma GCC unroll 6
    for (int y = 0; y < Y + 2; ++y) {
      V v[X + 2];
      winograd_data<T>(half[y], v);
#pragma GCC unroll 6
      for (int x = 0; x < X + 2; ++x) store(rows[y][x] + c, v[x]);
    }
  }
}

template <typename T>
void winograd_input(const WinogradArgs<T>& g, int64_t begin, int64_t end) {
  for (int64_t t = begin; t < end; ++t) {
    const Tile<T> at(g, t);
    with_outputs(at, [&](auto y, auto x) {
      winograd_input_tile<T, decltype(y)::value, decltype(x)::value>(g, at);
    });
  }
}

// Columns [p, p + C vectors) of a point's product; `ahead` steps through what is read next.
template <typename T, int C>
DETNAS_INLINE void winograd_columns(const WinogradArgs<T>& g, const T* in, T* out, const T* packed, int64_t rows,
                                    int64_t p, const T* next_in, const T* next_end) {
  using V = typename Vec<T>::type;
  constexpr int64_t L = Vec<T>::size, line = 64 / sizeof(T);
  const int64_t k = g.channels, b_next = L < kPanel ? L : kPanel * k;
  const T* b = packed + p / kPanel * kPanel * k + p % kPanel;
  const T *ahead = b + C * L * k, *ahead_end = ahead + C * L * k;
  for_tiles(rows, [&](int64_t r0, auto tag) __attribute__((always_inline)) {
    constexpr int R = decltype(tag)::value;
    V tile[R][C];
    if (ahead >= ahead_end) ahead = next_in, ahead_end = next_end;
    register_tile<T, R, C, 2>(in + r0 * g.ld_in, g.ld_in, 1, b, kPanel, b_next, k, tile, ahead);
    ahead += k * line;
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
      for (int j = 0; j < C; ++j) store(out + (r0 + r) * g.ld_out + p + j * L, tile[r][j]);
  });
}

template <typename T>
void winograd_products(const WinogradArgs<T>& g) {
  constexpr int64_t L = Vec<T>::size, P = panel_size<T>();
  const int64_t size = round_up(g.out_channels, kPanel) * g.channels;
  for (int64_t i = 0; i < kPoints; ++i) {
    const T* in = g.in + i * g.map_in;
    const int64_t next = i + 1 < kPoints ? i + 1 : i;
    const T* next_in = g.in + next * g.map_in;
    // Each of the column passes asks for its share of the next point's rows.
    const int64_t passes = (g.out_channels + P - 1) / P;
    const int64_t share = passes ? round_up(g.rows[next] * g.ld_in / passes, kChannelPad) : 0;
    for (int64_t p = 0; p < g.out_channels; p += P, next_in += share) {
      T* out = g.out + i * g.map_out;
      const T* packed = g.packed + i * size;
      if (p + L < g.out_channels)
        winograd_columns<T, kCols>(g, in, out, packed, g.rows[i], p, next_in, next_in + share);
      else
        winograd_columns<T, 1>(g, in, out, packed, g.rows[i], p, next_in, next_in + share);
    }
  }
}

template <typename T, Mode M, int Y, int X>
__attribute__((noinline)) void winograd_output_tile(const WinogradArgs<T>& g, const Tile<T>& at, bool first) {
  using V = typename Vec<T>::type;
  constexpr int64_t L = Vec<T>::size;
  T* rows[Y + 2][X + 2];
  take_rows<Y, X>(g.out, g.map_out, g.ld_out, g.rows, rows);
  const int64_t pixel = (at.n * g.height + at.y) * g.width + at.x;
  for (int64_t c = 0; c < g.out_channels; c += L) {
    SinkLane<T, M> lane(g.sink, c, g.out_channels - c);
    V half[Y][X + 2], y[Y][X];
#pragma GCC unroll 6
    for (int j = 0; j < X + 2; ++j) {
      V m[Y + 2], v[Y];
#pragma GCC unroll 6
      for (int i = 0; i < Y + 2; ++i) m[i] = load(rows[i][j] + c);
      winograd_result<T>(m, v);
#pragma GCC unroll 4
      for (int i = 0; i < Y; ++i) half[i][j] = v[i];
    }
#pragma GCC unroll 4
    for (int i = 0; i < Y; ++i) winograd_result<T>(half[i], y[i]);
    if (first) lane.set_reference(y[0][0]);
#pragma GCC unroll 4
    for (int i = 0; i < Y; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < X; ++j) lane.put(y[i][j], pixel + i * g.width + j);
    lane.flush();
  }
}

template <typename T, Mode M>
int64_t winograd_output_mode(const WinogradArgs<T>& g, int64_t begin, int64_t end) {
  int64_t pixels = 0;
  for (int64_t t = begin; t < end; ++t) {
    const Tile<T> at(g, t);
    with_outputs(at, [&](auto y, auto x) {
      winograd_output_tile<T, M, decltype(y)::value, decltype(x)::value>(g, at, t == begin);
    });
    pixels += at.rows * at.columns;
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
