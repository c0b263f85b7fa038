// Packed weights in a file of ours: their checksum, and reading them back with all threads.
#pragma once

#include <cstddef>
#include <cstdint>

#include "threads.h"

namespace minicpm4 {

// Of bytes [0, count), in pieces that the pool shares; the same for any pool. It finds damage, not forgery.
uint64_t checksum(ThreadPool& pool, const uint8_t* data, size_t count);

// Reads `count` bytes of the file at `offset` into `data` and returns their checksum; each piece is summed while it is in the
// cache. std::runtime_error where the file cannot be read or ends before.
uint64_t read_and_sum(ThreadPool& pool, int file, size_t offset, uint8_t* data, size_t count);

}  // namespace minicpm4
