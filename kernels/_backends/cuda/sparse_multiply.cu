// A D with a sparse matrix A in compressed rows and a dense D (columns, width): a block per row of A, whose threads
// take the columns of D, so that a row of D is read in one stretch.

template <typename T>
struct SparseProduct {
    const int *starts;   // (rows + 1): where each row begins
    const int *columns;  // (entries)
    const T *values;     // (entries)
    const T *dense;      // (columns, width), contiguous
    T *result;           // (rows, width), contiguous
    long long width;
};

template <typename T>
__device__ inline void multiply_row(const SparseProduct<T> &product) {
    const long long row = blockIdx.x, width = product.width;
    const int first = product.starts[row], last = product.starts[row + 1];
    for (long long j = threadIdx.x; j < width; j += blockDim.x) {
        T sum = 0;
        for (int i = first; i < last; ++i) sum += product.values[i] * product.dense[product.columns[i] * width + j];
        product.result[row * width + j] = sum;
    }
}

#ifdef SCALAR
extern "C" __global__ void solve(const int *starts, const int *columns, const SCALAR *values, const SCALAR *dense,
                                 SCALAR *result, long long width) {
    multiply_row<SCALAR>({starts, columns, values, dense, result, width});
}
#endif
