//! The whole engine from one seed (`ghostmem_pager::sim`). Without arguments: what is kept
//! in `tests/sim`, and a million steps; `--help` says what else.

fn main() {
    std::process::exit(ghostmem_pager::sim::soak::main());
}
