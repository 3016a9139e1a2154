# The course in three words: `make lab` to learn, `make test` to prove, `make help` for the rest.
# Without make (Windows): README.md gives the same commands for python alone.

PYTHON ?= python3
ifeq ($(OS),Windows_NT)
BIN := .venv/Scripts
else
BIN := .venv/bin
endif

.DEFAULT_GOAL := help
.PHONY: help setup setup-grade setup-dev lab test lint build bench doctor clean

help: ## list these targets
	@echo "MoE Course. Choose a target:"
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20

setup: ## install what a learner needs into .venv
	@$(PYTHON) tools/setup_venv.py

setup-grade: ## install what grading needs as well
	@$(PYTHON) tools/setup_venv.py --grade

setup-dev: ## install what the tests need as well
	@$(PYTHON) tools/setup_venv.py --dev

lab: setup ## open the course in JupyterLab
	@$(BIN)/moe-course lab

test: setup-dev ## run every check and every test, browser included
	@$(BIN)/python tools/run_tests.py

lint: setup-dev ## run ruff and mypy alone
	@$(BIN)/python tools/run_tests.py lint format types

build: setup-dev ## write the notebooks of lessons/ and solutions/ from solutions/*.py
	@$(BIN)/moe-course build

bench: setup-dev ## time the MoE layer against its rivals
	@$(BIN)/moe-course bench layer

doctor: setup ## say what this machine can do and what is missing
	@$(BIN)/moe-course doctor

clean: ## remove .venv and every cache
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist lessons/start.ipynb
	find . -name __pycache__ -prune -exec rm -rf {} +
