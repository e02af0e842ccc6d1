// A pool of threads that share out the tasks of one job at a time. It knows nothing of what a task computes.
//
// Which thread takes a task is left to chance; tasks write different outputs, so results cannot depend on it.
// Between jobs threads spin for a moment (a decode step is hundreds of short jobs in a row), then park.
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

    void run_erased(int64_t tasks, Call call, const void* work);
    void take_tasks(uint32_t job);
    void serve();
    void stop();
    uint32_t wait_for_job(uint32_t last);
    static uint32_t job_of(uint64_t ticket) { return static_cast<uint32_t>(ticket >> 32); }

    // The number of the job and how many of its tasks nobody has taken yet, in one word: a thread that comes late to a
    // job cannot take a task of the next one while it still holds the last one's function.
    std::atomic<uint64_t> ticket_{0};
    std::atomic<int64_t> tasks_{0};
    std::atomic<Call> call_{nullptr};
    std::atomic<const void*> work_{nullptr};
    std::atomic<int64_t> done_{0};

    std::atomic<int> parked_{0};
    std::atomic<bool> stop_{false};
    std::mutex mutex_;
    std::condition_variable wake_;
    std::vector<std::thread> threads_;
};

}  // namespace qwench
