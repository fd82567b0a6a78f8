/* Householder tridiagonalization (Golub and Van Loan, Matrix Computations, 4th ed., algorithm 8.3.1), lower triangle.
 * Every decision is a mask: no lane's bits depend on another lane. */

#define ROWS 2 /* rows of the matrix that one pass of the tridiagonalization holds: as many as fill the registers */

/* H = I - t v v', v[0] = 1, with H x = beta e_0: overwrites x by v, returns beta. A tail that is negligible beside
 * the scaled matrix is dropped (t = 0): reflecting on rounding errors loses orthogonality. */
static vec reflector(int count, vec *x, vec *t) {
    vec alpha = x[0], tail = all_lanes(0);
    for (int j = 1; j < count; ++j) tail = multiply_add(x[j], x[j], tail);
    ivec skip = tail <= all_lanes(EPSILON * EPSILON * EPSILON * EPSILON);
    vec beta = -with_sign_of(square_root(multiply_add(alpha, alpha, tail)), alpha);
    vec one = all_lanes(1), inverse = one / choose(skip, one, alpha - beta);
    inverse = choose(skip, all_lanes(0), inverse);
    *t = choose(skip, all_lanes(0), (beta - alpha) / choose(skip, one, beta));
    x[0] = one;
    for (int j = 1; j < count; ++j) x[j] *= inverse;
    return choose(skip, alpha, beta);
}

/* One pass over rows first..n-1 of the lower triangle: A <- A - v y' - y v' with the previous step's v and y, and
 * p = A x with the new A. `rows` is a constant after inlining. */
static inline __attribute__((always_inline)) void update_and_multiply_rows(
    int rows, int first, int j, vec *a, int ld, const vec *v, const vec *y, const vec *x, vec *p) {
    vec sum[ROWS], vj[ROWS], yj[ROWS], xj[ROWS];
    for (int r = 0; r < rows; ++r) {
        vj[r] = v[j + r], yj[r] = y[j + r], xj[r] = x[j + r];
        sum[r] = all_lanes(0);
    }
    for (int k = first; k < j; ++k) {
        vec vk = v[k], yk = y[k], xk = x[k], pk = p[k];
        for (int r = 0; r < rows; ++r) {
            vec *element = a + (j + r) * ld + k;
            vec value = multiply_add(-vj[r], yk, multiply_add(-yj[r], vk, *element));
            *element = value;
            sum[r] = multiply_add(value, xk, sum[r]);
            pk = multiply_add(value, xj[r], pk);
        }
        p[k] = pk;
    }
    for (int r = 0; r < rows; ++r)
        for (int k = 0; k <= r; ++k) {
            vec *element = a + (j + r) * ld + j + k;
            vec value = multiply_add(-vj[r], yj[k], multiply_add(-yj[r], vj[k], *element));
            *element = value;
            sum[r] = multiply_add(value, xj[k], sum[r]);
            if (k < r) sum[k] = multiply_add(value, xj[r], sum[k]);
        }
    for (int r = 0; r < rows; ++r) p[j + r] += sum[r];
}

/* Leaves d and e (element i of group u at [i * U]) and, below the subdiagonal of column i, the tail of reflector i,
 * whose factor is t[i]. */
static void tridiagonalize(int n, int ld, vec *a, vec *d, vec *e, vec *t, vec *work) {
    vec *v = work, *y = work + n, *x = work + 2 * n, *p = work + 3 * n;
    for (int j = 0; j < n; ++j) v[j] = y[j] = all_lanes(0);
    for (int i = 0; i < n; ++i) {
        for (int j = i; j < n; ++j) {
            x[j] = multiply_add(-v[j], y[i], multiply_add(-y[j], v[i], a[j * ld + i]));
            p[j] = all_lanes(0);
        }
        d[i * U] = x[i];
        if (i == n - 1) break;
        if (i == n - 2) { /* nothing left to reflect; the last element gets the waiting update in the next round */
            e[i * U] = x[i + 1];
            t[i] = all_lanes(0);
            continue;
        }
        e[i * U] = reflector(n - 1 - i, x + i + 1, t + i);
        for (int j = i + 2; j < n; ++j) a[j * ld + i] = x[j];
        int j = i + 1;
        for (; j + ROWS <= n; j += ROWS) update_and_multiply_rows(ROWS, i + 1, j, a, ld, v, y, x, p);
        for (; j < n; ++j) update_and_multiply_rows(1, i + 1, j, a, ld, v, y, x, p);
        vec half = all_lanes(0);
        for (j = i + 1; j < n; ++j) half = multiply_add(p[j], x[j], half);
        half *= t[i] * t[i] * (REAL)0.5;
        for (j = i + 1; j < n; ++j) {
            v[j] = x[j];
            y[j] = multiply_add(-half, x[j], p[j] * t[i]);
        }
    }
}

/* Rows j.. of Q <- Q - v w', and w_next += v_next' Q with the new Q, over columns first..n-1. */
static inline __attribute__((always_inline)) void form_orthogonal_rows(
    int rows, int n, int first, int j, vec *q, int ld, const vec *v, const vec *w, const vec *v_next, vec *w_next) {
    vec vj[4], next[4];
    for (int r = 0; r < rows; ++r) vj[r] = -v[j + r], next[r] = v_next[j + r];
    for (int k = first; k < n; ++k) {
        vec wk = w[k], sum = w_next[k];
        for (int r = 0; r < rows; ++r) {
            vec *element = q + (j + r) * ld + k;
            vec value = multiply_add(vj[r], wk, *element);
            *element = value;
            sum = multiply_add(next[r], value, sum);
        }
        w_next[k] = sum;
    }
}

/* Q = H_0 H_1 ... H_{n-3} in place of the reflectors, from the last one back: H_i changes rows and columns > i only.
 * The product that H_{i-1} needs is summed while H_i is applied, in one pass over the block. */
static void form_orthogonal(int n, int ld, vec *q, const vec *t, vec *work) {
    vec *v = work, *w = work + n, *v_next = work + 2 * n, *w_next = work + 3 * n;
    const vec zero = all_lanes(0), one = all_lanes(1);
    for (int k = 0; k < n; ++k) w[k] = v[k] = zero;
    for (int i = n - 2; i >= 0; --i) { /* v, t[i] and w = v' Q are known; H_{n-2} is the identity */
        int next = i > 0;
        if (next) {
            v_next[i] = one;
            for (int j = i + 1; j < n; ++j) v_next[j] = q[j * ld + i - 1];
        } else
            for (int j = 0; j < n; ++j) v_next[j] = zero;
        vec *row = q + (i + 1) * ld, first = v_next[i + 1], dot = zero;
        for (int k = i + 2; k < n; ++k) {
            w[k] *= t[i];
            row[k] = -w[k];
            w_next[k] = first * row[k];
            q[k * ld + i + 1] = -(t[i] * v[k]);
            dot = multiply_add(v_next[k], q[k * ld + i + 1], dot);
        }
        row[i + 1] = one - t[i];
        w_next[i + 1] = multiply_add(first, row[i + 1], dot);
        int j = i + 2;
        for (; j + 4 <= n; j += 4) form_orthogonal_rows(4, n, i + 2, j, q, ld, v, w, v_next, w_next);
        for (; j < n; ++j) form_orthogonal_rows(1, n, i + 2, j, q, ld, v, w, v_next, w_next);
        vec *swap = v;
        v = v_next, v_next = swap;
        swap = w, w = w_next, w_next = swap;
    }
    q[0] = one;
    for (int k = 1; k < n; ++k) q[k] = q[k * ld] = zero;
}
