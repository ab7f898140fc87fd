# setup · study · test · test-all · test-gpu · format · bench · lab · cluster · lock — each sets up what it needs.

PRESET ?= auto
DATA ?= auto
ON ?=
JUPYTER_PORT ?= 8888
TENSORBOARD_PORT ?= 6006
PYTHON := .venv/bin/python
HERE := $(CURDIR)

.PHONY: setup study test test-all test-gpu format bench lab cluster lock
.SILENT:

# The stamp holds the folder and the lock's checksum: a moved or updated clone sets itself up again.
setup:
	if [ "$$(cat .venv/.ready 2>/dev/null)" != "$(HERE) $$(cksum < requirements.lock)" ] || \
		[ -n "$$PYTHON_FOR_VENV" ]; then sh .ci/setup; fi

# Ray, for many runs at once: python -m study --on local, --on ray
cluster: setup
	if [ "$$(cat .venv/.cluster 2>/dev/null)" != "$$(cksum < requirements-cluster.lock)" ]; then \
		$(PYTHON) -m uv pip install --quiet --compile-bytecode --no-deps --requirement requirements-cluster.lock --python $(PYTHON) && \
		cksum < requirements-cluster.lock > .venv/.cluster; \
	fi

# The main job: every notebook, then the report. make study PRESET=full DATA=cifar ON=local
study: $(if $(ON),cluster,setup)
	$(PYTHON) -m study --preset $(PRESET) --data "$(DATA)" $(if $(ON),--on $(ON))

# Two files of tests at a time, a thread each, in their order: the last ones are short.
TEST = OMP_NUM_THREADS=1 $(PYTHON) -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test: cluster
	$(PYTHON) -m ruff format --check --quiet . || { echo "not formatted: run make format"; exit 1; }
	$(PYTHON) -m ruff check --quiet .
	$(TEST) -m "not long"

# And what takes long by its nature: many kills, drawn cases by the thousand, all backbones, the notebooks a second
# time, a cluster that loses a node.
test-all: cluster
	$(TEST) --hypothesis-profile many

# The contracts on a GPU, a few minutes on one card.
test-gpu: setup
	STUDY_TESTS_ON=cuda $(PYTHON) -m pytest -m gpu tests/test_gpu.py tests/training/test_cuda_graphs.py tests/evaluation/test_network_graphs.py

format: setup
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

# The newest packages that go together into both locks; then run make test-all.
lock: setup
	for name in requirements requirements-cluster; do \
		$(PYTHON) -m uv pip compile --quiet --upgrade --universal -p 3.11 --no-annotate --no-header $$name.txt -o $$name.lock || exit 1; \
	done

# Speed against the peers, how the cost grows, and both into docs/speed.md; some twelve minutes on two idle CPU cores.
bench: setup
	$(PYTHON) -m benchmarks.speed
	$(PYTHON) -m benchmarks.scaling
	$(PYTHON) -m benchmarks.show

# JupyterLab and TensorBoard on this machine's loopback; Ctrl-C ends both.
lab: setup
	free() { $(PYTHON) -c "import socket, sys; print(next(p for p in range(int(sys.argv[1]), 65536) if socket.socket().connect_ex(('127.0.0.1', p))))" $$1; }; \
	jupyter=$$(free $(JUPYTER_PORT)); board=$$(free $(TENSORBOARD_PORT)); \
	JUPYTER_TOKEN=$$($(PYTHON) -c "import secrets; print(secrets.token_hex(16))"); export JUPYTER_TOKEN; \
	mkdir -p runs; \
	$(PYTHON) -m study.board --port $$board >runs/tensorboard.log 2>&1 & \
	boardjob=$$!; \
	echo "JupyterLab    http://127.0.0.1:$$jupyter/lab?token=$$JUPYTER_TOKEN"; \
	echo "TensorBoard   http://127.0.0.1:$$board   newest study, first seed; clear its filter of runs to see all"; \
	echo "From another computer:  ssh -L $$jupyter:127.0.0.1:$$jupyter -L $$board:127.0.0.1:$$board $$(whoami)@$$(hostname)"; \
	$(PYTHON) -m jupyterlab -y --no-browser --ip 127.0.0.1 --port $$jupyter --LabApp.default_url=/lab/tree/notebooks --LabApp.app_settings_dir=$(HERE)/.ci/jupyterlab \
		--ServerApp.log_level=WARN --LabApp.log_level=WARN --KernelManager.transport_encryption=required \
		$$([ "$$(id -u)" = 0 ] && echo --allow-root) & \
	labjob=$$!; trap 'kill $$labjob $$boardjob 2>/dev/null; wait' EXIT; trap 'exit 130' INT; trap 'exit 143' TERM; \
	wait $$labjob
