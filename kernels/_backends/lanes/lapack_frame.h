/* What LAPACK leaves to do around it. */

/* Whether the largest magnitude of every lower triangle (batch, n, n) lies between two bounds: no for NaN. */
int EXTENT(const REAL *a, int64_t batch, int64_t n, int64_t batch_stride, int64_t row_stride,
                    int64_t column_stride, double smallest, double largest) {
    for (int64_t b = 0; b < batch; ++b, a += batch_stride) {
        REAL most = 0;
        int inside = 1;
        for (int64_t i = 0; i < n; ++i) {
            const REAL *row = a + i * row_stride;
            for (int64_t j = 0; j <= i; ++j) {
                REAL size = row[j * column_stride] < 0 ? -row[j * column_stride] : row[j * column_stride];
                inside &= size < (REAL)largest;
                most = size > most ? size : most;
            }
        }
        if (!inside || !(most > (REAL)smallest)) return 0;
    }
    return 1;
}

/* Eigenvectors (batch, n, n) of LAPACK, column i of a matrix at source[i * n], as rows first, with the first of the
 * (nearly) largest entries of each column positive. */
void ORIENT(const REAL *source, int64_t batch, int64_t n, REAL *vectors) {
    enum { BLOCK = 16 }; /* columns at a time: their heads and one row of the result fit into the first cache level */
    for (int64_t b = 0; b < batch; ++b, source += n * n, vectors += n * n)
        for (int64_t first = 0; first < n; first += BLOCK) {
            int64_t count = n - first < BLOCK ? n - first : BLOCK;
            REAL sign[BLOCK];
            for (int64_t i = 0; i < count; ++i) {
                const REAL *column = source + (first + i) * n;
                REAL largest = 0;
                for (int64_t k = 0; k < n; ++k) {
                    REAL size = column[k] < 0 ? -column[k] : column[k];
                    largest = size > largest ? size : largest;
                }
                largest *= (REAL)(1 - 1.0 / 1024);
                int64_t k = 0;
                while (k < n && !(column[k] >= largest || column[k] <= -largest)) ++k;
                sign[i] = k < n && column[k] < 0 ? -1 : 1;
            }
            for (int64_t k = 0; k < n; ++k)
                for (int64_t i = 0; i < count; ++i) vectors[k * n + first + i] = sign[i] * source[(first + i) * n + k];
        }
}
