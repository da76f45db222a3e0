// What attention.cu and the two kinds of cache, kv_half.cuh and kv_int8.cuh, have in common.

constexpr int D = 128, TILE = 64, WARPS = 4, STEPS = D / 16;

// Of an int8 cache: float32, one for each position and head, those of 64 positions of a head together.
struct Scales {
  float *keys, *values;
  long long block_stride, head_stride;  // in elements
};

struct Shape {
  int num_heads, num_kv_heads, max_blocks, max_splits;
  long long block_stride, position_stride, head_stride;  // of the cache, in elements
  float scale;                                           // log2(e) / sqrt(D)
  Scales scales;
};

DEVICE u32 load_u32(const u16* p) { return *(const u32*)p; }

// Cosines and sines of d, d + 1.
struct Angle { float2 cos, sin; };

DEVICE Angle load_angle(const float* cos, const float* sin, int d) { return {*(const float2*)(cos + d), *(const float2*)(sin + d)}; }

// Rotates elements d, d + 1 against d + 64, d + 65; both pairs come back as fp16.
DEVICE void rotate(u32& low, u32& high, const Angle& angle, float scale) {
  const float a0 = half_low(low), a1 = half_high(low), b0 = half_low(high), b1 = half_high(high);
  const float2 c = angle.cos, s = angle.sin;
  low = pack_half2((a0 * c.x - b0 * s.x) * scale, (a1 * c.y - b1 * s.y) * scale);
  high = pack_half2((b0 * c.x + a0 * s.x) * scale, (b1 * c.y + a1 * s.y) * scale);
}
