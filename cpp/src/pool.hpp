#pragma once

#include <condition_variable>
#include <mutex>
#include <utility>
#include <vector>

namespace densenet_deploy {

/// Things that one thread at a time may use; whoever finds none free waits.
template <class T>
class Pool {
 public:
  explicit Pool(std::vector<T> things) : things_(std::move(things)) {
    for (T& thing : things_) free_.push_back(&thing);
  }

  /// Calls `use` with a thing that is nobody else's meanwhile.
  template <class Use>
  void lend(const Use& use) {
    const Lease lease(*this);
    use(*lease.thing);
  }

 private:
  struct Lease {
    explicit Lease(Pool& from) : pool(from) {
      std::unique_lock lock(pool.mutex_);
      pool.returned_.wait(lock, [&] { return !pool.free_.empty(); });
      thing = pool.free_.back();  // the last one used: its memory is warm
      pool.free_.pop_back();
    }
    ~Lease() {
      {
        const std::lock_guard lock(pool.mutex_);
        pool.free_.push_back(thing);
      }
      pool.returned_.notify_one();
    }
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;

    Pool& pool;
    T* thing = nullptr;
  };

  std::vector<T> things_;
  std::vector<T*> free_;
  std::mutex mutex_;
  std::condition_variable returned_;
};

}  // namespace densenet_deploy
