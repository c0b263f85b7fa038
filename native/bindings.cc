// Python's view of the native executor. Shapes were checked by the caller; sizes are checked here once more, by name.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <numeric>
#include <optional>
#include <random>
#include <stdexcept>
#include <tuple>

#include "cpu.h"
#include "custom_ops.h"
#include "half.h"
#include "packed_file.h"
#include "packing.h"
#include "program.h"

namespace nb = nanobind;
using namespace minicpm4;

namespace {

using Ints = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Pages = nb::ndarray<const int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Branches = std::tuple<Ints, Ints, Ints, Ints, Ints>;  // pages to copy from and to; more_starts, more_slots and fresh of a StepView
using Floats = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<const uint8_t, nb::ndim<2>, nb::device::cpu>;

constexpr const char* kFormatNames[kNumFormats] = {"f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q4_k", "q5_k", "q6_k", "tq1_0", "tq2_0", "q2_0", "q2_0_g128",
                                                    "ternary_g32", "ternary_g64", "ternary_g128", "ternary_g256"};

Format format_named(const std::string& name) {
  for (int i = 0; i < kNumFormats; ++i)
    if (name == kFormatNames[i]) return static_cast<Format>(i);
  throw std::invalid_argument("no format " + name);
}

KvFormat kv_format_named(const std::string& name) {
  if (name == "f32") return KvFormat::f32;
  if (name == "f16") return KvFormat::f16;
  if (name == "bf16") return KvFormat::bf16;
  if (name == "int8") return KvFormat::int8;
  throw std::invalid_argument("no KV format " + name);
}

// The instruction sets that were built and that this CPU has, best first.
std::vector<const Kernels*> usable_kernels() {
  const Cpu cpu = this_cpu();
  std::vector<const Kernels*> found;
  if (cpu.amx && kernels_amx()) found.push_back(kernels_amx());
  if (cpu.avx512 && kernels_avx512()) found.push_back(kernels_avx512());
  if (cpu.avx2 && kernels_avx2()) found.push_back(kernels_avx2());
  if (cpu.neon_i8mm && kernels_neon_i8mm()) found.push_back(kernels_neon_i8mm());
  if (cpu.neon && kernels_neon()) found.push_back(kernels_neon());
  found.push_back(kernels_generic());
  return found;
}

const Kernels& kernels_named(const std::string& isa) {
  for (const Kernels* kernels : usable_kernels())
    if (isa == kernels->name) return *kernels;
  throw std::invalid_argument("this machine cannot run " + isa);
}

struct PackedWeight {
  std::shared_ptr<const Arena> arena;
  Weight weight;
};

PackedWeight pack(const std::string& format_name, int rows, int columns, const Bytes& stored, ThreadPool& pool, const std::shared_ptr<Arena>& arena) {
  const Format format = format_named(format_name);
  const size_t row_bytes = columns / block_columns(format) * block_bytes(format);
  if (columns % block_columns(format) != 0 || stored.shape(0) != static_cast<size_t>(rows) || stored.shape(1) != row_bytes || stored.stride(1) != 1)
    throw std::invalid_argument("stored bytes do not fit the shape");
  Weight weight{kernel_format(format), rows, columns, tile_bytes_of(format, columns), nullptr};
  uint8_t* data = arena->take(weight.tile_bytes * weight.num_tiles());
  weight.data = data;
  const size_t stride = stored.stride(0);
  const nb::gil_scoped_release unlocked;
  pool.run([&](int worker) {
    for (int tile = worker; tile < weight.num_tiles(); tile += pool.size())
      pack_tile(format, stored.data(), stride, rows, columns, tile, data + weight.tile_bytes * tile);
  });
  return {arena, weight};
}

// A weight that was packed before, from `file` at `offset`. RuntimeError where it cannot be read, or is not what was written.
PackedWeight read_packed(const std::string& format_name, int rows, int columns, int file, size_t offset, uint64_t sum, ThreadPool& pool,
                         const std::shared_ptr<Arena>& arena) {
  const Format format = format_named(format_name);
  if (rows < 1 || columns < 1 || columns % block_columns(format) != 0) throw std::invalid_argument("the format does not fit the shape");
  Weight weight{kernel_format(format), rows, columns, tile_bytes_of(format, columns), nullptr};
  const size_t count = weight.tile_bytes * weight.num_tiles();
  uint8_t* data = arena->take(count);
  weight.data = data;
  const nb::gil_scoped_release unlocked;
  if (read_and_sum(pool, file, offset, data, count) != sum) throw std::runtime_error("the checksum is wrong");
  return {arena, weight};
}

template <class T>
nb::ndarray<nb::numpy, T> owned_array(std::vector<size_t> shape, T*& data) {
  data = new T[std::accumulate(shape.begin(), shape.end(), size_t{1}, std::multiplies<>())]();
  nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<T*>(p); });
  return nb::ndarray<nb::numpy, T>(data, shape.size(), shape.data(), owner);
}

nb::ndarray<nb::numpy, float> unpack(const PackedWeight& packed, int first, int last) {
  const size_t count = last - first, columns = packed.weight.columns;
  if (first < 0 || last < first || last > packed.weight.rows) throw std::out_of_range("rows out of range");
  float* out;
  auto array = owned_array({count, columns}, out);
  for (int row = first; row < last; ++row) unpack_row(packed.weight, row, out + (row - first) * columns);
  return array;
}

void require(bool is_right, const char* what) {
  if (!is_right) throw std::invalid_argument(what);
}

void require_range(const int32_t* values, int count, int64_t limit, const char* what) {
  for (int i = 0; i < count; ++i) require(0 <= values[i] && values[i] < limit, what);
}

void check_copies(const Ints& sources, const Ints& targets, int num_pages) {
  const int count = static_cast<int>(sources.size());
  require(targets.size() == sources.size(), "one target a source");
  require_range(sources.data(), count, num_pages, "a page to copy is not in the cache");
  require_range(targets.data(), count, num_pages, "a page to copy to is not in the cache");
}

void make_copies(Program& program, const Ints& sources, const Ints& targets) {
  for (size_t i = 0; i < sources.size(); ++i)
    if (sources.data()[i] != targets.data()[i]) program.copy_page(sources.data()[i], targets.data()[i]);
}

// The arrays of a step that say what the others must be; see Step and LinearStep in src/minicpm4/model. Kernels believe a step: here is where a
// wrong one stops. Positions and slots follow from it, so that nobody can state them wrongly.
struct CheckedStep {
  std::vector<int32_t> positions, slots;
  StepView view;

  CheckedStep(const Program& program, const Ints& tokens, const Ints& starts, const Ints& lengths, const Pages& pages, const Ints& logit_rows, const Ints& numerics,
              const Ints& adapters, const std::optional<Branches>& branches)
      : positions(tokens.size()), slots(tokens.size()) {
    const Program::Options& options = program.options();
    const int num_rows = static_cast<int>(tokens.size()), num_sequences = static_cast<int>(lengths.size());
    require(num_rows <= options.max_rows && logit_rows.size() <= static_cast<size_t>(options.max_rows), "a step has more rows than the program was made for");
    require(starts.size() == lengths.size() + 1 && pages.shape(0) == lengths.size() && numerics.size() == lengths.size() && adapters.size() == lengths.size(),
            "one start, length, tag of numerics, adapter and row of pages a sequence");
    require_range(adapters.data(), num_sequences, 1, "the executor has no adapters");
    require_range(tokens.data(), num_rows, program.num_tokens(), "a token is not in the vocabulary");
    require_range(logit_rows.data(), static_cast<int>(logit_rows.size()), num_rows, "a row of logits is not in the step");
    require_range(numerics.data(), num_sequences, options.has_bf16_prompts ? kBf16 + 1 : kOrdinary + 1, "a tag of numerics is unknown");
    for (size_t i = 1; i < logit_rows.size() && !branches; ++i) require(logit_rows.data()[i - 1] < logit_rows.data()[i], "rows of logits do not ascend");
    require(starts.data()[0] == 0 && starts.data()[num_sequences] == num_rows, "starts do not cover the rows");
    writers_.assign(program.num_all_pages(), -1);
    for (int s = 0; s < num_sequences; ++s) place_rows(s, starts.data(), lengths.data()[s], pages, branches ? program.num_all_pages() : options.num_pages);
    view = {.tokens = tokens.data(),
            .positions = positions.data(),
            .slots = slots.data(),
            .starts = starts.data(),
            .lengths = lengths.data(),
            .pages = pages.data(),
            .logit_rows = logit_rows.data(),
            .numerics = numerics.data(),
            .num_tokens = num_rows,
            .num_sequences = num_sequences,
            .pages_stride = static_cast<int>(pages.shape(1)),
            .num_logits = static_cast<int>(logit_rows.size())};
    if (branches) add_branches(program, *branches);
  }

 private:
  std::vector<int32_t> writers_;  // the sequence that writes into each page

  void place_rows(int sequence, const int32_t* starts, int length, const Pages& pages, int most_pages) {
    const int first = starts[sequence], last = starts[sequence + 1], num_pages = length / kPageTokens + (length % kPageTokens > 0);
    require(first <= last && last <= static_cast<int>(positions.size()), "starts do not rise");
    require(length >= 0 && last - first <= length, "a sequence is shorter than its rows");
    require(num_pages <= static_cast<int>(pages.shape(1)), "a sequence is longer than its pages");
    const int32_t* own = pages.data() + static_cast<size_t>(sequence) * pages.shape(1);
    require_range(own, num_pages, most_pages, "a page is not in the cache");
    for (int row = first, position = length - (last - first); row < last; ++row, ++position) {
      int32_t& writer = writers_[own[position / kPageTokens]];
      require(writer < 0 || writer == sequence, "two sequences write into one page");
      writer = sequence;
      positions[row] = position;
      slots[row] = own[position / kPageTokens] * kPageTokens + position % kPageTokens;
    }
  }

  void add_branches(const Program& program, const Branches& branches) {
    const auto& [sources, targets, starts, more_slots, fresh] = branches;
    check_copies(sources, targets, program.num_all_pages());
    require(starts.size() == positions.size() + 1 && starts.data()[0] == 0 && starts.data()[positions.size()] == static_cast<int>(more_slots.size()),
            "further slots do not cover the rows");
    for (size_t row = 0; row < positions.size(); ++row) require(starts.data()[row] <= starts.data()[row + 1], "further slots do not rise");
    require_range(more_slots.data(), static_cast<int>(more_slots.size()), int64_t{program.num_all_pages()} * kPageTokens, "a slot is not in the cache");
    require(fresh.size() == static_cast<size_t>(view.num_sequences), "one fresh token a sequence");
    for (int s = 0; s < view.num_sequences; ++s) require(0 <= fresh.data()[s] && fresh.data()[s] <= view.lengths[s], "a fresh token is not in its sequence");
    view.more_starts = starts.data(), view.more_slots = more_slots.data(), view.fresh = fresh.data();
  }
};

// Rows of a buffer of the newest run, a view.
nb::ndarray<nb::numpy, float> rows_of(Program& program, int buffer, size_t rows) {
  const size_t shape[2] = {rows, static_cast<size_t>(program.columns_of(buffer))};
  const int64_t strides[2] = {program.stride_of(buffer), 1};
  return nb::ndarray<nb::numpy, float>(program.row(buffer, 0), 2, shape, nb::find(program), strides);
}

// Logits, the largest of each task's, and the hidden states where the program keeps them: views, valid until the next run.
nb::tuple run(Program& program, const Ints& tokens, const Ints& starts, const Ints& lengths, const Pages& pages, const Ints& logit_rows, const Ints& numerics,
              const Ints& adapters, const std::optional<Branches>& branches) {
  const CheckedStep step(program, tokens, starts, lengths, pages, logit_rows, numerics, adapters, branches);
  {
    const nb::gil_scoped_release unlocked;
    if (branches) make_copies(program, std::get<0>(*branches), std::get<1>(*branches));
    program.run(step.view);
  }
  const auto optional = [&](int buffer) { return buffer < 0 ? nb::object(nb::none()) : nb::cast(rows_of(program, buffer, logit_rows.size())); };
  return nb::make_tuple(rows_of(program, program.result_buffer(), logit_rows.size()), optional(program.maxima_buffer()), optional(program.hidden_buffer()));
}

// Rows of a draft tree, ascending, become the tokens from `start` on of the sequence that has these pages.
void copy_slots(Program& program, const Ints& pages, int start, const Ints& rows) {
  const int count = static_cast<int>(rows.size());
  const int64_t last = count ? int64_t{start} + rows.data()[count - 1] : start;
  require(start >= 0 && last / kPageTokens < static_cast<int64_t>(pages.size()), "a row is not in its sequence's pages");
  require_range(pages.data(), static_cast<int>(pages.size()), program.options().num_pages, "a page is not in the cache");
  for (int i = 0; i < count; ++i) require(rows.data()[i] >= (i ? rows.data()[i - 1] + 1 : 0), "rows do not ascend");
  const nb::gil_scoped_release unlocked;
  for (int i = 0; i < count; ++i) {
    if (rows.data()[i] != i) program.copy_token(pages.data(), start + rows.data()[i], start + i);
    program.compress_at(pages.data(), start + i);
  }
}

// [sparse rows][kv heads][the most blocks], ascending; -1 follows.
nb::ndarray<nb::numpy, int32_t> chosen_blocks_of(const Program& program) {
  const size_t rows = program.num_sparse_rows(), heads = program.options().num_kv_heads, most = program.options().sparse.max_blocks();
  int32_t* out;
  auto array = owned_array({rows, heads, most}, out);
  std::fill_n(out, rows * heads * most, -1);
  for (size_t list = 0; list < rows * heads; ++list) std::ranges::copy(program.chosen_blocks(list / heads, list % heads), out + list * most);
  return array;
}

void randomize(Program& program, const Ints& pages, uint64_t seed) {
  require_range(pages.data(), static_cast<int>(pages.size()), program.options().num_pages, "a page is not in the cache");
  const nb::gil_scoped_release unlocked;
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> sample(4099);  // a prime length, so that no two rows line up
  for (float& x : sample) x = normal(random);
  const Program::Options& shape = program.options();
  std::vector<float> row(static_cast<size_t>(shape.num_kv_heads) * shape.head_dim);
  size_t at = 0;
  for (int l = 0; l < shape.num_layers; ++l) {
    for (size_t i = 0; i < pages.size() * kPageTokens; ++i) {
      for (float& x : row) x = sample[at = at + 1 == sample.size() ? 0 : at + 1];
      program.store(l, row.data(), pages.data(), static_cast<int>(i));
    }
  }
}

void copy_pages(Program& program, const Ints& sources, const Ints& targets) {
  check_copies(sources, targets, program.options().num_pages);
  const nb::gil_scoped_release unlocked;
  make_copies(program, sources, targets);
}

// Bytes a second of reading `bytes` of memory from end to end with the whole pool; the best of `repeats`.
double read_bandwidth(const std::string& isa, ThreadPool& pool, size_t bytes, int repeats) {
  const Kernels& kernels = kernels_named(isa);
  const Memory memory(bytes, true);
  const size_t share = bytes / sizeof(float) / pool.size() / 64 * 64;
  float* data = memory.as<float>();
  std::vector<float> sums(pool.size() * 16);
  double best = 0;
  const nb::gil_scoped_release unlocked;
  pool.run([&](int worker) { for (size_t i = 0; i < share; i += 16) data[worker * share + i] = 1; });
  for (int i = 0; i < repeats; ++i) {
    const auto start = std::chrono::steady_clock::now();
    pool.run([&](int worker) { sums[worker * 16] += kernels.read_all(data + worker * share, share); });
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    best = std::max(best, share * pool.size() * sizeof(float) / seconds.count());
  }
  return best;
}

// Operations a second of the whole pool, of the best of `repeats` runs of at least 10 ms; nothing where this machine has no such unit.
std::optional<double> peak_rate(const std::string& isa, const std::string& number, ThreadPool& pool, int repeats) {
  const Kernels& kernels = kernels_named(isa);
  require(number == "int8" || number == "f32" || number == "bf16", "a peak is of int8, f32 or bf16");
  const PeakFunction compute = number == "int8" ? kernels.peak_int8 : number == "f32" ? kernels.peak_f32 : kernels.peak_bf16 ? kernels.peak_bf16 : peak_bf16_dot();
  if (!compute) return std::nullopt;
  double best = 0;
  const nb::gil_scoped_release unlocked;
  for (size_t rounds = 1024; repeats > 0;) {
    std::vector<double> operations(pool.size() * 8);
    const auto start = std::chrono::steady_clock::now();
    pool.run([&](int worker) { operations[worker * 8] = compute(rounds); });
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    if (seconds.count() < 0.01) {
      rounds *= 2;
      continue;
    }
    best = std::max(best, std::accumulate(operations.begin(), operations.end(), 0.0) / seconds.count());
    --repeats;
  }
  return best;
}

}  // namespace

NB_MODULE(_native, m) {
  nb::class_<ThreadPool>(m, "ThreadPool").def(nb::init<int>()).def_prop_ro("size", &ThreadPool::size);

  nb::class_<Arena>(m, "Arena").def(nb::init<>());
  nb::class_<PackedWeight>(m, "PackedWeight")
      .def_prop_ro("nbytes", [](const PackedWeight& p) { return p.weight.tile_bytes * p.weight.num_tiles(); })
      .def("checksum", [](const PackedWeight& p, ThreadPool& pool) { return checksum(pool, p.weight.data, p.weight.tile_bytes * p.weight.num_tiles()); }, nb::arg("pool"))
      .def("bytes", [](const PackedWeight& p) {
             const size_t shape[1] = {p.weight.tile_bytes * p.weight.num_tiles()};
             return nb::ndarray<nb::numpy, const uint8_t>(p.weight.data, 1, shape, nb::find(p));
           })
      .def("unpack", &unpack, nb::arg("first"), nb::arg("last"));
  m.def("pack", &pack, nb::arg("format"), nb::arg("rows"), nb::arg("columns"), nb::arg("stored"), nb::arg("pool"), nb::arg("arena"));
  m.def("read_packed", &read_packed, nb::arg("format"), nb::arg("rows"), nb::arg("columns"), nb::kw_only(), nb::arg("file"), nb::arg("offset"),
        nb::arg("checksum"), nb::arg("pool"), nb::arg("arena"));
  m.def("packed_bytes", [](const std::string& format, int rows, int columns) {
    return round_up(rows, kTileRows) / kTileRows * tile_bytes_of(format_named(format), columns);
  }, nb::arg("format"), nb::arg("rows"), nb::arg("columns"));
  m.attr("PACKED_FORM") = MINICPM4_PACKED_FORM;
  m.def("usable_isas", [] {
    std::vector<std::string> names;
    for (const Kernels* kernels : usable_kernels()) names.emplace_back(kernels->name);
    return names;
  });
  m.def("has_bf16_matrices", [](const std::string& isa) { return kernels_named(isa).multiply_bf16 != nullptr; }, nb::arg("isa"));
  m.def("read_bandwidth", &read_bandwidth, nb::arg("isa"), nb::arg("pool"), nb::arg("bytes"), nb::arg("repeats"));
  m.def("peak_rate", &peak_rate, nb::arg("isa"), nb::arg("number"), nb::arg("pool"), nb::arg("repeats"));

  nb::enum_<Op>(m, "Op")
      .value("embed", Op::embed).value("scale", Op::scale).value("rms_norm", Op::rms_norm).value("add_scaled", Op::add_scaled)
      .value("rms_norm_heads", Op::rms_norm_heads).value("add_bias", Op::add_bias)
      .value("swiglu", Op::swiglu).value("rotation", Op::rotation).value("rope", Op::rope).value("take", Op::take)
      .value("quantize", Op::quantize).value("store_keys", Op::store_keys).value("store_values", Op::store_values)
      .value("linear", Op::linear).value("attend", Op::attend).value("merge", Op::merge).value("block_maxima", Op::block_maxima)
      .value("compress_keys", Op::compress_keys).value("select_blocks", Op::select_blocks);

  nb::enum_<PhaseKind>(m, "PhaseKind")
      .value("rows", PhaseKind::rows).value("products", PhaseKind::products).value("tasks", PhaseKind::tasks);

  nb::class_<SparseRule>(m, "SparseRule")
      .def("__init__",
           [](SparseRule* self, int kernel_size, int kernel_stride, int init_blocks, int local_blocks, int best_blocks, int dense_len, bool has_coarse_lse) {
             const bool fits = kernel_stride > 0 && kPageTokens % kernel_stride == 0 && kernel_size >= kernel_stride && kernel_size % kernel_stride == 0 &&
                               kernel_size <= kPageTokens && init_blocks > 0 && local_blocks > 0 && best_blocks >= 0;
             if (!fits) throw std::invalid_argument("not a rule for blocks of 64 tokens");
             new (self) SparseRule{kernel_size, kernel_stride, init_blocks, local_blocks, best_blocks, dense_len, has_coarse_lse};
           },
           nb::kw_only(), nb::arg("kernel_size"), nb::arg("kernel_stride"), nb::arg("init_blocks"), nb::arg("local_blocks"), nb::arg("best_blocks"),
           nb::arg("dense_len"), nb::arg("has_coarse_lse"));

  nb::class_<Program>(m, "Program")
      .def("__init__",
           [](Program* self, const std::string& isa, ThreadPool& pool, int max_rows, int code_bytes, bool has_bf16_prompts, int num_pages, int num_layers, int num_heads, int num_kv_heads,
              int head_dim, const std::string& kv_format, std::optional<SparseRule> sparse) {
             new (self) Program(kernels_named(isa), pool, {max_rows, code_bytes, has_bf16_prompts, num_pages, num_layers, num_kv_heads, head_dim, num_heads / num_kv_heads,
                                                           kv_format_named(kv_format), sparse.value_or(SparseRule{})});
           },
           nb::arg("isa"), nb::arg("pool"), nb::kw_only(), nb::arg("max_rows"), nb::arg("code_bytes"), nb::arg("has_bf16_prompts"), nb::arg("num_pages"), nb::arg("num_layers"), nb::arg("num_heads"),
           nb::arg("num_kv_heads"), nb::arg("head_dim"), nb::arg("kv_format"), nb::arg("sparse").none(), nb::keep_alive<1, 3>())
      .def("add_weight", [](Program& p, const PackedWeight& w) { return p.add_weight(w.arena, w.weight); })
      .def("add_vector", [](Program& p, const Floats& values) { return p.add_vector(values.data(), static_cast<int>(values.size())); })
      .def("add_buffer", &Program::add_buffer, nb::arg("columns"), nb::arg("is_local") = false)
      .def("begin_phase", &Program::begin_phase, nb::arg("kind"), nb::arg("over_logit_rows"))
      .def("begin_job", &Program::begin_job)
      .def("add",
           [](Program& p, Op op, int out, int a, int b, int weight, int vector, int layer, float factor) {
             p.add({op, out, a, b, weight, vector, layer, factor});
           },
           nb::arg("op"), nb::kw_only(), nb::arg("out"), nb::arg("a"), nb::arg("b"), nb::arg("weight"), nb::arg("vector"), nb::arg("layer"), nb::arg("factor"))
      .def_prop_ro("kv_bytes", &Program::kv_bytes)
      .def_prop_ro("task_columns", &Program::task_columns)
      .def("chosen_blocks", &chosen_blocks_of)
      .def("run", &run, nb::arg("tokens"), nb::arg("starts"), nb::arg("lengths"), nb::arg("pages"), nb::arg("logit_rows"), nb::arg("numerics"),
           nb::arg("adapters"), nb::arg("branches").none() = nb::none())
      .def("copy_slots", &copy_slots, nb::arg("pages"), nb::arg("start"), nb::arg("rows"))
      .def("keep_hidden", [](Program& program, int buffer) { program.keep_hidden(buffer); }, nb::arg("buffer"))
      .def_prop_ro("tree_pages", [](const Program& program) { return nb::make_tuple(program.options().num_pages, program.num_all_pages()); })
      .def("copy_pages", &copy_pages, nb::arg("sources"), nb::arg("targets"))
      .def("randomize", &randomize, nb::arg("pages"), nb::arg("seed"));

  // For custom operations of graphs, see custom_ops.h: an address is valid as long as its object.
  nb::class_<SharedThreadPool>(m, "SharedThreadPool").def(nb::init<int>(), nb::arg("workers"));
  nb::class_<WeightHandle>(m, "WeightHandle")
      .def("__init__",
           [](WeightHandle* self, const std::string& isa, const std::shared_ptr<SharedThreadPool>& pool, const PackedWeight& packed) {
             new (self) WeightHandle(kernels_named(isa), pool, packed.arena, packed.weight);
           },
           nb::arg("isa"), nb::arg("pool"), nb::arg("packed"))
      .def_prop_ro("address", [](const WeightHandle& handle) { return reinterpret_cast<int64_t>(&handle); });
  nb::class_<AttentionHandle>(m, "AttentionHandle")
      .def("__init__",
           [](AttentionHandle* self, const std::string& isa, const std::shared_ptr<SharedThreadPool>& pool, int max_rows, int num_pages, int num_layers, int num_heads,
              int num_kv_heads, int head_dim, const std::string& kv_format, std::optional<SparseRule> sparse) {
             new (self) AttentionHandle(kernels_named(isa), pool, {max_rows, 0, false, num_pages, num_layers, num_kv_heads, head_dim, num_heads / num_kv_heads,
                                                                   kv_format_named(kv_format), sparse.value_or(SparseRule{})});
           },
           nb::arg("isa"), nb::arg("pool"), nb::kw_only(), nb::arg("max_rows"), nb::arg("num_pages"), nb::arg("num_layers"), nb::arg("num_heads"),
           nb::arg("num_kv_heads"), nb::arg("head_dim"), nb::arg("kv_format"), nb::arg("sparse").none())
      .def_prop_ro("address", [](const AttentionHandle& handle) { return reinterpret_cast<int64_t>(&handle); })
      .def_prop_ro("kv_bytes", [](AttentionHandle& handle) { return handle.program().kv_bytes(); })
      .def("copy_pages", [](AttentionHandle& handle, const Ints& sources, const Ints& targets) { copy_pages(handle.program(), sources, targets); },
           nb::arg("sources"), nb::arg("targets"))
      .def("randomize", [](AttentionHandle& handle, const Ints& pages, uint64_t seed) { randomize(handle.program(), pages, seed); }, nb::arg("pages"),
           nb::arg("seed"));
}
