/* sums[r] = weighted' (row r of the eigenvectors). */
static inline __attribute__((always_inline)) void inner_products(
    int rows, int n, int ld, const vec *weighted, const vec *q, vec *sums) {
    vec sum[4];
    for (int r = 0; r < rows; ++r) sum[r] = all_lanes(0);
    for (int i = 0; i < n; ++i)
        for (int r = 0; r < rows; ++r) sum[r] = multiply_add(weighted[i], q[r * ld + i], sum[r]);
    for (int r = 0; r < rows; ++r) sums[r] = sum[r];
}

/* The nearest positive semidefinite matrix P: the sum of lambda v v' over the positive eigenvalues, or A plus the sum of
 * |lambda| v v' over the negative ones, whichever are fewer (Higham 1988). One triangle is computed and mirrored. */
static void project(int n, int ld, int u, const workspace *x, const problem *p, long first, int count) {
    const vec zero = all_lanes(0), nan = all_lanes(NAN);
    vec *weight = x->work, *weighted = x->work + n, *row = x->work + 2 * n;
    vec excess = zero; /* of positive over other eigenvalues */
    for (int i = 0; i < n; ++i) excess += choose(x->d[i * U + u] > zero, all_lanes(1), all_lanes(-1));
    ivec complement = excess > zero;
    for (int i = 0; i < n; ++i) {
        vec side = choose(complement, -x->d[i * U + u], x->d[i * U + u]);
        weight[i] = where(side > zero, side) * x->up[u][0] * x->up[u][1];
    }
    for (int k = 0; k < n; ++k) {
        const vec *q = x->a[u] + k * ld;
        for (int i = 0; i < n; ++i) weighted[i] = weight[i] * q[i];
        int l = 0;
        for (; l + 4 <= k + 1; l += 4) inner_products(4, n, ld, weighted, x->a[u] + l * ld, row + l);
        for (; l <= k; ++l) inner_products(1, n, ld, weighted, x->a[u] + l * ld, row + l);
        for (l = 0; l <= k; ++l) row[l] = choose(x->broken[u], nan, row[l]);
        const REAL *entries = (const REAL *)row;
        for (int q = 0; q < count; ++q) {
            const REAL *source = p->a + (first + q) * p->stride[0] + k * p->stride[1];
            REAL *result = p->projection + (first + q) * n * n, *last_row = result + k * n;
            if (complement[q])
                for (l = 0; l <= k; ++l) last_row[l] = source[l * p->stride[2]] + entries[l * W + q];
            else
                for (l = 0; l <= k; ++l) last_row[l] = entries[l * W + q];
            for (l = 0; l < k; ++l) result[l * n + k] = last_row[l];
        }
    }
    ivec left = x->broken[u];
    for (int i = 0; i < n - 1; ++i) left -= x->e[i * U + u] != zero;
    for (int q = 0; q < count; ++q) p->info[first + q] = (int32_t)left[q];
}
