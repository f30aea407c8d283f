// Images of a chunk erased and mixed, as mixing.py describes it; a thread is a value.
//
// rows: float (batch, FIELDS). Images are (batch, height, width, channels) in memory where
// `nhwc`, else (batch, channels, height, width).

constexpr int FIELDS = 12;

__device__ inline bool inside(const float *box, int h, int w) {
    return box[0] <= h && h < box[1] && box[2] <= w && w < box[3];
}

template <typename T>
__device__ inline void mix(const T *x, const float *rows, T *y, int size, int channels,
                           int height, int width, int nhwc) {
    const int i = thread();
    if (i >= size) return;
    const int pixels = height * width, n = i / (pixels * channels);
    const int within = i % (pixels * channels);
    const int pixel = nhwc ? within / channels : within % pixels;
    const int h = pixel / width, w = pixel % width;
    const float *row = rows + n * FIELDS;
    float value = inside(row + 6, h, w) ? 0.f : widen(x[i]);
    if (inside(row + 2, h, w)) {
        const int partner = (int)row[0];
        const float *theirs = rows + partner * FIELDS;
        const float other = inside(theirs + 6, h, w)
            ? 0.f : widen(x[partner * pixels * channels + within]);
        value = row[1] * value + (1 - row[1]) * other;
    }
    narrow(value, y[i]);
}

extern "C" __global__ void __launch_bounds__(256)
mix_f(const float *x, const float *rows, float *y, int size, int channels, int height, int width,
      int nhwc) {
    mix(x, rows, y, size, channels, height, width, nhwc);
}

extern "C" __global__ void __launch_bounds__(256)
mix_h(const Half *x, const float *rows, Half *y, int size, int channels, int height, int width,
      int nhwc) {
    mix(x, rows, y, size, channels, height, width, nhwc);
}
