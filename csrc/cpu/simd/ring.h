// Rows of a map read through its source, zero-padded, kept while they are needed.
template <typename T>
struct Ring {
  const Source<T>& source;
  int64_t image, height, width, c_begin, channels, left, right, row_size, rows;
  T* data;
  int64_t next = 0;
  bool started = false;

  // Zeros left and right of a row; `slack` more pixels that hold anything.
  DETNAS_INLINE Ring(const Source<T>& s, int64_t n, int64_t h, int64_t w, int64_t c, int64_t count,
                     int64_t left_pad, int64_t right_pad, int64_t slack, int64_t ring_rows, T* memory)
      : source(s), image(n), height(h), width(w), c_begin(c), channels(count), left(left_pad),
        right(right_pad), row_size((left_pad + w + right_pad + slack) * kSlab), rows(ring_rows),
        data(memory) {}
  DETNAS_INLINE void clear() {
    for (int64_t r = 0; r < rows; ++r) {
      T* start = data + r * row_size;
      for (int64_t i = 0; i < left * kSlab; ++i) start[i] = T(0);
      for (int64_t i = (left + width) * kSlab; i < (left + width + right) * kSlab; ++i) start[i] = T(0);
    }
  }
  DETNAS_INLINE bool inside(int64_t y) const { return y >= 0 && y < height; }
  // Start of row y's pixel -left.
  DETNAS_INLINE T* row(int64_t y) const { return data + (y % rows) * row_size; }
  // Rows up to and including `last` are to be read, from the one that is returned on; rows before `first` will
  // not be asked for again.
  DETNAS_INLINE int64_t claim(int64_t first, int64_t last) {
    const int64_t begin = started && next > first ? next : first;
    started = true;
    next = last < begin ? begin : last + 1;
    return begin;
  }
  DETNAS_INLINE void advance(int64_t first, int64_t last) {
    for (int64_t y = claim(first, last); y <= last; ++y)
      if (inside(y))
        transform(source, (image * height + y) * width, width, c_begin, channels,
                  row(y) + left * kSlab, kSlab);
  }
};
