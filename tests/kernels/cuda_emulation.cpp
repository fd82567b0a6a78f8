// Runs the CUDA sources of kernels/_backends/cuda, unmodified, on the CPU: one user-level context per thread of a
// block, blocks one after the other. A collective operation (shuffle, vote, barrier) writes its operand into a slot,
// yields until everyone has arrived, and then reads. What real hardware would leave undefined is an error here:
// lanes in different collectives, a thread that ends while others wait for it, stores behind the shared memory that
// was asked for. Shared memory starts as NaN, and the order in which threads run can be reversed, which changes
// results where a barrier is missing.
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <ucontext.h>

#include <cmath>
#include <vector>

using std::fabs;
using std::sqrt;

#define __device__
#define __global__
#define __shared__
#define __launch_bounds__(...)

namespace {

constexpr int MAX_THREADS = 1024, STACK = 1 << 16;
constexpr long SHARED_BYTES = 227 * 1024, GUARD_BYTES = 4096;
constexpr unsigned FULL = 0xffffffffu;
enum Kind { NONE, SHUFFLE, VOTE, WARP_BARRIER };

struct Index {
    unsigned x, y, z;
};
struct Thread {
    ucontext_t start;
    jmp_buf place;
    bool started, finished;
};
struct Warp {
    uint64_t slot[2][32];  // alternate, so that an early lane's next operand does not overwrite a late lane's source
    int arrived;
    long generation;
    Kind kind;
};

Thread threads[MAX_THREADS];
Warp warps[MAX_THREADS / 32];
std::vector<char> stacks;
int block_arrived, unfinished, direction, idle;
long block_generation;
void (*kernel)(const void *);
const void *kernel_argument;
jmp_buf host;
char message[256];

}  // namespace

Index threadIdx, blockIdx, blockDim, gridDim;
alignas(16) double shared_memory[(SHARED_BYTES + GUARD_BYTES) / sizeof(double)];

namespace {

[[noreturn]] void fail(const char *reason) {
    snprintf(message, sizeof message, "%s (block %u, thread %u)", reason, blockIdx.x, threadIdx.x);
    _longjmp(host, 1);
}

void fail_at_access(int) { fail("an access to memory that is not there"); }

[[noreturn]] void resume(int index) {
    Thread &next = threads[index];
    threadIdx.x = index;
    if (next.started) _longjmp(next.place, 1);
    next.started = true;
    setcontext(&next.start);
    __builtin_unreachable();
}

int successor(int index) {
    const int count = blockDim.x;
    do index = (index + direction + count) % count;
    while (threads[index].finished);
    return index;
}

// `waits`: nothing was done since the last call. When nobody does anything any more, the block is stuck.
void yield(bool waits) {
    idle = waits ? idle + 1 : 0;
    if (idle > 4 * (int)blockDim.x) fail("a collective operation that not all threads reach");
    const int next = successor(threadIdx.x);
    if (next == (int)threadIdx.x) return;
    if (!_setjmp(threads[threadIdx.x].place)) resume(next);
}

void run_thread() {
    kernel(kernel_argument);
    threads[threadIdx.x].finished = true;
    idle = 0;
    if (--unfinished == 0) _longjmp(host, 2);
    resume(successor(threadIdx.x));
}

template <typename T>
int meet(Kind kind, unsigned mask, T operand) {
    static_assert(sizeof(T) <= sizeof(uint64_t));
    Warp &warp = warps[threadIdx.x / 32];
    if (mask != FULL) fail("a mask that is not the whole warp");
    if (warp.arrived && warp.kind != kind) fail("lanes of a warp in different collective operations");
    warp.kind = kind;
    const int parity = warp.generation & 1;
    memcpy(&warp.slot[parity][threadIdx.x % 32], &operand, sizeof operand);
    const long mine = warp.generation;
    if (++warp.arrived == 32) {
        warp.arrived = 0;
        ++warp.generation;
        idle = 0;
    } else {
        yield(false);
        while (warp.generation == mine) yield(true);
    }
    return parity;
}

template <typename T>
T read_slot(int parity, int lane) {
    T value;
    memcpy(&value, &warps[threadIdx.x / 32].slot[parity][lane], sizeof value);
    return value;
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int distance) {
    return read_slot<T>(meet(SHUFFLE, mask, value), (threadIdx.x % 32) ^ distance);
}
template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width) {
    const int lane = threadIdx.x % 32;
    return read_slot<T>(meet(SHUFFLE, mask, value), lane / width * width + source % width);
}
unsigned __ballot_sync(unsigned mask, int predicate) {
    const int parity = meet(VOTE, mask, predicate);
    unsigned result = 0;
    for (int lane = 0; lane < 32; ++lane) result |= (unsigned)(read_slot<int>(parity, lane) != 0) << lane;
    return result;
}
int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == FULL; }
void __syncwarp(unsigned mask) { meet(WARP_BARRIER, mask, 0); }
void __syncthreads() {
    const long mine = block_generation;
    if (++block_arrived == (int)blockDim.x) {
        block_arrived = 0;
        ++block_generation;
        idle = 0;
    } else {
        yield(false);
        while (block_generation == mine) yield(true);
    }
}

int __ffs(int x) { return __builtin_ffs(x); }
template <typename To, typename From>
To bits(From x) {
    To y;
    memcpy(&y, &x, sizeof y);
    return y;
}
int __float_as_int(float x) { return bits<int>(x); }
float __int_as_float(int x) { return bits<float>(x); }
long long __double_as_longlong(double x) { return bits<long long>(x); }
double __longlong_as_double(long long x) { return bits<double>(x); }

// The hardware's reciprocal roots are off by up to two units in the last place (float) and one (double): always up.
float rsqrtf(float x) { return (float)(1 / std::sqrt((double)x)) * (1 + 2.4e-7f); }
double rsqrt(double x) { return 1 / std::sqrt(x) * (1 + 2.3e-16); }

}  // namespace

#include "jacobi.cu"

#include "householder.cu"

#include "sparse_multiply.cu"

#include "sparse_sample.cu"

namespace {

template <typename T, int LANES, int RESULT>
void jacobi_kernel(const void *problem) {
    jacobi<T, LANES, RESULT>(*(const Problem<T> *)problem);
}
template <typename T, int RESULT>
void householder_kernel(const void *problem) {
    householder<T, RESULT>(*(const Problem<T> *)problem);
}

template <typename T>
void multiply_kernel(const void *product) {
    multiply_row<T>(*(const SparseProduct<T> *)product);
}
template <typename T>
void sample_kernel(const void *product) {
    sample_entry<T>(*(const SampledProduct<T> *)product);
}

template <typename T, int RESULT>
bool choose_kernel(int lanes) {
    switch (lanes) {
        case 0: return kernel = householder_kernel<T, RESULT>, true;
        case 1: return kernel = jacobi_kernel<T, 1, RESULT>, true;
        case 2: return kernel = jacobi_kernel<T, 2, RESULT>, true;
        case 3: return kernel = jacobi_kernel<T, 3, RESULT>, true;
        case 4: return kernel = jacobi_kernel<T, 4, RESULT>, true;
        case 8: return kernel = jacobi_kernel<T, 8, RESULT>, true;
        case 16: return kernel = jacobi_kernel<T, 16, RESULT>, true;
        case 32: return kernel = jacobi_kernel<T, 32, RESULT>, true;
    }
    return false;
}

// Apart from the caller's locals, which a jump back would leave undefined.
int run_block(int block) {
    memset(warps, 0, sizeof warps);
    block_arrived = 0, block_generation = 0, idle = 0, unfinished = block;
    for (int i = 0; i < block; ++i) {
        Thread &thread = threads[i];
        thread.started = thread.finished = false;
        getcontext(&thread.start);
        thread.start.uc_stack.ss_sp = stacks.data() + (size_t)i * STACK;
        thread.start.uc_stack.ss_size = STACK;
        thread.start.uc_link = nullptr;
        makecontext(&thread.start, run_thread, 0);
    }
    const int how = _setjmp(host);
    if (how == 0) resume(direction > 0 ? 0 : block - 1);
    return how == 2;
}

// Blocks one after the other, of the kernel that is chosen.
const char *run_grid(long grid, int block, long shared_bytes) {
    if (block < 32 || block > MAX_THREADS || block % 32) return "a block that is not a whole number of warps";
    if (shared_bytes < 0 || shared_bytes > SHARED_BYTES) return "more shared memory than a block can have";
    stacks.resize((size_t)block * STACK);
    gridDim = {(unsigned)grid, 1, 1}, blockDim = {(unsigned)block, 1, 1}, blockIdx = threadIdx = {0, 0, 0};
    for (long i = 0; i < grid; ++i) {
        blockIdx.x = (unsigned)i;
        memset(shared_memory, 0xff, sizeof shared_memory);
        if (!run_block(block)) return message;
        for (long byte = shared_bytes; byte < (long)sizeof shared_memory; ++byte)
            if (((unsigned char *)shared_memory)[byte] != 0xff) return "a store behind the shared memory";
    }
    return nullptr;
}

template <typename T>
const char *run_multiply(long grid, int block, long shared_bytes, const long long *arguments) {
    const SparseProduct<T> product = {(const int *)arguments[0], (const int *)arguments[1], (const T *)arguments[2],
                                      (const T *)arguments[3],   (T *)arguments[4],         arguments[5]};
    kernel = multiply_kernel<T>, kernel_argument = &product;
    return run_grid(grid, block, shared_bytes);
}

template <typename T>
const char *run_sample(long grid, int block, long shared_bytes, const long long *arguments) {
    const SampledProduct<T> product = {(const int *)arguments[0], (const int *)arguments[1], (const T *)arguments[2],
                                       (const T *)arguments[3],   (T *)arguments[4],         arguments[5],
                                       arguments[6]};
    kernel = sample_kernel<T>, kernel_argument = &product;
    return run_grid(grid, block, shared_bytes);
}

template <typename T>
const char *run(int lanes, int result, long grid, int block, long shared_bytes, const long long *arguments) {
    if (lanes == -1) return run_multiply<T>(grid, block, shared_bytes, arguments);
    if (lanes == -2) return run_sample<T>(grid, block, shared_bytes, arguments);
    const Problem<T> problem = {(const T *)arguments[0],
                                {arguments[1], arguments[2], arguments[3]},
                                arguments[4],
                                (int)arguments[5],
                                (T *)arguments[6],
                                (T *)arguments[7],
                                (int *)arguments[8],
                                (int *)arguments[9]};
    kernel_argument = &problem;
    const bool known = result == VALUES    ? choose_kernel<T, VALUES>(lanes)
                       : result == VECTORS ? choose_kernel<T, VECTORS>(lanes)
                                           : choose_kernel<T, PROJECTION>(lanes);
    return known ? run_grid(grid, block, shared_bytes) : "no such kernel";
}

}  // namespace

// `lanes` 0 is householder.cu, -1 sparse_multiply.cu, -2 sparse_sample.cu. Returns null, or what went wrong.
extern "C" const char *emulate(int is_double, int lanes, int result, long grid, int block, long shared_bytes,
                               int reversed, const long long *arguments) {
    direction = reversed ? -1 : 1;
    struct sigaction mine = {}, before;
    mine.sa_handler = fail_at_access;
    mine.sa_flags = SA_NODEFER;  // the handler does not return: it jumps
    sigaction(SIGSEGV, &mine, &before);
    const char *error = is_double ? run<double>(lanes, result, grid, block, shared_bytes, arguments)
                                  : run<float>(lanes, result, grid, block, shared_bytes, arguments);
    sigaction(SIGSEGV, &before, nullptr);
    return error;
}
