// An optimizer's update of all parameters at once. Each block has an entry of a table that
// says which part of which parameter is its own.

struct Entry {
    float *param;
    const float *grad; // null: all zeros
    float *state;
    int begin, count;
    // Of the gradient's memory, which may be NHWC: channels and pixels of a filter. The
    // parameter's is NCHW.
    int inner, area;
    // Times the gradient, weight decay included.
    float rate;
    int unused;
};

__device__ inline long long place(const Entry &e, int i) {
    if (e.area == 1) return i;
    int within = i % (e.inner * e.area);
    return i - within + (long long)(within % e.area) * e.inner + within / e.area;
}

// Whether a gradient is not finite: float16 could not hold it.
extern "C" __global__ void __launch_bounds__(256)
find_overflow(const unsigned char *table, unsigned int *overflow) {
    Entry e = reinterpret_cast<const Entry *>(table)[blockIdx.x];
    bool found = false;
    for (int i = threadIdx.x; e.grad && i < e.count; i += blockDim.x)
        found |= !isfinite(e.grad[e.begin + i]);
    if (found) *overflow = 1;
}

enum { MOMENTUM, TORCH, TORCH_NESTEROV };

// `rates`: learning rate, momentum, weight decay. `scale`: the loss's, first of two.
// Nothing is changed where a gradient overflowed.
extern "C" __global__ void __launch_bounds__(256)
update(const unsigned char *table, const float *rates, const double *scale,
       const unsigned int *overflow, int kind) {
    if (*overflow) return;
    Entry e = reinterpret_cast<const Entry *>(table)[blockIdx.x];
    float lr = rates[0], momentum = rates[1], decay = rates[2], back = 1 / scale[0];
#pragma unroll 4
    for (int j = threadIdx.x; j < e.count; j += blockDim.x) {
        int i = e.begin + j;
        float p = e.param[i], s = e.state[i];
        float g = fmaf(decay, p, e.grad ? e.grad[place(e, i)] * back : 0) * e.rate;
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

// Chainer's adaptive loss scale: doubled each time until the first overflow, slowly after
// that, halved at each. `scale`: the scale, and whether there ever was an overflow.
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
