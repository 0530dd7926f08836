// What a decoder needs on a CUDA device beside matrix products of many rows: numbers and sums.
//
// Compiled by NVRTC at start for one model, in one piece with cuda_rows.cu, cuda_attention.cu and
// cuda_vectors.cu, which use what is defined here. The model's shape is given as macros (see
// cuda_kernels.py). No header is included, so that none must be shipped.
//
//   BFLOAT16 | FLOAT16 | FLOAT32   type of weights, activations and cache
//   HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, HEAD_DIM
//   EPS, ATTENTION_SCALE, ATTENTION_SOFTCAP (0: none), RESIDUAL_SCALE, ACTIVATION
//
// Each kernel waits for the one before it with `wait_for_inputs`, and lets the one after it begin
// with `let_next_begin`: it may then be launched early and load its weights meanwhile.

typedef long long int64;
typedef unsigned long long uint64;

#define GROUP (HEADS / KV_HEADS)
#define QKV ((HEADS + 2 * KV_HEADS) * HEAD_DIM)
#define LOWEST (-1e30f)
#define INFINITE __int_as_float(0x7f800000)
#define LOG2_E 1.4426950408889634f

// ---- numbers ---------------------------------------------------------------------------------

#if defined(FLOAT32)
typedef float scalar;
__device__ __forceinline__ float widen(scalar value) { return value; }
__device__ __forceinline__ scalar narrow(float value) { return value; }
#else
typedef unsigned short scalar;
#if defined(BFLOAT16)
__device__ __forceinline__ float widen(scalar value) {
  return __uint_as_float((unsigned)value << 16);
}
__device__ __forceinline__ void widen2(unsigned pair, float& low, float& high) {
  low = __uint_as_float(pair << 16);
  high = __uint_as_float(pair & 0xffff0000u);
}
__device__ __forceinline__ unsigned narrow2(float low, float high) {
  unsigned pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
#define MMA_TYPE "bf16"
#else
__device__ __forceinline__ float widen(scalar value) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value));
  return wide;
}
__device__ __forceinline__ void widen2(unsigned pair, float& low, float& high) {
  low = widen((scalar)(pair & 0xffffu));
  high = widen((scalar)(pair >> 16));
}
__device__ __forceinline__ unsigned narrow2(float low, float high) {
  unsigned pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
#define MMA_TYPE "f16"
#endif
__device__ __forceinline__ scalar narrow(float value) { return (scalar)narrow2(value, 0.0f); }
#endif

// What a value is after it was written in the model's type and read again.
__device__ __forceinline__ float rounded(float value) { return widen(narrow(value)); }

// Eight neighbours, 16 bytes aligned.
__device__ __forceinline__ void read8(const scalar* from, float (&x)[8]) {
#if defined(FLOAT32)
  *(float4*)x = *(const float4*)from;
  *(float4*)(x + 4) = *(const float4*)(from + 4);
#else
  uint4 all = *(const uint4*)from;
  widen2(all.x, x[0], x[1]);
  widen2(all.y, x[2], x[3]);
  widen2(all.z, x[4], x[5]);
  widen2(all.w, x[6], x[7]);
#endif
}

__device__ __forceinline__ void write8(scalar* to, const float (&x)[8]) {
#if defined(FLOAT32)
  *(float4*)to = *(const float4*)x;
  *(float4*)(to + 4) = *(const float4*)(x + 4);
#else
  uint4 all;
  all.x = narrow2(x[0], x[1]);
  all.y = narrow2(x[2], x[3]);
  all.z = narrow2(x[4], x[5]);
  all.w = narrow2(x[6], x[7]);
  *(uint4*)to = all;
#endif
}

__device__ __forceinline__ float activated(float x) {
#if ACTIVATION == 0
  return x / (1.0f + expf(-x));
#elif ACTIVATION == 1
  return 0.5f * x * (1.0f + tanhf(0.7978845608028654f * (x + 0.044715f * x * x * x)));
#else
  return 0.5f * x * (1.0f + erff(x * 0.7071067811865476f));
#endif
}

__device__ __forceinline__ void wait_for_inputs() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ void let_next_begin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// ---- sums ------------------------------------------------------------------------------------

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset >>= 1)
    value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}

// Sum over a block; every thread gets it.
__device__ __forceinline__ float block_sum(float value) {
  __shared__ float sums[32];
  value = warp_sum(value);
  __syncthreads();
  if ((threadIdx.x & 31) == 0) sums[threadIdx.x >> 5] = value;
  __syncthreads();
  float total = 0.0f;
  for (int warp = 0; warp < (int)(blockDim.x >> 5); warp++) total += sums[warp];
  return total;
}
