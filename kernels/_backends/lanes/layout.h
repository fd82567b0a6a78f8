/* Between the caller's arrays and lanes: scaling on the way in, order and signs on the way out. */

static void pack(int n, int ld, vec *a, const REAL *source, const long stride[3], int count) {
    REAL *lanes = (REAL *)a;
    for (int i = 0; i < n; ++i)
        for (int j = 0; j <= i; ++j) a[i * ld + j] = all_lanes(0);
    for (int q = 0; q < count; ++q) {
        const REAL *matrix = source + q * stride[0];
        for (int i = 0; i < n; ++i) {
            const REAL *row = matrix + i * stride[1];
            for (int j = 0; j <= i; ++j) lanes[(long)(i * ld + j) * W + q] = row[j * stride[2]];
        }
    }
}

/* 2^k in every lane, by its bits, for k in the range of normal numbers. */
static inline vec power_of_two(ivec k) { return (vec)((k + EXPONENT_BIAS) << FRACTION_BITS); }

/* Multiply each matrix by 2^-k with the largest magnitude in [1/2, 1): exact, and it lifts subnormal entries. */
static void scale(int n, int ld, vec *a, vec up[2], ivec *broken) {
    vec largest = all_lanes(0);
    ivec finite = largest == largest;
    for (int i = 0; i < n; ++i)
        for (int j = 0; j <= i; ++j) {
            vec x = magnitude(a[i * ld + j]);
            finite &= x <= all_lanes(LARGEST);
            largest = choose(x > largest, x, largest);
        }
    *broken = ~finite;
    /* The exponent by its bits; a subnormal number gets its own leading bit first. */
    ivec subnormal = largest < all_lanes(SMALLEST_NORMAL);
    vec lifted = choose(subnormal, largest * (1 / (REAL)EPSILON), largest);
    ivec k = ((ivec)lifted >> FRACTION_BITS) - (EXPONENT_BIAS - 1) - (subnormal & FRACTION_BITS);
    k &= finite & (largest > all_lanes(0));
    ivec half = k >> 1;
    up[0] = power_of_two(half);
    up[1] = power_of_two(k - half);
    vec down0 = power_of_two(-half), down1 = power_of_two(half - k);
    for (int i = 0; i < n; ++i)
        for (int j = 0; j <= i; ++j) a[i * ld + j] = where(finite, a[i * ld + j] * down0 * down1);
}

/* rank[i] = position of value i in ascending order, equal values in the order they stand in. */
static void rank_values(int n, const vec *d, ivec *rank) {
    for (int i = 0; i < n; ++i) rank[i] = (ivec)all_lanes(0);
    for (int i = 1; i < n; ++i) {
        vec di = d[i * U];
        ivec mine = rank[i];
        for (int j = 0; j < i; ++j) {
            ivec after = d[j * U] <= di; /* -1 where true */
            mine -= after;
            rank[j] += after + 1;
        }
        rank[i] = mine;
    }
}

/* +-1 that makes the first of the (nearly) largest entries of each column positive. */
static void signs(int n, int ld, const vec *q, vec *sign, vec *found) {
    for (int i = 0; i < n; ++i) sign[i] = all_lanes(0);
    for (int k = 0; k < n; ++k)
        for (int i = 0; i < n; ++i) {
            vec size = magnitude(q[k * ld + i]);
            sign[i] = choose(size > sign[i], size, sign[i]);
        }
    for (int i = 0; i < n; ++i) {
        sign[i] *= all_lanes((REAL)(1 - 1.0 / 1024));
        found[i] = all_lanes(1);
    }
    for (int k = n - 1; k >= 0; --k)
        for (int i = 0; i < n; ++i) {
            vec entry = q[k * ld + i];
            found[i] = choose(magnitude(entry) >= sign[i], entry, found[i]);
        }
    for (int i = 0; i < n; ++i) sign[i] = with_sign_of(all_lanes(1), found[i]);
}

static void unpack(int n, int ld, int u, const workspace *x, int count, REAL *values, REAL *vectors, int32_t *info) {
    vec *sign = x->work, *number = x->work + n;
    ivec *rank = (ivec *)(x->work + 2 * n);
    const vec nan = all_lanes(NAN);
    rank_values(n, x->d + u, rank);
    const INTEGER *position = (const INTEGER *)rank;
    for (int i = 0; i < n; ++i) number[i] = choose(x->broken[u], nan, x->d[i * U + u] * x->up[u][0] * x->up[u][1]);
    ivec left = x->broken[u];
    for (int i = 0; i < n - 1; ++i) left -= x->e[i * U + u] != all_lanes(0);
    const REAL *value = (const REAL *)number;
    for (int q = 0; q < count; ++q) {
        for (int i = 0; i < n; ++i) values[(long)q * n + position[i * W + q]] = value[i * W + q];
        info[q] = (int32_t)left[q];
    }
    if (!vectors) return;
    signs(n, ld, x->a[u], sign, number);
    for (int i = 0; i < n; ++i) sign[i] = choose(x->broken[u], nan, sign[i]);
    for (int k = 0; k < n; ++k) {
        for (int i = 0; i < n; ++i) number[i] = x->a[u][k * ld + i] * sign[i];
        const REAL *entry = (const REAL *)number;
        for (int q = 0; q < count; ++q) {
            REAL *row = vectors + ((long)q * n + k) * n;
            for (int i = 0; i < n; ++i) row[position[i * W + q]] = entry[i * W + q];
        }
    }
}
