// Matrix products for 1x1 convolutions: a register tile of kRows x kCols vectors.

constexpr int kRows = DETNAS_GEMM_ROWS;  // pixels of a register tile
constexpr int kCols = 2;                 // vectors of a register tile

template <typename T>
constexpr int64_t panel_size() {
  return kCols * Vec<T>::size;
}

// tile[r][j] = sum_k a[r * a_row + k * a_col] * b[k * ldb + j * b_next], j over C vectors. Where `Near` is the level
// of the caches to bring it to, a line of what is read next is asked for with every k.
template <typename T, int R, int C, int Near = 0>
DETNAS_INLINE void register_tile(const T* a, int64_t a_row, int64_t a_col, const T* b, int64_t ldb,
                                 int64_t b_next, int64_t depth, typename Vec<T>::type (&tile)[R][C],
                                 const T* ahead = nullptr) {
  using V = typename Vec<T>::type;
  V c[R][C];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < C; ++j) c[r][j] = V{};
#pragma GCC unroll 2
  for (int64_t k = 0; k < depth; ++k) {
    if (Near) __builtin_prefetch(ahead + k * (64 / sizeof(T)), 0, Near == 1 ? 3 : 2);
    V bv[C];
#pragma GCC unroll 4
    for (int j = 0; j < C; ++j) bv[j] = load(b + k * ldb + j * b_next);
    const T* ak = a + k * a_col;
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const V av = splat<T>(ak[r * a_row]);
#pragma GCC unroll 4
      for (int j = 0; j < C; ++j) c[r][j] += av * bv[j];
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < C; ++j) tile[r][j] = c[r][j];
}

// Calls f(std::integral_constant-like rows) for tiles that cover [0, count).
template <int R>
struct Rows {
  static constexpr int value = R;
};
template <typename F>
DETNAS_INLINE void for_tiles(int64_t count, F&& f) {
  int64_t i = 0;
  for (; i + kRows <= count; i += kRows) f(i, Rows<kRows>());
  if (kRows > 8)
    for (; i + 8 <= count; i += 8) f(i, Rows<8>());
  for (; i + 4 <= count; i += 4) f(i, Rows<4>());
  for (; i + 2 <= count; i += 2) f(i, Rows<2>());
  for (; i < count; ++i) f(i, Rows<1>());
}

template <typename T>
void pack_matrix(const T* w, int64_t stride_n, int64_t stride_k, int64_t n, int64_t k, T* packed) {
  constexpr int64_t P = kPanel, B = 16;  // blocks stay in the first-level cache while transposed
  constexpr int64_t L = Vec<T>::size;
  for (int64_t p = 0; p < n; p += P) {
    const int64_t cols = n - p < P ? n - p : P;
    T* out = packed + p * k;
    const T* in = w + p * stride_n;
    if (stride_n == 1 && cols == P) {
      for (int64_t i = 0; i < k; ++i) __builtin_memcpy(out + i * P, in + i * stride_k, P * sizeof(T));
      continue;
    }
    for (int64_t i0 = 0; i0 < k; i0 += B) {
      const int64_t i1 = i0 + B < k ? i0 + B : k;
      // The next panel's rows, one after the other: reading sixteen at once outwits the hardware.
      if (stride_n == k && p + 2 * P <= n)
        for (int64_t line = i0 * P; line < i1 * P; line += 64 / static_cast<int64_t>(sizeof(T)))
          __builtin_prefetch(in + P * k + line);
      if (cols == P && stride_k == 1 && i1 - i0 == B) {
        for (int64_t i = i0; i < i1; i += L)
          for (int64_t j = 0; j < P; j += L) transpose(in + j * stride_n + i, stride_n, out + i * P + j, P);
        continue;
      }
      for (int64_t j = 0; j < P; ++j)
        for (int64_t i = i0; i < i1; ++i)
          out[i * P + j] = j < cols ? in[j * stride_n + i * stride_k] : T(0);
    }
  }
}

// W diag(scale) and W shift, for a packed matrix W: what is pending on a product's input without
// ReLU moves into the matrix and the bias. out may be packed itself; bias (round_up(n, kPanel)) is
// added to.
template <typename T>
void fold_matrix(const T* packed, int64_t n, int64_t k, const T* scale, const T* shift, T* out,
                 T* bias) {
  using V = typename Vec<T>::type;
  constexpr int64_t L = Vec<T>::size;
  constexpr int U = kPanel / L;
  for (int64_t p = 0; p < n; p += kPanel) {
    V sum[U];
#pragma GCC unroll 8
    for (int u = 0; u < U; ++u) sum[u] = load(bias + p + u * L);
    for (int64_t i = 0; i < k; ++i) {
      const T* in = packed + p * k + i * kPanel;
      const V a = splat<T>(scale[i]), b = splat<T>(shift[i]);
#pragma GCC unroll 8
      for (int u = 0; u < U; ++u) {
        const V w = load(in + u * L);
        sum[u] += w * b;
        store(out + p * k + i * kPanel + u * L, w * a);
      }
    }
#pragma GCC unroll 8
    for (int u = 0; u < U; ++u) store(bias + p + u * L, sum[u]);
  }
}

// The columns of C vectors, from p on, of the pixels [m0, m0 + rows), read from `a`.
template <typename T, Mode M, int C>
DETNAS_INLINE void gemm_columns(const GemmArgs<T>& g, const T* a, int64_t lda, int64_t m0, int64_t rows,
                                int64_t p, bool first) {
  using V = typename Vec<T>::type;
  constexpr int64_t L = Vec<T>::size;
  SinkLane<T, M> lane0(g.sink, p, g.n - p);
  SinkLane<T, M> lane1(g.sink, p + (C - 1) * L, g.n - p - (C - 1) * L);  // lane0 once more if C == 1
  const T* b = g.packed + p / kPanel * kPanel * g.k + p % kPanel;
  const int64_t b_next = L < kPanel ? L : kPanel * g.k;  // beside the first's, or in the next panel
  for_tiles(rows, [&](int64_t r0, auto tag) __attribute__((always_inline)) {
    constexpr int R = decltype(tag)::value;
    V tile[R][C];
    // The next tile's pixels are asked for meanwhile: the hardware does not foresee so many rows at once.
    register_tile<T, R, C, 1>(a + r0 * lda, lda, 1, b, kPanel, b_next, g.k, tile, a + (r0 + R) * lda);
    if (M == Mode::kStats && first && r0 == 0) {
      lane0.set_reference(tile, 0);
      if (C == 2) lane1.set_reference(tile, 1);
    }
    if (lane0.full && lane1.full) {
      lane0.seek(m0 + r0);
      lane1.seek(m0 + r0);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        lane0.put_next(tile[r][0], 1);
        if (C == 2) lane1.put_next(tile[r][C - 1], 1);
      }
      return;
    }
    T rest[R][C * L];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
      for (int j = 0; j < C; ++j) store(rest[r] + j * L, tile[r][j]);
    for (int r = 0; r < R; ++r) {
      lane0.put(load(rest[r]), m0 + r0 + r);
      if (C == 2) lane1.put(load(rest[r] + L), m0 + r0 + r);
    }
  });
  lane0.flush();
  if (C == 2) lane1.flush();
}

template <typename T, Mode M>
void gemm_mode(const GemmArgs<T>& g, int64_t begin, int64_t end, T* workspace) {
  constexpr int64_t L = Vec<T>::size, P = panel_size<T>();
  const bool direct = g.source.plain();
  const int64_t ld_work = round_up(g.k, L) + L;  // + L: rows do not share a cache set
  bool first = true;
  for (int64_t m0 = begin; m0 < end; m0 += kGemmTile) {
    const int64_t rows = end - m0 < kGemmTile ? end - m0 : kGemmTile;
    if (!direct) transform(g.source, m0, rows, 0, g.k, workspace, ld_work);
    const T* a = direct ? g.source.data + m0 * g.source.ld : workspace;
    const int64_t lda = direct ? g.source.ld : ld_work;
    for (int64_t p = 0; p < g.n; p += P) {
      if (p + L < g.n) gemm_columns<T, M, kCols>(g, a, lda, m0, rows, p, first);
      else gemm_columns<T, M, 1>(g, a, lda, m0, rows, p, first);
    }
    if (M == Mode::kStats && first && m0 + rows < end)
      recentre(g.sink.ref, g.sink.sum, g.sink.sum_sq, g.n, rows);
    first = false;
  }
}

template <typename T>
void gemm(const GemmArgs<T>& g, int64_t begin, int64_t end, T* workspace) {
  switch (mode_of(g.sink)) {
    case Mode::kPlain: return gemm_mode<T, Mode::kPlain>(g, begin, end, workspace);
    case Mode::kStats: return gemm_mode<T, Mode::kStats>(g, begin, end, workspace);
    case Mode::kGradient: return gemm_mode<T, Mode::kGradient>(g, begin, end, workspace);
  }
}

template <typename T>
void gemm_grad_weight(const GemmGradArgs<T>& g, int64_t begin, int64_t end, T* acc, T* workspace) {
  using V = typename Vec<T>::type;
  constexpr int64_t L = Vec<T>::size, P = panel_size<T>();
  const int64_t ld_acc = round_up(g.k, 32);
  const int64_t ld_x = ld_acc + L, ld_dy = round_up(g.n, L) + L;
  const bool direct_x = g.source.plain() && g.k % L == 0, direct_dy = g.grad.plain();
  T* work_x = workspace;
  T* work_dy = workspace + kGemmTile * ld_x;
  if (!direct_x)  // the columns beyond k that the last panel reads
    for (int64_t i = 0; i < kGemmTile * ld_x; ++i) work_x[i] = T(0);
  for (int64_t m0 = begin; m0 < end; m0 += kGemmTile) {
    const int64_t rows = end - m0 < kGemmTile ? end - m0 : kGemmTile;
    if (!direct_x) transform(g.source, m0, rows, 0, g.k, work_x, ld_x);
    if (!direct_dy) transform(g.grad, m0, rows, 0, g.n, work_dy, ld_dy);
    const T* x = direct_x ? g.source.data + m0 * g.source.ld : work_x;
    const T* dy = direct_dy ? g.grad.data + m0 * g.grad.ld : work_dy;
    const int64_t ldx = direct_x ? g.source.ld : ld_x, lddy = direct_dy ? g.grad.ld : ld_dy;
    auto columns = [&](int64_t p, auto count) __attribute__((always_inline)) {
      constexpr int C = decltype(count)::value;
      for_tiles(g.n, [&](int64_t r0, auto tag) __attribute__((always_inline)) {
        constexpr int R = decltype(tag)::value;
        V tile[R][C];
        register_tile<T, R, C>(dy + r0, 1, lddy, x + p, ldx, L, rows, tile);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
          for (int j = 0; j < C; ++j) {
            T* o = acc + (r0 + r) * ld_acc + p + j * L;
            store(o, m0 == begin ? tile[r][j] : load(o) + tile[r][j]);
          }
      });
    };
    for (int64_t p = 0; p < g.k; p += P) {
      if (p + L < g.k) columns(p, Rows<kCols>());
      else columns(p, Rows<1>());
    }
  }
}
