"""The file and the statistics of llama.cpp's own code, for logits that are computed without a model.

    python tests/oracles/llama_cpp_perplexity.py LLAMA_CPP/tools/perplexity/perplexity.cpp tests/data/llama_cpp.json

The functions of perplexity.cpp that write the file of `--kl-divergence-base` and that evaluate `--kl-divergence` are
compiled as they are, with declarations in place of the headers of llama.cpp. Their model returns the logits of `logits`
below. A C++ compiler is needed. The source is in the source distribution of llama-cpp-python.
"""

import base64
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

N_CTX, N_VOCAB, N_CHUNK, BOS = 16, 61, 20, 1

DECLARATIONS = r"""
#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <mutex>
#include <string>
#include <thread>
#include <vector>
#define LOG(...) std::printf(__VA_ARGS__)
#define LOG_INF(...) (void)0
#define LOG_WRN(...) std::fprintf(stderr, __VA_ARGS__)
#define LOG_ERR(...) std::fprintf(stderr, __VA_ARGS__)
#define GGML_ASSERT(x) if (!(x)) std::abort()
using llama_token = int32_t;
using llama_pos = int32_t;
enum { LLAMA_PROCESS_TYPE_DECODE };
struct llama_model {};
struct llama_vocab { int size; int bos; };
struct llama_context {
    llama_model model; llama_vocab vocab; int n_ctx; int chunk; std::vector<float> logits; std::vector<int32_t> text;
};
struct common_params {
    std::string prompt, logits_file; int ppl_stride = 0, n_chunks = -1, n_batch = 0, n_ctx = 0, ppl_output_type = 0;
};
static std::vector<int32_t> evaluated;
struct common_batch {
    struct token { llama_token id; bool output; };
    std::vector<token> tokens;
    common_batch(llama_context *) {}
    void * get() { return nullptr; }
    void clear() { tokens.clear(); }
    int size() const { return int(tokens.size()); }
    void add(llama_token id, llama_pos, int, bool output) { tokens.push_back({id, output}); evaluated.push_back(id); }
};
static const llama_model * llama_get_model(llama_context * ctx) { return &ctx->model; }
static llama_vocab * the_vocab;
static const llama_vocab * llama_model_get_vocab(const llama_model *) { return the_vocab; }
static bool llama_vocab_get_add_bos(const llama_vocab * v) { return v->bos >= 0; }
static bool llama_vocab_get_add_eos(const llama_vocab *) { return false; }
static llama_token llama_vocab_bos(const llama_vocab * v) { return v->bos; }
static int llama_vocab_n_tokens(const llama_vocab * v) { return v->size; }
static uint32_t llama_n_ctx(llama_context * ctx) { return uint32_t(ctx->n_ctx); }
static int llama_n_seq_max(llama_context *) { return 1; }
static llama_context * llama_get_memory(llama_context * ctx) { return ctx; }
static void llama_memory_clear(llama_context * ctx, bool) { ctx->chunk += 1; }
static void llama_synchronize(llama_context *) {}
static int llama_process(llama_context *, int, void *) { return 0; }
static float * llama_get_logits_ith(llama_context * ctx, int i) {
    return ctx->logits.data() + (size_t(ctx->chunk) * ctx->n_ctx + i) * ctx->vocab.size;
}
static float * llama_get_logits(llama_context * ctx) { return llama_get_logits_ith(ctx, 0); }
static std::vector<llama_token> common_tokenize(llama_context * ctx, const std::string &, bool) { return ctx->text; }
"""

MAIN = r"""
template <typename T> static std::vector<T> read_all(const char * name) {
    std::ifstream in(name, std::ios::binary | std::ios::ate);
    std::vector<T> values(size_t(in.tellg()) / sizeof(T));
    in.seekg(0);
    in.read((char *)values.data(), values.size() * sizeof(T));
    return values;
}
int main(int, char ** argv) {
    llama_context ctx{{}, {std::atoi(argv[5]), std::atoi(argv[6])}, std::atoi(argv[7]), -1, {}, {}};
    ctx.logits = read_all<float>(argv[3]);
    ctx.text = read_all<int32_t>(argv[4]);
    the_vocab = &ctx.vocab;
    common_params params;
    params.logits_file = argv[2];
    params.n_batch = params.n_ctx = ctx.n_ctx;
    if (std::string(argv[1]) == "base") perplexity(&ctx, params, ctx.n_ctx); else kl_divergence(&ctx, params);
    for (int id : evaluated) std::fprintf(stderr, "%d ", id);
}
"""


def logits(model: bool) -> np.ndarray:
    """Logits of the base, or of the model, which are exact in float32, shape (n_chunk, n_ctx, n_vocab)."""
    number = np.arange(N_CHUNK * N_CTX * N_VOCAB, dtype=np.int64)
    base = (number * 40503 + (number // 7) ** 2 * 25173) % 65521 / 4096 - 8 + (number * 7919 % 101 < 4) * 9.0
    change = (number * 30011 + 17) % 1021 / 1024 - 0.5
    return np.float32(base + model * change).reshape(N_CHUNK, N_CTX, N_VOCAB)


def tokens() -> np.ndarray:
    """The token ids of the text, of which about half are the most probable of the base, shape (n_chunk, n_ctx)."""
    number = np.arange(N_CHUNK * N_CTX)
    probable = np.roll(logits(False).reshape(-1, N_VOCAB).argmax(1), 1)
    return np.where(number % 9 < 5, probable, (number * 37 + number // 5) % N_VOCAB).astype("<i4").reshape(-1, N_CTX)


def program(source: str) -> str:
    """The C++ program: the declarations, the functions of perplexity.cpp, and a main function."""

    def between(start: str, end: str) -> str:
        first = source.index(start)
        return source[first : source.index(end, first)]

    earlier = "static results_perplexity perplexity_v2(llama_context *, const common_params &) { return {}; }\n"
    parts = [
        between("struct results_perplexity {", "static results_perplexity perplexity_v2("),
        earlier,
        between("static results_perplexity perplexity(", "static bool decode_helper("),
        between("static void kl_divergence(", "// satisfies -Wmissing-declarations"),
    ]
    return DECLARATIONS + "\n".join(parts) + MAIN


def compile_program(source: str, directory: Path, name: str) -> None:
    """Compile the program for the text of perplexity.cpp to directory / name."""
    (directory / "main.cpp").write_text(program(source), encoding="utf-8")
    command = ["g++", "-O2", "-std=c++17", "-pthread", "-w", "main.cpp", "-o", name]
    subprocess.run(command, cwd=directory, check=True)


def main(source: str, output: str) -> None:
    text = Path(source).read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory)
        compile_program(text, path, "llama_cpp")
        # ik_llama.cpp has the same function with another constant.
        compile_program(text.replace("max_logit - 16", "max_logit - 24"), path, "ik_llama_cpp")
        logits(False).tofile(path / "base.f32")
        logits(True).tofile(path / "model.f32")
        tokens().tofile(path / "text.i32")

        def run(name: str, mode: str, file: str, given: str) -> subprocess.CompletedProcess[str]:
            command = [f"./{name}", mode, file, given, "text.i32", str(N_VOCAB), str(BOS), str(N_CTX)]
            return subprocess.run(command, cwd=path, check=True, capture_output=True, text=True)

        base = run("llama_cpp", "base", "16.kld", "base.f32")
        model = run("llama_cpp", "kl", "16.kld", "model.f32")
        run("ik_llama_cpp", "base", "24.kld", "base.f32")
        assert base.stderr == model.stderr
        lines = re.findall(r"^(.*?)\s*: *(-?[\d.]+)%?(?: ± +([\d.]+))?(?: %|%)?$", model.stdout, re.MULTILINE)
        stored = {
            "source": "tools/perplexity/perplexity.cpp of llama.cpp in llama-cpp-python 0.3.36",
            "files": {cut: base64.b64encode((path / f"{cut}.kld").read_bytes()).decode() for cut in ("16", "24")},
            "evaluated_tokens": base.stderr,
            "statistics": [[" ".join(name.split()), value, error] for name, value, error in lines],
        }
    Path(output).write_text(json.dumps(stored, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
