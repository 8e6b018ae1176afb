// softmax(q k^T + bias_x + bias_y + mask) v for a map of keys, block by block, forward and backward.
//
// A block is some queries by some whole rows of the map: its logits stay in the cache from the bias, with which they
// begin, to the product with the values. The forward pass keeps every query's largest logit and sum, with which the
// backward pass makes any block again without having seen the others ("flash attention", Dao et al., 2022). Kept apart,
// not as the one logarithm of the sum: beside a logit of thousands that would round away a part of the sum.
//
// All arrays are contiguous float32. P pairs of an image and a head, Q queries, a map of H x W, W and d multiples of
// LANES (columns that are none have -inf in the mask):
//   q (P, Q, d), scaled; k, v (P, H, W, d); k_t, v_t (P, d, H, W); bias_x (P, Q, W); bias_y (P, Q, H); mask (P / heads,
//   H, W).

#include <cfloat>
#include <cmath>

#include "vectors.h"

namespace {

constexpr int BLOCK_QUERIES = 48;
constexpr int BLOCK_KEYS = 264;

struct Sizes {
  int pairs, heads, queries, height, width, channels;

  int64_t keys() const { return (int64_t)height * width; }
  int rows_at_once() const { return std::min(height, std::max(1, BLOCK_KEYS / width)); }
  int blocks() const { return (queries + BLOCK_QUERIES - 1) / BLOCK_QUERIES; }
};

// Some queries of a pair, and some rows of its map.
struct Block {
  int pair, first, queries, row, rows;

  int64_t at(const Sizes& s) const { return (int64_t)pair * s.queries + first; }
};

struct Inputs {
  const float *q, *k_t, *bias_x, *bias_y, *mask;
};

// logits[i * stride + j] of a block.
void block_logits(const Inputs& in, const Sizes& s, const Block& block, float* logits, int stride) {
  const int64_t from = (int64_t)block.row * s.width;
  const float* mask = in.mask + block.pair / s.heads * s.keys() + from;
  for (int i = 0; i < block.queries; ++i) {
    const float* x = in.bias_x + (block.at(s) + i) * s.width;
    const float* y = in.bias_y + (block.at(s) + i) * s.height + block.row;
    for (int row = 0; row < block.rows; ++row) {
      float* to = logits + (int64_t)i * stride + row * s.width;
      for (int j = 0; j < s.width; j += LANES) store(to + j, load(x + j) + load(mask + row * s.width + j) + y[row]);
    }
  }
  add_product({in.q + block.at(s) * s.channels, s.channels, 1}, in.k_t + block.pair * s.keys() * s.channels + from,
              s.keys(), block.queries, block.rows * s.width, s.channels, logits, stride);
}

// Logits of one query become factor * e^(logit - top); returns their sum.
float exponentials(float* logits, int cells, float top, float factor) {
  Vec sum{};
  for (int j = 0; j < cells; j += LANES) {
    const Vec weight = factor * exponential(load(logits + j) - top);
    store(logits + j, weight);
    sum += weight;
  }
  return total(sum);
}

float largest_of(const float* logits, int cells) {
  Vec top = load(logits);
  for (int j = LANES; j < cells; j += LANES) {
    const Vec other = load(logits + j);
    top = other > top ? other : top;
  }
  return largest(top);
}

void scale(float* row, int length, float factor) {
  for (int j = 0; j < length; j += LANES) store(row + j, load(row + j) * factor);
}

void forward_block(const Inputs& in, const float* v, const Sizes& s, Block block, float* out, float* tops,
                   float* sums) {
  const int stride = s.rows_at_once() * s.width;
  std::vector<float> weights((size_t)BLOCK_QUERIES * stride);
  tops += block.at(s);
  sums += block.at(s);
  std::fill(sums, sums + block.queries, 0.f);
  std::fill(tops, tops + block.queries, -FLT_MAX);  // finite: logits of masked keys stay -inf below it
  out += block.at(s) * s.channels;
  std::fill(out, out + (int64_t)block.queries * s.channels, 0.f);
  for (block.row = 0; block.row < s.height; block.row += block.rows) {
    block.rows = std::min(s.rows_at_once(), s.height - block.row);
    const int cells = block.rows * s.width;
    block_logits(in, s, block, weights.data(), stride);
    for (int i = 0; i < block.queries; ++i) {
      float* row = weights.data() + (int64_t)i * stride;
      const float top = std::max(tops[i], largest_of(row, cells));
      const float shrink = std::exp(tops[i] - top);
      sums[i] = sums[i] * shrink + exponentials(row, cells, top, 1);
      if (shrink != 1) scale(out + i * s.channels, s.channels, shrink);
      tops[i] = top;
    }
    const float* values = v + (block.pair * s.keys() + (int64_t)block.row * s.width) * s.channels;
    add_product({weights.data(), stride, 1}, values, s.channels, block.queries, s.channels, cells, out, s.channels);
  }
  for (int i = 0; i < block.queries; ++i) scale(out + i * s.channels, s.channels, 1 / sums[i]);
}

struct Gradients {
  float *q, *k, *v, *bias_x, *bias_y;
};

// Adds what gradients of logits say about the biases.
void add_bias_gradients(const float* grad_logits, int stride, const Sizes& s, const Block& block,
                        const Gradients& grads) {
  for (int i = 0; i < block.queries; ++i) {
    float* x = grads.bias_x + (block.at(s) + i) * s.width;
    float* y = grads.bias_y + (block.at(s) + i) * s.height + block.row;
    for (int row = 0; row < block.rows; ++row) {
      const float* from = grad_logits + (int64_t)i * stride + row * s.width;
      Vec sum{};
      for (int j = 0; j < s.width; j += LANES) {
        const Vec grad = load(from + j);
        sum += grad;
        store(x + j, load(x + j) + grad);
      }
      y[row] = total(sum);
    }
  }
}

// One block's share of all gradients. `mean` is sum(grad_out * out) of each query, what a softmax's gradient takes off.
void backward_block(const Inputs& in, const float* k, const float* v_t, const float* tops, const float* sums,
                    const float* grad_out, const float* mean, const Sizes& s, const Block& block,
                    const Gradients& grads, float* weights, float* grad_logits) {
  const int stride = s.rows_at_once() * s.width, cells = block.rows * s.width, d = s.channels;
  const int64_t from = (int64_t)block.row * s.width, keys = (block.pair * s.keys() + from) * d;
  const float *queries = in.q + block.at(s) * d, *grad = grad_out + block.at(s) * d;
  block_logits(in, s, block, weights, stride);
  for (int i = 0; i < block.queries; ++i) {
    exponentials(weights + (int64_t)i * stride, cells, tops[block.at(s) + i], 1 / sums[block.at(s) + i]);
    std::fill(grad_logits + (int64_t)i * stride, grad_logits + (int64_t)i * stride + cells, -mean[block.at(s) + i]);
  }
  add_product({grad, d, 1}, v_t + block.pair * s.keys() * d + from, s.keys(), block.queries, cells, d, grad_logits,
              stride);
  for (int i = 0; i < block.queries; ++i)
    for (int64_t j = (int64_t)i * stride; j < (int64_t)i * stride + cells; j += LANES)
      store(grad_logits + j, load(grad_logits + j) * load(weights + j));
  add_bias_gradients(grad_logits, stride, s, block, grads);
  add_product({weights, 1, stride}, grad, d, cells, d, block.queries, grads.v + keys, d);
  add_product({grad_logits, 1, stride}, queries, d, cells, d, block.queries, grads.k + keys, d);
  add_product({grad_logits, stride, 1}, k + keys, d, block.queries, d, cells, grads.q + block.at(s) * d, d);
}

}  // namespace

extern "C" {

// Written: out (P, Q, d), tops and sums (P, Q).
void axial_attention_forward(const float* q, const float* k_t, const float* v, const float* bias_x, const float* bias_y,
                             const float* mask, int pairs, int heads, int queries, int height, int width, int channels,
                             int threads, float* out, float* tops, float* sums) {
  const Sizes s{pairs, heads, queries, height, width, channels};
  share(pairs * s.blocks(), threads, [&](int task) {
    const int first = task % s.blocks() * BLOCK_QUERIES;
    const Block block{task / s.blocks(), first, std::min(BLOCK_QUERIES, queries - first), 0, 0};
    forward_block({q, k_t, bias_x, bias_y, mask}, v, s, block, out, tops, sums);
  });
}

// Gradients are added to; those of k and v are laid out as k and v. One thread does all of a pair, so sums have one
// order.
void axial_attention_backward(const float* q, const float* k, const float* k_t, const float* v_t, const float* bias_x,
                              const float* bias_y, const float* mask, const float* tops, const float* sums,
                              const float* grad_out, const float* mean, int pairs, int heads, int queries, int height,
                              int width, int channels, int threads, float* grad_q, float* grad_k, float* grad_v,
                              float* grad_x, float* grad_y) {
  const Sizes s{pairs, heads, queries, height, width, channels};
  const Inputs in{q, k_t, bias_x, bias_y, mask};
  const Gradients grads{grad_q, grad_k, grad_v, grad_x, grad_y};
  share(pairs, threads, [&](int pair) {
    const size_t size = (size_t)BLOCK_QUERIES * s.rows_at_once() * s.width;
    std::vector<float> weights(size), grad_logits(size);
    for (int row = 0; row < height; row += s.rows_at_once())
      for (int first = 0; first < queries; first += BLOCK_QUERIES) {
        const Block block{pair, first, std::min(BLOCK_QUERIES, queries - first), row,
                          std::min(s.rows_at_once(), height - row)};
        backward_block(in, k, v_t, tops, sums, grad_out, mean, s, block, grads, weights.data(), grad_logits.data());
      }
  });
}

}  // extern "C"
