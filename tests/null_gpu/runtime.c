// A CUDA runtime without a GPU: allocations are addresses, copies to the host give zeros, kernels do nothing.
// What torch launches, allocates, copies and waits for is counted. Preloaded, it stands before NVIDIA's libraries.
// Everything above it is real: dispatcher, autograd's threads, the caching allocator, checks of arguments.
// It pretends to be one H200. Values and times of kernels it cannot know.
#define _GNU_SOURCE
#include <driver_types.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

// The names of these counters stand in null_gpu.py too.
enum { LAUNCH, GEMM, H2D, H2D_PAGEABLE, D2H, D2D, MEMSET, STREAM_SYNC, DEVICE_SYNC, EVENT_SYNC, H2D_BYTES,
       GRAPH, GRAPH_KERNELS, NUM };
long null_gpu_counts[NUM];
#define ADD(which, amount) __atomic_add_fetch(&null_gpu_counts[which], (amount), __ATOMIC_RELAXED)

// ---- graphs: what is launched while a stream is captured counts when the graph is launched ----
// As on a GPU, a capture breaks where the host would wait or copy from or to its own memory.
static struct { void *stream; unsigned long long number; int is_broken; long kernels; } capture;
#define KERNEL(which) (capture.stream ? (void)__atomic_add_fetch(&capture.kernels, 1, __ATOMIC_RELAXED) : (void)ADD(which, 1))
#define NOT_IN_A_CAPTURE \
  if (capture.stream) { capture.is_broken = 1; fprintf(stderr, "%s breaks a capture\n", __func__); return 900; }
#define TOTAL_MEMORY 150121545728ull

// ---- kernels, by the address of their host function ----
#define NUM_SLOTS (1 << 18)
static struct { const void *function; const char *name; long launches; } slots[NUM_SLOTS];
static long slot_of(const void *function) {
  long i = ((uint64_t)function * 0x9E3779B97F4A7C15ull) >> 46;
  while (slots[i].function && slots[i].function != function) i = (i + 1) & (NUM_SLOTS - 1);
  return i;
}
void null_gpu_name(const void *function, const char *name) {
  long i = slot_of(function);
  if (!slots[i].function) { slots[i].function = function; slots[i].name = name; }
}
void null_gpu_launch(const void *function) {
  long i = slot_of(function);
  KERNEL(LAUNCH);
  slots[i].function = function;
  __atomic_add_fetch(&slots[i].launches, 1, __ATOMIC_RELAXED);
}
void null_gpu_forget_launches(void) { for (long i = 0; i < NUM_SLOTS; i++) slots[i].launches = 0; }
void null_gpu_write_launches(const char *path) {
  FILE *out = fopen(path, "w");
  for (long i = 0; i < NUM_SLOTS; i++)
    if (slots[i].launches) fprintf(out, "%ld %s\n", slots[i].launches, slots[i].name ? slots[i].name : "?");
  fclose(out);
}
void **__cudaRegisterFatBinary(void *p) { static void *handle[4]; return handle; }
void __cudaRegisterFatBinaryEnd(void **p) {}
void __cudaUnregisterFatBinary(void **p) {}
void __cudaRegisterVar(void **a, char *b, char *c, const char *d, int e, size_t f, int g, int h) {}
char __cudaInitModule(void **p) { return 1; }
void __cudaRegisterFunction(void **h, const char *function, char *df, const char *name, int tl, void *a, void *b, void *c,
                            void *d, int *e) { null_gpu_name(function, name); }
typedef struct { unsigned x, y, z; } Dim;
static __thread struct { Dim grid, block; size_t shared; void *stream; } pushed;
unsigned __cudaPushCallConfiguration(Dim grid, Dim block, size_t shared, void *stream) {
  pushed.grid = grid; pushed.block = block; pushed.shared = shared; pushed.stream = stream;
  return 0;
}
cudaError_t __cudaPopCallConfiguration(Dim *grid, Dim *block, size_t *shared, void *stream) {
  *grid = pushed.grid; *block = pushed.block; *shared = pushed.shared; *(void **)stream = pushed.stream;
  return 0;
}
cudaError_t __cudaGetKernel(void **kernel, const void *function) { *kernel = (void *)function; return 0; }
cudaError_t __cudaLaunchKernel(void *f, Dim g, Dim b, void **a, size_t s, void *st) { null_gpu_launch(f); return 0; }
cudaError_t cudaLaunchKernel(const void *f, Dim g, Dim b, void **a, size_t s, void *st) { null_gpu_launch(f); return 0; }
cudaError_t cudaLaunchKernelExC(const void *c, const void *f, void **a) { null_gpu_launch(f); return 0; }

// ---- the devices: two H200; memory is counted as if it were that of one ----
static __thread int current_device = 0;
cudaError_t cudaGetDeviceCount(int *n) { *n = 2; return 0; }
cudaError_t cudaGetDevice(int *n) { *n = current_device; return 0; }
cudaError_t cudaSetDevice(int n) {
  if (n < 0 || n > 1) return cudaErrorInvalidDevice;
  current_device = n;
  return 0;
}
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int d) {
  memset(p, 0, sizeof *p);
  strcpy(p->name, "NVIDIA H200");
  p->totalGlobalMem = TOTAL_MEMORY; p->totalConstMem = 65536; p->l2CacheSize = 52428800;
  p->sharedMemPerBlock = 49152; p->sharedMemPerMultiprocessor = 233472; p->sharedMemPerBlockOptin = 232448;
  p->regsPerBlock = p->regsPerMultiprocessor = 65536;
  p->warpSize = 32; p->major = 9; p->minor = 0; p->multiProcessorCount = 132;
  p->maxThreadsPerBlock = 1024; p->maxThreadsPerMultiProcessor = 2048; p->maxBlocksPerMultiProcessor = 32;
  p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024; p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = 2147483647; p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->memPitch = 2147483647; p->textureAlignment = 512;
  p->concurrentKernels = p->unifiedAddressing = p->managedMemory = 1;
  return 0;
}
cudaError_t cudaDeviceGetAttribute(int *value, int attribute, int d) {
  switch (attribute) {
    case 1: case 2: case 3: *value = 1024; break;  // threads of a block
    case 4: *value = 64; break;
    case 5: *value = 2147483647; break;  // blocks of a grid
    case 6: case 7: *value = 65535; break;
    case 8: *value = 49152; break;  // shared memory of a block
    case 10: *value = 32; break;  // warp
    case 12: *value = 65536; break;  // registers
    case 16: *value = 132; break;  // multiprocessors
    case 39: *value = 2048; break;
    case 75: *value = 9; break;  // compute capability
    case 76: *value = 0; break;
    case 81: *value = 233472; break;
    case 97: *value = 232448; break;
    case 106: *value = 32; break;
    default: *value = 1;
  }
  return 0;
}
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *a, const void *f) {
  memset(a, 0, sizeof *a);
  a->maxThreadsPerBlock = 1024; a->numRegs = 32; a->ptxVersion = a->binaryVersion = 90;
  return 0;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *n, const void *f, int b, size_t s, unsigned fl) {
  *n = 2; return 0;
}
cudaError_t cudaDriverGetVersion(int *v) { *v = 13000; return 0; }
cudaError_t cudaRuntimeGetVersion(int *v) { *v = 13000; return 0; }
const char *cudaGetErrorString(cudaError_t e) { return "null"; }
const char *cudaGetErrorName(cudaError_t e) { return "null"; }
cudaError_t cudaGetLastError(void) { return 0; }
cudaError_t cudaPeekAtLastError(void) { return 0; }
cudaError_t cudaDeviceGetStreamPriorityRange(int *a, int *b) { *a = 0; *b = -5; return 0; }
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total) {
  *total = TOTAL_MEMORY; *free_bytes = TOTAL_MEMORY - 1000000000; return 0;
}
static int get_primary_context(int d, unsigned *flags, int *is_active) { *flags = 0; *is_active = 1; return 0; }
static int nothing(void) { return 0; }
cudaError_t cudaGetDriverEntryPointByVersion(const char *n, void **f, unsigned v, unsigned long long fl, int *q) {
  *f = strstr(n, "PrimaryCtxGetState") ? (void *)get_primary_context : (void *)nothing;
  if (q) *q = 0;
  return 0;
}

// ---- streams, events, waiting ----
static long handles = 0x1000;
#define HANDLE(p) (*(void **)(p) = (void *)__atomic_add_fetch(&handles, 16, __ATOMIC_RELAXED))
cudaError_t cudaStreamCreateWithPriority(void **s, unsigned f, int p) { HANDLE(s); return 0; }
cudaError_t cudaStreamCreate(void **s) { HANDLE(s); return 0; }
cudaError_t cudaStreamCreateWithFlags(void **s, unsigned f) { HANDLE(s); return 0; }
cudaError_t cudaStreamGetPriority(void *s, int *p) { *p = 0; return 0; }
cudaError_t cudaEventCreateWithFlags(void **s, unsigned f) { HANDLE(s); return 0; }
cudaError_t cudaEventCreate(void **s) { HANDLE(s); return 0; }
cudaError_t cudaEventElapsedTime(float *t, void *a, void *b) { *t = 1; return 0; }
cudaError_t cudaStreamSynchronize(void *s) { NOT_IN_A_CAPTURE ADD(STREAM_SYNC, 1); return 0; }
cudaError_t cudaDeviceSynchronize(void) { NOT_IN_A_CAPTURE ADD(DEVICE_SYNC, 1); return 0; }
cudaError_t cudaEventSynchronize(void *e) { NOT_IN_A_CAPTURE ADD(EVENT_SYNC, 1); return 0; }
cudaError_t cudaEventQuery(void *e) { NOT_IN_A_CAPTURE return 0; }
cudaError_t cudaStreamQuery(void *s) { NOT_IN_A_CAPTURE return 0; }

// ---- capturing ----
cudaError_t cudaStreamIsCapturing(void *s, int *c) { *c = capture.stream && s == capture.stream; return 0; }
cudaError_t cudaStreamGetCaptureInfo(void *s, int *c, unsigned long long *number, ...) {
  *c = capture.stream && s == capture.stream;
  if (number) *number = capture.number;
  return 0;
}
cudaError_t cudaStreamBeginCapture(void *s, int mode) {
  capture.stream = s; capture.number++; capture.is_broken = 0; capture.kernels = 0;
  return 0;
}
cudaError_t cudaStreamEndCapture(void *s, void **graph) {
  capture.stream = 0;
  *graph = malloc(sizeof(long));
  *(long *)*graph = capture.kernels;
  return capture.is_broken ? 901 : 0;
}
cudaError_t cudaGraphGetNodes(void *graph, void **nodes, size_t *n) { *n = *(long *)graph; return 0; }
cudaError_t cudaGraphInstantiate(void **executable, void *graph, unsigned long long flags) {
  *executable = malloc(sizeof(long));
  *(long *)*executable = *(long *)graph;
  return 0;
}
cudaError_t cudaGraphInstantiateWithFlags(void **executable, void *graph, unsigned long long flags) {
  return cudaGraphInstantiate(executable, graph, flags);
}
cudaError_t cudaGraphLaunch(void *executable, void *s) {
  ADD(GRAPH, 1); ADD(GRAPH_KERNELS, *(long *)executable);
  return 0;
}

// ---- memory ----
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char *first = 0, *last = 0;
static size_t used = 0;
cudaError_t cudaMalloc(void **p, size_t n) {
  pthread_mutex_lock(&lock);
  if (!first) {
    size_t capacity = 1ull << 43;
    first = mmap(0, capacity, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    last = first + capacity;
  }
  *p = first + used;
  used += (n + 2097151) & ~2097151ull;
  pthread_mutex_unlock(&lock);
  return 0;
}
cudaError_t cudaMallocAsync(void **p, size_t n, void *s) { return cudaMalloc(p, n); }
cudaError_t cudaGetSymbolAddress(void **p, const void *s) { return cudaMalloc(p, 4096); }
static int on_device(const void *p) { return (char *)p >= first && (char *)p < last; }
static struct { char *begin, *end; } pins[65536];
static int num_pins = 0;
cudaError_t cudaHostAlloc(void **p, size_t n, unsigned f) {
  *p = aligned_alloc(4096, (n + 4095) & ~4095ull);
  pthread_mutex_lock(&lock);
  pins[num_pins].begin = *p;
  pins[num_pins++].end = (char *)*p + n;
  pthread_mutex_unlock(&lock);
  return 0;
}
cudaError_t cudaFreeHost(void *p) { return 0; }
static int is_pinned(const void *p) {
  for (int i = 0; i < num_pins; i++) if ((char *)p >= pins[i].begin && (char *)p < pins[i].end) return 1;
  return 0;
}
cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *a, const void *p) {
  memset(a, 0, sizeof *a);
  a->type = on_device(p) ? cudaMemoryTypeDevice : is_pinned(p) ? cudaMemoryTypeHost : cudaMemoryTypeUnregistered;
  a->devicePointer = (void *)p;
  return 0;
}
static int copy(void *to, const void *from, size_t n) {
  if (!n) return 0;
  if (on_device(to) != on_device(from)) NOT_IN_A_CAPTURE
  if (on_device(to) && on_device(from)) KERNEL(D2D);
  else if (on_device(to)) { ADD(H2D, 1); ADD(H2D_BYTES, n); if (!is_pinned(from)) ADD(H2D_PAGEABLE, 1); }
  else if (on_device(from)) { ADD(D2H, 1); memset(to, 0, n); }
  else memcpy(to, from, n);
  return 0;
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n, int kind, void *s) { return copy(to, from, n); }
cudaError_t cudaMemcpy(void *to, const void *from, size_t n, int kind) {
  NOT_IN_A_CAPTURE
  ADD(STREAM_SYNC, 1);
  return copy(to, from, n);
}
cudaError_t cudaMemsetAsync(void *p, int value, size_t n, void *s) { KERNEL(MEMSET); return 0; }

// ---- matrix products ----
int cublasCreate_v2(void **h) { HANDLE(h); return 0; }
int cublasGetMathMode(void *h, int *m) { *m = 0; return 0; }
int cublasGetPointerMode_v2(void *h, int *m) { *m = 0; return 0; }
#define PRODUCT(name) int name() { KERNEL(GEMM); return 0; }
PRODUCT(cublasGemmEx) PRODUCT(cublasSgemm_v2) PRODUCT(cublasDgemm_v2) PRODUCT(cublasSgemmEx)
PRODUCT(cublasGemmStridedBatchedEx) PRODUCT(cublasSgemmStridedBatched) PRODUCT(cublasDgemmStridedBatched)
PRODUCT(cublasSgemv_v2) PRODUCT(cublasDgemv_v2) PRODUCT(cublasLtMatmul)
PRODUCT(cublasSdot_v2) PRODUCT(cublasDotEx) PRODUCT(cublasDdot_v2)
size_t cublasLtGetVersion(void) { return 130000; }
int cublasLtMatmulAlgoGetHeuristic(void *h, void *o, void *a, void *b, void *c, void *d, void *p, int n, char *found, int *count) {
  memset(found, 0, 96); *count = 1; return 0;
}
int cublasLtMatmulDescCreate(void **d, int a, int b) { HANDLE(d); return 0; }
int cublasLtMatmulPreferenceCreate(void **d) { HANDLE(d); return 0; }
int cublasLtMatrixLayoutCreate(void **d, int a, uint64_t b, uint64_t c, int64_t e) { HANDLE(d); return 0; }
// Whatever else torch's libraries ask for does nothing: lines generated from their symbol tables.
#include "other_symbols.h"
