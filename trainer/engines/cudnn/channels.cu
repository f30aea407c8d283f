// Operations with one number per channel and image; feature maps are NHWC, float16 or float32.
// Kernels are called name_h8, name_h1, name_f4, name_f1, as in kernels.cu.
//
// The order of sums over an image's pixels depends only on the launch.

// A block's threads cover `across` packs of channels of one image, and as many of its pixels as
// fit.
struct Tile {
    int pack, packs, across, row, high, area;

    __device__ Tile(int area_, int channels, int V, int across_) : across(across_), area(area_) {
        packs = channels / V;
        high = blockDim.x / across;
        row = threadIdx.x / across;
        pack = blockIdx.y * across + threadIdx.x % across;
    }
    __device__ bool inside() const { return row < high && pack < packs; }
    __device__ long long index(int r) const {
        return ((long long)blockIdx.x * area + r) * packs + pack;
    }
    // Index, in packs, of this thread's channels in an array (batch, channels).
    __device__ int channels() const { return blockIdx.x * packs + pack; }
};

// Sum each channel over the block; threads of row 0 get the result. `shared` has V floats per
// thread.
template <int V> __device__ void add_up(const Tile &at, float (&sum)[V], float *shared) {
    float *mine = shared + threadIdx.x * V;
    for (int v = 0; v < V; ++v) mine[v] = sum[v];
    __syncthreads();
    for (int used = at.high; used > 1;) {
        int half = (used + 1) / 2;
        if (at.row + half < used)
            for (int v = 0; v < V; ++v) mine[v] += mine[half * at.across * V + v];
        __syncthreads();
        used = half;
    }
    for (int v = 0; v < V; ++v) sum[v] = mine[v];
}

// Mean over the pixels of each image, to float32 (batch, channels).
template <typename T, int V>
__device__ void mean_pool(const T *x, int area, int channels, int across, float *y) {
    extern __shared__ float shared[];
    Tile at(area, channels, V, across);
    float sum[V] = {};
    if (at.inside())
#pragma unroll 4
        for (int r = at.row; r < area; r += at.high) {
            Pack<T, V> p = load<T, V>(x, at.index(r));
            for (int v = 0; v < V; ++v) sum[v] += widen(p.lane[v]);
        }
    add_up<V>(at, sum, shared);
    if (!at.inside() || at.row) return;
    Pack<float, V> out;
    for (int v = 0; v < V; ++v) out.lane[v] = sum[v] / area;
    store<float, V>(y, at.channels(), out);
}

// y = relu(x * weights + residual), weights float32 (batch, channels).
template <typename T, int V>
__device__ void scale(const T *x, const float *weights, const T *residual, unsigned packs,
                      unsigned area, unsigned all, T *y) {
    unsigned i = thread();
    if (i >= all) return;
    Pack<T, V> p = load<T, V>(x, i), q = load<T, V>(residual, i);
    Pack<float, V> w = load<float, V>(weights, i / packs / area * packs + i % packs);
    for (int v = 0; v < V; ++v)
        narrow(max(fmaf(widen(p.lane[v]), w.lane[v], widen(q.lane[v])), 0.f), p.lane[v]);
    store<T, V>(y, i, p);
}

// Its gradients: gx, that of the weights, and `masked`, the one of the residual.
template <typename T, int V>
__device__ void scale_backward(const T *gy, const T *y, const T *x, const float *weights,
                               int area, int channels, int across, T *gx, float *gweights,
                               T *masked) {
    extern __shared__ float shared[];
    Tile at(area, channels, V, across);
    float sum[V] = {};
    if (at.inside()) {
        Pack<float, V> w = load<float, V>(weights, at.channels());
#pragma unroll 2
        for (int r = at.row; r < area; r += at.high) {
            Pack<T, V> g = load<T, V>(gy, at.index(r)), p = load<T, V>(x, at.index(r)), out;
            Pack<T, V> positive = load<T, V>(y, at.index(r));
            for (int v = 0; v < V; ++v) {
                float there = widen(positive.lane[v]) > 0 ? widen(g.lane[v]) : 0;
                sum[v] += there * widen(p.lane[v]);
                narrow(there, g.lane[v]);
                narrow(there * w.lane[v], out.lane[v]);
            }
            store<T, V>(masked, at.index(r), g);
            store<T, V>(gx, at.index(r), out);
        }
    }
    add_up<V>(at, sum, shared);
    if (!at.inside() || at.row) return;
    Pack<float, V> out;
    for (int v = 0; v < V; ++v) out.lane[v] = sum[v];
    store<float, V>(gweights, at.channels(), out);
}

#define KERNELS(suffix, T, V)                                                                   \
    extern "C" __global__ void __launch_bounds__(256) mean_pool_##suffix(                       \
        IN(T) x, int area, int channels, int across, OUT(float) y) {                            \
        mean_pool<T, V>(x, area, channels, across, y);                                          \
    }                                                                                           \
    extern "C" __global__ void __launch_bounds__(256) scale_##suffix(                           \
        IN(T) x, IN(float) weights, IN(T) residual, unsigned int packs, unsigned int area,      \
        unsigned int all, OUT(T) y) {                                                           \
        scale<T, V>(x, weights, residual, packs, area, all, y);                                 \
    }                                                                                           \
    extern "C" __global__ void __launch_bounds__(256) scale_backward_##suffix(                  \
        IN(T) gy, IN(T) y, IN(T) x, IN(float) weights, int area, int channels, int across,      \
        OUT(T) gx, OUT(float) gweights, OUT(T) masked) {                                        \
        scale_backward<T, V>(gy, y, x, weights, area, channels, across, gx, gweights, masked);  \
    }

KERNELS(h8, Half, 8)
KERNELS(h1, Half, 1)
KERNELS(f4, float, 4)
KERNELS(f1, float, 1)
