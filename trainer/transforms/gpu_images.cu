// Images made on the GPU of what gpu_images.py sends there; each kernel computes what the NumPy
// code that it names computes, with the same roundings.
//
// y is (batch, height, width, 3), float32 or float16. All are launched with THREADS threads,
// which move 16 bytes each: an image of CIFAR, or a part of a larger one, the last of which may
// be smaller. It is a multiple of 3 and of 32, so that a thread that goes on by THREADS keeps
// its channel and its column. An image has a multiple of 16 values.

typedef unsigned char byte;

constexpr int THREADS = 192, SIDE = 32, AREA = SIDE * SIDE, VALUES = 3 * AREA;
static_assert(VALUES == 16 * THREADS, "");

// Write `values` numbers, value(0), value(1), ..., 16 bytes at a time; a multiple of 16.
template <typename T, typename Value>
__device__ inline void write(T *y, Value value, int values = VALUES) {
    constexpr int n = 16 / sizeof(T);
    union Group {
        T numbers[n];
        uint4 all;
    };
    for (int i = threadIdx.x; i < values / n; i += THREADS) {
        Group group;
        for (int j = 0; j < n; j++)
            narrow(value(i * n + j), group.numbers[j]);
        reinterpret_cast<uint4 *>(y)[i] = group.all;
    }
}

__device__ inline int clip(int x) {
    return x < 0 ? 0 : x > 255 ? 255 : x;
}

// cifar.DataAugmentationCifar10NormalizeSmall: a block is an image.
//
// images: uint8 (images, 3, 32, 32). rows: int (batch, 6): image, interpolation, side
// less 32, y, x, flip. weights: int (interpolations, sides, 36, 5), as cifar.weights has them.
template <typename T>
__device__ inline void stretched(const byte *images, const int *rows, const int *weights, T *y) {
    constexpr int MOST = 36, SIDES = MOST - SIDE + 1;
    __shared__ uint4 whole[THREADS];
    __shared__ byte columns[VALUES], table[256];
    __shared__ unsigned least, greatest, sum, squares;
    __shared__ float mean, scale;
    byte *image = reinterpret_cast<byte *>(whole);
    const int t = threadIdx.x;
    const int *row = rows + 6 * blockIdx.x;
    const int flip = row[5];
    weights += (row[1] * SIDES + row[2]) * MOST * 5;

    if (t == 0) {
        least = 255;
        greatest = sum = squares = 0;
    }
    whole[t] = reinterpret_cast<const uint4 *>(images + (long long)row[0] * VALUES)[t];
    __syncthreads();
    byte *own = image + 16 * t;
    unsigned low = 255, high = 0;
    for (int i = 0; i < 16; i++) {
        low = own[i] < low ? own[i] : low;
        high = own[i] > high ? own[i] : high;
    }
    for (int lane = 16; lane; lane /= 2) {
        unsigned other = __shfl_xor_sync(0xffffffff, low, lane);
        low = other < low ? other : low;
        other = __shfl_xor_sync(0xffffffff, high, lane);
        high = other > high ? other : high;
    }
    if (t % 32 == 0) {
        atomicMin(&least, low);
        atomicMax(&greatest, high);
    }
    __syncthreads();
    low = least;
    high = greatest;
    const float stretch = 255.f / (float)(high > low ? high - low : 1);
    for (int i = t; i < 256; i += THREADS) {
        // By way of double, which is exact: float would be fused with the addition.
        float x = (float)((double)(i < low ? 0 : i - low) * (double)stretch);
        table[i] = (byte)((x < 255.f ? x : 255.f) + .5f);
    }
    __syncthreads();
    for (int i = 0; i < 16; i++)
        own[i] = table[own[i]];
    __syncthreads();

    const int column = t % SIDE;
    const int *w = weights + (row[4] + column) * 5;
    const int first = w[0], a = w[1], b = w[2], c = w[3], d = w[4];
    for (int i = t; i < VALUES; i += THREADS) {
        const byte *p = image + i - column + first;
        columns[i] = clip((1 << 21) + p[0] * a + p[1] * b + p[2] * c + p[3] * d >> 22);
    }
    __syncthreads();
    unsigned own_sum = 0, own_squares = 0;
    for (int i = t; i < VALUES; i += THREADS) {
        w = weights + (row[3] + i / SIDE % SIDE) * 5;
        const byte *p = columns + i / AREA * AREA + w[0] * SIDE + column;
        const unsigned x = clip((1 << 21) + p[0] * w[1] + p[SIDE] * w[2] + p[2 * SIDE] * w[3]
                                + p[3 * SIDE] * w[4] >> 22);
        image[i - column + (flip ? SIDE - 1 - column : column)] = x;
        own_sum += x;
        own_squares += x * x;
    }
    for (int lane = 16; lane; lane /= 2) {
        own_sum += __shfl_xor_sync(0xffffffff, own_sum, lane);
        own_squares += __shfl_xor_sync(0xffffffff, own_squares, lane);
    }
    if (t % 32 == 0) {
        atomicAdd(&sum, own_sum);
        atomicAdd(&squares, own_squares);
    }
    __syncthreads();
    if (t == 0) {
        const double m = (double)sum / VALUES;
        mean = (float)m;
        scale = (float)(1 / sqrt((double)squares / VALUES - m * m + 10));
    }
    __syncthreads();
    write(y + (long long)blockIdx.x * VALUES, [&](int i) {
        return ((float)image[i % 3 * AREA + i / 3] - mean) * scale;
    });
}

// cifar_channels.DataAugmentationCifarTorch7 and those like it: a block is an image.
//
// images: uint8 (images, 3, 32, 32). rows: int (batch, 4): image, y, x, flip. table:
// (3, 257), each channel's normalised values, and its padding.
template <typename T>
__device__ inline void channels(const byte *images, const int *rows, const float *table, T *y) {
    constexpr int PAD = 4;
    __shared__ uint4 whole[THREADS];
    const byte *image = reinterpret_cast<const byte *>(whole);
    const int *row = rows + 4 * blockIdx.x;
    const int top = row[1] - PAD, left = row[2] - PAD, flip = row[3];
    whole[threadIdx.x] = reinterpret_cast<const uint4 *>(
        images + (long long)row[0] * VALUES)[threadIdx.x];
    __syncthreads();
    write(y + (long long)blockIdx.x * VALUES, [&](int i) {
        const int channel = i % 3, v = i / 3 / SIDE + top;
        int u = i / 3 % SIDE + left;
        u = flip ? SIDE - 1 - u : u;
        const bool inside = 0 <= u && u < SIDE && 0 <= v && v < SIDE;
        return table[channel * 257 + (inside ? image[channel * AREA + v * SIDE + u] : 256)];
    });
}

// resize_crop.normalize: a block is gridDim.x-th part of an image, of parts of VALUES values.
//
// rows: uint8 (batch, row_bytes), values (height, width, 3). table: (3, 256).
template <typename T>
__device__ inline void normalized(const byte *rows, int row_bytes, int values,
                                  const float *table, T *y) {
    __shared__ uint4 whole[THREADS];
    __shared__ float own_table[3 * 256];
    const byte *part = reinterpret_cast<const byte *>(whole);
    const uint4 *row = reinterpret_cast<const uint4 *>(rows + (long long)blockIdx.y * row_bytes);
    y += (long long)blockIdx.y * values;
    for (int i = threadIdx.x; i < 3 * 256; i += THREADS)
        own_table[i] = table[i];
    for (int at = blockIdx.x * VALUES; at < values; at += gridDim.x * VALUES) {
        const int here = values - at < VALUES ? values - at : VALUES;
        __syncthreads();
        if (16 * threadIdx.x < here) whole[threadIdx.x] = row[at / 16 + threadIdx.x];
        __syncthreads();
        write(y + at, [&](int i) { return own_table[i % 3 * 256 + part[i]]; }, here);
    }
}

// resize_crop.finish with a change of colour: the row's last 48 bytes are a matrix (3, 3) and an
// offset (3,). Otherwise as normalized.
template <typename T>
__device__ inline void coloured(const byte *rows, int row_bytes, int values, T *y) {
    __shared__ uint4 whole[THREADS];
    const byte *part = reinterpret_cast<const byte *>(whole);
    const byte *row = rows + (long long)blockIdx.y * row_bytes;
    const float *matrix = reinterpret_cast<const float *>(row + values);
    const float *offset = matrix + 9;
    y += (long long)blockIdx.y * values;
    for (int at = blockIdx.x * VALUES; at < values; at += gridDim.x * VALUES) {
        const int here = values - at < VALUES ? values - at : VALUES;
        __syncthreads();
        if (16 * threadIdx.x < here)
            whole[threadIdx.x] = reinterpret_cast<const uint4 *>(row + at)[threadIdx.x];
        __syncthreads();
        write(y + at, [&](int i) {
            const int channel = i % 3;
            const byte *pixel = part + i - channel;
            const float *m = matrix + 3 * channel;
            return m[0] * pixel[0] + m[1] * pixel[1] + m[2] * pixel[2] + offset[channel];
        }, here);
    }
}

#define KERNELS(suffix, T)                                                                      \
    extern "C" __global__ void stretched_##suffix(const byte *images, const int *rows,          \
                                               const int *weights, T *y) {                      \
        stretched(images, rows, weights, y);                                                    \
    }                                                                                           \
    extern "C" __global__ void channels_##suffix(const byte *images, const int *rows,           \
                                              const float *table, T *y) {                       \
        channels(images, rows, table, y);                                                       \
    }                                                                                           \
    extern "C" __global__ void normalized_##suffix(const byte *rows, int row_bytes, int values, \
                                                const float *table, T *y) {                     \
        normalized(rows, row_bytes, values, table, y);                                          \
    }                                                                                           \
    extern "C" __global__ void coloured_##suffix(const byte *rows, int row_bytes, int values,   \
                                              T *y) {                                           \
        coloured(rows, row_bytes, values, y);                                                   \
    }

KERNELS(f, float)
KERNELS(h, Half)
