# All targets except test-oldest and test-newest use .venv, into which pip installs the packages of constraints.txt.
# Python 3.11 or later is required.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
PIP_DEEPSPEED := .venv-deepspeed/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# The tests of training, whose libraries have several supported versions.
TRAINER_TESTS := tests/integrations tests/train tests/budget tests/tokens tests/doctor tests/policy

.PHONY: run test test-slow test-deepspeed llama-cpp test-llama-cpp test-oldest test-newest lint docs package sanitize
.PHONY: minify bench-tables clean

run: .venv/installed-train
	$(BIN)/kullback train demo --output runs/demo --overwrite

test: .venv/installed-test lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

# The tests that take several seconds each: they train models, stop and resume runs, compile, or use several processes.
test-slow: .venv/installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m slow

# The oldest and the newest supported versions, in .venv-oldest and .venv-newest, which take about 10 GB each.
test-oldest test-newest: test-%: .venv-%/installed
	OMP_NUM_THREADS=1 .venv-$*/bin/python -m pytest -n 2 --dist loadfile --timeout 1200 $(TRAINER_TESTS)

# GRPO under DeepSpeed ZeRO on CPUs. DeepSpeed has an environment of its own, which also has the packages of .venv.
test-deepspeed: .venv-deepspeed/installed
	OMP_NUM_THREADS=1 .venv-deepspeed/bin/python -m pytest tests/deepspeed

lint: .venv/installed-test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

# llama-perplexity and llama-server of llama.cpp, from the source distribution of a package of PyPI, in build/llama-cpp/bin.
# cmake, ninja and a C++ compiler are required; the build takes about half an hour on one core.
LLAMA_CPP := llama-cpp-python==0.3.36
llama-cpp: build/llama-cpp/bin/llama-server

build/llama-cpp/bin/llama-server: | .venv/created
	mkdir -p build/llama-cpp/bin
	$(BIN)/python -m pip download --quiet --no-deps --no-binary :all: --dest build/llama-cpp $(LLAMA_CPP)
	tar -xzf build/llama-cpp/llama_cpp_python-*.tar.gz -C build/llama-cpp --strip-components 1
	cmake -S build/llama-cpp/vendor/llama.cpp -B build/llama-cpp/cmake -G Ninja -DCMAKE_BUILD_TYPE=Release -DGGML_OPENMP=OFF \
	    -DBUILD_SHARED_LIBS=OFF -DLLAMA_CURL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF
	cmake --build build/llama-cpp/cmake --parallel 1 --target llama-perplexity llama-server
	cp build/llama-cpp/cmake/bin/llama-perplexity build/llama-cpp/cmake/bin/llama-server build/llama-cpp/bin

# Our statistics, files and bounds against these programs.
test-llama-cpp: .venv/installed-test build/llama-cpp/bin/llama-server
	LLAMA_CPP_BIN=$(CURDIR)/build/llama-cpp/bin OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/compare/test_llama_cpp_programs.py

# The whole site is rebuilt, because its pages run the package and its reference is generated from the package.
docs: .venv/installed-docs
	$(BIN)/sphinx-build -W --keep-going --fresh-env --quiet -b html docs docs/_build/html
	@echo docs/_build/html/index.html

# The wheel and the source distribution, each installed into an environment of its own without extras.
package: .venv/created
	$(PIP) build
	rm -rf dist build
	$(BIN)/python -m build --outdir dist
	for archive in dist/*.whl dist/*.tar.gz; do \
	    rm -rf dist/clean && $(PYTHON) -m venv dist/clean && \
	    dist/clean/bin/python -m pip install --quiet --disable-pip-version-check $$archive && \
	    (cd dist && clean/bin/python -I ../.ci/check_installation.py) || exit 1; \
	done

# The tests of the kernels with a build that checks every access to memory and every undefined operation.
KERNELS := src/kullback/compiled
sanitize: .venv/installed-test
	cp $(KERNELS)/_kernels.abi3.so .venv/kernels.release.so
	$(CXX) -O2 -g -std=c++17 -ffp-contract=fast -fno-math-errno -fPIC -shared -fno-exceptions -fno-rtti -fsanitize=address,undefined -fno-sanitize-recover=all \
	    -I$$($(BIN)/python -c "import sysconfig; print(sysconfig.get_paths()['include'])") \
	    $(KERNELS)/kernels.cpp -o $(KERNELS)/_kernels.abi3.so
	ASAN_OPTIONS=detect_leaks=0 LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
	    OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/discrete/kernels tests/closed_forms/test_compiled_*.py tests/closed_forms/test_array_evaluation.py; \
	    status=$$?; mv .venv/kernels.release.so $(KERNELS)/_kernels.abi3.so; exit $$status

# The script of the explorer, which is minified so that its page stays small. Run it after a change of its modules; it needs npm.
minify: .venv/installed-test
	$(BIN)/python .ci/minify_explorer.py

# The tables are generated from the stored results; no benchmark is run.
bench-tables: .venv/created
	$(BIN)/python benchmarks/render.py

clean:
	rm -rf .venv .venv-oldest .venv-newest .venv-deepspeed docs/_build docs/generated

.venv/created:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	touch $@

# Modules are compiled when they are first imported; most are never imported.
.venv/installed-train: .venv/created pyproject.toml constraints.txt $(wildcard src/kullback/compiled/*.[ch]*)
	$(PIP) --no-compile --editable '.[train]'
	touch $@

# All modules are compiled here, because pytest turns the syntax warnings of other packages into errors.
.venv/installed-test: .venv/installed-train
	$(PIP) --no-compile --editable '.[train,test]'
	$(BIN)/python -W ignore -m compileall -q -j 0 .venv/lib || true
	touch $@

# DeepSpeed is installed without its compiled operations, which training on CPUs does not need; its build needs torch.
.venv-deepspeed/installed: .venv/installed-test constraints.txt
	$(PYTHON) -m venv .venv-deepspeed
	.venv-deepspeed/bin/python -c 'from sysconfig import get_path; here = get_path("purelib"); \
	    shared = here.replace(".venv-deepspeed", ".venv"); \
	    open(here + "/venv.pth", "w").write("import site; site.addsitedir(%r)" % shared)'
	$(PIP_DEEPSPEED) setuptools wheel einops hjson msgpack ninja py-cpuinfo
	DS_BUILD_OPS=0 $(PIP_DEEPSPEED) --no-build-isolation deepspeed
	touch $@

# The pages run examples of every integration, which need the packages of the extra `test`.
.venv/installed-docs: .venv/installed-test
	$(PIP) --no-compile --editable '.[train,test,docs]'
	touch $@

.venv-%/installed: pyproject.toml constraints-%.txt
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-$*.txt --no-compile \
	    --editable '.[train,rl,vae,test]'
	.venv-$*/bin/python -W ignore -m compileall -q -j 0 .venv-$*/lib || true
	touch $@
