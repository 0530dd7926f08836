// Attention of one token a row.
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
