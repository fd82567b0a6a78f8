// Some entries of L R^T with dense L and R (rows, width): a warp per entry.

template <typename T>
struct SampledProduct {
    const int *rows;     // (entries)
    const int *columns;  // (entries)
    const T *left;       // (rows of L, width), contiguous
    const T *right;      // (rows of R, width), contiguous
    T *result;           // (entries)
    long long width, entries;
};

template <typename T>
__device__ inline void sample_entry(const SampledProduct<T> &product) {
    const long long entry = (long long)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (entry >= product.entries) return;  // a whole warp
    const T *left = product.left + product.rows[entry] * product.width;
    const T *right = product.right + product.columns[entry] * product.width;
    T sum = 0;
    for (long long j = threadIdx.x % 32; j < product.width; j += 32) sum += left[j] * right[j];
    for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, distance);
    if (threadIdx.x % 32 == 0) product.result[entry] = sum;
}

#ifdef SCALAR
extern "C" __global__ void solve(const int *rows, const int *columns, const SCALAR *left, const SCALAR *right,
                                 SCALAR *result, long long width, long long entries) {
    sample_entry<SCALAR>({rows, columns, left, right, result, width, entries});
}
#endif
