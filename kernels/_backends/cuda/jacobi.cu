// Jacobi's method for many symmetric matrices of size n <= 32, in registers.
//
// n <= 3: one matrix per thread, rotations in cyclic order; memory bandwidth is the limit, and a thread needs no
//   shuffles. The results leave through shared memory, so that neighboring threads write neighboring addresses.
// n <= 32: LANES = N lanes per matrix, N the next power of two; lane j holds column j of the matrix and of the vectors.
//   Step r = 1, ..., N-1 of a sweep rotates the N/2 disjoint pairs (j, j xor r) at once, a parallel ordering like that
//   of Brent and Luk (1985), whose partner is one butterfly shuffle away.
//
// Skewed storage: register p of lane j holds row (p xor j) of column j. Then the diagonal is register 0, the entry
// that step r annihilates is register r, the rows of a pair are registers p and p xor r, and the rotation of row
// p xor j is that of lane j xor p: every register index is a constant and every shuffle a butterfly.
#include "frame.cuh"

[[maybe_unused]] constexpr int SWEEPS = 30;
constexpr int JACOBI_THREADS = 128;

template <int N, typename T>
__device__ inline T sum_over_lanes(T x) {
#pragma unroll
    for (int r = N / 2; r >= 1; r /= 2) x += __shfl_xor_sync(ALL_LANES, x, r);
    return x;
}

template <int N, typename T>
__device__ inline T maximum_over_lanes(T x) {
#pragma unroll
    for (int r = N / 2; r >= 1; r /= 2) {
        const T other = __shfl_xor_sync(ALL_LANES, x, r);
        x = other > x ? other : x;
    }
    return x;
}

// Register i takes the place of register (i xor lane), both ways: an exchange per bit, with constant indices.
template <int N, typename T>
__device__ inline void skew(T (&x)[N], int lane) {
#pragma unroll
    for (int bit = 1; bit < N; bit *= 2) {
        const bool swap = lane & bit;
#pragma unroll
        for (int i = 0; i < N; ++i)
            if (!(i & bit)) {
                const T lower = x[i], upper = x[i | bit];
                x[i] = swap ? upper : lower;
                x[i | bit] = swap ? lower : upper;
            }
    }
}

// All steps of a sweep. A lane whose matrix is `done` turns by nothing: what it holds must not depend on how long
// the other matrices of its warp need.
template <int N, int OUTPUT, typename T>
__device__ inline void sweep_pairs(T (&a)[N], T (&v)[N], int lane, T negligible, bool done) {
#pragma unroll
    for (int r = 1; r < N; ++r) {
        const bool is_low = lane < (lane ^ r);
        const T mine = a[0], theirs = __shfl_xor_sync(ALL_LANES, mine, r);
        // The two copies of the entry differ by roundings, and two different rotations are no rotation: take one.
        const T copy = __shfl_xor_sync(ALL_LANES, a[r], r), off = is_low ? a[r] : copy;
        const Rotation<T> pair =
            diagonalize_pair(is_low ? mine : theirs, is_low ? theirs : mine, off, negligible);
        const T c = done ? T(1) : pair.c, s = done ? T(0) : (is_low ? -pair.s : pair.s);
#pragma unroll
        for (int p = 0; p < N; ++p) {
            const int q = p ^ r;
            if (p > q) continue;
            // Columns, with the partner's, where register q holds the row that register p holds here ...
            const T from_p = __shfl_xor_sync(ALL_LANES, a[q], r), from_q = __shfl_xor_sync(ALL_LANES, a[p], r);
            const T x = c * a[p] + s * from_p, y = c * a[q] + s * from_q;
            // ... and then rows, with the rotation of the lane whose column has their number.
            const T row_c = p == 0 ? c : __shfl_xor_sync(ALL_LANES, c, p);
            const T row_s = p == 0 ? s : __shfl_xor_sync(ALL_LANES, s, p);
            a[p] = row_c * x + row_s * y;
            a[q] = row_c * y - row_s * x;
        }
#pragma unroll
        for (int p = 0; p < N && OUTPUT != VALUES; ++p) {  // apart: interleaved, both need more registers than exist
            const int q = p ^ r;
            if (p > q) continue;
            const T from_p = __shfl_xor_sync(ALL_LANES, v[q], r), from_q = __shfl_xor_sync(ALL_LANES, v[p], r);
            v[p] = c * v[p] + s * from_p;
            v[q] = c * v[q] + s * from_q;
        }
        // Zero by construction; what rounding left there would keep the sum of squares from its bound.
        if (!done) a[r] = 0;
    }
}

template <int N, typename T>
__device__ inline void write_vectors(const Problem<T> &problem, long long matrix, T (&v)[N], int lane, int rank,
                                     bool inside, bool finite) {
    skew<N>(v, lane);  // now register i is row i, and a row goes out in one piece
    T largest = 0, pivot = 0;
#pragma unroll
    for (int i = 0; i < N; ++i) largest = fabs(v[i]) > largest ? fabs(v[i]) : largest;
#pragma unroll
    for (int i = N - 1; i >= 0; --i) pivot = fabs(v[i]) >= pivot_bound(largest) ? v[i] : pivot;
    T *out = problem.matrices + matrix * problem.n * problem.n + rank;
#pragma unroll
    for (int i = 0; i < N; ++i)  // adding 0 makes a negative zero positive, whose sign the neighbors' sweeps decide
        if (inside && i < problem.n)
            out[i * problem.n] = finite ? (pivot < 0 ? -v[i] : v[i]) + T(0) : not_a_number<T>();
}

// P = X X' with X = V_+ sqrt(L_+), or A + Y Y' with Y = V_- sqrt(-L_-), by the smaller side of the spectrum; the
// vectors get no further than shared memory. Lanes i and j add the same products in the same order, so that P is
// exactly symmetric.
template <int N, typename T>
__device__ inline void write_projection(const Problem<T> &problem, long long matrix, T value, T (&v)[N], int lane,
                                        bool inside, bool finite, int k) {
    extern __shared__ double shared_memory[];
    constexpr int LD = N + 1;  // odd
    T *columns = (T *)shared_memory + threadIdx.x / N * (N * LD);
    const T sign = inside ? T(value > 0) - T(value < 0) : T(0);
    const bool by_positive = sum_over_lanes<N>(sign) <= 0;
    const T side = by_positive ? value : -value, weight = inside && side > 0 ? sqrt(side) : T(0);
    skew<N>(v, lane);
#pragma unroll
    for (int i = 0; i < N; ++i) columns[i * LD + lane] = v[i] * weight;
    __syncwarp(ALL_LANES);
    T row[N];  // of this lane's number
#pragma unroll
    for (int m = 0; m < N; ++m) row[m] = columns[lane * LD + m];
    T *out = problem.matrices + matrix * problem.n * problem.n + lane;
    // A loop, not unrolled: the addresses of all rows of A at once would need more registers than there are.
#pragma unroll 1
    for (int i = 0; i < problem.n && inside; ++i) {
        T even = 0, odd = 0;
#pragma unroll
        for (int m = 0; m < N; m += 2) {
            even += row[m] * columns[i * LD + m];
            odd += row[m + 1] * columns[i * LD + m + 1];
        }
        T entry = even + odd;
        if (!by_positive && finite) entry += times_power_of_two(load_symmetric(problem, matrix, i, lane), -k);
        out[i * problem.n] = finite ? times_power_of_two(entry, k) + T(0) : not_a_number<T>();
    }
}

template <typename T, int N, int OUTPUT>
__device__ inline void jacobi_in_lanes(const Problem<T> &problem) {
    const int n = problem.n, lane = threadIdx.x % N;
    const long long matrix = ((long long)blockIdx.x * blockDim.x + threadIdx.x) / N;
    const bool inside = matrix < problem.batch && lane < n;
    T a[N], v[N], largest = 0, norm = 0;
#pragma unroll
    for (int i = 0; i < N; ++i) {
        a[i] = inside && i < n ? load_symmetric(problem, matrix, i, lane) : T(0);
        const T size = magnitude_or_infinity(a[i]);
        largest = size > largest ? size : largest;
    }
    largest = maximum_over_lanes<N>(largest);
    const bool finite = largest <= Limits<T>::largest;
    const int k = finite ? exponent_of(largest) : 0;
#pragma unroll
    for (int i = 0; i < N; ++i) {
        a[i] = finite ? times_power_of_two(a[i], -k) : T(0);
        norm += a[i] * a[i];
        if (i == lane && i >= n) a[i] = 4 * N;  // above every eigenvalue of the scaled matrix: sorts last, turns never
        v[i] = i == 0 ? T(1) : T(0);            // the identity, skewed
    }
    const T epsilon = Limits<T>::epsilon, bound = epsilon * epsilon * sum_over_lanes<N>(norm);
    skew<N>(a, lane);
    bool done = false;
    int sweeps = 0;
    for (int sweep = 0; sweep <= SWEEPS; ++sweep) {
        T off = 0;
#pragma unroll
        for (int p = 1; p < N; ++p) off += a[p] * a[p];
        done |= sum_over_lanes<N>(off) <= bound;  // ||off|| <= epsilon ||A||, both in Frobenius' norm
        if (sweep == SWEEPS || __all_sync(ALL_LANES, done)) break;
        sweeps += !done;
        sweep_pairs<N, OUTPUT>(a, v, lane, epsilon * sqrt(bound), done);
    }
    const T value = a[0];
    int rank = 0;
#pragma unroll
    for (int i = 0; i < N; ++i) {
        const T other = __shfl_sync(ALL_LANES, value, i, N);
        rank += other < value || (other == value && i < lane);
    }
    T left = 0;  // entries that keep the sum of squares above its bound
#pragma unroll
    for (int p = 1; p < N; ++p) left += !done && fabs(a[p]) * N > sqrt(bound) ? T(0.5) : T(0);
    left = sum_over_lanes<N>(left);
    if (inside && lane == 0) {
        problem.info[matrix] = finite ? (done ? 0 : (left > 1 ? (int)left : 1)) : -1;
        if (problem.sweeps) problem.sweeps[matrix] = sweeps;
    }
    if (OUTPUT != PROJECTION && inside)
        problem.values[matrix * n + rank] = finite ? times_power_of_two(value, k) + T(0) : not_a_number<T>();
    if (OUTPUT == VECTORS) write_vectors<N>(problem, matrix, v, lane, rank, inside, finite);
    if (OUTPUT == PROJECTION) write_projection<N>(problem, matrix, value, v, lane, inside, finite, k);
}

// Copy what the threads of a block left in shared memory, in the order of the output, to that output.
template <typename T>
__device__ inline void copy_out(T *out, const T *tile, int per_matrix, long long first, long long batch) {
    const long long matrices = batch - first < blockDim.x ? batch - first : blockDim.x;
    for (int i = threadIdx.x; i < matrices * per_matrix; i += blockDim.x) out[first * per_matrix + i] = tile[i];
}

template <typename T, int N, int OUTPUT>
__device__ inline void jacobi_in_threads(const Problem<T> &problem) {
    extern __shared__ double shared_memory[];
    T *matrices = (T *)shared_memory + threadIdx.x * N * N;
    T *values = (T *)shared_memory + blockDim.x * N * N + threadIdx.x * N;
    const long long first = (long long)blockIdx.x * blockDim.x, matrix = first + threadIdx.x;
    const bool inside = matrix < problem.batch;
    T a[N][N], original[N][N], v[N][N], largest = 0;
#pragma unroll
    for (int i = 0; i < N; ++i)
#pragma unroll
        for (int j = 0; j <= i; ++j) {
            a[i][j] = inside ? load_symmetric(problem, matrix, i, j) : T(0);
            const T size = magnitude_or_infinity(a[i][j]);
            largest = size > largest ? size : largest;
        }
    const bool finite = largest <= Limits<T>::largest;
    const int k = finite ? exponent_of(largest) : 0;
#pragma unroll
    for (int i = 0; i < N; ++i)
#pragma unroll
        for (int j = 0; j < N; ++j) {
            v[i][j] = i == j ? T(1) : T(0);
            if (j > i) continue;
            original[i][j] = a[i][j] = finite ? times_power_of_two(a[i][j], -k) : T(0);
        }
    const T negligible = Limits<T>::epsilon * Limits<T>::epsilon;
    // One rotation is exact for n = 2; four sweeps leave nothing above rounding for n = 3, where three do not.
#pragma unroll
    for (int sweep = 0; sweep < (N == 3 ? 4 : 1); ++sweep)
#pragma unroll
        for (int p = 0; p < N - 1; ++p)
#pragma unroll
            for (int q = p + 1; q < N; ++q) {
                const Rotation<T> turn = diagonalize_pair(a[p][p], a[q][q], a[q][p], negligible);
                a[p][p] = turn.low, a[q][q] = turn.high, a[q][p] = 0;
                if (N == 3) {
                    const int o = 3 - p - q;  // the third row
                    T &low = o > p ? a[o][p] : a[p][o], &high = o > q ? a[o][q] : a[q][o];
                    const T x = low, y = high;
                    low = turn.c * x - turn.s * y;
                    high = turn.s * x + turn.c * y;
                }
#pragma unroll
                for (int i = 0; i < N; ++i) {
                    const T x = v[i][p], y = v[i][q];
                    v[i][p] = turn.c * x - turn.s * y;
                    v[i][q] = turn.s * x + turn.c * y;
                }
            }
#pragma unroll
    for (int j = 0; j < N; ++j) {
        int rank = 0;
        T size = 0, pivot = 0;
#pragma unroll
        for (int i = 0; i < N; ++i) {
            rank += a[i][i] < a[j][j] || (a[i][i] == a[j][j] && i < j);
            size = fabs(v[i][j]) > size ? fabs(v[i][j]) : size;
        }
#pragma unroll
        for (int i = N - 1; i >= 0; --i) pivot = fabs(v[i][j]) >= pivot_bound(size) ? v[i][j] : pivot;
        if (OUTPUT != PROJECTION)
            values[rank] = finite ? times_power_of_two(a[j][j], k) + T(0) : not_a_number<T>();
        if (OUTPUT == VECTORS)
#pragma unroll
            for (int i = 0; i < N; ++i)
                matrices[i * N + rank] = finite ? (pivot < 0 ? -v[i][j] : v[i][j]) + T(0) : not_a_number<T>();
    }
    if (OUTPUT == PROJECTION) {
        int balance = 0;
#pragma unroll
        for (int j = 0; j < N; ++j) balance += (a[j][j] > 0) - (a[j][j] < 0);
        const bool by_positive = balance <= 0;
#pragma unroll
        for (int i = 0; i < N; ++i)
#pragma unroll
            for (int j = 0; j <= i; ++j) {
                T sum = by_positive ? T(0) : original[i][j];
#pragma unroll
                for (int m = 0; m < N; ++m) {
                    const T side = by_positive ? a[m][m] : -a[m][m];
                    if (side > 0) sum += side * v[i][m] * v[j][m];
                }
                matrices[i * N + j] = matrices[j * N + i] =
                    finite ? times_power_of_two(sum, k) + T(0) : not_a_number<T>();
            }
    }
    if (inside) {
        problem.info[matrix] = finite ? 0 : -1;
        if (problem.sweeps) problem.sweeps[matrix] = N == 3 ? 4 : N - 1;
    }
    __syncthreads();
    if (OUTPUT != PROJECTION)
        copy_out(problem.values, (T *)shared_memory + blockDim.x * N * N, N, first, problem.batch);
    if (OUTPUT != VALUES) copy_out(problem.matrices, (T *)shared_memory, N * N, first, problem.batch);
}

template <typename T, int N, int OUTPUT>
__device__ inline void jacobi(const Problem<T> &problem) {
    if constexpr (N <= 3)
        jacobi_in_threads<T, N, OUTPUT>(problem);
    else
        jacobi_in_lanes<T, N, OUTPUT>(problem);
}

#ifdef SCALAR
extern "C" __global__ void __launch_bounds__(JACOBI_THREADS, 1)
    solve(const SCALAR *a, long long stride_batch, long long stride_row, long long stride_column, long long batch,
          long long n, SCALAR *values, SCALAR *matrices, int *info, int *sweeps) {
    jacobi<SCALAR, LANES, RESULT>(
        {a, {stride_batch, stride_row, stride_column}, batch, (int)n, values, matrices, info, sweeps});
}
#endif
