// The kernels of csrc/ as nvcc sees them, started as a driver starts them: by name, blocks, threads and addresses of
// arguments. See simt.h.
#include "batched_greedy.cu"
#include "tail.cu"

alignas(16) thread_local unsigned char shared_memory[227 * 1024];

namespace {

using smartgpu::Batch;
using smartgpu::Tail;
using Kernel = std::function<void(void**)>;

template <class T>
const T& at(void* argument) { return *static_cast<const T*>(argument); }

#define BATCHED(name) {#name, [](void** given) { name(at<Batch>(given[0])); }}
#define QUANTA(name) {#name, [](void** given) { name(at<Batch>(given[0]), at<int*>(given[1]), at<long long>(given[2])); }}
#define TAILS(name) {#name, [](void** given) { name(at<Tail>(given[0])); }}

const std::vector<std::pair<std::string, Kernel>> KERNELS = {
    BATCHED(batched_greedy_fp16), BATCHED(batched_greedy_fp16_cluster), QUANTA(quanta_fp16),
    BATCHED(batched_greedy_bf16), BATCHED(batched_greedy_bf16_cluster), QUANTA(quanta_bf16),
    BATCHED(batched_greedy_tf32), BATCHED(batched_greedy_tf32_cluster), QUANTA(quanta_tf32),
    BATCHED(batched_greedy_tf32x3), BATCHED(batched_greedy_tf32x3_cluster), QUANTA(quanta_tf32x3),
    TAILS(sparse_tail), TAILS(count_by_row), TAILS(fill_by_row),
};

constexpr unsigned char UNTOUCHED = 0xa5;

}  // namespace

// 0, or 1 for a kernel that is not there. What a launch may not do ends the process, with a line that says why.
extern "C" int simt_launch(const char* name, unsigned blocks, unsigned threads, void** arguments, unsigned shared,
                           unsigned seed) {
    const Kernel* kernel = nullptr;
    for (const auto& [known, each] : KERNELS)
        if (known == name) kernel = &each;
    if (kernel == nullptr) return 1;
    const bool clustered = std::string(name).find("_cluster") != std::string::npos;
    const int cluster = clustered ? smartgpu::CLUSTER_BLOCKS : 1;
    if (blocks % cluster || threads % 32 || shared > sizeof shared_memory) return 1;
    simt::Launch launch = {{blocks}, {threads}, cluster, std::vector<std::atomic<unsigned>>(blocks / cluster)};
    const std::function<void()> body = [&] { (*kernel)(arguments); };
    std::vector<std::thread> all;
    for (unsigned b = 0; b < blocks; ++b)
        all.emplace_back([&, b] {
            std::memset(shared_memory, UNTOUCHED, sizeof shared_memory);
            simt::Block block(launch, b, seed);
            block.run(body);
            for (size_t u = shared; u < sizeof shared_memory; ++u)
                if (shared_memory[u] != UNTOUCHED) simt::stop("shared memory beyond what the launch asked for");
        });
    for (auto& thread : all) thread.join();
    return 0;
}
