#include "threads.h"

#include <sched.h>
#include <unistd.h>

#include <stdexcept>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace minicpm4 {
namespace {

constexpr int kSpins = 20000;  // about 100 microseconds; a longer wait means that somebody lost the core

inline void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

template <class Done>
inline bool spin_until(Done done) {
  for (int i = 0; i < kSpins; ++i) {
    if (done()) return true;
    relax();
  }
  return false;
}

// Binds the calling thread to the worker's core; keeps the former set so that a caller's thread gets it back.
class Binding {
 public:
  Binding(int worker, bool is_wanted) {
    if (!is_wanted || sched_getaffinity(0, sizeof before_, &before_) != 0) return;
    const int count = CPU_COUNT(&before_);
    int wanted = worker % count;
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (!CPU_ISSET(cpu, &before_) || wanted-- > 0) continue;
      cpu_set_t one;
      CPU_ZERO(&one);
      CPU_SET(cpu, &one);
      is_bound_ = sched_setaffinity(0, sizeof one, &one) == 0;
      return;
    }
  }
  ~Binding() {
    if (is_bound_) sched_setaffinity(0, sizeof before_, &before_);
  }

 private:
  cpu_set_t before_;
  bool is_bound_ = false;
};

}  // namespace

void Barrier::wait() {
  if (num_workers_ == 1) return;
  const int round = round_.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) == num_workers_ - 1) {
    arrived_.store(0, std::memory_order_relaxed);
    round_.store(round + 1, std::memory_order_release);
    round_.notify_all();
    return;
  }
  if (spin_until([&] { return round_.load(std::memory_order_acquire) != round; })) return;
  while (round_.load(std::memory_order_acquire) == round) round_.wait(round, std::memory_order_acquire);
}

ThreadPool::ThreadPool(int workers) : size_(workers), barrier_(workers), process_(getpid()) {
  cpu_set_t usable;
  is_binding_ = sched_getaffinity(0, sizeof usable, &usable) == 0 && CPU_COUNT(&usable) == workers;
  try {
    for (int worker = 1; worker < workers; ++worker) threads_->emplace_back([this, worker] { serve(worker); });
  } catch (...) {  // the system has no more threads: those that there are must not outlive the pool
    close();
    throw;
  }
}

ThreadPool::~ThreadPool() {
  if (getpid() == process_) {
    close();
    return;
  }
  // A forked child has none of the threads: to join or detach them, or to destroy what they wait for, would fail or never end.
  static_cast<void>(threads_.release());
  static_cast<void>(wake_.release());
}

void ThreadPool::close() {
  {
    const std::lock_guard lock(mutex_);
    is_closing_ = true;
    call_.fetch_add(1, std::memory_order_release);
  }
  wake_->notify_all();
  for (auto& thread : *threads_) thread.join();
  threads_->clear();
}

void ThreadPool::run(const std::function<void(int)>& work) {
  if (size_ == 1) return work(0);
  if (getpid() != process_) throw std::runtime_error("a pool of threads does not survive a fork");
  {
    const std::lock_guard lock(mutex_);
    work_ = &work;
    unfinished_.store(size_ - 1, std::memory_order_relaxed);
    call_.fetch_add(1, std::memory_order_release);
  }
  wake_->notify_all();
  {
    const Binding binding(0, is_binding_);
    work(0);
  }
  const auto is_done = [&] { return unfinished_.load(std::memory_order_acquire) == 0; };
  if (!spin_until(is_done))
    for (int left; (left = unfinished_.load(std::memory_order_acquire)) != 0;) unfinished_.wait(left, std::memory_order_acquire);
}

void ThreadPool::serve(int worker) {
  const Binding binding(worker, is_binding_);
  int seen = 0;
  for (;;) {
    // Spinning first saves a wake-up between the steps of a decode; an idle pool is asleep soon after.
    if (!spin_until([&] { return call_.load(std::memory_order_acquire) != seen; })) {
      std::unique_lock lock(mutex_);
      wake_->wait(lock, [&] { return call_.load(std::memory_order_acquire) != seen; });
    }
    const std::function<void(int)>* work;
    {
      const std::lock_guard lock(mutex_);
      seen = call_.load(std::memory_order_relaxed);
      if (is_closing_) return;
      work = work_;
    }
    (*work)(worker);
    if (unfinished_.fetch_sub(1, std::memory_order_acq_rel) == 1) unfinished_.notify_one();
  }
}

}  // namespace minicpm4
