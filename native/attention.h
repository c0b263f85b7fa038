// Causal attention over paged keys and values with a streaming softmax (Milakov and Gimelshein, arXiv 1805.02867).
// The query heads of a kv head, and the queries of a task, share every load of a key or value. Included once for each
// instruction set. A row's result does not depend on which other rows are computed with it, nor on who computes its splits.
#pragma once

#include "linear.h"

namespace minicpm4::ISA {

// How an element of the cache is read and written, by its format. `pack` neighbours along the summed dimension (of keys: the head's,
// of values: tokens) lie in one 32-bit lane; read<j> gives neighbour j of 16 lanes.
template <class T, f32x16 (*load_lanes)(const T*)>
struct FloatCache {
  using Element = T;
  static constexpr int pack = 1;
  template <int j>
  static f32x16 read(const T* p) { return load_lanes(p); }
};
struct F32Cache : FloatCache<float, load> {
  static float one(Element x) { return x; }
  static void write(Element* p, float x) { *p = x; }
};
struct F16Cache : FloatCache<uint16_t, load_f16> {
  static float one(Element x) { return f16_to_f32(x); }
  static void write(Element* p, float x) { *p = f32_to_f16(x); }
};
struct Bf16Cache : FloatCache<uint16_t, load_bf16> {
  static float one(Element x) { return bf16_to_f32(x); }
  static void write(Element* p, float x) { *p = f32_to_bf16(x); }
};
struct Int8Cache {  // codes plus 128
  using Element = uint8_t;
  static constexpr int pack = 4;
  template <int j>
  static f32x16 read(const Element* p) { return sub(byte_as_f32<j>(load_bytes(p)), broadcast(128.0f)); }
  static float one(Element x) { return static_cast<float>(x - 128); }
  static void write(Element* p, float code) { *p = static_cast<uint8_t>(static_cast<int>(code) + 128); }
};

template <class F>
inline auto with_cache(KvFormat format, F f) {
  switch (format) {
    case KvFormat::f32: return f(F32Cache{});
    case KvFormat::f16: return f(F16Cache{});
    case KvFormat::bf16: return f(Bf16Cache{});
    case KvFormat::int8: break;
  }
  return f(Int8Cache{});
}

// Where an element lies in a head's part of a page.
template <class Cache>
inline size_t key_at(int d, int token) {
  return (static_cast<size_t>(d / Cache::pack) * kPageTokens + token) * Cache::pack + d % Cache::pack;
}
template <class Cache>
inline size_t value_at(int d, int token, int padded_dim) {
  return (static_cast<size_t>(token / Cache::pack) * padded_dim + d) * Cache::pack + token % Cache::pack;
}

// A partial result: weighted values, sums of weights in 16 lanes, the largest score; see partial_floats. Scores are logarithms to base 2.
struct Partial {
  float* sum;
  int dim;  // padded

  float* total_lanes() const { return sum + dim; }
  float& maximum() const { return sum[dim + 16]; }
  void clear() const {
    for (int d = 0; d < dim + 16; d += 16) store(sum + d, broadcast(0.0f));
    maximum() = -__builtin_inff();
  }
};

inline float exp2_of(float x) {
  float lanes[16];
  store(lanes, exp2(broadcast(x)));
  return lanes[0];
}

// into = into + more, both over keys of their own.
inline void merge(const Partial& into, const Partial& more) {
  const float maximum = into.maximum() > more.maximum() ? into.maximum() : more.maximum();
  const float keep = exp2_of(into.maximum() - maximum), add_share = exp2_of(more.maximum() - maximum);
  for (int d = 0; d < into.dim + 16; d += 16)
    store(into.sum + d, fma(load(more.sum + d), broadcast(add_share), mul(load(into.sum + d), broadcast(keep))));
  into.maximum() = maximum;
}

inline void finish(const Partial& partial, int head_dim, float* out) {
  const float total = sum(load(partial.total_lanes()));
  for (int d = 0; d < head_dim; ++d) out[d] = partial.sum[d] / total;
}

inline void merge_splits(const float* partials, size_t stride, int count, int head_dim, float* out) {
  const int dim = static_cast<int>(round_up(head_dim, 16));
  const Partial first{const_cast<float*>(partials), dim};
  for (int i = 1; i < count; ++i) merge(first, {const_cast<float*>(partials) + stride * i, dim});
  finish(first, head_dim, out);
}

// Zeros follow the first n.
inline f32x16 load_first(const float* p, int n) {
  if (n >= 16) return load(p);
  float lanes[16] = {};
  for (int i = 0; i < n; ++i) lanes[i] = p[i];
  return load(lanes);
}

// What a score is multiplied with; log2 e, so that weights are powers of 2.
inline float score_scale(int head_dim) { return 1.44269504f / __builtin_sqrtf(static_cast<float>(head_dim)); }

// The scale of some values, and what turns them into codes up to largest_code. NaN if a value is not finite.
inline float scale_of(const float* values, int count, float largest_code, float* inverse) {
  f32x16 largest = broadcast(0.0f), broken = largest;
  for (int i = 0; i < count; i += 16) {
    const f32x16 x = load_first(values + i, count - i);
    largest = max(largest, abs(x));
    broken = add(broken, sub(x, x));
  }
  const float scale = max_lane(largest) / largest_code + sum(broken);
  *inverse = scale >= __FLT_MIN__ ? 1.0f / scale : 0.0f;
  return scale;
}

// A query as codes of one scale: its score with a key is key scale * scale * (sum of products - bias). high, low: of pairs that are scored
// together the codes lie together, [padded head dim / 4][pairs of the task][4], so that one address reaches them all. own_*: this pair's alone.
struct QueryCode {
  const int8_t *high, *low;
  float scale, bias;
  const int8_t *own_high, *own_low;
};
static_assert(sizeof(QueryCode) <= 16 * sizeof(float));  // see attend_scratch_floats

// The codes of all pairs of a task; their bytes lie behind `codes`.
template <int terms>
void code_queries(const KvLayer& layer, const AttendTask& task, int count, QueryCode* codes) {
  const int dim = layer.padded_dim(), head_dim = layer.head_dim;
  const size_t bytes = static_cast<size_t>(count) * dim;
  int8_t *high = reinterpret_cast<int8_t*>(codes + count), *low = terms == 2 ? high + bytes : nullptr, *own = high + terms * bytes;
  for (int i = 0; i < count; ++i) {
    int8_t *own_high = own + static_cast<size_t>(i) * dim, *own_low = low ? own_high + bytes : nullptr;
    const float* query = task.query(layer, i);
    float inverse, sum_of_codes = 0;
    const float scale = scale_of(query, head_dim, kLargestCode[terms - 1], &inverse);
    for (int d = 0; d < dim; d += 16) {
      const i32x16 code = round_i32(mul(load_first(query + d, head_dim - d), broadcast(inverse)));
      store_codes(code, own_high + d, low ? own_low + d : nullptr);
      for (int j = 0; j < 4; ++j) {
        const size_t at = (static_cast<size_t>(d / 4 + j) * count + i) * 4;
        std::memcpy(high + at, own_high + d + 4 * j, 4);
        if (low) std::memcpy(low + at, own_low + d + 4 * j, 4);
      }
      sum_of_codes += static_cast<float>(sum(code));
    }
    codes[i] = {high + 4 * i, low ? low + 4 * i : nullptr, scale * score_scale(head_dim), kSignedBytes ? 0 : 128 * sum_of_codes, own_high, own_low};
  }
}

// One (query, head) pair of a task on its way through the pages of a split.
struct AttendRow {
  const float* query;
  const QueryCode* code;  // of the query, where the arithmetic has codes
  Partial partial;
  int num_visible;  // tokens of the current page that this row sees, up to 64; none where it is 0 or less
};

// One kv head's part of a page; scales are null where the format has none.
template <class Cache>
struct PageData {
  const typename Cache::Element *keys, *values;
  const float *key_scales, *value_scales;  // [64]
};

constexpr int kVectors = kPageTokens / 16;  // vectors of scores in a page

// Turns scores into weights in place; updates the row's maximum and total. Returns what its sum so far is multiplied with. Scores of
// tokens that the row does not see are not looked at.
template <bool is_whole>
inline float weigh_tokens(const AttendRow& row, float* scores) {
  const f32x16 hidden = broadcast(-__builtin_inff()), zero = broadcast(0.0f);
  const auto visible = [&](int j, f32x16 x, f32x16 rest) { return is_whole ? x : keep_first(row.num_visible - 16 * j, x, rest); };
  f32x16 best = hidden, total = zero;
  for (int j = 0; j < kVectors; ++j) best = max(best, visible(j, load(scores + 16 * j), hidden));
  float& maximum = row.partial.maximum();
  float decay = 1.0f;
  if (any_above(best, broadcast(maximum))) {  // seldom: no lane is looked for otherwise
    const float before = maximum;
    maximum = max_lane(best);
    decay = exp2_of(before - maximum);
  }
  for (int j = 0; j < kVectors; ++j) {
    const f32x16 weight = visible(j, exp2(sub(load(scores + 16 * j), broadcast(maximum))), zero);
    total = add(total, weight);
    store(scores + 16 * j, weight);
  }
  store(row.partial.total_lanes(), fma(load(row.partial.total_lanes()), broadcast(decay), total));
  return decay;
}

inline float weigh(const AttendRow& row, float* scores) {
  if (row.num_visible == kPageTokens) return weigh_tokens<true>(row, scores);
  if (row.num_visible > 0) return weigh_tokens<false>(row, scores);
  for (int j = 0; j < kVectors; ++j) store(scores + 16 * j, broadcast(0.0f));
  return 1.0f;
}

// Scores and weighted values in float32, from whatever the cache holds.
template <class CacheFormat>
struct FloatMath {
  using Cache = CacheFormat;
  static constexpr int code_bytes = 0, most_rows = kAttendRows;
  static constexpr bool has_scales = Cache::pack > 1, needs_neighbours = false;  // whether pairs that are scored together lie together

  // Scores of `rows` rows, `stride` floats apart, against a page's keys; and asks for the next page's keys.
  template <int rows>
  static void score(const PageData<Cache>& page, const PageData<Cache>& next, int head_dim, int, const AttendRow* row, float* scores, size_t stride) {
    for (int first = 0; first < kVectors; first += kScoreVectors) {
      f32x16 score[rows][kScoreVectors];
      for (auto& s : score) for (auto& v : s) v = broadcast(0.0f);
      for (int d = 0; d < head_dim; d += Cache::pack) {
        const size_t at = key_at<Cache>(d, 16 * first);
        __builtin_prefetch(next.keys + at);
        unroll<Cache::pack>([&](auto i) {
          if (d + i >= head_dim) return;
          f32x16 key[kScoreVectors];
          for (int j = 0; j < kScoreVectors; ++j) key[j] = Cache::template read<i>(page.keys + at + 16 * Cache::pack * j);
          for (int r = 0; r < rows; ++r) {
            const f32x16 q = broadcast(row[r].query[d + i]);
            for (int j = 0; j < kScoreVectors; ++j) score[r][j] = fma(q, key[j], score[r][j]);
          }
        });
      }
      for (int j = 0; j < kScoreVectors; ++j) {
        f32x16 factor = broadcast(score_scale(head_dim));
        if constexpr (has_scales) factor = mul(factor, load(page.key_scales + 16 * (first + j)));
        for (int r = 0; r < rows; ++r) store(scores + r * stride + 16 * (first + j), mul(score[r][j], factor));
      }
    }
  }

  // sum = sum * decay + weights . values, over the tokens that each row sees, the last row the most; and asks for the next page's values.
  // Those of later tokens do not count as zero, which times NaN is NaN: they are not touched.
  template <int rows>
  static void add_values(const PageData<Cache>& page, const PageData<Cache>& next, const AttendRow* row, float (*weights)[kPageTokens], const float* decay) {
    const int dim = row[0].partial.dim, seen_by_all = row[0].num_visible > 0 ? row[0].num_visible / Cache::pack * Cache::pack : 0;
    if constexpr (has_scales) {
      for (int r = 0; r < rows; ++r) for (int t = 0; t < row[r].num_visible; ++t) weights[r][t] *= page.value_scales[t];
    }
    for (int d = 0; d < dim; d += 16) {
      f32x16 acc[rows];
      for (int r = 0; r < rows; ++r) acc[r] = mul(load(row[r].partial.sum + d), broadcast(decay[r]));
      for (int t = 0; t < seen_by_all; t += Cache::pack) {
        const size_t at = value_at<Cache>(d, t, dim);
        __builtin_prefetch(next.values + at);
        unroll<Cache::pack>([&](auto i) {
          const f32x16 value = Cache::template read<i>(page.values + at);
          for (int r = 0; r < rows; ++r) acc[r] = fma(broadcast(weights[r][t + i]), value, acc[r]);
        });
      }
      for (int t = seen_by_all; t < row[rows - 1].num_visible; t += Cache::pack) {
        unroll<Cache::pack>([&](auto i) {
          const f32x16 value = Cache::template read<i>(page.values + value_at<Cache>(d, t, dim));
          for (int r = 0; r < rows; ++r) if (t + i < row[r].num_visible) acc[r] = fma(broadcast(weights[r][t + i]), value, acc[r]);
        });
      }
      for (int r = 0; r < rows; ++r) store(row[r].partial.sum + d, acc[r]);
    }
  }
};

// Scores and weighted values as sums of products of bytes, from an int8 cache and queries of `terms` bytes; see QueryCode. A weight,
// times the scale of its token's values, is 128 * high + low in steps of 1 / 16383 of the largest scale that the row sees in the page: two
// bytes of 7 bits. A later token's weight is 0, and so is that times a byte.
template <int terms>
struct CodedMath {
  using Cache = Int8Cache;
  static constexpr int code_bytes = terms, most_rows = kAttendRows, vectors = kScoreVectors / terms > 0 ? kScoreVectors / terms : 1;
  static constexpr bool needs_neighbours = true;
  static constexpr float largest_weight_code = 127 * 128 + 127;

  template <int rows>
  static void score(const PageData<Cache>& page, const PageData<Cache>& next, int head_dim, int num_pairs, const AttendRow* row, float* scores, size_t stride) {
    for (int first = 0; first < kVectors; first += vectors) {
      GroupDot<Dot<8>, terms> dot[rows][vectors];
      const QueryCode& query = *row[0].code;  // those of the other rows follow
      const auto add_columns = [&](auto c, int d, size_t code) {
        unroll<vectors>([&](auto j) {
          const size_t at = key_at<Cache>(d, 16 * (first + j));
          __builtin_prefetch(next.keys + at);
          const u8x64 keys = load_bytes(page.keys + at);
          unroll<rows>([&](auto r) { dot[r][j].template add<c>(keys, &query.high, &query.low, code + 4 * r); });
        });
      };
      add_columns(std::integral_constant<int, 0>{}, 0, 0);
      for (int d = 4; d < head_dim; d += 4) add_columns(std::integral_constant<int, 1>{}, d, static_cast<size_t>(d) * num_pairs);
      for (int j = 0; j < vectors; ++j) {
        const f32x16 key_scale = load(page.key_scales + 16 * (first + j));
        for (int r = 0; r < rows; ++r)
          store(scores + r * stride + 16 * (first + j), mul(mul(key_scale, broadcast(row[r].code->scale)), sub(dot[r][j].total(), broadcast(row[r].code->bias))));
      }
    }
  }

  template <int rows>
  static void add_values(const PageData<Cache>& page, const PageData<Cache>& next, const AttendRow* row, float (*weights)[kPageTokens], const float* decay) {
    alignas(64) uint8_t high[rows][kPageTokens], low[rows][kPageTokens];
    float unit[rows];
    code_weights<rows>(page.value_scales, row, weights, high, low, unit);
    const int dim = row[0].partial.dim, num_tokens = row[rows - 1].num_visible;
    for (int d = 0; d < dim; d += 16) {
      i32x16 high_sum[rows], low_sum[rows];
      unroll<rows>([&](auto r) { high_sum[r] = low_sum[r] = broadcast_i32(0); });
      for (int t = 0; t < num_tokens; t += 4) {
        const size_t at = value_at<Cache>(d, t, dim);
        __builtin_prefetch(next.values + at);
        const u8x64 values = flip_signs(load_bytes(page.values + at));
        unroll<rows>([&](auto r) {
          high_sum[r] = dot_four(high_sum[r], values, high[r] + t);
          low_sum[r] = dot_four(low_sum[r], values, low[r] + t);
        });
      }
      unroll<rows>([&](auto r) {
        const f32x16 total = fma(to_f32(high_sum[r]), broadcast(128.0f), to_f32(low_sum[r]));
        store(row[r].partial.sum + d, fma(total, broadcast(unit[r]), mul(load(row[r].partial.sum + d), broadcast(decay[r]))));
      });
    }
  }

 protected:
  // The scales of the first tokens in units of what a code counts; zeros follow. The unit is NaN where a scale is.
  struct ValueScales {
    f32x16 in_units[kVectors];
    float unit;

    ValueScales(const float* scales, int num_tokens) {
      const f32x16 zero = broadcast(0.0f);
      f32x16 largest = zero, broken = zero;
      for (int j = 0; j < kVectors; ++j) {
        in_units[j] = keep_first(num_tokens - 16 * j, load(scales + 16 * j), zero);
        largest = max(largest, in_units[j]);
        broken = add(broken, sub(in_units[j], in_units[j]));
      }
      unit = max_lane(largest) / largest_weight_code + sum(broken);
      const f32x16 inverse = broadcast(unit >= __FLT_MIN__ ? 1.0f / unit : 0.0f);
      for (int j = 0; j < kVectors; ++j) in_units[j] = mul(in_units[j], inverse);
    }
  };

  // unit: what a row's codes count.
  template <int rows>
  static void code_weights(const float* scales, const AttendRow* row, const float (*weights)[kPageTokens], uint8_t (*high)[kPageTokens], uint8_t (*low)[kPageTokens], float* unit) {
    const f32x16 most = broadcast(largest_weight_code);
    ValueScales seen(scales, row[0].num_visible);
    for (int r = 0; r < rows; ++r) {
      if (r > 0 && row[r].num_visible != row[r - 1].num_visible) seen = ValueScales(scales, row[r].num_visible);
      unit[r] = seen.unit;
      i32x16 upper[kVectors], lower[kVectors];
      for (int j = 0; j < kVectors; ++j) {
        const i32x16 code = round_i32(min(mul(load(weights[r] + 16 * j), seen.in_units[j]), most));
        upper[j] = shift_right<7>(code), lower[j] = keep_bits<127>(code);
      }
      store_low_bytes(high[r], upper), store_low_bytes(low[r], lower);
    }
  }
};

template <int rows, class Math>
void attend_page(const PageData<typename Math::Cache>& page, const PageData<typename Math::Cache>& next, int head_dim, int num_pairs, const AttendRow* row) {
  alignas(64) float scores[rows][kPageTokens];
  float decay[rows];
  if (row[rows - 1].num_visible <= 0) return;  // it sees the most
  Math::template score<rows>(page, next, head_dim, num_pairs, row, scores[0], kPageTokens);
  for (int r = 0; r < rows; ++r) decay[r] = weigh(row[r], scores[r]);
  Math::template add_values<rows>(page, next, row, scores, decay);
}

// The pages of a task, and its pairs on their way through them.
template <class Math>
struct TaskPages {
  using Cache = typename Math::Cache;
  const KvLayer& layer;
  const AttendTask& task;
  const QueryCode* codes;

  PageData<Cache> page(int block) const {
    using Element = typename Cache::Element;
    const int page = task.pages[block];
    const size_t head = task.kv_head;
    return {reinterpret_cast<const Element*>(layer.key_page(page)) + head * layer.head_elements(),
            reinterpret_cast<const Element*>(layer.value_page(page)) + head * layer.head_elements(),
            layer.key_scales(page) + head * kPageTokens, layer.value_scales(page) + head * kPageTokens};
  }

  // All pairs of some rows of the task, ascending, over a block, of which `data` is the page. rows: their numbers in the task, or null for the
  // first ones. partials_of(row): where the partial results of all pairs begin, for this row.
  template <class PartialsOf>
  void attend(int block, const PageData<Cache>& data, PageData<Cache> next, const int32_t* rows, int num_rows, PartialsOf partials_of) const {
    const int heads = task.group_heads, num_pairs = (task.last_row - task.first_row) * heads, dim = layer.padded_dim();
    int left = num_rows * heads, n = 0, head = 0;
    const auto take_pair = [&] {
      const int r = rows ? rows[n] : n, i = r * heads + head, num_visible = task.positions[task.first_row + r] + 1 - block * kPageTokens;
      const float* query = task.queries + (task.first_row + r) * task.stride + static_cast<size_t>(task.kv_head * heads + head) * layer.head_dim;
      if (++head == heads) head = 0, ++n;
      return AttendRow{query, codes + i, {partials_of(r) + i * partial_floats(dim), dim}, num_visible < kPageTokens ? num_visible : kPageTokens};
    };
    const auto run = [&](auto count) {
      if constexpr (count <= Math::most_rows) {
        for (; left >= count; left -= count) {
          AttendRow row[count];
          for (AttendRow& pair : row) pair = take_pair();
          attend_page<count, Math>(data, next, layer.head_dim, num_pairs, row);
          next = data;  // asked for once
        }
      }
    };
    run(std::integral_constant<int, 16>{});
    run(std::integral_constant<int, 8>{});
    run(std::integral_constant<int, 4>{});
    run(std::integral_constant<int, 3>{});
    run(std::integral_constant<int, 1>{});
  }
};

// A task's scratch: of each pair the partial result so far and that of the split at hand, then the queries' codes, then numbers of rows.
struct AttendScratch {
  float *running, *fresh;
  QueryCode* codes;
  int32_t* numbers;
  size_t stride;
  int dim;

  AttendScratch(const KvLayer& layer, const AttendTask& task, int count)
      : running(task.partial ? task.partial : task.scratch), stride(partial_floats(layer.padded_dim())), dim(layer.padded_dim()) {
    fresh = task.scratch + count * stride;
    codes = reinterpret_cast<QueryCode*>(fresh + count * stride);
    numbers = reinterpret_cast<int32_t*>(task.scratch + attend_scratch_floats(1, count, dim));
  }
  void clear(float* partials, int first, int last) const {
    for (int i = first; i < last; ++i) Partial{partials + i * stride, dim}.clear();
  }
  void merge_fresh(int i) const { merge({running + i * stride, dim}, {fresh + i * stride, dim}); }
};

template <class Math>
void attend_pages(const KvLayer& layer, const AttendTask& task, const AttendScratch& scratch, int count) {
  const TaskPages<Math> pages{layer, task, scratch.codes};
  for (int first = task.first_page; first < task.last_page; first += kSplitPages) {
    const int last = first + kSplitPages < task.last_page ? first + kSplitPages : task.last_page;
    float* into = first == task.first_page ? scratch.running : scratch.fresh;
    scratch.clear(into, 0, count);
    for (int index = first; index < last; ++index) {
      const int block = task.block(index), next = task.block(index + 1 < task.last_page ? index + 1 : index);
      pages.attend(block, pages.page(block), pages.page(next), nullptr, task.last_row - task.first_row, [&](int) { return into; });
    }
    if (into == scratch.running) continue;
    for (int i = 0; i < count; ++i)
      if (task.positions[task.first_row + i / task.group_heads] >= task.block(first) * kPageTokens) scratch.merge_fresh(i);
  }
}

// Which of a task's sparse rows attend to a block, ascending, and how many blocks each has behind it: its splits are its own.
struct BlockVisits {
  int32_t *ends, *rows, *done;

  BlockVisits(const AttendTask& task, int32_t* numbers) : ends(numbers) {
    const int num_rows = task.last_row - task.first_row;
    int32_t total = 0;
    for (int b = 0; b < task.last_page; ++b) ends[b] = 0;
    for_each(task, [&](int, int block) { ++ends[block]; });
    for (int b = 0; b < task.last_page; ++b) total += std::exchange(ends[b], total);  // where they begin, until they are there
    rows = ends + task.last_page, done = rows + total;
    for_each(task, [&](int row, int block) { rows[ends[block]++] = row; });
    for (int row = 0; row < num_rows; ++row) done[row] = 0;
  }
  const int32_t* begin(int block) const { return rows + (block ? ends[block - 1] : 0); }
  int count(int block) const { return ends[block] - (block ? ends[block - 1] : 0); }

 private:
  template <class F>
  static void for_each(const AttendTask& task, F f) {
    for (int row = task.first_row; row < task.last_row; ++row)
      for (int i = 0, count = *task.lists.count(row); i < count; ++i) f(row - task.first_row, task.lists.list(row)[i]);
  }
};

// Several sparse rows: a page is read once for all that attend to it.
template <class Math>
void attend_lists(const KvLayer& layer, const AttendTask& task, const AttendScratch& scratch) {
  const TaskPages<Math> pages{layer, task, scratch.codes};
  const BlockVisits visits(task, scratch.numbers);
  const int heads = task.group_heads, num_rows = task.last_row - task.first_row;
  const auto merge_row = [&](int row) {
    if (visits.done[row] > kSplitPages) for (int h = 0; h < heads; ++h) scratch.merge_fresh(row * heads + h);
  };
  const auto begin_stretch = [&](int row) {
    merge_row(row);
    scratch.clear(visits.done[row] ? scratch.fresh : scratch.running, row * heads, (row + 1) * heads);
  };
  const auto partials_of = [&](int row) { return visits.done[row] > kSplitPages ? scratch.fresh : scratch.running; };
  for (int block = 0, next = 0; block < task.last_page; block = next) {
    for (++next; next < task.last_page && visits.count(next) == 0; ++next) {}
    const int count = visits.count(block);
    const int32_t* rows = visits.begin(block);
    for (int n = 0; n < count; ++n)
      if (visits.done[rows[n]] % kSplitPages == 0) begin_stretch(rows[n]);
    for (int n = 0; n < count; ++n) ++visits.done[rows[n]];
    const PageData<typename Math::Cache> data = pages.page(block), after = pages.page(next < task.last_page ? next : block);
    if constexpr (Math::needs_neighbours) {
      for (int n = 0; n < count; ++n)
        pages.attend(block, data, n ? data : after, rows + n, 1, partials_of);
    } else {
      pages.attend(block, data, after, rows, count, partials_of);
    }
  }
  for (int row = 0; row < num_rows; ++row) merge_row(row);
}

template <class Math>
void attend_task(const KvLayer& layer, const AttendTask& task) {
  const int count = (task.last_row - task.first_row) * task.group_heads;
  const AttendScratch scratch(layer, task, count);
  if constexpr (Math::code_bytes > 0) code_queries<Math::code_bytes>(layer, task, count, scratch.codes);
  if (task.lists.of_first) attend_lists<Math>(layer, task, scratch);
  else attend_pages<Math>(layer, task, scratch, count);
  if (task.partial) return;
  for (int i = 0; i < count; ++i) finish({scratch.running + i * scratch.stride, scratch.dim}, layer.head_dim, task.out + (task.query(layer, i) - task.queries));
}

// Calls f with the arithmetic for a cache and activations.
template <class F>
inline auto with_math(const KvLayer& layer, const AttendTask& task, F f) {
  return with_cache(layer.format, [&](auto cache) {
    using Cache = decltype(cache);
    if constexpr (std::is_same_v<Cache, Int8Cache>) {
      if (task.code_bytes == 1) return f(CodedMath<1>{});
      if (task.code_bytes == 2) return f(CodedMath<2>{});
    }
    return f(FloatMath<Cache>{});
  });
}

inline void attend(const KvLayer& layer, const AttendTask& task) {
  with_math(layer, task, [&](auto math) { attend_task<decltype(math)>(layer, task); });
}

// Writes heads [first_head, last_head) of a row to a slot; place(head, d) is where an element goes, scales the page's.
template <class Cache, class Place>
inline void store_heads(int head_dim, const float* row, int first_head, int last_head, int token, float* scales, Place place) {
  for (int g = first_head; g < last_head; ++g, row += head_dim) {
    float inverse = 1;
    constexpr bool has_scales = Cache::pack > 1;
    if constexpr (has_scales) scales[g * kPageTokens + token] = scale_of(row, head_dim, kLargestCode[0], &inverse);
    for (int d = 0; d < head_dim; ++d) Cache::write(place(g, d), has_scales ? __builtin_nearbyintf(row[d] * inverse) : row[d]);
  }
}

inline void store_keys(const KvLayer& layer, const float* row, int first_head, int last_head, int slot) {
  const int page = slot / kPageTokens, token = slot % kPageTokens;
  with_cache(layer.format, [&](auto cache) {
    auto* base = reinterpret_cast<typename decltype(cache)::Element*>(layer.key_page(page));
    store_heads<decltype(cache)>(layer.head_dim, row, first_head, last_head, token, layer.key_scales(page),
                                 [&](size_t g, int d) { return base + g * layer.head_elements() + key_at<decltype(cache)>(d, token); });
  });
}

inline void store_values(const KvLayer& layer, const float* row, int first_head, int last_head, int slot) {
  const int page = slot / kPageTokens, token = slot % kPageTokens, dim = layer.padded_dim();
  with_cache(layer.format, [&](auto cache) {
    auto* base = reinterpret_cast<typename decltype(cache)::Element*>(layer.value_page(page));
    store_heads<decltype(cache)>(layer.head_dim, row, first_head, last_head, token, layer.value_scales(page),
                                 [&](size_t g, int d) { return base + g * layer.head_elements() + value_at<decltype(cache)>(d, token, dim); });
  });
}

}  // namespace minicpm4::ISA
