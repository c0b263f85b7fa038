// Causal attention over paged keys and values with a streaming softmax (Milakov and Gimelshein, arXiv 1805.02867).
// The query heads of a kv head, and the queries of a task, share every load of a key or value. Included once for each
// instruction set. A row's result does not depend on which other rows are computed with it, nor on who computes its stretches.
#pragma once

namespace minicpm4::ISA {

// How an element of the cache is read and written, by its format.
struct F32Cache {
  using Element = float;
  static constexpr bool has_scales = false;
  static f32x16 read(const Element* p) { return load(p); }
  static void write(Element* p, float x) { *p = x; }
};
struct F16Cache {
  using Element = uint16_t;
  static constexpr bool has_scales = false;
  static f32x16 read(const Element* p) { return load_f16(p); }
  static void write(Element* p, float x) { *p = f32_to_f16(x); }
};
struct Bf16Cache {
  using Element = uint16_t;
  static constexpr bool has_scales = false;
  static f32x16 read(const Element* p) { return load_bf16(p); }
  static void write(Element* p, float x) { *p = f32_to_bf16(x); }
};
struct Int8Cache {
  using Element = int8_t;
  static constexpr bool has_scales = true;
  static f32x16 read(const Element* p) { return to_f32(widen_i8(p)); }
  static void write(Element* p, float code) { *p = static_cast<int8_t>(code); }
};

template <class F>
inline void with_cache(KvFormat format, F f) {
  switch (format) {
    case KvFormat::f32: return f(F32Cache{});
    case KvFormat::f16: return f(F16Cache{});
    case KvFormat::bf16: return f(Bf16Cache{});
    case KvFormat::int8: return f(Int8Cache{});
  }
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

// One kv head's part of a page; scales are null where the format has none.
template <class Cache>
struct PageData {
  const typename Cache::Element *keys, *values;
  const float *key_scales, *value_scales;  // [64]
};

constexpr int kVectors = kPageTokens / 16;  // vectors of scores in a page

// Scores of `rows` rows against a page's keys, times `scale`; and asks for the next page's keys.
template <int rows, class Cache>
inline void score_page(const PageData<Cache>& page, const PageData<Cache>& next, int head_dim, float scale, const AttendRow* row, float (*scores)[kPageTokens]) {
  for (int first = 0; first < kVectors; first += kScoreVectors) {
    f32x16 score[rows][kScoreVectors];
    for (auto& s : score) for (auto& v : s) v = broadcast(0.0f);
    for (int d = 0; d < head_dim; ++d) {
      const size_t at = static_cast<size_t>(d) * kPageTokens + 16 * first;
      __builtin_prefetch(next.keys + at);
      f32x16 key[kScoreVectors];
      for (int j = 0; j < kScoreVectors; ++j) key[j] = Cache::read(page.keys + at + 16 * j);
      for (int r = 0; r < rows; ++r) {
        const f32x16 q = broadcast(row[r].query[d]);
        for (int j = 0; j < kScoreVectors; ++j) score[r][j] = fma(q, key[j], score[r][j]);
      }
    }
    for (int j = 0; j < kScoreVectors; ++j) {
      f32x16 factor = broadcast(scale);
      if constexpr (Cache::has_scales) factor = mul(factor, load(page.key_scales + 16 * (first + j)));
      for (int r = 0; r < rows; ++r) store(scores[r] + 16 * (first + j), mul(score[r][j], factor));
    }
  }
}

// Turns scores into weights of the stored values in place; updates the row's maximum and total. Returns what its sum so far is
// multiplied with. Scores of tokens that the row does not see are not looked at.
template <class Cache>
inline float weigh(const PageData<Cache>& page, const AttendRow& row, float* scores) {
  const f32x16 hidden = broadcast(-__builtin_inff()), zero = broadcast(0.0f);
  f32x16 best = hidden, total = zero;
  for (int j = 0; j < kVectors; ++j) best = max(best, keep_first(row.num_visible - 16 * j, load(scores + 16 * j), hidden));
  const float page_best = max_lane(best), before = row.partial.maximum(), maximum = page_best > before ? page_best : before;
  for (int j = 0; j < kVectors; ++j) {
    const f32x16 weight = keep_first(row.num_visible - 16 * j, exp(sub(load(scores + 16 * j), broadcast(maximum))), zero);
    total = add(total, weight);
    if constexpr (Cache::has_scales) store(scores + 16 * j, keep_first(row.num_visible - 16 * j, mul(weight, load(page.value_scales + 16 * j)), zero));
    else store(scores + 16 * j, weight);
  }
  const float decay = maximum == before ? 1.0f : exp_of(before - maximum);
  row.partial.maximum() = maximum;
  row.partial.total() = row.partial.total() * decay + sum(total);
  return decay;
}

// sum = sum * decay + weights . values, over the page's first num_tokens tokens; and asks for the next page's values.
template <int rows, class Cache>
inline void add_values(const PageData<Cache>& page, const PageData<Cache>& next, int num_tokens, const AttendRow* row, const float (*weights)[kPageTokens], const float* decay) {
  const int dim = row[0].partial.dim;
  for (int d = 0; d < dim; d += 16) {
    f32x16 acc[rows];
    for (int r = 0; r < rows; ++r) acc[r] = mul(load(row[r].partial.sum + d), broadcast(decay[r]));
    for (int t = 0; t < num_tokens; ++t) {
      const size_t at = static_cast<size_t>(t) * dim + d;
      __builtin_prefetch(next.values + at);
      const f32x16 value = Cache::read(page.values + at);
      for (int r = 0; r < rows; ++r) acc[r] = fma(broadcast(weights[r][t]), value, acc[r]);
    }
    for (int r = 0; r < rows; ++r) store(row[r].partial.sum + d, acc[r]);
  }
}

template <int rows, class Cache>
void attend_page(const PageData<Cache>& page, const PageData<Cache>& next, int head_dim, const AttendRow* row) {
  alignas(64) float scores[rows][kPageTokens];
  float decay[rows];
  int num_tokens = 0;
  for (int r = 0; r < rows; ++r) num_tokens = row[r].num_visible > num_tokens ? row[r].num_visible : num_tokens;
  if (num_tokens <= 0) return;
  score_page<rows>(page, next, head_dim, 1.0f / __builtin_sqrtf(static_cast<float>(head_dim)), row, scores);
  for (int r = 0; r < rows; ++r) {
    decay[r] = row[r].num_visible > 0 ? weigh(page, row[r], scores[r]) : 1.0f;
    if (row[r].num_visible <= 0) for (int j = 0; j < kVectors; ++j) store(scores[r] + 16 * j, broadcast(0.0f));
  }
  add_values<rows>(page, next, num_tokens < kPageTokens ? num_tokens : kPageTokens, row, scores, decay);
}

// All pairs of the task over pages [first, last), each into its own partial, which was cleared.
template <class Cache>
void attend_stretch(const KvLayer& layer, const AttendTask& task, int first, int last, float* partials) {
  const int dim = layer.padded_dim(), count = (task.last_row - task.first_row) * task.group_heads;
  const auto page_at = [&](int index) {
    const int page = task.pages[index];
    using Element = typename Cache::Element;
    const size_t head = task.kv_head;
    return PageData<Cache>{reinterpret_cast<const Element*>(layer.key_page(page)) + head * layer.head_dim * kPageTokens,
                           reinterpret_cast<const Element*>(layer.value_page(page)) + head * dim * kPageTokens,
                           layer.key_scales(page) + head * kPageTokens, layer.value_scales(page) + head * kPageTokens};
  };
  const auto row_at = [&](int i, int page) {
    const int row = task.first_row + i / task.group_heads, head = task.kv_head * task.group_heads + i % task.group_heads;
    return AttendRow{task.queries + row * task.stride + static_cast<size_t>(head) * layer.head_dim,
                     {partials + i * partial_floats(dim), dim}, task.positions[row] + 1 - page * kPageTokens};
  };
  for (int page = first; page < last; ++page) {
    const PageData<Cache> data = page_at(page), next = page_at(page + 1 < task.last_page ? page + 1 : page);
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

template <class Cache>
void attend_pages(const KvLayer& layer, const AttendTask& task) {
  const int dim = layer.padded_dim(), count = (task.last_row - task.first_row) * task.group_heads;
  const size_t stride = partial_floats(dim);
  float *running = task.partial ? task.partial : task.scratch, *fresh = task.scratch + count * stride;
  for (int first = task.first_page; first < task.last_page; first += kStretchPages) {
    float* into = first == task.first_page ? running : fresh;
    for (int i = 0; i < count; ++i) Partial{into + i * stride, dim}.clear();
    attend_stretch<Cache>(layer, task, first, first + kStretchPages < task.last_page ? first + kStretchPages : task.last_page, into);
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
  with_cache(layer.format, [&](auto cache) { attend_pages<decltype(cache)>(layer, task); });
}

// The scale of one head's values, and what turns them into codes.
inline float scale_of(const float* values, int count, float* inverse) {
  float largest = 0;
  for (int i = 0; i < count; ++i) largest = __builtin_fabsf(values[i]) > largest ? __builtin_fabsf(values[i]) : largest;
  const float scale = largest / 127.0f;
  *inverse = scale >= __FLT_MIN__ ? 1.0f / scale : 0.0f;
  return scale;
}

// Writes heads [first_head, last_head) of a row to a slot; place(head, d) is where an element goes, scales the page's.
template <class Cache, class Place>
inline void store_heads(int head_dim, const float* row, int first_head, int last_head, int token, float* scales, Place place) {
  for (int g = first_head; g < last_head; ++g, row += head_dim) {
    float inverse = 1;
    if constexpr (Cache::has_scales) scales[g * kPageTokens + token] = scale_of(row, head_dim, &inverse);
    for (int d = 0; d < head_dim; ++d) Cache::write(place(g, d), Cache::has_scales ? __builtin_nearbyintf(row[d] * inverse) : row[d]);
  }
}

inline void store_keys(const KvLayer& layer, const float* row, int first_head, int last_head, int slot) {
  const int page = slot / kPageTokens, token = slot % kPageTokens;
  with_cache(layer.format, [&](auto cache) {
    auto* base = reinterpret_cast<typename decltype(cache)::Element*>(layer.key_page(page));
    store_heads<decltype(cache)>(layer.head_dim, row, first_head, last_head, token, layer.key_scales(page),
                                 [&](size_t g, size_t d) { return base + (g * layer.head_dim + d) * kPageTokens + token; });
  });
}

inline void store_values(const KvLayer& layer, const float* row, int first_head, int last_head, int slot) {
  const int page = slot / kPageTokens, token = slot % kPageTokens, dim = layer.padded_dim();
  with_cache(layer.format, [&](auto cache) {
    auto* base = reinterpret_cast<typename decltype(cache)::Element*>(layer.value_page(page));
    store_heads<decltype(cache)>(layer.head_dim, row, first_head, last_head, token, layer.value_scales(page),
                                 [&](size_t g, size_t d) { return base + (g * kPageTokens + token) * dim + d; });
  });
}

}  // namespace minicpm4::ISA
