// The small kernels between the products: add + RMSNorm, rotary embedding + cache write, SiLU x up, greedy choice, and
// stored weights to fp16 for products of many rows. One block of threads per row unless said otherwise.
//
// Compiled once per HIDDEN (a multiple of 256, up to 8192) and FORMAT (0: no weights, 8, 4); D is 128.

constexpr int NORM_THREADS = HIDDEN / 8, D = 128;

template <int THREADS> DEVICE float block_sum(float v, float* scratch) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) v += __shfl_xor_sync(~0u, v, offset);
  if ((threadIdx.x & 31) == 0) scratch[threadIdx.x >> 5] = v;
  __syncthreads();
  float sum = 0.f;
  for (int w = 0; w < THREADS / 32; w++) sum += scratch[w];
  return sum;
}

// residual += delta (unless delta is null); out = residual / rms(residual) * weight.
extern "C" __global__ void __launch_bounds__(NORM_THREADS)
add_rms_norm(float* __restrict__ residual, const u16* __restrict__ delta, const float* __restrict__ weight,
             u16* __restrict__ out, float eps) {
  __shared__ float scratch[32];
  const int i = threadIdx.x * 8;
  const float4 w0 = *(const float4*)(weight + i), w1 = *(const float4*)(weight + i + 4);
  const size_t at = (size_t)blockIdx.x * HIDDEN + i;
  wait_for_previous_kernel();
  let_next_kernel_start();
  float4 a = *(const float4*)(residual + at), b = *(const float4*)(residual + at + 4);
  if (delta) {
    const uint4 v = *(const uint4*)(delta + at);
    a.x += half_low(v.x); a.y += half_high(v.x); a.z += half_low(v.y); a.w += half_high(v.y);
    b.x += half_low(v.z); b.y += half_high(v.z); b.z += half_low(v.w); b.w += half_high(v.w);
    *(float4*)(residual + at) = a;
    *(float4*)(residual + at + 4) = b;
  }
  const float squares = a.x * a.x + a.y * a.y + a.z * a.z + a.w * a.w + b.x * b.x + b.y * b.y + b.z * b.z + b.w * b.w;
  const float scale = rsqrtf(block_sum<NORM_THREADS>(squares, scratch) / HIDDEN + eps);
  *(uint4*)(out + at) = make_uint4(
      pack_half2(a.x * scale * w0.x, a.y * scale * w0.y), pack_half2(a.z * scale * w0.z, a.w * scale * w0.w),
      pack_half2(b.x * scale * w1.x, b.y * scale * w1.y), pack_half2(b.z * scale * w1.z, b.w * scale * w1.w));
}

// For steps with several tokens of one sequence: rotates queries and keys of [T, (H + 2 kv heads) * D], writes queries to
// `queries` [T, H * D] and keys and values to the cache at slot = block * positions per block + offset. 64 threads a head.
extern "C" __global__ void __launch_bounds__(256)
rotate_and_write(const u16* __restrict__ qkv, u16* __restrict__ queries, u16* __restrict__ keys, u16* __restrict__ values,
                 const int* __restrict__ positions, const long long* __restrict__ slots, const float* __restrict__ cos_table,
                 const float* __restrict__ sin_table, int num_heads, int num_kv_heads, int block_size, long long block_stride,
                 long long position_stride, long long head_stride) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int row = blockIdx.x, total = num_heads + 2 * num_kv_heads, position = positions[row];
  if (position < 0) return;
  const u16* x = qkv + (size_t)row * total * D;
  const long long to = slots[row] / block_size * block_stride + slots[row] % block_size * position_stride;
  for (int i = threadIdx.x; i < total * 32; i += 256) {
    const int head = i >> 5, d = (i & 31) * 2, kv = head - num_heads;
    u32 low = *(const u32*)(x + head * D + d), high = *(const u32*)(x + head * D + d + 64);
    if (kv < num_kv_heads) {
      const float2 c = *(const float2*)(cos_table + (size_t)position * 64 + d), s = *(const float2*)(sin_table + (size_t)position * 64 + d);
      const float a0 = half_low(low), a1 = half_high(low), b0 = half_low(high), b1 = half_high(high);
      low = pack_half2(a0 * c.x - b0 * s.x, a1 * c.y - b1 * s.y);
      high = pack_half2(b0 * c.x + a0 * s.x, b1 * c.y + a1 * s.y);
    }
    u16* out = kv < 0              ? queries + (size_t)row * num_heads * D + head * D + d
               : kv < num_kv_heads ? keys + to + kv * head_stride + d
                                   : values + to + (kv - num_kv_heads) * head_stride + d;
    *(u32*)out = low;
    *(u32*)(out + 64) = high;
  }
}

// out[i] = silu(gate[i]) * up[i] for rows [gate, up] of 2 * width; grid (rows, ceil(width / 2048)).
extern "C" __global__ void __launch_bounds__(256)
silu_multiply(const u16* __restrict__ gate_up, u16* __restrict__ out, int width) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int i = (blockIdx.y * 256 + threadIdx.x) * 8;
  if (i >= width) return;
  const uint4 gate = *(const uint4*)(gate_up + (size_t)blockIdx.x * 2 * width + i);
  const uint4 up = *(const uint4*)(gate_up + (size_t)blockIdx.x * 2 * width + width + i);
  const u32 g[4] = {gate.x, gate.y, gate.z, gate.w}, u[4] = {up.x, up.y, up.z, up.w};
  u32 y[4];
#pragma unroll
  for (int j = 0; j < 4; j++) y[j] = pack_half2(silu(half_low(g[j])) * half_low(u[j]), silu(half_high(g[j])) * half_high(u[j]));
  *(uint4*)(out + (size_t)blockIdx.x * width + i) = make_uint4(y[0], y[1], y[2], y[3]);
}

// The likeliest token of each row (the first of equals), its log softmax, and whether the row was sound: no NaN, no +inf and
// one finite logit. No atomics; sums in a fixed order.
extern "C" __global__ void __launch_bounds__(1024)
choose_greedy(const u16* __restrict__ logits, int* __restrict__ token_ids, float* __restrict__ logprobs, int* __restrict__ is_valid,
              int vocab_size) {
  __shared__ float tops[32], totals[32];
  __shared__ int ids[32];
  wait_for_previous_kernel();
  let_next_kernel_start();
  const u16* row = logits + (size_t)blockIdx.x * vocab_size;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  float top = -INFINITY_F, total = 0.f;
  int id = 0x7fffffff, is_sound = 1;
  for (int i = threadIdx.x * 8; i < vocab_size; i += 8192) {
    const uint4 v = *(const uint4*)(row + i);
    const u32 words[4] = {v.x, v.y, v.z, v.w};
    const float before = top;
    float values[8];
#pragma unroll
    for (int j = 0; j < 8; j++) {
      values[j] = j % 2 ? half_high(words[j / 2]) : half_low(words[j / 2]);
      if (!(values[j] < INFINITY_F)) is_sound = 0;
      if (values[j] > top) { top = values[j]; id = i + j; }
    }
    const float shift = top == -INFINITY_F ? 0.f : top;
    total *= exp_fast(before - shift);
#pragma unroll
    for (int j = 0; j < 8; j++) total += exp_fast(values[j] - shift);
  }
#pragma unroll
  for (int round = 0; round < 2; round++) {  // the lanes of a warp, then the warps
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
      const float other = __shfl_xor_sync(~0u, top, offset), other_total = __shfl_xor_sync(~0u, total, offset);
      const int other_id = __shfl_xor_sync(~0u, id, offset);
      const float best = fmaxf(top, other), shift = best == -INFINITY_F ? 0.f : best;
      const float mine = total * exp_fast(top - shift), theirs = other_total * exp_fast(other - shift);
      total = lane & offset ? theirs + mine : mine + theirs;
      if (other > top || (other == top && other_id < id)) id = other_id;
      top = best;
    }
    if (round == 0) {
      if (lane == 0) { tops[warp] = top; totals[warp] = total; ids[warp] = id; }
      is_sound = __syncthreads_and(is_sound);
      top = tops[lane]; total = totals[lane]; id = ids[lane];
    }
  }
  if (threadIdx.x == 0) {
    const bool found = is_sound && top > -INFINITY_F;
    token_ids[blockIdx.x] = found ? id : 0;
    logprobs[blockIdx.x] = -logf(total);
    is_valid[blockIdx.x] = found;
  }
}

#if FORMAT
// One block of threads per unit of repack.py's layout: its 128 x 128 weights to out [N][K] fp16. With `pairs` not 0 the
// rows of a tile alternate by 8 between the halves of out, which has 2 * pairs rows.
extern "C" __global__ void __launch_bounds__(256)
dequantize(const u8* __restrict__ units, const float* __restrict__ row_scale, u16* __restrict__ out, int N, int K, int chunks,
           int pairs) {
  constexpr int CODE_BYTES = FORMAT == 8 ? 16384 : 8192, UNIT_BYTES = FORMAT == 8 ? 16384 : 8192 + 1024;
  wait_for_previous_kernel();
  let_next_kernel_start();
  const u8* unit = units + (size_t)blockIdx.x * UNIT_BYTES;
  const int tile = blockIdx.x / chunks, chunk = blockIdx.x % chunks, tid = threadIdx.x;
  const int lane = tid & 31, warp_row = tid >> 5, g = lane >> 2, t = lane & 3;
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const int stored = tile * 128 + warp_row * 16 + h * 8 + g;
    const int n = pairs ? tile * 64 + warp_row * 8 + g + h * pairs : stored;
    const bool exists = pairs ? tile * 64 + warp_row * 8 + g < pairs : n < N;
    const float scale = FORMAT == 8 ? row_scale[stored] : 0.f;
#pragma unroll
    for (int step = 0; step < 8; step++) {
      float w[4];
      if (FORMAT == 8) {
        const u32 word = *(const u32*)(unit + ((warp_row * 4 + step / 2) * 32 + lane) * 16 + (step % 2 * 2 + h) * 4);
#pragma unroll
        for (int i = 0; i < 4; i++) w[i] = (float)((int)(word >> (8 * i) & 255) - 128) * scale;
      } else {
        const u32 word = *(const u32*)(unit + ((warp_row * 2 + step / 4) * 32 + lane) * 16 + step % 4 * 4) >> (8 * h);
        const float absmax = *(const float*)(unit + CODE_BYTES + (step / 4 * 128 + warp_row * 16 + h * 8 + g) * 4);
        w[0] = NF4_FLOAT[word >> 4 & 15] * absmax;
        w[1] = NF4_FLOAT[word & 15] * absmax;
        w[2] = NF4_FLOAT[word >> 20 & 15] * absmax;
        w[3] = NF4_FLOAT[word >> 16 & 15] * absmax;
      }
      const int k = chunk * 128 + step * 16 + 2 * t;
      if (exists && k < K) *(u32*)(out + (size_t)n * K + k) = pack_half2(w[0], w[1]);
      if (exists && k + 8 < K) *(u32*)(out + (size_t)n * K + k + 8) = pack_half2(w[2], w[3]);
    }
  }
}
#endif
