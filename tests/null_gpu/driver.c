// The CUDA driver's library without a GPU: what Triton's kernels are loaded and launched with. See runtime.c.
#include <stdlib.h>
#include <string.h>
void null_gpu_name(const void *function, const char *name) __attribute__((weak));
void null_gpu_launch(const void *function) __attribute__((weak));
static long handles = 0x100000;
#define HANDLE(p) (*(void **)(p) = (void *)__atomic_add_fetch(&handles, 16, __ATOMIC_RELAXED))
int cuInit() { return 0; }
int cuDriverGetVersion(int *v) { *v = 13000; return 0; }
int cuDeviceGetCount(int *n) { *n = 1; return 0; }
int cuDeviceGet(int *device) { *device = 0; return 0; }
int cuCtxGetCurrent(void **context) { *context = (void *)16; return 0; }
int cuCtxSetCurrent() { return 0; }
int cuCtxGetDevice(int *device) { *device = 0; return 0; }
int cuCtxPushCurrent_v2() { return 0; }
int cuCtxPopCurrent_v2() { return 0; }
int cuDevicePrimaryCtxRetain(void **context) { *context = (void *)16; return 0; }
int cuDevicePrimaryCtxGetState(int d, unsigned *flags, int *is_active) { *flags = 0; *is_active = 1; return 0; }
int cuGetErrorString(int error, const char **text) { *text = "null"; return 0; }
int cuGetErrorName(int error, const char **text) { *text = "null"; return 0; }
int cudaDeviceGetAttribute(int *, int, int) __attribute__((weak));
int cuDeviceGetAttribute(int *value, int attribute, int device) { return cudaDeviceGetAttribute(value, attribute, device); }
int cuModuleLoad(void **module) { HANDLE(module); return 0; }
int cuModuleLoadData(void **module) { HANDLE(module); return 0; }
int cuModuleLoadDataEx(void **module) { HANDLE(module); return 0; }
int cuModuleUnload() { return 0; }
int cuModuleGetFunction(void **function, void *module, const char *name) {
  HANDLE(function);
  null_gpu_name(*function, strdup(name));
  return 0;
}
int cuFuncGetAttribute(int *value, int attribute, void *function) { *value = attribute == 0 ? 1024 : attribute == 4 ? 32 : 0; return 0; }
int cuFuncSetAttribute() { return 0; }
int cuFuncSetCacheConfig() { return 0; }
int cuLaunchKernel(void *function) { null_gpu_launch(function); return 0; }
int cuLaunchKernelEx(const void *config, void *function) { null_gpu_launch(function); return 0; }
int cuLaunchCooperativeKernel(void *function) { null_gpu_launch(function); return 0; }
int cuOccupancyMaxActiveBlocksPerMultiprocessor(int *n) { *n = 2; return 0; }
int cuOccupancyMaxActiveClusters(int *n) { *n = 2; return 0; }
int cuPointerGetAttribute(void *value, int attribute, unsigned long long pointer) { *(unsigned long long *)value = pointer; return 0; }
int cuTensorMapEncodeTiled() { return 0; }
int cuTensorMapEncodeIm2col() { return 0; }
int cuLinkCreate_v2() { return 0; }
int cuLinkAddData_v2() { return 0; }
int cuLinkComplete() { return 0; }
// Whatever else Triton's driver asks for does nothing: lines generated from its source.
#include "other_driver_symbols.h"
