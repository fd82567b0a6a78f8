/* A batch in tasks of a few groups, and threads that take them. */

static size_t workspace_bytes(int n) {
    size_t ld = n | 1;
    return sizeof(vec) * (U * n * ld + 2 * U * n + 6 * n) + sizeof(shear) * U * SWEEPS_KEPT * n + 64;
}

/* Matrices first..first+count-1 with count <= LANES. */
static void solve(problem *p, void *memory, long first, int count) {
    int n = p->n, ld = n | 1, with_vectors = p->vectors || p->projection;
    workspace x;
    vec *next = (vec *)(((uintptr_t)memory + 63) / 64 * 64);
    for (int u = 0; u < U; ++u) x.a[u] = next, next += n * ld;
    x.d = next, next += U * n;
    x.e = next, next += U * n;
    x.work = next, next += 6 * n;
    x.rotations = (shear *)next;
    for (int u = 0; u < U; ++u) {
        int here = count - u * W;
        pack(n, ld, x.a[u], p->a + (first + u * W) * p->stride[0], p->stride, here < 0 ? 0 : here > W ? W : here);
        scale(n, ld, x.a[u], x.up[u], &x.broken[u]);
        if (n <= 3) continue;
        tridiagonalize(n, ld, x.a[u], x.d + u, x.e + u, x.work + 5 * n, x.work);
        if (with_vectors) form_orthogonal(n, ld, x.a[u], x.work + 5 * n, x.work);
    }
    if (n <= 3)
        rotate_small(n, ld, with_vectors, &x);
    else {
        int sweeps = iterate(n, ld, with_vectors, &x), most = atomic_load(&p->sweeps);
        while (most >= 0 && sweeps > most && !atomic_compare_exchange_weak(&p->sweeps, &most, sweeps)) {
        }
    }
    for (int u = 0; u < U && u * W < count; ++u) {
        int here = count - u * W < W ? count - u * W : W;
        long index = first + u * W;
        if (p->projection) project(n, ld, u, &x, p, index, here);
        else unpack(n, ld, u, &x, here, p->values + index * n, p->vectors ? p->vectors + index * n * n : 0, p->info + index);
    }
}

/* Rough cost of one matrix, in units of about a third of a nanosecond. */
static double cost(int n) { return (double)n * n * (n + 32); }

/* Take tasks until none is left: a thread on a core that is shared with others takes fewer. */
static void take_tasks(problem *p) {
    void *memory = 0;
    for (;;) {
        long first = atomic_fetch_add(&p->next, p->task), end = first + p->task;
        if (first >= p->batch) break;
        if (end > p->batch) end = p->batch;
        if (!memory) memory = malloc(workspace_bytes(p->n));
        if (!memory) atomic_store(&p->sweeps, -1);
        for (long i = first; memory && i < end; i += LANES) solve(p, memory, i, end - i < LANES ? (int)(end - i) : LANES);
        pthread_mutex_lock(&p->lock);
        p->done += end - first;
        if (p->done == p->batch) pthread_cond_signal(&p->all_done);
        pthread_mutex_unlock(&p->lock);
    }
    free(memory);
}

static void release(problem *p) {
    if (atomic_fetch_sub(&p->users, 1) > 1) return;
    pthread_mutex_destroy(&p->lock);
    pthread_cond_destroy(&p->all_done);
    free(p);
}

static void *help(void *argument) {
    take_tasks(argument);
    release(argument);
    return 0;
}

/* Solve a batch of problems: values with or without vectors, or the projection. Returns the most QL sweeps that a group of lanes needed, or -1 where memory was lacking.
 *
 * The caller waits for the tasks, not for the threads: one that the system schedules only when the work is done finds
 * nothing to do and goes, without having held anyone up. Nothing stays behind that a fork could meet. */
int EIGH(const REAL *a, int64_t batch, int64_t n, int64_t batch_stride, int64_t row_stride, int64_t column_stride,
             REAL *values, REAL *vectors, REAL *projection, int32_t *info, int64_t threads) {
    problem *p = n > 30000 ? 0 : malloc(sizeof(problem)); /* beyond, the workspace could not even be indexed */
    if (!p) return -1;
    *p = (problem){.a = a, .stride = {batch_stride, row_stride, column_stride}, .values = values, .vectors = vectors,
                   .projection = projection, .info = info, .n = (int)n, .batch = batch};
    p->task = LANES * (1 + (long)(0x1p16 / (LANES * cost(p->n)))); /* some ten microseconds */
    atomic_init(&p->next, 0);
    atomic_init(&p->sweeps, 0);
    atomic_init(&p->users, 1);
    pthread_mutex_init(&p->lock, 0);
    pthread_cond_init(&p->all_done, 0);
    long tasks = (batch + p->task - 1) / p->task;
    double worthwhile = batch * cost(p->n) / 0x1p19; /* a thread costs as much to start as so much work */
    if (threads > tasks) threads = tasks;
    for (int64_t i = 1; i < threads && i < worthwhile; ++i) {
        pthread_t helper;
        atomic_fetch_add(&p->users, 1);
        if (pthread_create(&helper, 0, help, p)) { /* no more threads to be had: fewer do it */
            release(p);
            break;
        }
        pthread_detach(helper);
    }
    take_tasks(p);
    pthread_mutex_lock(&p->lock);
    while (p->done < batch) pthread_cond_wait(&p->all_done, &p->lock);
    pthread_mutex_unlock(&p->lock);
    int sweeps = atomic_load(&p->sweeps);
    release(p);
    return sweeps;
}
