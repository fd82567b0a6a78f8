/* The k largest entries of every row. */

/* Reorder v so that its first k entries are the largest, and return the smallest of them (Hoare's quickselect). */
static REAL partition_largest(REAL *v, int64_t n, int64_t k) {
    int64_t low = 0, high = n - 1;
    while (low < high) {
        REAL a = v[low], b = v[low + (high - low) / 2], c = v[high];
        REAL pivot = a < b ? (b < c ? b : a < c ? c : a) : (a < c ? a : b < c ? c : b);
        int64_t i = low, j = high;
        while (i <= j) {
            while (v[i] > pivot) ++i;
            while (v[j] < pivot) --j;
            if (i <= j) {
                REAL swapped = v[i];
                v[i++] = v[j];
                v[j--] = swapped;
            }
        }
        if (k - 1 <= j) high = j;
        else if (k - 1 >= i) low = i;
        else break;
    }
    return v[k - 1];
}

/* Rows (rows, n) of contiguous entries: their k largest and the places of those, in ascending order of place; of equal
 * entries the first. The k-th largest of the maxima of several parts of a row is at most its k-th largest entry, and
 * with 4 k parts hardly less: what lies below is compared once, in vectors, and not touched again. Returns the first
 * row with NaN, or `rows`; -1 where memory was lacking. */
int64_t SELECT(const REAL *a, int64_t rows, int64_t n, int64_t k, REAL *values, int32_t *places) {
    enum { BLOCK = 32 };
    int64_t parts = n < 4 * k + BLOCK ? n : 4 * k; /* part p has the entries p, p + parts, p + 2 parts, ... */
    REAL *maxima = malloc((parts + 2 * n) * sizeof(REAL) + n * sizeof(int32_t));
    if (!maxima) return -1;
    REAL *above = maxima + parts, *sorted = above + n;
    int32_t *where = (int32_t *)(sorted + n);
    int64_t r = 0;
    for (; r < rows; ++r, a += n, values += k, places += k) {
        int broken = 0;
        for (int64_t p = 0; p < parts; ++p) broken |= (maxima[p] = a[p]) != a[p];
        for (int64_t first = parts; first < n; first += parts) {
            int64_t count = n - first < parts ? n - first : parts;
            for (int64_t p = 0; p < count; ++p) {
                REAL x = a[first + p];
                broken |= x != x;
                maxima[p] = x > maxima[p] ? x : maxima[p];
            }
        }
        if (broken) break;
        REAL floor = partition_largest(maxima, parts, k);
        int64_t held = 0;
        for (int64_t j = 0; j < n; j += BLOCK) {
            int64_t count = n - j < BLOCK ? n - j : BLOCK;
            if (count == BLOCK) {
                int any = 0;
                for (int i = 0; i < BLOCK; ++i) any |= a[j + i] >= floor;
                if (!any) continue;
            }
            for (int64_t i = j; i < j + count; ++i) {
                above[held] = a[i];
                where[held] = (int32_t)i;
                held += a[i] >= floor;
            }
        }
        for (int64_t i = 0; i < held; ++i) sorted[i] = above[i];
        floor = partition_largest(sorted, held, k);
        int64_t equal = k, found = 0;
        for (int64_t i = 0; i < k; ++i) equal -= sorted[i] > floor;
        for (int64_t i = 0; i < held && found < k; ++i)
            if (above[i] > floor || (above[i] == floor && equal-- > 0)) {
                values[found] = above[i];
                places[found++] = where[i];
            }
    }
    free(maxima);
    return r;
}
