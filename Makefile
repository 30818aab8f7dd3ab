# Everything runs in one virtual environment, made on first use.
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
INSTALLED := $(VENV)/.installed

.PHONY: install demo test cpp test-gpu bench-gpu check format clean

install: $(INSTALLED)

# Known-good versions come from constraints.txt; users of the package are not pinned.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all,dev]'
	touch $@

demo: install ## export, quantize, build, verify, bench and bundle the shipped model
	$(BIN)/densenet-deploy run fashion-mnist --out work/fashion-mnist

test: install ## the complete CPU test suite
	$(BIN)/python -m pytest

cpp: install ## build the C++ runtime and test it, alone and against Python
	$(BIN)/python -m pytest tests/cpp

test-gpu: install ## what only a GPU can show
	$(BIN)/python -m pytest tests/gpu -rs

# BENCH takes more options, such as --python onnxruntime-tensorrt=PATH.
BENCH_GPU = $(BIN)/densenet-deploy bench --gpu --rebuild --batch 1,8,64 $(BENCH)

bench-gpu: install ## every GPU backend that runs here, into benchmarks/results/<device>/
	$(BENCH_GPU) --out 'benchmarks/results/{device}/fashion-mnist-gpu.json'
	$(BIN)/densenet-deploy export densenet121 --out work/densenet121-gpu
	$(BENCH_GPU) work/densenet121-gpu --out 'benchmarks/results/{device}/densenet121-gpu.json'

CPP_FILES = $(shell find cpp examples -path cpp/build -prune -o -name '*.[ch]pp' -print)

check: install ## lint, format, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@$(BIN)/clang-format --dry-run --Werror $(CPP_FILES)
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	@$(BIN)/clang-format -i $(CPP_FILES)

clean:
	rm -rf $(VENV) work build dist cpp/build .pytest_cache .mypy_cache .ruff_cache
