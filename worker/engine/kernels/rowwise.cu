// The small kernels between the products: embedding, add + RMSNorm, rotary embedding + cache write, and reading what a cache
// holds as codes. One block of threads per row. Compiled once per HIDDEN (a multiple of 256, up to 8192), kv_codes.cuh before
// it; D is 128.

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

// The same into a cache of codes. The scales [blocks, kv heads, positions per block] lie together. A warp makes a head's codes.
extern "C" __global__ void __launch_bounds__(256)
rotate_and_encode(const u16* __restrict__ qkv, u16* __restrict__ queries, u8* __restrict__ keys, u8* __restrict__ values,
                  float* __restrict__ key_scales, float* __restrict__ value_scales, const int* __restrict__ positions,
                  const long long* __restrict__ slots, const float* __restrict__ cos_table, const float* __restrict__ sin_table,
                  int num_heads, int num_kv_heads, int block_size, long long block_stride, long long position_stride,
                  long long head_stride) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int row = blockIdx.x, total = num_heads + 2 * num_kv_heads, position = positions[row];
  if (position < 0) return;
  const u16* x = qkv + (size_t)row * total * D;
  const long long block = slots[row] / block_size, offset = slots[row] % block_size;
  const int lane = threadIdx.x & 31, d = lane * 2;
  const float2 c = *(const float2*)(cos_table + (size_t)position * 64 + d), s = *(const float2*)(sin_table + (size_t)position * 64 + d);
  for (int head = threadIdx.x / 32; head < total; head += 8) {
    const int kv = head - num_heads, kv_head = kv < num_kv_heads ? kv : kv - num_kv_heads;
    const u32 low = *(const u32*)(x + head * D + d), high = *(const u32*)(x + head * D + d + 64);
    float of[4] = {half_low(low), half_high(low), half_low(high), half_high(high)}, scale;
    if (kv < num_kv_heads) rotate_exactly(of, c, s);
    if (kv < 0) {
      u16* out = queries + ((size_t)row * num_heads + head) * D + d;
      *(u32*)out = pack_half2(of[0], of[1]);
      *(u32*)(out + 64) = pack_half2(of[2], of[3]);
      continue;
    }
    const u32 codes = encode(of, scale);
    u8* out = (kv < num_kv_heads ? keys : values) + block * block_stride + offset * position_stride + kv_head * head_stride + d;
    *(u16*)out = codes & 0xffff;
    *(u16*)(out + 64) = codes >> 16;
    if (lane == 0) (kv < num_kv_heads ? key_scales : value_scales)[(block * num_kv_heads + kv_head) * block_size + offset] = scale;
  }
}

// The numbers at slots: keys (blockIdx.y is 0) and values, each as fp16 [slots, kv heads * D]. A thread reads 16 at a time.
extern "C" __global__ void __launch_bounds__(256)
gather_codes(const u8* __restrict__ keys, const u8* __restrict__ values, const float* __restrict__ key_scales,
             const float* __restrict__ value_scales, const int* __restrict__ slots, u16* __restrict__ out_keys,
             u16* __restrict__ out_values, int num_kv_heads, int block_size, long long block_stride, long long position_stride,
             long long head_stride) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const long long block = slots[blockIdx.x] / block_size, offset = slots[blockIdx.x] % block_size;
  const u8* from = (blockIdx.y ? values : keys) + block * block_stride + offset * position_stride;
  const float* scales = (blockIdx.y ? value_scales : key_scales) + block * num_kv_heads * block_size + offset;
  u16* out = (blockIdx.y ? out_values : out_keys) + (size_t)blockIdx.x * num_kv_heads * D;
  for (int i = threadIdx.x; i < num_kv_heads * (D / 16); i += blockDim.x) {
    const int head = i / (D / 16), d = i % (D / 16) * 16;
    const uint4 codes = *(const uint4*)(from + head * head_stride + d);
    const float scale = scales[head * block_size];
    const u32 words[4] = {codes.x, codes.y, codes.z, codes.w};
    u32 pairs[8];
#pragma unroll
    for (int w = 0; w < 4; w++) {
      u32 low, high;
      decode(low, high, words[w]);
      pairs[2 * w] = pack_half2(half_low(low) * scale, half_high(low) * scale);
      pairs[2 * w + 1] = pack_half2(half_low(high) * scale, half_high(high) * scale);
    }
    *(uint4*)(out + i * 16) = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
    *(uint4*)(out + i * 16 + 8) = make_uint4(pairs[4], pairs[5], pairs[6], pairs[7]);
  }
}

// residual = the embedding's rows; a token below 0 is number -1 - token of those chosen last, which the host does not know yet.
extern "C" __global__ void __launch_bounds__(NORM_THREADS)
embed(const int* __restrict__ token_ids, const int* __restrict__ chosen, const u16* __restrict__ embedding, float* __restrict__ residual) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int given = token_ids[blockIdx.x], token = given < 0 ? chosen[-1 - given] : given, i = threadIdx.x * 8;
  const uint4 v = *(const uint4*)(embedding + (size_t)token * HIDDEN + i);
  float* out = residual + (size_t)blockIdx.x * HIDDEN + i;
  *(float4*)out = make_float4(half_low(v.x), half_high(v.x), half_low(v.y), half_high(v.y));
  *(float4*)(out + 4) = make_float4(half_low(v.z), half_high(v.z), half_low(v.w), half_high(v.w));
}
