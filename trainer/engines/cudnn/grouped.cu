// Grouped 3x3 convolutions with padding 1 of float16 NHWC feature maps, on tensor cores: groups
// of 4, 8, 16 or 32 channels, as many of the output as of the input.
//
// A block has 64 channels and one tile of pixels at a time in shared memory, with the pixels
// around it; the next tile is on its way meanwhile. A product of the tensor cores is 16 pixels
// by 16 input channels by 8 output channels. Groups of 4 and 8 fill only 8 of the 16 input
// channels: two taps of the window then go into one product (K = 8 below). Groups of 4 have
// zeros where two of them meet.
//
// The fragments of a product (PTX ISA, mma.m16n8k16): thread `lane` has, with g = lane / 4 and
// t = lane % 4, of A rows g and g + 8 at columns 2t, 2t + 1, 2t + 8, 2t + 9; of B these four as
// rows at column g; of the sums rows g and g + 8 at columns 2t and 2t + 1.

// Which of a block's channels and pixels a warp has.
template <int K> struct Share {
    static constexpr int BLOCKS = K == 8 ? 4 : 2;  // of 8 output channels
    static constexpr int BESIDE = CHANNELS / (8 * BLOCKS), LANES = THREADS / 32 / BESIDE;
    int lane, g, t, channel, first;  // channel: the first of the warp's, in the block

    __device__ Share() {
        lane = threadIdx.x % 32;
        g = lane / 4;
        t = lane % 4;
        int warp = threadIdx.x / 32;
        channel = warp % BESIDE * 8 * BLOCKS;
        first = warp / BESIDE;
    }
    // The first input channel that a warp's outputs depend on, in the block.
    __device__ int input() const { return K == 8 ? channel : channel / K * K; }

    // The output channel, of the warp's, of a column of a product. Groups of 16 and 32 may have
    // them in any order: a thread's are then beside each other.
    __device__ static int output(int block, int column) {
        return K == 8 ? block * 8 + column : column / 2 * 4 + block * 2 + column % 2;
    }
};

// Weights: that of a channel of the sums (k), an output (n) and a tap. `backward`: the sums are
// over the outputs of the convolution. A group's size is a power of two.
struct Weights {
    const Half *w;
    int group;
    bool backward;

    // Channels k and k + 1, both counted from the same multiple of the group's size as n. All
    // loads of a thread are under way together: nothing here is a branch.
    __device__ unsigned pair(int channel, int n, int k, int tap) const {
        int inner = group - 1, base = channel + (n & ~inner), row = n & inner, column = k & inner;
        int from = backward ? column : row, to = backward ? row : column;
        const Half *p = w + ((base + from) * TAPS + tap) * group + to;
        unsigned word = both(p[0], p[backward ? TAPS * group : 1]);
        return (k ^ n) & ~inner ? 0 : word;
    }
};

// What is done with outputs: nothing; bias and ReLU are added; they are summed for statistics.
enum { PLAIN, BIASED, SUMMED };

// A warp's outputs of 16 pixels, in float16 to memory.
template <int K, int MODE> struct Output {
    static constexpr int BLOCKS = Share<K>::BLOCKS;
    Half *y;
    bool relu;
    int channels, channel;
    float shift[2 * BLOCKS] = {}, sum[2 * BLOCKS] = {}, square[2 * BLOCKS] = {};

    __device__ Output(const Share<K> &share, Half *y_, const float *bias, bool relu_,
                      int channels_, int channel_)
        : y(y_), relu(relu_), channels(channels_), channel(channel_) {
        if (MODE == BIASED)
            for (int i = 0; i < 2 * BLOCKS; ++i)
                shift[i] = bias[channel + Share<K>::output(i / 2, 2 * share.t + i % 2)];
    }

    // `pixel` of a lane: that of row lane % 16, or -1 outside the map.
    __device__ void write(const Share<K> &share, float (&d)[BLOCKS][4], int pixel) {
#pragma unroll
        for (int row = 0; row < 2; ++row) {
            int at = __shfl_sync(~0u, pixel, share.g + 8 * row);
            unsigned words[BLOCKS];
#pragma unroll
            for (int block = 0; block < BLOCKS; ++block) {
                float low = d[block][2 * row], high = d[block][2 * row + 1];
                if (MODE == BIASED) {
                    low += shift[2 * block];
                    high += shift[2 * block + 1];
                    if (relu) {
                        low = fmaxf(low, 0.f);
                        high = fmaxf(high, 0.f);
                    }
                }
                words[block] = both(low, high);
                if (MODE == SUMMED && at >= 0) {
                    apart(words[block], low, high);
                    sum[2 * block] += low;
                    sum[2 * block + 1] += high;
                    square[2 * block] = fmaf(low, low, square[2 * block]);
                    square[2 * block + 1] = fmaf(high, high, square[2 * block + 1]);
                }
            }
            store_row(share, words, at);
        }
    }

    __device__ void store_row(const Share<K> &share, unsigned (&words)[BLOCKS], int pixel) const {
        Half *to = y + (long long)pixel * channels + channel;
        if (K == 8) {
            // Four threads have two channels each of four blocks: each gets one whole block.
            exchange(words[0], words[1 % BLOCKS], share.t & 1, 1);
            exchange(words[2 % BLOCKS], words[3 % BLOCKS], share.t & 1, 1);
            exchange(words[0], words[2 % BLOCKS], share.t & 2, 2);
            exchange(words[1 % BLOCKS], words[3 % BLOCKS], share.t & 2, 2);
            if (pixel < 0) return;
            Sixteen all = {{words[0], words[1 % BLOCKS], words[2 % BLOCKS], words[3 % BLOCKS]}};
            *reinterpret_cast<Sixteen *>(to + 8 * share.t) = all;
        } else if (pixel >= 0) {
            *reinterpret_cast<Eight *>(to + 4 * share.t) = Eight{{words[0], words[1]}};
        }
    }

    // The thread without the bit gives its second for the other's first.
    __device__ static void exchange(unsigned &first, unsigned &second, int has_bit, int bit) {
        unsigned other = __shfl_xor_sync(~0u, has_bit ? first : second, bit);
        if (has_bit) first = other;
        else second = other;
    }

    // Add up the block's sums to `partial`, float (gridDim.x, 2, channels), and in the block
    // that comes last of its channels those of all blocks to `total`, float (2, channels).
    __device__ void add_up(const Share<K> &share, char *shared, float *partial, float *total,
                           unsigned int *counters) {
        __shared__ bool last;
        float *sums = reinterpret_cast<float *>(shared);
#pragma unroll
        for (int i = 0; i < 2 * BLOCKS; ++i) {
            float a = sum[i], b = square[i];
            for (int bit = 4; bit < 32; bit *= 2) {
                a += __shfl_xor_sync(~0u, a, bit);
                b += __shfl_xor_sync(~0u, b, bit);
            }
            if (share.g) continue;
            int c = share.channel + Share<K>::output(i / 2, 2 * share.t + i % 2);
            sums[share.first * 2 * CHANNELS + c] = a;
            sums[(share.first * 2 + 1) * CHANNELS + c] = b;
        }
        __syncthreads();
        int which = threadIdx.x / CHANNELS, c = threadIdx.x % CHANNELS;
        int to = which * channels + blockIdx.y * CHANNELS + c;
        if (which < 2) {
            float s = 0;
            for (int i = 0; i < Share<K>::LANES; ++i) s += sums[(i * 2 + which) * CHANNELS + c];
            partial[blockIdx.x * 2LL * channels + to] = s;
        }
        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0)  // wraps around to 0, ready for the next launch
            last = atomicInc(counters + blockIdx.y, gridDim.x - 1) == gridDim.x - 1;
        __syncthreads();
        if (!last || which >= 2) return;
        __threadfence();
        float s = 0;
#pragma unroll 8
        for (int block = 0; block < (int)gridDim.x; ++block)
            s += __ldcg(partial + block * 2LL * channels + to);
        total[to] = s;
    }
};

// y = conv(x, w) + bias, ReLU; or with `backward`, of stride 1, the gradient of x from y's.
template <int K, int S, int MODE>
__device__ void convolve(const Half *x, const Half *w, const float *bias, int group,
                         bool backward, bool relu, const Tiles &tiles, Map from, Map to, Half *y,
                         float *partial, float *total, unsigned int *counters) {
    extern __shared__ char shared[];
    Window<S> window(tiles, 1, 1, 2);
    Share<K> share;
    constexpr int BLOCKS = Share<K>::BLOCKS, STEPS = K == 8 ? 5 : TAPS * K / 16;
    int channel = blockIdx.y * CHANNELS;
    Weights weights = {w, group, backward};
    unsigned b[STEPS][BLOCKS][2];
    int taps[STEPS];
#pragma unroll
    for (int step = 0; step < STEPS; ++step) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            // K = 8: two taps beside each other; else 16 channels of one.
            int tap = K == 8 ? 2 * step + half : step / (K / 16);
            int k = 2 * share.t + (K == 8 ? 0 : step % (K / 16) * 16 + 8 * half);
#pragma unroll
            for (int block = 0; block < BLOCKS; ++block) {
                // n and k from the warp's first input channel, or of K = 8 the block's.
                int n = Share<K>::output(block, share.g), base = channel + share.input();
                n = K == 8 ? n - 8 * block : n + share.channel - share.input();
                b[step][block][half] = tap == TAPS ? 0 : weights.pair(
                    base + (K == 8 ? 8 * block : 0), n, k, backward ? TAPS - 1 - tap : tap);
            }
        }
        int tap = K == 8 ? min(2 * step + share.lane / 16, TAPS - 1) : step / (K / 16);
        taps[step] = window.tap(tap / 3, tap % 3) + (K == 8 ? 0 : step % (K / 16) * 32);
    }
    Output<K, MODE> output(share, y, bias, relu, tiles.channels, channel + share.channel);
    int mine = share.input() * 2 + (K == 8 ? 0 : share.lane / 16 * 16);
    Pixels pixels(shared, tiles, window);
    each_tile(
        tiles, pixels.bytes, window.bytes(tiles),
        [&](Corner corner, int buffer) {
            window.fetch(shared, buffer, x, tiles, corner, from, channel);
        },
        [&](Corner corner, int buffer) {
            for (int i = share.first * 16; i < pixels.count; i += Share<K>::LANES * 16) {
                Eight pixel = pixels.table[i + share.lane % 16];
                int at = buffer + (int)pixel.word[0] + mine;
                float d[BLOCKS][4] = {};
#pragma unroll
                for (int step = 0; step < STEPS; ++step) {
                    unsigned a[4];
                    if (K != 8) load_matrices(a, shared, at + taps[step]);
#pragma unroll
                    for (int block = 0; block < BLOCKS; ++block) {
                        if (K == 8) load_matrices(a, shared, at + taps[step] + 16 * block);
                        multiply(d[block], a, b[step][block][0], b[step][block][1]);
                    }
                }
                output.write(share, d, Place(pixel, corner, tiles).in(to));
            }
        });
    if (MODE == SUMMED) output.add_up(share, shared, partial, total, counters);
}

// gx from gy, of a convolution of stride 2: `from` is y's map, which tiles are of, `to` x's.
//
// An output of the convolution has, of the pixels that its window is over, four to itself: of
// even and odd rows and columns. Each depends on other taps, nine in all, and on outputs beside
// (dx), below (dy), and both.
template <int K>
__device__ void spread(const Half *gy, const Half *w, int group, const Tiles &tiles, Map from,
                       Map to, Half *gx) {
    extern __shared__ char shared[];
    Window<1> window(tiles, 0, 0, 1);
    Share<K> share;
    constexpr int BLOCKS = Share<K>::BLOCKS, DEPTH = K == 8 ? 1 : K / 16;
    constexpr int PRODUCTS = K == 8 ? 5 : TAPS;
    // Of each product: the pixel, its outputs and their taps; of K = 8 two beside each other,
    // TAPS for none.
    constexpr int PIXELS[TAPS] = {0, 1, 1, 2, 2, 3, 3, 3, 3};
    constexpr int PAIRS[5] = {0, 1, 2, 3, 3};
    constexpr int OUTPUTS[TAPS] = {0, 1, 0, 2, 0, 3, 2, 1, 0};  // 2 dy + dx
    constexpr int AT[TAPS] = {4, 3, 5, 1, 7, 0, 2, 6, 8};
    constexpr int PAIR_OUTPUTS[5][2] = {{1, 0}, {1, 0}, {2, 0}, {3, 2}, {1, 0}};
    constexpr int PAIR_AT[5][2] = {{TAPS, 4}, {3, 5}, {1, 7}, {0, 2}, {6, 8}};
    int channel = blockIdx.y * CHANNELS, base = channel + share.input();
    Weights weights = {w, group, true};
    unsigned b[PRODUCTS * DEPTH][BLOCKS][2];
    int places[PRODUCTS];
#pragma unroll
    for (int i = 0; i < PRODUCTS; ++i) {
        int output = K == 8 ? (share.lane < 16 ? PAIR_OUTPUTS[i % 5][0] : PAIR_OUTPUTS[i % 5][1])
                            : OUTPUTS[i];
        places[i] = window.tap(output / 2, output % 2);
#pragma unroll
        for (int j = 0; j < DEPTH * BLOCKS * 2; ++j) {
            int half = j % 2, block = j / 2 % BLOCKS, depth = j / 2 / BLOCKS;
            int tap = K == 8 ? PAIR_AT[i % 5][half] : AT[i];
            int n = Share<K>::output(block, share.g);
            n = K == 8 ? n - 8 * block : n + share.channel - share.input();
            int k = 2 * share.t + (K == 8 ? 0 : depth * 16 + 8 * half);
            b[i * DEPTH + depth][block][half] = tap == TAPS ? 0 : weights.pair(
                base + (K == 8 ? 8 * block : 0), n, k, tap);
        }
    }
    Output<K, PLAIN> output(share, gx, nullptr, false, tiles.channels, channel + share.channel);
    int mine = share.input() * 2 + (K == 8 ? 0 : share.lane / 16 * 16);
    Pixels pixels(shared, tiles, window);
    each_tile(
        tiles, pixels.bytes, window.bytes(tiles),
        [&](Corner corner, int buffer) {
            window.fetch(shared, buffer, gy, tiles, corner, from, channel);
        },
        [&](Corner corner, int buffer) {
            for (int i = share.first * 16; i < pixels.count; i += Share<K>::LANES * 16) {
                Eight place = pixels.table[i + share.lane % 16];
                int at = buffer + (int)place.word[0] + mine;
                Place output_of(place, corner, tiles);
#pragma unroll
                for (int pixel = 0; pixel < 4; ++pixel) {
                    float d[BLOCKS][4] = {};
#pragma unroll
                    for (int j = 0; j < PRODUCTS * DEPTH; ++j) {
                        if ((K == 8 ? PAIRS[j % 5] : PIXELS[j / DEPTH]) != pixel) continue;
                        unsigned a[4];
                        int from_here = at + places[j / DEPTH] + j % DEPTH * 32;
                        if (K != 8) load_matrices(a, shared, from_here);
#pragma unroll
                        for (int block = 0; block < BLOCKS; ++block) {
                            if (K == 8) load_matrices(a, shared, from_here + 16 * block);
                            multiply(d[block], a, b[j][block][0], b[j][block][1]);
                        }
                    }
                    output.write(share, d, output_of.in(to, pixel / 2, pixel % 2));
                }
            }
        });
}

// Weight gradients: products sum over pixels, with the input's channels as rows (of K = 8 those
// of two taps) and y's as columns. Each block adds up what its tiles have, to `partial`, float
// (slices, channels, 3, 3, group).
template <int K, int S>
__device__ void correlate(const Half *x, const Half *gy, int group, const Tiles &tiles, Map from,
                          Map to, float *partial) {
    extern __shared__ char shared[];
    Window<S> window(tiles, 1, 1, 2);
    Window<1> outputs(tiles, 0, 0, 0);
    // K = 8: a warp has 8 channels; 16: 16, and every second 16 pixels; 32: 16 by 16 of 32.
    constexpr int BLOCKS = K == 8 ? 1 : 2, STEPS = K == 8 ? 5 : TAPS, TURNS = K == 16 ? 2 : 1;
    constexpr int AT_ONCE = K == 8 ? 32 : 16;
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, warp = threadIdx.x / 32;
    int channel = blockIdx.y * CHANNELS, turn = K == 16 ? warp / 4 : 0;
    int in = K == 8 ? 8 * warp : K == 16 ? warp % 4 * 16 : warp / 2 * 16;
    int out = K == 32 ? warp / 4 * 32 + warp % 2 * 16 : in;
    int first = lane % 8 + lane / 16 * 8, second = lane / 8 % 2;
    int taps[STEPS];
#pragma unroll
    for (int step = 0; step < STEPS; ++step) {
        int tap = K == 8 ? min(2 * step + second, TAPS - 1) : step;
        taps[step] = window.tap(tap / 3, tap % 3) + in * 2 + (K == 8 ? 0 : second * 16);
    }
    float d[STEPS][BLOCKS][4] = {};
    Pixels pixels(shared, tiles, window);
    int behind = window.bytes(tiles), padded = (pixels.count + 31) / 32 * 32;
    int bytes = behind + padded * PIXEL, extra = (padded - pixels.count) * (PIXEL / 4);
    // What is behind the last pixel counts as 0.
    for (int i = threadIdx.x; i < 2 * extra; i += THREADS) {
        int buffer = i / extra, at = pixels.bytes + buffer * bytes + behind + pixels.count * PIXEL;
        reinterpret_cast<unsigned *>(shared + at)[i - buffer * extra] = 0;
    }
    each_tile(
        tiles, pixels.bytes, bytes,
        [&](Corner corner, int buffer) {
            window.fetch(shared, buffer, x, tiles, corner, from, channel);
            outputs.fetch(shared, buffer + behind, gy, tiles, corner, to, channel);
        },
        [&](Corner, int buffer) {
            for (int i = turn * AT_ONCE; i < pixels.count; i += TURNS * AT_ONCE) {
                unsigned b[4];
                int pixel = i + (K == 8 ? lane : lane % 16);
                load_transposed(b, shared, buffer + behind + pixel * PIXEL + out * 2
                                + (K == 8 ? 0 : lane / 16 * 16));
#pragma unroll
                for (int part = 0; part < AT_ONCE / 16; ++part) {
                    int at = buffer + pixels.window(i + 16 * part + first);
#pragma unroll
                    for (int step = 0; step < STEPS; ++step) {
                        unsigned a[4];
                        load_transposed(a, shared, at + taps[step]);
#pragma unroll
                        for (int block = 0; block < BLOCKS; ++block)
                            multiply(d[step][block], a, b[2 * (part + block)],
                                     b[2 * (part + block) + 1]);
                    }
                }
            }
        });
    float *to_slice = partial
        + (long long)(blockIdx.x * TURNS + turn) * tiles.channels * TAPS * group;
#pragma unroll
    for (int i = 0; i < STEPS * BLOCKS * 4; ++i) {
        int step = i / (BLOCKS * 4), block = i / 4 % BLOCKS, row = i / 2 % 2;
        int tap = K == 8 ? 2 * step + row : step;
        int k = in + g + (K == 8 ? 0 : 8 * row), n = out + 8 * block + 2 * t + i % 2;
        if (tap < TAPS && !((k ^ n) & ~(group - 1)))
            to_slice[((long long)(channel + n) * TAPS + tap) * group + (k & (group - 1))]
                = d[step][block][i % 4];
    }
}

// Sums of `slices` times `count` floats, a multiple of 4, in their order.
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

// PRODUCT_DEPTH: the channels that a product sums over, 8, 16 or 32 (trainer/engines/cudnn/grouped.py).
STRIDED(PRODUCT_DEPTH, 1)
STRIDED(PRODUCT_DEPTH, 2)

extern "C" __global__ void __launch_bounds__(256, 2) spread(
    IN(Half) gy, IN(Half) w, int group, SIZES, OUT(Half) gx) {
    MAPS;
    spread<PRODUCT_DEPTH>(gy, w, PRODUCT_DEPTH == 8 ? group : PRODUCT_DEPTH, tiles, out, in, gx);
}
