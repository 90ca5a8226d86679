# The README's two commands, and what contributors and CI run. Each sets up all it needs in .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip --disable-pip-version-check install -q -c constraints.txt
COMPILER := $(shell for name in $${CXX:-c++} g++ clang++; do command -v $$name; done | head -1)
SOURCES := pyproject.toml constraints.txt $(wildcard custom_ops/CMakeLists.txt custom_ops/src/*)

.PHONY: demo test test-slow docs wheel aarch64 smoke lint format types native-warnings sanitize benchmark clean

## Run the main job: rewrite the demo ViT for a noisy RRAM crossbar and see its accuracy fall.
ifeq ($(COMPILER),)
demo: $(VENV)/bin/python
	@echo "There is no C++ compiler, so the NumPy operators serve, slowly: install the package g++ (Debian: apt-get install g++) and run make again."
	$(INSTALL) -C wheel.cmake=false ".[analysis]"
	$(BIN)/emu demo emu-demo --chips 1
else
demo: $(VENV)/.core
	$(BIN)/emu demo emu-demo
endif

## Run the tests, on two processes: files stay whole, so that what a file's tests share is made once.
test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist loadfile

## Run the tests that take minutes.
test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow -n 2 --dist loadfile

## Build the documentation site into build/site; a link that leads nowhere is an error.
docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

## Run emu with the oldest libraries that pyproject.toml allows, and with the newest that there are.
smoke: $(VENV)/.dev
	.ci/smoke

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m emu.contract.generate --check
	$(BIN)/clang-format --dry-run --Werror custom_ops/src/* benchmarks/instructions/*.cpp

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i custom_ops/src/* benchmarks/instructions/*.cpp

types: $(VENV)/.dev
	$(BIN)/mypy

## Compile the native library with warnings as errors.
native-warnings: $(VENV)/.dev
	$(BIN)/cmake -S custom_ops -B build/warnings -DEMU_WERROR=ON
	$(BIN)/cmake --build build/warnings --parallel 2

## Compile the native library for aarch64, with warnings as errors; it is not run.
aarch64: $(VENV)/.dev
	$(BIN)/cmake -S custom_ops -B build/aarch64 -DEMU_WERROR=ON -DCMAKE_SYSTEM_NAME=Linux \
	  -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++
	$(BIN)/cmake --build build/aarch64 --parallel 2

## Build a wheel for every Linux of its age or newer into dist, and try it with every Python that emu is for.
wheel: $(VENV)/.dev
	rm -rf build/wheel dist
	$(BIN)/python -m pip --disable-pip-version-check wheel -q --no-deps -w build/wheel .
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/auditwheel repair -w dist build/wheel/*.whl
	.ci/wheel dist/*.whl

## Run the native library's tests under AddressSanitizer and UndefinedBehaviorSanitizer; warnings are errors.
sanitize: $(VENV)/.dev
	$(BIN)/cmake -S custom_ops -B build/sanitize -DEMU_SANITIZE=ON -DEMU_WERROR=ON -DCMAKE_BUILD_TYPE=RelWithDebInfo
	$(BIN)/cmake --build build/sanitize --parallel 2
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so) $$(g++ -print-file-name=libstdc++.so)" ASAN_OPTIONS=detect_leaks=0 \
	  UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
	  EMU_OPS_LIBRARY=$(CURDIR)/build/sanitize/libemu_ops.so $(BIN)/python -m pytest -q -n 2 tests/custom_ops

## Speed and memory against the clean model.
benchmark: $(VENV)/.core
	$(BIN)/python -m benchmarks

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: $(VENV)/bin/python $(SOURCES)
	$(INSTALL) -e ".[analysis]"
	touch $@

$(VENV)/.dev: $(VENV)/.core
	$(INSTALL) -e ".[analysis,cluster,data,train,optimum,docs,dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist
