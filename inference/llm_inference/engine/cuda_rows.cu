// Around the matrices.

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
