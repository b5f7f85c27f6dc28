#include "pool.h"

#include <algorithm>
#include <cstring>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace outlay {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;

// Long enough to bridge the serial steps within a pass, short enough not to matter to anyone else.
constexpr auto kWorkerSpin = microseconds(100);
constexpr auto kCallerSpin = microseconds(60);
constexpr auto kLongWait = microseconds(400);
constexpr auto kRepeatedWithin = milliseconds(10);
constexpr auto kFirstAlone = milliseconds(5);
constexpr auto kLongestAlone = milliseconds(80);

// The unclaimed chunks of a job: from `first` to before `last`.
struct Ticket {
    uint64_t number : 24, first : 20, last : 20;
};
constexpr int64_t kMostChunks = (1 << 20) - 1;

inline uint64_t packed(Ticket ticket) {
    uint64_t value;
    std::memcpy(&value, &ticket, sizeof(value));
    return value;
}
inline Ticket unpacked(uint64_t value) {
    Ticket ticket;
    std::memcpy(&ticket, &value, sizeof(value));
    return ticket;
}

inline void pause_briefly() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// The core that runs this, or a negative number where that is not known.
inline int current_core() {
#if defined(__linux__)
    return sched_getcpu();
#else
    return -1;
#endif
}

template <class Condition>
bool spin_until(std::chrono::steady_clock::duration limit, Condition condition) {
    const auto start = std::chrono::steady_clock::now();
    for (;;) {
        for (int i = 0; i < 32; ++i) {
            if (condition()) return true;
            pause_briefly();
        }
        if (std::chrono::steady_clock::now() - start > limit) return condition();
    }
}

}  // namespace

Pool& Pool::get() {
    // Never destroyed: its threads may outlive static destruction.
    static Pool* pool = new Pool;
    return *pool;
}

void Pool::set_threads(int n) {
    std::lock_guard<std::mutex> lock(pass_mutex_);
    n = std::clamp(n, 1, 256);
    for (; started_ < n; ++started_) std::thread(&Pool::work, this, started_).detach();
    {
        std::lock_guard<std::mutex> sleep_lock(sleep_mutex_);
        active_.store(n);
    }
    activated_.notify_all();
}

bool Pool::claim_chunks(End end) {
    // Half of a fair share of the unclaimed chunks: few visits to the ticket, and small portions at the end.
    const unsigned shares = 2 * unsigned(threads());
    uint64_t value = ticket_.load(std::memory_order_acquire);
    unsigned begin, claimed;
    for (;;) {
        Ticket ticket = unpacked(value);
        if (ticket.first == ticket.last) return false;
        claimed = std::max(1u, unsigned(ticket.last - ticket.first) / shares);
        if (end == End::kFirst) {
            begin = ticket.first;
            ticket.first += claimed;
        } else {
            ticket.last -= claimed;
            begin = ticket.last;
        }
        if (ticket_.compare_exchange_weak(value, packed(ticket), std::memory_order_acq_rel, std::memory_order_acquire)) break;
    }
    for (unsigned i = 0; i < claimed; ++i) call_(context_, begin + i);
    if (unfinished_.fetch_sub(claimed) == claimed && caller_sleeps_.load()) {
        std::lock_guard<std::mutex> lock(sleep_mutex_);
        work_done_.notify_one();
    }
    return true;
}

void Pool::share(int64_t n, Call call, const void* context) {
    if (n > kMostChunks || (alone_for_.count() && Clock::now() < alone_until_)) {
        for (int64_t i = 0; i < n; ++i) call(context, i);
        return;
    }
    caller_core_.store(current_core(), std::memory_order_relaxed);
    call_ = call;
    context_ = context;
    unfinished_.store(n);
    const uint64_t number = unpacked(ticket_.load(std::memory_order_relaxed)).number + 1;
    ticket_.store(packed({number, 0, uint64_t(n)}));
    if (sleepers_.load() && !alarmed_.exchange(true)) {
        {
            std::lock_guard<std::mutex> lock(sleep_mutex_);
            ++alarms_;
        }
        work_ready_.notify_all();
    }
    while (claim_chunks(End::kFirst)) {
    }
    const auto done = [this] { return unfinished_.load() == 0; };
    if (done() || spin_until(kCallerSpin, done)) return;
    const auto start = Clock::now();
    {
        std::unique_lock<std::mutex> lock(sleep_mutex_);
        caller_sleeps_.store(true);
        work_done_.wait(lock, done);
        caller_sleeps_.store(false);
    }
    const auto now = Clock::now();
    if (now - start > kLongWait) {
        // A second long wait soon after the first: another process has the core for now. Alone, it was a hiccup.
        const bool again = alone_for_.count() && start - alone_until_ < kRepeatedWithin;
        alone_for_ = again ? std::min<Clock::duration>(alone_for_ * 2, kLongestAlone) : Clock::duration(kFirstAlone);
        alone_until_ = now + alone_for_;
    }
}

void Pool::work(int id) {
    const auto active = [this, id] { return id < active_.load(std::memory_order_relaxed); };
    const auto ready = [this] {
        const Ticket ticket = unpacked(ticket_.load(std::memory_order_acquire));
        return ticket.first != ticket.last;
    };
    Clock::duration back_off = kFirstAlone;
    for (;;) {
        // A thread that wakes on the caller's own core, because the others are busy, would only slow the caller down.
        const int core = current_core();
        const bool on_callers_core = core >= 0 && core == caller_core_.load(std::memory_order_relaxed);
        if (active() && !on_callers_core && spin_until(kWorkerSpin, ready)) {
            claim_chunks(End::kLast);
            back_off = kFirstAlone;
            continue;
        }
        if (on_callers_core) {
            std::this_thread::sleep_for(back_off);
            back_off = std::min<Clock::duration>(back_off * 2, kLongestAlone);
        }
        std::unique_lock<std::mutex> lock(sleep_mutex_);
        activated_.wait(lock, active);
        const uint64_t heard = alarms_;
        alarmed_.store(false);
        sleepers_.fetch_add(1);
        if (!ready()) work_ready_.wait(lock, [&] { return alarms_ != heard; });
        sleepers_.fetch_sub(1);
    }
}

}  // namespace outlay
