# Every recurring chore, by name. `make` alone lists them. Variables: BENCH (a script of benchmarks/), OPTIONS (its own).
BENCH ?= classification
OPTIONS ?= --size cpu --max-time 9m

.DEFAULT_GOAL := help
.PHONY: help test thorough slow gpu lint format types docs demo bench tables examples readme ci

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

test:  ## the default tests, on two processes
	pytest

thorough:  ## what the default tests ask of one or two methods, pages and faults, asked of all
	pytest -m thorough

slow:  ## tests of many seconds to many minutes each; the pages' commands are among them
	pytest -m slow

gpu:  ## tests that need a CUDA device
	pytest -m gpu

lint:  ## ruff: rules and format, nothing changed
	ruff check . && ruff format --check .

format:  ## ruff: what it can fix, fixed, and the format
	ruff check --fix . && ruff format .

types:  ## mypy --strict
	mypy

docs:  ## the documentation site in build/site, its links and anchors checked
	zensical build --strict --clean && python scripts/check_site.py build/site

demo:  ## the built-in example and its noise baseline, 2 processor minutes
	datafree demo

bench:  ## a benchmark, or on with it: make bench BENCH=camvid OPTIONS='--size cpu --max-time 9m'
	python benchmarks/$(BENCH).py $(OPTIONS)

tables:  ## its results file and tables from the cells that are done: make tables BENCH=camvid OPTIONS='--size cpu'
	python benchmarks/$(BENCH).py $(OPTIONS) --collect-only

examples:  ## the built-in examples, images and teachers, made again from Fashion-MNIST; half an hour
	python scripts/make_example.py all && python scripts/make_boxes_example.py all && python scripts/make_fashion_example.py all

readme:  ## the demos run again, README's output of them and the pictures brought up to date; half an hour
	python scripts/update_demos.py

ci:  ## what every submission must pass, in a fresh environment
	.ci/run
