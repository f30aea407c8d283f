// Moves tiles of feature maps from the device's memory through shared memory to tensor cores.
//
// Compiled before grouped.cu. Feature maps are float16 and NHWC.

enum {
    CHANNELS = 64,   // of a block
    PIXEL = 144,     // bytes from pixel to pixel: 16 apart in the banks, and none meet
    THREADS = 256,
    TAPS = 9
};

// Instructions that CUDA C has no names for; a simulation brings its own.
#ifdef __CUDA_ARCH__
__device__ inline unsigned address(const char *shared, int at) {
    return (unsigned)__cvta_generic_to_shared(shared) + at;
}

// Load four 8x8 matrices, whose rows are where lanes 0 to 7, 8 to 15, ... say.
__device__ inline void load_matrices(unsigned (&r)[4], const char *shared, int at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address(shared, at)) : "memory");
}

__device__ inline void load_transposed(unsigned (&r)[4], const char *shared, int at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address(shared, at)) : "memory");
}

__device__ inline void load_transposed(unsigned (&r)[2], const char *shared, int at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1]) : "r"(address(shared, at)) : "memory");
}

// d += a b, a of the words a0 to a3.
__device__ inline void multiply(float (&d)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3,
                                const unsigned (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b[0]), "r"(b[1]));
}

// The same of half the depth: a0 and a1 have 8 columns of a, b has 8 rows of b.
__device__ inline void multiply(float (&d)[4], unsigned a0, unsigned a1, unsigned b) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a0), "r"(a1), "r"(b));
}

// Copy 16 bytes to shared memory, zeros where not `inside`; wait_copies() waits.
__device__ inline void copy_async(char *shared, int at, const void *from, bool inside) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :: "r"(address(shared, at)), "l"(from), "r"(inside ? 16 : 0) : "memory");
}

__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int LEFT> __device__ inline void wait_copies() {
    asm volatile("cp.async.wait_group %0;" :: "n"(LEFT) : "memory");
}
#endif

// Two numbers as float16, the first in the low half.
__device__ inline unsigned both(float x, float y) {
    unsigned word;
#ifdef __CUDA_ARCH__
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(y), "f"(x));
#else
    Half a, b;
    narrow(x, a);
    narrow(y, b);
    word = a.bits | (unsigned)b.bits << 16;
#endif
    return word;
}

__device__ inline unsigned both(Half x, Half y) { return x.bits | (unsigned)y.bits << 16; }

__device__ inline void apart(unsigned x, float &low, float &high) {
    Half a = {(unsigned short)x}, b = {(unsigned short)(x >> 16)};
    low = widen(a);
    high = widen(b);
}

struct alignas(16) Sixteen { unsigned word[4]; };
struct alignas(8) Eight { unsigned word[2]; };

// Divides by a product; n times d is below 2^32.
struct Divisor {
    unsigned inverse;

    __device__ Divisor(int d) : inverse(d > 1 ? ~0u / d + 1 : 0) {}
    __device__ int operator()(int n) const { return inverse ? __umulhi(n, inverse) : n; }
};

// Maps in memory, and how their pixels are dealt out in tiles: `rows` by `columns` pixels of
// each of `together` images. A tile is made of patches, 2 rows by 8 columns: the 16 pixels of a
// product.
struct Map { int height, width; };
struct Tiles {
    int images, channels, together, rows, columns, down, across, count;
    Divisor by_down, by_across;

    __device__ Tiles(int images_, int channels_, Map m, int together_, int rows_, int columns_)
        : images(images_), channels(channels_), together(together_), rows(rows_),
          columns(columns_), down((m.height + rows_ - 1) / rows_),
          across((m.width + columns_ - 1) / columns_), by_down(down), by_across(across) {
        count = (images + together - 1) / together * down * across;
    }
};

// The first pixel of a tile.
struct Corner {
    int image, y, x;

    __device__ Corner(const Tiles &tiles, int tile) {
        int strip = tiles.by_across(tile), part = tiles.by_down(strip);
        x = (tile - strip * tiles.across) * tiles.columns;
        y = (strip - part * tiles.down) * tiles.rows;
        image = part * tiles.together;
    }
};

// A patch of a tile: its image, row and column. Patches below each other come first.
struct Patch {
    int image = 0, y = 0, x = 0;

    __device__ Patch(const Tiles &tiles, int number) { skip(tiles, number); }
    __device__ bool there(const Tiles &tiles) const { return image < tiles.together; }
    __device__ void skip(const Tiles &tiles, int patches) {
        for (y += 2 * patches; y >= tiles.rows; y -= tiles.rows) {
            x += 8;
            if (x < tiles.columns) continue;
            x = 0;
            ++image;
        }
    }
};

// A tile with the pixels around it in shared memory. Of a stride of 2 the even columns come
// first, so that what neighbouring outputs read is beside each other.
template <int S> struct Window {
    int rows, columns, half, pitch, top, left;
    Divisor by_rows;

    // `top`, `left`: pixels above and left of the tile; `more`: rows and columns besides.
    __device__ Window(const Tiles &tiles, int top_, int left_, int more)
        : rows((tiles.rows - 1) * S + 1 + more), columns((tiles.columns - 1) * S + 1 + more),
          top(top_), left(left_), by_rows(rows) {
        half = (columns + 1) / 2;
        pitch = S == 2 ? 2 * half : columns;
    }
    __device__ int bytes(const Tiles &tiles) const {
        return tiles.together * rows * pitch * PIXEL;
    }
    __device__ int column(int x) const { return S == 2 ? (x & 1) * half + (x >> 1) : x; }

    // Bytes from a pixel to the one that a tap reads.
    __device__ int tap(int ky, int kx) const { return (ky * pitch + column(kx)) * PIXEL; }

    // Where the first output of a patch begins to read.
    __device__ int place(Patch patch) const {
        return ((patch.image * rows + patch.y * S) * pitch + patch.x) * PIXEL;
    }

    // Begin to copy 64 channels from `channel`, at the corner of a tile of outputs. A warp has
    // whole rows, four pixels at a time.
    __device__ void fetch(char *shared, int to, const Half *map, const Tiles &tiles,
                          Corner corner, Map m, int channel) const {
        int part = threadIdx.x % 8, first = threadIdx.x % 32 / 8, warp = threadIdx.x / 32;
        int x0 = corner.x * S - left + first;
        for (int row = warp; row < tiles.together * rows; row += THREADS / 32) {
            int image = by_rows(row), n = corner.image + image;
            int y = corner.y * S - top + row - image * rows;
            bool inside = n < tiles.images && y >= 0 && y < m.height;
            const Half *from = map + part * 8 + channel
                + ((long long)(n * m.height + y) * m.width + x0) * tiles.channels;
            int at = to + (row * pitch + column(first)) * PIXEL + part * 16;
#pragma unroll 4
            for (int x = first; x < columns; x += 4) {
                bool here = inside && (unsigned)(x0 + x - first) < (unsigned)m.width;
                copy_async(shared, at, here ? from : map, here);
                from += 4 * tiles.channels;
                at += 4 / S * PIXEL;
            }
        }
    }
};

// Call compute(corner, buffer) for each of a block's tiles, while the next is on its way by
// fetch(corner, buffer).
// There are two buffers of so many bytes.
template <typename Fetch, typename Compute>
__device__ inline void each_tile(const Tiles &tiles, int bytes, Fetch fetch, Compute compute) {
    int buffer = 0;
    if ((int)blockIdx.x < tiles.count) fetch(Corner(tiles, blockIdx.x), buffer);
    commit_copies();
    for (int tile = blockIdx.x; tile < tiles.count; tile += gridDim.x) {
        int next = tile + gridDim.x;
        if (next < tiles.count) fetch(Corner(tiles, next), bytes - buffer);
        commit_copies();
        wait_copies<1>();
        __syncthreads();
        compute(Corner(tiles, tile), buffer);
        __syncthreads();
        buffer = bytes - buffer;
    }
}
