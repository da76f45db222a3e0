// A cache of codes in 8 bits and a scale for each position and head. Codes become fp16 in registers, exactly; a key's scale
// multiplies its scores, a value's its weight. Which of a product's 16 inputs is which dimension is free as long as both
// operands agree, so a lane reads 16 codes at once where it can.

typedef u8 Number;
constexpr int SCALE_BYTES = TILE * 4;
constexpr int MIN_BLOCKS = BUFFERS > 2 ? 3 : 5;  // on a multiprocessor, at the least: with 6 registers spill

// 16-byte pieces of a 128-byte row are spread so that each 8 lanes' loads, of 2 rows' 4 pieces (keys) or of every other of
// 8 rows' 2 pieces (values), lie in different banks.
DEVICE int spread(int row) { return (row ^ row << 2) & 7; }
DEVICE u32 piece(u32 tile, int row, int chunk) { return tile + row * D + ((chunk ^ spread(row)) << 4); }

// Of the query, where register i of step s < 4 begins: lane t holds dimensions 16 t to 16 t + 15, and the same plus 64.
DEVICE int query_dimension(int s, int i, int t) { return 16 * t + 4 * s + 2 * i; }
// The result's rows g of a step, dimensions 16 g + 2 s, are left so far apart, rows g + 8, the dimensions after those, so
// far from them; and where dimension d is found then.
constexpr int LEFT_BY = 2, NEXT_AT = 1;
DEVICE int place_of(int d) { return (d >> 1 & 7) * 16 + 2 * (d >> 4) + (d & 1); }

// Of this warp's 16 positions of a tile, in four pieces; of positions that do not exist they are zero.
DEVICE void request_scales(u32 to, const float* from, int left, int warp, int lane) {
  const int first = warp * 16 + lane * 4;
  if (lane < 4) copy16(to + first * 4, from + first, 4 * min(max(left - first, 0), 4));
}

// The new position's key and value, into the cache and into row `row` of the tile in shared memory, by one warp.
DEVICE void write_new(const u16* key, const u16* value, u8* key_to, u8* value_to, float* key_scale_to, float* value_scale_to,
                      u32 k_tile, u32 v_tile, u32 scales, int row, const Angle& angle, int lane) {
#pragma unroll
  for (int is_value = 0; is_value < 2; is_value++) {
    const u16* from = is_value ? value : key;
    const u32 low = load_u32(from + 2 * lane), high = load_u32(from + 64 + 2 * lane);
    float x[4] = {half_low(low), half_high(low), half_low(high), half_high(high)}, scale;
    if (!is_value) rotate_exactly(x, angle.cos, angle.sin);
    const u32 codes = encode(x, scale), tile = is_value ? v_tile : k_tile;
    const int chunk = lane >> 3, offset = (lane & 7) * 2;
    store_shared2(piece(tile, row, chunk) + offset, codes & 0xffff);
    store_shared2(piece(tile, row, chunk + 4) + offset, codes >> 16);
    u8* to = is_value ? value_to : key_to;
    *(u16*)(to + 2 * lane) = codes & 0xffff;
    *(u16*)(to + 64 + 2 * lane) = codes >> 16;
    if (lane == 0) {
      store_shared(scales + is_value * SCALE_BYTES + row * 4, __float_as_uint(scale));
      *(is_value ? value_scale_to : key_scale_to) = scale;
    }
  }
}

// Scores of one warp's 16 positions of a tile: c[0], c[1] of position g, c[2], c[3] of g + 8.
DEVICE void score(float (&c)[4], const u32 (&q)[16], u32 k_tile, u32 scales, int warp, int lane) {
  const int row = warp * 16 + (lane >> 2), t = lane & 3;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const uint4 near = load_ordered4(piece(k_tile, row, t + 4 * half)), far = load_ordered4(piece(k_tile, row + 8, t + 4 * half));
    const u32 of_near[4] = {near.x, near.y, near.z, near.w}, of_far[4] = {far.x, far.y, far.z, far.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
      u32 a[4];
      decode(a[0], a[2], of_near[i]);
      decode(a[1], a[3], of_far[i]);
      multiply_add(c, a, q[2 * (4 * half + i)], q[2 * (4 * half + i) + 1]);
    }
  }
  const float near = load_ordered(scales + row * 4), far = load_ordered(scales + row * 4 + 32);
#pragma unroll
  for (int i = 0; i < 2; i++) {  // beside an infinite scale all codes are zero (kv_codes.cuh), so the score is NaN
    c[i] *= near;
    c[i + 2] *= far;
  }
}

// Multiplies the weights by their values' scales over a power of two, `unit`, that is above half of the largest scale so
// far: then they are below 2, and in fp16 what is lost of one is no more of the largest scale than in a cache of fp16.
DEVICE void scale_weights(float (&p)[4], float (&shrink)[2], float& unit, u32 scales, int warp, int lane) {
  const u32 at = scales + SCALE_BYTES + (warp * 16 + (lane >> 2)) * 4;
  const float near = load_ordered(at), far = load_ordered(at + 32);
  const u32 largest = warp_maximum(max(__float_as_uint(near), __float_as_uint(far)));
  const u32 power = max(largest & 0x7f800000, __float_as_uint(unit));
  const float inverse = __uint_as_float(0x7f000000 - power), ratio = unit * inverse;
#pragma unroll
  for (int i = 0; i < 2; i++) {
    shrink[i] *= ratio;
    p[i] *= near * inverse;
    p[i + 2] *= far * inverse;
  }
  unit = __uint_as_float(power);
}
DEVICE float in_units(float v, float unit) { return v * unit; }

// The warp's values, weighed: b0 and b1 are the weights of positions 2 t, 2 t + 1 and 2 t + 8, 2 t + 9.
DEVICE void add_values(float (&out)[STEPS][4], const float (&shrink)[2], u32 b0, u32 b1, u32 v_tile, int warp, int lane) {
  const int row = warp * 16 + 2 * (lane & 3), g = lane >> 2;
  u32 pairs[2][2][4];  // of positions 2 t, 2 t + 1 and of the two 8 further: dimensions 16 g + 4 w, + 1 and + 2, + 3
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const uint4 x = load_ordered4(piece(v_tile, row + 8 * half, g)), y = load_ordered4(piece(v_tile, row + 8 * half + 1, g));
    const u32 first[4] = {x.x, x.y, x.z, x.w}, second[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
    for (int w = 0; w < 4; w++) {
      pairs[half][0][w] = permute(first[w], second[w], 0x5140);
      pairs[half][1][w] = permute(first[w], second[w], 0x7362);
    }
  }
#pragma unroll
  for (int s = 0; s < STEPS; s++) {
    u32 a[4];
    decode(a[0], a[1], pairs[0][s & 1][s >> 1]);
    decode(a[2], a[3], pairs[1][s & 1][s >> 1]);
#pragma unroll
    for (int i = 0; i < 4; i++) out[s][i] *= shrink[i & 1];
    multiply_add(out[s], a, b0, b1);
  }
}
