/* Implicit QL with Wilkinson's shift (Golub and Van Loan, algorithms 8.3.2 and 8.3.3, run from the last row up). Lanes
 * at different stages share the instruction stream: a sweep passes over the rows of all their windows, and a lane
 * takes part where a mask says so. */

#define ROTATED_ROWS 4 /* rows of vectors that two sweeps are applied to at once: as many as fill the registers */

typedef struct {
    vec lower[U], upper[U]; /* per lane the window [L, M] of the next sweep, as numbers */
    ivec active[U];
    vec shifted[U]; /* d[M] - shift */
    int low, high;  /* the union of the windows of all lanes */
    int together;   /* whether all windows end in the same row */
} sweep;

/* The first unreduced block of each lane, with Wilkinson's shift from its leading 2 by 2 block. Returns 0 where no
 * block is left. Entries that are negligible become zero: relative to their neighbors, or below epsilon^2 on the
 * scale of the matrix, far above where a square underflows and the iteration would stall. */
static int find_windows(int n, int start, const vec *d, vec *e, sweep *w) {
    const vec zero = all_lanes(0), one = all_lanes(1);
    ivec found = (ivec)zero, reaches_end = (ivec)zero;
    for (int u = 0; u < U; ++u) {
        ivec open = (ivec)zero, active = (ivec)zero;
        vec lower = zero, upper = zero, d0 = zero, d1 = zero, e0 = one, last = zero;
        vec here = d[start * U + u], below, index = all_lanes(start);
        for (int i = start; i < n - 1; ++i, here = below, index += one) {
            vec entry = e[i * U + u];
            below = d[(i + 1) * U + u];
            vec bound = multiply_add(magnitude(here) + magnitude(below), all_lanes(EPSILON / 2),
                                     all_lanes(EPSILON * EPSILON));
            ivec large = magnitude(entry) > bound;
            e[i * U + u] = where(large, entry);
            ivec begins = large & ~active, ends = open & ~large;
            lower = choose(begins, index, lower);
            d0 = choose(begins, here, d0);
            d1 = choose(begins, below, d1);
            e0 = choose(begins, entry, e0);
            upper = choose(ends, index, upper);
            last = choose(ends, here, last);
            active |= begins;
            open = (open | begins) & ~ends;
        }
        upper = choose(open, all_lanes(n - 1), upper);
        last = choose(open, here, last);
        vec half = (d1 - d0) / (e0 + e0);
        vec root = square_root(multiply_add(half, half, one));
        w->shifted[u] = last - d0 + e0 / (half + with_sign_of(root, half));
        w->lower[u] = lower, w->upper[u] = upper, w->active[u] = active;
        reaches_end |= open;
        found |= active;
    }
    if (!any_lane(found)) return 0;
    w->low = start;
    for (ivec begun = (ivec)zero;; ++w->low) { /* rows above every window: diagonal, and they stay so */
        for (int u = 0; u < U; ++u) begun |= e[w->low * U + u] != zero;
        if (any_lane(begun)) break;
    }
    ivec ends_before = (ivec)zero;
    for (int u = 0; u < U; ++u) ends_before |= w->active[u] & (w->upper[u] < all_lanes(n - 1));
    w->together = !any_lane(ends_before);
    w->high = n - 1;
    if (!any_lane(reaches_end)) {
        w->high = 0;
        for (int u = 0; u < U; ++u)
            for (int q = 0; q < W; ++q)
                if (w->upper[u][q] > w->high) w->high = (int)w->upper[u][q];
    }
    return 1;
}

/* One QL sweep from row M up to row L of every lane's window; rotation i goes to kept[u * between + i]. Where all
 * windows end in the same row (`together`), a lane never waits for its first row; what it computes after its last
 * row, or without a window, is dropped. */
static inline __attribute__((always_inline)) void rotate_window(
    int with_vectors, int together, vec *d, vec *e, const sweep *w, shear *kept, long between) {
    const vec one = all_lanes(1), zero = all_lanes(0);
    vec g[U], s[U], c[U], p[U];
    ivec on[U];
    for (int u = 0; u < U; ++u) {
        g[u] = w->shifted[u];
        s[u] = c[u] = one;
        p[u] = zero;
        on[u] = together ? w->active[u] : (ivec)zero;
    }
    vec index = all_lanes(w->high - 1);
    for (int i = w->high - 1; i >= w->low; --i, index -= one) {
        for (int u = 0; u < U; ++u) {
            vec *di = d + i * U + u, *ei = e + i * U + u, entry = *ei, below = di[U];
            ivec inside = on[u], now = inside; /* inside: past the first rotation, so that e[i + 1] is the window's */
            if (!together) now |= w->active[u] & (w->upper[u] == index + one);
            vec f = s[u] * entry, b = c[u] * entry;
            vec square = multiply_add(g[u], g[u], f * f);
            ivec vanishes = square <= all_lanes(10 * SMALLEST_NORMAL);
            vec root = square_root(square), inverse = one / root;
            /* With the sign of g in r and in the sine, the cosine is not negative. */
            vec sine = where(~vanishes, with_sign_flipped_by(f, g[u]) * inverse);
            vec cosine = choose(vanishes, one, magnitude(g[u]) * inverse);
            if (!together || i + 1 < w->high) ei[U] = choose(inside, with_sign_flipped_by(root, g[u]), ei[U]);
            vec z = below - p[u];
            vec y = multiply_add(*di - z, sine, (cosine + cosine) * b);
            vec shift = sine * y;
            di[U] = choose(now, z + shift, below);
            p[u] = together ? shift : choose(now, shift, p[u]);
            g[u] = together ? multiply_add(cosine, y, -b) : choose(now, multiply_add(cosine, y, -b), g[u]);
            s[u] = together ? sine : choose(now, sine, s[u]);
            c[u] = together ? cosine : choose(now, cosine, c[u]);
            if (with_vectors) {
                kept[u * between + i].s = where(now, sine);
                kept[u * between + i].t = where(now, sine / (one + cosine));
            }
            ivec first = now & (w->lower[u] == index);
            *di = choose(first, *di - p[u], *di);
            *ei = choose(first, g[u], entry);
            on[u] = now & ~first;
        }
    }
}

/* Two sweeps of rotations of neighboring columns on some rows of the eigenvectors, last column first. The second
 * sweep follows one column behind the first: a column is read and written once for both. */
static inline __attribute__((always_inline)) void rotate_rows_twice(
    int rows, int low, int high, vec *q, int ld, const shear *first, const shear *second) {
    vec carried[ROTATED_ROWS], followed[ROTATED_ROWS];
    shear a = first[high - 1], b;
    for (int r = 0; r < rows; ++r) {
        vec last = q[r * ld + high];
        vec x = multiply_add(-a.t, last, q[r * ld + high - 1]);
        followed[r] = multiply_add(a.s, x, last);
        carried[r] = multiply_add(-a.t, followed[r], x);
    }
    for (int i = high - 2; i >= low; --i) {
        a = first[i], b = second[i + 1];
        for (int r = 0; r < rows; ++r) {
            vec x = multiply_add(-a.t, carried[r], q[r * ld + i]);
            vec y = multiply_add(a.s, x, carried[r]); /* column i + 1 after the first sweep */
            carried[r] = multiply_add(-a.t, y, x);
            x = multiply_add(-b.t, followed[r], y);
            y = multiply_add(b.s, x, followed[r]);
            q[r * ld + i + 2] = y;
            followed[r] = multiply_add(-b.t, y, x);
        }
    }
    b = second[low];
    for (int r = 0; r < rows; ++r) {
        vec x = multiply_add(-b.t, followed[r], carried[r]);
        vec y = multiply_add(b.s, x, followed[r]);
        q[r * ld + low + 1] = y;
        q[r * ld + low] = multiply_add(-b.t, y, x);
    }
}

/* All kept sweeps on a few rows before the next rows, so that the rows stay in the first cache level. */
static void rotate_columns(int n, int ld, vec *q, int kept, const int *low, const int *high, const shear *rotations) {
    int k = 0;
    for (; k + ROTATED_ROWS <= n; k += ROTATED_ROWS)
        for (int m = 0; m < kept; m += 2)
            rotate_rows_twice(ROTATED_ROWS, low[m], high[m], q + k * ld, ld, rotations + m * n, rotations + (m + 1) * n);
    for (; k < n; ++k)
        for (int m = 0; m < kept; m += 2)
            rotate_rows_twice(1, low[m], high[m], q + k * ld, ld, rotations + m * n, rotations + (m + 1) * n);
}

/* QL sweeps until every lane is diagonal, at most 30 n. Returns the number of sweeps. */
static int iterate(int n, int ld, int with_vectors, workspace *x) {
    int most = (int)(ROTATION_BYTES / (n * sizeof(shear))) & ~1, kept = 0, sweeps = 0, start = 0;
    most = most < 2 ? 2 : most > SWEEPS_KEPT ? SWEEPS_KEPT : most;
    const long between = (long)most * n;
    const shear identity = {all_lanes(0), all_lanes(0)};
    int low[SWEEPS_KEPT], high[SWEEPS_KEPT]; /* of each pair of sweeps, at its first place */
    sweep w;
    for (;;) {
        int going = sweeps < 30 * n && find_windows(n, start, x->d, x->e, &w);
        if (going) {
            start = w.low;
            if (!with_vectors) {
                if (w.together) rotate_window(0, 1, x->d, x->e, &w, 0, 0);
                else rotate_window(0, 0, x->d, x->e, &w, 0, 0);
                ++sweeps;
                continue;
            }
            if (w.together) rotate_window(1, 1, x->d, x->e, &w, x->rotations + kept * n, between);
            else rotate_window(1, 0, x->d, x->e, &w, x->rotations + kept * n, between);
            ++sweeps;
        } else if (kept % 2) /* the last sweep has no partner */
            w.low = w.high = low[kept - 1];
        if (going || kept % 2) {
            low[kept] = w.low, high[kept] = w.high;
            if (kept % 2) { /* a pair covers the rows of both */
                int first = kept - 1, wide_low = low[first] < w.low ? low[first] : w.low;
                int wide_high = high[first] > w.high ? high[first] : w.high;
                for (int m = first; m <= kept; ++m) {
                    for (int u = 0; u < U; ++u) {
                        shear *rotation = x->rotations + u * between + m * n;
                        for (int i = wide_low; i < low[m]; ++i) rotation[i] = identity;
                        for (int i = high[m]; i < wide_high; ++i) rotation[i] = identity;
                    }
                }
                low[first] = wide_low, high[first] = wide_high;
            }
            ++kept;
        }
        if (kept == most || !going) {
            for (int u = 0; u < U; ++u) rotate_columns(n, ld, x->a[u], kept, low, high, x->rotations + u * between);
            kept = 0;
        }
        if (!going) return sweeps;
    }
}
