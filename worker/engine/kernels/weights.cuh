// What the products share: how blocks of threads divide the units of a weight (layout: repack.py) among themselves, how
// a unit comes to shared memory, and how its bytes become wgmma's operand A in registers.
//
// Compiled with FORMAT (8, 4), SCALE_SUMS: NF4 weights come without their absmax, which scales the sums of 64 inputs; and X_BITS,
// bits of an activation (16; with int8 weights 8 too).

constexpr int ROWS = 128, CHUNK = 128;
constexpr int BLOCK_INPUTS = X_BITS == 8 ? 128 : 64;  // of four wgmma steps
constexpr int CODE_BYTES = FORMAT == 8 ? ROWS * CHUNK : ROWS * CHUNK / 2;
constexpr int UNIT_BYTES = FORMAT == 8 ? CODE_BYTES : CODE_BYTES + ROWS * (CHUNK / 64) * 4;
constexpr int LUT_BYTES = FORMAT == 4 ? 256 * 32 * 4 : 0;

struct alignas(64) TensorMap { u64 opaque[16]; };

DEVICE void barrier_init(u32 bar, u32 count) { asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(bar), "r"(count)); }
DEVICE void barrier_arrive(u32 bar) { asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(bar) : "memory"); }
DEVICE void barrier_arrive_in(u32 bar, int rank) {  // in the shared memory of that block of the cluster, our own too
  asm volatile("{.reg .u32 there;\nmapa.shared::cluster.u32 there, %0, %1;\nmbarrier.arrive.shared::cluster.b64 _, [there];}" ::"r"(bar),
               "r"(rank)
               : "memory");
}
DEVICE void barrier_expect(u32 bar, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
}
DEVICE void barrier_wait(u32 bar, u32 parity) {
  asm volatile(
      "{.reg .pred p;\nAGAIN: mbarrier.try_wait.parity.shared.b64 p, [%0], %1;\n@p bra DONE;\nbra AGAIN;\nDONE: }" ::"r"(bar),
      "r"(parity)
      : "memory");
}
template <int ID, int COUNT> DEVICE void named_barrier() { asm volatile("bar.sync %0, %1;" ::"n"(ID), "n"(COUNT) : "memory"); }

DEVICE void copy_unit(u32 to, const void* from, u32 bar, u64 policy) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::
                   "r"(to), "l"(from), "n"(UNIT_BYTES), "r"(bar), "l"(policy)
               : "memory");
}
// The same to the blocks of the cluster in `blocks`, at the same place in each, where it counts for the same barrier.
DEVICE void copy_unit_to(u16 blocks, u32 to, const void* from, u32 bar, u64 policy) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster.L2::cache_hint [%0], [%1], %2, [%3], %4, %5;" ::
          "r"(to), "l"(from), "n"(UNIT_BYTES), "r"(bar), "h"(blocks), "l"(policy)
      : "memory");
}
DEVICE void copy_x(u32 to, const TensorMap* map, int k, int row, u32 bar) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::
                   "r"(to), "l"(map), "r"(k), "r"(row), "r"(bar)
               : "memory");
}

// The units [begin, end) of one block, tile by tile from the last to the first, upwards within a tile.
struct Walk {
  int begin, low, high, unit, chunks;
  DEVICE Walk(int begin_, int end, int chunks_) : begin(begin_), high(end), chunks(chunks_) { start_tile(); }
  DEVICE void start_tile() {
    int first = high > 0 ? (high - 1) / chunks * chunks : 0;
    low = first > begin ? first : begin;
    unit = low;
  }
  DEVICE bool done() const { return high <= begin; }
  DEVICE int chunk() const { return unit % chunks; }
  DEVICE void next() {
    if (++unit == high) { high = low; start_tile(); }
  }
};

// What a warp multiplies in one go: its 16 rows x BLOCK_INPUTS inputs, as the A fragments of four wgmma steps.
struct Block {
  u32 a[16];
  float scale0, scale1;  // absmax of rows g and g + 8; only where SCALE_SUMS
};

// A block as it is stored. Read one block ahead, so that nobody waits for it.
struct Raw {
  uint4 codes[FORMAT == 8 ? BLOCK_INPUTS / 32 : 1];
  u32 absmax0, absmax1;
};

DEVICE void load_raw(Raw& raw, u32 w, int half, int warp_row, int lane) {
  if constexpr (FORMAT == 8) {
#pragma unroll
    for (int q = 0; q < BLOCK_INPUTS / 32; q++) raw.codes[q] = load_shared4(w + ((warp_row * 4 + half * 2 + q) * 32 + lane) * 16);
  } else {
    raw.codes[0] = load_shared4(w + ((warp_row * 2 + half) * 32 + lane) * 16);
    const u32 absmax = w + CODE_BYTES + (half * ROWS + warp_row * 16 + (lane >> 2)) * 4;
    raw.absmax0 = load_shared(absmax);
    raw.absmax1 = load_shared(absmax + 32);
  }
}

// Volatile, since behind wgmma_fence the compiler would wait for every single wgmma before it touches a register.
DEVICE u32 subtract_bias(u32 codes) {
  u32 r;
  asm volatile("xor.b32 %0, %1, 0x80808080;" : "=r"(r) : "r"(codes));
  return r;
}

DEVICE void dequantize(Block& block, const Raw& raw, u32 lut) {
  if constexpr (X_BITS == 8) {
    // The bytes are operand A of 8 bits as they lie, but for their bias, if in each 16 inputs of x word t of four has the inputs
    // 2 t, 2 t + 1, 2 t + 8 and 2 t + 9 (round_rows.cu): in which order inputs are added does not matter to whole numbers.
#pragma unroll
    for (int q = 0; q < 4; q++) {
      block.a[4 * q] = subtract_bias(raw.codes[q].x);
      block.a[4 * q + 1] = subtract_bias(raw.codes[q].y);
      block.a[4 * q + 2] = subtract_bias(raw.codes[q].z);
      block.a[4 * q + 3] = subtract_bias(raw.codes[q].w);
    }
  } else if constexpr (FORMAT == 8) {
#pragma unroll
    for (int q = 0; q < 2; q++) {
      const u32 words[4] = {raw.codes[q].x, raw.codes[q].y, raw.codes[q].z, raw.codes[q].w};
#pragma unroll
      for (int i = 0; i < 4; i++) {  // word i: step i / 2, row half i % 2; a byte b is int8 + 128
        u32* a = block.a + q * 8 + i / 2 * 4 + i % 2;
        a[0] = add_half2(permute(words[i], 0x64646464u, 0x4140), 0xE480E480u);  // 0x64 above b is 1024 + b; -1152
        a[2] = add_half2(permute(words[i], 0x64646464u, 0x4342), 0xE480E480u);
      }
    }
  } else {
    const u32 words[4] = {raw.codes[0].x, raw.codes[0].y, raw.codes[0].z, raw.codes[0].w};
    const u32 twice0 = twice_half(raw.absmax0), twice1 = twice_half(raw.absmax1);
    block.scale0 = __uint_as_float(raw.absmax0);
    block.scale1 = __uint_as_float(raw.absmax1);
#pragma unroll
    for (int i = 0; i < 16; i++) {  // byte i % 4 of word i / 4 is register i: two neighbours of row g or g + 8
      u32 pair = load_shared(lut + permute(words[i / 4], 0, 0x4440 + i % 4) * 128);
      block.a[i] = SCALE_SUMS ? pair : multiply_half2(pair, i % 2 ? twice1 : twice0);
    }
  }
}

// Byte -> two fp16 codes, one copy per bank, so that 32 lanes look up 32 bytes at once.
DEVICE void fill_table(u32 table, int thread, int num_threads) {
  for (int i = thread; i < 256 * 8; i += num_threads) {
    const int byte = i >> 3;
    store_shared4(table + i * 16, (u32)NF4[byte >> 4] | (u32)NF4[byte & 15] << 16);
  }
}

DEVICE u64 describe_x(u32 address) {  // K-major, 128-byte swizzle, groups of 8 rows 1024 bytes apart
  return (u64)((address >> 4) & 0x3fff) | (1ull << 16) | (64ull << 32) | (1ull << 62);
}

DEVICE int first_unit(int block, int num_units, u32 num_blocks) { return (int)((long long)block * num_units / num_blocks); }
