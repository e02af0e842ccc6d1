// The pool: see pool.h.
#include "pool.h"

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace qwench {

namespace {

// How long a thread spins before it parks: about 50 microseconds, longer than the gap between two jobs of a decode
// step, short enough that other libraries' threads on the same cores are not kept waiting.
constexpr int kSpins = 1500;
constexpr int kSpinsBeforeYield = 20000;

void pause() {
#if defined(__x86_64__) || defined(__i386__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

}  // namespace

Pool::Pool(int threads) {
    try {
        for (int each = 1; each < threads; ++each) threads_.emplace_back([this] { serve(); });
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
    const uint32_t job = job_of(ticket_.load()) + 1;
    call_.store(call, std::memory_order_relaxed);
    work_.store(work, std::memory_order_relaxed);
    tasks_.store(tasks, std::memory_order_relaxed);
    done_.store(0, std::memory_order_relaxed);
    ticket_.store(static_cast<uint64_t>(job) << 32 | static_cast<uint32_t>(tasks));
    if (parked_.load() > 0) {
        { const std::lock_guard<std::mutex> lock(mutex_); }  // whoever is about to park has seen the job, or waits by now
        wake_.notify_all();
    }
    take_tasks(job);
    for (int spins = 0; done_.load(std::memory_order_acquire) < tasks; ++spins) {
        if (spins < kSpinsBeforeYield) {
            pause();
        } else {
            std::this_thread::yield();  // the thread we wait for may need this core
        }
    }
}

void Pool::take_tasks(uint32_t job) {
    uint64_t ticket = ticket_.load(std::memory_order_acquire);
    while (job_of(ticket) == job && static_cast<uint32_t>(ticket) > 0) {
        const Call call = call_.load(std::memory_order_relaxed);
        const void* work = work_.load(std::memory_order_relaxed);
        const int64_t task = tasks_.load(std::memory_order_relaxed) - static_cast<uint32_t>(ticket);
        // If nobody else took this task it is not done, so its job still runs, and what was read above belongs to it.
        if (!ticket_.compare_exchange_weak(ticket, ticket - 1, std::memory_order_acq_rel)) continue;
        call(work, task);
        done_.fetch_add(1, std::memory_order_release);
        ticket = ticket_.load(std::memory_order_acquire);
    }
}

void Pool::serve() {
    for (uint32_t job = 0; !stop_.load();) {
        job = wait_for_job(job);
        take_tasks(job);
    }
}

// The number of a job after `last`, or of any if the pool is to stop.
uint32_t Pool::wait_for_job(uint32_t last) {
    const auto changed = [&] { return stop_.load() || job_of(ticket_.load()) != last; };
    for (int spins = 0; spins < kSpins; ++spins) {
        if (changed()) return job_of(ticket_.load());
        pause();
    }
    std::unique_lock<std::mutex> lock(mutex_);
    parked_.fetch_add(1);
    wake_.wait(lock, changed);
    parked_.fetch_sub(1);
    return job_of(ticket_.load());
}

}  // namespace qwench
