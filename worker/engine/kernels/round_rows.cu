// Rows of fp16 to int8 for the int8 tensor cores: each row by its own largest number, absmax / 127 a step, rounded to the nearest
// step, to the even one of two. That is what bitsandbytes does where no number counts as an outlier.
//
// The codes of each 16 inputs lie in the order in which packed int8 weights have them (repack.py): word t of four has those of
// inputs 2 t, 2 t + 1, 2 t + 8 and 2 t + 9.
//
// One block of threads per row. Compiled once per COLUMNS, a multiple of 16.

constexpr int THREADS = 256, GROUPS = COLUMNS / 16, TURNS = (GROUPS + THREADS - 1) / THREADS;

DEVICE u32 without_signs(uint4 v) {  // the larger of each of two lanes, as bits: numbers, then infinity, then what is none
  return __vmaxu2(__vmaxu2(v.x & 0x7fff7fffu, v.y & 0x7fff7fffu), __vmaxu2(v.z & 0x7fff7fffu, v.w & 0x7fff7fffu));
}

DEVICE u32 codes_of(u32 low, u32 high, float steps_per_one) {
  const int a = __float2int_rn(half_low(low) * steps_per_one), b = __float2int_rn(half_high(low) * steps_per_one);
  const int c = __float2int_rn(half_low(high) * steps_per_one), d = __float2int_rn(half_high(high) * steps_per_one);
  return permute(permute(a, b, 0x0040), permute(c, d, 0x0040), 0x5410);
}

// scale[row] = absmax / 127. Where a number is not finite it is infinite or none, the row's codes are 0, and so the row's products
// are no numbers: nothing broken looks sound.
extern "C" __global__ void __launch_bounds__(THREADS) round_rows(const u16* x, uint4* codes, float* scale) {
  __shared__ u32 scratch[THREADS / 32];
  wait_for_previous_kernel();
  let_next_kernel_start();
  const uint4* from = (const uint4*)(x + (size_t)blockIdx.x * COLUMNS);
  uint4* to = codes + (size_t)blockIdx.x * GROUPS;
  uint4 low[TURNS], high[TURNS];
  u32 largest = 0;
#pragma unroll
  for (int i = 0; i < TURNS; i++) {
    const int group = i * THREADS + threadIdx.x;
    if (group < GROUPS) {
      low[i] = from[2 * group];
      high[i] = from[2 * group + 1];
      largest = __vmaxu2(largest, __vmaxu2(without_signs(low[i]), without_signs(high[i])));
    }
  }
  largest = __reduce_max_sync(~0u, max(largest & 0xffff, largest >> 16));
  if ((threadIdx.x & 31) == 0) scratch[threadIdx.x >> 5] = largest;
  __syncthreads();
#pragma unroll
  for (int w = 0; w < THREADS / 32; w++) largest = max(largest, scratch[w]);
  const float absmax = half_low(largest);
  const float steps_per_one = absmax > 0.f ? 127.f / absmax : 0.f;
#pragma unroll
  for (int i = 0; i < TURNS; i++) {
    const int group = i * THREADS + threadIdx.x;
    if (group < GROUPS)
      to[group] = make_uint4(codes_of(low[i].x, high[i].x, steps_per_one), codes_of(low[i].y, high[i].y, steps_per_one),
                             codes_of(low[i].z, high[i].z, steps_per_one), codes_of(low[i].w, high[i].w, steps_per_one));
  }
  if (threadIdx.x == 0) scale[blockIdx.x] = absmax / 127.f;
}
