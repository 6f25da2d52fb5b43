// A vector of DETNAS_VEC_BYTES bytes, through the compiler's vector extension: one source for
// every instruction set, no intrinsics. Included inside the namespace of an instruction set.

template <typename T>
struct Vec {
  typedef T type __attribute__((vector_size(DETNAS_VEC_BYTES)));
  static constexpr int64_t size = DETNAS_VEC_BYTES / sizeof(T);
};

#define DETNAS_INLINE inline __attribute__((always_inline))

template <typename T>
DETNAS_INLINE typename Vec<T>::type load(const T* p) {
  typename Vec<T>::type v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}

template <typename T, typename V>
DETNAS_INLINE void store(T* p, V v) {
  __builtin_memcpy(p, &v, sizeof(v));
}

// The first n (0 < n) lanes; the rest is zero.
template <typename T>
DETNAS_INLINE typename Vec<T>::type load_part(const T* p, int64_t n) {
  if (__builtin_expect(n >= Vec<T>::size, 1)) return load(p);
  T lanes[Vec<T>::size] = {};
  for (int64_t i = 0; i < n; ++i) lanes[i] = p[i];
  return load(lanes);
}

template <typename T, typename V>
DETNAS_INLINE void store_part(T* p, V v, int64_t n) {
  if (__builtin_expect(n >= Vec<T>::size, 1)) return store(p, v);
  T lanes[Vec<T>::size];
  store(lanes, v);
  for (int64_t i = 0; i < n; ++i) p[i] = lanes[i];
}

template <typename T>
DETNAS_INLINE typename Vec<T>::type splat(T x) {
  return x - typename Vec<T>::type{};  // x - 0 keeps the sign of zero
}

// max(v, 0) that passes NaN on, as torch.relu does.
template <typename T>
DETNAS_INLINE typename Vec<T>::type relu(typename Vec<T>::type v) {
  const typename Vec<T>::type zero = {};
  return v < zero ? zero : v;
}

// Sums of one vector added to doubles.
template <typename T, typename V>
DETNAS_INLINE void add_lanes(double* acc, V v, int64_t n) {
  T lanes[Vec<T>::size];
  store(lanes, v);
  if (__builtin_expect(n >= Vec<T>::size, 1)) {
    for (int64_t i = 0; i < Vec<T>::size; ++i) acc[i] += static_cast<double>(lanes[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) acc[i] += static_cast<double>(lanes[i]);
  }
}

// out[2 i] = a[i], out[2 i + 1] = b[i], and the reverse.
template <typename T>
DETNAS_INLINE void interleave(const T* __restrict a, const T* __restrict b, int64_t n,
                              T* __restrict out) {
  for (int64_t i = 0; i < n; ++i) {
    out[2 * i] = a[i];
    out[2 * i + 1] = b[i];
  }
}
template <typename T>
DETNAS_INLINE void deinterleave(const T* __restrict in, int64_t n, T* __restrict a,
                                T* __restrict b) {
  for (int64_t i = 0; i < n; ++i) {
    a[i] = in[2 * i];
    b[i] = in[2 * i + 1];
  }
}

template <typename T>
DETNAS_INLINE T finite_or_zero(T x) {
  return x - x == T(0) ? x : T(0);  // inf - inf and NaN - NaN are NaN
}

// The lanes of a and b, counted through, in the given order.
#if defined(__clang__) || __GNUC__ >= 12
#define DETNAS_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else  // GCC 11, whose builtin takes the order as a vector
#define DETNAS_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, decltype((a) < (b)){__VA_ARGS__})
#endif

// Lanes 0, 2, ... (Odd: 1, 3, ...) of a followed by those of b.
template <typename T, bool Odd>
DETNAS_INLINE typename Vec<T>::type every_second(typename Vec<T>::type a, typename Vec<T>::type b) {
  constexpr int L = Vec<T>::size, o = Odd;
  if constexpr (L == 2) {
    return DETNAS_SHUFFLE(a, b, o, o + 2);
  } else if constexpr (L == 4) {
    return DETNAS_SHUFFLE(a, b, o, o + 2, o + 4, o + 6);
  } else if constexpr (L == 8) {
    return DETNAS_SHUFFLE(a, b, o, o + 2, o + 4, o + 6, o + 8, o + 10, o + 12, o + 14);
  } else {
    static_assert(L == 16);
    return DETNAS_SHUFFLE(a, b, o, o + 2, o + 4, o + 6, o + 8, o + 10, o + 12, o + 14, o + 16, o + 18,
                          o + 20, o + 22, o + 24, o + 26, o + 28, o + 30);
  }
}

// Lanes of a and b in turns: the first half of both, or the second (High).
template <typename T, bool High>
DETNAS_INLINE typename Vec<T>::type in_turns(typename Vec<T>::type a, typename Vec<T>::type b) {
  constexpr int L = Vec<T>::size, o = High ? L / 2 : 0;
  if constexpr (L == 2) {
    return DETNAS_SHUFFLE(a, b, o, o + L);
  } else if constexpr (L == 4) {
    return DETNAS_SHUFFLE(a, b, o, o + L, o + 1, o + 1 + L);
  } else if constexpr (L == 8) {
    return DETNAS_SHUFFLE(a, b, o, o + L, o + 1, o + 1 + L, o + 2, o + 2 + L, o + 3, o + 3 + L);
  } else {
    static_assert(L == 16);
    return DETNAS_SHUFFLE(a, b, o, o + L, o + 1, o + 1 + L, o + 2, o + 2 + L, o + 3, o + 3 + L, o + 4,
                          o + 4 + L, o + 5, o + 5 + L, o + 6, o + 6 + L, o + 7, o + 7 + L);
  }
}

// A square of as many numbers as a vector has in each direction, transposed.
template <typename T>
DETNAS_INLINE void transpose(const T* in, int64_t ld_in, T* out, int64_t ld_out) {
  using V = typename Vec<T>::type;
  constexpr int L = Vec<T>::size;
  V rows[L], merged[L];
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i) rows[i] = load(in + i * ld_in);
  for (int n = 1; n < L; n *= 2) {  // each time, rows half the square apart in turns
#pragma GCC unroll 8
    for (int i = 0; i < L / 2; ++i) {
      merged[2 * i] = in_turns<T, false>(rows[i], rows[i + L / 2]);
      merged[2 * i + 1] = in_turns<T, true>(rows[i], rows[i + L / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) rows[i] = merged[i];
  }
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i) store(out + i * ld_out, rows[i]);
}
