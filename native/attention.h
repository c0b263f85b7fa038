// Causal attention over paged keys and values with a streaming softmax (Milakov and Gimelshein, arXiv 1805.02867).
// The query heads of a kv head, and the queries of a task, share every load of a key or value. Included once for each
// instruction set. A row's result does not depend on which other rows are computed with it, nor on who computes its stretches.
#pragma once

namespace minicpm4::ISA {

template <class Element>
inline f32x16 load_kv(const Element* p) {
  if constexpr (sizeof(Element) == 4) return load(p);
  else return load_f16(p);
}

// A partial result: weighted values, then the largest score and the sum of weights; see partial_floats.
struct Partial {
  float* sum;
  int dim;  // padded

  float& maximum() const { return sum[dim]; }
  float& total() const { return sum[dim + 1]; }
  void clear() const {
    for (int d = 0; d < dim; d += 16) store(sum + d, broadcast(0.0f));
    maximum() = -__builtin_inff();
    total() = 0;
  }
};

inline float exp_of(float x) {
  float lanes[16];
  store(lanes, exp(broadcast(x)));
  return lanes[0];
}

// into = into + more, both over keys of their own.
inline void merge(const Partial& into, const Partial& more) {
  const float maximum = into.maximum() > more.maximum() ? into.maximum() : more.maximum();
  const float keep = exp_of(into.maximum() - maximum), add_share = exp_of(more.maximum() - maximum);
  for (int d = 0; d < into.dim; d += 16)
    store(into.sum + d, fma(load(more.sum + d), broadcast(add_share), mul(load(into.sum + d), broadcast(keep))));
  into.total() = into.total() * keep + more.total() * add_share;
  into.maximum() = maximum;
}

inline void finish(const Partial& partial, int head_dim, float* out) {
  for (int d = 0; d < head_dim; ++d) out[d] = partial.sum[d] / partial.total();
}

inline void merge_stretches(const float* partials, size_t stride, int count, int head_dim, float* out) {
  const int dim = static_cast<int>(round_up(head_dim, 16));
  const Partial first{const_cast<float*>(partials), dim};
  for (int i = 1; i < count; ++i) merge(first, {const_cast<float*>(partials) + stride * i, dim});
  finish(first, head_dim, out);
}

// One (query, head) pair of a task on its way through the pages of a stretch.
struct AttendRow {
  const float* query;
  Partial partial;
  int num_visible;  // tokens of the current page that this row sees
};

// What a page is asked for while the one before it is worked on.
template <class Element>
struct PageData {
  const Element *keys, *values;
};

constexpr int kVectors = kPageTokens / 16;  // vectors of scores in a page

// Scores of `rows` rows against a page's keys [head dim][64], times `scale`; and asks for the next page's keys.
template <int rows, class Element>
inline void score_page(const Element* keys, const Element* next_keys, int head_dim, float scale, const AttendRow* row, float (*scores)[kPageTokens]) {
  for (int first = 0; first < kVectors; first += kScoreVectors) {
    f32x16 score[rows][kScoreVectors];
    for (auto& s : score) for (auto& v : s) v = broadcast(0.0f);
    for (int d = 0; d < head_dim; ++d) {
      const Element* at = keys + d * kPageTokens + 16 * first;
      __builtin_prefetch(next_keys + (at - keys));
      f32x16 key[kScoreVectors];
      for (int j = 0; j < kScoreVectors; ++j) key[j] = load_kv(at + 16 * j);
      for (int r = 0; r < rows; ++r) {
        const f32x16 q = broadcast(row[r].query[d]);
        for (int j = 0; j < kScoreVectors; ++j) score[r][j] = fma(q, key[j], score[r][j]);
      }
    }
    for (int r = 0; r < rows; ++r)
      for (int j = 0; j < kScoreVectors; ++j) store(scores[r] + 16 * (first + j), mul(score[r][j], broadcast(scale)));
  }
}

// Turns scores into weights in place; updates the row's maximum and total. Returns what its sum so far is multiplied with.
inline float weigh(const AttendRow& row, float* scores) {
  const f32x16 hidden = broadcast(-__builtin_inff()), zero = broadcast(0.0f);
  f32x16 best = hidden, total = zero;
  for (int j = 0; j < kVectors; ++j) best = max(best, keep_first(row.num_visible - 16 * j, load(scores + 16 * j), hidden));
  const float page_best = max_lane(best), before = row.partial.maximum(), maximum = page_best > before ? page_best : before;
  for (int j = 0; j < kVectors; ++j) {
    const f32x16 weight = keep_first(row.num_visible - 16 * j, exp(sub(load(scores + 16 * j), broadcast(maximum))), zero);
    total = add(total, weight);
    store(scores + 16 * j, weight);
  }
  const float decay = maximum == before ? 1.0f : exp_of(before - maximum);
  row.partial.maximum() = maximum;
  row.partial.total() = row.partial.total() * decay + sum(total);
  return decay;
}

// sum = sum * decay + weights . values, over the page's first num_tokens tokens; and asks for the next page's values.
template <int rows, class Element>
inline void add_values(const Element* values, const Element* next_values, int num_tokens, const AttendRow* row, const float (*weights)[kPageTokens], const float* decay) {
  const int dim = row[0].partial.dim;
  for (int d = 0; d < dim; d += 16) {
    f32x16 acc[rows];
    for (int r = 0; r < rows; ++r) acc[r] = mul(load(row[r].partial.sum + d), broadcast(decay[r]));
    for (int t = 0; t < num_tokens; ++t) {
      const Element* at = values + static_cast<size_t>(t) * dim + d;
      __builtin_prefetch(next_values + (at - values));
      const f32x16 value = load_kv(at);
      for (int r = 0; r < rows; ++r) acc[r] = fma(broadcast(weights[r][t]), value, acc[r]);
    }
    for (int r = 0; r < rows; ++r) store(row[r].partial.sum + d, acc[r]);
  }
}

template <int rows, class Element>
void attend_page(const PageData<Element>& page, const PageData<Element>& next, int head_dim, const AttendRow* row) {
  alignas(64) float scores[rows][kPageTokens];
  float decay[rows];
  int num_tokens = 0;
  for (int r = 0; r < rows; ++r) num_tokens = row[r].num_visible > num_tokens ? row[r].num_visible : num_tokens;
  if (num_tokens <= 0) return;
  score_page<rows>(page.keys, next.keys, head_dim, 1.0f / __builtin_sqrtf(static_cast<float>(head_dim)), row, scores);
  for (int r = 0; r < rows; ++r) decay[r] = row[r].num_visible > 0 ? weigh(row[r], scores[r]) : 1.0f;
  for (int r = 0; r < rows; ++r)
    if (row[r].num_visible <= 0) for (int j = 0; j < kVectors; ++j) store(scores[r] + 16 * j, broadcast(0.0f));
  add_values<rows>(page.values, next.values, num_tokens < kPageTokens ? num_tokens : kPageTokens, row, scores, decay);
}

// All pairs of the task over pages [first, last), each into its own partial, which was cleared.
template <class Element>
void attend_stretch(const KvLayer& layer, const AttendTask& task, int first, int last, float* partials) {
  const int dim = layer.padded_dim(), count = (task.last_row - task.first_row) * task.group_heads;
  const auto page_at = [&](int page) {
    const Element* keys = reinterpret_cast<const Element*>(layer.key_page(task.pages[page]));
    const Element* values = reinterpret_cast<const Element*>(layer.value_page(task.pages[page]));
    return PageData<Element>{keys + static_cast<size_t>(task.kv_head) * layer.head_dim * kPageTokens,
                             values + static_cast<size_t>(task.kv_head) * dim * kPageTokens};
  };
  const auto row_at = [&](int i, int page) {
    const int row = task.first_row + i / task.group_heads, head = task.kv_head * task.group_heads + i % task.group_heads;
    return AttendRow{task.queries + row * task.stride + static_cast<size_t>(head) * layer.head_dim,
                     {partials + i * partial_floats(dim), dim}, task.positions[row] + 1 - page * kPageTokens};
  };
  for (int page = first; page < last; ++page) {
    const PageData<Element> data = page_at(page), next = page_at(page + 1 < task.last_page ? page + 1 : page);
    int i = 0;
    const auto run = [&](auto rows) {
      for (; i + rows <= count; i += rows) {
        AttendRow row[rows];
        for (int r = 0; r < rows; ++r) row[r] = row_at(i + r, page);
        attend_page<rows>(data, next, layer.head_dim, row);
      }
    };
    if constexpr (kAttendRows >= 8) run(std::integral_constant<int, 8>{});
    run(std::integral_constant<int, 4>{});
    run(std::integral_constant<int, 3>{});
    run(std::integral_constant<int, 1>{});
  }
}

template <class Element>
void attend_pages(const KvLayer& layer, const AttendTask& task) {
  const int dim = layer.padded_dim(), count = (task.last_row - task.first_row) * task.group_heads;
  const size_t stride = partial_floats(dim);
  float *running = task.partial ? task.partial : task.scratch, *fresh = task.scratch + count * stride;
  for (int first = task.first_page; first < task.last_page; first += kStretchPages) {
    float* into = first == task.first_page ? running : fresh;
    for (int i = 0; i < count; ++i) Partial{into + i * stride, dim}.clear();
    attend_stretch<Element>(layer, task, first, first + kStretchPages < task.last_page ? first + kStretchPages : task.last_page, into);
    if (into == running) continue;
    for (int i = 0; i < count; ++i)
      if (Partial{fresh + i * stride, dim}.total() > 0) merge({running + i * stride, dim}, {fresh + i * stride, dim});
  }
  if (task.partial) return;
  for (int i = 0; i < count; ++i) {
    const int row = task.first_row + i / task.group_heads, head = task.kv_head * task.group_heads + i % task.group_heads;
    finish({running + i * stride, dim}, layer.head_dim, task.out + row * task.stride + static_cast<size_t>(head) * layer.head_dim);
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
void store_key_heads(const KvLayer& layer, const float* row, int first_head, int last_head, int slot) {
  const size_t dim = layer.head_dim;
  Element* page = reinterpret_cast<Element*>(layer.key_page(slot / kPageTokens));
  for (size_t at = first_head * dim; at < last_head * dim; ++at) put(page + at * kPageTokens + slot % kPageTokens, *row++);
}

template <class Element>
void store_value_heads(const KvLayer& layer, const float* row, int first_head, int last_head, int slot) {
  const size_t dim = layer.padded_dim();
  Element* page = reinterpret_cast<Element*>(layer.value_page(slot / kPageTokens));
  for (int g = first_head; g < last_head; ++g)
    for (int d = 0; d < layer.head_dim; ++d) put(page + (static_cast<size_t>(g) * kPageTokens + slot % kPageTokens) * dim + d, *row++);
}

inline void store_keys(const KvLayer& layer, const float* row, int first_head, int last_head, int slot) {
  if (layer.format == KvFormat::f32) store_key_heads<float>(layer, row, first_head, last_head, slot);
  else store_key_heads<uint16_t>(layer, row, first_head, last_head, slot);
}

inline void store_values(const KvLayer& layer, const float* row, int first_head, int last_head, int slot) {
  if (layer.format == KvFormat::f32) store_value_heads<float>(layer, row, first_head, last_head, slot);
  else store_value_heads<uint16_t>(layer, row, first_head, last_head, slot);
}

}  // namespace minicpm4::ISA
