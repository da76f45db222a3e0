// Attention of one new token per sequence over its paged keys and values, rotary embedding and cache write included.
//
// A block of threads serves one key-value head of one sequence over SPLIT positions, with its GROUP query heads as rows
// of the tensor cores' products. All its keys and values are requested at once; each warp loads, scores and weighs its
// own 16 of every 64 positions, so warps meet only to add up. The last block of a head to finish adds the splits in
// their order. Splits are fixed positions: what a row gets does not depend on the batch.
//
// Compiled once per GROUP (1 to 8), SPLIT (a multiple of 64), BUFFERS, FUSED, and kind of cache: paged.cuh and kv_half.cuh or
// kv_int8.cuh go before this file. FUSED: qkv is the projection's output, the new key is rotated, and key and value are
// written to the cache here; else queries are rotated and the cache is complete.
// FUSED reads positions, block tables and older keys and values before it waits for the kernel right before it.

constexpr int TILES = SPLIT / TILE, CHUNK = 16 / (int)sizeof(Number), CHUNKS = D / CHUNK;  // 16-byte pieces of a row
constexpr int TILE_BYTES = TILE * D * (int)sizeof(Number);
constexpr int BUFFER_BYTES = 2 * (TILE_BYTES + SCALE_BYTES);  // keys, values, the scales of both
// BUFFERS: tiles of keys and values in shared memory; the arithmetic is the same for any number.

// The query heads as the right operand, scaled: registers 2 s and 2 s + 1 are head g's dimensions of step s of the product.
DEVICE void load_query(u32 (&q)[16], const u16* head0, const Angle (&angles)[8], float scale, int g, int t) {
#pragma unroll
  for (int s = 0; s < 4; s++)
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int d = query_dimension(s, i, t);
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

// Of query heads 2 t and 2 t + 1, over a warp's positions so far; in powers of two. out[s] holds rows g and g + 8 of step s
// of both, in `unit`s: heads are the 8 columns of every product, so no more than GROUP of 8 are wasted.
struct State { float maximum[2], total[2], out[STEPS][4], unit; };

DEVICE float maximum_of_column(float v) {
#pragma unroll
  for (int offset = 4; offset < 32; offset *= 2) v = fmaxf(v, __shfl_xor_sync(~0u, v, offset));
  return v;
}

// Their softmax so far, and the values weighed by it.
DEVICE void weigh(State& state, float (&c)[4], int num_valid, u32 v_tile, u32 scales, int warp, int lane) {
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
  scale_weights(p, shrink, state.unit, scales, warp, lane);
  const u32 b0 = transpose(pack_half2(p[0], p[1])), b1 = transpose(pack_half2(p[2], p[3]));
  add_values(state.out, shrink, b0, b1, v_tile, warp, lane);
}

// Requests this warp's 16 positions of one tile, keys and values as one group of copies each.
DEVICE void request(u32 k_tile, const Number* keys, const Number* values, long long origin, long long stride,
                    const Scales& scales, long long scales_origin, int left, int warp, int lane) {
#pragma unroll
  for (int half = 0; half < 2; half++) {
#pragma unroll
    for (int i = 0; i < CHUNKS / 2; i++) {
      const int r = warp * 16 + i * (32 / CHUNKS) + lane / CHUNKS;
      copy16(piece(k_tile + half * TILE_BYTES, r, lane % CHUNKS), (half ? values : keys) + origin + r * stride, r < left ? 16 : 0);
    }
    request_scales(k_tile + 2 * TILE_BYTES + half * SCALE_BYTES, (half ? scales.values : scales.keys) + scales_origin, left, warp,
                   lane);
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

extern "C" __global__ void __launch_bounds__(WARPS * 32, MIN_BLOCKS)
decode_attention(const u16* __restrict__ qkv, Number* __restrict__ keys, Number* __restrict__ values,
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
  const long long piece_origin = kv_head * shape.head_stride + lane % CHUNKS * CHUNK;
  const long long scales_origin = kv_head * shape.scales.head_stride;
#pragma unroll
  for (int tile = 0; tile < BUFFERS; tile++) {
    if (tile < num_tiles)
      request(base + tile * BUFFER_BYTES, keys, values, table[tile] * shape.block_stride + piece_origin, shape.position_stride,
              shape.scales, table[tile] * shape.scales.block_stride + scales_origin, num_cached - start - tile * TILE, warp, lane);
    else { copies_commit(); copies_commit(); }
  }
  const float *cos = cos_table + (size_t)position * 64, *sin = sin_table + (size_t)position * 64;
  Angle angles[8];
  if (FUSED) {
#pragma unroll
    for (int i = 0; i < 8; i++) angles[i] = load_angle(cos, sin, query_dimension(i / 2, i % 2, t));
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
  state.unit = 1.17549435e-38f;
#pragma unroll
  for (int s = 0; s < STEPS; s++) state.out[s][0] = state.out[s][1] = state.out[s][2] = state.out[s][3] = 0.f;
  for (int tile = 0; tile < num_tiles; tile++) {
    const u32 k_tile = base + tile % BUFFERS * BUFFER_BYTES, v_tile = k_tile + TILE_BYTES, scales = v_tile + TILE_BYTES;
    const int first = start + tile * TILE + warp * 16;
    const bool has_new = FUSED && position >= first && position < first + 16;
    copies_wait<2 * BUFFERS - 1>();
    if (has_new) {
      copies_wait<2 * BUFFERS - 2>();
      __syncwarp();
      const long long to = table[tile] * shape.block_stride + (position % TILE) * shape.position_stride + kv_head * shape.head_stride;
      const long long scale_to = table[tile] * shape.scales.block_stride + scales_origin + position % TILE;
      write_new(x + (shape.num_heads + kv_head) * D, x + (shape.num_heads + shape.num_kv_heads + kv_head) * D, keys + to,
                values + to, shape.scales.keys + scale_to, shape.scales.values + scale_to, k_tile, v_tile, scales,
                position % TILE, load_angle(cos, sin, 2 * lane), lane);
    }
    __syncwarp();
    if (first <= position) {
      float c[4] = {};
      score(c, q, k_tile, scales, warp, lane);
      copies_wait<2 * BUFFERS - 2>();
      __syncwarp();
      weigh(state, c, position + 1 - first, v_tile, scales, warp, lane);
    }
    __syncwarp();
    if (tile + BUFFERS < num_tiles)
      request(k_tile, keys, values, table[tile + BUFFERS] * shape.block_stride + piece_origin, shape.position_stride,
              shape.scales, table[tile + BUFFERS] * shape.scales.block_stride + scales_origin,
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
        sums[(warp * GROUP + head) * D + s * 16 + g * LEFT_BY] = in_units(state.out[s][i], state.unit);
        sums[(warp * GROUP + head) * D + s * 16 + g * LEFT_BY + NEXT_AT] = in_units(state.out[s][i + 2], state.unit);
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
      sum += weight * sums[(w * GROUP + h) * D + place_of(tid)];
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
