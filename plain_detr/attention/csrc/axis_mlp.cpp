// A network of one hidden layer along an axis, by where its hidden units bend: see plain_detr/modulation/axis_mlp.py.
//
// Unit k of a query, at cell m counted from the side where it is off, is max(0, a + rise[k] * m) with
// a = weight[:, k] . ends + bias[k]. `first[k]` is the first row of its side in the tables below: 0, or cells + 1 for
// units that rise towards the first cell. Row `cells` of a side takes the units that stay off.
//
// Arrays are contiguous float32 unless said: ends (P, I), weight (I, K), bias, rise, inverse (1 / rise), first (int32)
// (K), table (K, 2, LANES): the unit's weight to each head, and that times its rise.

#include "vectors.h"

namespace {

struct Units {
  const float *weight, *bias, *rise, *inverse;
  const int32_t* first;
  int count, cells;

  // Row of the tables from which each unit counts, and the unit's value there.
  template <int INPUTS>
  void switch_on(const float* ends, int32_t* row, float* value) const {
    const float last = cells;
    for (int k = 0; k < count; ++k) {
      float a = bias[k];
      for (int i = 0; i < INPUTS; ++i) a += weight[i * count + k] * ends[i];
      float cell = 1 - a * inverse[k];
      cell = cell > 0 ? cell : 0;  // also where it is NaN, so that the result is NaN, too
      cell = cell < last ? cell : last;
      row[k] = first[k] + (int32_t)cell;
      value[k] = a + rise[k] * (float)(int32_t)cell;
    }
  }
};

// Rows of (value, slope) added at a cell become values at every cell of one side.
void run_along(float* side, int cells) {
  Vec value{}, slope{};
  for (int m = 0; m < cells; ++m) {
    value += slope + load(side + 2 * m * LANES);
    slope += load(side + (2 * m + 1) * LANES);
    store(side + 2 * m * LANES, value);
  }
}

template <int INPUTS>
void forward(const float* ends, const Units& units, const float* table, int64_t queries, int first, int last, int heads,
             float* out) {
  const int cells = units.cells, side = 2 * (cells + 1) * LANES;
  std::vector<float> sums(2 * side), value(units.count);
  std::vector<int32_t> row(units.count);
  for (int query = first; query < last; ++query) {
    units.switch_on<INPUTS>(ends + (int64_t)query * INPUTS, row.data(), value.data());
    std::fill(sums.begin(), sums.end(), 0.f);
    for (int k = 0; k < units.count; ++k) {
      float* to = sums.data() + 2 * row[k] * LANES;
      const float* from = table + 2 * k * LANES;
      const Vec at = load(to) + value[k] * load(from), slope = load(to + LANES) + load(from + LANES);
      store(to, at);
      store(to + LANES, slope);
    }
    run_along(sums.data(), cells);
    run_along(sums.data() + side, cells);
    for (int h = 0; h < heads; ++h)
      for (int m = 0; m < cells; ++m)
        out[(h * queries + query) * cells + m] = sums[2 * m * LANES + h] + sums[side + 2 * (cells - 1 - m) * LANES + h];
  }
}

// Rows of (sum of the gradients from a cell on, sum of them times the distance from it) of one side.
void sums_from(const float* grad, int64_t head, int heads, int cells, int start, int step, float* side) {
  Vec sum{}, moment{};
  for (int m = cells - 1; m >= 0; --m) {
    Vec here{};
    for (int h = 0; h < heads; ++h) here[h] = grad[h * head + start + m * step];
    moment += sum;
    sum += here;
    store(side + 2 * m * LANES, sum);
    store(side + (2 * m + 1) * LANES, moment);
  }
}

// sums (K, INPUTS + 2, LANES) are added to: of the gradient over a unit's cells, times each end, once, and times the
// cell.
template <int INPUTS>
void backward(const float* ends, const Units& units, const float* grad, int64_t queries, int first, int last, int heads,
              float* sums, const float* table_ends, float* grad_ends) {
  const int cells = units.cells, side = 2 * (cells + 1) * LANES;
  std::vector<float> along(2 * side), value(units.count);
  std::vector<int32_t> row(units.count);
  for (int query = first; query < last; ++query) {
    const float* mine = ends + (int64_t)query * INPUTS;
    units.switch_on<INPUTS>(mine, row.data(), value.data());
    const float* from = grad + (int64_t)query * cells;
    sums_from(from, queries * cells, heads, cells, 0, 1, along.data());
    sums_from(from, queries * cells, heads, cells, cells - 1, -1, along.data() + side);
    Vec to_ends[INPUTS] = {};
    for (int k = 0; k < units.count; ++k) {
      const float* at = along.data() + 2 * row[k] * LANES;
      const Vec sum = load(at), moment = load(at + LANES);
      const float cell = row[k] - units.first[k];
      float* to = sums + (int64_t)k * (INPUTS + 2) * LANES;
      for (int i = 0; i < INPUTS; ++i) store(to + i * LANES, load(to + i * LANES) + mine[i] * sum);
      store(to + INPUTS * LANES, load(to + INPUTS * LANES) + sum);
      store(to + (INPUTS + 1) * LANES, load(to + (INPUTS + 1) * LANES) + (cell * sum + moment));
      if (grad_ends)
        for (int i = 0; i < INPUTS; ++i) to_ends[i] += load(table_ends + (k * INPUTS + i) * LANES) * sum;
    }
    if (grad_ends)
      for (int i = 0; i < INPUTS; ++i) grad_ends[(int64_t)query * INPUTS + i] += total(to_ends[i]);
  }
}

}  // namespace

extern "C" {

// out (heads, P, cells) is written; heads <= LANES.
void axis_mlp_forward(const float* ends, const float* weight, const float* bias, const float* rise,
                      const float* inverse, const int32_t* first, const float* table, int inputs, int units, int cells,
                      int queries, int heads, int chunk, int threads, float* out) {
  const Units all{weight, bias, rise, inverse, first, units, cells};
  const auto run = inputs == 1 ? forward<1> : forward<2>;
  share((queries + chunk - 1) / chunk, threads, [&](int task) {
    run(ends, all, table, queries, task * chunk, std::min(queries, (task + 1) * chunk), heads, out);
  });
}

// sums (chunks, K, I + 2, LANES) and grad_ends (P, I) are added to; the latter, with table_ends (K, I, LANES), may be
// null.
void axis_mlp_backward(const float* ends, const float* weight, const float* bias, const float* rise,
                       const float* inverse, const int32_t* first, const float* grad, int inputs, int units, int cells,
                       int queries, int heads, int chunk, int threads, float* sums, const float* table_ends,
                       float* grad_ends) {
  const Units all{weight, bias, rise, inverse, first, units, cells};
  const auto run = inputs == 1 ? backward<1> : backward<2>;
  share((queries + chunk - 1) / chunk, threads, [&](int task) {
    run(ends, all, grad, queries, task * chunk, std::min(queries, (task + 1) * chunk), heads,
        sums + (int64_t)task * units * (inputs + 2) * LANES, table_ends, grad_ends);
  });
}

}  // extern "C"
