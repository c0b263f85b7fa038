// A pool of threads that runs one function together and sleeps between calls.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace minicpm4 {

// All workers of a pool meet here; spins for some microseconds, then sleeps.
class Barrier {
 public:
  explicit Barrier(int workers) : num_workers_(workers) {}
  void wait();

 private:
  const int num_workers_;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<int> round_{0};
};

// The calling thread is worker 0. A pool with a worker for every core that the process may use binds each to one of them while
// it works; a smaller one leaves the choice to the system, which knows what else runs.
class ThreadPool {
 public:
  explicit ThreadPool(int workers);  // std::system_error where the system has not so many threads
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;

  int size() const { return size_; }
  Barrier& barrier() { return barrier_; }

  // Calls work(worker) on every worker and returns when all are done. Not for calling from two threads at once.
  void run(const std::function<void(int)>& work);

 private:
  void serve(int worker);
  void close();

  const int size_;
  Barrier barrier_;
  const int process_;  // threads do not survive a fork
  bool is_binding_ = false;
  std::mutex mutex_;
  std::unique_ptr<std::condition_variable> wake_ = std::make_unique<std::condition_variable>();
  const std::function<void(int)>* work_ = nullptr;
  std::atomic<int> call_{0};
  bool is_closing_ = false;
  std::atomic<int> unfinished_{0};
  std::unique_ptr<std::vector<std::thread>> threads_ = std::make_unique<std::vector<std::thread>>();
};

}  // namespace minicpm4
