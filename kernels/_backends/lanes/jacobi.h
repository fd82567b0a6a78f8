/* n <= 3. */

/* Cyclic Jacobi: one rotation is exact for n = 2, four sweeps leave only rounding for n = 3 (three do not). Rotation
 * by Rutishauser's formulas (Golub and Van Loan, section 8.5.2). */
static void rotate_small(int n, int ld, int with_vectors, workspace *x) {
    static const int pairs[3][2] = {{0, 1}, {0, 2}, {1, 2}};
    const vec zero = all_lanes(0), one = all_lanes(1);
    vec a[U][3][3], v[U][3][3];
    for (int u = 0; u < U; ++u)
        for (int i = 0; i < n; ++i)
            for (int j = 0; j < n; ++j) {
                a[u][i][j] = x->a[u][(i > j ? i : j) * ld + (i > j ? j : i)];
                v[u][i][j] = i == j ? one : zero;
            }
    for (int step = 0; step < (n == 3 ? 12 : n - 1); ++step) {
        int p = pairs[step % 3][0], q = pairs[step % 3][1], other = 3 - p - q;
        for (int u = 0; u < U; ++u) {
            vec h = a[u][q][q] - a[u][p][p], entry = a[u][p][q];
            entry = where(magnitude(entry) > all_lanes(EPSILON * EPSILON), entry); /* its square must not vanish */
            vec b = entry + entry, root = square_root(multiply_add(h, h, b * b));
            vec t = where(entry != zero, with_sign_flipped_by(b, h) / (magnitude(h) + root));
            vec c = one / square_root(multiply_add(t, t, one)), s = t * c;
            a[u][p][p] = multiply_add(-t, entry, a[u][p][p]);
            a[u][q][q] = multiply_add(t, entry, a[u][q][q]);
            a[u][p][q] = a[u][q][p] = zero;
            if (n == 3) {
                vec first = a[u][other][p], second = a[u][other][q];
                a[u][other][p] = a[u][p][other] = multiply_add(c, first, -(s * second));
                a[u][other][q] = a[u][q][other] = multiply_add(s, first, c * second);
            }
            for (int k = 0; with_vectors && k < n; ++k) {
                vec first = v[u][k][p], second = v[u][k][q];
                v[u][k][p] = multiply_add(c, first, -(s * second));
                v[u][k][q] = multiply_add(s, first, c * second);
            }
        }
    }
    for (int u = 0; u < U; ++u)
        for (int i = 0; i < n; ++i) {
            x->d[i * U + u] = a[u][i][i];
            x->e[i * U + u] = zero;
            for (int j = 0; j < n; ++j) x->a[u][i * ld + j] = v[u][i][j];
        }
}
