// Attention on GPUs. Compiled at start, with these macros:
//   DIM         numbers of a head, a multiple of 32
//   ACTIVATION  type of queries, scores and output: 0 F32, 1 BF16, 2 F16
//   CACHE       type of keys and values, likewise
typedef unsigned int u32;

#define NOTHING __int_as_float(0xff800000)  // a score below all others, -infinity

constexpr int LANES = 32;
constexpr int EACH = DIM / LANES;  // numbers of a head that a lane holds
constexpr int AHEAD = 4;           // tokens that a warp looks at together, so that their loads overlap

template <int TYPE> struct Number;
template <> struct Number<0> {
  typedef float Stored;
  static __device__ float widen(float x) { return x; }
  static __device__ float narrow(float x) { return x; }
};
template <> struct Number<1> {
  typedef unsigned short Stored;
  static __device__ float widen(Stored x) { return __uint_as_float((u32)x << 16); }
  // Rounds half to even; what is no number stays none.
  static __device__ Stored narrow(float x) {
    const u32 bits = __float_as_uint(x);
    return x != x ? 0x7fc0 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  }
};
template <> struct Number<2> {
  typedef unsigned short Stored;
  static __device__ float widen(Stored x) {
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x));
    return wide;
  }
  static __device__ Stored narrow(float x) {
    Stored narrow;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(narrow) : "f"(x));
    return narrow;
  }
};
typedef Number<ACTIVATION> Active;
typedef Number<CACHE> Kept;
typedef Active::Stored Activation;
typedef Kept::Stored Stored;

struct alignas(EACH * sizeof(Stored) > 16 ? 16 : EACH * sizeof(Stored)) Part {
  Stored numbers[EACH];
};

__device__ float add_lanes(float x) {
#pragma unroll
  for (int other = LANES / 2; other > 0; other /= 2) x += __shfl_xor_sync(0xffffffff, x, other);
  return x;
}

// Keys or values of new tokens go to their slots in the cache. Grid (tokens), any block. A token's `width` numbers lie
// one after the other, tokens `stride` numbers apart.
extern "C" __global__ void store(const Activation* from, u32 stride, u32 width, const u32* slots, Stored* cache) {
  const Activation* token = from + (size_t)blockIdx.x * stride;
  Stored* slot = cache + (size_t)slots[blockIdx.x] * width;
  for (u32 i = threadIdx.x; i < width; i += blockDim.x) slot[i] = Kept::narrow(Active::widen(token[i]));
}

// Attention over paged keys and values, as flash decoding (Dao et al., 2023) shares it out: each block of threads takes
// one split of what one row, a new token, sees, for the query heads that share a KV head, one warp a query head;
// `add_splits` then adds up the splits.
//
// Grid (rows, KV heads, splits), block (32, query heads of a KV head).
// `q` has shape (rows, query heads, DIM). `table` holds for each row how many tokens it sees, then for each row where
// its sequence's blocks begin in the table, then all blocks. Each (row, query head, split) leaves in `parts` the sum of
// its weighted values, their highest score and the sum of the weights relative to it: DIM + 2 numbers.
extern "C" __global__ void attend_split(const Activation* q, const Stored* keys, const Stored* values, const u32* table,
                                        float* parts, u32 block_size, float scale) {
  const u32 row = blockIdx.x, rows = gridDim.x, kv_head = blockIdx.y, kv_heads = gridDim.y;
  const u32 split = blockIdx.z, splits = gridDim.z, lane = threadIdx.x;
  const u32 head = kv_head * blockDim.y + threadIdx.y, heads = kv_heads * blockDim.y;
  const u32 seen = table[row];
  const u32* blocks = table + table[rows + row];
  const u32 share = (seen + splits - 1) / splits, begin = split * share, end = min(seen, begin + share);

  float query[EACH], sum[EACH];
  const Activation* from = q + ((size_t)row * heads + head) * DIM + lane * EACH;
#pragma unroll
  for (int i = 0; i < EACH; i++) query[i] = Active::widen(from[i]) * scale, sum[i] = 0.0f;
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
      for (int i = 0; i < EACH; i++) score[t] += query[i] * Kept::widen(key.numbers[i]);
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
      for (int i = 0; i < EACH; i++) sum[i] += weight * Kept::widen(value.numbers[i]);
    }
    highest = top;
  }

  float* part = parts + (((size_t)row * heads + head) * splits + split) * (DIM + 2);
#pragma unroll
  for (int i = 0; i < EACH; i++) part[lane * EACH + i] = sum[i];
  if (lane == 0) part[DIM] = highest, part[DIM + 1] = total;
}

// Grid (rows × query heads), block (DIM): from the parts of all splits to the output of shape (rows, query heads, DIM).
extern "C" __global__ void add_splits(const float* parts, Activation* output, u32 splits) {
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
  output[(size_t)blockIdx.x * DIM + threadIdx.x] = Active::narrow(sum / total);
}

__device__ float reduce(float x, float* shared, bool highest) {
  const u32 warp = threadIdx.x / LANES, lane = threadIdx.x % LANES, warps = blockDim.x / LANES;
#pragma unroll
  for (int other = LANES / 2; other > 0; other /= 2) {
    const float y = __shfl_xor_sync(0xffffffff, x, other);
    x = highest ? fmaxf(x, y) : x + y;
  }
  if (lane == 0) shared[warp] = x;
  __syncthreads();
  x = shared[0];
  for (u32 w = 1; w < warps; w++) x = highest ? fmaxf(x, shared[w]) : x + shared[w];
  __syncthreads();
  return x;
}

// Scores become weights in place: the softmax of scale × score over the tokens that a row may see, 0 behind them.
// Grid (rows), block a multiple of 32 threads. Rows of `seen` scores belong in turn to the `tokens` last tokens.
extern "C" __global__ void weigh(Activation* scores, u32 tokens, u32 seen, float scale) {
  __shared__ float shared[LANES];
  Activation* row = scores + (size_t)blockIdx.x * seen;
  const u32 visible = seen - tokens + blockIdx.x % tokens + 1;
  float highest = NOTHING, total = 0.0f;
  for (u32 i = threadIdx.x; i < visible; i += blockDim.x) highest = fmaxf(highest, Active::widen(row[i]));
  highest = reduce(highest, shared, true);
  for (u32 i = threadIdx.x; i < visible; i += blockDim.x) total += __expf((Active::widen(row[i]) - highest) * scale);
  const float share = 1.0f / reduce(total, shared, false);
  for (u32 i = threadIdx.x; i < seen; i += blockDim.x) {
    const float weight = i < visible ? __expf((Active::widen(row[i]) - highest) * scale) * share : 0.0f;
    row[i] = Active::narrow(weight);
  }
}
