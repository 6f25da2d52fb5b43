// Depthwise separable convolutions in evaluation, a depthwise convolution and the product that reads it as one
// launch (separable_conv.cuh): how they are cut into tiles, and where two launches are better.
#pragma once
#include "product_join.cuh"

namespace detnas {
namespace cuda {

// relu(depthwise(x) * weight + bias).
template <typename S>
struct Separable {
  const S* x;
  int64_t ld, images;
  const S *taps, *weight;  // (channels, 1, kernel, kernel) and (cols, channels), as they are
  const float *taps_bias, *bias;
  int channels, cols, kernel, stride, height, width, out_height, out_width;
  S* out;        // (pixels, cols)
  Join<S> join;  // in the place of out, where it is set
  int tile_pixels, tile_cols, tiles_y, tiles_x;  // by plan

  int64_t tiles() const { return images * tiles_y * tiles_x; }
  int64_t col_tiles() const { return ceil_div(cols, tile_cols); }
};

constexpr int kTileWidth = 8;  // pixels

// What a block keeps in shared memory, in bytes, of 64 bytes of channels at a time: the patch of the map that its tile
// sees, taps and weights, each twice, so that those of the next channels come in meanwhile, and the product's first
// operand, which it makes of them.
struct SeparableShared {
  static constexpr int kChannels = 64, kTap = kChannels + 4, kRow = kChannels + 16;  // distances between banks
  int in_rows, in_cols, every, line;  // of the patch; one pixel is left free for `every` so many
  int patch, taps, first, second, all;

  constexpr SeparableShared(int kernel, int stride, int pixels, int cols)
      : in_rows(stride * (pixels / kTileWidth - 1) + kernel),
        in_cols(stride * (kTileWidth - 1) + kernel),
        every(stride * kTileWidth / 2),
        line(in_cols + (in_cols - 1) / every),
        patch(in_rows * line * kChannels),
        taps((kernel * kernel * kTap + 15) / 16 * 16),
        first(pixels * kRow),
        second(cols * kRow),
        all(2 * (patch + taps + second) + first) {}
};

// Chooses tiles; false where two launches are better: where more blocks than fill the GPU would make the same depthwise
// convolution more than twice, or a block has too little memory.
template <typename S>
bool plan(Separable<S>& g) {
  const auto tiles = [&](int pixels) {
    return g.images * ceil_div(g.out_height, pixels / kTileWidth) * ceil_div(g.out_width, kTileWidth);
  };
  const bool strided = g.stride == 2;
  g.tile_pixels = !strided && tiles(128) * ceil_div(g.cols, 64) >= fill(2) ? 128 : 64;
  const bool wide = (strided || g.tile_pixels == 128) && g.cols > 64;
  g.tile_cols = wide && tiles(g.tile_pixels) * ceil_div(g.cols, 160) >= fill(1) ? 160 : 64;
  g.tiles_y = static_cast<int>(ceil_div(g.out_height, g.tile_pixels / kTileWidth));
  g.tiles_x = static_cast<int>(ceil_div(g.out_width, kTileWidth));
  if (g.col_tiles() > 2 && g.tiles() * g.col_tiles() > fill(4)) return false;
  return SeparableShared(g.kernel, g.stride, g.tile_pixels, g.tile_cols).all <= most_shared();
}

// Whether 16 bytes at a time can be read and written, as the kernels do.
template <typename S>
bool vectorizable(const Separable<S>& g) {
  return vectorizable<S>(g.x, g.ld, g.channels) && vectorizable<S>(g.weight, g.channels, g.channels) &&
         (g.join.first ? g.join.wide(g.cols) : vectorizable<S>(g.out, g.cols, g.cols));
}

// planned, vectorizable, not empty. Compiled for each dtype by itself (separable_<dtype>.cu).
template <typename S>
void launch_separable(const Separable<S>& g, Stream stream);

}  // namespace cuda
}  // namespace detnas
