// InfLLM v2: which blocks of 64 tokens a row attends to. The rule, with its source, is minicpm4/model/sparse.py; here are its numbers
// for one row and one kv head at a time. Compressed keys, the kernels, are scored as keys are: 64 of them are brought into the order of
// a page. Included once for each instruction set.
#pragma once

#include "attention.h"

namespace minicpm4::ISA {

// The mean of a kernel's keys as they are stored, added up token by token, into its place.
template <class Cache>
void compress_kernel(const KvLayer& layer, const KernelLayer& kernels, const int32_t* pages, int last_token, float* mean) {
  const int head_dim = layer.head_dim, size = kernels.shape.size, places = kernels.shape.places(), place = kernels.shape.place(last_token);
  for (int head = 0; head < layer.num_kv_heads; ++head) {
    for (int d = 0; d < head_dim; ++d) mean[d] = 0;
    for (int token = last_token - size + 1; token <= last_token; ++token) {
      const int page = pages[token / kPageTokens], at = token % kPageTokens;
      const auto* keys = reinterpret_cast<const typename Cache::Element*>(layer.key_page(page)) + head * layer.head_elements();
      const float scale = Cache::pack > 1 ? layer.key_scales(page)[head * kPageTokens + at] : 1.0f;
      for (int d = 0; d < head_dim; ++d) mean[d] += Cache::one(keys[key_at<Cache>(d, at)]) * scale;
    }
    for (int d = 0; d < head_dim; ++d) mean[d] *= 1.0f / static_cast<float>(size);
    uint8_t* stored = kernels.page(pages[last_token / kPageTokens], head);
    auto* elements = reinterpret_cast<typename Cache::Element*>(stored);
    store_heads<Cache>(head_dim, mean, 0, 1, place, kernels.scales(stored),
                       [&](size_t, int d) { return elements + (static_cast<size_t>(d / Cache::pack) * places + place) * Cache::pack + d % Cache::pack; });
  }
}

inline void compress(const KvLayer& layer, const KernelLayer& kernels, const int32_t* pages, int last_token, float* scratch) {
  with_cache(layer.format, [&](auto cache) { compress_kernel<decltype(cache)>(layer, kernels, pages, last_token, scratch); });
}

// What select works in, carved out of its scratch memory.
struct SelectScratch {
  float* attend;    // codes of the queries
  float* gathered;  // 64 kernels in the order of a page of keys, and their scales
  float* shares;    // [group heads][entries]
  float* scores;    // [entries], then of blocks
  float* largest;   // [group heads]: what shares are relative to, a logarithm to base 2 ...
  float* inverse;   // ... and what they are then multiplied with
  size_t entries;   // fine kernels' places, a multiple of 64

  SelectScratch(float* scratch, const KvLayer& layer, int group_heads, int num_pages, int places)
      : attend(scratch), gathered(attend + attend_scratch_floats(1, group_heads, layer.padded_dim())),
        shares(gathered + static_cast<size_t>(layer.padded_dim() + 1) * kPageTokens),
        scores(shares + group_heads * select_entries(num_pages, places)), largest(scores + select_entries(num_pages, places)),
        inverse(largest + group_heads), entries(select_entries(num_pages, places)) {}
};

// The kernels beside pages [first, last) of those of a sequence that have some, at most 64, in the order of a page of keys.
template <class Cache, int places>
void gather_kernels(const KvLayer& layer, const KernelLayer& kernels, const AttendTask& task, int first, int last, uint8_t* gathered, float* scales) {
  constexpr size_t run = sizeof(typename Cache::Element) * Cache::pack;
  const int chunks = layer.padded_dim() / Cache::pack;
  const size_t bytes = kernels.head_bytes(), scales_at = kernels.scales_at();
  const uint8_t* of_head = kernels.page(0, task.kv_head);
  const auto page_at = [&](int p) { return of_head + bytes * task.pages[kernels.shape.page_at(p)]; };
  for (int p = first; p < last; ++p) {
    const uint8_t* stored = page_at(p);
    if (p + 4 < last) for (size_t line = 0; line < bytes; line += 64) __builtin_prefetch(page_at(p + 4) + line);
    uint8_t* out = gathered + (p - first) * places * run;
    for (int c = 0; c < chunks; ++c) std::memcpy(out + c * kPageTokens * run, stored + c * places * run, places * run);
    if constexpr (Cache::pack > 1) std::memcpy(scales + (p - first) * places, stored + scales_at, places * sizeof(float));
  }
}

// Scores of the kernels at the first num_entries places against the heads of a group, into shares.
template <class Math>
void score_kernels(const KvLayer& layer, const KernelLayer& kernels, const AttendTask& task, int num_entries, const SelectScratch& scratch) {
  using Cache = typename Math::Cache;
  const QueryCode* codes = reinterpret_cast<const QueryCode*>(scratch.attend);
  auto* gathered = reinterpret_cast<typename Cache::Element*>(scratch.gathered);
  float* scales = scratch.gathered + static_cast<size_t>(layer.padded_dim()) * kPageTokens;
  const PageData<Cache> page{gathered, nullptr, scales, nullptr};
  const int num_places = kernels.shape.places(), together = kPageTokens / num_places, num_pages = (num_entries + num_places - 1) / num_places;
  for (int first = 0; first < num_pages; first += together) {
    const int last = first + together < num_pages ? first + together : num_pages;
    const auto gather = [&](auto places) {
      if (num_places == places) gather_kernels<Cache, places>(layer, kernels, task, first, last, reinterpret_cast<uint8_t*>(gathered), scales);
    };
    unroll<7>([&](auto i) { gather(std::integral_constant<int, 1 << i>{}); });
    int h = 0;
    const auto run = [&](auto rows) {
      if constexpr (rows <= kAttendRows) {
        for (; h + rows <= task.group_heads; h += rows) {
          AttendRow row[rows];
          for (int r = 0; r < rows; ++r) row[r] = {task.query(layer, h + r), codes[Math::code_bytes ? h + r : 0], {}, 0};
          alignas(64) float scored[rows][kPageTokens];
          Math::template score<rows>(page, page, layer.head_dim, task.group_heads, row, scored);
          for (int r = 0; r < rows; ++r) std::memcpy(scratch.shares + (h + r) * scratch.entries + first * num_places, scored[r], sizeof scored[r]);
        }
      }
    };
    run(std::integral_constant<int, 8>{});
    run(std::integral_constant<int, 4>{});
    run(std::integral_constant<int, 3>{});
    run(std::integral_constant<int, 1>{});
  }
}

// The largest of a head's scores at entries [first, last). Nothing else is looked at; what lies before counts as never seen from here on.
inline float largest_score(float* scores, int first, int last) {
  const f32x16 hidden = broadcast(-__builtin_inff());
  f32x16 best = hidden;
  for (int i = 0; i < first; ++i) scores[i] = -__builtin_inff();
  for (int i = 0; i < last; i += 16) best = max(best, keep_first(last - i, load(scores + i), hidden));
  return max_lane(best);
}

// Turns the first scores into powers of two, relative to `largest`; returns their sum. If it is not the largest of these, a score may be
// larger by more than can be said: infinite.
template <bool is_largest>
inline float weigh_scores(float* scores, int last, float largest) {
  const f32x16 zero = broadcast(0.0f);
  f32x16 total = zero;
  for (int i = 0; i < last; i += 16) {
    const f32x16 more = sub(load(scores + i), broadcast(largest));
    const f32x16 weight = keep_first(last - i, exp2(is_largest ? more : min(broadcast(128.0f), more)), zero);
    total = add(total, weight);
    store(scores + i, weight);
  }
  return sum(total);
}

// The rule's step 2 for the row at a position, into scores: the heads' shares, added up. With coarse kernels, if the row sees any, what
// shares are divided by comes from these, whose scores lie for a while where those of the fine ones will.
template <class Math>
void add_shares(const KvLayer& layer, const SparseLayer& sparse, const AttendTask& task, int position, const SelectScratch& scratch) {
  const KernelShape fine = sparse.rule.fine(), coarse = sparse.rule.coarse();
  const bool is_exact = !sparse.rule.has_coarse_lse || coarse.count(position + 1) == 0;
  const auto shares_of = [&](int head) { return scratch.shares + head * scratch.entries; };
  if constexpr (Math::code_bytes > 0) code_queries<Math::code_bytes>(layer, task, task.group_heads, reinterpret_cast<QueryCode*>(scratch.attend));
  if (!is_exact) {
    const int last = coarse.before() + coarse.count(position + 1);
    score_kernels<Math>(layer, sparse.coarse, task, last, scratch);
    for (int h = 0; h < task.group_heads; ++h) {
      scratch.largest[h] = largest_score(shares_of(h), coarse.before(), last);
      scratch.inverse[h] = 1.0f / weigh_scores<true>(shares_of(h), last, scratch.largest[h]);
    }
  }
  const int last = fine.before() + fine.count(position + 1);
  score_kernels<Math>(layer, sparse.fine, task, last, scratch);
  std::memset(scratch.scores, 0, scratch.entries * sizeof(float));
  for (int h = 0; h < task.group_heads; ++h) {
    float* shares = shares_of(h);
    const float largest = largest_score(shares, fine.before(), last);
    const float total = is_exact ? weigh_scores<true>(shares, last, largest) : weigh_scores<false>(shares, last, scratch.largest[h]);
    const f32x16 inverse = broadcast(is_exact ? 1.0f / total : scratch.inverse[h]);
    for (int i = 0; i < last; i += 16) store(scratch.scores + i, fma(load(shares + i), inverse, load(scratch.scores + i)));
  }
}

// The value of rank `count` among n values, none of them negative: as whole numbers their bits are in order.
inline int32_t ranked_bits(const int32_t* bits, int n, int count) {
  int32_t value = 0;
  for (int32_t bit = 1 << 30; bit > 0; bit >>= 1) {
    int above = 0;
    for (int i = 0; i < n; ++i) above += bits[i] >= (value | bit);
    if (above >= count) value |= bit;
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
    const int32_t* bits = reinterpret_cast<const int32_t*>(scores);
    const int32_t least = wanted ? ranked_bits(bits, between, wanted) : 0;
    int equal = wanted;  // of those that equal the last one taken, so many: the lower ones
    for (int i = 0; i < between; ++i) equal -= bits[i] > least;
    for (int i = 0; i < between && wanted; ++i)
      if (bits[i] > least || (bits[i] == least && equal-- > 0)) blocks[count++] = rule.init_blocks + i;
  }
  for (int b = first_local > count ? first_local : count; b <= own; ++b) blocks[count++] = b;
  return count;
}

template <class Math>
int select_blocks(const KvLayer& layer, const SparseLayer& sparse, const AttendTask& task, int num_pages, int32_t* blocks) {
  const SparseRule& rule = sparse.rule;
  const int position = task.positions[task.first_row], places = rule.fine().places(), before = rule.fine().before();
  const SelectScratch scratch(task.scratch, layer, task.group_heads, num_pages, places);
  const int last = before + rule.fine().count(position + 1);
  const int first_block = rule.init_blocks, num_between = rule.first_local(position) - first_block;
  if (num_between > 0 && rule.best_blocks > 0) {
    add_shares<Math>(layer, sparse, task, position, scratch);
    for (int i = 0; i < before; ++i) scratch.scores[i] = 0;
    for (int b = 0; b < num_between; ++b) {  // a block's kernels begin with the one that ends first in it; written before they are read again
      const int from = (first_block + b) * places, to = from + places + before;
      float best = 0;
      for (int i = from; i < to && i < last; ++i) best = scratch.scores[i] > best ? scratch.scores[i] : best;
      scratch.scores[b] = best;
    }
  }
  return choose_blocks(rule, position, scratch.scores, blocks);
}

inline int select(const KvLayer& layer, const SparseLayer& sparse, const AttendTask& task, int num_pages, int32_t* blocks) {
  return with_math(layer, task, [&](auto math) { return select_blocks<decltype(math)>(layer, sparse, task, num_pages, blocks); });
}

}  // namespace minicpm4::ISA
