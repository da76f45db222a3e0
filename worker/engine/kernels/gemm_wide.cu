// y[m][n] = sum over k of W[n][k] * x[m][k] for many rows of x, as in prefill: gemm.cu's product, bound by the tensor cores.
//
// A block of threads computes tiles of 256 outputs x 128 rows of x: each of its two warpgroups multiplies a unit of weights of
// its own, dequantized in registers, with x in shared memory that both read. So a byte from the L2 serves 2048 multiply-adds
// or more, of which the memory path bears just enough. Tiles are ordered by outputs, then by rows, so that the rows' tiles find
// the weights in the L2; and the units of all tiles are divided equally among the blocks as in gemm.cu, so that no
// multiprocessor idles in a last, unfilled wave. Sums are added in one fixed order, and no atomics are used.
//
// Where X_BITS is 8, x is int8 with a scale for each row (round_rows.cu), and the sums are exact: of K inputs they are at most
// 127 * 128 * K, which 32 bits hold for any K up to 132,104.
//
// Where CLUSTER is 2, two blocks are a team: each takes 128 rows of its own of a tile of 256 rows, and copies one of the two units
// of weights into the shared memory of both. So a byte of weights from the L2 serves twice as much, which the int8 tensor cores,
// twice as fast, would else wait for.
//
// Compiled once per FORMAT (8, 4), X_BITS (16, 8), CLUSTER (1, 2), STAGES, SILU; SCALE_SUMS is 0. The text before defines these,
// and `wgmma` for 128 rows; then weights.cuh.

constexpr int BATCH = 128, ACC = BATCH / 2, PAIR = 2, CONSUMERS = 256, THREADS = CONSUMERS + 128;
constexpr int X_BOX_BYTES = BATCH * 128, X_BOXES = X_BITS / 8;  // rows of 128 bytes are the widest that the swizzle takes
constexpr int X_BYTES = X_BOXES * X_BOX_BYTES, W_BYTES = PAIR * UNIT_BYTES;
constexpr int OFFSET_W = STAGES * X_BYTES;
constexpr int OFFSET_LUT = OFFSET_W + STAGES * W_BYTES;
constexpr int OFFSET_BARRIERS = OFFSET_LUT + LUT_BYTES;

template <int BITS> struct SumOf { typedef float type; };
template <> struct SumOf<8> { typedef int type; };
typedef SumOf<X_BITS>::type Sum;

#if CLUSTER > 1
#define IN_TEAMS __cluster_dims__(CLUSTER, 1, 1)
#else
#define IN_TEAMS
#endif

DEVICE u32 team() { return blockIdx.x / CLUSTER; }
DEVICE int rank() { return blockIdx.x % CLUSTER; }
DEVICE u32 num_teams() { return gridDim.x / CLUSTER; }

// Tile t: outputs of the units' tiles 2 * pair and 2 * pair + 1, and of this block rows of x from m * BATCH on.
struct Place {
  int pair, m;
  DEVICE Place(int tile, int row_tiles) : pair(tile / row_tiles), m(tile % row_tiles * CLUSTER + rank()) {}
};

DEVICE void produce(const TensorMap* map, const u8* units, Walk walk, int row_tiles, int output_tiles, u32 base, u32 full, u32 empty) {
  u64 policy;
  asm("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(policy));
  wait_for_previous_kernel();
  int stage = 0;
  u32 parity = 1;  // of a fresh barrier, the phase before the first counts as done
  for (; !walk.done(); walk.next()) {
    const Place place(walk.unit / walk.chunks, row_tiles);
    const int chunk = walk.chunk();
    const u32 bar = full + stage * 8, w = base + OFFSET_W + stage * W_BYTES, x = base + stage * X_BYTES;
    barrier_wait(empty + stage * 8, parity);
    barrier_expect(bar, W_BYTES + X_BYTES);
#pragma unroll
    for (int i = 0; i < PAIR; i++) {
      const int tile = min(place.pair * PAIR + i, output_tiles - 1);  // of an odd number the last stands twice
      const u8* from = units + ((size_t)tile * walk.chunks + chunk) * UNIT_BYTES;
      if (CLUSTER == 1) copy_unit(w + i * UNIT_BYTES, from, bar, policy);
      else if (i == rank()) copy_unit_to((1 << CLUSTER) - 1, w + i * UNIT_BYTES, from, bar, policy);
      if (i < X_BOXES) copy_x(x + i * X_BOX_BYTES, map, chunk * CHUNK + i * 64, place.m * BATCH, bar);
    }
    if (++stage == STAGES) { stage = 0; parity ^= 1; }
  }
  let_next_kernel_start();
  if (CLUSTER > 1)  // the other block's warps may still arrive at our barriers, which must not be gone by then
    for (int s = 0; s < STAGES; s++) {
      barrier_wait(empty + stage * 8, parity);
      if (++stage == STAGES) { stage = 0; parity ^= 1; }
    }
}

struct Ring {
  int stage;
  u32 parity;
  DEVICE void next() {
    if (++stage == STAGES) { stage = 0; parity ^= 1; }
  }
};

// Of a warp: it needs what lies in this stage no more. Who fills it again waits for all warps into whose memory it copies.
DEVICE void release(u32 empty, int lane) {
  if (CLUSTER > 1) {
    if (lane < CLUSTER) barrier_arrive_in(empty, lane);
  } else if (lane == 0) {
    barrier_arrive(empty);
  }
}

// Adds num_units units of one tile to acc[0] (the first 64 outputs of the warpgroup's unit) and acc[1]. A block of weights is
// dequantized while the tensor cores multiply the one before.
DEVICE void multiply(Sum (&acc)[2][ACC], int num_units, u32 base, Ring& ring) {
  constexpr int STEPS = 2 * CHUNK / BLOCK_INPUTS;
  const int lane = threadIdx.x & 31, warp = (threadIdx.x >> 5) & 3, unit = threadIdx.x >> 7;
  const u32 full = base + OFFSET_BARRIERS, empty = full + STAGES * 8, lut = base + OFFSET_LUT + lane * 4;
  Raw raw;
  Block blocks[2];
  u32 w = base + OFFSET_W + ring.stage * W_BYTES + unit * UNIT_BYTES;
  barrier_wait(full + ring.stage * 8, ring.parity);
  load_raw(raw, w, 0, warp, lane);
  int before = 0;
  for (int u = 0; u < num_units; u++) {
    const int stage = ring.stage;
    const u64 x = describe_x(base + stage * X_BYTES);
#pragma unroll
    for (int step = 0; step < STEPS; step++) {  // 64 outputs x BLOCK_INPUTS inputs each
      const int half = step / 2, j = step % 2;
      dequantize(blocks[j], raw, lut);
      wgmma_fence();
#pragma unroll
      for (int i = 0; i < 4; i++) wgmma(acc[j], blocks[j].a + i * 4, x + half * (X_BOX_BYTES / 16) + i * 2);
      wgmma_commit();
      if (step < STEPS - 1) {
        load_raw(raw, w, (step + 1) / 2, (step + 1) % 2 * 4 + warp, lane);
      } else {
        ring.next();
        if (u + 1 < num_units) {
          w = base + OFFSET_W + ring.stage * W_BYTES + unit * UNIT_BYTES;
          barrier_wait(full + ring.stage * 8, ring.parity);
          load_raw(raw, w, 0, warp, lane);
        }
      }
      wgmma_wait<1>();
      if (step == 0 && u > 0) release(empty + before * 8, lane);
    }
    before = stage;
  }
  wgmma_wait<0>();
#pragma unroll
  for (int j = 0; j < 2; j++)
#pragma unroll
    for (int i = 0; i < ACC; i++) hold(acc[j][i]);  // no use of the sums moves above the wait
  release(empty + before * 8, lane);
}

// A block that does not finish its tile leaves its sums for the one that does, behind a flag that the reader clears.
DEVICE void leave_partials(const Sum (&acc)[2][ACC], Sum* partials, u32* flags) {
  Sum* to = partials + (size_t)blockIdx.x * 2 * ACC * CONSUMERS + threadIdx.x;
#pragma unroll
  for (int i = 0; i < 2 * ACC; i++) to[i * CONSUMERS] = acc[i / ACC][i % ACC];
  __threadfence();
  named_barrier<2, CONSUMERS>();
  if (threadIdx.x == 0) store_release(flags + blockIdx.x, 1);
}

// Adds what the teams [first, ours) left of this tile, in that order.
DEVICE void add_partials(Sum (&acc)[2][ACC], int first, const Sum* partials, u32* flags) {
  constexpr int STRIP = 16;
  const int tid = threadIdx.x, last = team();
  if (tid < last - first)
    while (load_acquire(flags + first * CLUSTER + tid * CLUSTER + rank()) == 0) {}
  named_barrier<2, CONSUMERS>();
#pragma unroll
  for (int i0 = 0; i0 < 2 * ACC; i0 += STRIP) {
    Sum sum[STRIP];
#pragma unroll
    for (int i = 0; i < STRIP; i++) sum[i] = 0;
    for (int b = first; b < last; b++) {
      const Sum* from = partials + ((size_t)(b * CLUSTER + rank()) * 2 * ACC + i0) * CONSUMERS + tid;
#pragma unroll
      for (int i = 0; i < STRIP; i++) sum[i] += load_l2(from + i * CONSUMERS);
    }
#pragma unroll
    for (int i = 0; i < STRIP; i++) acc[(i0 + i) / ACC][(i0 + i) % ACC] += sum[i];
  }
  named_barrier<2, CONSUMERS>();
  if (tid < last - first) flags[(first + tid) * CLUSTER + rank()] = 0;
}

// Sums to fp16 outputs. A lane holds output rows g and g + 8 of its warp and x's rows 8 j + 2 t and the next.
DEVICE void write_out(const Sum (&acc)[2][ACC], const Place& place, int output_tiles, const float* row_scale, const float* x_scale,
                      u16* out, int M, int N) {
  const int lane = threadIdx.x & 31, warp = (threadIdx.x >> 5) & 3, g = lane >> 2, t = lane & 3;
  const int tile = place.pair * PAIR + (threadIdx.x >> 7);
  if (tile >= output_tiles) return;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int warp_row = half * 4 + warp, row = tile * ROWS + warp_row * 16 + g;
    const float scale0 = FORMAT == 8 ? row_scale[row] : 1.f, scale1 = FORMAT == 8 ? row_scale[row + 8] : 1.f;
    const int n = (SILU ? tile * (ROWS / 2) + warp_row * 8 : tile * ROWS + warp_row * 16) + 2 * t;
#pragma unroll
    for (int j = 0; j < BATCH / 8; j++) {
      float y0 = acc[half][4 * j] * scale0, y1 = acc[half][4 * j + 1] * scale0;
      float z0 = acc[half][4 * j + 2] * scale1, z1 = acc[half][4 * j + 3] * scale1;
      if (X_BITS == 8) {
        const float2 of_x = *(const float2*)(x_scale + place.m * BATCH + 8 * j + 2 * t);
        y0 *= of_x.x; y1 *= of_x.y; z0 *= of_x.x; z1 *= of_x.y;
      }
      const int m = place.m * BATCH + 8 * j + g;
      u16* to = out + (size_t)m * N + n;
      if (SILU) {  // row g is of the gate, row g + 8 the same row of up
        const u32 y = transpose(pack_half2(silu(y0) * z0, silu(y1) * z1));
        if (m < M && n < N) *(u32*)to = y;
      } else {
        const u32 y = transpose(pack_half2(y0, y1)), z = transpose(pack_half2(z0, z1));
        if (m < M && n < N) *(u32*)to = y;
        if (m < M && n + 8 < N) *(u32*)(to + 8) = z;
      }
    }
  }
}

extern "C" __global__ void IN_TEAMS __launch_bounds__(THREADS, 1)
quantized_gemm_wide(const __grid_constant__ TensorMap x_map, const u8* __restrict__ units, const float* __restrict__ row_scale,
                    u16* __restrict__ out, Sum* __restrict__ partials, u32* __restrict__ flags, int M, int N, int output_tiles,
                    int chunks, const float* x_scale) {  // of whole tiles of rows; null where X_BITS is 16
  extern __shared__ u8 raw[];
  const u32 base = (shared_address(raw) + 1023) & ~1023u;
  const u32 full = base + OFFSET_BARRIERS, empty = full + STAGES * 8;
  const int tid = threadIdx.x, row_tiles = (M + CLUSTER * BATCH - 1) / (CLUSTER * BATCH);
  const int num_units = (output_tiles + PAIR - 1) / PAIR * row_tiles * chunks;
  if (tid == 0) {
    for (int s = 0; s < STAGES; s++) { barrier_init(full + s * 8, 1); barrier_init(empty + s * 8, CLUSTER * CONSUMERS / 32); }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  }
  __syncthreads();
  if (CLUSTER > 1) cluster_barrier();  // nobody copies to where no barrier is yet
  Walk walk(first_unit(team(), num_units, num_teams()), first_unit(team() + 1, num_units, num_teams()), chunks);
  if (tid >= CONSUMERS) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    if (tid == CONSUMERS) produce(&x_map, units, walk, row_tiles, output_tiles, base, full, empty);
    return;
  }
  asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");  // 2 x 240 + 24 is what 3 x 168 had
  if (FORMAT == 4) {
    fill_table(base + OFFSET_LUT, tid, CONSUMERS);
    named_barrier<1, CONSUMERS>();
  }
  wait_for_previous_kernel();
  Ring ring{0, 0};
  while (!walk.done()) {
    Sum acc[2][ACC];
#pragma unroll
    for (int i = 0; i < 2 * ACC; i++) acc[i / ACC][i % ACC] = 0;
    multiply(acc, walk.high - walk.low, base, ring);
    const int tile = walk.low / chunks;
    if (walk.high < (tile + 1) * chunks) {
      leave_partials(acc, partials, flags);
    } else {
      // the team of the tile's first unit: the last one whose run begins at or before it
      const int first = (int)((((long long)tile * chunks + 1) * num_teams() - 1) / num_units);
      if (first < team()) add_partials(acc, first, partials, flags);
      write_out(acc, Place(tile, row_tiles), output_tiles, row_scale, x_scale, out, M, N);
    }
    walk.high = walk.low;
    walk.start_tile();
  }
}
