//! Every kept input, once: seeds, and what a fuzzer found before it was mended.

use std::fs;
use std::path::Path;

use ghostmem_fuzz::TARGETS;

#[test]
fn kept_inputs_break_nothing() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for (name, target) in TARGETS {
        let folder = fs::read_dir(corpus.join(name)).expect("a corpus for each target");
        let mut tried = 0;
        for input in folder {
            let input = input.expect("an entry").path();
            println!("{}", input.display());
            target(&fs::read(&input).expect("an input"));
            tried += 1;
        }
        assert!(tried > 0, "no input for {name}");
    }
}
