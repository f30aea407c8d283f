// Losses of a chunk, and how many of its images are correct. Scores are float32 (images, classes); a
// block has 8 images, 32 threads each.

constexpr int LANES = 32;

// An image's scores, and the thread's part of them.
struct Row {
    int image, lane, images, classes;
    const float *scores;

    __device__ Row(const float *all, int images_, int classes_)
        : image(blockIdx.x * (blockDim.x / LANES) + threadIdx.x / LANES),
          lane(threadIdx.x % LANES), images(images_), classes(classes_),
          scores(all + (long long)image * classes_) {}
    __device__ bool there() const { return image < images; }

    // The largest score and its class, the first of equal ones: in the image's first thread, and
    // behind the next barrier in `most` at the first thread's place.
    __device__ int largest(float *most, int *best) const {
        float mine = 0;
        int at = classes; // none yet
        for (int c = lane; there() && c < classes; c += LANES)
            if (at == classes || scores[c] > mine) {
                mine = scores[c];
                at = c;
            }
        most[threadIdx.x] = mine;
        best[threadIdx.x] = at;
        for (int half = LANES / 2; half; half /= 2) {
            __syncthreads();
            if (lane < half) {
                int other = threadIdx.x + half, its = best[other];
                bool first = most[other] == mine && its < at;
                if (its < classes && (at == classes || most[other] > mine || first)) {
                    mine = most[threadIdx.x] = most[other];
                    at = best[threadIdx.x] = its;
                }
            }
        }
        return at;
    }

    // Sum over the image's threads: behind the next barrier at its first thread's place.
    __device__ void add_up(float value, float *sums) const {
        sums[threadIdx.x] = value;
        for (int half = LANES / 2; half; half /= 2) {
            __syncthreads();
            if (lane < half) sums[threadIdx.x] += sums[threadIdx.x + half];
        }
    }
};

// Add to `totals` a chunk's loss times its number of images, and its number of correct images.
extern "C" __global__ void __launch_bounds__(256)
tally(const float *scores, const int *labels, const float *loss, int images, int classes,
      double *totals) {
    __shared__ float most[256];
    __shared__ int best[256];
    Row row(scores, images, classes);
    int at = row.largest(most, best);
    if (thread() == 0) atomicAdd(totals, (double)*loss * images);
    if (row.lane == 0 && row.there() && at == labels[row.image])
        atomicAdd(totals + 1, 1.); // whole numbers: any order gives the same
}

// Softmax cross entropy: add to `totals` the sum of the losses and the number of correct images;
// the gradient of scores, of the sum times `scale` and `factor`.
extern "C" __global__ void __launch_bounds__(256)
cross_entropy(const float *scores, const int *labels, const double *scale, float factor,
              int images, int classes, double *totals, float *gradient) {
    __shared__ float most[256], sums[256];
    __shared__ int best[256];
    Row row(scores, images, classes);
    int at = row.largest(most, best), first = threadIdx.x - row.lane;
    __syncthreads();
    float largest = most[first], sum = 0;
    for (int c = row.lane; row.there() && c < classes; c += LANES)
        sum += expf(row.scores[c] - largest);
    row.add_up(sum, sums);
    __syncthreads();
    if (!row.there()) return;
    sum = sums[first];
    int label = labels[row.image];
    if (row.lane == 0) {
        // A double adds float32 losses exactly, so in any order, unless they differ by 2^20.
        atomicAdd(totals, (double)(logf(sum) + (largest - row.scores[label])));
        if (at == label) atomicAdd(totals + 1, 1.);
    }
    float by = *scale * factor;
    for (int c = row.lane; c < classes; c += LANES)
        gradient[(long long)row.image * classes + c] =
            (expf(row.scores[c] - largest) / sum - (c == label ? 1.f : 0.f)) * by;
}
