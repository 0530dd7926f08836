// Matrix times vector.
//
// One row at a time all that counts is how fast weights come from memory. A warp takes one row of
// the matrix after the other, a lane 16 bytes of every 512; the vector lies in shared memory. What
// comes before (the norm) and after (bias, activation, residual) is part of the kernel, and the
// first weights are on their way before the kernel waits for its vector.

#if !defined(FLOAT32)
#define GEMV_WARPS 8
#define DEPTH 8 // loads of a lane under way

struct Weights { uint4 w[DEPTH]; };

__device__ __forceinline__ uint4 stream(const scalar* from) {
  uint4 all;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(all.x), "=r"(all.y), "=r"(all.z), "=r"(all.w) : "l"(from));
  return all;
}

__device__ __forceinline__ void fetch(Weights& weights, const scalar* row, int from, int columns) {
#pragma unroll
  for (int j = 0; j < DEPTH; j++) {
    int i = from + j * 256;
    if (i < columns) weights.w[j] = stream(row + i);
  }
}

__device__ __forceinline__ float product8(uint4 weights, uint4 vector, float sum) {
  const unsigned *w = &weights.x, *v = &vector.x;
#pragma unroll
  for (int j = 0; j < 4; j++) {
    float a, b, c, d;
    widen2(w[j], a, b);
    widen2(v[j], c, d);
    sum += a * c;
    sum += b * d;
  }
  return sum;
}

// Product of a row with the vector, of which `weights` are the first; `weights` are afterwards the
// first of `next`.
__device__ __forceinline__ float row_product(
    Weights& weights, const scalar* row, const scalar* next, const scalar* vector, int columns) {
  const int lane = (threadIdx.x & 31) * 8;
  float sum = 0.0f;
  for (int from = lane; from < columns; from += 256 * DEPTH) {
    Weights now = weights;
    int ahead = from + 256 * DEPTH;
    if (ahead < columns) fetch(weights, row, ahead, columns);
    else if (next) fetch(weights, next, lane, columns);
#pragma unroll
    for (int j = 0; j < DEPTH; j++) {
      int i = from + j * 256;
      if (i < columns) sum = product8(now.w[j], *(const uint4*)(vector + i), sum);
    }
  }
  return warp_sum(sum);
}

// Put the input into shared memory, with `norm` normalised.
__device__ __forceinline__ void take_vector(
    scalar* vector, const scalar* input, const float* norm, int columns) {
  float square = 0.0f;
  for (int i = threadIdx.x * 8; i < columns; i += GEMV_WARPS * 256) {
    uint4 all = *(const uint4*)(input + i);
    *(uint4*)(vector + i) = all;
    square = product8(all, all, square);
  }
  if (norm) {
    float factor = rsqrtf(block_sum(square) / columns + EPS);
    for (int i = threadIdx.x * 8; i < columns; i += GEMV_WARPS * 256) {
      float x[8];
      read8(vector + i, x);
#pragma unroll
      for (int j = 0; j < 8; j++) x[j] *= factor * norm[i + j];
      write8(vector + i, x);
    }
  }
  __syncthreads();
}

// out = matrix @ (norm ? norm(input) : input) + bias; or, with `residual`, residual += that.
// `columns` is a multiple of 8. Grid: any; 256 threads; shared memory: columns * 2 bytes.
extern "C" __global__ void __launch_bounds__(GEMV_WARPS * 32, 2) gemv(
    scalar* out, scalar* residual, const scalar* input, const float* norm, const scalar* matrix,
    const scalar* bias, int lines, int columns) {
  extern __shared__ __align__(16) scalar vector[];
  const int lane = threadIdx.x & 31, step = gridDim.x * GEMV_WARPS;
  int line = blockIdx.x * GEMV_WARPS + (threadIdx.x >> 5);
  Weights weights;
  if (line < lines) fetch(weights, matrix + (int64)line * columns, lane * 8, columns);
  let_next_begin();
  wait_for_inputs();
  take_vector(vector, input, norm, columns);
  for (; line < lines; line += step) {
    const scalar* row = matrix + (int64)line * columns;
    const scalar* next = line + step < lines ? row + (int64)step * columns : nullptr;
    float sum = row_product(weights, row, next, vector, columns);
    if (lane == 0) {
      if (bias) sum += widen(bias[line]);
      if (residual) {
        sum = rounded(sum);
        if (RESIDUAL_SCALE != 1.0f) sum = rounded(sum * RESIDUAL_SCALE);
        residual[line] = narrow(widen(residual[line]) + sum);
      } else {
        out[line] = narrow(sum);
      }
    }
  }
}

// out = activated(gate @ norm(input)) * (up @ norm(input)). As `gemv`.
extern "C" __global__ void __launch_bounds__(GEMV_WARPS * 32, 2) gemv_gate_up(
    scalar* out, const scalar* input, const float* norm, const scalar* matrix) {
  extern __shared__ __align__(16) scalar vector[];
  const int lane = threadIdx.x & 31, step = gridDim.x * GEMV_WARPS;
  int line = blockIdx.x * GEMV_WARPS + (threadIdx.x >> 5);
  Weights weights;
  if (line < INTERMEDIATE) fetch(weights, matrix + (int64)line * HIDDEN, lane * 8, HIDDEN);
  let_next_begin();
  wait_for_inputs();
  take_vector(vector, input, norm, HIDDEN);
  for (; line < INTERMEDIATE; line += step) {
    const scalar* gate = matrix + (int64)line * HIDDEN;
    const scalar* up = gate + (int64)INTERMEDIATE * HIDDEN;
    const scalar* next = line + step < INTERMEDIATE ? gate + (int64)step * HIDDEN : nullptr;
    float a = row_product(weights, gate, up, vector, HIDDEN);
    float b = row_product(weights, up, next, vector, HIDDEN);
    if (lane == 0) out[line] = narrow(rounded(activated(rounded(a))) * rounded(b));
  }
}
#endif
