// A few threads that share one pass. Work is cut into chunks, which the threads claim. The caller works too, and never waits
// for a thread that has not claimed a chunk, so that a thread whose core is busy elsewhere costs little. The caller claims
// the first chunks and the others the last: where chunks follow the rows, a row's data mostly stay with one core.
#pragma once
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>

namespace outlay {

class Pool {
  public:
    static Pool& get();

    void set_threads(int n);
    int threads() const { return active_.load(std::memory_order_relaxed); }

    // Held for a whole pass: scratch memory and workers serve one pass at a time.
    std::mutex& pass_mutex() { return pass_mutex_; }

    // Calls body(chunk) for chunk in 0..n-1, in any order, on any thread; returns when all are done.
    template <class Body>
    void run(int64_t n, const Body& body) {
        if (n <= 1 || threads() <= 1) {
            for (int64_t i = 0; i < n; ++i) body(i);
            return;
        }
        share(n, [](const void* context, int64_t chunk) { (*static_cast<const Body*>(context))(chunk); }, &body);
    }

  private:
    using Call = void (*)(const void* context, int64_t chunk);
    using Clock = std::chrono::steady_clock;

    enum class End { kFirst, kLast };

    void share(int64_t n, Call call, const void* context);
    bool claim_chunks(End end);
    void work(int id);

    std::mutex pass_mutex_;
    std::atomic<int> active_{1};
    int started_ = 1;

    // The job. Its fields are stable for a thread that holds one of its chunks, because it cannot end without that chunk.
    // `ticket_` is the job's number and its unclaimed chunks, changed as one.
    alignas(64) std::atomic<uint64_t> ticket_{0};
    Call call_ = nullptr;
    const void* context_ = nullptr;
    alignas(64) std::atomic<int64_t> unfinished_{0};

    alignas(64) std::mutex sleep_mutex_;
    std::condition_variable activated_, work_ready_, work_done_;
    std::atomic<int> sleepers_{0};
    std::atomic<bool> alarmed_{false};  // the sleepers have been woken, which may take long where their core is busy
    std::atomic<bool> caller_sleeps_{false};
    uint64_t alarms_ = 0;
    std::atomic<int> caller_core_{-1};

    // After a long wait for another thread, the caller works alone for a while.
    Clock::time_point alone_until_{};
    Clock::duration alone_for_{};
};

}  // namespace outlay
