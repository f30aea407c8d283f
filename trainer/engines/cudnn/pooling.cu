// Pooling, and sums of feature maps: NHWC, float16 or float32. Kernels are called name_h8,
// name_h1, name_f4, name_f1, as in kernels.cu.

// One pack of one pixel per thread, with batch, height, width and packs of its map.
struct Pixel {
    int n, y, x, pack;

    // In 32 bits, as a 64-bit division takes longer than the memory access.
    __device__ Pixel(unsigned i, unsigned packs, unsigned height, unsigned width) {
        pack = i % packs;
        i /= packs;
        x = i % width;
        i /= width;
        y = i % height;
        n = i / height;
    }
};

// Max pooling; `place` gets the index of each maximum in its window, the first of equal ones.
template <typename T, int V>
__device__ void max_pool(const T *x, int batch, int height, int width, int channels,
                         int out_height, int out_width, int size, int stride, int pad, T *y,
                         unsigned char *place) {
    unsigned packs = channels / V, i = thread();
    if (i >= (unsigned)batch * out_height * out_width * packs) return;
    Pixel to(i, packs, out_height, out_width);
    float most[V];
    Pack<unsigned char, V> where;
    Pack<T, V> out;
    bool any = false;
    for (int ky = 0; ky < size; ++ky)
        for (int kx = 0; kx < size; ++kx) {
            int iy = to.y * stride - pad + ky, ix = to.x * stride - pad + kx;
            if (iy < 0 || iy >= height || ix < 0 || ix >= width) continue;
            Pack<T, V> p = load<T, V>(x, (((long long)to.n * height + iy) * width + ix) * packs
                                             + to.pack);
            for (int v = 0; v < V; ++v) {
                float h = widen(p.lane[v]);
                if (!any || h > most[v]) {
                    most[v] = h;
                    where.lane[v] = ky * size + kx;
                }
            }
            any = true;
        }
    for (int v = 0; v < V; ++v) narrow(most[v], out.lane[v]);
    store<T, V>(y, i, out);
    store<unsigned char, V>(place, i, where);
}

template <typename T, int V>
__device__ void max_pool_backward(const T *gy, const unsigned char *place, int batch, int height,
                                  int width, int channels, int out_height, int out_width,
                                  int size, int stride, int pad, T *gx) {
    unsigned packs = channels / V, i = thread();
    if (i >= (unsigned)batch * height * width * packs) return;
    Pixel to(i, packs, height, width);
    float g[V] = {};
    // The windows that contain this pixel.
    int top = max(0, (to.y + pad - size + stride) / stride);
    int left = max(0, (to.x + pad - size + stride) / stride);
    for (int oy = top; oy < out_height && oy * stride - pad <= to.y; ++oy)
        for (int ox = left; ox < out_width && ox * stride - pad <= to.x; ++ox) {
            int mine = (to.y - oy * stride + pad) * size + to.x - ox * stride + pad;
            long long j = (((long long)to.n * out_height + oy) * out_width + ox) * packs + to.pack;
            Pack<T, V> p = load<T, V>(gy, j);
            Pack<unsigned char, V> where = load<unsigned char, V>(place, j);
            for (int v = 0; v < V; ++v)
                if (where.lane[v] == mine) g[v] += widen(p.lane[v]);
        }
    Pack<T, V> out;
    for (int v = 0; v < V; ++v) narrow(g[v], out.lane[v]);
    store<T, V>(gx, i, out);
}

// Mean of each 2x2 window, stride 2; of a last, partial window, of its existing pixels.
template <typename T, int V>
__device__ void average_pool(const T *x, int batch, int height, int width, int channels, T *y) {
    unsigned packs = channels / V, i = thread();
    int out_height = (height + 1) / 2, out_width = (width + 1) / 2;
    if (i >= (unsigned)batch * out_height * out_width * packs) return;
    Pixel to(i, packs, out_height, out_width);
    int down = min(2, height - 2 * to.y), right = min(2, width - 2 * to.x);
    float sum[V] = {};
    for (int ky = 0; ky < down; ++ky)
        for (int kx = 0; kx < right; ++kx) {
            Pack<T, V> p = load<T, V>(
                x, (((long long)to.n * height + 2 * to.y + ky) * width + 2 * to.x + kx) * packs
                       + to.pack);
            for (int v = 0; v < V; ++v) sum[v] += widen(p.lane[v]);
        }
    Pack<T, V> out;
    for (int v = 0; v < V; ++v) narrow(sum[v] / (down * right), out.lane[v]);
    store<T, V>(y, i, out);
}

template <typename T, int V>
__device__ void average_pool_backward(const T *gy, int batch, int height, int width, int channels,
                                      T *gx) {
    unsigned packs = channels / V, i = thread();
    if (i >= (unsigned)batch * height * width * packs) return;
    Pixel to(i, packs, height, width);
    int y = to.y / 2, x = to.x / 2;
    int pixels = min(2, height - 2 * y) * min(2, width - 2 * x);
    Pack<T, V> p = load<T, V>(
        gy, (((long long)to.n * ((height + 1) / 2) + y) * ((width + 1) / 2) + x) * packs + to.pack);
    for (int v = 0; v < V; ++v) narrow(widen(p.lane[v]) / pixels, p.lane[v]);
    store<T, V>(gx, i, p);
}

template <typename T, int V>
__device__ void mean_pool_backward(const float *gy, int batch, int area, int channels, T *gx) {
    unsigned packs = channels / V, i = thread();
    if (i >= (unsigned)batch * area * packs) return;
    const float *from = gy + (i / packs / area * packs + i % packs) * V;
    Pack<T, V> out;
    for (int v = 0; v < V; ++v) narrow(from[v] / area, out.lane[v]);
    store<T, V>(gx, i, out);
}

// x += y
template <typename T, int V> __device__ void accumulate(T *x, const T *y, unsigned packs) {
    unsigned i = thread();
    if (i >= packs) return;
    Pack<T, V> p = load<T, V>(x, i), q = load<T, V>(y, i);
    for (int v = 0; v < V; ++v) narrow(widen(p.lane[v]) + widen(q.lane[v]), p.lane[v]);
    store<T, V>(x, i, p);
}

#define KERNELS(suffix, T, V)                                                                   \
    extern "C" __global__ void __launch_bounds__(256) max_pool_##suffix(                        \
        IN(T) x, int batch, int height, int width, int channels, int out_height,                \
        int out_width, int size, int stride, int pad, OUT(T) y, OUT(unsigned char) place) {     \
        max_pool<T, V>(x, batch, height, width, channels, out_height, out_width, size,          \
            stride, pad, y, place);                                                             \
    }                                                                                           \
    extern "C" __global__ void __launch_bounds__(256) max_pool_backward_##suffix(               \
        IN(T) gy, IN(unsigned char) place, int batch, int height, int width, int channels,      \
        int out_height, int out_width, int size, int stride, int pad, OUT(T) gx) {              \
        max_pool_backward<T, V>(gy, place, batch, height, width, channels, out_height,          \
            out_width, size, stride, pad, gx);                                                  \
    }                                                                                           \
    extern "C" __global__ void __launch_bounds__(256) average_pool_##suffix(                    \
        IN(T) x, int batch, int height, int width, int channels, OUT(T) y) {                    \
        average_pool<T, V>(x, batch, height, width, channels, y);                               \
    }                                                                                           \
    extern "C" __global__ void __launch_bounds__(256) average_pool_backward_##suffix(           \
        IN(T) gy, int batch, int height, int width, int channels, OUT(T) gx) {                  \
        average_pool_backward<T, V>(gy, batch, height, width, channels, gx);                    \
    }                                                                                           \
    extern "C" __global__ void __launch_bounds__(256) mean_pool_backward_##suffix(              \
        IN(float) gy, int batch, int area, int channels, OUT(T) gx) {                           \
        mean_pool_backward<T, V>(gy, batch, area, channels, gx);                                \
    }                                                                                           \
    extern "C" __global__ void __launch_bounds__(256) accumulate_##suffix(                      \
        OUT(T) x, IN(T) y, unsigned int packs) {                                                \
        accumulate<T, V>(x, y, packs);                                                          \
    }

KERNELS(h8, Half, 8)
KERNELS(h1, Half, 1)
KERNELS(f4, float, 4)
KERNELS(f1, float, 1)
