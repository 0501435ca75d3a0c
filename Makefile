# One virtual environment in .venv. Tests and demo use the installed wheel, as users do. Stamp files in .venv trigger
# reinstallation when sources change.

PYTHON ?= python3
# The torch that is tested; `make demo TORCH=torch==2.12.0` takes another.
TORCH ?= torch==2.13.0

# The oldest torch whose headers must suffice.
OLDEST_TORCH ?= torch==2.11.0

VENV := .venv
BIN := $(VENV)/bin
TORCH_STAMP := $(VENV)/.$(subst =,-,$(TORCH))
SOURCES := pyproject.toml CMakeLists.txt $(shell find build_backend cmake csrc pursamere_ext python -not -name __pycache__ -not -name '*.pyc')

# An nvcc from pip, with which no CUDA toolkit is needed on the system: 101 MB to download, 253 MB installed.
NVCC_PACKAGES ?= cuda-toolkit[nvcc,cudart]==13.0.*
NVCC_ENV := build/nvcc
NVCC_FOLDER = $$(echo "$(CURDIR)"/$(NVCC_ENV)/lib/python3*/site-packages/nvidia/cu*)

# Where gpu-check leaves its report.
GPU_CHECK_OUT ?= gpu-check

# Keeps every pip below, also the one inside an isolated build, from taking a newer torch.
export PIP_CONSTRAINT := $(VENV)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# OpenMP threads spin while waiting by default, which slows a busy machine down many times.
demo test test-fast docs theory train-mnist train-cifar10: export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: help demo test test-fast lint bench docs docs-links theory train-mnist train-cifar10 gpu-check wheel nvcc \
	cuda-wheel oldest-torch clean

help:
	@echo "make demo          install into .venv and run the demo        (DEMO_ARGS=...)"
	@echo "make test          lint and the whole test suite              (TEST_ARGS=...)"
	@echo "make test-fast     lint, and the tests that are neither slow nor need the CUDA kernels compiled"
	@echo "make lint          ruff and mypy"
	@echo "make bench         benchmark the operations                   (BENCH_ARGS=...)"
	@echo "make docs          build the documentation into build/docs/html, and execute its notebooks"
	@echo "make docs-links    check the links that lead to the web       (network)"
	@echo "make theory        draw the figures of docs/mathematics.md    (THEORY_ARGS=...)"
	@echo "make train-mnist   train the networks for MNIST               (TRAIN_ARGS=...)"
	@echo "make train-cifar10 train those for CIFAR-10 (GPU)             (TRAIN_ARGS=...)"
	@echo "make gpu-check     with a GPU: build, tests, sanitizer, bench (GPU_CHECK_OUT=...)"
	@echo "make wheel         build the wheel into dist/"
	@echo "make cuda-wheel    the same with CUDA kernels, by an nvcc from pip"
	@echo "make nvcc          install that nvcc, which the tests of the kernels use too"
	@echo "make oldest-torch  build against the oldest torch that is supported"
	@echo "make clean         remove what was built, and caches"

demo: $(VENV)/.installed
	$(BIN)/pursamere demo $(DEMO_ARGS)

# From tests/, because in this folder pursamere_ext/ would hide the installed package.
test test-fast: lint $(VENV)/.tools
	cd tests && ../$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal $(TEST_ARGS)

test-fast: override TEST_ARGS += -m "not slow and not cuda_on_cpu"

lint: $(VENV)/.tools
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: $(VENV)/.tools
	$(BIN)/python benchmarks/bench_ops.py $(BENCH_ARGS)

# Warnings are errors, among them links between pages that lead nowhere. -E, since an old page's notebook would not run.
docs: $(VENV)/.docs
	$(BIN)/sphinx-build -E -W --keep-going -b html -d build/docs/doctrees docs build/docs/html

docs-links: $(VENV)/.docs
	$(BIN)/sphinx-build -b linkcheck -D nb_execution_mode=off -d build/docs/links-doctrees docs build/docs/links

# Figures and their numbers, in less than five minutes on two cores. THEORY_ARGS="draws" makes one of them.
theory: $(VENV)/.installed
	$(BIN)/python experiments/theory/run.py $(THEORY_ARGS) -o docs/images/theory

# Output folder of the trainings.
WEIGHTS ?= build/weights

# Reads data from the folder in PURSAMERE_DATA. Interrupted trainings resume.
train-mnist: $(VENV)/.tools
	$(BIN)/pursamere train denoiser --dataset mnist --half -o $(WEIGHTS)/mnist-denoiser $(TRAIN_ARGS)
	$(BIN)/pursamere train classifier --dataset mnist --half -o $(WEIGHTS)/mnist-classifier $(TRAIN_ARGS)

# Without a GPU, a few steps: WEIGHTS=build/trial TRAIN_ARGS="--device cpu --steps 3"
train-cifar10: $(VENV)/.tools
	$(BIN)/pursamere train denoiser --dataset cifar10 --half --device cuda -o $(WEIGHTS)/cifar10-denoiser $(TRAIN_ARGS)
	$(BIN)/pursamere train classifier --dataset cifar10 --half --device cuda -o $(WEIGHTS)/cifar10-classifier $(TRAIN_ARGS)

# With the machine's own Python, whose torch has CUDA, not that of .venv.
gpu-check:
	$(PYTHON) tests/gpu_check.py --output $(GPU_CHECK_OUT)

wheel: $(VENV)/.wheel

nvcc: $(NVCC_ENV)/.installed

# nvcc links with lib64, and the packages have lib.
$(NVCC_ENV)/.installed:
	rm -rf $(NVCC_ENV)
	$(PYTHON) -m venv $(NVCC_ENV)
	PIP_CONSTRAINT= $(NVCC_ENV)/bin/pip install --quiet "$(NVCC_PACKAGES)"
	ln -s lib "$(NVCC_FOLDER)/lib64"
	touch $@

# Built anew, since the last wheel may have been one without CUDA. `make test` then tests this one.
cuda-wheel: nvcc
	rm -f $(VENV)/.wheel
	CUDACXX="$(NVCC_FOLDER)/bin/nvcc" \
		SKBUILD_CMAKE_DEFINE="$${SKBUILD_CMAKE_DEFINE:+$$SKBUILD_CMAKE_DEFINE;}PURSAMERE_CUDA=ON" $(MAKE) wheel

# Only the headers of that torch are needed, so none of the CUDA libraries that it depends on. The flags stand for a tool
# chain that links the C++ library statically; the module must depend on the shared one all the same.
oldest-torch:
	rm -rf build/oldest-torch
	$(PYTHON) -m venv build/oldest-torch
	PIP_CONSTRAINT= build/oldest-torch/bin/pip install --quiet --no-deps $(OLDEST_TORCH)
	PIP_CONSTRAINT= build/oldest-torch/bin/pip install --quiet scikit-build-core 'pybind11>=3.0' cmake ninja
	PIP_CONSTRAINT= LDFLAGS="-static-libstdc++ -static-libgcc" \
		build/oldest-torch/bin/pip wheel --no-build-isolation --no-deps --wheel-dir build/oldest-torch/dist .
	$(PYTHON) -m zipfile -e build/oldest-torch/dist/*.whl build/oldest-torch/wheel
	grep -aq libstdc++.so.6 build/oldest-torch/wheel/pursamere_ext/_C*.so
	grep -aq libgcc_s.so.1 build/oldest-torch/wheel/pursamere_ext/_C*.so

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch comes first, so that building the wheel finds it.
$(TORCH_STAMP):
	$(PYTHON) -m venv $(VENV)
	echo "$(TORCH)" > $(PIP_CONSTRAINT)
	$(BIN)/pip install "$(TORCH)"
	rm -f $(VENV)/.torch*
	touch $@

$(VENV)/.wheel: $(TORCH_STAMP) $(SOURCES)
	rm -rf dist
	$(BIN)/pip wheel --no-deps --wheel-dir dist .
	touch $@

# pip keeps an installed package of the same version, hence the uninstall.
$(VENV)/.installed: $(VENV)/.wheel
	$(BIN)/pip uninstall --quiet --quiet --yes pursamere
	$(BIN)/pip install "$$(echo dist/*.whl)[demo]"
	touch $@

$(VENV)/.tools: $(VENV)/.installed
	$(BIN)/pip install --quiet "$$(echo dist/*.whl)[test]"
	$(BIN)/pip install --quiet --no-deps torchattacks
	touch $@

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/pip install --quiet "$$(echo dist/*.whl)[docs]"
	touch $@
