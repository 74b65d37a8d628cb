# Each target runs one plain cargo command or one script.
.PHONY: run test lint bench soak

run: ; cargo run --locked -- serve --development --desk-listen 127.0.0.1:7072
test: ; scripts/test
lint: ; scripts/lint
bench: ; scripts/bench
soak: ; scripts/soak
