// Attention of one new token per sequence over its paged keys and values, rotary embedding and cache write included.
//
// A block of threads serves one key-value head of one sequence over SPLIT positions, with its GROUP query heads as rows
// of the tensor cores' products. All its keys and values are requested at once; each warp loads, scores and weighs its
// own 16 of every 64 positions, so warps meet only to add up. The last block of a head to finish adds the splits in
// their order. Splits are fixed positions: what a row gets does not depend on the batch.
//
// Compiled once per GROUP (1 to 8), SPLIT (a multiple of 64), BUFFERS, FUSED. FUSED: qkv is the projection's output, the new key is
// rotated, and key and value are written to the cache here; else queries are rotated and the cache is complete.
// FUSED reads positions, block tables and older keys and values before it waits for the kernel right before it.

constexpr int D = 128, TILE = 64, TILES = SPLIT / TILE, WARPS = 4, STEPS = D / 16;
constexpr int TILE_BYTES = TILE * D * 2;
// BUFFERS: tiles of keys and values in shared memory; the arithmetic is the same for any number.

DEVICE void copy16(u32 to, const void* from, bool exists) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(exists ? 16 : 0) : "memory");
}
DEVICE void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int LEFT> DEVICE void copies_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory"); }
DEVICE void load_matrices(u32 (&r)[4], u32 a) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(a) : "memory");
}
DEVICE void load_matrices_transposed(u32 (&r)[4], u32 a) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(a) : "memory");
}
DEVICE void multiply_add(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {  // 16 x 16 times 16 x 8
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// 16-byte pieces of a 256-byte row are spread so that 8 rows' same pieces lie in different banks.
DEVICE u32 piece(u32 tile, int row, int chunk) { return tile + row * (D * 2) + ((chunk ^ (row & 7)) << 4); }
DEVICE u32 load_u32(const u16* p) { return *(const u32*)p; }

struct Shape {
  int num_heads, num_kv_heads, max_blocks, max_splits;
  long long block_stride, position_stride, head_stride;  // of the cache, in elements
  float scale;                                           // log2(e) / sqrt(D)
};

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

// The query heads as the right operand, scaled: registers 2 s and 2 s + 1 are head g's dimensions of step s.
DEVICE void load_query(u32 (&q)[16], const u16* head0, const Angle (&angles)[8], float scale, int g, int t) {
#pragma unroll
  for (int s = 0; s < 4; s++)
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int d = s * 16 + i * 8 + 2 * t;
      u32 low = 0, high = 0;
      if (g < GROUP) {
        low = load_u32(head0 + g * D + d);
        high = load_u32(head0 + g * D + d + 64);
        if (FUSED) rotate(low, high, angles[2 * s + i], scale);
        else {
          low = pack_half2(half_low(low) * scale, half_high(low) * scale);
          high = pack_half2(half_low(high) * scale, half_high(high) * scale);
        }
      }
      q[2 * s + i] = low;
      q[2 * (s + 4) + i] = high;
    }
}

// The new position's key and value, into the cache and into row `row` of the tile in shared memory, by one warp.
DEVICE void write_new(const u16* key, const u16* value, u16* key_to, u16* value_to, u32 k_tile, u32 v_tile, int row,
                      const Angle& angle, int lane) {
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

// Of query heads 2 t and 2 t + 1, over a warp's positions so far; in powers of two. out[s] holds dimensions 16 s + g and
// 16 s + g + 8 of both: heads are the 8 columns of every product, so no more than GROUP of 8 are wasted.
struct State { float maximum[2], total[2], out[STEPS][4]; };

// Scores of one warp's 16 positions of a tile: c[0], c[1] of position g, c[2], c[3] of g + 8.
DEVICE void score(float (&c)[4], const u32 (&q)[16], u32 k_tile, int warp, int lane) {
  const int row = warp * 16 + ((lane >> 3) & 1) * 8 + (lane & 7);
#pragma unroll
  for (int s = 0; s < STEPS; s++) {
    u32 a[4];
    load_matrices(a, piece(k_tile, row, 2 * s + (lane >> 4)));
    multiply_add(c, a, q[2 * s], q[2 * s + 1]);
  }
}

DEVICE float maximum_of_column(float v) {
#pragma unroll
  for (int offset = 4; offset < 32; offset *= 2) v = fmaxf(v, __shfl_xor_sync(~0u, v, offset));
  return v;
}

// Their softmax so far, and the values weighed by it.
DEVICE void weigh(State& state, float (&c)[4], int num_valid, u32 v_tile, int warp, int lane) {
  const int g = lane >> 2;
  float shrink[2], p[4];
#pragma unroll
  for (int i = 0; i < 2; i++) {
    if (g >= num_valid) c[i] = -INFINITY_F;
    if (g + 8 >= num_valid) c[i + 2] = -INFINITY_F;
    const float top = fmaxf(maximum_of_column(fmaxf(c[i], c[i + 2])), state.maximum[i]);
    const float shift = top == -INFINITY_F ? 0.f : top;
    shrink[i] = exp2f(state.maximum[i] - shift);
    p[i] = exp2f(c[i] - shift);
    p[i + 2] = exp2f(c[i + 2] - shift);
    state.maximum[i] = top;
    state.total[i] = state.total[i] * shrink[i] + p[i] + p[i + 2];
  }
  const u32 b0 = transpose(pack_half2(p[0], p[1])), b1 = transpose(pack_half2(p[2], p[3]));
  const int row = warp * 16 + (lane >> 4) * 8 + (lane & 7);
#pragma unroll
  for (int s = 0; s < STEPS; s++) {
    u32 a[4];
    load_matrices_transposed(a, piece(v_tile, row, 2 * s + ((lane >> 3) & 1)));
#pragma unroll
    for (int i = 0; i < 4; i++) state.out[s][i] *= shrink[i & 1];
    multiply_add(state.out[s], a, b0, b1);
  }
}

// Requests this warp's 16 positions of one tile, keys and values as one group of copies each.
DEVICE void request(u32 k_tile, const u16* keys, const u16* values, long long origin, long long stride, int left, int warp,
                    int lane) {
#pragma unroll
  for (int half = 0; half < 2; half++) {
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const int r = warp * 16 + i * 2 + (lane >> 4);
      copy16(piece(k_tile + half * TILE_BYTES, r, lane & 15), (half ? values : keys) + origin + r * stride, r < left);
    }
    copies_commit();
  }
}

// Adds the splits of one head, in order. Thread d holds dimension d.
DEVICE void combine(const float* from, int num_splits, u16* out, int d) {
  float top = -INFINITY_F, total = 0.f, sum = 0.f;
  for (int s = 0; s < num_splits; s++) top = fmaxf(top, load_l2(from + s * (D + 2) + D));
  for (int s = 0; s < num_splits; s++) {
    float w = exp2f(load_l2(from + s * (D + 2) + D) - top);
    total += w * load_l2(from + s * (D + 2) + D + 1);
    sum += w * load_l2(from + s * (D + 2) + d);
  }
  out[d] = to_half(sum / total);
}

extern "C" __global__ void __launch_bounds__(WARPS * 32, BUFFERS > 2 ? 1 : 6)
decode_attention(const u16* __restrict__ qkv, u16* __restrict__ keys, u16* __restrict__ values,
                 const int* __restrict__ positions, const int* __restrict__ block_tables, const float* __restrict__ cos_table,
                 const float* __restrict__ sin_table, float* __restrict__ partials, u32* __restrict__ counters,
                 u16* __restrict__ out, const Shape shape) {
  extern __shared__ u8 raw[];
  __shared__ float warp_max[WARPS][8], warp_total[WARPS][8];
  __shared__ u32 is_last;
  const u32 base = (shared_address(raw) + 127) & ~127u;
  const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5, g = lane >> 2, t = lane & 3;
  const int kv_head = blockIdx.x, split = blockIdx.y, row = blockIdx.z;
  if (!FUSED) wait_for_previous_kernel();
  const int position = positions[row], start = split * SPLIT;
  if (position < start) {  // also an empty row of the batch, whose position is -1
    if (FUSED) wait_for_previous_kernel();
    let_next_kernel_start();
    return;
  }
  const int num_cached = FUSED ? position : position + 1;  // what is in the cache already
  const int num_tiles = min((position - start) / TILE + 1, TILES);
  const int* table = block_tables + row * shape.max_blocks + start / TILE;
  const long long piece_origin = kv_head * shape.head_stride + (lane & 15) * 8;
#pragma unroll
  for (int tile = 0; tile < BUFFERS; tile++) {
    if (tile < num_tiles)
      request(base + tile * 2 * TILE_BYTES, keys, values, table[tile] * shape.block_stride + piece_origin,
              shape.position_stride, num_cached - start - tile * TILE, warp, lane);
    else { copies_commit(); copies_commit(); }
  }
  const float *cos = cos_table + (size_t)position * 64, *sin = sin_table + (size_t)position * 64;
  Angle angles[8];
  if (FUSED) {
#pragma unroll
    for (int i = 0; i < 8; i++) angles[i] = load_angle(cos, sin, i * 8 + 2 * t);
    wait_for_previous_kernel();
  }
  let_next_kernel_start();
  const int width = FUSED ? (shape.num_heads + 2 * shape.num_kv_heads) * D : shape.num_heads * D;
  const u16* x = qkv + (size_t)row * width;
  u32 q[16];
  load_query(q, x + kv_head * GROUP * D, angles, shape.scale, g, t);
  State state;
  state.maximum[0] = state.maximum[1] = -INFINITY_F;
  state.total[0] = state.total[1] = 0.f;
#pragma unroll
  for (int s = 0; s < STEPS; s++) state.out[s][0] = state.out[s][1] = state.out[s][2] = state.out[s][3] = 0.f;
  for (int tile = 0; tile < num_tiles; tile++) {
    const u32 k_tile = base + tile % BUFFERS * 2 * TILE_BYTES, v_tile = k_tile + TILE_BYTES;
    const int first = start + tile * TILE + warp * 16;
    const bool has_new = FUSED && position >= first && position < first + 16;
    copies_wait<2 * BUFFERS - 1>();
    if (has_new) {
      copies_wait<2 * BUFFERS - 2>();
      __syncwarp();
      const long long to = table[tile] * shape.block_stride + (position % TILE) * shape.position_stride + kv_head * shape.head_stride;
      write_new(x + (shape.num_heads + kv_head) * D, x + (shape.num_heads + shape.num_kv_heads + kv_head) * D, keys + to,
                values + to, k_tile, v_tile, position % TILE, load_angle(cos, sin, 2 * lane), lane);
    }
    __syncwarp();
    if (first <= position) {
      float c[4] = {};
      score(c, q, k_tile, warp, lane);
      copies_wait<2 * BUFFERS - 2>();
      __syncwarp();
      weigh(state, c, position + 1 - first, v_tile, warp, lane);
    }
    __syncwarp();
    if (tile + BUFFERS < num_tiles)
      request(k_tile, keys, values, table[tile + BUFFERS] * shape.block_stride + piece_origin, shape.position_stride,
              num_cached - start - (tile + BUFFERS) * TILE, warp, lane);
    else { copies_commit(); copies_commit(); }
  }
  // add the warps up
  copies_wait<0>();
  __syncthreads();
  float* sums = (float*)(raw + (base - shared_address(raw)));  // [WARPS][GROUP][D]
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const int head = 2 * t + i;
    float total = state.total[i];
#pragma unroll
    for (int offset = 4; offset < 32; offset *= 2) total += __shfl_xor_sync(~0u, total, offset);
    if (g == 0) {
      warp_max[warp][head] = state.maximum[i];
      warp_total[warp][head] = total;
    }
    if (head < GROUP)
#pragma unroll
      for (int s = 0; s < STEPS; s++) {
        sums[(warp * GROUP + head) * D + s * 16 + g] = state.out[s][i];
        sums[(warp * GROUP + head) * D + s * 16 + g + 8] = state.out[s][i + 2];
      }
  }
  __syncthreads();
  const int num_splits = position / SPLIT + 1, head0 = kv_head * GROUP;
  u16* out_row = out + ((size_t)row * shape.num_heads + head0) * D;
  float* partial = partials + ((size_t)row * shape.num_heads + head0) * shape.max_splits * (D + 2);
#pragma unroll
  for (int h = 0; h < GROUP; h++) {
    float top = fmaxf(fmaxf(warp_max[0][h], warp_max[1][h]), fmaxf(warp_max[2][h], warp_max[3][h])), sum = 0.f, all = 0.f;
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
      const float weight = exp2f(warp_max[w][h] - top);
      all += weight * warp_total[w][h];
      sum += weight * sums[(w * GROUP + h) * D + tid];
    }
    if (num_splits == 1) {
      out_row[h * D + tid] = to_half(sum / all);
    } else {
      float* to = partial + ((size_t)h * shape.max_splits + split) * (D + 2);
      to[tid] = sum;
      if (tid == 0) { to[D] = top; to[D + 1] = all; }
    }
  }
  if (num_splits == 1) return;
  __threadfence();
  __syncthreads();
  // The counter orders nothing but the finish: the sums are added in the order of the splits, whoever is last.
  if (tid == 0) is_last = atomicAdd(counters + row * shape.num_kv_heads + kv_head, 1u) == (u32)num_splits - 1;
  __syncthreads();
  if (!is_last) return;
  __threadfence();
  for (int h = 0; h < GROUP; h++)
    combine(partial + (size_t)h * shape.max_splits * (D + 2), num_splits, out_row + h * D, tid);
  if (tid == 0) counters[row * shape.num_kv_heads + kv_head] = 0;
}
