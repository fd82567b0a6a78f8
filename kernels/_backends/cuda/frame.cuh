// What the CUDA eigensolvers share: the problem as the caller gives it, exact scaling, one rotation.
//
// Only the lower triangle of the caller's matrices is read. Every matrix is scaled by its own power of two, so that
// its bits depend on no neighbor, and one that is not finite is solved as zero and marked.
#pragma once

enum Output { VALUES = 0, VECTORS = 1, PROJECTION = 2 };

template <typename T>
struct Problem {
    const T *a;
    long long stride[3];  // of batch, row and column, in elements
    long long batch;
    int n;
    T *values;    // (batch, n), ascending; unused for PROJECTION
    T *matrices;  // (batch, n, n), contiguous: vectors or projections; unused for VALUES
    int *info;    // (batch): 0, -1 for a matrix that is not finite, or how many entries did not converge
    int *sweeps;  // (batch) or null: how many sweeps were needed
};

constexpr unsigned ALL_LANES = 0xffffffffu;

template <typename T>
struct Limits;
template <>
struct Limits<float> {
    static constexpr float epsilon = 1.1920928955078125e-07f, smallest_normal = 1.1754943508222875e-38f;
    static constexpr float largest = 3.4028234663852886e+38f;
    static constexpr int fraction_bits = 23, largest_exponent = 128;
};
template <>
struct Limits<double> {
    static constexpr double epsilon = 2.220446049250313e-16, smallest_normal = 2.2250738585072014e-308;
    static constexpr double largest = 1.7976931348623157e+308;
    static constexpr int fraction_bits = 52, largest_exponent = 1024;
};

// By the bits: library functions for powers of two need not be exact, or not at the ends of the range.
__device__ inline float power_of_two(float, int k) { return __int_as_float((k + 127) << 23); }
__device__ inline double power_of_two(double, int k) { return __longlong_as_double((long long)(k + 1023) << 52); }
__device__ inline int exponent_bits(float x) { return (__float_as_int(x) >> 23) - 126; }
__device__ inline int exponent_bits(double x) { return (int)(__double_as_longlong(x) >> 52) - 1022; }

// k with 2^-k x in [1/2, 1), for finite x > 0, also subnormal; 0 for x = 0.
template <typename T>
__device__ inline int exponent_of(T x) {
    const bool subnormal = x < Limits<T>::smallest_normal;
    const int k = exponent_bits(subnormal ? x * (1 / Limits<T>::epsilon) : x);
    return x > 0 ? k - (subnormal ? Limits<T>::fraction_bits : 0) : 0;
}

// 2^k itself may leave the range although x 2^k does not: two halves.
template <typename T>
__device__ inline T times_power_of_two(T x, int k) {
    const int half = k >> 1;
    return x * power_of_two(x, half) * power_of_two(x, k - half);
}

template <typename T>
__device__ inline T infinity() {
    return power_of_two(T(0), Limits<T>::largest_exponent);
}
template <typename T>
__device__ inline T not_a_number() {
    return infinity<T>() - infinity<T>();
}

// |x|, or infinity for what is not finite: a maximum that ignored NaN would hide it.
template <typename T>
__device__ inline T magnitude_or_infinity(T x) {
    return fabs(x) <= Limits<T>::largest ? fabs(x) : infinity<T>();
}

// Element (i, j) of a matrix, from the lower triangle.
template <typename T>
__device__ inline T load_symmetric(const Problem<T> &problem, long long matrix, int i, int j) {
    const int row = i > j ? i : j, column = i > j ? j : i;
    return problem.a[matrix * problem.stride[0] + row * problem.stride[1] + column * problem.stride[2]];
}

// 1 / sqrt(x). The hardware's estimate errs by more than a rounding, which hundreds of rotations would add up to
// vectors that are not of unit length: one Newton step.
__device__ inline float reciprocal_root(float x) {
    const float y = rsqrtf(x);
    return fmaf(0.5f * y, fmaf(-x * y, y, 1.0f), y);
}
__device__ inline double reciprocal_root(double x) {
    const double y = rsqrt(x);
    return fma(0.5 * y, fma(-x * y, y, 1.0), y);
}

template <typename T>
struct Rotation {
    T c, s;  // the columns become c low - s high and s low + c high
    T low, high;
};

// The rotation that makes the pair [low, off; off, high] diagonal (Golub and Van Loan, Matrix Computations, 4th ed.,
// section 8.5.2), with the smaller value first: without this order, clusters of equal values keep Jacobi sweeps
// exchanging them. |off| <= negligible counts as zero: its square would vanish, and then 0 / 0 is not a tangent.
template <typename T>
__device__ inline Rotation<T> diagonalize_pair(T low, T high, T off, T negligible) {
    const T h = high - low, b = fabs(off) <= negligible ? T(0) : 2 * off;
    const T quotient = b / (fabs(h) + sqrt(h * h + b * b));
    const T t = b == 0 ? T(0) : (h < 0 ? -quotient : quotient);
    const T c = reciprocal_root(1 + t * t), s = t * c, x = low - t * (b / 2), y = high + t * (b / 2);
    if (h < 0) return {-s, c, y, x};
    return {c, s, x, y};
}

// The first entry that is within 2^-10 of the largest shall be positive; the slack decides ties alike everywhere.
template <typename T>
__device__ inline T pivot_bound(T largest) {
    return T(1 - 1.0 / 1024) * largest;
}
