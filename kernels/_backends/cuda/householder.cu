// Householder tridiagonalization and implicit QL for symmetric matrices of size n <= 128, meant for n > 32,
// one block of threads per matrix, everything in shared memory (Golub and Van Loan, Matrix Computations, 4th ed.,
// algorithms 8.3.1 and 8.3.3, the latter run from the bottom up).
//
// Element (i, j) stands at i * ld + j with ld odd: neighboring threads meet different banks along rows and along
// columns. The matrix holds both triangles; its reflectors are kept in its columns, and the orthogonal factor
// overwrites them, so that one array is enough.
//
// With R = ceil(n / 32), the block has 2 R warps. Thread (part, column) owns the rows of its column whose number is
// congruent to part modulo 2: what it updates, nobody else writes.
#include "frame.cuh"

constexpr int PARTS = 2;
constexpr int HOUSEHOLDER_THREADS = 256;

template <typename T>
struct Workspace {
    T *a;            // (n, ld)
    T *d, *e;        // the tridiagonal matrix
    T *factor;       // reflector i is I - factor[i] u u', u below the diagonal of column i
    T *y;            // the second vector of the rank-2 update; later the signs of the columns
    T *partial;      // 2 buffers of (PARTS, n) sums; later 2 buffers of (cosines, sines)
    T *maxima;       // one per warp
    int *window;     // [low, high] of the rotations in either buffer, low < 0 for none; then unconverged, sweeps
    int *order;      // column of the i-th value; aliases `factor`
    int n, ld;
};

// Same arithmetic as in `shared_bytes` of householder.py.
template <typename T>
__device__ inline Workspace<T> lay_out(int n) {
    extern __shared__ double shared_memory[];
    Workspace<T> w;
    w.n = n, w.ld = n | 1;
    w.a = (T *)shared_memory;
    w.d = w.a + n * w.ld;
    w.e = w.d + n;
    w.factor = w.e + n;
    w.y = w.factor + n;
    w.partial = w.y + n;
    w.maxima = w.partial + 2 * PARTS * n;
    w.window = (int *)(w.maxima + HOUSEHOLDER_THREADS / 32);
    w.order = (int *)w.factor;
    return w;
}

// Every warp computes such sums alike: cheaper than a barrier to hand one around.
template <typename T>
__device__ inline T sum_over_warp(T x) {
    for (int r = 16; r >= 1; r /= 2) x += __shfl_xor_sync(ALL_LANES, x, r);
    return x;
}

// The largest magnitude of the lower triangle, or infinity; leaves both triangles in shared memory.
template <typename T>
__device__ inline T load_matrix(const Problem<T> &problem, long long matrix, const Workspace<T> &w) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
    // Lanes run along whichever axis is closer together in memory.
    const bool along_rows = problem.stride[1] < problem.stride[2];
    T largest = 0;
    for (int outer = warp; outer < w.n; outer += warps)
        for (int inner = lane; inner < w.n; inner += 32) {
            const int i = along_rows ? inner : outer, j = along_rows ? outer : inner;
            if (i < j) continue;
            const T x = load_symmetric(problem, matrix, i, j), size = magnitude_or_infinity(x);
            w.a[i * w.ld + j] = w.a[j * w.ld + i] = x;
            largest = size > largest ? size : largest;
        }
    for (int r = 16; r >= 1; r /= 2) {
        const T other = __shfl_xor_sync(ALL_LANES, largest, r);
        largest = other > largest ? other : largest;
    }
    if (lane == 0) w.maxima[warp] = largest;
    __syncthreads();
    for (int i = 0; i < warps; ++i) largest = w.maxima[i] > largest ? w.maxima[i] : largest;
    return largest;
}

template <typename T>
__device__ inline void tridiagonalize(const Workspace<T> &w) {
    const int n = w.n, ld = w.ld, lane = threadIdx.x % 32, rows = (n + 31) / 32;
    const int part = threadIdx.x / (32 * rows), column = threadIdx.x % (32 * rows);
    const T epsilon = Limits<T>::epsilon;
    for (int i = 0; i < n - 2; ++i) {
        const T alpha = w.a[(i + 1) * ld + i];
        T tail = 0;
        for (int j = i + 2 + lane; j < n; j += 32) tail += w.a[j * ld + i] * w.a[j * ld + i];
        tail = sum_over_warp(tail);
        if (tail <= epsilon * epsilon * epsilon * epsilon) {
            // Negligible beside the scaled matrix: a reflector of rounding errors would not be orthogonal.
            if (threadIdx.x == 0) w.d[i] = w.a[i * ld + i], w.e[i] = alpha, w.factor[i] = 0;
            continue;
        }
        const T root = sqrt(alpha * alpha + tail), beta = alpha > 0 ? -root : root, first = alpha - beta;
        const T factor = -1 / (beta * first);  // 2 / u'u for u = x - beta e_1
        // p = A u over the owned rows; the columns at i + 1 and beyond are symmetric, so this is also u' A.
        if (column > i && column < n) {
            T sum = 0;
            for (int j = i + 1 + ((i + 1 + part) & 1); j < n; j += PARTS)
                sum += w.a[j * ld + column] * (j == i + 1 ? first : w.a[j * ld + i]);
            w.partial[part * n + column] = sum;
        }
        __syncthreads();
        T dot = 0;
        for (int j = i + 1 + lane; j < n; j += 32)
            dot += (w.partial[j] + w.partial[n + j]) * (j == i + 1 ? first : w.a[j * ld + i]);
        const T half = factor * (factor * sum_over_warp(dot)) / 2;  // the square of the factor may overflow
        if (part == 0 && column > i && column < n)
            w.y[column] = factor * (w.partial[column] + w.partial[n + column])
                          - half * (column == i + 1 ? first : w.a[column * ld + i]);
        if (threadIdx.x == 0) w.d[i] = w.a[i * ld + i], w.e[i] = beta, w.factor[i] = factor;
        __syncthreads();
        if (column > i && column < n) {
            const T u_column = column == i + 1 ? first : w.a[column * ld + i], y_column = w.y[column];
            for (int j = i + 1 + ((i + 1 + part) & 1); j < n; j += PARTS) {
                const T u = j == i + 1 ? first : w.a[j * ld + i];
                w.a[j * ld + column] -= u * y_column + w.y[j] * u_column;
            }
        }
        __syncthreads();
        // Nobody reads this entry again before the next barrier, and column i is complete with it.
        if (threadIdx.x == 0) w.a[(i + 1) * ld + i] = first;
    }
    if (threadIdx.x == 0) {
        if (n > 1) w.d[n - 2] = w.a[(n - 2) * ld + n - 2], w.e[n - 2] = w.a[(n - 1) * ld + n - 2];
        w.d[n - 1] = w.a[(n - 1) * ld + n - 1];
    }
    __syncthreads();
}

// Q = H_0 ... H_{n-3} in place of the reflectors, from the last one back: H_i changes rows and columns > i only, and
// row and column i + 1 of what it is applied to are those of the identity. One barrier per reflector.
template <typename T>
__device__ inline void form_orthogonal(const Workspace<T> &w) {
    const int n = w.n, ld = w.ld, rows = (n + 31) / 32;
    const int part = threadIdx.x / (32 * rows), column = threadIdx.x % (32 * rows);
    if (column == n - 1 && part == ((n - 1) & 1)) w.a[(n - 1) * ld + n - 1] = 1;
    for (int i = n - 3; i >= 0; --i) {
        T *sums = w.partial + (i & 1) * PARTS * n;
        const bool owns = column > i && column < n, is_unit = column == i + 1;
        const int start = i + 1 + ((i + 1 + part) & 1);
        if (owns) {
            T sum = is_unit && part == 0 ? w.a[(i + 1) * ld + i] : T(0);
            if (!is_unit)
                for (int j = start; j < n; j += PARTS)
                    if (j > i + 1) sum += w.a[j * ld + i] * w.a[j * ld + column];
            sums[part * n + column] = sum;
        }
        __syncthreads();
        if (owns) {
            const T product = w.factor[i] * (sums[column] + sums[n + column]);
            for (int j = start; j < n; j += PARTS) {
                const T old = is_unit || j == i + 1 ? T(is_unit && j == i + 1) : w.a[j * ld + column];
                w.a[j * ld + column] = old - w.a[j * ld + i] * product;
            }
        }
    }
    __syncthreads();
    for (int j = threadIdx.x; j < n; j += blockDim.x) w.a[j] = w.a[j * ld] = T(j == 0);
    __syncthreads();
}

// One warp: the first block [low, high] that is not diagonal, or low = -1. Entries that are negligible become zero,
// relative to their neighbors or below epsilon^2 on the scale of the matrix, far above where squares vanish and the
// iteration would stall.
template <typename T>
__device__ inline int find_window(const Workspace<T> &w, int &high) {
    const int n = w.n, lane = threadIdx.x % 32;
    const T epsilon = Limits<T>::epsilon;
    int low = -1;
    high = -1;
    for (int base = 0; base < n && high < 0; base += 32) {
        const int i = base + lane;
        bool large = false;
        if (i < n - 1) {
            large = fabs(w.e[i]) > epsilon / 2 * (fabs(w.d[i]) + fabs(w.d[i + 1])) + epsilon * epsilon;
            if (!large) w.e[i] = 0;
        }
        const unsigned mask = __ballot_sync(ALL_LANES, large);
        unsigned ends = ~mask;
        if (low < 0) {
            if (!mask) continue;
            low = base + __ffs((int)mask) - 1;
            ends &= ALL_LANES << (low - base);
        }
        if (ends) high = base + __ffs((int)ends) - 1;
    }
    if (low >= 0 && (high < 0 || high > n - 1)) high = n - 1;
    __syncwarp(ALL_LANES);
    return low;
}

// One thread: an implicit QL sweep with Wilkinson's shift over [low, high]; rotation i turns columns i and i + 1.
template <typename T>
__device__ inline void sweep_window(const Workspace<T> &w, int low, int high, T *cosines, T *sines) {
    T *d = w.d, *e = w.e;
    const T slope = (d[low + 1] - d[low]) / (2 * e[low]), root = sqrt(slope * slope + 1);
    T g = d[high] - d[low] + e[low] / (slope + (slope < 0 ? -root : root));
    T s = 1, c = 1, p = 0, below = d[high];
    for (int i = high - 1; i >= low; --i) {
        const T f = s * e[i], b = c * e[i], here = d[i], square = f * f + g * g;
        const bool vanishes = square <= 10 * Limits<T>::smallest_normal;
        const T inverse = reciprocal_root(vanishes ? T(1) : square);
        s = vanishes ? T(0) : f * inverse;
        c = vanishes ? T(1) : g * inverse;
        if (i + 1 < high) e[i + 1] = vanishes ? T(0) : square * inverse;
        const T z = below - p, y = (here - z) * s + 2 * c * b;
        p = s * y;
        d[i + 1] = z + p;
        g = c * y - b;
        cosines[i] = c;
        sines[i] = s;
        below = here;
    }
    d[low] = below - p;
    e[low] = g;
}

// A row of Q per thread, through a whole sweep.
template <typename T>
__device__ inline void rotate_row(T *row, int low, int high, const T *cosines, const T *sines) {
    T carried = row[high];
    for (int i = high - 1; i >= low; --i) {
        const T x = row[i], c = cosines[i], s = sines[i];
        row[i + 1] = s * x + c * carried;
        carried = c * x - s * carried;
    }
    row[low] = carried;
}

// The first warp computes the rotations of one sweep while the others apply those of the sweep before: two buffers,
// one barrier per sweep.
template <typename T, bool WITH_VECTORS>
__device__ inline void iterate(const Workspace<T> &w) {
    const int n = w.n, lane = threadIdx.x % 32;
    const bool leads = threadIdx.x < 32;
    for (int sweep = 0;; ++sweep) {
        int *window = w.window + 2 * (sweep & 1);
        T *cosines = w.partial + (sweep & 1) * PARTS * n;
        if (leads) {
            int high = -1, low = sweep < 30 * n ? find_window(w, high) : -1;
            if (lane == 0) {
                window[0] = low, window[1] = high;
                if (low >= 0) sweep_window(w, low, high, cosines, cosines + n);
            }
            __syncwarp(ALL_LANES);
        } else if (WITH_VECTORS && sweep > 0) {
            const int *last = w.window + 2 * (~sweep & 1);
            const T *applied = w.partial + (~sweep & 1) * PARTS * n;
            for (int row = threadIdx.x - 32; row < n; row += blockDim.x - 32)
                rotate_row(w.a + row * w.ld, last[0], last[1], applied, applied + n);
        }
        if (WITH_VECTORS) __syncthreads();
        if ((WITH_VECTORS || leads) && window[0] >= 0) continue;
        if (threadIdx.x == 0) {
            int left = 0;
            if (sweep >= 30 * n)
                for (int i = 0; i < n - 1; ++i) left += w.e[i] != 0;
            w.window[4] = left, w.window[5] = sweep;
        }
        break;
    }
    __syncthreads();
}

// Values by rank; also which column belongs to each, and the sign that makes its pivot positive.
template <typename T, bool WITH_VECTORS>
__device__ inline void sort_columns(const Workspace<T> &w, T *values, int k) {
    const int n = w.n;
    for (int j = threadIdx.x; j < n; j += blockDim.x) {
        int rank = 0;
        for (int i = 0; i < n; ++i) rank += w.d[i] < w.d[j] || (w.d[i] == w.d[j] && i < j);
        if (values) values[rank] = times_power_of_two(w.d[j], k) + T(0);
        w.order[rank] = j;
        if (!WITH_VECTORS) continue;
        T largest = 0, pivot = 0;
        for (int i = 0; i < n; ++i) largest = fabs(w.a[i * w.ld + j]) > largest ? fabs(w.a[i * w.ld + j]) : largest;
        for (int i = n - 1; i >= 0; --i) {
            const T x = w.a[i * w.ld + j];
            pivot = fabs(x) >= pivot_bound(largest) ? x : pivot;
        }
        w.y[j] = pivot < 0 ? T(-1) : T(1);
    }
    __syncthreads();
}

template <typename T>
__device__ inline void write_vectors(const Workspace<T> &w, T *out) {
    const int n = w.n, warps = blockDim.x / 32;
    for (int i = threadIdx.x / 32; i < n; i += warps)
        for (int rank = threadIdx.x % 32; rank < n; rank += 32) {
            const int j = w.order[rank];
            out[i * n + rank] = w.y[j] * w.a[i * w.ld + j] + T(0);
        }
}

// P = X X' with X = V_+ sqrt(L_+), or A + Y Y' with Y = V_- sqrt(-L_-), by the smaller side, whose columns come first
// or last in the order. The lower triangle is computed and written twice, so that P is exactly symmetric.
template <typename T>
__device__ inline void write_projection(const Workspace<T> &w, const Problem<T> &problem, long long matrix, int k) {
    const int n = w.n, warps = blockDim.x / 32;
    int positive = 0, negative = 0;
    for (int j = 0; j < n; ++j) positive += w.d[j] > 0, negative += w.d[j] < 0;
    const bool by_positive = positive <= negative;
    const int begin = by_positive ? n - positive : 0, end = by_positive ? n : negative;
    T *out = problem.matrices + matrix * n * n;
    for (int i = threadIdx.x / 32; i < n; i += warps)
        for (int j = threadIdx.x % 32; j <= i; j += 32) {
            T sum = 0;
            for (int rank = begin; rank < end; ++rank) {
                const int m = w.order[rank];
                sum += fabs(w.d[m]) * w.a[i * w.ld + m] * w.a[j * w.ld + m];
            }
            if (!by_positive) sum += times_power_of_two(load_symmetric(problem, matrix, i, j), -k);
            out[i * n + j] = out[j * n + i] = times_power_of_two(sum, k) + T(0);
        }
}

template <typename T, int OUTPUT>
__device__ inline void householder(const Problem<T> &problem) {
    const int n = problem.n;
    const Workspace<T> w = lay_out<T>(n);
    const long long matrix = blockIdx.x;
    T *values = OUTPUT == PROJECTION ? nullptr : problem.values + matrix * n;
    const T largest = load_matrix(problem, matrix, w);
    if (!(largest <= Limits<T>::largest)) {
        for (int i = threadIdx.x; i < n && values; i += blockDim.x) values[i] = not_a_number<T>();
        for (int i = threadIdx.x; i < n * n && OUTPUT != VALUES; i += blockDim.x)
            problem.matrices[matrix * n * n + i] = not_a_number<T>();
        if (threadIdx.x == 0) {
            problem.info[matrix] = -1;
            if (problem.sweeps) problem.sweeps[matrix] = 0;
        }
        return;
    }
    const int k = exponent_of(largest);
    for (int i = threadIdx.x / 32; i < n; i += blockDim.x / 32)
        for (int j = threadIdx.x % 32; j < n; j += 32)
            w.a[i * w.ld + j] = times_power_of_two(w.a[i * w.ld + j], -k);
    __syncthreads();
    tridiagonalize(w);
    if (OUTPUT != VALUES) form_orthogonal(w);
    iterate<T, OUTPUT != VALUES>(w);
    sort_columns<T, OUTPUT != VALUES>(w, values, k);
    if (OUTPUT == VECTORS) write_vectors(w, problem.matrices + matrix * n * n);
    if (OUTPUT == PROJECTION) write_projection(w, problem, matrix, k);
    if (threadIdx.x == 0) {
        problem.info[matrix] = w.window[4];
        if (problem.sweeps) problem.sweeps[matrix] = w.window[5];
    }
}

#ifdef SCALAR
extern "C" __global__ void __launch_bounds__(HOUSEHOLDER_THREADS, 1)
    solve(const SCALAR *a, long long stride_batch, long long stride_row, long long stride_column, long long batch,
          long long n, SCALAR *values, SCALAR *matrices, int *info, int *sweeps) {
    householder<SCALAR, RESULT>(
        {a, {stride_batch, stride_row, stride_column}, batch, (int)n, values, matrices, info, sweeps});
}
#endif
