// Attention of single tokens over paged keys and values, as flash decoding (Dao et al., 2023) shares it out: each block
// of threads takes one split of one sequence's tokens for the query heads that share a KV head, one warp a query head.
// A second pass adds up the splits. Compiled at start, with these macros:
//   DIM     numbers of a head, a multiple of 32
//   CACHE   type of the cache: 0 F32, 1 BF16, 2 F16
typedef unsigned int u32;

#define NOTHING __int_as_float(0xff800000)  // a score below all others, -infinity

constexpr int LANES = 32;
constexpr int EACH = DIM / LANES;  // numbers of a head that a lane holds
constexpr int AHEAD = 4;           // tokens that a warp looks at together, so that their loads overlap

#if CACHE == 0
typedef float Stored;
__device__ float widen(Stored x) { return x; }
#elif CACHE == 1
typedef unsigned short Stored;
__device__ float widen(Stored x) { return __uint_as_float((u32)x << 16); }
#else
typedef unsigned short Stored;
__device__ float widen(Stored x) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x));
  return wide;
}
#endif

struct alignas(EACH * sizeof(Stored) > 16 ? 16 : EACH * sizeof(Stored)) Part {
  Stored numbers[EACH];
};

__device__ float add_lanes(float x) {
#pragma unroll
  for (int other = LANES / 2; other > 0; other /= 2) x += __shfl_xor_sync(0xffffffff, x, other);
  return x;
}

// Grid (sequences, KV heads, splits), block (32, query heads of a KV head).
// `q` has shape (sequences, query heads, DIM). `table` holds for each sequence how many tokens it sees, then where its
// blocks begin in the table, then all blocks. Each (sequence, query head, split) leaves in `parts` the sum of its
// weighted values, their highest score and the sum of the weights relative to it: DIM + 2 numbers.
extern "C" __global__ void attend_split(const float* q, const Stored* keys, const Stored* values, const u32* table,
                                        float* parts, u32 block_size, float scale) {
  const u32 row = blockIdx.x, rows = gridDim.x, kv_head = blockIdx.y, kv_heads = gridDim.y;
  const u32 split = blockIdx.z, splits = gridDim.z, lane = threadIdx.x;
  const u32 head = kv_head * blockDim.y + threadIdx.y, heads = kv_heads * blockDim.y;
  const u32 seen = table[row];
  const u32* blocks = table + table[rows + row];
  const u32 share = (seen + splits - 1) / splits, begin = split * share, end = min(seen, begin + share);

  float query[EACH], sum[EACH];
  const float* from = q + ((size_t)row * heads + head) * DIM + lane * EACH;
#pragma unroll
  for (int i = 0; i < EACH; i++) query[i] = from[i] * scale, sum[i] = 0.0f;
  float highest = NOTHING, total = 0.0f;

  for (u32 first = begin; first < end; first += AHEAD) {
    float score[AHEAD];
    size_t at[AHEAD];
#pragma unroll
    for (int t = 0; t < AHEAD; t++) {
      const u32 token = min(first + t, end - 1);
      const size_t slot = (size_t)blocks[token / block_size] * block_size + token % block_size;
      at[t] = (slot * kv_heads + kv_head) * DIM + lane * EACH;
      const Part key = *(const Part*)(keys + at[t]);
      score[t] = 0.0f;
#pragma unroll
      for (int i = 0; i < EACH; i++) score[t] += query[i] * widen(key.numbers[i]);
    }
    float top = highest;
#pragma unroll
    for (int t = 0; t < AHEAD; t++) {
      score[t] = first + t < end ? add_lanes(score[t]) : NOTHING;
      top = fmaxf(top, score[t]);
    }
    const float shrink = __expf(highest - top);
    total *= shrink;
#pragma unroll
    for (int i = 0; i < EACH; i++) sum[i] *= shrink;
#pragma unroll
    for (int t = 0; t < AHEAD; t++) {
      const float weight = __expf(score[t] - top);
      const Part value = *(const Part*)(values + at[t]);
      total += weight;
#pragma unroll
      for (int i = 0; i < EACH; i++) sum[i] += weight * widen(value.numbers[i]);
    }
    highest = top;
  }

  float* part = parts + (((size_t)row * heads + head) * splits + split) * (DIM + 2);
#pragma unroll
  for (int i = 0; i < EACH; i++) part[lane * EACH + i] = sum[i];
  if (lane == 0) part[DIM] = highest, part[DIM + 1] = total;
}

// Grid (sequences × query heads), block (DIM): from the parts of all splits to the output of shape
// (sequences, query heads, DIM).
extern "C" __global__ void add_splits(const float* parts, float* output, u32 splits) {
  const float* mine = parts + (size_t)blockIdx.x * splits * (DIM + 2);
  float top = NOTHING;
  for (u32 split = 0; split < splits; split++) top = fmaxf(top, mine[split * (DIM + 2) + DIM]);
  float sum = 0.0f, total = 0.0f;
  for (u32 split = 0; split < splits; split++) {
    const float* part = mine + split * (DIM + 2);
    const float weight = __expf(part[DIM] - top);  // 0 for a split without tokens
    sum += weight * part[threadIdx.x];
    total += weight * part[DIM + 1];
  }
  output[(size_t)blockIdx.x * DIM + threadIdx.x] = sum / total;
}
