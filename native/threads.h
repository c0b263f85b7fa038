// A team of threads that runs one function together and sleeps between calls.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace minicpm4 {

// All members of a team meet here; spins for some microseconds, then sleeps.
class Barrier {
 public:
  explicit Barrier(int members) : members_(members) {}
  void wait();

 private:
  const int members_;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<int> round_{0};
};

// The calling thread is member 0. While a call runs, member i is bound to the i-th core that the process may use.
class Team {
 public:
  explicit Team(int members);
  ~Team();
  Team(const Team&) = delete;

  int size() const { return size_; }
  Barrier& barrier() { return barrier_; }

  // Calls work(member) on every member and returns when all are done. Not for calling from two threads at once.
  void run(const std::function<void(int)>& work);

 private:
  void serve(int member);

  const int size_;
  Barrier barrier_;
  std::mutex mutex_;
  std::condition_variable wake_;
  const std::function<void(int)>* work_ = nullptr;
  std::atomic<int> call_{0};
  bool is_closing_ = false;
  std::atomic<int> unfinished_{0};
  std::vector<std::thread> threads_;
};

}  // namespace minicpm4
