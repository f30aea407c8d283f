// Operations on all parameters at once. Each block has an entry of a table with its parameter and
// its part.

struct Part {
    int begin, count;
    // Channels and pixels of a filter if another array's memory is NHWC; the parameter's is NCHW.
    int inner, area;

    // Index in the other array's memory of value i of the parameter.
    __device__ long long other(int i) const {
        if (area == 1) return i;
        int within = i % (inner * area);
        return i - within + (long long)(within % area) * inner + within / area;
    }
};

// Value i of a gradient, float32 or float16 (half), in the order of its memory.
__device__ inline float value_of(const void *gradient, int half, long long i) {
    return half ? widen(static_cast<const Half *>(gradient)[i])
                : static_cast<const float *>(gradient)[i];
}

struct Entry {
    float *param;
    const void *grad; // null: all zeros
    float *state;
    Part part;
    // Factor of the gradient, weight decay included.
    float rate;
    // Whether the gradient is float16.
    int half;
    // Index of the parameter's weight decay.
    int group;
    int unused;

    // Value i of the gradient, in the order of its memory.
    __device__ float gradient(long long i) const { return value_of(grad, half, i); }
};

struct Sum {
    const void *grad;
    float *sum;
    Part part;
    int half, unused;
};

// Add gradients to float32 sums of the same memory layout; with `begins`, assign them.
extern "C" __global__ void __launch_bounds__(256)
add_gradients(const unsigned char *table, int begins) {
    Sum s = reinterpret_cast<const Sum *>(table)[blockIdx.x];
#pragma unroll 4
    for (int j = threadIdx.x; j < s.part.count; j += blockDim.x) {
        int i = s.part.begin + j;
        float g = value_of(s.grad, s.half, i);
        s.sum[i] = begins ? g : s.sum[i] + g;
    }
}

// Whether a gradient is not finite, as float16 overflowed.
extern "C" __global__ void __launch_bounds__(256)
find_overflow(const unsigned char *table, unsigned int *overflow) {
    Entry e = reinterpret_cast<const Entry *>(table)[blockIdx.x];
    bool found = false;
    for (int i = threadIdx.x; e.grad && i < e.part.count; i += blockDim.x)
        found |= !isfinite(e.gradient(e.part.begin + i));
    if (found) *overflow = 1;
}

// Sum over the threads of a block, in a fixed order; the first thread gets the result.
__device__ inline double block_sum(double value) {
    __shared__ double sums[256];
    sums[threadIdx.x] = value;
    for (int half = 128; half; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    }
    __syncthreads();
    return sums[0];
}

// The sum of squares of each part's gradients.
extern "C" __global__ void __launch_bounds__(256)
squares(const unsigned char *table, double *sums) {
    Entry e = reinterpret_cast<const Entry *>(table)[blockIdx.x];
    double sum = 0;
    for (int i = threadIdx.x; e.grad && i < e.part.count; i += blockDim.x) {
        double g = e.gradient(e.part.begin + i);
        sum += g * g;
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// The factor of gradients with which their norm is at most `most`. One block.
extern "C" __global__ void __launch_bounds__(256)
clip(const double *sums, int n, double most, const double *scale, float *factor) {
    double sum = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x)
        sum += sums[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) {
        double allowed = most / (sqrt(sum) / scale[0] + 1e-6);
        factor[0] = allowed < 1 ? allowed : 1;
    }
}

enum { MOMENTUM, TORCH, TORCH_NESTEROV };

// `rates`: learning rate, momentum, each group's weight decay. `scale`: its first value is the
// loss scale. `clipped`: factor of the gradients.
// Nothing changes if a gradient overflowed.
extern "C" __global__ void __launch_bounds__(256)
update(const unsigned char *table, const float *rates, const double *scale,
       const float *clipped, const unsigned int *overflow, int kind) {
    if (*overflow) return;
    Entry e = reinterpret_cast<const Entry *>(table)[blockIdx.x];
    float lr = rates[0], momentum = rates[1], decay = rates[2 + e.group];
    float back = clipped[0] / scale[0];
#pragma unroll 4
    for (int j = threadIdx.x; j < e.part.count; j += blockDim.x) {
        int i = e.part.begin + j;
        float p = e.param[i], s = e.state[i];
        float g = fmaf(decay, p, e.grad ? e.gradient(e.part.other(i)) * back : 0) * e.rate;
        if (kind == MOMENTUM) {
            s = momentum * s - lr * g;
            p += s;
        } else {
            s = momentum * s + g;
            p -= lr * (kind == TORCH ? s : g + momentum * s);
        }
        e.param[i] = p;
        e.state[i] = s;
    }
}

// Chainer's adaptive loss scale: it doubles at each update until the first overflow and grows
// slowly after that; each overflow halves it. `scale`: the scale, and whether there was an
// overflow.
extern "C" __global__ void adapt(double *scale, unsigned int *overflow, double growth,
                                 double most) {
    if (*overflow) {
        scale[0] /= 2;
        scale[1] = 1;
    } else {
        scale[0] *= scale[1] ? growth : 2;
    }
    scale[0] = max(1., min(most, scale[0]));
    *overflow = 0;
}

struct Copy {
    const float *from;
    Half *to;
    Part part;
};

// Parameters as float16.
extern "C" __global__ void __launch_bounds__(256) convert(const unsigned char *table) {
    Copy c = reinterpret_cast<const Copy *>(table)[blockIdx.x];
#pragma unroll 4
    for (int j = threadIdx.x; j < c.part.count; j += blockDim.x) {
        int i = c.part.begin + j;
        narrow(c.from[i], c.to[c.part.other(i)]);
    }
}
