// InfLLM v2: which blocks of 64 tokens a row attends to. The rule, with its source, is minicpm4/model/sparse.py; here are its numbers
// for some rows of a sequence and one kv head. Compressed keys are scored as keys are: 64 of them are brought into the order of
// a page. What a row chooses does not depend on which others choose with it. Included once for each instruction set.
#pragma once

#include "attention.h"

namespace minicpm4::ISA {

// The mean of a compressed key's keys as they are stored, added up token by token, into its place.
template <class Cache>
void compress_key(const KvLayer& layer, const CompressedLayer& compressed, const int32_t* pages, int last_token, float* mean) {
  const int head_dim = layer.head_dim, size = compressed.shape.size, places = compressed.shape.places(), place = compressed.shape.place(last_token);
  for (int head = 0; head < layer.num_kv_heads; ++head) {
    for (int d = 0; d < head_dim; ++d) mean[d] = 0;
    for (int token = last_token - size + 1; token <= last_token; ++token) {
      const int page = pages[token / kPageTokens], at = token % kPageTokens;
      const auto* keys = reinterpret_cast<const typename Cache::Element*>(layer.key_page(page)) + head * layer.head_elements();
      const float scale = Cache::pack > 1 ? layer.key_scales(page)[head * kPageTokens + at] : 1.0f;
      for (int d = 0; d < head_dim; ++d) mean[d] += Cache::one(keys[key_at<Cache>(d, at)]) * scale;
    }
    for (int d = 0; d < head_dim; ++d) mean[d] *= 1.0f / static_cast<float>(size);
    uint8_t* stored = compressed.page(pages[last_token / kPageTokens], head);
    auto* elements = reinterpret_cast<typename Cache::Element*>(stored);
    store_heads<Cache>(head_dim, mean, 0, 1, place, compressed.scales(stored),
                       [&](size_t, int d) { return elements + (static_cast<size_t>(d / Cache::pack) * places + place) * Cache::pack + d % Cache::pack; });
  }
}

inline void compress(const KvLayer& layer, const CompressedLayer& compressed, const int32_t* pages, int last_token, float* scratch) {
  with_cache(layer.format, [&](auto cache) { compress_key<decltype(cache)>(layer, compressed, pages, last_token, scratch); });
}

// Kernels in the order of pages of keys, each page with its scales behind it: all that a task's rows see, or those at hand alone.
struct GatheredKeys {
  uint8_t* data;
  size_t page_bytes;
  bool is_kept;

  uint8_t* page(int number) const { return data + (is_kept ? number * page_bytes : 0); }
  float* scales(int number) const { return reinterpret_cast<float*>(page(number) + page_bytes) - kPageTokens; }
};

// What select works in, carved out of its scratch memory.
struct SelectScratch {
  float* attend;    // codes of the queries
  GatheredKeys fine, coarse;
  float* shares;    // [pairs of the rows at hand][stride]
  float* scores;    // [entries], then of blocks; two pages more, for vectors at the end
  float* largest;   // [pairs]: what shares are relative to, a logarithm to base 2 ...
  float* inverse;   // ... and what they are then multiplied with
  size_t stride;

  SelectScratch(float* scratch, const KvLayer& layer, const SparseRule& rule, const AttendTask& task, int num_pages) : attend(scratch) {
    const int pairs = kSelectTogether * task.group_heads, dim = layer.padded_dim();
    const size_t page_floats = gathered_page_floats(layer);
    const bool is_kept = task.last_row - task.first_row > kSelectTogether && gathered_pages(rule, num_pages) * page_floats * sizeof(float) <= kGatheredBytes;
    float* next = attend + attend_scratch_floats(kSelectTogether, task.group_heads, dim);
    const auto take = [&](size_t floats) { return std::exchange(next, next + floats); };
    stride = select_stride(num_pages, rule.fine().places());
    fine = coarse = {nullptr, page_floats * sizeof(float), is_kept};
    fine.data = reinterpret_cast<uint8_t*>(take(page_floats * (is_kept ? select_entries(num_pages, rule.fine().places()) / kPageTokens : 1)));
    if (rule.has_coarse_lse) coarse.data = reinterpret_cast<uint8_t*>(take(page_floats * (is_kept ? select_entries(num_pages, rule.coarse().places()) / kPageTokens : 1)));
    shares = take(pairs * stride), scores = take(stride + 2 * kPageTokens), largest = take(pairs), inverse = take(pairs);
  }
};

// The compressed keys beside pages [first, last) of those of a sequence that have some, at most 64 of them, in the order of a page of keys.
template <class Cache, int places>
void gather_compressed(const KvLayer& layer, const CompressedLayer& compressed, const AttendTask& task, int first, int last, uint8_t* gathered, float* scales) {
  constexpr size_t run = sizeof(typename Cache::Element) * Cache::pack;
  const int chunks = layer.padded_dim() / Cache::pack;
  const size_t bytes = compressed.head_bytes(), scales_at = compressed.scales_at();
  const uint8_t* of_head = compressed.page(0, task.kv_head);
  const auto page_at = [&](int p) { return of_head + bytes * task.pages[compressed.shape.page_at(p)]; };
  for (int p = first; p < last; ++p) {
    const uint8_t* stored = page_at(p);
    if (p + 4 < last) for (size_t line = 0; line < bytes; line += 64) __builtin_prefetch(page_at(p + 4) + line);
    uint8_t* out = gathered + (p - first) * places * run;
    for (int c = 0; c < chunks; ++c) std::memcpy(out + c * kPageTokens * run, stored + c * places * run, places * run);
    if constexpr (Cache::pack > 1) std::memcpy(scales + (p - first) * places, stored + scales_at, places * sizeof(float));
  }
}

// The compressed keys of one page in that order, of the first num_entries.
template <class Cache>
void gather_page(const KvLayer& layer, const CompressedLayer& compressed, const AttendTask& task, int num_entries, const GatheredKeys& gathered, int number) {
  const int num_places = compressed.shape.places(), together = kPageTokens / num_places, num_pages = (num_entries + num_places - 1) / num_places;
  const int first = number * together, last = first + together < num_pages ? first + together : num_pages;
  unroll<7>([&](auto i) {
    constexpr int places = 1 << i;
    if (num_places == places) gather_compressed<Cache, places>(layer, compressed, task, first, last, gathered.page(number), gathered.scales(number));
  });
}

// Scores of the compressed keys at the first num_entries places against all pairs of the task, into shares.
template <class Math>
void score_compressed(const KvLayer& layer, const CompressedLayer& compressed, const AttendTask& task, int num_entries, const GatheredKeys& gathered, const SelectScratch& scratch) {
  using Cache = typename Math::Cache;
  const QueryCode* codes = reinterpret_cast<const QueryCode*>(scratch.attend);
  const int count = (task.last_row - task.first_row) * task.group_heads;
  for (int number = 0; number * kPageTokens < num_entries; ++number) {
    if (!gathered.is_kept) gather_page<Cache>(layer, compressed, task, num_entries, gathered, number);
    const PageData<Cache> page{reinterpret_cast<const typename Cache::Element*>(gathered.page(number)), nullptr, gathered.scales(number), nullptr};
    int i = 0, r = task.first_row, head = 0;
    const auto run = [&](auto rows) {
      if constexpr (rows <= Math::most_rows) {
        for (; i + rows <= count; i += rows) {
          AttendRow row[rows];
          for (int k = 0; k < rows; ++k) {
            const float* query = task.queries + r * task.stride + static_cast<size_t>(task.kv_head * task.group_heads + head) * layer.head_dim;
            row[k] = {query, codes + i + k, {}, 0};
            if (++head == task.group_heads) head = 0, ++r;
          }
          Math::template score<rows>(page, page, layer.head_dim, count, row, scratch.shares + i * scratch.stride + number * kPageTokens, scratch.stride);
        }
      }
    };
    run(std::integral_constant<int, 16>{});
    run(std::integral_constant<int, 8>{});
    run(std::integral_constant<int, 4>{});
    run(std::integral_constant<int, 3>{});
    run(std::integral_constant<int, 1>{});
  }
}

// The largest of a head's scores at entries [first, last). Nothing else is looked at; what lies before counts as never seen from here on.
inline float largest_score(float* scores, int first, int last) {
  const f32x16 hidden = broadcast(-__builtin_inff());
  f32x16 best[4] = {hidden, hidden, hidden, hidden};  // which do not wait for each other
  int i = 0;
  for (int before = 0; before < first; ++before) scores[before] = -__builtin_inff();
  for (; i + 64 <= last; i += 64) unroll<4>([&](auto j) { best[j] = max(best[j], load(scores + i + 16 * j)); });
  for (; i < last; i += 16) best[0] = max(best[0], keep_first(last - i, load(scores + i), hidden));
  return max_lane(max(max(best[0], best[1]), max(best[2], best[3])));
}

// Turns the first scores into powers of two, relative to `largest`; returns their sum. If it is not the largest of these, a score may be
// larger by more than can be said: infinite.
template <bool is_largest>
inline float weigh_scores(float* scores, int last, float largest) {
  f32x16 total = broadcast(0.0f);
  const auto weight_at = [&](int i) {
    const f32x16 more = sub(load(scores + i), broadcast(largest));
    return exp2(is_largest ? more : min(broadcast(128.0f), more));
  };
  const auto put = [&](int i, f32x16 weight) {
    total = add(total, weight);
    store(scores + i, weight);
  };
  int i = 0;
  for (; i + 16 <= last; i += 16) put(i, weight_at(i));
  if (i < last) put(i, keep_first(last - i, weight_at(i), broadcast(0.0f)));
  return sum(total);
}

// What the heads' shares of coarse compressed keys are divided by, whose scores lie for a while where those of the fine ones will. NaN, and not looked
// at, of a row that sees none.
template <class Math>
void weigh_coarse(const KvLayer& layer, const SparseLayer& sparse, const AttendTask& task, const SelectScratch& scratch) {
  const CompressedShape coarse = sparse.rule.coarse();
  const auto last_of = [&](int row) { return coarse.before() + coarse.count(task.positions[row] + 1); };
  score_compressed<Math>(layer, sparse.coarse, task, last_of(task.last_row - 1), scratch.coarse, scratch);
  for (int row = task.first_row, pair = 0; row < task.last_row; ++row) {
    for (int h = 0; h < task.group_heads; ++h, ++pair) {
      float* shares = scratch.shares + pair * scratch.stride;
      scratch.largest[pair] = largest_score(shares, coarse.before(), last_of(row));
      scratch.inverse[pair] = 1.0f / weigh_scores<true>(shares, last_of(row), scratch.largest[pair]);
    }
  }
}

// The rule's step 2 for one row of those at hand, into scores: the heads' shares, added up. Zeros follow. Where one is NaN, zero.
inline void add_shares(const SparseRule& rule, const AttendTask& task, int row, const SelectScratch& scratch) {
  const CompressedShape fine = rule.fine();
  const bool is_exact = !rule.has_coarse_lse || rule.coarse().count(task.positions[row] + 1) == 0;
  const int last = fine.before() + fine.count(task.positions[row] + 1), first_pair = (row - task.first_row) * task.group_heads;
  float *shares = scratch.shares + first_pair * scratch.stride, *inverse = scratch.inverse + first_pair;
  for (int h = 0; h < task.group_heads; ++h) {
    float* of_head = shares + h * scratch.stride;
    const float largest = largest_score(of_head, fine.before(), last);
    if (is_exact) inverse[h] = 1.0f / weigh_scores<true>(of_head, last, largest);
    else weigh_scores<false>(of_head, last, scratch.largest[first_pair + h]);
  }
  for (int i = 0; i < last; i += 16) {
    f32x16 total = broadcast(0.0f);
    for (int h = 0; h < task.group_heads; ++h) total = fma(load(shares + h * scratch.stride + i), broadcast(inverse[h]), total);
    store(scratch.scores + i, keep_first(last - i, positive(total), broadcast(0.0f)));
  }
}

// Scores of blocks [first, first + count) from those of the compressed keys that touch them, before which zeros count; both in `scores`. A block's
// compressed keys begin with the one that ends first in it.
inline void pool_blocks(const CompressedShape& fine, int first, int count, int num_entries, float* scores) {
  const int places = fine.places(), width = places + fine.before(), from = first * places, to = from + count * places;
  for (int i = 0; i < fine.before(); ++i) scores[i] = 0;
  for (int i = static_cast<int>(round_up(num_entries, 16)); i < to + width + 16; i += 16) store(scores + i, broadcast(0.0f));
  for (int i = from; i < to; i += 16) {
    f32x16 best = load(scores + i);
    for (int k = 1; k < width; ++k) best = max(best, load(scores + i + k));
    store(scores + i, best);
  }
  for (int b = 0; b < count; ++b) scores[b] = scores[from + b * places];
}

// A value that exactly `count` of n values are above, or else the value of that rank, which several have. None of them is negative: as whole
// numbers their bits are in order.
using FloatBits = int32_t __attribute__((may_alias));  // of floats that were just written
inline int32_t ranked_bits(const FloatBits* bits, int n, int count) {
  int32_t value = 0;
  for (int32_t bit = 1 << 30; bit > 0; bit >>= 1) {
    int above = 0;
    for (int i = 0; i < n; ++i) above += bits[i] >= (value | bit);
    if (above == count) return (value | bit) - 1;
    if (above > count) value |= bit;
  }
  return value;
}

// The blocks of the rule's step 4, ascending; scores: of the blocks between. Returns how many.
inline int choose_blocks(const SparseRule& rule, int position, const float* scores, int32_t* blocks) {
  const int own = position / kPageTokens, first_local = rule.first_local(position), between = first_local - rule.init_blocks;
  int count = 0;
  for (int b = 0; b < rule.init_blocks && b <= own; ++b) blocks[count++] = b;
  if (between > 0) {
    const int wanted = between < rule.best_blocks ? between : rule.best_blocks;
    const FloatBits* bits = reinterpret_cast<const FloatBits*>(scores);
    const int32_t least = wanted ? ranked_bits(bits, between, wanted) : 0;
    int equal = wanted;  // of those that equal the last one taken, so many: the lower ones
    for (int i = 0; i < between; ++i) equal -= bits[i] > least;
    for (int i = 0; i < between && wanted; ++i)
      if (bits[i] > least || (bits[i] == least && equal-- > 0)) blocks[count++] = rule.init_blocks + i;
  }
  for (int b = first_local > count ? first_local : count; b <= own; ++b) blocks[count++] = b;
  return count;
}

// The rows [first_row, last_row) of a task, kSelectTogether at most.
template <class Math>
void select_some(const KvLayer& layer, const SparseLayer& sparse, const AttendTask& task, const SelectScratch& scratch, const BlockLists& lists) {
  const SparseRule& rule = sparse.rule;
  const CompressedShape fine = rule.fine();
  const auto num_entries = [&](int row) { return fine.before() + fine.count(task.positions[row] + 1); };
  const auto num_between = [&](int row) { return rule.first_local(task.positions[row]) - rule.init_blocks; };
  const int last_row = task.last_row - 1;
  if (num_between(last_row) > 0 && rule.best_blocks > 0) {
    if constexpr (Math::code_bytes > 0)
      code_queries<Math::code_bytes>(layer, task, (task.last_row - task.first_row) * task.group_heads, reinterpret_cast<QueryCode*>(scratch.attend));
    if (rule.has_coarse_lse && rule.coarse().count(task.positions[last_row] + 1) > 0) weigh_coarse<Math>(layer, sparse, task, scratch);
    score_compressed<Math>(layer, sparse.fine, task, num_entries(last_row), scratch.fine, scratch);
  }
  for (int row = task.first_row; row < task.last_row; ++row) {
    if (num_between(row) > 0 && rule.best_blocks > 0) {
      add_shares(rule, task, row, scratch);
      pool_blocks(fine, rule.init_blocks, num_between(row), num_entries(row), scratch.scores);
    }
    *lists.count(row) = choose_blocks(rule, task.positions[row], scratch.scores, lists.list(row));
  }
}

template <class Math>
void select_rows(const KvLayer& layer, const SparseLayer& sparse, const AttendTask& task, int num_pages, const BlockLists& lists) {
  const SelectScratch scratch(task.scratch, layer, sparse.rule, task, num_pages);
  const int position = task.positions[task.last_row - 1], num_tokens = position + 1;
  const bool has_choice = sparse.rule.first_local(position) > sparse.rule.init_blocks && sparse.rule.best_blocks > 0;
  const auto gather = [&](const CompressedLayer& compressed, const GatheredKeys& gathered) {
    const int num_entries = compressed.shape.before() + compressed.shape.count(num_tokens);
    for (int number = 0; number * kPageTokens < num_entries; ++number)
      gather_page<typename Math::Cache>(layer, compressed, task, num_entries, gathered, number);
  };
  if (has_choice && scratch.fine.is_kept) {
    gather(sparse.fine, scratch.fine);
    if (sparse.rule.has_coarse_lse && sparse.rule.coarse().count(num_tokens) > 0) gather(sparse.coarse, scratch.coarse);
  }
  for (int row = task.first_row; row < task.last_row; row += kSelectTogether) {
    AttendTask some = task;
    some.first_row = row;
    if (row + kSelectTogether < task.last_row) some.last_row = row + kSelectTogether;
    select_some<Math>(layer, sparse, some, scratch, lists);
  }
}

inline void select(const KvLayer& layer, const SparseLayer& sparse, const AttendTask& task, int num_pages, const BlockLists& lists) {
  with_math(layer, task, [&](auto math) { select_rows<decltype(math)>(layer, sparse, task, num_pages, lists); });
}

}  // namespace minicpm4::ISA
