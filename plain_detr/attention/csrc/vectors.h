// What the kernels share: vectors of floats, products of small matrices, threads.
//
// Written with the vector types of GCC and Clang, which have neither names nor widths of one processor in them.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

constexpr int LANES = 8;

typedef float Vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t IntVec __attribute__((vector_size(4 * LANES)));

static inline Vec load(const float* from) { return *reinterpret_cast<const Vec*>(from); }
static inline void store(float* to, Vec value) { *reinterpret_cast<Vec*>(to) = value; }

static inline float largest(Vec x) {
  float found = x[0];
  for (int i = 1; i < LANES; ++i) found = std::max(found, x[i]);
  return found;
}

static inline float total(Vec x) {
  float sum = 0;
  for (int i = 0; i < LANES; ++i) sum += x[i];
  return sum;
}

// e^x to a few units in the last place for x <= 0; 0 below -87, NaN stays NaN. x = n ln 2 + r, e^x = 2^n e^r, and e^r
// by a polynomial for |r| <= ln 2 / 2. Adding 1.5 * 2^23 rounds to a whole number, which then stands in the lowest
// bits.
static inline Vec exponential(Vec x) {
  const float rounding = 12582912.f;
  const Vec shifted = x * 1.44269504f + rounding;
  const Vec n = shifted - rounding;
  const Vec r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts, the first exact in a product with n
  Vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.f;
  const IntVec power = ((IntVec)shifted << 23) + 0x3f800000;
  return x < -87.f ? Vec{} : p * (Vec)power;
}

// Rows and columns of a matrix in memory: element (i, t) is at data[i * row + t * column].
struct Strided {
  const float* data;
  int64_t row, column;
};

template <int ROWS, int VECTORS>
static inline void add_product_block(Strided a, const float* b, int64_t b_row, int depth, float* c, int64_t c_row) {
  Vec sum[ROWS][VECTORS];
  for (int i = 0; i < ROWS; ++i)
    for (int n = 0; n < VECTORS; ++n) sum[i][n] = load(c + i * c_row + n * LANES);
  for (int t = 0; t < depth; ++t) {
    Vec row[VECTORS];
    for (int n = 0; n < VECTORS; ++n) row[n] = load(b + t * b_row + n * LANES);
    for (int i = 0; i < ROWS; ++i) {
      const float factor = a.data[i * a.row + t * a.column];
      for (int n = 0; n < VECTORS; ++n) sum[i][n] += factor * row[n];
    }
  }
  for (int i = 0; i < ROWS; ++i)
    for (int n = 0; n < VECTORS; ++n) store(c + i * c_row + n * LANES, sum[i][n]);
}

template <int ROWS, int VECTORS>
static inline void add_product_columns(Strided a, const float* b, int64_t b_row, int rows, int depth, float* c,
                                       int64_t c_row) {
  int i = 0;
  for (; i + ROWS <= rows; i += ROWS)
    add_product_block<ROWS, VECTORS>({a.data + i * a.row, a.row, a.column}, b, b_row, depth, c + i * c_row, c_row);
  for (; i < rows; ++i)
    add_product_block<1, VECTORS>({a.data + i * a.row, a.row, a.column}, b, b_row, depth, c + i * c_row, c_row);
}

// c += a b: (rows, depth) times (depth, columns), columns a multiple of LANES. Twelve sums at a time fill the registers
// of AVX2 and leave four for what is multiplied.
static inline void add_product(Strided a, const float* b, int64_t b_row, int rows, int columns, int depth, float* c,
                               int64_t c_row) {
  int done = 0;
  for (; done + 4 * LANES <= columns; done += 4 * LANES)
    add_product_columns<3, 4>(a, b + done, b_row, rows, depth, c + done, c_row);
  for (; done + 2 * LANES <= columns; done += 2 * LANES)
    add_product_columns<6, 2>(a, b + done, b_row, rows, depth, c + done, c_row);
  for (; done < columns; done += LANES) add_product_columns<8, 1>(a, b + done, b_row, rows, depth, c + done, c_row);
}

// Calls work(task) for every task, each once, on some threads, of which the caller's is one. The threads end with the
// call: nothing is left behind that a fork could break.
template <class Work>
static void share(int tasks, int threads, Work work) {
  std::atomic<int> next{0};
  auto run = [&] {
    for (int task; (task = next++) < tasks;) work(task);
  };
  std::vector<std::thread> others;
  for (int i = 1; i < std::min(threads, tasks); ++i) others.emplace_back(run);
  run();
  for (auto& one : others) one.join();
}
