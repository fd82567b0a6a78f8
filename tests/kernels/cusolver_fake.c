/* A libcusolver for the CPU with the six functions that kernels/_backends/cusolver.py calls. It refuses what the real
 * one refuses or what NVIDIA's documentation excludes, each with a status of its own, and solves by cyclic Jacobi. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { DIRTY_WORKSPACE = 20, WRONG_HANDLE, WRONG_ENUM, WRONG_SIZE, TOO_LARGE, WRONG_WORKSPACE, WRONG_STREAM, NO_POINTER };

int fake_version[3] = {11, 7, 5};
void *fake_expected_stream;
int64_t fake_bytes_per_matrix = 1000, fake_host_bytes = 24;
int64_t fake_calls, fake_queries, fake_largest_batch, fake_handles, fake_wrong_from = -1, fake_not_converged = -1;

static char params_object;

int cusolverGetProperty(int part, int *value) {
    *value = fake_version[part];
    return 0;
}
int cusolverDnCreate(void **handle) {
    void **made = malloc(sizeof(void *)); /* holds its stream; as many as threads, never freed, as in the caller */
    *made = NULL;
    *handle = made;
    __atomic_add_fetch(&fake_handles, 1, __ATOMIC_SEQ_CST);
    return 0;
}
int cusolverDnCreateParams(void **params) {
    *params = &params_object;
    return 0;
}
int cusolverDnSetStream(void *handle, void *stream) {
    *(void **)handle = stream;
    return 0;
}

static int check(void *handle, void *params, int mode, int fill, int64_t n, int type, void *a, int64_t lda, int type_w,
                 void *w, int compute, int64_t batch) {
    if (!handle || params != &params_object) return WRONG_HANDLE;
    if (*(void **)handle != fake_expected_stream) return WRONG_STREAM;
    if ((mode != 0 && mode != 1) || fill != 1 || (type != 0 && type != 1) || type_w != type || compute != type)
        return WRONG_ENUM;
    if (n < 1 || lda != n || batch < 1) return WRONG_SIZE;
    if (batch > 32000 || n * lda * batch > INT32_MAX) return TOO_LARGE;
    return a && w ? 0 : NO_POINTER;
}

int cusolverDnXsyevBatched_bufferSize(void *handle, void *params, int mode, int fill, int64_t n, int type, void *a,
                                      int64_t lda, int type_w, void *w, int compute, size_t *device, size_t *host,
                                      int64_t batch) {
    fake_queries++;
    *device = (size_t)(fake_bytes_per_matrix * batch + 16 * n);
    *host = (size_t)fake_host_bytes;
    return check(handle, params, mode, fill, n, type, a, lda, type_w, w, compute, batch);
}

static double get(const void *x, int type, int64_t i) { return type ? ((double *)x)[i] : ((float *)x)[i]; }
static void put(void *x, int type, int64_t i, double value) {
    if (type)
        ((double *)x)[i] = value;
    else
        ((float *)x)[i] = (float)value;
}

static void jacobi(int n, double *a, double *v) {
    for (int i = 0; i < n * n; ++i) v[i] = i % (n + 1) == 0;
    for (int sweep = 0; sweep < 30; ++sweep)
        for (int p = 0; p < n; ++p)
            for (int q = p + 1; q < n; ++q) {
                double off = a[p + q * n];
                if (fabs(off) < 1e-300) continue;
                double h = (a[q + q * n] - a[p + p * n]) / (2 * off);
                double t = (h < 0 ? -1 : 1) / (fabs(h) + sqrt(h * h + 1)), c = 1 / sqrt(t * t + 1), s = t * c;
                for (int i = 0; i < n; ++i) {
                    double x = a[i + p * n], y = a[i + q * n];
                    a[i + p * n] = c * x - s * y, a[i + q * n] = s * x + c * y;
                    x = v[i + p * n], y = v[i + q * n];
                    v[i + p * n] = c * x - s * y, v[i + q * n] = s * x + c * y;
                }
                for (int i = 0; i < n; ++i) {
                    double x = a[p + i * n], y = a[q + i * n];
                    a[p + i * n] = c * x - s * y, a[q + i * n] = s * x + c * y;
                }
            }
}

int cusolverDnXsyevBatched(void *handle, void *params, int mode, int fill, int64_t n, int type, void *a, int64_t lda,
                           int type_w, void *w, int compute, void *device, size_t device_bytes, void *host,
                           size_t host_bytes, int *info, int64_t batch) {
    int status = check(handle, params, mode, fill, n, type, a, lda, type_w, w, compute, batch);
    if (status) return status;
    if (!info || !device || (host_bytes && !host)) return NO_POINTER;
    if (device_bytes != (size_t)(fake_bytes_per_matrix * batch + 16 * n) || host_bytes != (size_t)fake_host_bytes)
        return WRONG_WORKSPACE;
    int old = fake_version[0] < 11 || (fake_version[0] == 11 && (fake_version[1] < 7 || (fake_version[1] == 7 && fake_version[2] < 3)));
    for (size_t i = 0; old && i < device_bytes; ++i)
        if (((char *)device)[i]) return DIRTY_WORKSPACE;
    memset(device, 0x5a, device_bytes);
    memset(host, 0x5a, host_bytes);
    int size = (int)n;
    double *work = malloc(sizeof(double) * (2 * n * n)), *v = work + n * n;
    for (int64_t m = 0; m < batch; ++m) {
        for (int j = 0; j < size; ++j) /* column-major, upper triangle: the other one is not read */
            for (int i = 0; i <= j; ++i) work[i + j * size] = work[j + i * size] = get(a, type, m * n * n + i + j * n);
        jacobi(size, work, v);
        info[m] = m == fake_not_converged ? 3 : 0;
        for (int j = 0; j < size; ++j) {
            int rank = 0;
            for (int i = 0; i < size; ++i)
                rank += work[i * (size + 1)] < work[j * (size + 1)] || (work[i * (size + 1)] == work[j * (size + 1)] && i < j);
            put(w, type, m * n + rank, work[j * (size + 1)]);
            for (int i = 0; i < size; ++i) /* without vectors the content is destroyed, too */
                put(a, type, m * n * n + i + rank * n,
                    mode == 0 ? NAN : v[i + j * size] * (fake_wrong_from >= 0 && m >= fake_wrong_from ? 1.5 : 1));
        }
    }
    free(work);
    fake_calls++;
    if (batch > fake_largest_batch) fake_largest_batch = batch;
    return 0;
}
