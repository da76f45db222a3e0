// In device.cuh's place where there is no GPU: runs a kernel's own source on the CPU, one block of threads at a time.
//
// Threads are fibers, which go on in a random order and wait for each other where the hardware's lanes do. What lanes
// exchange follows the tables of the PTX ISA (mma, ldmatrix, movmatrix); a copy arrives when its group is waited for, and
// not before; an address that is out of bounds or out of line ends the process. Only what attention.cu and rowwise.cu use.

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
struct float2 { float x, y; };
struct float4 { float x, y, z, w; };
struct alignas(16) uint4 { u32 x, y, z, w; };
static uint4 make_uint4(u32 a, u32 b, u32 c, u32 d) { return {a, b, c, d}; }
static float4 make_float4(float a, float b, float c, float d) { return {a, b, c, d}; }

#define DEVICE static inline
#define __global__
#define __shared__ static
#define __restrict__
#define __launch_bounds__(...)
#define INFINITY_F INFINITY

struct Index { int x, y, z; };
static Index threadIdx, blockIdx, blockDim;
alignas(1024) static u8 shared_memory[227 * 1024];
struct Copy { u32 to; const void* from; int num_bytes; };
struct Fiber {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(64 * 1024);
  int thread;
  bool is_done = false;
  std::vector<Copy> open;
  std::vector<std::vector<Copy>> groups;  // of copies, the oldest first
};
static std::vector<Fiber> fibers;
static Fiber* running;
static ucontext_t scheduler;
static std::function<void()> kernel;
static u32 random_state = 1;

struct Barrier { int num_waiting = 0, turn = 0; };
static Barrier of_warp[32], of_block;
static u32 exchanged[32][32][6];  // by warp, lane, register
static int warp_number() { return running->thread / 32; }
static int lane_number() { return running->thread % 32; }

static void wait_at(Barrier& barrier, int num_threads) {
  const int turn = barrier.turn;
  if (++barrier.num_waiting == num_threads) barrier.num_waiting = 0, barrier.turn++;
  while (barrier.turn == turn) {
    Fiber* self = running;
    swapcontext(&self->context, &scheduler);
    threadIdx.x = self->thread;
  }
}
static void __syncthreads() { wait_at(of_block, (int)fibers.size()); }
static void __syncwarp() { wait_at(of_warp[warp_number()], 32); }

static void enter() {
  kernel();
  running->is_done = true;
  swapcontext(&running->context, &scheduler);
}

static void run_block(Index block, int num_threads, std::function<void()> body) {
  kernel = body, blockIdx = block, blockDim = {num_threads, 1, 1};
  memset(shared_memory, 0xff, sizeof shared_memory);
  std::fill(of_warp, of_warp + 32, Barrier());
  of_block = Barrier();
  fibers = std::vector<Fiber>(num_threads);
  std::vector<Fiber*> order;
  for (Fiber& fiber : fibers) {
    fiber.thread = (int)order.size();
    order.push_back(&fiber);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data(), fiber.context.uc_stack.ss_size = fiber.stack.size();
    makecontext(&fiber.context, enter, 0);
  }
  while (!order.empty()) {
    for (size_t i = order.size() - 1; i > 0; i--) {
      random_state = random_state * 1664525u + 1013904223u;
      std::swap(order[i], order[(random_state >> 8) % (i + 1)]);
    }
    for (Fiber* fiber : order) {
      running = fiber, threadIdx = {fiber->thread, 0, 0};
      swapcontext(&scheduler, &fiber->context);
    }
    order.erase(std::remove_if(order.begin(), order.end(), [](Fiber* fiber) { return fiber->is_done; }), order.end());
  }
}

static u8* place_in_shared(u32 address, u32 num_bytes) {
  if (address % num_bytes || address + num_bytes > sizeof shared_memory) {
    printf("%u bytes of shared memory at %u\n", num_bytes, address);
    abort();
  }
  return shared_memory + address;
}
template <typename T> static T read_shared(u32 address) {
  T value;
  memcpy(&value, place_in_shared(address, sizeof value), sizeof value);
  return value;
}
template <typename T> static void write_shared(u32 address, T value) {
  memcpy(place_in_shared(address, sizeof value), &value, sizeof value);
}
DEVICE u32 shared_address(const void* p) { return (u32)((const u8*)p - shared_memory); }
DEVICE float load_ordered(u32 a) { return read_shared<float>(a); }
DEVICE uint4 load_ordered4(u32 a) { return read_shared<uint4>(a); }
DEVICE void store_shared(u32 a, u32 v) { write_shared(a, v); }
DEVICE void store_shared2(u32 a, u32 v) { write_shared(a, (u16)v); }
DEVICE float load_l2(const float* p) { return *p; }

DEVICE void copy16(u32 to, const void* from, int num_bytes) {
  place_in_shared(to, 16);
  if ((uintptr_t)from % 16 || num_bytes < 0 || num_bytes > 16) abort();
  running->open.push_back({to, from, num_bytes});
}
DEVICE void copies_commit() { running->groups.push_back(std::move(running->open)), running->open.clear(); }
template <int LEFT> DEVICE void copies_wait() {
  auto& groups = running->groups;
  for (; groups.size() > LEFT; groups.erase(groups.begin()))
    for (const Copy& copy : groups[0]) {
      memset(shared_memory + copy.to, 0, 16);
      memcpy(shared_memory + copy.to, copy.from, copy.num_bytes);
    }
}

template <typename To, typename From> static To bits(From from) {
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}
DEVICE u16 to_half(float f) { return bits<u16>((_Float16)f); }
static float half_of(u32 v, int i) { return (float)bits<_Float16>((u16)(v >> 16 * i)); }
DEVICE float half_low(u32 v) { return half_of(v, 0); }
DEVICE float half_high(u32 v) { return half_of(v, 1); }
DEVICE u32 pack_half2(float low, float high) { return to_half(low) | (u32)to_half(high) << 16; }
DEVICE u32 add_half2(u32 a, u32 b) { return pack_half2(half_low(a) + half_low(b), half_high(a) + half_high(b)); }
DEVICE u32 permute(u32 a, u32 b, u32 selector) {
  const u64 both = (u64)b << 32 | a;
  u32 r = 0;
  for (int i = 0; i < 4; i++) r |= (u32)(both >> 8 * (selector >> 4 * i & 7) & 255) << 8 * i;
  return r;
}

// Every lane shows its registers, and once all have, `use` computes from them what this lane gets.
template <typename Use> static auto exchange(std::initializer_list<u32> shown, Use use) {
  std::copy(shown.begin(), shown.end(), exchanged[warp_number()][lane_number()]);
  __syncwarp();
  const auto found = use(exchanged[warp_number()]);
  __syncwarp();
  return found;
}
DEVICE void load_matrices_of(u32 (&r)[4], u32 a, bool is_transposed) {
  const int g = lane_number() / 4, t = lane_number() % 4;
  const uint4 found = exchange({a}, [&](auto& of_lane) {
    u32 out[4];
    for (int m = 0; m < 4; m++) {
      const auto number = [&](int row, int column) { return (u32)read_shared<u16>(of_lane[8 * m + row][0] + 2 * column); };
      out[m] = is_transposed ? number(2 * t, g) | number(2 * t + 1, g) << 16 : number(g, 2 * t) | number(g, 2 * t + 1) << 16;
    }
    return uint4{out[0], out[1], out[2], out[3]};
  });
  r[0] = found.x, r[1] = found.y, r[2] = found.z, r[3] = found.w;
}
DEVICE void load_matrices(u32 (&r)[4], u32 a) { load_matrices_of(r, a, false); }
DEVICE void load_matrices_transposed(u32 (&r)[4], u32 a) { load_matrices_of(r, a, true); }
DEVICE void multiply_add(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  const int g = lane_number() / 4, t = lane_number() % 4;
  const float4 sums = exchange({a[0], a[1], a[2], a[3], b0, b1}, [&](auto& of_lane) {
    float sum[4] = {};
    for (int i = 0; i < 4; i++)
      for (int k = 0; k < 16; k++) {
        const int row = g + i / 2 * 8, column = 2 * t + i % 2, lane = k % 8 / 2;
        sum[i] += half_of(of_lane[row % 8 * 4 + lane][row / 8 + k / 8 * 2], k % 2) * half_of(of_lane[column * 4 + lane][4 + k / 8], k % 2);
      }
    return float4{sum[0], sum[1], sum[2], sum[3]};
  });
  c[0] += sums.x, c[1] += sums.y, c[2] += sums.z, c[3] += sums.w;
}
DEVICE u32 transpose(u32 v) {
  const int g = lane_number() / 4, t = lane_number() % 4;
  return exchange({v}, [&](auto& of_lane) {
    const auto number = [&](int row) { return of_lane[row * 4 + g / 2][0] >> g % 2 * 16 & 0xffff; };
    return number(2 * t) | number(2 * t + 1) << 16;
  });
}
DEVICE u32 warp_maximum(u32 v) {
  return exchange({v}, [](auto& of_lane) {
    u32 top = 0;
    for (auto& registers : of_lane) top = std::max(top, registers[0]);
    return top;
  });
}
static float __shfl_xor_sync(u32, float v, int mask) {
  return exchange({bits<u32>(v)}, [&](auto& of_lane) { return bits<float>(of_lane[lane_number() ^ mask][0]); });
}

static u32 __float_as_uint(float f) { return bits<u32>(f); }
static float __uint_as_float(u32 u) { return bits<float>(u); }
static float __fadd_rn(float a, float b) { return a + b; }
static float __fsub_rn(float a, float b) { return a - b; }
static float __fmul_rn(float a, float b) { return a * b; }
static float __fdiv_rn(float a, float b) { return a / b; }
static int __float2int_rn(float f) { return f != f ? 0 : (int)std::clamp<long long>(llrintf(f), INT32_MIN, INT32_MAX); }
static float rsqrtf(float x) { return 1 / sqrtf(x); }
static u32 atomicAdd(u32* p, u32 v) { return (*p += v) - v; }
static void __threadfence() {}
static u32 max(u32 a, u32 b) { return a > b ? a : b; }
static int max(int a, int b) { return a > b ? a : b; }
static int min(int a, int b) { return a < b ? a : b; }
DEVICE void let_next_kernel_start() {}
DEVICE void wait_for_previous_kernel() {}
