// The warps' parts of weights and outputs, as fragments of tensor cores' products.
//
// Compiled before grouped.cu and after tiles.cuh.

// A warp's channels and pixels in its block.
template <int K, int BLOCKS_> struct Share {
    static constexpr int BLOCKS = BLOCKS_;  // of 8 output channels
    static constexpr int BESIDE = CHANNELS / (8 * BLOCKS), LANES = THREADS / 32 / BESIDE;
    int lane, g, t, channel, first;  // channel: the warp's first channel in the block

    __device__ Share() {
        lane = threadIdx.x % 32;
        g = lane / 4;
        t = lane % 4;
        int warp = threadIdx.x / 32;
        channel = warp % BESIDE * 8 * BLOCKS;
        first = warp / BESIDE;
    }
    // The first input channel in the block on which a warp's outputs depend.
    __device__ int input() const { return K == 8 ? channel : channel / K * K; }

    // The origin of channels of sums and of a column's outputs: the first channel of a block of 8,
    // or of a group. And the output of column g.
    __device__ int base(int first_, int block) const {
        return first_ + input() + (K == 8 ? 8 * block : 0);
    }
    __device__ int offset(int block) const {
        return output(block, g) + (K == 8 ? -8 * block : channel - input());
    }

    // The warp's output channel of a column of a product. Groups of 16 and 32 may have them in any
    // order, so a thread's channels are adjacent.
    __device__ static int output(int block, int column) {
        return K == 8 ? block * 8 + column : column / 2 * 4 + block * 2 + column % 2;
    }
};

// Weights, by channel of the sums (k), output (n) and tap. `backward`: the sums are over the
// outputs of the convolution. A group's size is a power of two.
struct Weights {
    const Half *w;
    int group;
    bool backward;

    // Channels k and k + 1, counted from the same multiple of the group's size as n. Without
    // branches, so that all loads of a thread are in flight at once.
    __device__ unsigned pair(int channel, int n, int k, int tap) const {
        int inner = group - 1, base = channel + (n & ~inner), row = n & inner, column = k & inner;
        int from = backward ? column : row, to = backward ? row : column;
        const Half *p = w + ((base + from) * TAPS + tap) * group + to;
        unsigned word = both(p[0], p[backward ? TAPS * group : 1]);
        return (k ^ n) & ~inner ? 0 : word;
    }
};

// What is done with outputs: nothing; bias and ReLU; sums for statistics.
enum { PLAIN, BIASED, SUMMED };

// A warp's outputs of 16 pixels, in float16 to memory.
template <int K, int MODE, int BLOCKS> struct Output {
    using Own = Share<K, BLOCKS>;
    Half *y;
    bool relu;
    int channels, channel;
    const float *shift;
    float sum[2 * BLOCKS] = {}, square[2 * BLOCKS] = {};

    // Ends with the first barrier.
    __device__ Output(const Own &share, Half *y_, const float *bias, bool relu_, int channels_,
                      int first)
        : y(y_), relu(relu_), channels(channels_), channel(first + share.channel) {
        __shared__ float biases[CHANNELS];
        if (MODE == BIASED && threadIdx.x < CHANNELS)
            biases[threadIdx.x] = bias[first + threadIdx.x];
        shift = biases + share.channel;
    }

    // Two channels of a pixel as stored; they are summed if the pixel is inside the map.
    __device__ unsigned word(const Own &share, int block, float low, float high, bool inside) {
        if (MODE == BIASED) {
            int c = Own::output(block, 2 * share.t);
            low += shift[c];
            high += shift[c + 1];
            if (relu) {
                low = fmaxf(low, 0.f);
                high = fmaxf(high, 0.f);
            }
        }
        unsigned both_ = both(low, high);
        if (MODE == SUMMED && inside) {
            apart(both_, low, high);
            sum[2 * block] += low;
            sum[2 * block + 1] += high;
            square[2 * block] = fmaf(low, low, square[2 * block]);
            square[2 * block + 1] = fmaf(high, high, square[2 * block + 1]);
        }
        return both_;
    }

    // Store a row of a patch; `pixel` is this thread's (g), or -1 outside the map.
    __device__ void store(const Own &share, unsigned (&words)[BLOCKS], int pixel) const {
        Half *to = y + (long long)pixel * channels + channel;
        if (BLOCKS == 4) {
            // Four threads have two channels each of four blocks; each gets one whole block.
            constexpr int LAST = BLOCKS - 1, HALF = BLOCKS / 2;
            exchange(words[0], words[1], share.t & 1, 1);
            exchange(words[HALF], words[LAST], share.t & 1, 1);
            exchange(words[0], words[HALF], share.t & 2, 2);
            exchange(words[1], words[LAST], share.t & 2, 2);
            if (pixel < 0) return;
            *reinterpret_cast<Sixteen *>(to + 8 * share.t)
                = Sixteen{{words[0], words[1], words[HALF], words[LAST]}};
            return;
        }
        // With groups of 4 and 8, two threads have two channels each of two blocks.
        if (K == 8) exchange(words[0], words[1], share.t & 1, 1);
        int at = K == 8 ? (share.t & 1) * 8 + (share.t >> 1) * 4 : 4 * share.t;
        if (pixel >= 0) *reinterpret_cast<Eight *>(to + at) = Eight{{words[0], words[1]}};
    }

    // The thread without the bit exchanges its second for the other's first.
    __device__ static void exchange(unsigned &first, unsigned &second, int has_bit, int bit) {
        unsigned other = __shfl_xor_sync(~0u, has_bit ? first : second, bit);
        if (has_bit) first = other;
        else second = other;
    }

    // Write the block's sums to `partial`, float (gridDim.x, 2, channels), and, in the last block
    // of its channels to finish, the sums of all blocks to `total`, float (2, channels).
    __device__ void add_up(const Own &share, char *shared, float *partial, float *total,
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
            int c = share.channel + Own::output(i / 2, 2 * share.t + i % 2);
            sums[share.first * 2 * CHANNELS + c] = a;
            sums[(share.first * 2 + 1) * CHANNELS + c] = b;
        }
        __syncthreads();
        int which = threadIdx.x / CHANNELS, c = threadIdx.x % CHANNELS;
        int to = which * channels + blockIdx.y * CHANNELS + c;
        if (which < 2) {
            float s = 0;
            for (int i = 0; i < Own::LANES; ++i) s += sums[(i * 2 + which) * CHANNELS + c];
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
