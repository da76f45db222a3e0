// The next token of each row of logits, greedy or drawn, and its log-probability: what sampler.py does, without a sort.
//
// All sums are of 64-bit fixed-point numbers (fixed_point.py), so neither the batch nor the order of threads shows in a result.
// Logits are fp16: their 2^16 values, ordered, are the keys of a histogram in two levels (4096 bins, 16 keys a bin), in which
// the k-th largest and the border of the nucleus are found. One block of threads a row; V is a multiple of 8, up to 2^16.

constexpr int THREADS = 1024, PER_THREAD = 8, STRIDE = THREADS * PER_THREAD, BINS = 4096, KEYS = 16, MAX_CHUNKS = 8;

struct Row { double temperature, top_p, min_p, uniform; int top_k, unused; };  // temperature 0: greedy
struct Chosen { double logprob; int token_id, is_valid; };

// How often each bin or key occurs, and what its tokens weigh together, in three parts of 16 bits, 32-bit atomics being fast.
template <int SIZE> struct Histogram {
  u32 count[SIZE], parts[3][SIZE];
  DEVICE void clear() {
    for (int i = threadIdx.x; i < 4 * SIZE; i += THREADS) (&count[0])[i] = 0;
  }
  DEVICE void add(int at, u64 weight) {
    atomicAdd(count + at, 1u);
    const u32 low = weight & 0xffff, middle = weight >> 16 & 0xffff, high = weight >> 32;
    if (low) atomicAdd(parts[0] + at, low);
    if (middle) atomicAdd(parts[1] + at, middle);
    if (high) atomicAdd(parts[2] + at, high);
  }
  DEVICE u64 weight(int at) const { return parts[0][at] + ((u64)parts[1][at] << 16) + ((u64)parts[2][at] << 32); }
};

struct Shared {
  Histogram<BINS> bins;
  Histogram<KEYS> keys;
  u64 warp_sums[32], chunk_sums[MAX_CHUNKS], border_sum;
  u32 warp_counts[32], chunk_ties[MAX_CHUNKS];
  float tops[32];
  int ids[32], border, chunk, token_id;
};

DEVICE int key_of(u32 half_bits) {  // ordered as the numbers are
  const u32 bits = half_bits == 0x8000 ? 0 : half_bits;
  return bits & 0x8000 ? 0xffff ^ bits : bits | 0x8000;
}
DEVICE u64 fixed_point(double scaled, double one) { return (u64)(exp(scaled) * one); }

// Exclusive sum over the threads before this one, and everybody's total.
template <typename T> DEVICE T scan(T mine, T* warp_sums, T& total) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  T sum = mine;
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const T other = __shfl_up_sync(~0u, sum, offset);
    if (lane >= offset) sum += other;
  }
  __syncthreads();
  if (lane == 31) warp_sums[warp] = sum;
  __syncthreads();
  T before = 0;
  total = 0;
  for (int w = 0; w < 32; w++) {
    if (w == warp) before = total;
    total += warp_sums[w];
  }
  return before + sum - mine;
}

// What a row's tokens weigh: those of a key below `lowest` nothing, nor the first `num_removed` of that key, nor those less
// likely than min_p.
struct Weigher {
  const u16* logits;
  double top, temperature, min_p, one;
  int vocab_size, lowest;
  u32 num_removed;

  DEVICE double scaled(u32 half_bits) const { return ((double)half_low(half_bits) - top) / temperature; }
  DEVICE uint4 load(int i) const { return *(const uint4*)(logits + i); }

  // The weights of 8 tokens from i on into w; returns their sum. `ties` are tokens of the lowest key before i.
  DEVICE u64 weigh(u64 (&w)[PER_THREAD], int i, u32 ties) const {
    u64 sum = 0;
#pragma unroll
    for (int j = 0; j < PER_THREAD; j++) w[j] = 0;
    if (i >= vocab_size) return 0;
    const uint4 v = load(i);
    const u32 words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int j = 0; j < PER_THREAD; j++) {
      const u32 bits = words[j / 2] >> (j % 2 * 16) & 0xffff;
      const int key = key_of(bits);
      const bool is_tie = key == lowest;
      if (key > lowest || (is_tie && ties >= num_removed)) {
        const double likelihood = exp(scaled(bits));
        w[j] = likelihood < min_p ? 0 : (u64)(likelihood * one);
        sum += w[j];
      }
      ties += is_tie;
    }
    return sum;
  }
  DEVICE u32 count_ties(int i) const {
    if (i >= vocab_size) return 0;
    const uint4 v = load(i);
    const u32 words[4] = {v.x, v.y, v.z, v.w};
    u32 count = 0;
#pragma unroll
    for (int j = 0; j < PER_THREAD; j++) count += key_of(words[j / 2] >> (j % 2 * 16) & 0xffff) == lowest;
    return count;
  }
};

// Adds every token of a key >= lowest to `histogram`: to its bin, or, with `bin` given, tokens of that bin to their key.
template <typename H> DEVICE void fill(H& histogram, const Weigher& weigher, int bin) {
  histogram.clear();
  __syncthreads();
  for (int i = threadIdx.x * PER_THREAD; i < weigher.vocab_size; i += STRIDE) {
    const uint4 v = weigher.load(i);
    const u32 words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int j = 0; j < PER_THREAD; j++) {
      const u32 bits = words[j / 2] >> (j % 2 * 16) & 0xffff;
      const int key = key_of(bits);
      if (key >= weigher.lowest && (bin < 0 || key / KEYS == bin))
        histogram.add(bin < 0 ? key / KEYS : key % KEYS, fixed_point(weigher.scaled(bits), weigher.one));
    }
  }
  __syncthreads();
}

// The key of the k-th largest logit.
DEVICE int find_kth(Shared& s, const Weigher& weigher, u32 k) {
  fill(s.bins, weigher, -1);
  const int first = BINS - 4 - threadIdx.x * 4;  // from the top down
  u32 mine = 0, total;
  for (int i = 0; i < 4; i++) mine += s.bins.count[first + i];
  u32 above = scan(mine, s.warp_counts, total);
  if (above < k && k <= above + mine)
    for (int bin = first + 3; bin >= first; bin--) {
      const u32 here = s.bins.count[bin];
      if (above < k && k <= above + here) { s.border = bin; s.border_sum = above; }
      above += here;
    }
  __syncthreads();
  const int bin = s.border;
  u32 larger = (u32)s.border_sum;
  fill(s.keys, weigher, bin);
  int key = KEYS;
  while (larger < k && key > 0) larger += s.keys.count[--key];
  return bin * KEYS + key;
}

// Sets the weigher's border so that what is left is the smallest set of the likeliest tokens that holds the mass top_p. Of
// equal tokens the first are left out, as a stable ascending sort would have it.
DEVICE void cut_nucleus(Shared& s, Weigher& weigher, double top_p, int top_key) {
  fill(s.bins, weigher, -1);
  const int first = threadIdx.x * 4;  // from the bottom up
  u64 mine = 0, total;
  for (int i = 0; i < 4; i++) mine += s.bins.weight(first + i);
  u64 below = scan(mine, s.warp_sums, total);
  const u64 cut = (u64)((1.0 - top_p) * (double)total);
  if (threadIdx.x == 0) { s.border = top_key / KEYS; s.border_sum = total; }
  __syncthreads();
  if (below <= cut && cut < below + mine)
    for (int bin = first; bin < first + 4; bin++) {
      const u64 here = s.bins.weight(bin);
      if (below <= cut && cut < below + here) { s.border = bin; s.border_sum = below; }
      below += here;
    }
  __syncthreads();
  const int bin = s.border;
  below = s.border_sum;
  fill(s.keys, weigher, bin);
  if (cut >= total) {  // one token is always left
    weigher.lowest = top_key;
    weigher.num_removed = s.keys.count[top_key % KEYS] - 1;
    return;
  }
  int key = 0;
  while (key < KEYS - 1 && below + s.keys.weight(key) <= cut) below += s.keys.weight(key++);
  weigher.lowest = bin * KEYS + key;
  weigher.num_removed = (u32)((cut - below) / (s.keys.weight(key) / s.keys.count[key]));
}

// The first token in vocabulary order whose cumulative weight exceeds uniform * total.
DEVICE int draw(Shared& s, const Weigher& weigher, double uniform) {
  const int num_chunks = (weigher.vocab_size + STRIDE - 1) / STRIDE;
  u64 w[PER_THREAD], total = 0, here;
  u32 ties = 0, more;
  for (int chunk = 0; chunk < num_chunks; chunk++) {
    const int i = chunk * STRIDE + threadIdx.x * PER_THREAD;
    const u32 before = scan(weigher.count_ties(i), s.warp_counts, more);
    scan(weigher.weigh(w, i, ties + before), s.warp_sums, here);
    if (threadIdx.x == 0) { s.chunk_sums[chunk] = here; s.chunk_ties[chunk] = ties; }
    total += here;
    ties += more;
  }
  __syncthreads();
  u64 target = (u64)(uniform * (double)total);  // the product may round up to the total
  if (target >= total) target = total - 1;
  int chunk = 0;
  while (target >= s.chunk_sums[chunk]) target -= s.chunk_sums[chunk++];
  const int i = chunk * STRIDE + threadIdx.x * PER_THREAD;
  const u32 before = scan(weigher.count_ties(i), s.warp_counts, more);
  const u64 mine = weigher.weigh(w, i, s.chunk_ties[chunk] + before);
  u64 at = scan(mine, s.warp_sums, here);
  if (at <= target && target < at + mine) {
    int j = 0;
    while (at + w[j] <= target) at += w[j++];
    s.token_id = i + j;
  }
  __syncthreads();
  return s.token_id;
}

extern "C" __global__ void __launch_bounds__(THREADS)
choose_tokens(const u16* __restrict__ all_logits, const Row* __restrict__ rows, Chosen* __restrict__ chosen,
              int* __restrict__ token_ids, int vocab_size, int fraction_bits) {
  extern __shared__ u8 raw[];
  Shared& s = *(Shared*)raw;
  wait_for_previous_kernel();
  let_next_kernel_start();
  const u16* logits = all_logits + (size_t)blockIdx.x * vocab_size;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  float top = -INFINITY_F;
  int id = 0x7fffffff, is_sound = 1;
  for (int i = threadIdx.x * PER_THREAD; i < vocab_size; i += STRIDE) {
    const uint4 v = *(const uint4*)(logits + i);
    const u32 words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int j = 0; j < PER_THREAD; j++) {
      const float value = j % 2 ? half_high(words[j / 2]) : half_low(words[j / 2]);
      if (!(value < INFINITY_F)) is_sound = 0;
      if (value > top) { top = value; id = i + j; }
    }
  }
  for (int round = 0; round < 2; round++) {  // within each warp, then of the warps
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
      const float other = __shfl_xor_sync(~0u, top, offset);
      const int other_id = __shfl_xor_sync(~0u, id, offset);
      if (other > top || (other == top && other_id < id)) { top = other; id = other_id; }
    }
    if (round == 0) {
      if (lane == 0) { s.tops[warp] = top; s.ids[warp] = id; }
      is_sound = __syncthreads_and(is_sound);
      top = s.tops[lane];
      id = s.ids[lane];
    }
  }
  const double one = (double)(1ull << fraction_bits);
  if (!is_sound || top == -INFINITY_F) {
    if (threadIdx.x == 0) { chosen[blockIdx.x] = {0.0, 0, 0}; token_ids[blockIdx.x] = 0; }
    return;
  }
  Weigher weigher{logits, top, 1.0, 0.0, one, vocab_size, 0, 0};
  u64 w[PER_THREAD], mine = 0, total;
  for (int i = threadIdx.x * PER_THREAD; i < vocab_size; i += STRIDE) mine += weigher.weigh(w, i, 0);
  scan(mine, s.warp_sums, total);
  const Row row = rows[blockIdx.x];
  if (row.temperature > 0.0) {
    weigher.temperature = row.temperature;
    if (row.top_k > 0 && row.top_k < vocab_size) weigher.lowest = find_kth(s, weigher, row.top_k);
    if (row.top_p < 1.0) cut_nucleus(s, weigher, row.top_p, key_of(logits[id]));
    weigher.min_p = row.min_p;
    id = draw(s, weigher, row.uniform);
  }
  if (threadIdx.x == 0) {
    const double logprob = (double)half_low(logits[id]) - (double)top - log((double)total / one);
    chosen[blockIdx.x] = {logprob, id, 1};
    token_ids[blockIdx.x] = id;
  }
}
