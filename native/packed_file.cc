#include "packed_file.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

namespace minicpm4 {
namespace {

constexpr size_t kPiece = size_t{1} << 20;

uint64_t mixed(uint64_t hash, uint64_t word) {
  hash = (hash ^ word) * 0x9e3779b97f4a7c15u;  // one to one, as is the shift: a word that differs alone always shows
  return hash ^ hash >> 32;
}

// Eight chains, since one would wait for its multiplications.
uint64_t sum_piece(const uint8_t* data, size_t count) {
  uint64_t hashes[8], total = count;
  for (int i = 0; i < 8; ++i) hashes[i] = i;
  for (; count >= 64; data += 64, count -= 64) {
    uint64_t words[8];
    std::memcpy(words, data, 64);
    for (int i = 0; i < 8; ++i) hashes[i] = mixed(hashes[i], words[i]);
  }
  for (; count > 0; ++data, --count) total = mixed(total, *data);
  for (const uint64_t hash : hashes) total = mixed(total, hash);
  return total;
}

void read_piece(int file, size_t offset, uint8_t* data, size_t count) {
  while (count > 0) {
    const ssize_t got = pread(file, data, count, static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw std::runtime_error(std::strerror(errno));
    if (got == 0) throw std::runtime_error("the file is too short");
    offset += got, data += got, count -= got;
  }
}

// The checksums of all pieces put together; prepare(at, size) comes before a piece is summed, on the same thread.
template <class Prepare>
uint64_t sum_pieces(ThreadPool& pool, const uint8_t* data, size_t count, Prepare prepare) {
  const size_t num_ranges = (count + kPiece - 1) / kPiece;
  std::vector<uint64_t> sums(num_ranges);
  std::atomic<size_t> next{0};
  pool.run([&](int) {
    for (size_t piece; (piece = next.fetch_add(1, std::memory_order_relaxed)) < num_ranges;) {
      const size_t at = piece * kPiece, size = std::min(kPiece, count - at);
      prepare(at, size);
      sums[piece] = sum_piece(data + at, size);
    }
  });
  uint64_t total = count;
  for (const uint64_t sum : sums) total = mixed(total, sum);
  return total;
}

}  // namespace

uint64_t checksum(ThreadPool& pool, const uint8_t* data, size_t count) {
  return sum_pieces(pool, data, count, [](size_t, size_t) {});
}

uint64_t read_and_sum(ThreadPool& pool, int file, size_t offset, uint8_t* data, size_t count) {
  std::atomic<bool> is_broken{false};
  std::string problem;
  const uint64_t sum = sum_pieces(pool, data, count, [&](size_t at, size_t size) {
    try {
      read_piece(file, offset + at, data + at, size);
    } catch (const std::runtime_error& error) {  // an exception must not leave a thread of the pool
      if (!is_broken.exchange(true)) problem = error.what();
    }
  });
  if (is_broken) throw std::runtime_error(problem);
  return sum;
}

}  // namespace minicpm4
