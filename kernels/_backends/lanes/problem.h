/* What all parts share: the task, and the memory a thread works in.
 *
 * W matrices make a group, one per lane; element (i, j) of a group is the vector a[i * ld + j]. ld is odd, since a
 * power of two would put a whole column into a few cache sets. A thread works on U groups at a time.
 */
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif
#include "vectors.h"

#define U 2 /* groups whose QL recurrences run interleaved: one alone is a chain of dependent operations */
#define LANES (U * W)
#define SWEEPS_KEPT 8 /* at most so many sweeps of rotations are kept before they are applied to the vectors, */
#define ROTATION_BYTES 32768 /* ... and at most so many bytes per group, which stay in the first cache level */

/* A plane rotation with cosine c >= 0 and sine s as three shears, which is a multiplication less: t = s / (1 + c). */
typedef struct { vec t, s; } shear;

typedef struct {
    const REAL *a;
    long stride[3]; /* of batch, row and column, in elements */
    REAL *values, *vectors, *projection; /* contiguous; what is null is not wanted */
    int32_t *info;
    int n;
    long batch;
    long task;         /* matrices that a thread takes at once */
    atomic_long next;  /* the first matrix that no thread has taken */
    atomic_int sweeps; /* the most that a group needed; -1: no memory */
    atomic_int users;  /* threads that hold this structure */
    long done;         /* matrices, guarded by the lock */
    pthread_mutex_t lock;
    pthread_cond_t all_done;
} problem;

typedef struct {
    vec *a[U];        /* (n, ld) each: the matrix, then its reflectors, then the eigenvectors */
    vec *d, *e;       /* (n, U): the tridiagonal matrix */
    shear *rotations; /* (U, kept, n) */
    vec *work;        /* (6, n) */
    vec up[U][2];     /* 2^k as a product of two powers of two, which k itself may not have */
    ivec broken[U];   /* not finite */
} workspace;
