// The pool: see pool.h.
#include "pool.h"

#include <chrono>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace qwench {

namespace {

// How long a thread spins before it parks: longer than the gap between two jobs of a decode step, short enough that other
// libraries' threads on the same cores are not kept waiting. By the clock, as a pause takes 40 to 140 cycles.
constexpr std::chrono::microseconds kSpinTime{100};
constexpr int kPausesPerLook = 16;  // at the clock
constexpr int kPausesBeforeYield = 20000;

void pause() {
#if defined(__x86_64__) || defined(__i386__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Where the share of thread `index` of `count` begins.
int64_t share_begin(int64_t tasks, size_t index, size_t count) {
    return tasks * static_cast<int64_t>(index) / static_cast<int64_t>(count);
}

}  // namespace

Pool::Pool(int threads) : shares_(static_cast<size_t>(threads > 1 ? threads : 1)) {
    try {
        for (size_t share = 1; share < shares_.size(); ++share) threads_.emplace_back([this, share] { serve(share); });
    } catch (...) {
        stop();  // a thread must not be destroyed while it runs
        throw;
    }
}

Pool::~Pool() { stop(); }

void Pool::stop() {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        stop_.store(true);
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
}

void Pool::run_erased(int64_t tasks, Call call, const void* work) {
    if (threads_.empty() || tasks <= 1) {
        for (int64_t task = 0; task < tasks; ++task) call(work, task);
        return;
    }
    const uint32_t job = job_of(shares_[0].ticket.load()) + 1;
    call_.store(call, std::memory_order_relaxed);
    work_.store(work, std::memory_order_relaxed);
    tasks_.store(tasks, std::memory_order_relaxed);
    done_.store(0, std::memory_order_relaxed);
    for (size_t share = 0; share < shares_.size(); ++share) {
        const int64_t left = share_begin(tasks, share + 1, shares_.size()) - share_begin(tasks, share, shares_.size());
        shares_[share].ticket.store(static_cast<uint64_t>(job) << 32 | static_cast<uint32_t>(left));
    }
    if (parked_.load() > 0) {
        { const std::lock_guard<std::mutex> lock(mutex_); }  // whoever is about to park has seen the job, or waits by now
        wake_.notify_all();
    }
    take_tasks(job, 0);
    for (int pauses = 0; done_.load(std::memory_order_acquire) < tasks; ++pauses) {
        if (pauses < kPausesBeforeYield) {
            pause();
        } else {
            std::this_thread::yield();  // the thread we wait for may need this core
        }
    }
}

// A thread's own share first, then what is left of the others'.
void Pool::take_tasks(uint32_t job, size_t first) {
    int64_t done = 0;
    for (size_t i = 0; i < shares_.size(); ++i) done += take_share(job, (first + i) % shares_.size());
    if (done > 0) done_.fetch_add(done, std::memory_order_release);
}

int64_t Pool::take_share(uint32_t job, size_t share) {
    std::atomic<uint64_t>& place = shares_[share].ticket;
    uint64_t ticket = place.load(std::memory_order_acquire);
    int64_t done = 0;
    while (job_of(ticket) == job && static_cast<uint32_t>(ticket) > 0) {
        const Call call = call_.load(std::memory_order_relaxed);
        const void* work = work_.load(std::memory_order_relaxed);
        const int64_t end = share_begin(tasks_.load(std::memory_order_relaxed), share + 1, shares_.size());
        // If nobody else took this task it is not done, so its job still runs, and what was read above belongs to it.
        if (!place.compare_exchange_weak(ticket, ticket - 1, std::memory_order_acq_rel)) continue;
        call(work, end - static_cast<uint32_t>(ticket));
        ++done;
        ticket = place.load(std::memory_order_acquire);
    }
    return done;
}

void Pool::serve(size_t share) {
    for (uint32_t job = 0; !stop_.load();) {
        job = wait_for_job(job, share);
        take_tasks(job, share);
    }
}

// The number of a job after `last`, or of any if the pool is to stop.
uint32_t Pool::wait_for_job(uint32_t last, size_t share) {
    const std::atomic<uint64_t>& place = shares_[share].ticket;
    const auto changed = [&] { return stop_.load() || job_of(place.load()) != last; };
    const auto end = std::chrono::steady_clock::now() + kSpinTime;
    do {
        for (int pauses = 0; pauses < kPausesPerLook; ++pauses) {
            if (changed()) return job_of(place.load());
            pause();
        }
    } while (std::chrono::steady_clock::now() < end);
    std::unique_lock<std::mutex> lock(mutex_);
    parked_.fetch_add(1);
    wake_.wait(lock, changed);
    parked_.fetch_sub(1);
    return job_of(place.load());
}

}  // namespace qwench
