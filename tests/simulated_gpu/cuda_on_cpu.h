// CUDA C's names for a C++ compiler: kernels computed on the CPU, for tests.
//
// The threads of a block are fibers of one thread of the CPU, each run from barrier to barrier;
// warps, and blocks, take their turns in a shuffled order, so that an assumed order shows. What
// CUDA leaves undefined at barriers and shuffles is an error here. Shared memory starts as 0xff
// bytes. This is a simulation of what kernels compute and says nothing of their speed.
#pragma once
#include <stddef.h>
#include <stdint.h>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __shared__ static
#define __constant__ static
#define __grid_constant__

// Vectors.

#define CUDA_VECTOR(T, name, a1, a2, a4) \
  struct a1 name##1 { T x; }; \
  struct a2 name##2 { T x, y; }; \
  struct name##3 { T x, y, z; }; \
  struct a4 name##4 { T x, y, z, w; }; \
  static inline name##1 make_##name##1(T x) { return {x}; } \
  static inline name##2 make_##name##2(T x, T y) { return {x, y}; } \
  static inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; } \
  static inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
CUDA_VECTOR(char, char, alignas(1), alignas(2), alignas(4))
CUDA_VECTOR(unsigned char, uchar, alignas(1), alignas(2), alignas(4))
CUDA_VECTOR(short, short, alignas(2), alignas(4), alignas(8))
CUDA_VECTOR(unsigned short, ushort, alignas(2), alignas(4), alignas(8))
CUDA_VECTOR(int, int, alignas(4), alignas(8), alignas(16))
CUDA_VECTOR(unsigned, uint, alignas(4), alignas(8), alignas(16))
CUDA_VECTOR(long long, longlong, alignas(8), alignas(16), alignas(16))
CUDA_VECTOR(unsigned long long, ulonglong, alignas(8), alignas(16), alignas(16))
CUDA_VECTOR(float, float, alignas(4), alignas(8), alignas(16))
CUDA_VECTOR(double, double, alignas(8), alignas(16), alignas(16))
struct dim3 {
  unsigned x, y, z;
};

// Arithmetic. Not from <cmath>, whose size every compilation would pay for.

extern "C" {
#define CUDA_MATH1(name) double name(double) noexcept; float name##f(float) noexcept;
#define CUDA_MATH2(name) \
  double name(double, double) noexcept; float name##f(float, float) noexcept;
CUDA_MATH1(exp) CUDA_MATH1(log) CUDA_MATH1(sqrt) CUDA_MATH1(floor) CUDA_MATH1(ceil)
CUDA_MATH1(fabs) CUDA_MATH1(rint) CUDA_MATH1(round) CUDA_MATH1(trunc) CUDA_MATH1(tanh)
CUDA_MATH1(sin) CUDA_MATH1(cos) CUDA_MATH1(tan) CUDA_MATH1(exp2) CUDA_MATH1(log2)
CUDA_MATH1(log10) CUDA_MATH1(log1p) CUDA_MATH1(expm1) CUDA_MATH1(erf) CUDA_MATH1(cbrt)
CUDA_MATH2(pow) CUDA_MATH2(fmod) CUDA_MATH2(fmin) CUDA_MATH2(fmax) CUDA_MATH2(atan2)
CUDA_MATH2(hypot) CUDA_MATH2(copysign)
double fma(double, double, double) noexcept;
float fmaf(float, float, float) noexcept;
void *memset(void *, int, size_t) noexcept;
void *memcpy(void *__restrict__, const void *__restrict__, size_t) noexcept;
void *malloc(size_t) noexcept;
int snprintf(char *__restrict__, size_t, const char *__restrict__, ...) noexcept;
int printf(const char *__restrict__, ...);
}
typedef _Float16 float16;
#define CUDA_OVERLOAD1(name) \
  static inline float name(float x) { return name##f(x); } \
  static inline float16 name(float16 x) { return (float16)name##f((float)x); } \
  static inline double name(int x) { return name((double)x); }
CUDA_OVERLOAD1(exp) CUDA_OVERLOAD1(log) CUDA_OVERLOAD1(sqrt) CUDA_OVERLOAD1(floor)
CUDA_OVERLOAD1(ceil) CUDA_OVERLOAD1(fabs) CUDA_OVERLOAD1(rint) CUDA_OVERLOAD1(round)
CUDA_OVERLOAD1(tanh) CUDA_OVERLOAD1(sin) CUDA_OVERLOAD1(cos) CUDA_OVERLOAD1(exp2)
CUDA_OVERLOAD1(log2) CUDA_OVERLOAD1(log1p) CUDA_OVERLOAD1(expm1) CUDA_OVERLOAD1(erf)
static inline float pow(float x, float y) { return powf(x, y); }
static inline float16 pow(float16 x, float16 y) { return (float16)powf(x, y); }
static inline float fmod(float x, float y) { return fmodf(x, y); }
static inline float fma(float x, float y, float z) { return fmaf(x, y, z); }
static inline float rsqrtf(float x) { return 1 / sqrtf(x); }
static inline float rsqrt(float x) { return 1 / sqrtf(x); }
static inline float16 rsqrt(float16 x) { return (float16)(1 / sqrtf(x)); }
static inline double rsqrt(double x) { return 1 / sqrt(x); }
static inline float __expf(float x) { return expf(x); }
static inline float __logf(float x) { return logf(x); }
static inline float __fdividef(float x, float y) { return x / y; }
static inline float __fmul_rn(float x, float y) { return x * y; }
static inline float __fadd_rn(float x, float y) { return x + y; }
static inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
static inline float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1) : 0; }
static inline bool isnan(double x) { return x != x; }
static inline bool isinf(double x) { return __builtin_isinf(x); }
static inline bool isfinite(double x) { return __builtin_isfinite(x); }

namespace cuda_on_cpu {
template <class A, class B> struct Common { typedef decltype(true ? A() : B()) type; };
template <> struct Common<float16, float16> { typedef float16 type; };
template <class T> static inline bool nan(T x) { return x != x; }
}
template <class A, class B>
static inline typename cuda_on_cpu::Common<A, B>::type min(A a, B b) {
  return cuda_on_cpu::nan(a) || b < a ? b : a;
}
template <class A, class B>
static inline typename cuda_on_cpu::Common<A, B>::type max(A a, B b) {
  return cuda_on_cpu::nan(a) || b > a ? b : a;
}
template <class T> static inline T abs(T x) { return x < T(0) ? T(-x) : x; }

// Bits.

template <class To, class From> static inline To cuda_bits(From x) {
  static_assert(sizeof(To) == sizeof(From), "sizes differ");
  To y;
  memcpy(&y, &x, sizeof y);
  return y;
}
static inline int __float_as_int(float x) { return cuda_bits<int>(x); }
static inline unsigned __float_as_uint(float x) { return cuda_bits<unsigned>(x); }
static inline float __int_as_float(int x) { return cuda_bits<float>(x); }
static inline float __uint_as_float(unsigned x) { return cuda_bits<float>(x); }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __float2int_rd(float x) { return (int)floorf(x); }
static inline int __float2int_rn(float x) { return (int)rintf(x); }
static inline int __float2int_rz(float x) { return (int)x; }
static inline unsigned __umulhi(unsigned a, unsigned b) {
  return (unsigned)((unsigned long long)a * b >> 32);
}
static inline unsigned __byte_perm(unsigned a, unsigned b, unsigned s) {
  unsigned long long both = (unsigned long long)b << 32 | a;
  unsigned y = 0;
  for (int i = 0; i < 4; ++i) y |= (unsigned)(both >> 8 * (s >> 4 * i & 7) & 255) << 8 * i;
  return y;
}
template <class T> static inline T __ldg(const T *p) { return *p; }
template <class T> static inline T __ldcs(const T *p) { return *p; }
template <class T> static inline T __ldcg(const T *p) { return *p; }
template <class T> static inline void __stcs(T *p, T x) { *p = x; }
template <class T> static inline void __stcg(T *p, T x) { *p = x; }

// Atomic operations: no two fibers run at once.

#define CUDA_ATOMIC(name, expression) \
  template <class T, class V> static inline T name(T *p, V v) { \
    T old = *p, x = (T)v; \
    *p = expression; \
    return old; \
  }
CUDA_ATOMIC(atomicAdd, (T)(old + x))
CUDA_ATOMIC(atomicSub, (T)(old - x))
CUDA_ATOMIC(atomicMax, old > x ? old : x)
CUDA_ATOMIC(atomicMin, old < x ? old : x)
CUDA_ATOMIC(atomicAnd, old & x)
CUDA_ATOMIC(atomicOr, old | x)
CUDA_ATOMIC(atomicXor, old ^ x)
CUDA_ATOMIC(atomicExch, x)
CUDA_ATOMIC(atomicInc, old >= x ? 0 : old + 1)
CUDA_ATOMIC(atomicDec, old == 0 || old > x ? x : old - 1)
template <class T> static inline T atomicCAS(T *p, T compare, T x) {
  T old = *p;
  if (old == compare) *p = x;
  return old;
}
static inline void __threadfence() {}
static inline void __threadfence_block() {}
static inline void __nanosleep(unsigned) {}

// Fibers.

#ifndef CUDA_ON_CPU_ELEMENTWISE
namespace cuda_on_cpu {

#if defined(__x86_64__)
struct Context { void *stack_pointer; };
extern "C" void cuda_on_cpu_switch(Context *from, Context *to);
asm(R"(
  .text
  .type cuda_on_cpu_switch, @function
cuda_on_cpu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq (%rsi), %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size cuda_on_cpu_switch, .-cuda_on_cpu_switch
)");
static void prepare(Context &c, char *stack, size_t size, void (*entry)()) {
  uintptr_t top = ((uintptr_t)stack + size) & ~(uintptr_t)63;
  void **p = (void **)top;
  *--p = nullptr;             // where entry would return to
  *--p = (void *)entry;       // what the switch returns to
  for (int i = 0; i < 6; ++i) *--p = nullptr;
  c.stack_pointer = p;
}
#else
}
#include <ucontext.h>
namespace cuda_on_cpu {
struct Context { ucontext_t u; };
static void cuda_on_cpu_switch(Context *from, Context *to) { swapcontext(&from->u, &to->u); }
static void prepare(Context &c, char *stack, size_t size, void (*entry)()) {
  getcontext(&c.u);
  c.u.uc_stack.ss_sp = stack;
  c.u.uc_stack.ss_size = size;
  c.u.uc_link = nullptr;
  makecontext(&c.u, entry, 0);
}
#endif

enum Status { WAITING_TO_START, RUNNING, AT_BARRIER, AT_WARP, DONE };
enum { MAX_THREADS = 1024, STACK = 1 << 17, DYNAMIC = 232448, MAX_VALUE = 16 };

struct Thread {
  dim3 index;
  Status status;
  int fiber, line;
  unsigned mask;              // at a warp's operation: the lanes that take part
  int operation;
  alignas(16) char value[MAX_VALUE];
};

// On the heap, so that all of .bss is the kernels' shared memory.
struct State {
  Context scheduler, fibers[MAX_THREADS];
  char *stacks[MAX_THREADS];
  int unused[MAX_THREADS], unused_count, made;
  Thread threads[MAX_THREADS];
  int order[MAX_THREADS], next, count, current;
  dim3 block_index, block_size, grid_size;
  void (*call)(void **);
  void **arguments;
  char error[256];
  unsigned random;
  alignas(16) char dynamic[DYNAMIC + 1024];
};
static State *state __attribute__((section(".data"))) =
    (State *)memset(malloc(sizeof(State)), 0, sizeof(State));

static void fail(const char *what, int line) {
  if (!state->error[0]) snprintf(state->error, sizeof state->error, "%s (line %d)", what, line);
}

static inline Thread &self() { return state->threads[state->current]; }

static void leave() {
  Thread &t = self();
  cuda_on_cpu_switch(&state->fibers[t.fiber], &state->scheduler);
}

// A fiber runs threads to their end until one has to wait; another fiber then takes the others.
static void run() {
  int fiber = self().fiber;
  for (;;) {
    Thread &t = self();
    t.status = RUNNING;
    state->call(state->arguments);
    self().status = DONE;
    if (state->next < state->count && !state->error[0]) {
      state->current = state->order[state->next++];
      self().fiber = fiber;
    } else {
      state->unused[state->unused_count++] = fiber;
      leave();
    }
  }
}

static void wait(Status status, int line) {
  Thread &t = self();
  t.status = status;
  t.line = line;
  leave();
}

static void barrier(int line) { wait(AT_BARRIER, line); }

static void warp_wait(unsigned mask, int operation, int line) {
  Thread &t = self();
  t.mask = mask;
  t.operation = operation;
  wait(AT_WARP, line);
}

static inline int lane() { return state->current & 31; }
static inline Thread *warp() { return state->threads + (state->current & ~31); }

static void start_fiber() {
  int fiber;
  if (state->unused_count) {
    fiber = state->unused[--state->unused_count];
    state->current = state->order[state->next++];
    self().fiber = fiber;
  } else {
    fiber = state->made++;
    if (!state->stacks[fiber]) state->stacks[fiber] = (char *)malloc(STACK);
    prepare(state->fibers[fiber], state->stacks[fiber], STACK, run);
    state->current = state->order[state->next++];
    self().fiber = fiber;
  }
  cuda_on_cpu_switch(&state->scheduler, &state->fibers[fiber]);
}

static bool release_warps() {
  bool any = false;
  for (int w = 0; w < state->count; w += 32) {
    Thread *t = state->threads + w;
    int lanes = state->count - w < 32 ? state->count - w : 32;
    for (int i = 0; i < lanes; ++i) {
      if (t[i].status != AT_WARP) continue;
      unsigned mask = t[i].mask;
      bool all = true;
      if (!(mask >> i & 1)) fail("a thread is not in the mask that it gives", t[i].line);
      for (int j = 0; j < 32; ++j) {
        if (!(mask >> j & 1)) continue;
        if (j >= lanes || t[j].status == DONE) continue;  // they need not come
        if (t[j].status != AT_WARP || t[j].mask != mask) { all = false; continue; }
        if (t[j].operation != t[i].operation || t[j].line != t[i].line)
          return fail("threads of a warp meet in different operations", t[i].line), false;
      }
      if (!all) continue;
      for (int j = 0; j < lanes; ++j)
        if (mask >> j & 1) t[j].status = RUNNING;
      any = true;
    }
  }
  return any;
}

static void shuffle(int *order, int n, int step) {
  for (int i = n / step - 1; i > 0; --i) {
    state->random = state->random * 1664525u + 1013904223u;
    int j = (int)((state->random >> 8) % (unsigned)(i + 1));
    for (int k = 0; k < step; ++k) {
      int a = order[i * step + k];
      order[i * step + k] = order[j * step + k];
      order[j * step + k] = a;
    }
  }
}

static void run_block() {
  State &s = *state;
  s.next = s.unused_count = s.made = 0;
  for (int i = 0; i < s.count; ++i) {
    Thread &t = s.threads[i];
    t.status = WAITING_TO_START;
    t.index = {i % s.block_size.x, i / s.block_size.x % s.block_size.y,
               i / s.block_size.x / s.block_size.y};
    s.order[i] = i;
  }
  shuffle(s.order, s.count, 32);
  while (s.next < s.count && !s.error[0]) start_fiber();
  while (!s.error[0]) {
    bool any = release_warps();
    if (s.error[0]) return;
    if (!any) {  // every thread that has not ended must be at one barrier
      int line = 0;
      for (int i = 0; i < s.count; ++i) {
        Thread &t = s.threads[i];
        if (t.status == DONE) continue;
        if (t.status != AT_BARRIER) return fail("threads wait for each other at a warp's "
                                                "operation and at __syncthreads", t.line);
        if (line && t.line != line) return fail("threads are at different __syncthreads", line);
        line = t.line;
        any = true;
      }
      if (!any) return;
      for (int i = 0; i < s.count; ++i)
        if (s.threads[i].status == AT_BARRIER) s.threads[i].status = RUNNING;
    }
    shuffle(s.order, s.count, 32);
    for (int i = 0; i < s.count && !s.error[0]; ++i) {
      s.current = s.order[i];
      if (self().status == RUNNING) cuda_on_cpu_switch(&s.scheduler, &s.fibers[self().fiber]);
    }
  }
}

extern "C" char __bss_start[] __attribute__((visibility("hidden")));
extern "C" char _end[] __attribute__((visibility("hidden")));

// Returns an error, or null.
static const char *launch(void (*call)(void **), void **arguments, const unsigned *sizes,
                          size_t dynamic) {
  State &s = *state;
  s.call = call;
  s.arguments = arguments;
  s.grid_size = {sizes[0], sizes[1], sizes[2]};
  s.block_size = {sizes[3], sizes[4], sizes[5]};
  s.count = (int)(sizes[3] * sizes[4] * sizes[5]);
  s.error[0] = 0;
  s.random = 1;
  size_t blocks = (size_t)sizes[0] * sizes[1] * sizes[2], step = 1;
  // Blocks in steps of a number that has no factor in common with theirs.
  const size_t primes[] = {1000003, 7919, 613, 17};
  for (size_t prime : primes)
    if (blocks % prime) { step = prime; break; }
  size_t b = blocks / 3;
  for (size_t i = 0; i < blocks && !s.error[0]; ++i) {
    b = (b + step) % blocks;
    s.block_index = {(unsigned)(b % sizes[0]), (unsigned)(b / sizes[0] % sizes[1]),
                     (unsigned)(b / sizes[0] / sizes[1])};
    memset(__bss_start, 0xff, (size_t)(_end - __bss_start));
    memset(s.dynamic, 0xff, dynamic);
    memset(s.dynamic + dynamic, 0xfd, 1024);
    run_block();
    for (int k = 0; k < 1024; ++k)
      if ((unsigned char)s.dynamic[dynamic + k] != 0xfd) {
        fail("dynamic shared memory is written behind its end", 0);
        break;
      }
  }
  return s.error[0] ? s.error : nullptr;
}

}  // namespace cuda_on_cpu

// What the compiler's checks of alignment and of arrays' bounds call.
extern "C" {
struct CudaOnCpuPlace { const char *file; unsigned line, column; };
__attribute__((visibility("hidden"), weak))
void __ubsan_handle_type_mismatch_v1(CudaOnCpuPlace *place, void *) {
  cuda_on_cpu::fail("an address is not aligned as its type asks", (int)place->line);
  cuda_on_cpu::leave();  // for good: an error ends the launch
}
__attribute__((visibility("hidden"), weak))
void __ubsan_handle_out_of_bounds(CudaOnCpuPlace *place, void *) {
  cuda_on_cpu::fail("an index is out of an array's bounds", (int)place->line);
  cuda_on_cpu::leave();
}
}

namespace cuda_on_cpu {

template <class T> static T exchange(unsigned mask, T value, int from, int line) {
  static_assert(sizeof(T) <= MAX_VALUE, "too large a value");
  T y;
  memcpy(self().value, &value, sizeof value);
  warp_wait(mask, 1, line);
  if (mask >> from & 1 && (state->current & ~31) + from < state->count &&
      warp()[from].status != DONE)
    memcpy(&y, warp()[from].value, sizeof y);
  else memset((void *)&y, 0xff, sizeof y);  // undefined in CUDA
  warp_wait(mask, 2, line);  // nobody overwrites what others still read
  return y;
}
template <class T>
static T shuffle_to(unsigned mask, T value, int lane_, int width, int line) {
  return exchange(mask, value, (lane() & ~(width - 1)) | (lane_ & (width - 1)), line);
}
template <class T>
static T shuffle_down(unsigned mask, T value, int delta, int width, int line) {
  int from = lane() + delta;
  return exchange(mask, value, from / width == lane() / width ? from : lane(), line);
}
template <class T>
static T shuffle_up(unsigned mask, T value, int delta, int width, int line) {
  int from = lane() - delta;
  return exchange(mask, value, from >= (lane() & ~(width - 1)) ? from : lane(), line);
}
template <class T>
static T shuffle_xor(unsigned mask, T value, int bits, int width, int line) {
  int from = lane() ^ bits;
  return exchange(mask, value, from / width <= lane() / width ? from : lane(), line);
}
static unsigned ballot(unsigned mask, bool value, int line) {
  self().value[0] = value;
  warp_wait(mask, 3, line);
  unsigned y = 0;
  for (int i = 0; i < 32; ++i)
    if (mask >> i & 1 && (state->current & ~31) + i < state->count && warp()[i].status != DONE)
      y |= (unsigned)warp()[i].value[0] << i;
  warp_wait(mask, 4, line);
  return y;
}
static int count_block(bool value, int line) {
  self().value[0] = value;
  barrier(line);
  int y = 0;
  for (int i = 0; i < state->count; ++i) y += state->threads[i].value[0] != 0;
  barrier(line);
  return y;
}
}  // namespace cuda_on_cpu

#define threadIdx (cuda_on_cpu::self().index)
#define blockIdx (cuda_on_cpu::state->block_index)
#define blockDim (cuda_on_cpu::state->block_size)
#define gridDim (cuda_on_cpu::state->grid_size)
#define warpSize 32
#define __syncthreads() cuda_on_cpu::barrier(__LINE__)
#define __syncthreads_count(x) cuda_on_cpu::count_block(x, __LINE__)
#define __syncthreads_or(x) (cuda_on_cpu::count_block(x, __LINE__) != 0)
static inline void cuda_syncwarp(int line, unsigned mask = 0xffffffffu) {
  cuda_on_cpu::warp_wait(mask, 0, line);
}
#define __syncwarp(...) cuda_syncwarp(__LINE__ __VA_OPT__(,) __VA_ARGS__)
#define CUDA_SHUFFLE(name, function) \
  template <class T> \
  static inline T name(int line, unsigned mask, T value, int by, int width = 32) { \
    return cuda_on_cpu::function(mask, value, by, width, line); \
  }
CUDA_SHUFFLE(cuda_shfl, shuffle_to)
CUDA_SHUFFLE(cuda_shfl_down, shuffle_down)
CUDA_SHUFFLE(cuda_shfl_up, shuffle_up)
CUDA_SHUFFLE(cuda_shfl_xor, shuffle_xor)
#define __shfl_sync(...) cuda_shfl(__LINE__, __VA_ARGS__)
#define __shfl_down_sync(...) cuda_shfl_down(__LINE__, __VA_ARGS__)
#define __shfl_up_sync(...) cuda_shfl_up(__LINE__, __VA_ARGS__)
#define __shfl_xor_sync(...) cuda_shfl_xor(__LINE__, __VA_ARGS__)
#define __ballot_sync(mask, x) cuda_on_cpu::ballot(mask, (x) != 0, __LINE__)
#define __any_sync(mask, x) (cuda_on_cpu::ballot(mask, (x) != 0, __LINE__) != 0)
#define __all_sync(mask, x) (cuda_on_cpu::ballot(mask, (x) != 0, __LINE__) == (mask))

// What kernels have of PTX for tensor cores (trainer/engines/cudnn/grouped.cu), by the layouts
// of the PTX ISA: ldmatrix, mma.m16n8k16 of float16 with sums in float32, and cp.async, whose
// copies here are there at once.

namespace cuda_on_cpu {

// Every lane's value, at its number.
template <class T> struct Lanes { T of[32]; };
template <class T> static Lanes<T> gather(T value, int line) {
  static_assert(sizeof(T) <= MAX_VALUE, "too large a value");
  Lanes<T> all;
  memcpy(self().value, &value, sizeof value);
  warp_wait(~0u, 5, line);
  if ((state->current & ~31) + 32 > state->count) fail("a warp is not full", line);
  for (int i = 0; i < 32; ++i) memcpy(&all.of[i], warp()[i].value, sizeof value);
  warp_wait(~0u, 6, line);
  return all;
}
struct Fragment { unsigned word[4]; };
struct Column { unsigned word[2]; };
static inline float16 half_of(unsigned word, int which) {
  unsigned short bits = (unsigned short)(word >> 16 * which);
  float16 h;
  memcpy(&h, &bits, 2);
  return h;
}
template <int COUNT>
static void ldmatrix(unsigned (&r)[COUNT], const char *row, bool transposed, int line) {
  if ((uintptr_t)row % 16) fail("a row of a matrix is not aligned to 16 bytes", line);
  Lanes<const char *> rows = gather(row, line);
  int i = lane() / 4, j = lane() % 4 * 2;
  for (int m = 0; m < COUNT; ++m) {
    unsigned short pair[2];
    for (int k = 0; k < 2; ++k)
      memcpy(&pair[k], transposed ? rows.of[8 * m + j + k] + 2 * i : rows.of[8 * m + i] + 2 * (j + k), 2);
    r[m] = pair[0] | (unsigned)pair[1] << 16;
  }
}
static void mma(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, int line) {
  Lanes<Fragment> as = gather(Fragment{{a[0], a[1], a[2], a[3]}}, line);
  Lanes<Column> bs = gather(Column{{b0, b1}}, line);
  for (int i = 0; i < 4; ++i) {
    int row = lane() / 4 + i / 2 * 8, column = lane() % 4 * 2 + i % 2;
    for (int k = 0; k < 16; ++k)
      d[i] += (float)half_of(as.of[row % 8 * 4 + k % 8 / 2].word[row / 8 + k / 8 * 2], k % 2)
        * (float)half_of(bs.of[column * 4 + k % 8 / 2].word[k / 8], k % 2);
  }
}
}  // namespace cuda_on_cpu

static inline void load_matrices(unsigned (&r)[4], const char *shared, int at,
                                 int line = __builtin_LINE()) {
  cuda_on_cpu::ldmatrix(r, shared + at, false, line);
}
template <int COUNT>
static inline void load_transposed(unsigned (&r)[COUNT], const char *shared, int at,
                                   int line = __builtin_LINE()) {
  cuda_on_cpu::ldmatrix(r, shared + at, true, line);
}
static inline void multiply(float (&d)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3,
                            const unsigned (&b)[2], int line = __builtin_LINE()) {
  unsigned a[4] = {a0, a1, a2, a3};
  cuda_on_cpu::mma(d, a, b[0], b[1], line);
}
static inline void multiply(float (&d)[4], unsigned a0, unsigned a1, unsigned b,
                            int line = __builtin_LINE()) {
  unsigned a[4] = {a0, a1, 0, 0};
  cuda_on_cpu::mma(d, a, b, 0, line);
}
static inline void copy_async(char *shared, int at, const void *from, bool inside) {
  if (((uintptr_t)(shared + at) | (uintptr_t)from) % 16)
    cuda_on_cpu::fail("an asynchronous copy is not aligned to 16 bytes", 0);
  if (inside) memcpy(shared + at, from, 16);
  else memset(shared + at, 0, 16);
}
static inline void commit_copies() {}
template <int LEFT> static inline void wait_copies() {}

#else  // CUDA_ON_CPU_ELEMENTWISE: what CuPy puts around elementwise and reduction kernels

struct Argument {
  char *data;
  ptrdiff_t size, ndim;
  ptrdiff_t shape[16], strides[16];
};
struct CIndexer {
  ptrdiff_t size_, ndim, shape_[16], index_[16];
  explicit CIndexer(const Argument &a) : size_(a.size), ndim(a.ndim) {
    for (int d = 0; d < 16; ++d) shape_[d] = a.shape[d];
  }
  ptrdiff_t size() const { return size_; }
  const ptrdiff_t *shape() const { return shape_; }
  const ptrdiff_t *get() const { return index_; }
  void set(ptrdiff_t i) {
    for (ptrdiff_t d = ndim - 1; d > 0; --d) {
      ptrdiff_t q = i / shape_[d];
      index_[d] = i - q * shape_[d];
      i = q;
    }
    if (ndim) index_[0] = i;
  }
};
template <class T> struct CArray {
  char *data_;
  ptrdiff_t size_;
  int ndim;
  ptrdiff_t shape_[16], strides_[16];
  explicit CArray(const Argument &a) : data_(a.data), size_(a.size), ndim((int)a.ndim) {
    for (int d = 0; d < 16; ++d) shape_[d] = a.shape[d], strides_[d] = a.strides[d];
  }
  ptrdiff_t size() const { return size_; }
  const ptrdiff_t *shape() const { return shape_; }
  const ptrdiff_t *strides() const { return strides_; }
  T &operator[](const ptrdiff_t *index) const {
    char *p = data_;
    for (int d = 0; d < ndim; ++d) p += index[d] * strides_[d];
    return *(T *)p;
  }
  template <class I> T &operator[](I i_) const {
    ptrdiff_t i = (ptrdiff_t)i_;
    char *p = data_;
    for (int d = ndim - 1; d > 0; --d) {
      ptrdiff_t q = i / shape_[d];
      p += (i - q * shape_[d]) * strides_[d];
      i = q;
    }
    if (ndim) p += i * strides_[0];
    return *(T *)p;
  }
};
#endif
