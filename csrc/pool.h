// A pool of threads that share out the tasks of one job at a time. It knows nothing of what a task computes.
//
// Each thread begins with an equal, contiguous share of the tasks, so that it reads one stream, and helps with what is
// left of the others' once its own is taken. Which thread takes a task is left to chance; tasks write different outputs,
// so results cannot depend on it. Between jobs threads spin for a moment (a decode step is hundreds of short jobs in a
// row), then park.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace qwench {

class Pool {
  public:
    explicit Pool(int threads);  // the caller of run() is one of them
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int64_t threads() const { return static_cast<int64_t>(threads_.size()) + 1; }

    // Calls work(task) for every task in [0, tasks) and returns when all are done.
    template <class Work>
    void run(int64_t tasks, const Work& work) {
        run_erased(tasks, [](const void* w, int64_t task) { (*static_cast<const Work*>(w))(task); }, &work);
    }

  private:
    using Call = void (*)(const void* work, int64_t task);

    // One thread's share: the number of the job and how many of the share's tasks nobody has taken yet, in one word: a
    // thread that comes late to a job cannot take a task of the next one while it still holds the last one's function.
    struct alignas(64) Share {
        std::atomic<uint64_t> ticket{0};
    };

    void run_erased(int64_t tasks, Call call, const void* work);
    void take_tasks(uint32_t job, size_t first);
    int64_t take_share(uint32_t job, size_t share);
    void serve(size_t share);
    void stop();
    uint32_t wait_for_job(uint32_t last, size_t share);
    static uint32_t job_of(uint64_t ticket) { return static_cast<uint32_t>(ticket >> 32); }

    std::vector<Share> shares_;  // of the caller, then of threads_
    // The job: what its tickets are for. Written before them, and not again before all its tasks are done.
    alignas(64) std::atomic<int64_t> tasks_{0};
    std::atomic<Call> call_{nullptr};
    std::atomic<const void*> work_{nullptr};
    alignas(64) std::atomic<int64_t> done_{0};

    alignas(64) std::atomic<int> parked_{0};
    std::atomic<bool> stop_{false};
    std::mutex mutex_;
    std::condition_variable wake_;
    std::vector<std::thread> threads_;
};

}  // namespace qwench
