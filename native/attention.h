// Causal attention over paged keys and values with a streaming softmax (Milakov and Gimelshein, arXiv 1805.02867).
// The query heads of a kv head, and the queries of a chunk, share every load of a key or value. Included once for each
// instruction set. A row's result does not depend on which other rows are computed with it.
#pragma once

namespace minicpm4::ISA {

template <class Element>
inline f32x16 load_kv(const Element* p) {
  if constexpr (sizeof(Element) == 4) return load(p);
  else return load_f16(p);
}

constexpr int kVectors = kPageTokens / 16;  // vectors of scores in a page

// One (query, head) pair of a task on its way through the pages.
struct AttendRow {
  const float* query;
  float *sum, *maximum, *total;  // weighted values [padded dim], largest score, sum of weights
  int num_visible;               // tokens of the current page that this row sees
};

// Scores of `rows` rows against a page, then their weights, and the running maximum and sum.
template <int rows, class Element>
inline void score_page(const Element* keys, int head_dim, float scale, const AttendRow* row, float (*weights)[kPageTokens], float* decay) {
  f32x16 score[rows][kVectors];
  for (auto& s : score) for (auto& v : s) v = broadcast(0.0f);
  for (int d = 0; d < head_dim; ++d) {
    f32x16 key[kVectors];
    for (int j = 0; j < kVectors; ++j) key[j] = load_kv(keys + d * kPageTokens + 16 * j);
    for (int r = 0; r < rows; ++r) {
      const f32x16 q = broadcast(row[r].query[d]);
      for (int j = 0; j < kVectors; ++j) score[r][j] = fma(q, key[j], score[r][j]);
    }
  }
  const f32x16 hidden = broadcast(-__builtin_inff()), factor = broadcast(scale), zero = broadcast(0.0f);
  for (int r = 0; r < rows; ++r) {
    f32x16 best = hidden, total = zero;
    for (int j = 0; j < kVectors; ++j) {
      score[r][j] = keep_first(row[r].num_visible - 16 * j, mul(score[r][j], factor), hidden);
      best = max(best, score[r][j]);
    }
    const float page_best = max_lane(best), before = *row[r].maximum;
    const float maximum = page_best > before ? page_best : before;
    for (int j = 0; j < kVectors; ++j) {
      const f32x16 weight = keep_first(row[r].num_visible - 16 * j, exp(sub(score[r][j], broadcast(maximum))), zero);
      total = add(total, weight);
      store(weights[r] + 16 * j, weight);
    }
    float lanes[16];
    store(lanes, exp(sub(broadcast(before), broadcast(maximum))));
    decay[r] = lanes[0];
    *row[r].maximum = maximum;
    *row[r].total = *row[r].total * decay[r] + sum(total);
  }
}

// sum = sum * decay + weights . values, over the page's first num_tokens tokens.
template <int rows, class Element>
inline void add_values(const Element* values, int padded_dim, int num_tokens, const AttendRow* row, const float (*weights)[kPageTokens], const float* decay) {
  for (int d = 0; d < padded_dim; d += 16) {
    f32x16 acc[rows];
    for (int r = 0; r < rows; ++r) acc[r] = mul(load(row[r].sum + d), broadcast(decay[r]));
    for (int t = 0; t < num_tokens; ++t) {
      const f32x16 value = load_kv(values + static_cast<size_t>(t) * padded_dim + d);
      for (int r = 0; r < rows; ++r) acc[r] = fma(broadcast(weights[r][t]), value, acc[r]);
    }
    for (int r = 0; r < rows; ++r) store(row[r].sum + d, acc[r]);
  }
}

template <int rows, class Element>
inline void attend_page(const Element* keys, const Element* values, const KvLayer& layer, const AttendRow* row) {
  alignas(64) float weights[rows][kPageTokens];
  float decay[rows];
  int num_tokens = 0;
  for (int r = 0; r < rows; ++r) num_tokens = row[r].num_visible > num_tokens ? row[r].num_visible : num_tokens;
  if (num_tokens <= 0) return;
  score_page<rows>(keys, layer.head_dim, 1.0f / __builtin_sqrtf(static_cast<float>(layer.head_dim)), row, weights, decay);
  add_values<rows>(values, layer.padded_dim(), num_tokens < kPageTokens ? num_tokens : kPageTokens, row, weights, decay);
}

template <class Element>
void attend_pages(const KvLayer& layer, const AttendTask& task) {
  const int dim = layer.padded_dim(), count = (task.last_row - task.first_row) * task.group_heads;
  float *sums = task.scratch, *maxima = sums + static_cast<size_t>(count) * dim, *totals = maxima + count;
  for (int i = 0; i < count * dim; ++i) sums[i] = 0;
  for (int i = 0; i < count; ++i) maxima[i] = -__builtin_inff(), totals[i] = 0;
  const auto row_at = [&](int i, int page) {
    const int row = task.first_row + i / task.group_heads, head = task.kv_head * task.group_heads + i % task.group_heads;
    const float* query = task.queries + row * task.stride + static_cast<size_t>(head) * layer.head_dim;
    return AttendRow{query, sums + static_cast<size_t>(i) * dim, maxima + i, totals + i, task.positions[row] + 1 - page * kPageTokens};
  };
  for (int page = 0; page <= task.positions[task.last_row - 1] / kPageTokens; ++page) {
    const Element* keys = reinterpret_cast<const Element*>(layer.keys) + task.pages[page] * layer.key_page_elements();
    const Element* values = reinterpret_cast<const Element*>(layer.values) + task.pages[page] * layer.value_page_elements();
    keys += static_cast<size_t>(task.kv_head) * layer.head_dim * kPageTokens;
    values += static_cast<size_t>(task.kv_head) * dim * kPageTokens;
    int i = 0;
    for (; i + 4 <= count; i += 4) {
      const AttendRow rows[4] = {row_at(i, page), row_at(i + 1, page), row_at(i + 2, page), row_at(i + 3, page)};
      attend_page<4>(keys, values, layer, rows);
    }
    for (; i < count; ++i) {
      const AttendRow row = row_at(i, page);
      attend_page<1>(keys, values, layer, &row);
    }
  }
  for (int i = 0; i < count; ++i) {
    const int row = task.first_row + i / task.group_heads, head = task.kv_head * task.group_heads + i % task.group_heads;
    float* out = task.out + row * task.stride + static_cast<size_t>(head) * layer.head_dim;
    for (int d = 0; d < layer.head_dim; ++d) out[d] = sums[static_cast<size_t>(i) * dim + d] / totals[i];
  }
}

inline void attend(const KvLayer& layer, const AttendTask& task) {
  if (layer.format == KvFormat::f32) attend_pages<float>(layer, task);
  else attend_pages<uint16_t>(layer, task);
}

template <class Element>
inline void put(Element* at, float x) {
  if constexpr (sizeof(Element) == 4) *at = x;
  else *at = f32_to_f16(x);
}

template <class Element>
void store_pages(const KvLayer& layer, const float* key, const float* value, int slot) {
  const int dim = layer.padded_dim(), page = slot / kPageTokens, token = slot % kPageTokens;
  Element* keys = reinterpret_cast<Element*>(layer.keys) + page * layer.key_page_elements();
  Element* values = reinterpret_cast<Element*>(layer.values) + page * layer.value_page_elements();
  for (int g = 0; g < layer.num_kv_heads; ++g) {
    for (int d = 0; d < layer.head_dim; ++d) {
      put(keys + (static_cast<size_t>(g) * layer.head_dim + d) * kPageTokens + token, key[g * layer.head_dim + d]);
      put(values + (static_cast<size_t>(g) * kPageTokens + token) * dim + d, value[g * layer.head_dim + d]);
    }
  }
}

inline void store_key_value(const KvLayer& layer, const float* key, const float* value, int slot) {
  if (layer.format == KvFormat::f32) store_pages<float>(layer, key, value, slot);
  else store_pages<uint16_t>(layer, key, value, slot);
}

}  // namespace minicpm4::ISA
