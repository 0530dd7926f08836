// What a decoder needs on a CUDA device beside matrix products of many rows.
//
// Compiled by NVRTC at start for one model: its shape is given as macros (see cuda_kernels.py). No
// header is included, so that none must be shipped.
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

// ---- around the matrices ---------------------------------------------------------------------

// out[row] = embedding[token] * scale. Grid: rows.
extern "C" __global__ void embed(
    scalar* out, const scalar* embedding, const int* tokens, float scale) {
  let_next_begin();
  wait_for_inputs();
  const scalar* from = embedding + (int64)tokens[blockIdx.x] * HIDDEN;
  scalar* to = out + (int64)blockIdx.x * HIDDEN;
  for (int i = threadIdx.x; i < HIDDEN; i += blockDim.x)
    to[i] = scale == 1.0f ? from[i] : narrow(widen(from[i]) * scale);
}

// residual += post ? norm(delta) * post : delta; out = norm(residual) * weight.
// Either part is left out where delta or weight is null. Norms are float32. Grid: rows.
#define NORM_THREADS 512
#define EIGHTS ((HIDDEN / 8 + NORM_THREADS - 1) / NORM_THREADS) // of a thread
extern "C" __global__ void __launch_bounds__(NORM_THREADS) add_norm(
    scalar* out, scalar* residual, const scalar* delta, const float* post, const float* weight) {
  let_next_begin();
  wait_for_inputs();
  const int64 row = (int64)blockIdx.x * HIDDEN;
  float x[EIGHTS][8];
  float square = 0.0f;
#pragma unroll
  for (int j = 0; j < EIGHTS; j++) {
    int i = (threadIdx.x + j * NORM_THREADS) * 8;
    if (i < HIDDEN) read8((delta ? delta : residual) + row + i, x[j]);
#pragma unroll
    for (int k = 0; k < 8; k++) {
      if (i >= HIDDEN) x[j][k] = 0.0f;
      square += x[j][k] * x[j][k];
    }
  }
  if (delta) {
    const float factor = post ? rsqrtf(block_sum(square) / HIDDEN + EPS) : 1.0f;
    square = 0.0f;
#pragma unroll
    for (int j = 0; j < EIGHTS; j++) {
      int i = (threadIdx.x + j * NORM_THREADS) * 8;
      if (i >= HIDDEN) continue;
      float before[8];
      read8(residual + row + i, before);
#pragma unroll
      for (int k = 0; k < 8; k++) {
        float add = post ? rounded(x[j][k] * factor * post[i + k]) : x[j][k];
        if (RESIDUAL_SCALE != 1.0f) add = rounded(add * RESIDUAL_SCALE);
        x[j][k] = rounded(before[k] + add);
        square += x[j][k] * x[j][k];
      }
      write8(residual + row + i, x[j]);
    }
  }
  if (!weight) return;
  const float factor = rsqrtf(block_sum(square) / HIDDEN + EPS);
#pragma unroll
  for (int j = 0; j < EIGHTS; j++) {
    int i = (threadIdx.x + j * NORM_THREADS) * 8;
    if (i >= HIDDEN) continue;
#pragma unroll
    for (int k = 0; k < 8; k++) x[j][k] *= factor * weight[i + k];
    write8(out + row + i, x[j]);
  }
}

// out = activated(gate) * up. Grid: (columns, rows).
extern "C" __global__ void activate(scalar* out, const scalar* gate_up) {
  let_next_begin();
  wait_for_inputs();
  const scalar* gate = gate_up + (int64)blockIdx.y * 2 * INTERMEDIATE;
  const scalar* up = gate + INTERMEDIATE;
  scalar* to = out + (int64)blockIdx.y * INTERMEDIATE;
#if !defined(FLOAT32) && INTERMEDIATE % 8 == 0
  int i = (blockIdx.x * blockDim.x + threadIdx.x) * 8;
  if (i >= INTERMEDIATE) return;
  uint4 g = *(const uint4*)(gate + i), u = *(const uint4*)(up + i), o;
  const unsigned *gs = &g.x, *us = &u.x;
  unsigned* os = &o.x;
#pragma unroll
  for (int j = 0; j < 4; j++) {
    float a, b, c, d;
    widen2(gs[j], a, b);
    widen2(us[j], c, d);
    os[j] = narrow2(rounded(activated(a)) * c, rounded(activated(b)) * d);
  }
  *(uint4*)(to + i) = o;
#else
  for (int j = 0; j < 8; j++) {
    int i = (blockIdx.x * 8 + j) * blockDim.x + threadIdx.x;
    if (i < INTERMEDIATE) to[i] = narrow(rounded(activated(widen(gate[i]))) * widen(up[i]));
  }
#endif
}

// Norm and turn the queries in place, norm and turn the keys and put them and the values into the
// cache at (row, position) of their token; tokens of negative positions are left alone.
// Pair i of a head is dimensions i and i + rotary / 2. Grid: (tokens, heads in eights); 256 threads.
extern "C" __global__ void __launch_bounds__(256) turn_and_store(
    scalar* qkv, scalar* keys, scalar* values, const int* rows, const int* positions,
    const float* query_norm, const float* key_norm, const float* frequencies, int rotary,
    float rope_scale, int max_length) {
  let_next_begin();
  wait_for_inputs();
  const int token = blockIdx.x, lane = threadIdx.x & 31;
  const int head = blockIdx.y * 8 + (threadIdx.x >> 5);
  const int position = positions[token];
  if (position < 0 || head >= HEADS + 2 * KV_HEADS) return;
  scalar* from = qkv + (int64)token * QKV + head * HEAD_DIM;
  const int64 row = rows[token];
  if (head >= HEADS + KV_HEADS) {
    int kv = head - HEADS - KV_HEADS;
    scalar* to = values + ((row * KV_HEADS + kv) * max_length + position) * HEAD_DIM;
    for (int i = lane; i < HEAD_DIM; i += 32) to[i] = from[i];
    return;
  }
  const bool is_query = head < HEADS;
  scalar* to = is_query
      ? from
      : keys + ((row * KV_HEADS + (head - HEADS)) * max_length + position) * HEAD_DIM;
  const float* norm = is_query ? query_norm : key_norm;
  float factor = 1.0f;
  if (norm) {
    float square = 0.0f;
    for (int i = lane; i < HEAD_DIM; i += 32) square += widen(from[i]) * widen(from[i]);
    factor = rsqrtf(warp_sum(square) / HEAD_DIM + EPS);
  }
  const int half = rotary / 2;
  for (int i = lane; i < half; i += 32) {
    float a = widen(from[i]), b = widen(from[i + half]);
    if (norm) {
      a = rounded(a * factor * norm[i]);
      b = rounded(b * factor * norm[i + half]);
    }
    float sine, cosine;
    sincosf((float)position * frequencies[i], &sine, &cosine);
    sine *= rope_scale;
    cosine *= rope_scale;
    to[i] = narrow(a * cosine - b * sine);
    to[i + half] = narrow(b * cosine + a * sine);
  }
  for (int i = rotary + lane; i < HEAD_DIM; i += 32)
    to[i] = norm ? narrow(widen(from[i]) * factor * norm[i]) : from[i];
}

// The largest logit's index of each row, the lowest of equals; -1 where it is not finite.
// `best` is one word a row and `tickets` too, both zero before and after.
// Grid: (parts, rows).
__device__ __forceinline__ unsigned ordered(float value) {
  unsigned bits = __float_as_uint(value);
  if (value != value) return 0xffffffffu;
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
extern "C" __global__ void __launch_bounds__(256) argmax(
    int* out, const scalar* logits, uint64* best, unsigned* tickets, int vocabulary, int64 stride) {
  __shared__ uint64 found[8];
  let_next_begin();
  wait_for_inputs();
  const scalar* row = logits + blockIdx.y * stride;
  uint64 mine = 0;
  for (int i = blockIdx.x * 256 + threadIdx.x; i < vocabulary; i += gridDim.x * 256) {
    uint64 key = (uint64)ordered(widen(row[i])) << 32 | (0xffffffffu - (unsigned)i);
    if (key > mine) mine = key;
  }
#pragma unroll
  for (int offset = 16; offset > 0; offset >>= 1) {
    uint64 other = __shfl_xor_sync(0xffffffffu, mine, offset);
    if (other > mine) mine = other;
  }
  if ((threadIdx.x & 31) == 0) found[threadIdx.x >> 5] = mine;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int warp = 1; warp < 8; warp++)
    if (found[warp] > mine) mine = found[warp];
  atomicMax(best + blockIdx.y, mine);
  __threadfence();
  if (atomicAdd(tickets + blockIdx.y, 1u) != gridDim.x - 1) return;
  uint64 winner = atomicExch(best + blockIdx.y, 0ull);
  tickets[blockIdx.y] = 0;
  unsigned value = (unsigned)(winner >> 32);
  bool finite = value > ordered(-INFINITE) && value < ordered(INFINITE);
  out[blockIdx.y] = finite ? (int)(0xffffffffu - (unsigned)winner) : -1;
}

// Make the inputs of the next step: what was chosen, one position further. One block.
extern "C" __global__ void advance(int* tokens, int* positions, const int* chosen, int count) {
  let_next_begin();
  wait_for_inputs();
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    tokens[i] = max(chosen[i], 0);
    if (positions[i] >= 0) positions[i]++;
  }
}

// ---- attention of one token a row --------------------------------------------------------------
//
// Flash decoding: the positions of a row are shared out among `gridDim.z` blocks ("splits"), and
// in a block among its warps; each keeps a running maximum, sum and weighted values. The last
// block of a row and kv head to finish combines what all have left in `partial`.
//
// How many blocks take part depends on each row's own length, read from the device: one captured
// graph is right for all lengths.

#define WARPS 4
#define TILE 16

struct Share {
  int begin, end;      // positions a token sees
  int first, last;     // those of this block
  int splits;          // blocks that have any
};

__device__ __forceinline__ Share share_out(int position, int window) {
  Share share;
  share.end = position + 1;
  share.begin = window > 0 && share.end > window ? share.end - window : 0;
  int origin = share.begin / TILE * TILE;
  int tiles = (share.end - origin + TILE - 1) / TILE;
  // All warps of a block shall have a tile before another block gets one.
  int each = max((tiles + (int)gridDim.z - 1) / (int)gridDim.z, min(tiles, WARPS));
  share.splits = (tiles + each - 1) / each;
  share.first = origin + blockIdx.z * each * TILE;
  share.last = min(share.end, share.first + each * TILE);
  return share;
}

__device__ __forceinline__ float scored(float product) {
  float score = product * ATTENTION_SCALE;
  if (ATTENTION_SOFTCAP > 0.0f) score = ATTENTION_SOFTCAP * tanhf(score / ATTENTION_SOFTCAP);
  return score * LOG2_E;
}

// A block's own result for its group of heads, in shared memory: not yet divided by `sum`.
struct Result {
  float values[GROUP][HEAD_DIM];
  float maximum[GROUP];
  float sum[GROUP];
};

// Writes the block's result, or leaves it for the last block, or combines as that one.
// `partial`: (rows, kv heads, splits, group, head_dim + 2) floats.
__device__ __forceinline__ void finish(
    Result& result, const Share& share, scalar* out, float* partial, unsigned* tickets) {
  __shared__ bool is_last;
  const int pair = blockIdx.y * KV_HEADS + blockIdx.x;
  out += (int64)blockIdx.y * HEADS * HEAD_DIM + blockIdx.x * GROUP * HEAD_DIM;
  if (share.splits == 1) {
    for (int i = threadIdx.x; i < GROUP * HEAD_DIM; i += WARPS * 32)
      out[i] = narrow(result.values[i / HEAD_DIM][i % HEAD_DIM] / result.sum[i / HEAD_DIM]);
    return;
  }
  const int size = GROUP * (HEAD_DIM + 2);
  float* base = partial + (int64)pair * gridDim.z * size;
  float* mine = base + blockIdx.z * size;
  for (int i = threadIdx.x; i < GROUP * HEAD_DIM; i += WARPS * 32)
    mine[i] = result.values[i / HEAD_DIM][i % HEAD_DIM];
  for (int g = threadIdx.x; g < GROUP; g += WARPS * 32) {
    mine[GROUP * HEAD_DIM + g] = result.maximum[g];
    mine[GROUP * HEAD_DIM + GROUP + g] = result.sum[g];
  }
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) is_last = atomicAdd(tickets + pair, 1u) == share.splits - 1;
  __syncthreads();
  if (!is_last) return;
  __threadfence();
  if (threadIdx.x == 0) tickets[pair] = 0;
  // What each split counts for, a warp for each head and a lane for each split; then the sums, whose
  // loads do not wait for each other.
  __shared__ float shares[GROUP][32];
  const int lane = threadIdx.x & 31;
  for (int g = threadIdx.x >> 5; g < GROUP; g += WARPS) {
    const float* other = base + lane * size + GROUP * HEAD_DIM + g;
    float maximum = lane < share.splits ? __ldcg(other) : LOWEST;
    float sum = lane < share.splits ? __ldcg(other + GROUP) : 0.0f;
    float top = maximum;
#pragma unroll
    for (int offset = 16; offset > 0; offset >>= 1)
      top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, offset));
    float counts = exp2f(maximum - top);
    shares[g][lane] = counts / warp_sum(sum * counts);
  }
  __syncthreads();
  for (int i = threadIdx.x; i < GROUP * HEAD_DIM; i += WARPS * 32) {
    float value = 0.0f;
#pragma unroll 8
    for (int split = 0; split < share.splits; split++)
      value += __ldcg(base + split * size + i) * shares[i / HEAD_DIM][split];
    out[i] = narrow(value);
  }
}

#if defined(FLOAT32) || HEAD_DIM % 32 != 0 || GROUP > 16
// The plain way, for any type: a warp takes one position after the other, a lane some dimensions.
#define LANE_DIMS ((HEAD_DIM + 31) / 32)
extern "C" __global__ void __launch_bounds__(WARPS * 32) attend(
    scalar* out, const scalar* qkv, const scalar* keys, const scalar* values, const int* rows,
    const int* positions, float* partial, unsigned* tickets, int max_length, int window) {
  __shared__ Result result;
  let_next_begin();
  wait_for_inputs();
  const int kv = blockIdx.x, item = blockIdx.y, lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  if (positions[item] < 0) return;
  const Share share = share_out(positions[item], window);
  if (share.first >= share.end) return;
  const int64 base = ((int64)rows[item] * KV_HEADS + kv) * max_length * HEAD_DIM;
  for (int g = 0; g < GROUP; g++) {
    const scalar* q = qkv + (int64)item * QKV + (kv * GROUP + g) * HEAD_DIM;
    float query[LANE_DIMS], value[LANE_DIMS];
    float maximum = LOWEST, sum = 0.0f;
#pragma unroll
    for (int j = 0; j < LANE_DIMS; j++) {
      query[j] = lane + 32 * j < HEAD_DIM ? widen(q[lane + 32 * j]) : 0.0f;
      value[j] = 0.0f;
    }
    for (int at = max(share.first, share.begin) + warp; at < share.last; at += WARPS) {
      const scalar* key = keys + base + (int64)at * HEAD_DIM;
      float product = 0.0f;
#pragma unroll
      for (int j = 0; j < LANE_DIMS; j++)
        if (lane + 32 * j < HEAD_DIM) product += query[j] * widen(key[lane + 32 * j]);
      float score = scored(warp_sum(product));
      float both = fmaxf(maximum, score);
      float keep = exp2f(maximum - both), weight = exp2f(score - both);
      const scalar* v = values + base + (int64)at * HEAD_DIM;
      sum = sum * keep + weight;
#pragma unroll
      for (int j = 0; j < LANE_DIMS; j++)
        if (lane + 32 * j < HEAD_DIM) value[j] = value[j] * keep + weight * widen(v[lane + 32 * j]);
      maximum = both;
    }
    for (int turn = 0; turn < WARPS; turn++) {
      if (warp == turn) {
        float before = turn == 0 ? LOWEST : result.maximum[g];
        float both = fmaxf(before, maximum);
        float keep = exp2f(before - both), take = exp2f(maximum - both);
        float total = (turn == 0 ? 0.0f : result.sum[g]) * keep + sum * take;
#pragma unroll
        for (int j = 0; j < LANE_DIMS; j++)
          if (lane + 32 * j < HEAD_DIM) {
            float* cell = &result.values[g][lane + 32 * j];
            *cell = (turn == 0 ? 0.0f : *cell * keep) + value[j] * take;
          }
        __syncwarp();
        if (lane == 0) {
          result.maximum[g] = both;
          result.sum[g] = total;
        }
      }
      __syncthreads();
    }
  }
  finish(result, share, out, partial, tickets);
}

#else
// On the tensor cores: the heads of a group are the rows of a 16-row matrix, positions its columns.
//
// A product does not care in which order its terms are added, so a lane may hold any dimensions as
// long as queries and keys agree. A lane therefore loads 16 neighbouring bytes, which are the
// operands of two products, straight from the cache, with no detour through shared memory.
//
// m16n8k16: lane l holds rows l/4 and l/4+8 of A, column l/4 of B, and of the result rows l/4 and
// l/4+8, columns 2*(l%4) and 2*(l%4)+1.
__device__ __forceinline__ void multiply_add(
    float (&c)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32." MMA_TYPE "." MMA_TYPE ".f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

#define HALVES (GROUP > 8 ? 2 : 1)         // of the 16 rows, how many eights are in use
#define CHUNKS (HEAD_DIM / 32)             // a key is 4 lanes x 8 dimensions x CHUNKS
#define WORDS (HEAD_DIM % 64 == 0 ? 4 : 2) // a value is 8 lanes x 2 * WORDS dimensions x PARTS
#define PARTS (HEAD_DIM / (16 * WORDS))

struct Words { unsigned w[4]; };

__device__ __forceinline__ Words load(const scalar* from, bool there) {
  Words words = {{0, 0, 0, 0}};
  if (there) {
    uint4 all = *(const uint4*)from;
    words.w[0] = all.x; words.w[1] = all.y; words.w[2] = all.z; words.w[3] = all.w;
  }
  return words;
}

__device__ __forceinline__ Words load_value(const scalar* from, bool there) {
  if (WORDS == 4) return load(from, there);
  Words words = {{0, 0, 0, 0}};
  if (there) {
    uint2 all = *(const uint2*)from;
    words.w[0] = all.x; words.w[1] = all.y;
  }
  return words;
}

extern "C" __global__ void __launch_bounds__(WARPS * 32) attend(
    scalar* out, const scalar* qkv, const scalar* keys, const scalar* values, const int* rows,
    const int* positions, float* partial, unsigned* tickets, int max_length, int window) {
  __shared__ Result result;
  let_next_begin();
  wait_for_inputs();
  const int kv = blockIdx.x, item = blockIdx.y, lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int column = lane & 3, line = lane >> 2;
  if (positions[item] < 0) return;
  const Share share = share_out(positions[item], window);
  if (share.first >= share.end) return;
  const int64 base = ((int64)rows[item] * KV_HEADS + kv) * max_length * HEAD_DIM;
  keys += base;
  values += base;

  Words query[HALVES][CHUNKS];
  const scalar* q = qkv + (int64)item * QKV + kv * GROUP * HEAD_DIM;
#pragma unroll
  for (int half = 0; half < HALVES; half++)
#pragma unroll
    for (int i = 0; i < CHUNKS; i++) {
      int head = line + 8 * half;
      query[half][i] = load(q + head * HEAD_DIM + 32 * i + 8 * column, head < GROUP);
    }

  float sums[PARTS][2 * WORDS][4];
#pragma unroll
  for (int p = 0; p < PARTS; p++)
#pragma unroll
    for (int e = 0; e < 2 * WORDS; e++)
#pragma unroll
      for (int i = 0; i < 4; i++) sums[p][e][i] = 0.0f;
  float maximum[HALVES], total[HALVES];
#pragma unroll
  for (int half = 0; half < HALVES; half++) {
    maximum[half] = LOWEST;
    total[half] = 0.0f;
  }

  for (int tile = share.first + warp * TILE; tile < share.last; tile += WARPS * TILE) {
    // All loads of a tile are under way before the first is used.
    Words key[2][CHUNKS], value[PARTS][4];
#pragma unroll
    for (int n = 0; n < 2; n++)
#pragma unroll
      for (int i = 0; i < CHUNKS; i++) {
        int at = tile + 8 * n + line;
        key[n][i] = load(keys + (int64)at * HEAD_DIM + 32 * i + 8 * column, at < share.end);
      }
#pragma unroll
    for (int p = 0; p < PARTS; p++)
#pragma unroll
      for (int k = 0; k < 4; k++) {
        int at = tile + 2 * column + (k & 1) + (k & 2) * 4;
        // Zeros for what is not seen: a stale NaN times nothing would still be NaN.
        value[p][k] = load_value(
            values + (int64)at * HEAD_DIM + 16 * WORDS * p + 2 * WORDS * line,
            at < share.end && at >= share.begin);
      }

    float scores[2][4];
#pragma unroll
    for (int n = 0; n < 2; n++) {
#pragma unroll
      for (int i = 0; i < 4; i++) scores[n][i] = 0.0f;
#pragma unroll
      for (int i = 0; i < CHUNKS; i++) {
        const unsigned* a = query[0][i].w;
        const unsigned* b = query[HALVES - 1][i].w;
        const unsigned* k = key[n][i].w;
        multiply_add(scores[n], a[0], HALVES > 1 ? b[0] : 0, a[1], HALVES > 1 ? b[1] : 0, k[0], k[1]);
        multiply_add(scores[n], a[2], HALVES > 1 ? b[2] : 0, a[3], HALVES > 1 ? b[3] : 0, k[2], k[3]);
      }
#pragma unroll
      for (int i = 0; i < 4; i++) {
        int at = tile + 8 * n + 2 * column + (i & 1);
        scores[n][i] = at < share.end && at >= share.begin ? scored(scores[n][i]) : -INFINITE;
      }
    }

    unsigned weights[2][2]; // of positions (n), of heads (half)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      if (half >= HALVES) {
        weights[0][half] = weights[1][half] = 0;
        continue;
      }
      const int i = 2 * half;
      float top = fmaxf(fmaxf(scores[0][i], scores[0][i + 1]), fmaxf(scores[1][i], scores[1][i + 1]));
      top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
      top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
      float both = fmaxf(maximum[half], top);
      float keep = exp2f(maximum[half] - both);
      maximum[half] = both;
      float added = 0.0f;
#pragma unroll
      for (int n = 0; n < 2; n++) {
        float w0 = exp2f(scores[n][i] - both), w1 = exp2f(scores[n][i + 1] - both);
        weights[n][half] = narrow2(w0, w1);
        added += w0 + w1;
      }
      total[half] = total[half] * keep + added;
#pragma unroll
      for (int p = 0; p < PARTS; p++)
#pragma unroll
        for (int e = 0; e < 2 * WORDS; e++) {
          sums[p][e][i] *= keep;
          sums[p][e][i + 1] *= keep;
        }
    }

#pragma unroll
    for (int p = 0; p < PARTS; p++)
#pragma unroll
      for (int e = 0; e < 2 * WORDS; e++) {
        const unsigned pick = e & 1 ? 0x7632 : 0x5410;
        unsigned b0 = __byte_perm(value[p][0].w[e / 2], value[p][1].w[e / 2], pick);
        unsigned b1 = __byte_perm(value[p][2].w[e / 2], value[p][3].w[e / 2], pick);
        multiply_add(sums[p][e], weights[0][0], weights[0][1], weights[1][0], weights[1][1], b0, b1);
      }
  }

  // The warps add their results up, one after the other.
#pragma unroll
  for (int half = 0; half < HALVES; half++) {
    total[half] += __shfl_xor_sync(0xffffffffu, total[half], 1);
    total[half] += __shfl_xor_sync(0xffffffffu, total[half], 2);
  }
  for (int turn = 0; turn < WARPS; turn++) {
    if (warp == turn) {
#pragma unroll
      for (int half = 0; half < HALVES; half++) {
        const int head = line + 8 * half;
        if (head < GROUP) {
          float before = turn == 0 ? LOWEST : result.maximum[head];
          float both = fmaxf(before, maximum[half]);
          float keep = exp2f(before - both), take = exp2f(maximum[half] - both);
          float sum = (turn == 0 ? 0.0f : result.sum[head]) * keep + total[half] * take;
#pragma unroll
          for (int p = 0; p < PARTS; p++)
#pragma unroll
            for (int e = 0; e < 2 * WORDS; e++)
#pragma unroll
              for (int i = 0; i < 2; i++) {
                // Column 2 * column + i of the result is the dimension that lane's chunk began.
                float* cell = &result.values[head]
                    [16 * WORDS * p + 2 * WORDS * (2 * column + i) + e];
                *cell = (turn == 0 ? 0.0f : *cell * keep) + sums[p][e][2 * half + i] * take;
              }
          __syncwarp(__activemask());
          if (column == 0) {
            result.maximum[head] = both;
            result.sum[head] = sum;
          }
        }
      }
    }
    __syncthreads();
  }
  finish(result, share, out, partial, tickets);
}
#endif

// ---- matrix times vector ---------------------------------------------------------------------
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
