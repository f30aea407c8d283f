// Put in front of every .cu file (trainer/cuda.py): numbers in memory, float or float16,
// computed with as floats.

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
