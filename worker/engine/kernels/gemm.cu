// y[m][n] = sum over k of W[n][k] * x[m][k], with W stored as int8 or NF4 and x, y in fp16, for Hopper.
//
// The tensor cores see the product transposed: weights are wgmma's operand A, dequantized in registers, and the
// activations are its operand B, read from shared memory. So one row of weights is dequantized once however many rows
// x has, and one weight byte is read from device memory once.
//
// The weights lie in units of 128 outputs x 128 inputs (layout: repack.py), each one contiguous copy. The grid is one
// block per multiprocessor; each takes an equal run of consecutive units, whatever tile of outputs they belong to. A
// block works off its run from the last tile to the first: it starts with the tile whose end belongs to the next block
// and leaves its partial sums for that block at once, and ends with the tile whose start others have left for it. So
// nobody waits for work that has not begun, sums are added in one fixed order, and no atomics are used.
//
// Compiled once per FORMAT (8, 4), BATCH (rows of x: 8, 16, 32, 64 or 128), STAGES, EARLY_STAGES, K_GROUPS (1, 2), SILU.
// The text before this file defines these, X_BITS as 16, `wgmma(float*, u32[4], u64)` and `wgmma_first` for BATCH; then weights.cuh.

constexpr int X_HALF_BYTES = BATCH * 128;  // [BATCH][64] fp16, the widest row the 128-byte swizzle takes
constexpr int X_BYTES = 2 * X_HALF_BYTES;
constexpr int ACC = BATCH / 2;  // sums a thread holds
constexpr int GROUP_THREADS = 256, CONSUMERS = GROUP_THREADS * K_GROUPS, THREADS = CONSUMERS + 32;
constexpr int EXCHANGE_BYTES = K_GROUPS == 2 ? GROUP_THREADS * ACC * 4 : 0;
constexpr int OFFSET_W = STAGES * X_BYTES;
constexpr int OFFSET_LUT = OFFSET_W + STAGES * UNIT_BYTES;
constexpr int OFFSET_EXCHANGE = OFFSET_LUT + LUT_BYTES;
constexpr int OFFSET_BARRIERS = OFFSET_EXCHANGE + EXCHANGE_BYTES;

// Starts acc += block * x; finish() waits for it. Where SCALE_SUMS the product stands alone until finish() scales it.
DEVICE void start(float (&acc)[ACC], float (&product)[ACC], const Block& block, u64 x) {
  wgmma_fence();
#pragma unroll
  for (int step = 0; step < 4; step++) {  // 16 inputs are 32 bytes of x, 2 in units of the descriptor
    if (SCALE_SUMS && step == 0) wgmma_first(product, block.a, x);
    else wgmma(SCALE_SUMS ? product : acc, block.a + step * 4, x + step * 2);
  }
  wgmma_commit();
}
DEVICE void finish(float (&acc)[ACC], float (&product)[ACC], const Block& block) {
  wgmma_wait<0>();
#pragma unroll
  for (int i = 0; i < ACC; i++) {
    hold(SCALE_SUMS ? product[i] : acc[i]);  // no use of the sums moves above the wait
    if (SCALE_SUMS) acc[i] += product[i] * (i & 2 ? block.scale1 : block.scale0);
  }
}

DEVICE void produce(const TensorMap* map, const u8* units, Walk walk, u32 base, u32 full, u32 empty) {
  u64 policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  Walk x_walk = walk;
  int filled = 0;
  for (; filled < EARLY_STAGES && !walk.done(); filled++, walk.next()) {  // weights depend on no kernel before this one
    barrier_expect(full + filled * 8, UNIT_BYTES + X_BYTES);
    copy_unit(base + OFFSET_W + filled * UNIT_BYTES, units + (size_t)walk.unit * UNIT_BYTES, full + filled * 8, policy);
  }
  wait_for_previous_kernel();
  for (int s = 0; s < filled; s++, x_walk.next()) {
    int k = x_walk.chunk() * CHUNK;
    copy_x(base + s * X_BYTES, map, k, 0, full + s * 8);
    copy_x(base + s * X_BYTES + X_HALF_BYTES, map, k + 64, 0, full + s * 8);
  }
  int stage = filled % STAGES;
  bool is_used = filled == STAGES;  // has this stage been filled before?
  u32 parity = 0;
  for (; !walk.done(); walk.next()) {
    if (is_used) barrier_wait(empty + stage * 8, parity);
    u32 bar = full + stage * 8;
    int k = walk.chunk() * CHUNK;
    barrier_expect(bar, UNIT_BYTES + X_BYTES);
    copy_unit(base + OFFSET_W + stage * UNIT_BYTES, units + (size_t)walk.unit * UNIT_BYTES, bar, policy);
    copy_x(base + stage * X_BYTES, map, k, 0, bar);
    copy_x(base + stage * X_BYTES + X_HALF_BYTES, map, k + 64, 0, bar);
    if (++stage == STAGES) {
      stage = 0;
      if (is_used) parity ^= 1;
      is_used = true;
    }
  }
  let_next_kernel_start();  // its blocks take a multiprocessor each as ours leave it, and load their first weights
}

// Where a group of warps stands in the ring of stages. Groups take the units in turn.
struct Ring {
  int stage;
  u32 parity;
  DEVICE void next() {
    stage += K_GROUPS;
    if (stage >= STAGES) { stage -= STAGES; parity ^= 1; }
  }
};

// Adds num_units units of one tile to acc; the next block is dequantized while the tensor cores multiply this one.
DEVICE void multiply(float (&acc)[ACC], int num_units, u32 base, Ring& ring) {
  const int lane = threadIdx.x & 31, warp_row = (threadIdx.x >> 5) & 7;
  const u32 full = base + OFFSET_BARRIERS, empty = full + STAGES * 8, lut = base + OFFSET_LUT + lane * 4;
  Raw raw;
  Block blocks[2];
  float product[ACC];
  u32 w = base + OFFSET_W + ring.stage * UNIT_BYTES;
  barrier_wait(full + ring.stage * 8, ring.parity);
  load_raw(raw, w, 0, warp_row, lane);
  dequantize(blocks[0], raw, lut);
  load_raw(raw, w, 1, warp_row, lane);
  for (int u = 0; u < num_units; u++) {
    const int stage = ring.stage;
    const u64 x = describe_x(base + stage * X_BYTES);
    start(acc, product, blocks[0], x);
    dequantize(blocks[1], raw, lut);
    ring.next();
    w = base + OFFSET_W + ring.stage * UNIT_BYTES;
    const bool more = u + 1 < num_units;
    if (more) {
      barrier_wait(full + ring.stage * 8, ring.parity);
      load_raw(raw, w, 0, warp_row, lane);
    }
    finish(acc, product, blocks[0]);
    start(acc, product, blocks[1], x + X_HALF_BYTES / 16);
    if (more) {
      dequantize(blocks[0], raw, lut);
      load_raw(raw, w, 1, warp_row, lane);
    }
    finish(acc, product, blocks[1]);
    if (lane == 0) barrier_arrive(empty + stage * 8);
  }
}

// How a block hands its sums of a tile to the block that finishes the tile. Few sums go each beside a tag, which is polled:
// one trip through the L2. Many sums go plain, with one flag behind a fence. Either way the reader clears for next time.
constexpr bool TAGGED = ACC <= 16;

DEVICE void leave_partials(const float (&acc)[ACC], u32* partials, u32* flags) {
  if constexpr (TAGGED) {
    u32* to = partials + ((size_t)blockIdx.x * (ACC / 2) * GROUP_THREADS + threadIdx.x) * 4;
#pragma unroll
    for (int i = 0; i < ACC; i += 2)
      store_volatile4(to + i / 2 * GROUP_THREADS * 4, make_uint4(__float_as_uint(acc[i]), 1, __float_as_uint(acc[i + 1]), 1));
  } else {
    float* to = (float*)partials + (size_t)blockIdx.x * ACC * GROUP_THREADS + threadIdx.x;
#pragma unroll
    for (int i = 0; i < ACC; i++) to[i * GROUP_THREADS] = acc[i];
    __threadfence();
    named_barrier<2, GROUP_THREADS>();
    if (threadIdx.x == 0) store_release(flags + blockIdx.x, 1);
  }
}

// Adds what the blocks [first, blockIdx.x) left of this tile, in that order, and then our own sums. Several blocks' sums are
// requested at once, since each trip through the L2 takes longer than all the adding.
DEVICE void add_partials(float (&acc)[ACC], int first, u32* partials, u32* flags) {
  const int tid = threadIdx.x, last = blockIdx.x;
  if constexpr (TAGGED) {
    constexpr int AT_ONCE = ACC == 4 ? 4 : K_GROUPS == 2 ? 1 : ACC == 8 ? 4 : 2;  // as registers allow
    float sum[ACC];
#pragma unroll
    for (int i = 0; i < ACC; i++) sum[i] = 0.f;
    for (int b0 = first; b0 < last; b0 += AT_ONCE) {
      uint4 v[AT_ONCE][ACC / 2];
      u32* from = partials + ((size_t)b0 * (ACC / 2) * GROUP_THREADS + tid) * 4;
#pragma unroll
      for (int b = 0; b < AT_ONCE; b++)
#pragma unroll
        for (int i = 0; i < ACC / 2; i++)
          if (b0 + b < last) v[b][i] = load_volatile4(from + (b * (ACC / 2) + i) * GROUP_THREADS * 4);
#pragma unroll
      for (int b = 0; b < AT_ONCE; b++)
#pragma unroll
        for (int i = 0; i < ACC / 2; i++)
          if (b0 + b < last) {
            u32* at = from + (b * (ACC / 2) + i) * GROUP_THREADS * 4;
            while (!(v[b][i].y & v[b][i].w)) v[b][i] = load_volatile4(at);
            store_volatile4(at, make_uint4(0, 0, 0, 0));
            sum[2 * i] += __uint_as_float(v[b][i].x);
            sum[2 * i + 1] += __uint_as_float(v[b][i].z);
          }
    }
#pragma unroll
    for (int i = 0; i < ACC; i++) acc[i] += sum[i];
  } else {
    constexpr int AT_ONCE = 4 / K_GROUPS, STRIP = 16;
    if (tid < last - first)
      while (load_acquire(flags + first + tid) == 0) {}
    named_barrier<2, GROUP_THREADS>();
#pragma unroll
    for (int i0 = 0; i0 < ACC; i0 += STRIP) {
      float sum[STRIP];
#pragma unroll
      for (int i = 0; i < STRIP; i++) sum[i] = 0.f;
      for (int b0 = first; b0 < last; b0 += AT_ONCE) {
        float v[AT_ONCE][STRIP];
        const float* from = (const float*)partials + ((size_t)b0 * ACC + i0) * GROUP_THREADS + tid;
#pragma unroll
        for (int b = 0; b < AT_ONCE; b++)
#pragma unroll
          for (int i = 0; i < STRIP; i++) v[b][i] = b0 + b < last ? load_l2(from + (b * ACC + i) * GROUP_THREADS) : 0.f;
#pragma unroll
        for (int b = 0; b < AT_ONCE; b++)
#pragma unroll
          for (int i = 0; i < STRIP; i++) sum[i] += v[b][i];
      }
#pragma unroll
      for (int i = 0; i < STRIP; i++) acc[i0 + i] += sum[i];
    }
    named_barrier<2, GROUP_THREADS>();
    if (tid < last - first) flags[first + tid] = 0;
  }
}

// Sums to fp16 outputs. A lane holds output rows g and g + 8 of its warp and batch rows 8 j + 2 t and the next.
DEVICE void write_out(const float (&acc)[ACC], int tile, const float* row_scale, u16* out, int M, int N) {
  const int lane = threadIdx.x & 31, warp_row = (threadIdx.x >> 5) & 7, g = lane >> 2, t = lane & 3;
  const int row = tile * ROWS + warp_row * 16 + g;
  const float scale0 = FORMAT == 8 ? row_scale[row] : 1.f, scale1 = FORMAT == 8 ? row_scale[row + 8] : 1.f;
  const int n = (SILU ? tile * (ROWS / 2) + warp_row * 8 : tile * ROWS + warp_row * 16) + 2 * t;
#pragma unroll
  for (int j = 0; j < BATCH / 8; j++) {
    float y0 = acc[4 * j] * scale0, y1 = acc[4 * j + 1] * scale0;
    float z0 = acc[4 * j + 2] * scale1, z1 = acc[4 * j + 3] * scale1;
    const int m = 8 * j + g;
    if (SILU) {  // row g is of the gate, row g + 8 the same row of up
      u32 y = transpose(pack_half2(silu(y0) * z0, silu(y1) * z1));
      if (m < M && n < N) *(u32*)(out + (size_t)m * N + n) = y;
    } else {
      u32 y = transpose(pack_half2(y0, y1)), z = transpose(pack_half2(z0, z1));
      if (m < M && n < N) *(u32*)(out + (size_t)m * N + n) = y;
      if (m < M && n + 8 < N) *(u32*)(out + (size_t)m * N + n + 8) = z;
    }
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
quantized_gemm(const __grid_constant__ TensorMap x_map, const u8* __restrict__ units, const float* __restrict__ row_scale,
               u16* __restrict__ out, u32* __restrict__ tagged, u32* __restrict__ plain, u32* __restrict__ flags, int M, int N, int num_units,
               int chunks) {
  extern __shared__ u8 raw[];
  const u32 base = (shared_address(raw) + 1023) & ~1023u;
  u32* partials = TAGGED ? tagged : plain;
  const u32 full = base + OFFSET_BARRIERS, empty = full + STAGES * 8;
  const int tid = threadIdx.x;
  if (tid == 0) {
    for (int s = 0; s < STAGES; s++) { barrier_init(full + s * 8, 1); barrier_init(empty + s * 8, GROUP_THREADS / 32); }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  }
  __syncthreads();
  Walk walk(first_unit(blockIdx.x, num_units, gridDim.x), first_unit(blockIdx.x + 1, num_units, gridDim.x), chunks);
  if (tid >= CONSUMERS) {
    if (tid == CONSUMERS) produce(&x_map, units, walk, base, full, empty);
    return;
  }
  if (FORMAT == 4) {
    fill_table(base + OFFSET_LUT, tid, CONSUMERS);
    named_barrier<1, CONSUMERS>();
  }
  wait_for_previous_kernel();
  const int group = K_GROUPS == 1 ? 0 : __shfl_sync(~0u, tid / GROUP_THREADS, 0);
  Ring ring{group, 0};
  int done = 0;  // units before this tile
  while (!walk.done()) {
    float acc[ACC];
#pragma unroll
    for (int i = 0; i < ACC; i++) acc[i] = 0.f;
    const int here = walk.high - walk.low, offset = (group + done) % K_GROUPS;
    if (here > offset) multiply(acc, (here - offset + K_GROUPS - 1) / K_GROUPS, base, ring);
    done += here;
    const int tile = walk.low / chunks, tile_end = (tile + 1) * chunks;
    if (K_GROUPS == 2) {
      const u32 exchange = base + OFFSET_EXCHANGE + (tid % GROUP_THREADS) * 4;
      named_barrier<1, CONSUMERS>();  // group 0 has read what group 1 left of the tile before
      if (tid >= GROUP_THREADS)
#pragma unroll
        for (int i = 0; i < ACC; i++) store_shared(exchange + i * GROUP_THREADS * 4, __float_as_uint(acc[i]));
      named_barrier<1, CONSUMERS>();
      if (tid < GROUP_THREADS)
#pragma unroll
        for (int i = 0; i < ACC; i++) acc[i] += __uint_as_float(load_shared(exchange + i * GROUP_THREADS * 4));
    }
    if (tid < GROUP_THREADS) {
      if (walk.high < tile_end) {
        leave_partials(acc, partials, flags);
      } else {
        // the block of the tile's first unit: the last one whose run begins at or before it
        int first = (int)((((long long)tile * chunks + 1) * gridDim.x - 1) / num_units);
        if (first < blockIdx.x) add_partials(acc, first, partials, flags);
        write_out(acc, tile, row_scale, out, M, N);
      }
    }
    walk.high = walk.low;
    walk.start_tile();
  }
}
