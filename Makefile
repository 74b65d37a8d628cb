# Each target is one line to a plain cargo command or a script.
.PHONY: run test lint bench soak

run: ; cargo run --release -- serve --development
test: ; scripts/test
lint: ; scripts/lint
bench: ; scripts/bench
soak: ; scripts/soak
