// Batch normalisation and what follows it. Feature maps are NHWC, `images` of `area` pixels of
// `channels` channels, float16 or float32; sums and statistics are float32. Threads read and
// write 16 bytes at a time (8 or 4 channels) if the number of channels permits, else one value:
// kernels are called name_h8, name_h1, name_f4, name_f1.
//
// The batch is gridDim.z parts, each with statistics of its own, float (parts, channels); they
// are those of numpy.array_split.
//
// The order of sums over pixels depends only on the launch, so that results repeat bit for bit.

// A part of the batch: its first pixel, and its number of pixels.
struct Part {
    int begin, rows;

    __device__ Part(int images, int area, int part) {
        int each = images / (int)gridDim.z, longer = images % (int)gridDim.z;
        begin = (part * each + min(part, longer)) * area;
        rows = (each + (part < longer)) * area;
    }
};

// A block's threads cover `across` packs of channels, and as many of a part's pixels as fit.
//
// All blocks run at once and advance through the map together. With `from_end` they start at the
// last pixels, which are still in the L2 cache after a pass from the first to the last.
struct Place {
    int begin, rows, pack, packs, across, lane, row, high, step;
    bool from_end;

    __device__ Place(Part part, int channels, int V, int across_, bool from_end_ = false)
        : begin(part.begin), rows(part.rows), across(across_), from_end(from_end_) {
        packs = channels / V;
        high = blockDim.x / across;
        lane = threadIdx.x % across;
        row = threadIdx.x / across;
        pack = blockIdx.y * across + lane;
        step = gridDim.x * high;
    }
    __device__ bool inside() const { return row < high && pack < packs; }
    __device__ int first() const { return blockIdx.x * high + row; }

    // Index in the map of this thread's pack of pixel r, in the order of processing.
    __device__ long long index(int r) const {
        return (long long)(begin + (from_end ? rows - 1 - r : r)) * packs + pack;
    }

    // Load this thread's packs of U pixels, `step` apart, with all loads in flight at once.
    template <int U, typename T, int V>
    __device__ void fetch(const T *x, int r, Pack<T, V> (&p)[U]) const {
#pragma unroll
        for (int u = 0; u < U; ++u)
            if (r + u * step < rows) p[u] = load<T, V>(x, index(r + u * step));
    }
};

// Sum two values per channel over the block's pixels.
//
// `shared` has 2 * V floats per thread. Each block writes its sums to `partial`, float
// (parts, gridDim.x, 2, channels). Returns true in the last block of its channels, which
// gets the sums over blocks from add_blocks().
template <int V>
__device__ bool add_up(const Place &at, int channels, float (&a)[V], float (&b)[V],
                       float *shared, float *partial, unsigned int *counters) {
    __shared__ bool last;
    int width = at.across * V, used = at.high;
    float *mine = shared + (at.row * at.across + at.lane) * 2 * V;
    if (at.row < at.high)
        for (int v = 0; v < V; ++v) {
            mine[v] = a[v];
            mine[V + v] = b[v];
        }
    __syncthreads();
    while (used > 1) {
        int half = (used + 1) / 2;
        if (at.row + half < used)
            for (int v = 0; v < 2 * V; ++v)
                mine[v] += mine[half * at.across * 2 * V + v];
        __syncthreads();
        used = half;
    }
    int begin = blockIdx.y * width;
    int count = min(width, channels - begin);
    long long block = blockIdx.z * gridDim.x + blockIdx.x;
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
        const float *sums = shared + i / V * 2 * V + i % V;
        partial[block * 2 * channels + begin + i] = sums[0];
        partial[(block * 2 + 1) * channels + begin + i] = sums[V];
    }
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) { // wraps around to 0, ready for the next launch
        unsigned int others = gridDim.x * gridDim.z - 1;
        last = atomicInc(counters + blockIdx.y, others) == others;
    }
    __syncthreads();
    if (last) __threadfence();
    return last;
}

// Add up a part's sums over blocks: those of channel blockIdx.y * across * V + i are then in
// `shared` at i and, the second ones, `across * V` behind.
template <int V>
__device__ void add_blocks(int part, int across, int channels, float *shared,
                           const float *partial) {
    // Different threads sum slices of the blocks, with many loads in flight; then the slices are
    // summed.
    constexpr int W = V < 4 ? 1 : 4;
    int width = across * V, begin = blockIdx.y * width;
    int packs = 2 * width / W, slices = max(1, (int)blockDim.x / packs);
    partial += (long long)part * gridDim.x * 2 * channels;
    __syncthreads();
    for (int i = threadIdx.x; i < packs * slices; i += blockDim.x) {
        int which = i % packs * W / width, channel = begin + i % packs * W % width;
        float total[W] = {};
        if (channel < channels)
#pragma unroll 8
            for (int block = i / packs; block < (int)gridDim.x; block += slices) {
                Pack<float, W> p = load<float, W>(
                    partial + (block * 2LL + which) * channels + channel, 0);
                for (int w = 0; w < W; ++w) total[w] += p.lane[w];
            }
        for (int w = 0; w < W; ++w) shared[i * W + w] = total[w];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < 2 * width; i += blockDim.x)
        for (int slice = 1; slice < slices; ++slice) shared[i] += shared[i + slice * 2 * width];
    __syncthreads();
}

// Mean and variance, from the sums of n values minus `origin` and of their squares.
struct Moments {
    double n, mean, var;

    __device__ Moments(double n_, double sum, double square, double origin) : n(n_) {
        double d = sum / n;
        mean = origin + d;
        var = max(square / n - d * d, 0.);
    }
    __device__ double inv_std(float eps) const { return 1 / sqrt(var + eps); }
};

// Destination of the statistics.
struct Statistics {
    float eps, decay, eps_in_average;
    float *mean, *inv_std, *avg_mean, *avg_var;

    // Store those of channel c of a part. The parts of a channel come one after another, as each
    // changes the running statistics.
    __device__ void store(int part, int channels, int c, const Moments &of) const {
        mean[part * channels + c] = of.mean;
        inv_std[part * channels + c] = of.inv_std(eps);
        avg_mean[c] = decay * avg_mean[c] + (1 - decay) * (float)of.mean;
        avg_var[c] = decay * avg_var[c]
            + (1 - decay) * (float)((of.var + eps_in_average) * (of.n / max(of.n - 1, 1.)));
    }
};

// Mean, 1 / standard deviation and running statistics.
//
// Values are taken relative to a part's first pixel, so that the squares do not cancel.
template <typename T, int V>
__device__ void statistics(const T *x, int images, int area, int channels, int across,
                           const Statistics &to, float *partial, unsigned int *counters) {
    extern __shared__ float shared[];
    Place at(Part(images, area, blockIdx.z), channels, V, across);
    float sum[V] = {}, square[V] = {};
    if (at.inside()) {
        Pack<T, V> origin = load<T, V>(x, at.index(0));
        float o[V];
        for (int v = 0; v < V; ++v) o[v] = widen(origin.lane[v]);
        constexpr int U = 4;
        for (int r = at.first(); r < at.rows; r += U * at.step) {
            Pack<T, V> p[U];
            at.fetch(x, r, p);
#pragma unroll
            for (int u = 0; u < U; ++u)
                if (r + u * at.step < at.rows)
                    for (int v = 0; v < V; ++v) {
                        float d = widen(p[u].lane[v]) - o[v];
                        sum[v] += d;
                        square[v] = fmaf(d, d, square[v]);
                    }
        }
    }
    if (!add_up<V>(at, channels, sum, square, shared, partial, counters)) return;
    int width = across * V, begin = blockIdx.y * width;
    for (int number = 0; number < (int)gridDim.z; ++number) {
        Part part(images, area, number);
        add_blocks<V>(number, across, channels, shared, partial);
        for (int i = threadIdx.x; i < width && begin + i < channels; i += blockDim.x) {
            int c = begin + i;
            float origin = widen(x[(long long)part.begin * channels + c]);
            to.store(number, channels, c,
                     {(double)part.rows, shared[i], shared[width + i], origin});
        }
    }
}

// The parameters of a thread's channels.
template <int V> struct Channel {
    float mean[V], scale[V], beta[V];

    // `first`: channel of the first element of mean_ and inv_std.
    __device__ Channel(const Place &at, const float *mean_, const float *inv_std,
                       const float *gamma, const float *beta_, int first = 0) {
        for (int v = 0; v < V; ++v) {
            int c = at.pack * V + v;
            mean[v] = mean_[c - first];
            scale[v] = gamma[c] * inv_std[c - first];
            beta[v] = beta_[c];
        }
    }
    // The same bits forward and backward, as the sign determines the ReLU's mask.
    __device__ float normal(float x, int v) const {
        return fmaf(x - mean[v], scale[v], beta[v]);
    }
};

// What follows the normalisation.
enum { PLAIN, RELU, ADD, ADD_RELU, RELU_ADD };

template <int K> struct Kind {
    static constexpr int value = K;
};

// Call use(Kind<kind>()), so that a kind uses only the registers that it needs.
template <typename Use> __device__ inline void by_kind(int kind, Use use) {
    switch (kind) {
    case PLAIN: use(Kind<PLAIN>()); break;
    case RELU: use(Kind<RELU>()); break;
    case ADD: use(Kind<ADD>()); break;
    case ADD_RELU: use(Kind<ADD_RELU>()); break;
    case RELU_ADD: use(Kind<RELU_ADD>()); break;
    }
}

template <int KIND, typename T, int V>
__device__ inline void normalize_as(const Place &at, const Channel<V> &channel, const T *x,
                                    const T *residual, T *y, unsigned char *mask) {
    constexpr bool added = KIND >= ADD, before = KIND == RELU || KIND == RELU_ADD;
    constexpr int U = added ? 2 : 4;
    for (int r = at.first(); r < at.rows; r += U * at.step) {
        Pack<T, V> p[U], q[U];
        at.fetch(x, r, p);
        if (added) at.fetch(residual, r, q);
#pragma unroll
        for (int u = 0; u < U; ++u) {
            if (r + u * at.step >= at.rows) break;
            long long i = at.index(r + u * at.step);
            unsigned char bits = 0;
            for (int v = 0; v < V; ++v) {
                float h = channel.normal(widen(p[u].lane[v]), v);
                if (before) h = fmaxf(h, 0.f);
                if (added) h += widen(q[u].lane[v]);
                if (KIND == ADD_RELU) {
                    bits |= (h > 0) << v;
                    h = fmaxf(h, 0.f);
                }
                narrow(h, p[u].lane[v]);
            }
            store<T, V>(y, i, p[u]);
            if (KIND == ADD_RELU) mask[i] = bits;
        }
    }
}

// y = normalised x, + residual, ReLU. `mask` gets a byte per pack, a bit per channel, if the
// ReLU's mask depends on the residual.
template <typename T, int V>
__device__ void normalize(const T *x, const T *residual, const float *mean,
                          const float *inv_std, const float *gamma, const float *beta, int kind,
                          int images, int area, int channels, int across, T *y,
                          unsigned char *mask) {
    Place at(Part(images, area, blockIdx.z), channels, V, across, true);
    if (!at.inside()) return;
    int of_part = blockIdx.z * channels;
    Channel<V> channel(at, mean + of_part, inv_std + of_part, gamma, beta);
    by_kind(kind, [&](auto k) {
        normalize_as<decltype(k)::value, T, V>(at, channel, x, residual, y, mask);
    });
}

// The same with statistics from sums that a convolution has computed, which are stored.
template <typename T, int V>
__device__ void normalize_sums(const T *x, const T *residual, const float *total,
                               const float *square, const Statistics &to, const float *gamma,
                               const float *beta, int kind, int images, int area, int channels,
                               int across, T *y, unsigned char *mask) {
    __shared__ float mean[MOST_ACROSS * V], inv_std[MOST_ACROSS * V];
    Place at(Part(images, area, blockIdx.z), channels, V, across, true);
    int width = across * V, begin = blockIdx.y * width;
    auto moments = [&](int part, int c) {
        return Moments(Part(images, area, part).rows, total[part * channels + c],
                       square[part * channels + c], 0);
    };
    for (int i = threadIdx.x; i < width && begin + i < channels; i += blockDim.x) {
        Moments of = moments(blockIdx.z, begin + i);
        mean[i] = of.mean;
        inv_std[i] = of.inv_std(to.eps);
        if (blockIdx.x == 0 && blockIdx.z == 0)
            for (int part = 0; part < (int)gridDim.z; ++part)
                to.store(part, channels, begin + i, moments(part, begin + i));
    }
    __syncthreads();
    if (!at.inside()) return;
    Channel<V> channel(at, mean, inv_std, gamma, beta, begin);
    by_kind(kind, [&](auto k) {
        normalize_as<decltype(k)::value, T, V>(at, channel, x, residual, y, mask);
    });
}

// A gradient, masked by the ReLU.
template <int KIND, typename T, int V>
__device__ inline void masked(const Channel<V> &channel, unsigned char bits,
                              const Pack<T, V> &x, float (&g)[V]) {
    if (KIND == ADD_RELU) {
        for (int v = 0; v < V; ++v) g[v] = bits >> v & 1 ? g[v] : 0;
    } else if (KIND == RELU || KIND == RELU_ADD) {
        for (int v = 0; v < V; ++v)
            g[v] = channel.normal(widen(x.lane[v]), v) > 0 ? g[v] : 0;
    }
}

// Call use(i, x, g) for each of a thread's packs: its index, the normalised values, and the
// masked gradient.
template <int KIND, typename T, int V, typename Use>
__device__ inline void each_gradient(const Place &at, const Channel<V> &channel, const T *gy,
                                     const T *x, const unsigned char *mask, Use use) {
    constexpr int U = 2;
    for (int r = at.first(); r < at.rows; r += U * at.step) {
        Pack<T, V> p[U], q[U];
        Pack<unsigned char, 1> bits[U] = {};
        at.fetch(gy, r, p);
        at.fetch(x, r, q);
        if (KIND == ADD_RELU) at.fetch(mask, r, bits);
#pragma unroll
        for (int u = 0; u < U; ++u) {
            if (r + u * at.step >= at.rows) break;
            float g[V];
            for (int v = 0; v < V; ++v) g[v] = widen(p[u].lane[v]);
            masked<KIND, T, V>(channel, bits[u].lane[0], q[u], g);
            use(at.index(r + u * at.step), q[u], g);
        }
    }
}

// Gradients of gamma and beta, of each part and their sums (not of one part); also the masked
// gradient, to `kept` if that is not null.
template <typename T, int V>
__device__ void backward_sums(const T *gy, const T *x, const unsigned char *mask,
                              const float *mean, const float *inv_std, const float *gamma,
                              const float *beta, int kind, int images, int area, int channels,
                              int across, T *kept, float *of_gamma, float *of_beta, float *ggamma,
                              float *gbeta, float *partial, unsigned int *counters) {
    extern __shared__ float shared[];
    Place at(Part(images, area, blockIdx.z), channels, V, across);
    float sum[V] = {}, product[V] = {};
    if (at.inside()) {
        int of_part = blockIdx.z * channels;
        Channel<V> channel(at, mean + of_part, inv_std + of_part, gamma, beta);
        by_kind(kind, [&](auto k) {
            each_gradient<decltype(k)::value, T, V>(
                at, channel, gy, x, mask,
                [&](long long i, const Pack<T, V> &q, const float (&g)[V]) {
                    Pack<T, V> out;
                    for (int v = 0; v < V; ++v) {
                        sum[v] += g[v];
                        product[v] = fmaf(g[v], widen(q.lane[v]) - channel.mean[v], product[v]);
                        narrow(g[v], out.lane[v]);
                    }
                    if (kept) store<T, V>(kept, i, out);
                });
        });
    }
    if (!add_up<V>(at, channels, sum, product, shared, partial, counters)) return;
    int width = across * V, begin = blockIdx.y * width;
    for (int part = 0; part < (int)gridDim.z; ++part) {
        add_blocks<V>(part, across, channels, shared, partial);
        for (int i = threadIdx.x; i < width && begin + i < channels; i += blockDim.x) {
            int c = begin + i, at_part = part * channels + c;
            float b = shared[i], g = shared[width + i] * inv_std[at_part];
            of_beta[at_part] = b;
            of_gamma[at_part] = g;
            if (gridDim.z == 1) continue;
            gbeta[c] = part ? gbeta[c] + b : b;
            ggamma[c] = part ? ggamma[c] + g : g;
        }
    }
}

// Gradient of x.
template <typename T, int V>
__device__ void backward_input(const T *gy, const T *x, const unsigned char *mask,
                               const float *mean, const float *inv_std, const float *gamma,
                               const float *beta, const float *of_gamma, const float *of_beta,
                               int kind, int images, int area, int channels, int across,
                               T *gx) {
    Place at(Part(images, area, blockIdx.z), channels, V, across, true);
    if (!at.inside()) return;
    int of_part = blockIdx.z * channels;
    Channel<V> channel(at, mean + of_part, inv_std + of_part, gamma, beta);
    float linear[V], constant[V];
    for (int v = 0; v < V; ++v) {
        int c = of_part + at.pack * V + v;
        linear[v] = of_gamma[c] * inv_std[c] / at.rows;
        constant[v] = of_beta[c] / at.rows;
    }
    by_kind(kind, [&](auto k) {
        each_gradient<decltype(k)::value, T, V>(
            at, channel, gy, x, mask,
            [&](long long i, const Pack<T, V> &q, const float (&g)[V]) {
                Pack<T, V> out;
                for (int v = 0; v < V; ++v) {
                    float centred = widen(q.lane[v]) - channel.mean[v];
                    narrow(channel.scale[v] * (g[v] - fmaf(centred, linear[v], constant[v])),
                           out.lane[v]);
                }
                store<T, V>(gx, i, out);
            });
    });
}

#define MASK IN(unsigned char)
#define SIZES int images, int area, int channels, int across
#define STATISTICS                                                                              \
    float eps, float decay, float eps_in_average, OUT(float) mean, OUT(float) inv_std,          \
        OUT(float) avg_mean, OUT(float) avg_var

#define KERNELS(suffix, T, V)                                                                   \
    extern "C" __global__ void __launch_bounds__(256, 4) statistics_##suffix(                   \
        IN(T) x, SIZES, STATISTICS, float *partial, unsigned int *counters) {                   \
        statistics<T, V>(x, images, area, channels, across,                                     \
            {eps, decay, eps_in_average, mean, inv_std, avg_mean, avg_var}, partial, counters); \
    }                                                                                           \
    extern "C" __global__ void __launch_bounds__(256, 4) normalize_##suffix(                    \
        IN(T) x, IN(T) residual, IN(float) mean, IN(float) inv_std, IN(float) gamma,            \
        IN(float) beta, int kind, SIZES, OUT(T) y, OUT(unsigned char) mask) {                   \
        normalize<T, V>(x, residual, mean, inv_std, gamma, beta, kind, images, area, channels,  \
            across, y, mask);                                                                   \
    }                                                                                           \
    extern "C" __global__ void __launch_bounds__(256, 4) normalize_sums_##suffix(               \
        IN(T) x, IN(T) residual, IN(float) total, IN(float) square, STATISTICS,                 \
        IN(float) gamma, IN(float) beta, int kind, SIZES, OUT(T) y, OUT(unsigned char) mask) {  \
        normalize_sums<T, V>(x, residual, total, square,                                        \
            {eps, decay, eps_in_average, mean, inv_std, avg_mean, avg_var}, gamma, beta, kind,  \
            images, area, channels, across, y, mask);                                           \
    }                                                                                           \
    extern "C" __global__ void __launch_bounds__(256, 3) backward_sums_##suffix(                \
        IN(T) gy, IN(T) x, MASK mask, IN(float) mean, IN(float) inv_std, IN(float) gamma,       \
        IN(float) beta, int kind, SIZES, OUT(T) kept, OUT(float) of_gamma, OUT(float) of_beta,  \
        OUT(float) ggamma, OUT(float) gbeta, float *partial, unsigned int *counters) {          \
        backward_sums<T, V>(gy, x, mask, mean, inv_std, gamma, beta, kind, images, area,        \
            channels, across, kept, of_gamma, of_beta, ggamma, gbeta, partial, counters);       \
    }                                                                                           \
    extern "C" __global__ void __launch_bounds__(256, 3) backward_input_##suffix(               \
        IN(T) gy, IN(T) x, MASK mask, IN(float) mean, IN(float) inv_std, IN(float) gamma,       \
        IN(float) beta, IN(float) of_gamma, IN(float) of_beta, int kind, SIZES, OUT(T) gx) {    \
        backward_input<T, V>(gy, x, mask, mean, inv_std, gamma, beta, of_gamma, of_beta, kind,  \
            images, area, channels, across, gx);                                                \
    }

KERNELS(h8, Half, 8)
KERNELS(h1, Half, 1)
KERNELS(f4, float, 4)
KERNELS(f1, float, 1)
