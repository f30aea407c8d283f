// Grouped 3x3 convolutions with padding 1 of float16 NHWC feature maps, on tensor cores: groups
// of 4, 8, 16 or 32 channels, with as many output as input channels.
//
// A block has 64 channels and one tile of pixels at a time in shared memory, with the pixels
// around it, while the next tile is being loaded. A product of the tensor cores is 16 pixels,
// a patch of 2 rows by 8 columns, by 16 input channels by 8 output channels. Groups of 4 and
// 8 load the rows of a patch's windows once for all taps. Groups of 4 and 8 fill only 8 of the 16 input
// channels: two taps of the window then go into one product (K = 8 below). Groups of 4 have
// zeros for channels of different groups.
//
// The fragments of a product (PTX ISA, mma.m16n8k16): thread `lane` has, with g = lane / 4 and
// t = lane % 4, of A rows g and g + 8 at columns 2t, 2t + 1, 2t + 8, 2t + 9; of B these four as
// rows at column g; of the sums rows g and g + 8 at columns 2t and 2t + 1.

// Products of K = 8 have two taps each: first two rows of the window's three columns, then the
// third row. TAPS means no tap.
template <int S> __device__ constexpr int tap_of(int step, int half) {
    constexpr int WITH_FIRST = S == 1 ? 2 : 1, ALONE = S == 1 ? 1 : 2;
    return step < 3 ? half * WITH_FIRST * 3 + step
        : step == 3 ? ALONE * 3 + half : half ? TAPS : ALONE * 3 + 2;
}

// Row and column of a patch's windows that a lane loads: of four rows, in this order or with the
// two middle rows swapped; `fifth`: of the fifth row, at the window's columns.
template <int S> struct Rows {
    int mine, fifth, columns[3];

    __device__ Rows(const Window<S> &window, bool exchanged) {
        int part = threadIdx.x % 32 / 8, x = threadIdx.x % 8;
        int row = exchanged && (part == 1 || part == 2) ? 3 - part : part;
        mine = row * window.pitch * PIXEL + x * PIXEL;
        fifth = (4 - row) * window.pitch * PIXEL + window.tap(0, min(part, 2));
        for (int kx = 0; kx < 3; ++kx) columns[kx] = window.tap(0, kx);
    }
};

// The outputs of 8 channels of groups of 4 or 8, from 8 input channels.
template <int S, int STEPS, int BLOCKS>
__device__ inline void convolve_block(float (&d)[4], const char *shared, int at,
                                      const Rows<S> &rows, const unsigned (&b)[STEPS][BLOCKS][2],
                                      int block) {
    unsigned q[3][4], fifth[4];
    if (S == 2) load_matrices(fifth, shared, at + rows.fifth);
#pragma unroll
    for (int kx = 0; kx < 3; ++kx) load_matrices(q[kx], shared, at + rows.columns[kx]);
#pragma unroll
    for (int kx = 0; kx < 3; ++kx)
        multiply(d, q[kx][0], q[kx][1], q[kx][2], q[kx][3], b[kx][block]);
    // Inputs of the upper and the lower outputs for the remaining tap.
    multiply(d, q[0][1], S == 1 ? q[0][2] : fifth[0], q[1][1], S == 1 ? q[1][2] : fifth[1],
             b[3][block]);
    multiply(d, q[2][1], S == 1 ? q[2][2] : fifth[2], b[4][block][0]);
}

// y = conv(x, w) + bias, ReLU; or with `backward`, of stride 1, the gradient of x from y's.
template <int K, int S, int MODE>
__device__ void convolve(const Half *x, const Half *w, const float *bias, int group,
                         bool backward, bool relu, const Tiles &tiles, Map from, Map to, Half *y,
                         float *partial, float *total, unsigned int *counters) {
    extern __shared__ char shared[];
    Window<S> window(tiles, 1, 1, 2);
    // As many channels per warp as fit in registers.
    constexpr int BLOCKS = K == 8 && S == 1 && MODE != SUMMED ? 4 : 2, DEPTH = K == 8 ? 1 : K / 16;
    Share<K, BLOCKS> share;
    constexpr int STEPS = K == 8 ? 5 : TAPS * DEPTH;
    int channel = blockIdx.y * CHANNELS;
    Weights weights = {w, group, backward};
    unsigned b[STEPS][BLOCKS][2];
#pragma unroll
    for (int i = 0; i < STEPS * BLOCKS * 2; ++i) {
        int half = i % 2, block = i / 2 % BLOCKS, step = i / 2 / BLOCKS;
        int tap = K == 8 ? tap_of<S>(step, half) : step / DEPTH;
        int k = 2 * share.t + (K == 8 ? 0 : step % DEPTH * 16 + 8 * half);
        b[step][block][half] = tap == TAPS ? 0 : weights.pair(
            share.base(channel, block), share.offset(block), k, backward ? TAPS - 1 - tap : tap);
    }
    Output<K, MODE, BLOCKS> output(share, y, bias, relu, tiles.channels, channel);
    // Source of a lane's loads: with K = 8 its row of four; else its row of two, and 8 of 16 channels.
    Rows<S> rows(window, S == 2);
    int mine = share.input() * 2 + (K == 8 ? rows.mine : window.tap(share.lane / 8 % 2 * S, 0)
                                    + share.lane % 8 * PIXEL + share.lane / 16 * 16);
    each_tile(
        tiles, window.bytes(tiles),
        [&](Corner corner, int buffer) {
            window.fetch(shared, buffer, x, tiles, corner, from, channel);
        },
        [&](Corner corner, int buffer) {
            for (Patch patch(tiles, share.first); patch.there(tiles);
                 patch.skip(tiles, share.LANES)) {
                int image = corner.image + patch.image, at_y = corner.y + patch.y;
                int at_x = corner.x + patch.x, pixels[2];
                if (image >= tiles.images || at_y >= to.height || at_x >= to.width) continue;
                for (int r = 0; r < 2; ++r)
                    pixels[r] = at_y + r < to.height && at_x + share.g < to.width
                        ? (image * to.height + at_y + r) * to.width + at_x + share.g : -1;
                int at = buffer + window.place(patch) + mine;
                float d[BLOCKS][4] = {};
                if (K == 8) {
#pragma unroll
                    for (int block = 0; block < BLOCKS; ++block)
                        convolve_block<S>(d[block], shared, at + 16 * block, rows, b, block);
                } else {
#pragma unroll
                    for (int step = 0; step < STEPS; ++step) {
                        int tap = step / DEPTH;
                        unsigned a[4];
                        load_matrices(a, shared, at + window.tap(tap / 3, tap % 3)
                                      + step % DEPTH * 32);
#pragma unroll
                        for (int block = 0; block < BLOCKS; ++block)
                            multiply(d[block], a[0], a[1], a[2], a[3], b[step][block]);
                    }
                }
                unsigned words[2][BLOCKS];
#pragma unroll
                for (int i = 0; i < 2 * BLOCKS; ++i) {
                    int block = i / 2, r = i % 2;
                    words[r][block] = output.word(share, block, d[block][2 * r], d[block][2 * r + 1],
                                                  pixels[r] >= 0);
                }
                for (int r = 0; r < 2; ++r) output.store(share, words[r], pixels[r]);
            }
        });
    if (MODE == SUMMED) output.add_up(share, shared, partial, total, counters);
}

// gx from gy for a convolution of stride 2: `from` is y's map, which has the tiles, `to` is x's.
//
// Each output of the convolution has four input pixels of its own: in even and odd rows and
// columns. They depend on different taps, nine in all, and on the outputs to the right (dx),
// below (dy), and both.
template <int K>
__device__ void spread(const Half *gy, const Half *w, int group, const Tiles &tiles, Map from,
                       Map to, Half *gx) {
    extern __shared__ char shared[];
    Window<1> window(tiles, 0, 0, 1);
    constexpr int BLOCKS = 2, DEPTH = K == 8 ? 1 : K / 16;
    Share<K, BLOCKS> share;
    constexpr int PRODUCTS = K == 8 ? 5 : TAPS;
    // For each product: the pixel, its outputs (2 dy + dx) and their taps; with K = 8 two of each,
    // where TAPS means no tap.
    constexpr int PIXELS[TAPS] = {0, 1, 1, 2, 2, 3, 3, 3, 3};
    constexpr int OUTPUTS[TAPS] = {0, 1, 0, 2, 0, 3, 2, 1, 0}, AT[TAPS] = {4, 3, 5, 1, 7, 0, 2, 6, 8};
    constexpr int PAIRS[5] = {0, 1, 2, 3, 3};
    constexpr int PAIR_SOURCES[3][2] = {{1, 0}, {2, 0}, {3, 2}}, PAIR_OUTPUTS[5] = {0, 0, 1, 2, 0};
    constexpr int PAIR_AT[5][2] = {{TAPS, 4}, {3, 5}, {1, 7}, {0, 2}, {6, 8}};
    int channel = blockIdx.y * CHANNELS;
    Weights weights = {w, group, true};
    unsigned b[PRODUCTS * DEPTH][BLOCKS][2];
#pragma unroll
    for (int i = 0; i < PRODUCTS * DEPTH * BLOCKS * 2; ++i) {
        int half = i % 2, block = i / 2 % BLOCKS, j = i / 2 / BLOCKS;
        int tap = K == 8 ? PAIR_AT[j % 5][half] : AT[j / DEPTH];
        int k = 2 * share.t + (K == 8 ? 0 : j % DEPTH * 16 + 8 * half);
        b[j][block][half] = tap == TAPS ? 0 : weights.pair(
            share.base(channel, block), share.offset(block), k, tap);
    }
    Output<K, PLAIN, BLOCKS> output(share, gx, nullptr, false, tiles.channels, channel);
    // Source of a lane's loads: its row of two, and with K = 8 one of two outputs, else 8 of 16
    // channels.
    constexpr int SOURCES = K == 8 ? 3 : 4;
    int mine = window.tap(share.lane / 8 % 2, share.lane % 8) + share.input() * 2;
    int sources[SOURCES];
#pragma unroll
    for (int i = 0; i < SOURCES; ++i) {
        int o = K != 8 ? i : share.lane < 16 ? PAIR_SOURCES[i % 3][0] : PAIR_SOURCES[i % 3][1];
        sources[i] = window.tap(o / 2, o % 2) + (K == 8 ? 0 : share.lane / 16 * 16);
    }
    each_tile(
        tiles, window.bytes(tiles),
        [&](Corner corner, int buffer) {
            window.fetch(shared, buffer, gy, tiles, corner, from, channel);
        },
        [&](Corner corner, int buffer) {
            for (Patch patch(tiles, share.first); patch.there(tiles);
                 patch.skip(tiles, share.LANES)) {
                int image = corner.image + patch.image, y = corner.y + patch.y;
                int x = corner.x + patch.x + share.g;
                if (image >= tiles.images) continue;
                int at = buffer + window.place(patch) + mine;
                unsigned words[4][2][BLOCKS];
                constexpr int TOGETHER = K == 8 ? 1 : BLOCKS;
#pragma unroll
                for (int n = 0; n < BLOCKS; n += TOGETHER) {
                    float d[4][TOGETHER][4] = {};
#pragma unroll
                    for (int depth = 0; depth < DEPTH; ++depth) {
                        unsigned a[SOURCES][4];
#pragma unroll
                        for (int i = 0; i < SOURCES; ++i)
                            load_matrices(a[i], shared, at + sources[i] + 16 * n + 32 * depth);
#pragma unroll
                        for (int j = 0; j < PRODUCTS; ++j) {
                            int i = K == 8 ? PAIR_OUTPUTS[j % 5] : OUTPUTS[j];
                            int pixel = K == 8 ? PAIRS[j % 5] : PIXELS[j];
#pragma unroll
                            for (int m = 0; m < TOGETHER; ++m)
                                multiply(d[pixel][m], a[i][0], a[i][1], a[i][2], a[i][3],
                                         b[j * DEPTH + depth][n + m]);
                        }
                    }
#pragma unroll
                    for (int j = 0; j < 4 * TOGETHER * 2; ++j) {
                        int pixel = j / (2 * TOGETHER), m = j / 2 % TOGETHER, r = j % 2;
                        words[pixel][r][n + m] = output.word(share, n + m, d[pixel][m][2 * r],
                                                             d[pixel][m][2 * r + 1], true);
                    }
                }
#pragma unroll
                for (int j = 0; j < 8; ++j) {
                    int at_y = 2 * (y + j % 2) + j / 4, at_x = 2 * x + j / 2 % 2;
                    output.store(share, words[j / 2][j % 2], at_y < to.height && at_x < to.width
                                 ? (image * to.height + at_y) * to.width + at_x : -1);
                }
            }
        });
}

// The outputs of a patch as the second factor of a product: 8 channels, and 16.
__device__ inline void load_outputs(unsigned (&b)[1][2], const char *shared, int at) {
    load_transposed(b[0], shared, at);
}
__device__ inline void load_outputs(unsigned (&b)[2][2], const char *shared, int at) {
    unsigned all[4];
    load_transposed(all, shared, at);
    for (int i = 0; i < 4; ++i) b[i / 2][i % 2] = all[i];
}

// Weight gradients: products sum over pixels, with the input's channels as rows (with K = 8 those
// of two taps) and y's as columns. Each block sums over its tiles, to `partial`, float
// (slices, channels, 3, 3, group).
template <int S, int STEPS, int BLOCKS>
__device__ inline void correlate_block(float (&d)[STEPS][BLOCKS][4], const char *shared, int at,
                                       const Rows<S> &rows, const unsigned (&b)[BLOCKS][2]) {
    unsigned q[3][4], fifth[4];
    if (S == 2) load_transposed(fifth, shared, at + rows.fifth);
#pragma unroll
    for (int kx = 0; kx < 3; ++kx) load_transposed(q[kx], shared, at + rows.columns[kx]);
#pragma unroll
    for (int kx = 0; kx < 3; ++kx)
        multiply(d[kx][0], q[kx][0], q[kx][1], q[kx][2], q[kx][3], b[0]);
    constexpr int LAST = STEPS - 1;
    multiply(d[LAST - 1][0], q[0][2], q[1][2], S == 1 ? q[0][1] : fifth[0],
             S == 1 ? q[1][1] : fifth[1], b[0]);
    multiply(d[LAST][0], q[2][2], q[2][2], S == 1 ? q[2][1] : fifth[2],
             S == 1 ? q[2][1] : fifth[2], b[0]);
}

template <int K, int S>
__device__ void correlate(const Half *x, const Half *gy, int group, const Tiles &tiles, Map from,
                          Map to, float *partial) {
    extern __shared__ char shared[];
    Window<S> window(tiles, 1, 1, 2);
    Window<1> outputs(tiles, 0, 0, 0);
    // K = 8: a warp has 8 channels; 16: 16, and every second patch; 32: 16 by 16 of 32.
    constexpr int BLOCKS = K == 8 ? 1 : 2, STEPS = K == 8 ? 5 : TAPS, TURNS = K == 16 ? 2 : 1;
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, warp = threadIdx.x / 32;
    int channel = blockIdx.y * CHANNELS, turn = K == 16 ? warp / 4 : 0;
    int in = K == 8 ? 8 * warp : K == 16 ? warp % 4 * 16 : warp / 2 * 16;
    int out = K == 32 ? warp / 4 * 32 + warp % 2 * 16 : in;
    // Source of a lane's loads: with K = 8 its row of four; else 8 of 16 channels, and its row of two.
    Rows<S> rows(window, S == 1);
    int mine = in * 2 + (K == 8 ? rows.mine : window.tap(lane / 16 * S, 0) + lane % 8 * PIXEL
                         + lane / 8 % 2 * 16);
    // Two rows of outputs, then (lanes from 16) those of the next 8 channels.
    int mine_of_y = outputs.tap(lane / 8 % 2, lane % 8) + out * 2 + lane / 16 * 16;
    float d[STEPS][BLOCKS][4] = {};
    int behind = window.bytes(tiles);
    each_tile(
        tiles, behind + outputs.bytes(tiles),
        [&](Corner corner, int buffer) {
            window.fetch(shared, buffer, x, tiles, corner, from, channel);
            outputs.fetch(shared, buffer + behind, gy, tiles, corner, to, channel);
        },
        [&](Corner, int buffer) {
            for (Patch patch(tiles, turn); patch.there(tiles); patch.skip(tiles, TURNS)) {
                int at = buffer + window.place(patch) + mine;
                unsigned b[BLOCKS][2];
                load_outputs(b, shared, buffer + behind + outputs.place(patch) + mine_of_y);
                if (K == 8) {
                    correlate_block<S>(d, shared, at, rows, b);
                } else {
#pragma unroll
                    for (int tap = 0; tap < TAPS; ++tap) {
                        unsigned a[4];
                        load_transposed(a, shared, at + window.tap(tap / 3, tap % 3));
#pragma unroll
                        for (int block = 0; block < BLOCKS; ++block)
                            multiply(d[tap % STEPS][block], a[0], a[1], a[2], a[3], b[block]);
                    }
                }
            }
        });
    float *to_slice = partial
        + (long long)(blockIdx.x * TURNS + turn) * tiles.channels * TAPS * group;
#pragma unroll
    for (int i = 0; i < STEPS * BLOCKS * 4; ++i) {
        int step = i / (BLOCKS * 4), block = i / 4 % BLOCKS, row = i / 2 % 2;
        int tap = K == 8 ? tap_of<S>(step, row) : step;
        int k = in + g + (K == 8 ? 0 : 8 * row), n = out + 8 * block + 2 * t + i % 2;
        if (tap < TAPS && !((k ^ n) & ~(group - 1)))
            to_slice[((long long)(channel + n) * TAPS + tap) * group + (k & (group - 1))]
                = d[step][block][i % 4];
    }
}

// Sum `slices` slices of `count` floats, a multiple of 4, in order.
extern "C" __global__ void __launch_bounds__(256) add_slices(IN(float) partial, int slices,
                                                             int count, OUT(float) sum) {
    __shared__ float sums[8][128];
    int lane = threadIdx.x % 32, part = threadIdx.x / 32, at = (blockIdx.x * 32 + lane) * 4;
    float total[4] = {};
    if (at < count)
#pragma unroll 4
        for (int slice = part; slice < slices; slice += 8) {
            Pack<float, 4> p = load<float, 4>(partial + (long long)slice * count + at, 0);
            for (int i = 0; i < 4; ++i) total[i] += p.lane[i];
        }
    for (int i = 0; i < 4; ++i) sums[part][lane * 4 + i] = total[i];
    __syncthreads();
    if (part || at >= count) return;
    for (int i = 0; i < 4; ++i) {
        float s = 0;
        for (int p = 0; p < 8; ++p) s += sums[p][lane * 4 + i];
        sum[at + i] = s;
    }
}

#define SIZES int images, int channels, int height, int width, int out_height, int out_width, \
              int together, int rows, int columns
#define MAPS Map in = {height, width}, out = {out_height, out_width}; \
             Tiles tiles(images, channels, out, together, rows, columns)

#define CONVOLVE(K, S, name, MODE)                                                              \
    extern "C" __global__ void __launch_bounds__(256, 2) name##_##S(                            \
        IN(Half) x, IN(Half) w, IN(float) bias, int group, int backward, int relu, SIZES,       \
        OUT(Half) y, float *partial, OUT(float) total, unsigned int *counters) {                \
        MAPS;                                                                                   \
        convolve<K, S, MODE>(x, w, bias, K == 8 ? group : K, backward, relu, tiles, in, out, y, \
                             partial, total, counters);                                         \
    }

#define STRIDED(K, S)                                                                           \
    CONVOLVE(K, S, convolve, PLAIN)                                                             \
    CONVOLVE(K, S, convolve_biased, BIASED)                                                     \
    CONVOLVE(K, S, convolve_summed, SUMMED)                                                     \
    extern "C" __global__ void __launch_bounds__(256, 2) correlate_##S(                         \
        IN(Half) x, IN(Half) gy, int group, SIZES, OUT(float) partial) {                        \
        MAPS;                                                                                   \
        correlate<K, S>(x, gy, K == 8 ? group : K, tiles, in, out, partial);                    \
    }

// PRODUCT_DEPTH: channels over which a product sums, 8, 16 or 32 (trainer/engines/cudnn/grouped.py).
STRIDED(PRODUCT_DEPTH, 1)
STRIDED(PRODUCT_DEPTH, 2)

extern "C" __global__ void __launch_bounds__(256, 2) spread(
    IN(Half) gy, IN(Half) w, int group, SIZES, OUT(Half) gx) {
    MAPS;
    spread<PRODUCT_DEPTH>(gy, w, PRODUCT_DEPTH == 8 ? group : PRODUCT_DEPTH, tiles, out, in, gx);
}
