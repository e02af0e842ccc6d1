// How long llama.cpp's mtmd looks at pictures: a vision projector is loaded once, then every line of input is one look.
//
//     mtmd_time PROJECTOR.gguf THREADS
//     in:  WIDTH HEIGHT FRAMES PIXELS ROWS   (normalised fp32 pixels [frames, height, width, 3]; where rows go, or -)
//     out: seconds of the clock, seconds of processors, rows, width of a row
//
// Frames are taken two by two, which this tower sees as one moment; a picture is one frame. bench/vision.py compiles it
// against `make llama.cpp`'s libraries, whose internal header it needs: no public call tells encoding from the rest.
#include <chrono>
#include <cstdio>
#include <ctime>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

#include "clip-impl.h"
#include "clip.h"

namespace {

using Numbers = std::vector<float>;

Numbers read_numbers(const std::string& path, size_t count) {
    Numbers numbers(count);
    std::ifstream file(path, std::ios::binary);
    file.read(reinterpret_cast<char*>(numbers.data()), static_cast<std::streamsize>(count * sizeof(float)));
    if (!file) throw std::runtime_error("too few pixels in " + path);
    return numbers;
}

void write_numbers(const std::string& path, const Numbers& numbers) {
    std::ofstream file(path, std::ios::binary);
    file.write(reinterpret_cast<const char*>(numbers.data()), static_cast<std::streamsize>(numbers.size() * sizeof(float)));
    if (!file.flush()) throw std::runtime_error("cannot write " + path);
}

// One batch for each moment.
std::vector<clip_image_f32_batch> read_moments(const std::string& path, int width, int height, int frames) {
    const size_t size = static_cast<size_t>(width) * height * 3;
    const Numbers pixels = read_numbers(path, size * frames);
    std::vector<clip_image_f32_batch> moments;
    for (int frame = 0; frame < frames; ++frame) {
        if (frame % 2 == 0) moments.emplace_back();
        clip_image_f32 image;
        image.set_size({width, height}, false, false);
        image.cpy_buf(Numbers(pixels.begin() + size * frame, pixels.begin() + size * (frame + 1)));
        moments.back().entries.push_back(std::move(image));
    }
    return moments;
}

double processor_seconds() {
    timespec now = {};
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

void serve(clip_ctx* context, int threads) {
    int width = 0, height = 0, frames = 0;
    std::string pixels, target;
    while (std::cin >> width >> height >> frames >> pixels >> target) {
        const std::vector<clip_image_f32_batch> moments = read_moments(pixels, width, height, frames);
        Numbers all;
        const double processors = processor_seconds();
        const auto start = std::chrono::steady_clock::now();
        for (const clip_image_f32_batch& moment : moments) {
            const size_t rows = static_cast<size_t>(clip_n_output_tokens(context, &moment.entries[0]));
            Numbers found(rows * clip_n_mmproj_embd(context));
            if (!clip_image_batch_encode(context, threads, &moment, found)) throw std::runtime_error("encoding failed");
            all.insert(all.end(), found.begin(), found.end());
        }
        const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
        const int columns = clip_n_mmproj_embd(context);
        std::printf("%.6f %.6f %zu %d\n", took.count(), processor_seconds() - processors, all.size() / columns, columns);
        std::fflush(stdout);
        if (target != "-") write_numbers(target, all);
    }
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 3) {
        std::fprintf(stderr, "usage: mtmd_time PROJECTOR.gguf THREADS\n");
        return 2;
    }
    clip_context_params parameters = {};
    parameters.flash_attn_type = CLIP_FLASH_ATTN_TYPE_AUTO;
    parameters.image_min_tokens = parameters.image_max_tokens = -1;
    clip_ctx* context = clip_init(arguments[1], parameters).ctx_v;
    if (context == nullptr) {
        std::fprintf(stderr, "%s is no projector that it reads\n", arguments[1]);
        return 1;
    }
    try {
        serve(context, std::stoi(arguments[2]));
    } catch (const std::exception& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
    clip_free(context);
    return 0;
}
