// Zeroed, page-aligned memory straight from the system: pages come when touched, and go back at once when freed.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <new>
#include <utility>
#include <vector>

namespace minicpm4 {

class Memory {
 public:
  Memory() = default;
  // is_hot: read often and from end to end, so ask for huge pages, and begin on one.
  Memory(size_t bytes, bool is_hot) : bytes_(bytes), mapped_(bytes + (is_hot ? kHugePage : 0)) {
    if (bytes == 0) return;
    map_ = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map_ == MAP_FAILED) {
      map_ = nullptr;
      throw std::bad_alloc();
    }
    data_ = map_;
    if (!is_hot) return;
    data_ = reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(map_) + kHugePage - 1) / kHugePage * kHugePage);
#ifdef MADV_HUGEPAGE
    madvise(data_, bytes, MADV_HUGEPAGE);
#endif
  }
  Memory(Memory&& other) noexcept { *this = std::move(other); }
  Memory& operator=(Memory&& other) noexcept {
    std::swap(map_, other.map_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(mapped_, other.mapped_);
    return *this;
  }
  ~Memory() {
    if (map_) munmap(map_, mapped_);
  }

  template <class T>
  T* as() const { return static_cast<T*>(data_); }
  size_t bytes() const { return bytes_; }

 private:
  static constexpr size_t kHugePage = size_t{2} << 20;
  void *map_ = nullptr, *data_ = nullptr;
  size_t bytes_ = 0, mapped_ = 0;
};

// Hot pieces of all sizes, one after the other in few large memories: huge pages then cover the small ones too.
class Arena {
 public:
  Arena() = default;
  Arena(const Arena&) = delete;

  // 64-byte aligned, zeroed, valid as long as the arena.
  uint8_t* take(size_t bytes) {
    bytes = (bytes + 63) / 64 * 64;
    if (chunks_.empty() || used_ + bytes > chunks_.back().bytes()) {
      chunks_.emplace_back(bytes > kChunk ? bytes : kChunk, true);
      used_ = 0;
    }
    used_ += bytes;
    return chunks_.back().as<uint8_t>() + used_ - bytes;
  }

 private:
  static constexpr size_t kChunk = size_t{256} << 20;  // of addresses: pages come when touched
  std::vector<Memory> chunks_;
  size_t used_ = 0;
};

}  // namespace minicpm4
