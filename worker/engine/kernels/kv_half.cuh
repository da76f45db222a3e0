// A cache of fp16. The tensor cores' operands come out of shared memory by ldmatrix, in the order of the dimensions.

typedef u16 Number;
constexpr int SCALE_BYTES = 0;
constexpr int MIN_BLOCKS = BUFFERS > 2 ? 1 : 6;  // on a multiprocessor, at the least: it bounds the registers

// 16-byte pieces of a 256-byte row are spread so that 8 rows' same pieces lie in different banks.
DEVICE int spread(int row) { return row & 7; }
DEVICE u32 piece(u32 tile, int row, int chunk) { return tile + row * (D * 2) + ((chunk ^ spread(row)) << 4); }

// Of the query, where register i of step s < 4 begins.
DEVICE int query_dimension(int s, int i, int t) { return s * 16 + i * 8 + 2 * t; }
// The result's rows g of a step are left so far apart, rows g + 8 so far from them; and where dimension d is found then.
constexpr int LEFT_BY = 1, NEXT_AT = 8;
DEVICE int place_of(int d) { return d; }

DEVICE void request_scales(u32, const float*, int, int, int) {}
DEVICE void scale_weights(float (&)[4], float (&)[2], float&, u32, int, int) {}
DEVICE float in_units(float v, float) { return v; }

// The new position's key and value, into the cache and into row `row` of the tile in shared memory, by one warp.
DEVICE void write_new(const u16* key, const u16* value, u16* key_to, u16* value_to, float*, float*, u32 k_tile, u32 v_tile, u32,
                      int row, const Angle& angle, int lane) {
  u32 low = load_u32(key + 2 * lane), high = load_u32(key + 64 + 2 * lane);
  rotate(low, high, angle, 1.f);
  u32 first = load_u32(value + 2 * lane), second = load_u32(value + 64 + 2 * lane);
  const int chunk = lane >> 2, offset = (lane & 3) * 4;
  store_shared(piece(k_tile, row, chunk) + offset, low);
  store_shared(piece(k_tile, row, chunk + 8) + offset, high);
  store_shared(piece(v_tile, row, chunk) + offset, first);
  store_shared(piece(v_tile, row, chunk + 8) + offset, second);
  *(u32*)(key_to + 2 * lane) = low;
  *(u32*)(key_to + 64 + 2 * lane) = high;
  *(u32*)(value_to + 2 * lane) = first;
  *(u32*)(value_to + 64 + 2 * lane) = second;
}

// Scores of one warp's 16 positions of a tile: c[0], c[1] of position g, c[2], c[3] of g + 8.
DEVICE void score(float (&c)[4], const u32 (&q)[16], u32 k_tile, u32, int warp, int lane) {
  const int row = warp * 16 + ((lane >> 3) & 1) * 8 + (lane & 7);
#pragma unroll
  for (int s = 0; s < STEPS; s++) {
    u32 a[4];
    load_matrices(a, piece(k_tile, row, 2 * s + (lane >> 4)));
    multiply_add(c, a, q[2 * s], q[2 * s + 1]);
  }
}

// The warp's values, weighed: b0 and b1 are the weights of positions 2 t, 2 t + 1 and 2 t + 8, 2 t + 9.
DEVICE void add_values(float (&out)[STEPS][4], const float (&shrink)[2], u32 b0, u32 b1, u32 v_tile, int warp, int lane) {
  const int row = warp * 16 + (lane >> 4) * 8 + (lane & 7);
#pragma unroll
  for (int s = 0; s < STEPS; s++) {
    u32 a[4];
    load_matrices_transposed(a, piece(v_tile, row, 2 * s + ((lane >> 3) & 1)));
#pragma unroll
    for (int i = 0; i < 4; i++) out[s][i] *= shrink[i & 1];
    multiply_add(out[s], a, b0, b1);
  }
}
