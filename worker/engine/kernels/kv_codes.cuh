// Numbers in 8 bits: code * scale, a scale for each position and head; how a warp makes them of a head's 128 numbers.
// Prefill and decode take the same steps, each rounded as IEEE 754 says and none contracted, from the fp16 projection and
// the fp32 rotation on: a position's codes do not depend on who writes them, and are those of kv_tensors.py on the CPU.

// x[0], x[1] against x[2], x[3]; rotated they are not rounded to fp16.
DEVICE void rotate_exactly(float (&x)[4], const float2& c, const float2& s) {
  const float a0 = x[0], a1 = x[1];
  x[0] = __fsub_rn(__fmul_rn(a0, c.x), __fmul_rn(x[2], s.x));
  x[1] = __fsub_rn(__fmul_rn(a1, c.y), __fmul_rn(x[3], s.y));
  x[2] = __fadd_rn(__fmul_rn(x[2], c.x), __fmul_rn(a0, s.x));
  x[3] = __fadd_rn(__fmul_rn(x[3], c.y), __fmul_rn(a1, s.y));
}

// Zero where x or the scale is infinite.
DEVICE u32 code_of(float x, float scale) { return (u32)(__float2int_rn(__fdiv_rn(x, scale)) & 255); }

// Four of a head's numbers in each lane: their codes, x[0]'s in the lowest byte, and the scale of all 128. A number that is
// not finite makes the scale so (as integers, NaN is above infinity, and that above the others).
DEVICE u32 encode(const float (&x)[4], float& scale) {
  u32 top = 0;
#pragma unroll
  for (int i = 0; i < 4; i++) top = max(top, __float_as_uint(x[i]) & 0x7fffffff);
  scale = __fdiv_rn(__uint_as_float(warp_maximum(top)), 127.f);
  const float divisor = fmaxf(scale, 1.17549435e-38f);
  return code_of(x[0], divisor) | code_of(x[1], divisor) << 8 | code_of(x[2], divisor) << 16 | code_of(x[3], divisor) << 24;
}

// Four codes as two pairs of fp16, exactly: 0x6400 + n is 1024 + n.
DEVICE void decode(u32& low, u32& high, u32 codes) {
  const u32 biased = codes ^ 0x80808080;
  low = add_half2(permute(biased, 0x64646464, 0x4140), 0xe480e480);
  high = add_half2(permute(biased, 0x64646464, 0x4342), 0xe480e480);
}
