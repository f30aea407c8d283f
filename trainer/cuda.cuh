// Put in front of every .cu file (trainer/cuda.py): numbers in memory, float or float16, one or
// several at a time, computed with as floats.

struct Half {
    unsigned short bits;
};

__device__ inline float widen(float x) { return x; }

__device__ inline void narrow(float x, float &y) { y = x; }

__device__ inline float widen(Half x) {
    float y;
#ifdef __CUDA_ARCH__
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
#else
    _Float16 h;
    __builtin_memcpy(&h, &x.bits, 2);
    y = h;
#endif
    return y;
}

__device__ inline void narrow(float x, Half &y) {
#ifdef __CUDA_ARCH__
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
#else
    _Float16 h = x;
    __builtin_memcpy(&y.bits, &h, 2);
#endif
}

// Neighbouring channels of one pixel, moved in one access.
template <typename T, int V> struct alignas(sizeof(T) * V) Pack {
    T lane[V];
};

template <typename T, int V> __device__ inline Pack<T, V> load(const T *p, long long i) {
    return reinterpret_cast<const Pack<T, V> *>(p)[i];
}

template <typename T, int V>
__device__ inline void store(T *p, long long i, const Pack<T, V> &v) {
    reinterpret_cast<Pack<T, V> *>(p)[i] = v;
}

__device__ inline unsigned thread() { return blockIdx.x * blockDim.x + threadIdx.x; }

// Nothing that a kernel reads through one of these pointers is written through another.
#define IN(T) const T *__restrict__
#define OUT(T) T *__restrict__
